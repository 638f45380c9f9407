// Package network makes the kernel of this machine equal to a plan of virtual networks, and opens the platform's
// sockets inside them: private endpoints, resolvers, metadata services, connections to nodes.
//
// Each virtual network is one network namespace that routes between point-to-point links, one link per node, and has
// no link to anything else: neither to the host nor to another network. Every packet of a node passes the rules of
// that namespace, between neighbours of one subnet too. What no rule accepts is dropped.
//
// Nodes run foreign code and lie about everything they can: addresses, ports, ARP, headers. What they cannot choose is
// the link by which their packets enter; source addresses that are not the link's are dropped, and the kernel marks
// each connection with its link, so an Origin is evidence of where a connection began. It says nothing about who
// opened it: network origin never authenticates. Root on the host is trusted.
//
// State is desired state: Apply is idempotent, survives being killed at any point, and the zero plan removes all that
// this instance owns. The package declares nothing and decides nothing about who may reach what: package plan does.
package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"

	"casemate.dev/dataplane/network/netns"
	"casemate.dev/dataplane/network/nft"
	"casemate.dev/dataplane/network/plan"
)

// Config configures a Network.
type Config struct {
	// Instance, required, distinguishes this server from others on the machine: its data directory.
	Instance string
	// Log gets one line per change of the kernel. Default: slog.Default().
	Log *slog.Logger
}

// Network owns the kernel objects of one instance. Its methods may be called concurrently.
type Network struct {
	instance string
	log      *slog.Logger
	current  atomic.Pointer[plan.Plan] // what Origins are resolved against

	applying  sync.Mutex // held by Apply and Close; guards resolvers
	resolvers map[string]*resolver

	mu        sync.Mutex // guards listeners and closed
	listeners map[*listener]struct{}
	closed    bool
}

// ErrUnknown is returned for a network, node or endpoint that the applied plan does not hold.
var ErrUnknown = errors.New("not part of the applied networks")

// DeniedError says that the model forbids a connection, and where.
type DeniedError struct{ Decision plan.Decision }

func (e *DeniedError) Error() string { return "connection is not allowed: " + e.Decision.String() }

// New returns a Network that has not touched the kernel yet.
func New(cfg Config) *Network {
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	n := &Network{
		instance:  plan.InstanceName(cfg.Instance),
		log:       cfg.Log,
		resolvers: map[string]*resolver{},
		listeners: map[*listener]struct{}{},
	}
	n.current.Store(&plan.Plan{})
	return n
}

// Compile compiles declared networks for this instance. It is pure.
func (n *Network) Compile(declared []plan.VirtualNetwork) (*plan.Plan, error) {
	return plan.Compile(n.instance, declared)
}

// Current returns the plan that was applied last; the zero plan before that. Callers must not change it.
func (n *Network) Current() *plan.Plan { return n.current.Load() }

// Close closes all sockets and waits for the resolvers. Kernel objects stay, for nodes outlive a restart of the server;
// apply the zero plan to remove them.
func (n *Network) Close() error {
	n.applying.Lock()
	defer n.applying.Unlock()
	n.mu.Lock()
	n.closed = true
	n.mu.Unlock()
	n.closeListeners(func(*listener) bool { return true })
	for name, r := range n.resolvers {
		r.dns.Close()
		delete(n.resolvers, name)
	}
	return nil
}

// NodeNamespace returns the path of a node's (or machine's) network namespace, for an OCI runtime or setns.
// The namespace is complete: address, routes, loopback; its owner must not configure it.
func (n *Network) NodeNamespace(nodeID string) (string, error) {
	_, node, ok := n.current.Load().Node(nodeID)
	if !ok {
		return "", fmt.Errorf("finding namespace of node %s: %w", nodeID, ErrUnknown)
	}
	return netns.Path(node.Namespace), nil
}

// DialNode opens a TCP connection from the platform's address inside a network to a node of it. The destination
// subnet's inbound rules apply (service tag AzureLoadBalancer); *DeniedError tells which one refused.
func (n *Network) DialNode(ctx context.Context, networkID, addr string) (net.Conn, error) {
	to, err := netip.ParseAddrPort(addr)
	if err != nil {
		return nil, fmt.Errorf("dialing node: %w", err)
	}
	p := n.current.Load()
	target, ok := p.Network(networkID)
	if !ok {
		return nil, fmt.Errorf("dialing node %s of network %s: %w", addr, networkID, ErrUnknown)
	}
	decision := p.Verdict(plan.Flow{Network: networkID, From: plan.Platform, Destination: to.Addr(), Protocol: plan.TCP, DestinationPort: to.Port()})
	if !decision.Allow {
		return nil, fmt.Errorf("dialing node %s of network %s: %w", addr, networkID, &DeniedError{decision})
	}
	var conn net.Conn
	err = inside(target.Namespace, func() (err error) {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: plan.PlatformAddress.AsSlice()}}
		conn, err = d.DialContext(ctx, "tcp4", to.String()) // an IP literal: the socket is made on this thread
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("dialing node %s of network %s: %w", addr, networkID, err)
	}
	return conn, nil
}

// Counters reads what the rules of a network have counted: mostly packets dropped, by reason or security rule.
// Counting starts anew whenever the network's rules change.
func (n *Network) Counters(networkID string) ([]nft.Counter, error) {
	target, ok := n.current.Load().Network(networkID)
	if !ok {
		return nil, fmt.Errorf("reading counters of network %s: %w", networkID, ErrUnknown)
	}
	f, err := netns.Open(target.Namespace)
	if err != nil {
		return nil, fmt.Errorf("reading counters of network %s: %w", networkID, err)
	}
	defer f.Close()
	return nft.Counters(f, table)
}

// inside runs fn in a namespace by name.
func inside(namespace string, fn func() error) error {
	f, err := netns.Open(namespace)
	if err != nil {
		return err
	}
	defer f.Close()
	return netns.Do(f, fn)
}

// inspect opens a namespace for reading or changing its objects.
func inspect(namespace string, fn func(*os.File) error) error {
	f, err := netns.Open(namespace)
	if err != nil {
		return err
	}
	defer f.Close()
	return fn(f)
}
