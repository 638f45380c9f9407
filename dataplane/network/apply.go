package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"

	"casemate.dev/dataplane/network/dns"
	"casemate.dev/dataplane/network/netns"
	"casemate.dev/dataplane/network/nft"
	"casemate.dev/dataplane/network/plan"
)

// resolver is the DNS of one network and the addresses it listens at.
type resolver struct {
	dns       *dns.Resolver
	addresses []netip.Addr
}

// Apply makes the kernel equal to the plan. It reads before it writes, so that applying the same plan again changes
// nothing, and finding less or more than it left (after a crash, or because somebody removed a link) repairs it.
// nil is the zero plan and removes everything that this instance owns.
//
// Objects of different networks are independent: an error in one does not stop the others, and all errors are
// returned joined. A network that could not be completed is more closed than planned, never more open:
// its rules are in place before its links are. Listeners of endpoints and nodes that are gone are closed, and so
// are open connections of nodes that are gone.
func (n *Network) Apply(ctx context.Context, p *plan.Plan) error {
	_, err := n.apply(ctx, p)
	return err
}

// apply returns one line for each change it made.
func (n *Network) apply(ctx context.Context, p *plan.Plan) ([]string, error) {
	if p == nil {
		p = &plan.Plan{}
	}
	if p.Instance != n.instance && (p.Instance != "" || len(p.Networks) > 0) {
		return nil, fmt.Errorf("applying networks: plan is for instance %s, this is %s", p.Instance, n.instance)
	}
	n.applying.Lock()
	defer n.applying.Unlock()
	if n.isClosed() {
		return nil, fmt.Errorf("applying networks: %w", os.ErrClosed)
	}
	w := &work{log: n.log, fresh: map[string]bool{}}
	// First everything that takes away, then what the origins are resolved against, then everything that adds:
	// a connection is never attributed to a node that did not open it.
	errs := []error{n.removeUnplanned(w, p)}
	for i := range p.Networks {
		if err := ctx.Err(); err != nil {
			return w.changes, errors.Join(append(errs, fmt.Errorf("applying networks: %w", err))...)
		}
		errs = append(errs, wrap(w.router(&p.Networks[i]), "applying network %s", p.Networks[i].ID))
	}
	n.current.Store(p)
	n.closeListeners(func(l *listener) bool { return !l.planned(p) })
	for i := range p.Networks {
		network := &p.Networks[i]
		for j := range network.Attachments {
			if err := ctx.Err(); err != nil {
				return w.changes, errors.Join(append(errs, fmt.Errorf("applying networks: %w", err))...)
			}
			errs = append(errs, wrap(w.attach(network, &network.Attachments[j]), "attaching node %s", network.Attachments[j].ID))
		}
	}
	n.closeListeners(func(l *listener) bool { return w.fresh[l.namespace] })
	for i := range p.Networks {
		errs = append(errs, wrap(n.resolve(w, &p.Networks[i]), "starting DNS of network %s", p.Networks[i].ID))
	}
	return w.changes, errors.Join(errs...)
}

// removeUnplanned removes the instance's namespaces that the plan does not name, and stops what runs in them.
func (n *Network) removeUnplanned(w *work, p *plan.Plan) error {
	planned := map[string]bool{}
	for _, network := range p.Networks {
		planned[network.Namespace] = true
		for _, a := range network.Attachments {
			planned[a.Namespace] = true
		}
	}
	names, err := netns.List(n.instance + "-")
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range names {
		if planned[name] {
			continue
		}
		if r, ok := n.resolvers[name]; ok {
			r.dns.Close()
			delete(n.resolvers, name)
		}
		n.closeListeners(func(l *listener) bool { return l.namespace == name })
		errs = append(errs, w.remove(name))
	}
	return errors.Join(errs...)
}

// resolve sets the records of a network's resolver, and starts it anew when its addresses or its namespace changed.
func (n *Network) resolve(w *work, network *plan.Network) error {
	addresses := []netip.Addr{plan.PlatformAddress}
	for _, s := range network.Segments {
		addresses = append(addresses, s.Gateway)
	}
	old, ok := n.resolvers[network.Namespace]
	if ok && (w.fresh[network.Namespace] || !slices.Equal(old.addresses, addresses)) {
		old.dns.Close()
		delete(n.resolvers, network.Namespace)
		ok = false
	}
	records := make([]dns.Record, len(network.Records))
	for i, r := range network.Records {
		records[i] = dns.Record(r)
	}
	if ok {
		old.dns.Set(records)
		return nil
	}
	r := &resolver{dns: dns.New(), addresses: addresses}
	r.dns.Set(records)
	for _, a := range addresses {
		if err := n.serveDNS(r.dns, network, netip.AddrPortFrom(a, 53)); err != nil {
			r.dns.Close()
			return err
		}
	}
	n.resolvers[network.Namespace] = r
	w.did("start DNS in %s", network.Namespace)
	return nil
}

// router makes the router namespace of a network: settings, addresses, rules, and no links but the planned ones.
func (w *work) router(network *plan.Network) error {
	if err := w.namespace(network.Namespace); err != nil {
		return err
	}
	return inspect(network.Namespace, func(ns *os.File) error {
		if err := w.settings(ns, routerSettings); err != nil {
			return err
		}
		rules := render(network)
		same, err := nft.Matches(ns, rules)
		if err != nil {
			return err
		}
		if !same {
			if err := nft.Load(ns, rules); err != nil {
				return err
			}
			w.did("load rules in %s", network.Namespace)
		}
		if err := w.removeLinks(ns, network); err != nil {
			return err
		}
		return w.loopback(ns, network.Local, false)
	})
}

// attach makes a node's namespace and the link between it and the router.
func (w *work) attach(network *plan.Network, a *plan.Attachment) error {
	if err := w.namespace(a.Namespace); err != nil {
		return err
	}
	return inspect(a.Namespace, func(node *os.File) error {
		if err := w.settings(node, nodeSettings); err != nil {
			return err
		}
		if err := w.loopback(node, []netip.Addr{plan.MetadataAddress}, true); err != nil {
			return err
		}
		return inspect(network.Namespace, func(router *os.File) error { return w.link(router, node, a) })
	})
}

func wrap(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf(format+": %w", append(args, err)...)
}
