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
	"sync"
	"testing"
	"time"

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
			Records:  []plan.Record{{Name: "*.apps.casemate.localhost", IP: addr("10.1.0.4")}},
			Platform: 5005,
		},
		{
			ID:       vnetB,
			Prefixes: []netip.Prefix{prefix("10.1.0.0/16"), prefix("10.9.0.0/24")},
			Subnets:  []plan.Subnet{{ID: "b/one", Name: "one", Prefix: prefix("10.9.0.0/24")}},
			Nodes:    []plan.Node{{ID: "b-node", Subnet: "b/one", IP: addr("10.9.0.4")}},
		},
	}
}

var selfTest = sync.OnceValue(network.SelfTest)

// needKernel skips a test where networks cannot be built.
func needKernel(t testing.TB) {
	t.Helper()
	if err := selfTest(); err != nil {
		t.Skip(err)
	}
}

// build makes a Network of its own instance, applies the declared networks, and removes everything at the end.
func build(t testing.TB, declared []plan.VirtualNetwork) (*network.Network, *plan.Plan) {
	t.Helper()
	needKernel(t)
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

func TestMain(m *testing.M) {
	before, _ := vnetns.Get()
	code := m.Run()
	if after, _ := vnetns.Get(); !before.Equal(after) {
		fmt.Fprintln(os.Stderr, "the process changed its network namespace")
		code = 1
	}
	os.Exit(code)
}
