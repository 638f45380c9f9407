package network

import (
	"context"

	"casemate.dev/dataplane/network/plan"
)

// Render and ApplyChanges let tests see the rules before they are loaded, and what Apply had to change.
var Render = render

func (n *Network) ApplyChanges(ctx context.Context, p *plan.Plan) ([]string, error) {
	return n.apply(ctx, p)
}

// Instance is the prefix of all names.
func (n *Network) Instance() string { return n.instance }
