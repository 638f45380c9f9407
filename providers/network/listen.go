package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"casemate.dev/dataplane/network"
	"casemate.dev/dataplane/network/plan"
	"casemate.dev/resource"
)

const (
	metadataPort  = 80
	platformGroup = "platform"
)

// place is where the platform listens inside networks: at an address of a network, or in a node's own namespace.
type place struct {
	network string // ID key; empty for a node
	node    string // id in lower case; empty for a network
	at      netip.AddrPort
}

// origins is what connections are explained by: a snapshot of the state that the kernel obeys.
type origins struct {
	endpoints map[string]connection // by ID key
	nodes     map[string]string     // lower-case id to id
}

func originsOf(s state) *origins {
	o := &origins{endpoints: map[string]connection{}, nodes: map[string]string{}}
	for _, d := range s.list(endpointType) {
		if c, err := connectionOf(d); err == nil && statusOf(d) == approved {
			o.endpoints[d.ID.Key()] = c
		}
	}
	for key, n := range s.nodes {
		o.nodes[key] = n.id
	}
	return o
}

// origin says where a connection entered. What cannot be explained has the zero origin, which is refused everywhere.
func (p *Provider) origin(at place, c net.Conn) resource.Origin {
	from, ok := c.(network.Originated)
	if !ok {
		return resource.Origin{}
	}
	o, known := from.Origin(), p.origins.Load()
	out := resource.Origin{Kind: resource.OriginPrivate, Network: o.Network, Subnet: o.Subnet, PrivateEndpoint: o.PrivateEndpoint,
		Node: known.nodes[strings.ToLower(o.Source)], Remote: o.Remote}
	switch {
	case at.node != "":
		if !strings.EqualFold(o.Source, at.node) || out.Node == "" {
			return resource.Origin{}
		}
		out.Kind = resource.OriginNode
	case o.PrivateEndpoint != "":
		c, ok := known.endpoints[strings.ToLower(o.PrivateEndpoint)]
		if !ok {
			return resource.Origin{}
		}
		out.Target, out.GroupID = c.target, c.groupID
	case at.at.Addr() == plan.PlatformAddress:
		out.GroupID = platformGroup
	default:
		return resource.Origin{}
	}
	return out
}

// wanted are the places of a state whose plan is applied.
func (p *Provider) wanted(s state, compiled *plan.Plan) map[place]bool {
	out := map[place]bool{}
	for i := range compiled.Networks {
		n := &compiled.Networks[i]
		key := strings.ToLower(n.ID)
		out[place{network: key, at: netip.AddrPortFrom(plan.PlatformAddress, p.cfg.Port)}] = true
		for _, e := range n.Endpoints {
			out[place{network: key, at: e.Address}] = true
		}
		for _, a := range n.Attachments {
			if _, ok := s.nodes[strings.ToLower(a.ID)]; ok {
				out[place{node: strings.ToLower(a.ID), at: netip.AddrPortFrom(plan.MetadataAddress, metadataPort)}] = true
			}
		}
	}
	return out
}

// listenLocked closes listeners of places that are gone and opens those that are new; syncing is held.
func (p *Provider) listenLocked(ctx context.Context, s state, compiled *plan.Plan) error {
	wanted := p.wanted(s, compiled)
	for at, l := range p.places {
		if !wanted[at] {
			delete(p.places, at)
			_ = l.Close() // the data plane has closed it with its connections
		}
	}
	var errs []error
	for at := range wanted {
		if _, ok := p.places[at]; ok || p.ctx.Err() != nil {
			continue
		}
		l, err := p.open(ctx, at)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		p.places[at] = l
		p.serving.Go(func() { p.serve(at, l) })
	}
	return errors.Join(errs...)
}

func (p *Provider) open(ctx context.Context, at place) (net.Listener, error) {
	if at.node != "" {
		l, err := p.cfg.Plane.ListenNode(ctx, at.node, at.at.String())
		if err != nil {
			return nil, fmt.Errorf("opening instance metadata of node %s: %w", at.node, err)
		}
		return l, nil
	}
	l, err := p.cfg.Plane.Listen(ctx, at.network, at.at.String())
	if err != nil {
		return nil, fmt.Errorf("opening %s in %s: %w", at.at, at.network, err)
	}
	return l, nil
}

const reopenPause = 200 * time.Millisecond

// serve serves a place until it is gone or Run ends. A listener that the data plane closed, because its namespace had to
// be made anew, is opened again.
func (p *Provider) serve(at place, l net.Listener) {
	serve := p.cfg.Serve
	if at.node != "" {
		serve = p.cfg.ServeNode
	}
	for {
		err := serve(p.ctx, l, func(c net.Conn) resource.Origin { return p.origin(at, c) })
		if errors.Is(err, net.ErrClosed) {
			err = nil
		}
		if err != nil {
			p.cfg.Logger.Error("serving inside a network", "network", at.network, "node", at.node, "address", at.at.String(), "error", err)
		}
		_ = l.Close()
		next, ok := p.reopen(at, l, err)
		if !ok {
			return
		}
		l = next
	}
}

// reopen opens a place again while it is wanted, after a pause when serving it failed; false: nobody wants it any more.
func (p *Provider) reopen(at place, old net.Listener, failed error) (net.Listener, bool) {
	for {
		if failed != nil {
			timer := time.NewTimer(reopenPause)
			select {
			case <-timer.C:
			case <-p.ctx.Done():
				timer.Stop()
				return nil, false
			}
		}
		var l net.Listener
		if l, failed = p.tryOpen(at, old); failed == nil {
			return l, l != nil
		}
		p.cfg.Logger.Warn("opening a place inside a network again", "error", failed)
	}
}

// tryOpen returns nil when the place is gone, or somebody else serves it.
func (p *Provider) tryOpen(at place, old net.Listener) (net.Listener, error) {
	p.syncing.Lock()
	defer p.syncing.Unlock()
	if p.ctx.Err() != nil || p.places[at] != old {
		return nil, nil
	}
	l, err := p.open(p.ctx, at)
	if err == nil {
		p.places[at] = l
	}
	return l, err
}
