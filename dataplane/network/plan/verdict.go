package plan

import (
	"fmt"
	"net/netip"
	"slices"
)

// Platform, as Flow.From, stands for the platform's own connections from the router namespace to a node.
const Platform = "platform"

// A Flow is the first packet of a connection, as its sender emits it. Replies follow their flow.
type Flow struct {
	Network         string     // network ID, needed when From is Platform
	From            string     // node ID, or Platform
	Source          netip.Addr // zero: the sender's own address
	Destination     netip.Addr
	Protocol        Protocol
	SourcePort      uint16
	DestinationPort uint16
}

// A Decision is the model's verdict on a flow. The zero value denies.
type Decision struct {
	Allow bool
	Hop   string // where it was decided: node, router, resolver, outbound GROUP or inbound GROUP
	Rule  string // the security rule, or the reason in words
}

func (d Decision) String() string {
	word := "deny"
	if d.Allow {
		word = "allow"
	}
	return word + " at " + d.Hop + ": " + d.Rule
}

// Verdict says what must happen to a flow. It walks the hops in the order in which a packet meets them, and is
// written for reading, not for speed: the rendered kernel rules are tested against it.
func (p *Plan) Verdict(f Flow) Decision {
	if f.From == Platform {
		return p.platformVerdict(f)
	}
	n, sender, ok := p.Node(f.From)
	if !ok {
		return deny("node", "no such node")
	}
	if !f.Source.IsValid() {
		f.Source = sender.IP
	}
	if f.Destination.IsLoopback() || f.Destination == MetadataAddress || f.Destination == sender.IP {
		return allow("node", "never leaves the node")
	}
	if f.Source != sender.IP {
		return deny("router", "source address is not the node's")
	}
	if !f.Destination.Is4() || !n.contains(f.Destination) && f.Destination != PlatformAddress {
		return deny("router", "destination is outside the network")
	}
	from := n.Segments[sender.Segment]
	if (f.Destination == PlatformAddress || f.Destination == from.Gateway) && f.DestinationPort == 53 && (f.Protocol == UDP || f.Protocol == TCP) {
		return from.resolverVerdict(f)
	}
	if d := from.outboundVerdict(f); !d.Allow {
		return d
	}
	return n.deliver(f)
}

func (p *Plan) platformVerdict(f Flow) Decision {
	n, ok := p.Network(f.Network)
	if !ok {
		return deny("router", "no such network")
	}
	f.Source = PlatformAddress
	to, ok := n.At(f.Destination)
	if !ok || f.Protocol != TCP {
		return deny("router", "the platform opens TCP connections to nodes only")
	}
	return n.Segments[to.Segment].inboundVerdict(f)
}

// deliver decides for a flow that its source subnet lets out: it must end at the platform, at a private endpoint or at a node.
func (n *Network) deliver(f Flow) Decision {
	if f.Protocol == TCP && n.IsPlatform(netip.AddrPortFrom(f.Destination, f.DestinationPort)) {
		return allow("platform", "the platform's own services")
	}
	if e, ok := n.Endpoint(netip.AddrPortFrom(f.Destination, f.DestinationPort)); ok && f.Protocol == TCP {
		return n.Segments[e.Segment].inboundVerdict(f)
	}
	if to, ok := n.At(f.Destination); ok {
		return n.Segments[to.Segment].inboundVerdict(f)
	}
	return deny("router", "nothing at this address and port")
}

// resolverVerdict: platform DNS is subject only to rules that name AzurePlatformDNS. [Network security groups, "Azure platform considerations"]
func (s Segment) resolverVerdict(f Flow) Decision {
	if s.Group != nil {
		for _, r := range s.Group.Outbound {
			if r.PlatformDNS && containsAddress(r.Sources, f.Source) && r.matchesTransport(f) {
				return Decision{r.Allow, "resolver", describe(r)}
			}
		}
	}
	return allow("resolver", "platform DNS")
}

func (s Segment) outboundVerdict(f Flow) Decision {
	if s.Group == nil {
		return allow("outbound "+s.Name, "subnet has no security group")
	}
	return firstMatch(s.Group.Outbound, f, "outbound "+s.Group.ID)
}

func (s Segment) inboundVerdict(f Flow) Decision {
	if s.Group == nil {
		return allow("inbound "+s.Name, "subnet has no security group")
	}
	return firstMatch(s.Group.Inbound, f, "inbound "+s.Group.ID)
}

func firstMatch(rules []Rule, f Flow, hop string) Decision {
	for _, r := range rules {
		if r.matches(f) {
			return Decision{r.Allow, hop, describe(r)}
		}
	}
	return deny(hop, "no rule matched")
}

func (r Rule) matches(f Flow) bool {
	return containsAddress(r.Sources, f.Source) && containsAddress(r.Destinations, f.Destination) && r.matchesTransport(f)
}

func (r Rule) matchesTransport(f Flow) bool {
	if r.Protocol != AnyProtocol && r.Protocol != f.Protocol {
		return false
	}
	if len(r.SourcePorts)+len(r.DestinationPorts) > 0 && f.Protocol != TCP && f.Protocol != UDP {
		return false
	}
	return containsPort(r.SourcePorts, f.SourcePort) && containsPort(r.DestinationPorts, f.DestinationPort)
}

func containsAddress(ranges []Range, a netip.Addr) bool {
	return slices.ContainsFunc(ranges, func(r Range) bool { return r.First.Compare(a) <= 0 && a.Compare(r.Last) <= 0 })
}

func containsPort(ranges []PortRange, port uint16) bool {
	return len(ranges) == 0 || slices.ContainsFunc(ranges, func(r PortRange) bool { return r.First <= port && port <= r.Last })
}

func (n *Network) contains(a netip.Addr) bool {
	return slices.ContainsFunc(n.Prefixes, func(p netip.Prefix) bool { return p.Contains(a) })
}

func describe(r Rule) string { return fmt.Sprintf("%s (%d)", r.Name, r.Priority) }

func allow(hop, rule string) Decision { return Decision{true, hop, rule} }
func deny(hop, rule string) Decision  { return Decision{false, hop, rule} }
