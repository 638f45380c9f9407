package network_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"casemate.dev/dataplane/network"
	"casemate.dev/dataplane/network/netns"
	"casemate.dev/dataplane/network/plan"
)

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
	needKernel(t)
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
	if testing.Short() {
		t.Skip("short: destroys and repairs ten networks")
	}
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

// TestSelfTest: one sentence, whose only cause on a machine that runs these tests as root is a missing capability.
func TestSelfTest(t *testing.T) {
	err := network.SelfTest()
	if err == nil {
		return
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("more than one sentence: %v", err)
	}
	if os.Geteuid() == 0 && !strings.Contains(err.Error(), "needs root") {
		t.Error(err)
	}
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

// flush removes all rules in a namespace, as somebody with root might.
func flush(t *testing.T, ns *os.File) {
	t.Helper()
	c, err := nftables.New(nftables.WithNetNSFd(int(ns.Fd())))
	if err != nil {
		t.Fatal(err)
	}
	c.FlushRuleset()
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
}
