package network

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"casemate.dev/dataplane/network/dns"
	"casemate.dev/dataplane/network/plan"
)

// Connections that one node may hold open, per listener: a node must not exhaust the server's descriptors.
const (
	perNode    = 1024
	perNodeDNS = 16
)

// Origin is where a connection entered, from the socket that accepted it and the link its packets came by.
type Origin struct {
	Network         string // resource id
	Subnet          string // resource id of the source's subnet
	PrivateEndpoint string // resource id; empty for a node's own metadata address
	Source          string // id of the node or machine
	Remote          netip.AddrPort
}

// Originated is implemented by every connection that listeners of this package accept. A server that wraps them in
// TLS finds it by (*tls.Conn).NetConn.
type Originated interface{ Origin() Origin }

// conn is an accepted connection.
type conn struct {
	net.Conn
	origin Origin
	from   *listener
}

// Origin tells where the connection came from.
func (c *conn) Origin() Origin { return c.origin }

// Close closes the connection.
func (c *conn) Close() error {
	c.from.forget(c)
	return c.Conn.Close()
}

// listener accepts connections in one namespace and attributes them. A connection that no node of the applied plan
// can have opened is closed at once.
type listener struct {
	net.Listener
	network   *Network
	namespace string
	networkID string
	nodeID    string // for a listener in a node's namespace, else empty
	at        netip.AddrPort
	resolver  bool // DNS, whose address is no endpoint
	limit     int

	mu    sync.Mutex // guards open and count
	open  map[*conn]struct{}
	count map[string]int // by source
}

// Listen opens a listener at the address and port of a private endpoint of the applied plan, or at the platform's
// address and port, where Origins have no PrivateEndpoint. Its connections implement Originated. The listener is closed when the endpoint leaves the plan or its namespace had to be made
// anew; Accept then returns net.ErrClosed, and its owner listens again if the endpoint still stands.
func (n *Network) Listen(ctx context.Context, networkID, addr string) (net.Listener, error) {
	at, err := netip.ParseAddrPort(addr)
	if err != nil {
		return nil, fmt.Errorf("listening in network %s: %w", networkID, err)
	}
	network, ok := n.current.Load().Network(networkID)
	if ok {
		ok = reachable(network, at)
	}
	if !ok {
		return nil, fmt.Errorf("listening at %s in network %s: %w", addr, networkID, ErrUnknown)
	}
	return n.listen(ctx, &listener{namespace: network.Namespace, networkID: network.ID, at: at, limit: perNode})
}

// ListenNode opens a listener inside a node's own namespace, at the metadata address or a loopback address. Only
// that node can reach it. It is closed when the node leaves the plan.
func (n *Network) ListenNode(ctx context.Context, nodeID, addr string) (net.Listener, error) {
	at, err := netip.ParseAddrPort(addr)
	if err != nil {
		return nil, fmt.Errorf("listening in node %s: %w", nodeID, err)
	}
	if at.Addr() != plan.MetadataAddress && !at.Addr().IsLoopback() {
		return nil, fmt.Errorf("listening in node %s: %s is neither the metadata address nor loopback", nodeID, at.Addr())
	}
	network, node, ok := n.current.Load().Node(nodeID)
	if !ok {
		return nil, fmt.Errorf("listening in node %s: %w", nodeID, ErrUnknown)
	}
	return n.listen(ctx, &listener{namespace: node.Namespace, networkID: network.ID, nodeID: node.ID, at: at, limit: perNode})
}

func (n *Network) listen(ctx context.Context, l *listener) (*listener, error) {
	l.network, l.open, l.count = n, map[*conn]struct{}{}, map[string]int{}
	err := inside(l.namespace, func() (err error) {
		var config net.ListenConfig
		config.SetMultipathTCP(false) // its subflows could arrive by another address
		l.Listener, err = config.Listen(ctx, "tcp4", l.at.String())
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listening at %s in network %s: %w", l.at, l.networkID, err)
	}
	n.mu.Lock()
	n.listeners[l] = struct{}{}
	closed := n.closed
	n.mu.Unlock()
	// The plan may have changed meanwhile; whoever changed it could not see this listener yet.
	if closed || !l.planned(n.current.Load()) {
		l.Close()
		return nil, fmt.Errorf("listening at %s in network %s: %w", l.at, l.networkID, ErrUnknown)
	}
	return l, nil
}

// serveDNS lets a resolver answer at an address of the router namespace.
func (n *Network) serveDNS(r *dns.Resolver, network *plan.Network, at netip.AddrPort) error {
	streams, err := n.listen(context.Background(), &listener{namespace: network.Namespace, networkID: network.ID, at: at, resolver: true, limit: perNodeDNS})
	if err != nil {
		return err
	}
	var packets net.PacketConn
	err = inside(network.Namespace, func() (err error) {
		packets, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(at))
		return err
	})
	if err != nil {
		streams.Close()
		return fmt.Errorf("listening at %s in network %s: %w", at, network.ID, err)
	}
	return r.Serve(packets, streams)
}

// Accept returns the next connection that has an origin. It waits; Close makes it return net.ErrClosed.
func (l *listener) Accept() (net.Conn, error) {
	for {
		raw, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		c := &conn{Conn: raw, from: l}
		origin, ok := l.attribute(raw)
		c.origin = origin
		if ok && l.remember(c) {
			return c, nil
		}
		raw.Close()
	}
}

// Close closes the listener; connections that it accepted live on.
func (l *listener) Close() error {
	l.network.mu.Lock()
	delete(l.network.listeners, l)
	l.network.mu.Unlock()
	return l.Listener.Close()
}

// attribute finds the node that opened a connection: the one whose address it came from, provided that the kernel's
// mark says that it came by that node's link. An address that changed owners therefore never misleads.
func (l *listener) attribute(c net.Conn) (Origin, bool) {
	remote := c.RemoteAddr().(*net.TCPAddr).AddrPort()
	p := l.network.current.Load()
	network, ok := p.Network(l.networkID)
	if !ok {
		return Origin{}, false
	}
	o := Origin{Network: network.ID, Remote: remote}
	var node *plan.Attachment
	if l.nodeID != "" {
		_, node, ok = p.Node(l.nodeID)
	} else {
		node, ok = network.At(remote.Addr().Unmap())
		ok = ok && mark(c) == node.Mark
	}
	if !ok {
		return Origin{}, false
	}
	o.Source, o.Subnet = node.ID, network.Segments[node.Segment].ID
	if endpoint, found := network.Endpoint(l.at); found && l.nodeID == "" {
		o.PrivateEndpoint = endpoint.ID
	}
	return o, true
}

// mark reads the mark of an accepted socket (tcp_fwmark_accept); zero if there is none.
func mark(c net.Conn) uint32 {
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		return 0
	}
	value := 0
	err = raw.Control(func(fd uintptr) { value, _ = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK) })
	if err != nil {
		return 0
	}
	return uint32(value)
}

func (l *listener) remember(c *conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.count[c.origin.Source] >= l.limit {
		return false
	}
	l.count[c.origin.Source]++
	l.open[c] = struct{}{}
	return true
}

func (l *listener) forget(c *conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.open[c]; !ok {
		return
	}
	delete(l.open, c)
	if l.count[c.origin.Source]--; l.count[c.origin.Source] == 0 {
		delete(l.count, c.origin.Source)
	}
}

// planned tells whether the listener's place still stands in a plan.
func (l *listener) planned(p *plan.Plan) bool {
	network, ok := p.Network(l.networkID)
	if !ok {
		return false
	}
	switch {
	case l.nodeID != "":
		in, _, ok := p.Node(l.nodeID)
		return ok && in == network
	case l.resolver:
		return true // the resolver's owner closes it
	}
	return reachable(network, l.at)
}

// reachable tells whether nodes can reach a listener of the router namespace at an address and port.
func reachable(network *plan.Network, at netip.AddrPort) bool {
	_, ok := network.Endpoint(at)
	return ok || network.IsPlatform(at)
}

// closeListeners closes the listeners chosen with all their connections, and on the others the connections of nodes
// that the applied plan no longer holds at the address they came from.
func (n *Network) closeListeners(choose func(*listener) bool) {
	n.mu.Lock()
	var chosen, kept []*listener
	for l := range n.listeners {
		if choose(l) {
			chosen = append(chosen, l)
		} else {
			kept = append(kept, l)
		}
	}
	n.mu.Unlock()
	for _, l := range chosen {
		l.Close()
		l.closeConns(func(*conn) bool { return true })
	}
	p := n.current.Load()
	for _, l := range kept {
		l.closeConns(func(c *conn) bool {
			network, node, ok := p.Node(c.origin.Source)
			return !ok || network.ID != c.origin.Network || l.nodeID == "" && node.IP != c.origin.Remote.Addr().Unmap()
		})
	}
}

func (l *listener) closeConns(choose func(*conn) bool) {
	l.mu.Lock()
	var chosen []*conn
	for c := range l.open {
		if choose(c) {
			chosen = append(chosen, c)
		}
	}
	l.mu.Unlock()
	for _, c := range chosen {
		c.Close()
	}
}

func (n *Network) isClosed() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.closed
}
