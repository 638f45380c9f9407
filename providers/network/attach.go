package network

import (
	"context"
	"net/http"
	"net/netip"
	"strings"

	"casemate.dev/dataplane/network/plan"
	"casemate.dev/resource"
)

// Attachment is a node's place in a virtual network.
type Attachment struct {
	IP         netip.Addr
	NetNSPath  string // of its network namespace, complete: address, routes, rules
	ResolvConf []byte
}

// Attach gives a node an address in a subnet and a namespace of its own, closed by the subnet's rules when it returns, with
// the instance metadata service listening inside. Attaching a node again returns its place. Whether somebody may put the
// node there was asked before (CheckJoin).
func (p *Provider) Attach(ctx context.Context, nodeID, subnetID string) (Attachment, error) {
	if err := p.available(); err != nil {
		return Attachment{}, err
	}
	subnet, err := resource.ParseID(subnetID)
	if err != nil || nodeID == "" {
		return Attachment{}, resource.Invalid("properties.subnet.id", "'%s' is not the resource ID of a subnet.", subnetID)
	}
	var ip netip.Addr
	err = p.change(ctx, func(s state) error {
		if have, ok := s.nodes[strings.ToLower(nodeID)]; ok {
			if !have.subnet.Equal(subnet) {
				return resource.Errorf(http.StatusConflict, "NodeAlreadyAttached", "The node '%s' is attached to '%s'.", nodeID, have.subnet)
			}
			ip = have.ip
			return nil
		}
		free, err := s.allocate(subnet, 1)
		if err != nil {
			return err
		}
		ip = free[0]
		s.nodes[strings.ToLower(nodeID)] = node{id: nodeID, subnet: s.docs[subnet.Key()].ID, ip: ip}
		return nil
	})
	if err != nil {
		return Attachment{}, err
	}
	path, err := p.cfg.Plane.NodeNamespace(nodeID)
	if err != nil {
		return Attachment{}, err
	}
	return Attachment{IP: ip, NetNSPath: path, ResolvConf: resolvConf()}, nil
}

func resolvConf() []byte {
	return []byte("nameserver " + plan.PlatformAddress.String() + "\noptions timeout:2 attempts:2\n")
}

// Detach removes a node's namespace and frees its address. What runs in the namespace loses its connections. Detaching
// what is not attached does nothing.
func (p *Provider) Detach(ctx context.Context, nodeID string) error {
	if p.cfg.Unavailable != nil {
		return nil
	}
	return p.force(ctx, func(s state) { delete(s.nodes, strings.ToLower(nodeID)) })
}

// force is change for what must not be refused: the state stands, and Run repairs the kernel when it could not be changed.
func (p *Provider) force(ctx context.Context, fn func(state)) error {
	p.syncing.Lock()
	defer p.syncing.Unlock()
	next := p.view().clone()
	fn(next)
	p.replace(next)
	if p.cfg.Unavailable != nil {
		return nil
	}
	if err := p.restoreLocked(context.WithoutCancel(ctx)); err != nil {
		p.again()
		return err
	}
	return nil
}

func (p *Provider) validateMachine(_ context.Context, w *resource.Write) error {
	d := w.New
	for _, readOnly := range []string{"privateIPAddress", "namespacePath", "dnsServers"} {
		d.Unset("properties." + readOnly)
	}
	const path = "properties.subnet.id"
	if w.Old != nil {
		if !strings.EqualFold(w.Old.String(path), d.String(path)) {
			return bad("PropertyChangeNotAllowed", "The subnet of an attached machine cannot be changed. Delete it and create it again.").WithTarget(path)
		}
		return nil
	}
	subnet, err := p.join(w.Caller, d.String(path), path)
	if err != nil {
		return err
	}
	d.Set(path, subnet.String())
	_, err = p.view().allocate(subnet, 1)
	return err
}

// reconcileMachine gives the machine its address, once, and makes its namespace, which lives until the machine is deleted.
func (p *Provider) reconcileMachine(ctx context.Context, d *resource.Document) error {
	subnet, err := resource.ParseID(d.String("properties.subnet.id"))
	if err != nil {
		return resource.Invalid("properties.subnet.id", "The subnet's resource ID is malformed.")
	}
	err = p.change(ctx, func(s state) error {
		if d.Recall("address") == "" {
			s.unset(d.ID)
			free, err := s.allocate(subnet, 1)
			if err != nil {
				return err
			}
			d.Remember("address", free[0].String())
		}
		s.set(d)
		return nil
	})
	if err != nil || p.cfg.Unavailable != nil {
		return err
	}
	path, err := p.cfg.Plane.NodeNamespace(d.ID.String())
	if err != nil {
		return err
	}
	d.Set("properties.privateIPAddress", d.Recall("address"))
	d.Set("properties.namespacePath", path)
	d.Set("properties.dnsServers", []any{plan.PlatformAddress.String()})
	return nil
}
