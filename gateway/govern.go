package gateway

// govern lets locks and policies refuse or change a control-plane request. Reads pass.
func (g *Gateway) govern(x *exchange) error {
	for _, governor := range g.cfg.Govern {
		if err := governor(x.r); err != nil {
			return err
		}
	}
	return nil
}
