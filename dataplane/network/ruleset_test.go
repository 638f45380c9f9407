package network_test

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"casemate.dev/dataplane/network"
	"casemate.dev/dataplane/network/nft"
	"casemate.dev/dataplane/network/plan"
)

var update = flag.Bool("update", false, "rewrite golden files")

func TestRenderGolden(t *testing.T) {
	p, err := plan.Compile(plan.InstanceName("golden"), declared())
	if err != nil {
		t.Fatal(err)
	}
	got := network.Render(&p.Networks[0]).String()
	golden := filepath.Join("testdata", "ruleset.golden")
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("rendered rules differ from the golden file (-update rewrites it):\n%s", diff)
	}
}

// packet is what the evaluator walks through a ruleset: a first packet, state new.
type packet struct {
	in, out      string
	source, dest netip.Addr
	protocol     uint8
	sport, dport uint16
}

// evaluate is the slow oracle of what the kernel does with a chain: it returns the verdict, or Return when the chain ends.
func evaluate(r nft.Ruleset, chain string, p packet) nft.Verdict {
	i := slices.IndexFunc(r.Chains, func(c nft.Chain) bool { return c.Name == chain })
	c := r.Chains[i]
	for _, rule := range c.Rules {
		if !matches(rule.Match, p) {
			continue
		}
		v := rule.Verdict
		if v == nft.Jump {
			if v = evaluate(r, rule.Chain, p); v == nft.Return {
				continue
			}
		}
		return v
	}
	if c.Hook != nft.NoHook {
		return nft.Drop
	}
	return nft.Return
}

func matches(m nft.Match, p packet) bool {
	within := func(list []nft.Range, a netip.Addr) bool {
		return slices.ContainsFunc(list, func(r nft.Range) bool { return r.First.Compare(a) <= 0 && a.Compare(r.Last) <= 0 })
	}
	port := func(list []nft.PortRange, n uint16) bool {
		return len(list) == 0 || slices.ContainsFunc(list, func(r nft.PortRange) bool { return r.First <= n && n <= r.Last })
	}
	ported := len(m.SourcePorts)+len(m.DestinationPorts) > 0
	return !m.NotIPv4 && (m.In == "" || m.In == p.in) && (m.Out == "" || m.Out == p.out) && (m.States == 0 || m.States&nft.New != 0) &&
		(len(m.Sources) == 0 || within(m.Sources, p.source)) && (len(m.Destinations) == 0 || within(m.Destinations, p.dest)) &&
		(len(m.NotDestinations) == 0 || !within(m.NotDestinations, p.dest)) &&
		(len(m.Protocols) == 0 || slices.Contains(m.Protocols, p.protocol)) &&
		(!ported || p.protocol == 6 || p.protocol == 17) && port(m.SourcePorts, p.sport) && port(m.DestinationPorts, p.dport)
}

// kernelAllows routes a flow as the router namespace does and evaluates the chains that it meets.
func kernelAllows(n *plan.Network, r nft.Ruleset, f plan.Flow, from *plan.Attachment) bool {
	p := packet{source: f.Source, dest: f.Destination, protocol: uint8(f.Protocol), sport: f.SourcePort, dport: f.DestinationPort}
	if from == nil {
		p.source = plan.PlatformAddress
		_, routed := n.At(f.Destination)
		return routed && evaluate(r, "output", p) == nft.Accept
	}
	p.in = from.Link
	if evaluate(r, "prerouting", p) != nft.Accept {
		return false
	}
	if slices.Contains(n.Local, f.Destination) {
		return evaluate(r, "input", p) == nft.Accept
	}
	_, routed := n.At(f.Destination)
	return routed && evaluate(r, "forward", p) == nft.Accept
}

// TestRulesEqualModel draws networks with random security rules, and random flows, and compares the rendered rules
// with the model.
func TestRulesEqualModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		networks := declared()[:1]
		for i := range networks[0].Subnets {
			networks[0].Subnets[i].Group = drawGroup(t, i)
		}
		p, err := plan.Compile(plan.InstanceName("rapid"), networks)
		if err != nil {
			t.Fatal(err)
		}
		n := &p.Networks[0]
		rules := network.Render(n)
		for range 150 {
			f, from := drawFlow(t, n)
			decision := p.Verdict(f)
			if decision.Hop == "node" {
				continue // never reaches the router
			}
			if f.Source == (netip.Addr{}) && from != nil {
				f.Source = from.IP
			}
			// At an endpoint's address, UDP or another port may meet a node's rules, but no socket: input drops it in both.
			if got := kernelAllows(n, rules, f, from); got != decision.Allow {
				t.Fatalf("%+v: rules say %v, model says %s\n%s\n%s", f, got, decision, p, rules)
			}
		}
	})
}

var (
	prefixes = []string{"*", "VirtualNetwork", "Internet", "AzureLoadBalancer", "AzureActiveDirectory", "AzureResourceManager.Local", "AzurePlatformDNS", "AzurePlatformDNS", "Storage.WestEurope", "10.1.0.0/24", "10.1.0.4",
		"10.1.0.4/31", "10.1.1.0/24", "10.1.2.4", "10.0.0.0/8", "0.0.0.0/1", "128.0.0.0/1", "fd00::/8", "168.63.129.16", "255.255.255.255"}
	portRanges = []string{"*", "53", "80", "443", "0-79", "81-65535", "5000-5010", "0-65535", "65535", "1-1"}
	someAddrs  = []string{"10.1.0.4", "10.1.0.5", "10.1.0.6", "10.1.1.4", "10.1.1.5", "10.1.2.4", "10.1.2.9", "10.1.2.5", "10.1.0.1", "10.1.1.1",
		"168.63.129.16", "10.2.0.1", "8.8.8.8", "255.255.255.255", "127.0.0.1", "10.1.77.1"}
	somePorts = []uint16{0, 1, 53, 79, 80, 81, 443, 5000, 5005, 5011, 65535}
)

func drawGroup(t *rapid.T, i int) *plan.SecurityGroup {
	if rapid.IntRange(0, 4).Draw(t, "group") == 0 {
		return nil
	}
	g := &plan.SecurityGroup{ID: fmt.Sprintf("nsg-%d", i)}
	for j := range rapid.IntRange(0, 6).Draw(t, "rules") {
		list := func(of []string, label string) []string {
			return rapid.SliceOfN(rapid.SampledFrom(of), 0, 3).Draw(t, label)
		}
		r := plan.SecurityRule{
			Name: fmt.Sprintf("rule-%d", j), Priority: 100 + j,
			Direction:      rapid.SampledFrom([]string{"Inbound", "outbound"}).Draw(t, "direction"),
			Access:         rapid.SampledFrom([]string{"Allow", "Deny"}).Draw(t, "access"),
			Protocol:       rapid.SampledFrom([]string{"*", "Tcp", "Udp", "Icmp"}).Draw(t, "protocol"),
			SourcePrefixes: list(prefixes, "from"), DestinationPrefixes: list(prefixes, "to"),
		}
		if rapid.IntRange(0, 2).Draw(t, "names") == 0 {
			r.Direction, r.DestinationPrefixes = "Outbound", append(r.DestinationPrefixes, "AzurePlatformDNS")
		}
		if r.Protocol != "Icmp" {
			r.SourcePorts, r.DestinationPorts = list(portRanges, "sports"), list(portRanges, "dports")
		}
		g.Rules = append(g.Rules, r)
	}
	return g
}

func drawFlow(t *rapid.T, n *plan.Network) (plan.Flow, *plan.Attachment) {
	f := plan.Flow{
		Network:         n.ID,
		Destination:     addr(rapid.SampledFrom(someAddrs).Draw(t, "destination")),
		Protocol:        rapid.SampledFrom([]plan.Protocol{plan.TCP, plan.UDP, plan.ICMP, plan.ESP}).Draw(t, "protocol"),
		SourcePort:      rapid.SampledFrom(somePorts).Draw(t, "sport"),
		DestinationPort: rapid.SampledFrom(somePorts).Draw(t, "dport"),
	}
	if f.Protocol == plan.ICMP || f.Protocol == plan.ESP {
		f.SourcePort, f.DestinationPort = 0, 0
	}
	if rapid.IntRange(0, 3).Draw(t, "query") == 0 {
		f.Destination, f.DestinationPort = plan.PlatformAddress, 53
	}
	if rapid.IntRange(0, 9).Draw(t, "platform") == 0 {
		f.From = plan.Platform
		return f, nil
	}
	from := &n.Attachments[rapid.IntRange(0, len(n.Attachments)-1).Draw(t, "from")]
	f.From = from.ID
	if rapid.IntRange(0, 9).Draw(t, "spoof") == 0 {
		f.Source = addr(rapid.SampledFrom(someAddrs).Draw(t, "source"))
	}
	return f, from
}
