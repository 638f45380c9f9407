package plan_test

import (
	"errors"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"casemate.dev/dataplane/network/plan"
)

var update = flag.Bool("update", false, "rewrite golden files")

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }
func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }

// declared returns two networks; each call a fresh copy that a test may spoil.
func declared() []plan.VirtualNetwork {
	group := &plan.SecurityGroup{ID: "nsg-training", Rules: []plan.SecurityRule{
		{Name: "deny-rest", Priority: 4096, Direction: "Inbound", Access: "Deny", Protocol: "*"},
		{Name: "web", Priority: 100, Direction: "Inbound", Access: "Allow", Protocol: "Tcp", SourcePrefixes: []string{"VirtualNetwork"}, DestinationPorts: []string{"443", "80", "81-90"}},
		{Name: "storage", Priority: 110, Direction: "Outbound", Access: "Allow", Protocol: "Tcp", DestinationPrefixes: []string{"Storage.WestEurope"}, DestinationPorts: []string{"443"}},
		{Name: "no-names", Priority: 120, Direction: "Outbound", Access: "Deny", Protocol: "Udp", SourcePrefixes: []string{"10.1.0.5"}, DestinationPrefixes: []string{"AzurePlatformDNS"}},
		{Name: "no-neighbour", Priority: 130, Direction: "Outbound", Access: "Deny", Protocol: "*", DestinationPrefixes: []string{"10.1.1.4/32"}},
	}}
	return []plan.VirtualNetwork{
		{
			ID:       "/net/B",
			Prefixes: []netip.Prefix{prefix("10.1.0.0/16")},
			Subnets:  []plan.Subnet{{ID: "/net/B/one", Name: "one", Prefix: prefix("10.1.0.0/29")}},
			Nodes:    []plan.Node{{ID: "stranger", Subnet: "/net/b/ONE", IP: addr("10.1.0.4")}},
		},
		{
			ID:       "/net/A",
			Prefixes: []netip.Prefix{prefix("192.168.7.0/24"), prefix("10.1.0.0/16")},
			Subnets: []plan.Subnet{
				{ID: "/net/A/scoring", Name: "scoring", Prefix: prefix("10.1.1.0/24")},
				{ID: "/net/A/training", Name: "training", Prefix: prefix("10.1.0.0/24"), Group: group},
			},
			Endpoints: []plan.PrivateEndpoint{{ID: "/pe/ws", Subnet: "/net/A/scoring", Target: "/ws", Port: 443, Addresses: []plan.EndpointAddress{
				{IP: addr("10.1.1.9"), FQDNs: []string{"W.workspace.example", "w.workspace.example."}},
				{IP: addr("10.1.1.8"), FQDNs: []string{"*.w.inference.example"}},
			}}},
			Nodes: []plan.Node{
				{ID: "n2", Subnet: "/net/A/training", IP: addr("10.1.0.5")},
				{ID: "n1", Subnet: "/net/A/training", IP: addr("10.1.0.4")},
				{ID: "s1", Subnet: "/net/A/scoring", IP: addr("10.1.1.4")},
			},
			Records: []plan.Record{{Name: "extra.example", IP: addr("10.1.0.4")}},
		},
	}
}

func TestCompileGolden(t *testing.T) {
	p, err := plan.Compile(plan.InstanceName("golden"), declared())
	if err != nil {
		t.Fatal(err)
	}
	golden := filepath.Join("testdata", "plan.golden")
	if *update {
		if err := os.WriteFile(golden, []byte(p.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), p.String()); diff != "" {
		t.Errorf("plan differs from the golden file (-update rewrites it):\n%s", diff)
	}
	shuffled := declared()
	slices.Reverse(shuffled)
	for i := range shuffled {
		slices.Reverse(shuffled[i].Subnets)
		slices.Reverse(shuffled[i].Nodes)
		slices.Reverse(shuffled[i].Prefixes)
	}
	q, err := plan.Compile(plan.InstanceName("golden"), shuffled)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(p.String(), q.String()); diff != "" {
		t.Errorf("the order of declarations shows in the plan:\n%s", diff)
	}
}

func TestCompileRefuses(t *testing.T) {
	rule := func(change func(*plan.SecurityRule)) func([]plan.VirtualNetwork) []plan.VirtualNetwork {
		return func(v []plan.VirtualNetwork) []plan.VirtualNetwork {
			change(&v[1].Subnets[1].Group.Rules[1])
			return v
		}
	}
	network := func(change func(*plan.VirtualNetwork)) func([]plan.VirtualNetwork) []plan.VirtualNetwork {
		return func(v []plan.VirtualNetwork) []plan.VirtualNetwork { change(&v[1]); return v }
	}
	for want, spoil := range map[string]func([]plan.VirtualNetwork) []plan.VirtualNetwork{
		"declared twice":            func(v []plan.VirtualNetwork) []plan.VirtualNetwork { v[0].ID = "/NET/a"; return v },
		"node n1 is attached twice": func(v []plan.VirtualNetwork) []plan.VirtualNetwork { v[0].Nodes[0].ID = "N1"; return v },
		"address space is empty":    network(func(v *plan.VirtualNetwork) { v.Prefixes = nil }),
		"no network may use":        network(func(v *plan.VirtualNetwork) { v.Prefixes[0] = prefix("168.63.0.0/16") }),
		"is not an IPv4 network":    network(func(v *plan.VirtualNetwork) { v.Prefixes[0] = prefix("fd00::/64") }),
		"and 192.168.7.0/25 overlap": network(func(v *plan.VirtualNetwork) {
			v.Prefixes = append(v.Prefixes, prefix("192.168.7.0/25"))
		}),
		"overlaps subnet scoring":                        network(func(v *plan.VirtualNetwork) { v.Subnets[1].Prefix = prefix("10.1.0.0/23") }),
		"not inside the network":                         network(func(v *plan.VirtualNetwork) { v.Subnets[1].Prefix = prefix("10.2.0.0/24") }),
		"of /29 or larger":                               network(func(v *plan.VirtualNetwork) { v.Subnets[1].Prefix = prefix("10.1.0.0/30") }),
		"not a usable address":                           network(func(v *plan.VirtualNetwork) { v.Nodes[0].IP = addr("10.1.0.3") }),
		"10.1.0.255 is not a usable":                     network(func(v *plan.VirtualNetwork) { v.Nodes[0].IP = addr("10.1.0.255") }),
		"already belongs to /pe/ws":                      network(func(v *plan.VirtualNetwork) { v.Nodes[2].IP = addr("10.1.1.9") }),
		"is not in this network":                         network(func(v *plan.VirtualNetwork) { v.Nodes[0].Subnet = "/net/B/one" }),
		"needs a port":                                   network(func(v *plan.VirtualNetwork) { v.Endpoints[0].Port = 0 }),
		"has a bad label":                                network(func(v *plan.VirtualNetwork) { v.Records[0].Name = "a b.example" }),
		"is empty or too long":                           network(func(v *plan.VirtualNetwork) { v.Records[0].Name = "*" }),
		"not an address, a prefix or a known":            rule(func(r *plan.SecurityRule) { r.SourcePrefixes = []string{"VirtualNetwrok"} }),
		"service tag AzurePlatformIMDS is not supported": rule(func(r *plan.SecurityRule) { r.DestinationPrefixes = []string{"AzurePlatformIMDS"} }),
		`"::ffff:10.0.0.1" is not`:                       rule(func(r *plan.SecurityRule) { r.SourcePrefixes = []string{"::ffff:10.0.0.1"} }),
		`"90-81" is not a port`:                          rule(func(r *plan.SecurityRule) { r.DestinationPorts = []string{"90-81"} }),
		`"65536" is not a port`:                          rule(func(r *plan.SecurityRule) { r.DestinationPorts = []string{"65536"} }),
		`protocol "Sctp"`:                                rule(func(r *plan.SecurityRule) { r.Protocol = "Sctp" }),
		`protocol Icmp has no ports`:                     rule(func(r *plan.SecurityRule) { r.Protocol = "Icmp" }),
		`access "" is neither`:                           rule(func(r *plan.SecurityRule) { r.Access = "" }),
		`direction "" is neither`:                        rule(func(r *plan.SecurityRule) { r.Direction = "" }),
		"priority 99 is not in":                          rule(func(r *plan.SecurityRule) { r.Priority = 99 }),
		"priority 65000 is not in":                       rule(func(r *plan.SecurityRule) { r.Priority = 65000 }),
		"have the same priority 4096":                    rule(func(r *plan.SecurityRule) { r.Priority = 4096 }),
		"application security groups are not supported":  rule(func(r *plan.SecurityRule) { r.ApplicationGroupsSet = true }),
	} {
		_, err := plan.Compile(plan.InstanceName("x"), spoil(declared()))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want error with %q, got %v", want, err)
		}
	}
	if _, err := plan.Compile("cm-", nil); err == nil {
		t.Error("an instance that InstanceName did not make")
	}
}

func TestVerdict(t *testing.T) {
	p, err := plan.Compile(plan.InstanceName("x"), declared())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		flow plan.Flow
		want string
	}{
		{plan.Flow{From: "n1", Destination: addr("10.1.0.5"), Protocol: plan.TCP, DestinationPort: 80}, "allow at inbound nsg-training: web (100)"},
		{plan.Flow{From: "n1", Destination: addr("10.1.0.5"), Protocol: plan.TCP, DestinationPort: 91}, "deny at inbound nsg-training: deny-rest (4096)"},
		{plan.Flow{From: "n1", Destination: addr("10.1.0.5"), Protocol: plan.UDP, DestinationPort: 80}, "deny at inbound nsg-training: deny-rest (4096)"},
		{plan.Flow{From: "n1", Destination: addr("10.1.1.4"), Protocol: plan.TCP, DestinationPort: 80}, "deny at outbound nsg-training: no-neighbour (130)"},
		{plan.Flow{From: "s1", Destination: addr("10.1.0.4"), Protocol: plan.TCP, DestinationPort: 443}, "allow at inbound nsg-training: web (100)"},
		{plan.Flow{From: "n1", Destination: addr("10.1.1.9"), Protocol: plan.TCP, DestinationPort: 443}, "allow at inbound scoring: subnet has no security group"},
		{plan.Flow{From: "n1", Destination: addr("10.1.1.9"), Protocol: plan.TCP, DestinationPort: 22}, "deny at router: nothing at this address and port"},
		{plan.Flow{From: "n1", Destination: addr("192.168.7.7"), Protocol: plan.TCP, DestinationPort: 22}, "deny at router: nothing at this address and port"},
		{plan.Flow{From: "n1", Destination: addr("8.8.8.8"), Protocol: plan.TCP, DestinationPort: 443}, "deny at router: destination is outside the network"},
		{plan.Flow{From: "n1", Destination: addr("2001:db8::1"), Protocol: plan.TCP, DestinationPort: 443}, "deny at router: destination is outside the network"},
		{plan.Flow{From: "n1", Source: addr("10.1.0.5"), Destination: addr("10.1.1.9"), Protocol: plan.TCP, DestinationPort: 443}, "deny at router: source address is not the node's"},
		{plan.Flow{From: "n1", Destination: plan.PlatformAddress, Protocol: plan.UDP, DestinationPort: 53}, "allow at resolver: platform DNS"},
		{plan.Flow{From: "n2", Destination: plan.PlatformAddress, Protocol: plan.UDP, DestinationPort: 53}, "deny at resolver: no-names (120)"},
		{plan.Flow{From: "n2", Destination: plan.PlatformAddress, Protocol: plan.TCP, DestinationPort: 53}, "allow at resolver: platform DNS"},
		{plan.Flow{From: "n1", Destination: plan.PlatformAddress, Protocol: plan.TCP, DestinationPort: 80}, "deny at router: nothing at this address and port"},
		{plan.Flow{From: "n1", Destination: plan.MetadataAddress, Protocol: plan.TCP, DestinationPort: 80}, "allow at node: never leaves the node"},
		{plan.Flow{From: "stranger", Destination: addr("10.1.0.5"), Protocol: plan.TCP, DestinationPort: 80}, "deny at router: nothing at this address and port"},
		{plan.Flow{From: "ghost", Destination: addr("10.1.0.5"), Protocol: plan.TCP, DestinationPort: 80}, "deny at node: no such node"},
		{plan.Flow{Network: "/net/A", From: plan.Platform, Destination: addr("10.1.1.4"), Protocol: plan.TCP, DestinationPort: 5001}, "allow at inbound scoring: subnet has no security group"},
		{plan.Flow{Network: "/net/A", From: plan.Platform, Destination: addr("10.1.0.4"), Protocol: plan.TCP, DestinationPort: 5001}, "deny at inbound nsg-training: deny-rest (4096)"},
		{plan.Flow{Network: "/net/A", From: plan.Platform, Destination: addr("10.1.1.9"), Protocol: plan.TCP, DestinationPort: 443}, "deny at router: the platform opens TCP connections to nodes only"},
		{plan.Flow{Network: "/net/C", From: plan.Platform, Destination: addr("10.1.0.4"), Protocol: plan.TCP, DestinationPort: 443}, "deny at router: no such network"},
	} {
		if got := p.Verdict(c.flow).String(); got != c.want {
			t.Errorf("%+v:\n got %s\nwant %s", c.flow, got, c.want)
		}
	}
	if (plan.Decision{}).Allow || new(plan.Plan).Verdict(plan.Flow{From: "n1"}).Allow {
		t.Error("the zero value allows")
	}
}

func TestAllocate(t *testing.T) {
	small := plan.Subnet{Name: "training", Prefix: prefix("10.0.0.8/29")}
	var taken []netip.Addr
	for _, want := range []string{"10.0.0.12", "10.0.0.13", "10.0.0.14"} {
		got, err := plan.Allocate(small, taken)
		if err != nil || got != addr(want) {
			t.Fatalf("got %v %v, want %s", got, err, want)
		}
		taken = append(taken, got)
	}
	_, err := plan.Allocate(small, taken)
	var exhausted *plan.ExhaustedError
	if !errors.As(err, &exhausted) || exhausted.Size != 8 || exhausted.Used != 3 || exhausted.Free != 0 {
		t.Fatalf("exhausted: %v", err)
	}
	const want = "subnet training (10.0.0.8/29) has no room for 1 more: 8 addresses, of which 5 are reserved by the platform, 3 in use and 0 free"
	if err.Error() != want {
		t.Errorf("got  %s\nwant %s", err, want)
	}
	if err := plan.Foresee(small, taken[:1], 2); err != nil {
		t.Error(err)
	}
	if err := plan.Foresee(small, taken[:1], 3); !errors.As(err, &exhausted) {
		t.Errorf("foreseeing: %v", err)
	}
	if _, err := plan.Allocate(plan.Subnet{}, nil); err == nil {
		t.Error("allocated from no prefix")
	}
}

// TestAllocateFillsSubnet: addresses are distinct, usable by Compile, and exactly as many as Survey promised.
func TestAllocateFillsSubnet(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		bits := rapid.IntRange(24, 29).Draw(t, "bits")
		s := plan.Subnet{ID: "s", Name: "s", Prefix: netip.PrefixFrom(addr("10.3.4.0"), bits)}
		var taken []netip.Addr
		for range rapid.IntRange(0, 8).Draw(t, "others") {
			taken = append(taken, netip.AddrFrom4([4]byte{10, 3, 4, rapid.Byte().Draw(t, "other")}))
		}
		network := plan.VirtualNetwork{ID: "n", Prefixes: []netip.Prefix{prefix("10.3.0.0/16")}, Subnets: []plan.Subnet{s}}
		free := plan.Survey(s, taken).Free
		for i := range free {
			a, err := plan.Allocate(s, taken)
			if err != nil || slices.Contains(taken, a) {
				t.Fatalf("%d of %d: %v %v", i, free, a, err)
			}
			taken = append(taken, a)
			network.Nodes = append(network.Nodes, plan.Node{ID: a.String(), Subnet: "s", IP: a})
		}
		if a, err := plan.Allocate(s, taken); err == nil {
			t.Fatalf("one more than promised: %s", a)
		}
		if _, err := plan.Compile(plan.InstanceName("x"), []plan.VirtualNetwork{network}); err != nil {
			t.Fatal(err)
		}
	})
}

// FuzzRule: whatever a client writes in a rule either is refused or compiles to sorted, disjoint ranges.
func FuzzRule(f *testing.F) {
	f.Add("10.0.0.0/8", "VirtualNetwork", "80-90", "Tcp")
	f.Add("*", "Internet", "*", "*")
	f.Add("255.255.255.255", "0.0.0.0/0", "0-65535", "Udp")
	f.Fuzz(func(t *testing.T, from, to, port, protocol string) {
		v := declared()
		v[1].Subnets[1].Group.Rules[1] = plan.SecurityRule{Name: "fuzz", Priority: 100, Direction: "Inbound", Access: "Allow", Protocol: protocol,
			SourcePrefixes: []string{from, "10.0.0.4", from}, DestinationPrefixes: []string{to, from}, DestinationPorts: []string{port, "81"}}
		p, err := plan.Compile(plan.InstanceName("x"), v)
		if err != nil {
			return
		}
		r := p.Networks[0].Segments[0].Group.Inbound[0]
		for _, list := range [][]plan.Range{r.Sources, r.Destinations} {
			for i, x := range list {
				if !x.First.Is4() || !x.Last.Is4() || x.First.Compare(x.Last) > 0 || i > 0 && list[i-1].Last.Next().Compare(x.First) >= 0 {
					t.Fatalf("bad ranges %v", list)
				}
			}
		}
	})
}
