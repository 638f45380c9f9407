package network

import (
	"fmt"

	"casemate.dev/dataplane/network/nft"
	"casemate.dev/dataplane/network/plan"
)

// table is the name of the one nftables table in each router namespace.
const table = "casemate"

// render is the packet filter of one network. It must agree with plan.Verdict, flow by flow; ruleset_test.go holds it
// to that by evaluating it, and kernel_test.go by real connections.
func render(n *plan.Network) nft.Ruleset {
	chains := []nft.Chain{prerouting(n), input(n), forward(n), output(n)}
	for i, s := range n.Segments {
		chains = append(chains, outbound(i, s), inbound(i, s))
	}
	return nft.Ruleset{Table: table, Chains: chains}
}

// prerouting lets in IPv4 packets for this network whose source is the address of the link they came by.
func prerouting(n *plan.Network) nft.Chain {
	c := nft.Chain{Name: "prerouting", Hook: nft.Prerouting, Rules: []nft.Rule{
		{Match: nft.Match{In: "lo"}, Verdict: nft.Accept},
		{Match: nft.Match{NotIPv4: true}, Count: true, Comment: "not IPv4"},
		{Match: nft.Match{NotDestinations: ranges(n.Space())}, Count: true, Comment: "destination is outside the network"},
	}}
	for _, a := range n.Attachments {
		c.Rules = append(c.Rules, nft.Rule{
			Match:   nft.Match{In: a.Link, Sources: []nft.Range{nft.Host(a.IP)}},
			Verdict: nft.Accept, Mark: a.Mark,
		})
	}
	c.Rules = append(c.Rules, nft.Rule{Count: true, Comment: "source address is not the node's"})
	return c
}

// input guards what the router namespace itself answers: the resolver, the platform's services and private endpoints.
func input(n *plan.Network) nft.Chain {
	c := nft.Chain{Name: "input", Hook: nft.Input, Rules: []nft.Rule{
		{Match: nft.Match{In: "lo"}, Verdict: nft.Accept},
		{Match: nft.Match{States: nft.Established}, Verdict: nft.Accept},
		{Match: nft.Match{States: nft.Invalid}, Count: true, Comment: "invalid state"},
	}}
	for _, s := range n.Segments {
		c.Rules = append(c.Rules, resolverRules(s)...)
	}
	c.Rules = append(c.Rules, dispatchOutbound(n)...)
	if n.Platform != 0 {
		c.Rules = append(c.Rules, nft.Rule{
			Match: nft.Match{
				Destinations:     []nft.Range{nft.Host(plan.PlatformAddress)},
				Protocols:        []uint8{uint8(plan.TCP)},
				DestinationPorts: []nft.PortRange{{First: n.Platform, Last: n.Platform}},
			},
			Verdict: nft.Accept, Comment: "platform",
		})
	}
	for _, e := range n.Endpoints {
		c.Rules = append(c.Rules, nft.Rule{
			Match: nft.Match{
				Destinations:     []nft.Range{nft.Host(e.Address.Addr())},
				Protocols:        []uint8{uint8(plan.TCP)},
				DestinationPorts: []nft.PortRange{{First: e.Address.Port(), Last: e.Address.Port()}},
			},
			Verdict: nft.Jump, Chain: inboundName(e.Segment), Comment: "endpoint " + e.ID,
		})
	}
	c.Rules = append(c.Rules, nft.Rule{Count: true, Comment: "nothing at this address and port"})
	return c
}

// resolverRules apply the rules that name AzurePlatformDNS, and no others, to queries of a subnet.
func resolverRules(s plan.Segment) []nft.Rule {
	query := nft.Match{
		Sources:          ranges([]plan.Range{s.Range()}),
		Destinations:     []nft.Range{nft.Host(s.Gateway), nft.Host(plan.PlatformAddress)},
		Protocols:        []uint8{uint8(plan.TCP), uint8(plan.UDP)},
		DestinationPorts: []nft.PortRange{{First: 53, Last: 53}},
	}
	var rules []nft.Rule
	if s.Group != nil {
		for _, r := range s.Group.Outbound {
			m, ok := resolverMatch(query, r)
			if !r.PlatformDNS || !ok {
				continue
			}
			verdict := nft.Drop
			if r.Allow {
				verdict = nft.Accept
			}
			rules = append(rules, nft.Rule{Match: m, Verdict: verdict, Count: !r.Allow, Comment: comment(r)})
		}
	}
	return append(rules, nft.Rule{Match: query, Verdict: nft.Accept, Comment: "resolver for " + s.Name})
}

// resolverMatch narrows the match of queries by a rule. Sources of the rule replace the subnet's when they are
// narrower, which Intersect decides; false means that the rule matches no query.
func resolverMatch(query nft.Match, r plan.Rule) (nft.Match, bool) {
	sources := plan.Intersect(r.Sources, []plan.Range{{First: query.Sources[0].First, Last: query.Sources[0].Last}})
	if len(sources) == 0 {
		return query, false
	}
	if r.Protocol != plan.AnyProtocol && r.Protocol != plan.TCP && r.Protocol != plan.UDP {
		return query, false
	}
	query.Sources = ranges(sources)
	if r.Protocol != plan.AnyProtocol {
		query.Protocols = []uint8{uint8(r.Protocol)}
	}
	covers53 := len(r.DestinationPorts) == 0
	for _, p := range r.DestinationPorts {
		covers53 = covers53 || p.First <= 53 && 53 <= p.Last
	}
	query.SourcePorts = ports(r.SourcePorts)
	return query, covers53
}

// forward guards traffic between nodes: the source subnet must let it out, then the destination subnet in.
func forward(n *plan.Network) nft.Chain {
	c := nft.Chain{Name: "forward", Hook: nft.Forward, Rules: []nft.Rule{
		{Match: nft.Match{States: nft.Established | nft.Related}, Verdict: nft.Accept},
		{Match: nft.Match{States: nft.Invalid}, Count: true, Comment: "invalid state"},
	}}
	c.Rules = append(c.Rules, dispatchOutbound(n)...)
	c.Rules = append(c.Rules, dispatchInbound(n, nft.Match{})...)
	c.Rules = append(c.Rules, nft.Rule{Count: true, Comment: "not for a subnet"})
	return c
}

// output lets the platform answer, and open TCP connections to nodes whose subnet accepts them.
func output(n *plan.Network) nft.Chain {
	c := nft.Chain{Name: "output", Hook: nft.Output, Rules: []nft.Rule{
		{Match: nft.Match{Out: "lo"}, Verdict: nft.Accept},
		{Match: nft.Match{States: nft.Established}, Verdict: nft.Accept},
	}}
	platform := nft.Match{Sources: []nft.Range{nft.Host(plan.PlatformAddress)}, Protocols: []uint8{uint8(plan.TCP)}}
	c.Rules = append(c.Rules, dispatchInbound(n, platform)...)
	c.Rules = append(c.Rules, nft.Rule{Count: true, Comment: "not a connection of the platform"})
	return c
}

func dispatchOutbound(n *plan.Network) (rules []nft.Rule) {
	for i, s := range n.Segments {
		rules = append(rules, nft.Rule{Match: nft.Match{Sources: ranges([]plan.Range{s.Range()})}, Verdict: nft.Jump, Chain: outboundName(i)})
	}
	return rules
}

func dispatchInbound(n *plan.Network, m nft.Match) (rules []nft.Rule) {
	for i, s := range n.Segments {
		m.Destinations = ranges([]plan.Range{s.Range()})
		rules = append(rules, nft.Rule{Match: m, Verdict: nft.Jump, Chain: inboundName(i)})
	}
	return rules
}

// outbound returns to its caller when the subnet lets the flow out.
func outbound(i int, s plan.Segment) nft.Chain {
	c := nft.Chain{Name: outboundName(i)}
	if s.Group == nil {
		c.Rules = []nft.Rule{{Verdict: nft.Return, Comment: "subnet " + s.Name + " has no security group"}}
		return c
	}
	c.Rules = securityRules(s.Group.Outbound, nft.Return)
	return c
}

// inbound accepts what the subnet lets in.
func inbound(i int, s plan.Segment) nft.Chain {
	c := nft.Chain{Name: inboundName(i)}
	if s.Group == nil {
		c.Rules = []nft.Rule{{Verdict: nft.Accept, Comment: "subnet " + s.Name + " has no security group"}}
		return c
	}
	c.Rules = securityRules(s.Group.Inbound, nft.Accept)
	return c
}

func securityRules(rules []plan.Rule, allow nft.Verdict) []nft.Rule {
	var out []nft.Rule
	for _, r := range rules {
		if len(r.Sources) == 0 || len(r.Destinations) == 0 {
			continue // matches nothing, whereas an empty nft list would match everything
		}
		m := nft.Match{Sources: ranges(r.Sources), Destinations: ranges(r.Destinations), SourcePorts: ports(r.SourcePorts), DestinationPorts: ports(r.DestinationPorts)}
		if r.Protocol != plan.AnyProtocol {
			m.Protocols = []uint8{uint8(r.Protocol)}
		}
		rule := nft.Rule{Match: m, Verdict: nft.Drop, Count: true, Comment: comment(r)}
		if r.Allow {
			rule.Verdict, rule.Count = allow, false
		}
		out = append(out, rule)
	}
	// The default rules end every group; this ends a group that lost them.
	return append(out, nft.Rule{Verdict: nft.Drop, Count: true, Comment: "no rule matched"})
}

func outboundName(i int) string  { return fmt.Sprintf("out-%d", i) }
func inboundName(i int) string   { return fmt.Sprintf("in-%d", i) }
func comment(r plan.Rule) string { return fmt.Sprintf("%s (%d)", r.Name, r.Priority) }

// ranges converts; the range of all addresses becomes no condition.
func ranges(list []plan.Range) []nft.Range {
	if len(list) == 1 && list[0].All() {
		return nil
	}
	out := make([]nft.Range, len(list))
	for i, r := range list {
		out[i] = nft.Range(r)
	}
	return out
}

func ports(list []plan.PortRange) []nft.PortRange {
	out := make([]nft.PortRange, len(list))
	for i, r := range list {
		out[i] = nft.PortRange(r)
	}
	return out
}
