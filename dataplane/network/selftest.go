package network

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"

	"casemate.dev/dataplane/network/nft"
	"casemate.dev/dataplane/network/plan"
)

// SelfTest returns nil if this process can build networks on this machine, else one sentence that says why not. It
// builds a small network in namespaces of its own and removes it again.
func SelfTest() error {
	n := New(Config{Instance: fmt.Sprintf("self-test of process %d", os.Getpid())})
	w := &work{log: n.log, fresh: map[string]bool{}}
	p, err := n.Compile([]plan.VirtualNetwork{{
		ID:       "self-test",
		Prefixes: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24")},
		Subnets:  []plan.Subnet{{ID: "s", Name: "s", Prefix: netip.MustParsePrefix("10.0.0.0/24"), Group: &plan.SecurityGroup{ID: "g"}}},
		Nodes:    []plan.Node{{ID: "self-test node", Subnet: "s", IP: netip.MustParseAddr("10.0.0.4")}},
	}})
	if err != nil {
		return err
	}
	return errors.Join(explain(w.try(&p.Networks[0])), n.removeUnplanned(w, &plan.Plan{}))
}

// try builds a network with one node.
func (w *work) try(network *plan.Network) error {
	if err := w.namespace(network.Namespace); err != nil {
		return err
	}
	err := inspect(network.Namespace, func(ns *os.File) error { return nft.Load(ns, render(network)) })
	if err != nil {
		return fmt.Errorf("the kernel does not take packet filter rules (nf_tables with inet and conntrack): %w", err)
	}
	return errors.Join(w.router(network), w.attach(network, &network.Attachments[0]))
}

// explain makes one sentence of what try found.
func explain(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrPermission): // EPERM and EACCES
		return errors.New("networks are unavailable: making network namespaces and packet filters needs root with CAP_SYS_ADMIN and CAP_NET_ADMIN")
	}
	return fmt.Errorf("networks are unavailable: %w", err)
}
