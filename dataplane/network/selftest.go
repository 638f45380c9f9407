package network

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

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
	network := &p.Networks[0]
	node := &network.Attachments[0]
	err = w.namespace(network.Namespace)
	if err == nil {
		err = inspect(network.Namespace, func(ns *os.File) error { return nft.Load(ns, render(network)) })
		if err != nil {
			err = fmt.Errorf("networks are unavailable: the kernel does not take packet filter rules (nf_tables with inet, conntrack): %w", err)
		} else if err = errors.Join(w.router(network), w.attach(network, node)); err != nil {
			err = fmt.Errorf("networks are unavailable: making links and settings in a namespace of our own: %w", err)
		}
	} else if errors.Is(err, unix.EPERM) || errors.Is(err, fs.ErrPermission) {
		err = errors.New("networks are unavailable: making network namespaces needs root (CAP_SYS_ADMIN and CAP_NET_ADMIN)")
	} else {
		err = fmt.Errorf("networks are unavailable: %w", err)
	}
	return errors.Join(err, n.removeUnplanned(w, &plan.Plan{}))
}
