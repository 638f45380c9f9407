package network_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	mdns "github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	vnetns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"casemate.dev/dataplane/network"
	"casemate.dev/dataplane/network/netns"
	"casemate.dev/dataplane/network/plan"
)

// patience is how long a test waits for a packet that must not arrive, or may be slow to.
const patience = 250 * time.Millisecond

const (
	vnetA, vnetB = "/subscriptions/s/virtualNetworks/a", "/subscriptions/s/virtualNetworks/b"
	vaultPE      = "/subscriptions/s/privateEndpoints/vault"
)

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }
func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }

// declared is the network that most tests use: two subnets with rules, one without, a private endpoint in the
// latter, and a second network with the same address space.
func declared() []plan.VirtualNetwork {
	allow := func(name string, priority int, direction, protocol, from, to string, ports ...string) plan.SecurityRule {
		return plan.SecurityRule{Name: name, Priority: priority, Direction: direction, Access: "Allow", Protocol: protocol,
			SourcePrefixes: []string{from}, DestinationPrefixes: []string{to}, DestinationPorts: ports}
	}
	deny := func(name string, priority int, direction, protocol, from, to string, ports ...string) plan.SecurityRule {
		r := allow(name, priority, direction, protocol, from, to, ports...)
		r.Access = "Deny"
		return r
	}
	training := &plan.SecurityGroup{ID: "nsg-training", Rules: []plan.SecurityRule{
		allow("web", 100, "Inbound", "Tcp", "VirtualNetwork", "*", "80", "8000-8010"),
		allow("dns-like", 110, "Inbound", "Udp", "10.1.1.0/24", "*", "5353"),
		allow("platform", 120, "Inbound", "Tcp", "AzureLoadBalancer", "*", "5001"),
		deny("nothing-else", 4096, "Inbound", "*", "*", "*"),
		deny("not-there", 200, "Outbound", "Tcp", "*", "10.1.0.6", "8001"),
	}}
	scoring := &plan.SecurityGroup{ID: "nsg-scoring", Rules: []plan.SecurityRule{
		allow("to-endpoints", 100, "Outbound", "Tcp", "*", "10.1.2.0/24", "443"),
		deny("no-training", 200, "Outbound", "*", "*", "10.1.0.0/24", "8002"),
		deny("no-names", 300, "Outbound", "Udp", "10.1.1.5", "AzurePlatformDNS"),
	}}
	return []plan.VirtualNetwork{
		{
			ID:       vnetA,
			Prefixes: []netip.Prefix{prefix("10.1.0.0/16")},
			Subnets: []plan.Subnet{
				{ID: "a/training", Name: "training", Prefix: prefix("10.1.0.0/24"), Group: training},
				{ID: "a/scoring", Name: "scoring", Prefix: prefix("10.1.1.0/24"), Group: scoring},
				{ID: "a/endpoints", Name: "endpoints", Prefix: prefix("10.1.2.0/24")},
			},
			Endpoints: []plan.PrivateEndpoint{{ID: vaultPE, Subnet: "a/endpoints", Target: "/vaults/v", Port: 443,
				Addresses: []plan.EndpointAddress{{IP: addr("10.1.2.4"), FQDNs: []string{"v.vault.casemate.localhost"}}}}},
			Nodes: []plan.Node{
				{ID: "node-1", Subnet: "a/training", IP: addr("10.1.0.4")},
				{ID: "node-2", Subnet: "a/training", IP: addr("10.1.0.5")},
				{ID: "node-3", Subnet: "a/training", IP: addr("10.1.0.6")},
				{ID: "score-1", Subnet: "a/scoring", IP: addr("10.1.1.4")},
				{ID: "score-2", Subnet: "a/scoring", IP: addr("10.1.1.5")},
				{ID: "open", Subnet: "a/endpoints", IP: addr("10.1.2.9")},
			},
			Records: []plan.Record{{Name: "*.apps.casemate.localhost", IP: addr("10.1.0.4")}},
		},
		{
			ID:       vnetB,
			Prefixes: []netip.Prefix{prefix("10.1.0.0/16"), prefix("10.9.0.0/24")},
			Subnets:  []plan.Subnet{{ID: "b/one", Name: "one", Prefix: prefix("10.9.0.0/24")}},
			Nodes:    []plan.Node{{ID: "b-node", Subnet: "b/one", IP: addr("10.9.0.4")}},
		},
	}
}

// build makes a Network of its own instance, applies the declared networks, and removes everything at the end.
func build(t testing.TB, declared []plan.VirtualNetwork) (*network.Network, *plan.Plan) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces and packet filters")
	}
	n := network.New(network.Config{Instance: t.TempDir(), Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	t.Cleanup(func() {
		if err := n.Apply(context.Background(), nil); err != nil {
			t.Errorf("removing everything: %v", err)
		}
		if names, _ := netns.List(n.Instance()); len(names) > 0 {
			t.Errorf("namespaces left: %v", names)
		}
		n.Close()
	})
	p, err := n.Compile(declared)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Apply(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	return n, p
}

// in runs fn in the namespace of a node.
func in(n *network.Network, node string, fn func() error) error {
	path, err := n.NodeNamespace(node)
	if err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return netns.Do(f, fn)
}

// dial tells how a TCP connection from a node ends: "open", "refused", "silence" or "unreachable".
func dial(n *network.Network, node, to string) string {
	err := in(n, node, func() error {
		c, err := net.DialTimeout("tcp", to, patience)
		if err == nil {
			c.Close()
		}
		return err
	})
	var timeout net.Error
	switch {
	case err == nil:
		return "open"
	case errors.Is(err, unix.ECONNREFUSED):
		return "refused"
	case errors.As(err, &timeout) && timeout.Timeout():
		return "silence"
	case errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.EADDRNOTAVAIL):
		return "unreachable"
	}
	return err.Error()
}

// serve answers TCP connections and UDP packets at a port of a node, until the test ends.
func serve(t testing.TB, n *network.Network, node, at string) {
	t.Helper()
	var l net.Listener
	var u net.PacketConn
	err := in(n, node, func() (err error) {
		if l, err = net.Listen("tcp4", at); err != nil {
			return err
		}
		u, err = net.ListenPacket("udp4", at)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close(); u.Close() })
	go func() {
		for c, err := l.Accept(); err == nil; c, err = l.Accept() {
			io.WriteString(c, node)
			c.Close()
		}
	}()
	go func() {
		b := make([]byte, 64)
		for {
			k, from, err := u.ReadFrom(b)
			if err != nil {
				return
			}
			u.WriteTo(b[:k], from)
		}
	}()
}

// echo tells whether a UDP packet from a node comes back.
func echo(n *network.Network, node, to string) bool {
	return in(n, node, func() error {
		c, err := net.Dial("udp4", to)
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		if _, err := c.Write([]byte("hello")); err != nil {
			return err
		}
		_, err = c.Read(make([]byte, 64))
		return err
	}) == nil
}

// TestKernelAgreesWithModel opens real connections for a table of flows and compares each with plan.Verdict.
func TestKernelAgreesWithModel(t *testing.T) {
	if testing.Short() {
		t.Skip("short: waits for packets that must not arrive")
	}
	n, p := build(t, declared())
	nodes := []string{"node-1", "node-2", "node-3", "score-1", "score-2", "open", "b-node"}
	ports := []uint16{80, 8001, 8002, 8010, 8011, 5353}
	endpoint, err := n.Listen(t.Context(), vnetA, "10.1.2.4:443")
	if err != nil {
		t.Fatal(err)
	}
	defer endpoint.Close()
	go func() {
		for c, err := endpoint.Accept(); err == nil; c, err = endpoint.Accept() {
			c.Close()
		}
	}()
	targets := map[string]bool{"10.1.2.4": true, "10.1.2.5": false, "10.1.0.2": false}
	for _, node := range nodes {
		_, a, _ := p.Node(node)
		targets[a.IP.String()] = true
		for _, port := range ports {
			serve(t, n, node, fmt.Sprintf("0.0.0.0:%d", port))
		}
	}
	done := make(chan string)
	limit := make(chan struct{}, 64)
	count := 0
	check := func(from, to string, protocol plan.Protocol, port uint16) {
		count++
		go func() {
			limit <- struct{}{}
			defer func() { <-limit }()
			want := p.Verdict(plan.Flow{From: from, Destination: addr(to), Protocol: protocol, DestinationPort: port})
			target := fmt.Sprintf("%s:%d", to, port)
			got := ""
			if protocol == plan.TCP {
				got = dial(n, from, target)
			} else if got = "silence"; echo(n, from, target) {
				got = "open"
			}
			complaint := ""
			if want.Allow != (got == "open") || !want.Allow && got == "refused" {
				complaint = fmt.Sprintf("%s to %s protocol %d: kernel says %s, model says %s", from, target, protocol, got, want)
			}
			done <- complaint
		}()
	}
	for _, from := range nodes {
		for to := range targets {
			for _, port := range ports {
				check(from, to, plan.TCP, port)
				if to != "10.1.2.4" {
					check(from, to, plan.UDP, port)
				}
			}
			if to == "10.1.2.4" {
				check(from, to, plan.TCP, 443)
			}
		}
	}
	for range count {
		if complaint := <-done; complaint != "" {
			t.Error(complaint)
		}
	}
	t.Logf("%d flows", count)
}

func TestNoWayOut(t *testing.T) {
	if testing.Short() {
		t.Skip("short: waits for packets that must not arrive")
	}
	n, _ := build(t, declared())
	// Something of the host to be reached: a listener on every address of it.
	host, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	port := host.Addr().(*net.TCPAddr).Port
	targets := []string{"127.0.0.1", "172.17.0.1", "169.254.169.254", "168.63.129.16", "10.1.0.1", "10.1.1.1", "10.9.0.4", "10.9.0.1", "1.1.1.1", "255.255.255.255"}
	interfaces, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range interfaces {
		targets = append(targets, a.(*net.IPNet).IP.String())
	}
	for _, target := range targets {
		for _, node := range []string{"node-1", "open"} {
			if got := dial(n, node, net.JoinHostPort(target, fmt.Sprint(port))); got == "open" {
				t.Errorf("%s reaches %s", node, target)
			}
		}
	}
	if err := in(n, "node-1", func() error {
		links, err := net.Interfaces()
		for _, l := range links {
			if l.Flags&net.FlagUp != 0 && l.Name != "lo" && l.Name != "eth0" {
				err = errors.Join(err, fmt.Errorf("unexpected link %s", l.Name))
			}
		}
		return err
	}); err != nil {
		t.Error(err)
	}
	counters, err := n.Counters(vnetA)
	if err != nil {
		t.Fatal(err)
	}
	dropped := map[string]uint64{}
	for _, c := range counters {
		dropped[c.Rule] += c.Packets
	}
	if dropped["destination is outside the network"] == 0 || dropped["nothing at this address and port"] == 0 {
		t.Errorf("drops are not counted: %v", dropped)
	}
}

// TestPortScan: a neighbour in the same subnet finds nothing but what the rules allow and what listens.
func TestPortScan(t *testing.T) {
	if testing.Short() {
		t.Skip("short: waits for packets that must not arrive")
	}
	n, _ := build(t, declared())
	serve(t, n, "node-2", "0.0.0.0:44224")
	serve(t, n, "node-2", "0.0.0.0:46802")
	found := make(chan string, 64)
	scanned := []int{21, 22, 25, 53, 111, 443, 2375, 4000, 6443, 8443, 8787, 10250, 18881, 29876, 44224, 46802}
	for _, port := range scanned {
		go func() { found <- dial(n, "node-1", fmt.Sprintf("10.1.0.5:%d", port)) }()
	}
	for range scanned {
		if got := <-found; got != "silence" {
			t.Errorf("scan of the neighbour: %s", got)
		}
	}
}

func TestSpoofedSourceIsDropped(t *testing.T) {
	n, _ := build(t, declared())
	serve(t, n, "node-2", "0.0.0.0:5353")
	// Only score-1's subnet may send there; node-1 takes its address, and others.
	if !echo(n, "score-1", "10.1.0.5:5353") {
		t.Fatal("the allowed flow does not pass")
	}
	spoof := func(source string) error {
		return in(n, "node-1", func() error {
			lo, err := netlink.LinkByName("lo")
			if err != nil {
				return err
			}
			fake := &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(source), Mask: net.CIDRMask(32, 32)}}
			if err := netlink.AddrAdd(lo, fake); err != nil {
				return err
			}
			defer netlink.AddrDel(lo, fake)
			d := net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP(source)}}
			c, err := d.Dial("udp4", "10.1.0.5:5353")
			if err != nil {
				return err
			}
			defer c.Close()
			_, err = c.Write([]byte("spoof"))
			return err
		})
	}
	for _, source := range []string{"10.1.1.4", "10.1.0.6", "10.1.0.1", "168.63.129.16", "8.8.8.8"} {
		if err := spoof(source); err != nil {
			t.Fatalf("sending as %s: %v", source, err)
		}
	}
	// Packets cross a link asynchronously, so the counter is awaited.
	dropped := uint64(0)
	for deadline := time.Now().Add(10 * patience); dropped < 5 && time.Now().Before(deadline); {
		counters, err := n.Counters(vnetA)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range counters {
			if c.Rule == "source address is not the node's" {
				dropped = c.Packets
			}
		}
	}
	if dropped != 5 {
		t.Errorf("%d of 5 spoofed packets were dropped", dropped)
	}
}

func TestOrigin(t *testing.T) {
	n, _ := build(t, declared())
	l, err := n.Listen(t.Context(), strings.ToUpper(vnetA), "10.1.2.4:443")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, node := range []string{"node-1", "score-1", "open"} {
		client := make(chan error, 1)
		go func() {
			client <- in(n, node, func() error {
				c, err := net.DialTimeout("tcp", "10.1.2.4:443", 5*time.Second)
				if err != nil {
					return err
				}
				defer c.Close()
				_, err = io.ReadAll(c)
				return err
			})
		}()
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		o := c.(network.Originated).Origin()
		_, a, _ := n.Current().Node(node)
		if o.Network != vnetA || o.PrivateEndpoint != vaultPE || o.Source != node || o.Remote.Addr() != a.IP {
			t.Errorf("origin of %s: %+v", node, o)
		}
		c.Close()
		if err := <-client; err != nil {
			t.Errorf("%s: %v", node, err)
		}
	}
	if _, err := n.Listen(t.Context(), vnetA, "10.1.2.4:22"); !errors.Is(err, network.ErrUnknown) {
		t.Errorf("listening at a port that no endpoint has: %v", err)
	}
	if _, err := n.Listen(t.Context(), vnetB, "10.1.2.4:443"); !errors.Is(err, network.ErrUnknown) {
		t.Errorf("listening in a network that has no such endpoint: %v", err)
	}
}

func TestListenNodeAndDialNode(t *testing.T) {
	n, _ := build(t, declared())
	imds, err := n.ListenNode(t.Context(), "node-1", "169.254.169.254:80")
	if err != nil {
		t.Fatal(err)
	}
	defer imds.Close()
	go in(n, "node-1", func() error {
		c, err := net.DialTimeout("tcp", "169.254.169.254:80", 5*time.Second)
		if err == nil {
			defer c.Close()
			io.ReadAll(c)
		}
		return err
	})
	c, err := imds.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if o := c.(network.Originated).Origin(); o.Source != "node-1" || o.Network != vnetA || o.PrivateEndpoint != "" {
		t.Errorf("origin at the metadata service: %+v", o)
	}
	c.Close()
	if got := dial(n, "node-2", "169.254.169.254:80"); got != "refused" {
		t.Errorf("the metadata address of another node: %s", got)
	}
	if _, err := n.ListenNode(t.Context(), "node-1", "0.0.0.0:80"); err == nil {
		t.Error("listening on every address of a node")
	}

	serve(t, n, "node-1", "0.0.0.0:5001")
	back, err := n.DialNode(t.Context(), vnetA, "10.1.0.4:5001")
	if err != nil {
		t.Fatal(err)
	}
	if b, _ := io.ReadAll(back); string(b) != "node-1" {
		t.Errorf("dialed node answers %q", b)
	}
	back.Close()
	var denied *network.DeniedError
	if _, err := n.DialNode(t.Context(), vnetA, "10.1.0.4:5002"); !errors.As(err, &denied) || !strings.Contains(err.Error(), "nothing-else (4096)") {
		t.Errorf("dialing against the rules: %v", err)
	}
	if got := dial(n, "node-2", "10.1.0.4:5001"); got != "silence" {
		t.Errorf("a neighbour at the port for the platform: %s", got)
	}
}

func TestDNS(t *testing.T) {
	n, p := build(t, declared())
	ask := func(node, transport, server, name string) (string, error) {
		var reply *mdns.Msg
		err := in(n, node, func() error {
			c, err := net.DialTimeout(transport, server, patience)
			if err != nil {
				return err
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(patience))
			reply, _, err = (&mdns.Client{Net: transport, Timeout: patience}).ExchangeWithConn(new(mdns.Msg).SetQuestion(name, mdns.TypeA), &mdns.Conn{Conn: c})
			return err
		})
		if err != nil {
			return "", err
		}
		if len(reply.Answer) == 0 {
			return mdns.RcodeToString[reply.Rcode], nil
		}
		return reply.Answer[0].(*mdns.A).A.String(), nil
	}
	const name = "v.vault.casemate.localhost."
	for _, c := range []struct{ node, transport, server, name, want string }{
		{"node-1", "udp", "168.63.129.16:53", name, "10.1.2.4"},
		{"node-1", "tcp", "168.63.129.16:53", name, "10.1.2.4"},
		{"node-1", "udp", "10.1.0.1:53", name, "10.1.2.4"},
		{"open", "udp", "168.63.129.16:53", "x.y.apps.casemate.localhost.", "10.1.0.4"},
		{"node-1", "udp", "168.63.129.16:53", "w.vault.casemate.localhost.", "NXDOMAIN"},
		{"node-1", "udp", "168.63.129.16:53", "example.com.", "REFUSED"},
		{"b-node", "udp", "168.63.129.16:53", name, "REFUSED"},
		{"score-1", "udp", "168.63.129.16:53", name, "10.1.2.4"},
		{"score-2", "tcp", "168.63.129.16:53", name, "10.1.2.4"},
	} {
		if got, err := ask(c.node, c.transport, c.server, c.name); err != nil || got != c.want {
			t.Errorf("%s asks %s by %s for %s: %s %v, want %s", c.node, c.server, c.transport, c.name, got, err, c.want)
		}
	}
	if got, err := ask("score-2", "udp", "168.63.129.16:53", name); err == nil {
		t.Errorf("rule no-names does not hold: %s", got)
	}
	if got, err := ask("node-1", "udp", "10.1.1.1:53", name); err == nil {
		t.Errorf("the gateway of another subnet answers: %s", got)
	}
	// New records are visible when Apply returns.
	next := declared()
	next[0].Records = append(next[0].Records, plan.Record{Name: "late.vault.casemate.localhost", IP: addr("10.1.2.8")})
	if p, _ = n.Compile(next); n.Apply(t.Context(), p) != nil {
		t.Fatal("applying records")
	}
	if got, err := ask("node-1", "udp", "168.63.129.16:53", "late.vault.casemate.localhost."); err != nil || got != "10.1.2.8" {
		t.Errorf("new record: %s %v", got, err)
	}
}

func TestApplyTwiceChangesNothing(t *testing.T) {
	n, p := build(t, declared())
	changes, err := n.ApplyChanges(t.Context(), p)
	if err != nil || len(changes) > 0 {
		t.Errorf("second Apply: %v\n%s", err, strings.Join(changes, "\n"))
	}
	other := network.New(network.Config{Instance: "", Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	defer other.Close()
	if _, err := other.ApplyChanges(t.Context(), p); err == nil {
		t.Error("a plan of another instance was applied")
	}
}

func TestRestartKeepsTheKernel(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces and packet filters")
	}
	dir := t.TempDir()
	config := network.Config{Instance: dir, Log: slog.New(slog.NewTextHandler(io.Discard, nil))}
	first := network.New(config)
	p, err := first.Compile(declared())
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Apply(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	first.Close()
	second := network.New(config)
	defer second.Close()
	defer second.Apply(context.Background(), nil)
	changes, err := second.ApplyChanges(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range changes {
		if !strings.HasPrefix(c, "start DNS") {
			t.Errorf("a restart changes the kernel: %s", c)
		}
	}
}

func TestRepair(t *testing.T) {
	router := func(p *plan.Plan) string { return p.Networks[0].Namespace }
	enter := func(t *testing.T, name string, fn func() error) {
		t.Helper()
		f, err := netns.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := netns.Do(f, fn); err != nil {
			t.Fatal(err)
		}
	}
	link := func(name string, fn func(netlink.Link) error) func() error {
		return func() error {
			l, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			return fn(l)
		}
	}
	for name, destroy := range map[string]func(*testing.T, *network.Network, *plan.Plan){
		"router namespace removed": func(t *testing.T, _ *network.Network, p *plan.Plan) { netns.Remove(router(p)) },
		"node namespace removed": func(t *testing.T, _ *network.Network, p *plan.Plan) {
			netns.Remove(p.Networks[0].Attachments[0].Namespace)
		},
		"link deleted": func(t *testing.T, _ *network.Network, p *plan.Plan) {
			enter(t, router(p), link(p.Networks[0].Attachments[0].Link, netlink.LinkDel))
		},
		"link down": func(t *testing.T, _ *network.Network, p *plan.Plan) {
			enter(t, router(p), link(p.Networks[0].Attachments[0].Link, netlink.LinkSetDown))
		},
		"foreign link": func(t *testing.T, _ *network.Network, p *plan.Plan) {
			enter(t, router(p), func() error {
				return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "backdoor"}, PeerName: "hidden"})
			})
		},
		"address removed": func(t *testing.T, _ *network.Network, p *plan.Plan) {
			enter(t, router(p), link("lo", func(l netlink.Link) error {
				return netlink.AddrDel(l, &netlink.Addr{IPNet: &net.IPNet{IP: net.IP{10, 1, 2, 4}, Mask: net.CIDRMask(32, 32)}})
			}))
		},
		"route to elsewhere": func(t *testing.T, _ *network.Network, p *plan.Plan) {
			enter(t, p.Networks[0].Attachments[0].Namespace, link("eth0", func(l netlink.Link) error {
				_, dst, _ := net.ParseCIDR("10.200.0.0/16")
				return netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: dst, Scope: unix.RT_SCOPE_LINK})
			}))
		},
		"rules flushed": func(t *testing.T, _ *network.Network, p *plan.Plan) {
			f, err := netns.Open(router(p))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			flush(t, f)
		},
		"forwarding off": func(t *testing.T, _ *network.Network, p *plan.Plan) {
			enter(t, router(p), func() error { return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("0"), 0) })
		},
		"half-made namespace": func(t *testing.T, n *network.Network, p *plan.Plan) {
			if err := os.WriteFile(netns.Path(n.Instance()+"-leftover"), nil, 0o444); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			n, p := build(t, declared())
			destroy(t, n, p)
			changes, err := n.ApplyChanges(t.Context(), p)
			if err != nil || len(changes) == 0 {
				t.Fatalf("repairing: %v, changes %v", err, changes)
			}
			if changes, err := n.ApplyChanges(t.Context(), p); err != nil || len(changes) > 0 {
				t.Errorf("after the repair: %v %v", err, changes)
			}
			serve(t, n, "node-1", "0.0.0.0:80")
			if got := dial(n, "node-2", "10.1.0.4:80"); got != "open" {
				t.Errorf("allowed flow after the repair: %s", got)
			}
			if got := dial(n, "node-2", "10.1.0.4:81"); got != "silence" {
				t.Errorf("denied flow after the repair: %s", got)
			}
		})
	}
}

// TestChange: nodes and endpoints that leave the plan lose their links, listeners and open connections; an address
// given to another node is that node's, in origins too.
func TestChange(t *testing.T) {
	n, _ := build(t, declared())
	l, err := n.Listen(t.Context(), vnetA, "10.1.2.4:443")
	if err != nil {
		t.Fatal(err)
	}
	connect := func(node string) net.Conn {
		t.Helper()
		var c net.Conn
		if err := in(n, node, func() (err error) {
			c, err = net.DialTimeout("tcp", "10.1.2.4:443", 5*time.Second)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		return c
	}
	defer connect("node-1").Close()
	old, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}

	next := declared()
	next[0].Nodes[0].ID = "successor" // node-1's address
	p, err := n.Compile(next)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Apply(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	if _, err := old.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("connection of a removed node: %v", err)
	}
	if _, err := n.NodeNamespace("node-1"); !errors.Is(err, network.ErrUnknown) {
		t.Errorf("namespace of a removed node: %v", err)
	}
	defer connect("successor").Close()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if o := c.(network.Originated).Origin(); o.Source != "successor" {
		t.Errorf("origin: %+v", o)
	}

	next[0].Endpoints = nil
	if p, err = n.Compile(next); err != nil {
		t.Fatal(err)
	}
	if err := n.Apply(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("listener of a removed endpoint: %v", err)
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("connection through a removed endpoint: %v", err)
	}
}

// TestInstancesAreApart: two servers on one machine with equal networks, and one going away.
func TestInstancesAreApart(t *testing.T) {
	a, _ := build(t, declared())
	b, _ := build(t, declared())
	if err := b.Apply(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if names, err := netns.List(b.Instance()); err != nil || len(names) > 0 {
		t.Errorf("left behind: %v %v", names, err)
	}
	if changes, err := a.ApplyChanges(t.Context(), a.Current()); err != nil || len(changes) > 0 {
		t.Errorf("the other instance was touched: %v %v", changes, err)
	}
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	if slices.ContainsFunc(links, func(l netlink.Link) bool {
		return l.Type() == "veth" && strings.HasPrefix(l.Attrs().Name, "v") && len(l.Attrs().Name) == 13
	}) {
		t.Error("a link of ours is on the host")
	}
}

func TestSelfTest(t *testing.T) {
	if os.Geteuid() != 0 {
		if err := network.SelfTest(); err == nil || strings.Contains(err.Error(), "\n") {
			t.Errorf("without root: %v", err)
		}
		return
	}
	if err := network.SelfTest(); err != nil {
		t.Error(err)
	}
}

func TestMain(m *testing.M) {
	before, _ := vnetns.Get()
	code := m.Run()
	if after, _ := vnetns.Get(); !before.Equal(after) {
		fmt.Fprintln(os.Stderr, "the process changed its network namespace")
		code = 1
	}
	os.Exit(code)
}

// BenchmarkApply builds one network with two subnets and two nodes, from nothing.
func BenchmarkApply(b *testing.B) {
	small := declared()[:1]
	small[0].Nodes = small[0].Nodes[:2]
	n, p := build(b, small)
	for b.Loop() {
		b.StopTimer()
		if err := n.Apply(b.Context(), nil); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		if err := n.Apply(b.Context(), p); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkApplyNothing applies a plan that already stands.
func BenchmarkApplyNothing(b *testing.B) {
	small := declared()[:1]
	small[0].Nodes = small[0].Nodes[:2]
	n, p := build(b, small)
	for b.Loop() {
		if err := n.Apply(b.Context(), p); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkAttach adds one node to a standing network, as starting a compute node does.
func BenchmarkAttach(b *testing.B) {
	with, without := declared()[:1], declared()[:1]
	without[0].Nodes = without[0].Nodes[1:]
	n, p := build(b, with)
	q, err := n.Compile(without)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		b.StopTimer()
		if err := n.Apply(b.Context(), q); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		if err := n.Apply(b.Context(), p); err != nil {
			b.Fatal(err)
		}
	}
}
