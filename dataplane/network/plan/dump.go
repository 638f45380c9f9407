package plan

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
)

// String is the plan as text, for people and golden files: one line per kernel object or rule.
func (p *Plan) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "instance %s\n", p.Instance)
	for _, n := range p.Networks {
		n.dump(&b)
	}
	return b.String()
}

func (n Network) dump(b *strings.Builder) {
	fmt.Fprintf(b, "network %s\n  namespace %s\n  prefixes %s\n  local %s\n", n.ID, n.Namespace, join(n.Prefixes), join(n.Local))
	for _, s := range n.Segments {
		fmt.Fprintf(b, "  subnet %s %s gateway %s\n", s.Name, s.Prefix, s.Gateway)
		if s.Group == nil {
			continue
		}
		for _, r := range s.Group.Inbound {
			fmt.Fprintf(b, "    in  %s\n", r)
		}
		for _, r := range s.Group.Outbound {
			fmt.Fprintf(b, "    out %s\n", r)
		}
	}
	if n.Platform != 0 {
		fmt.Fprintf(b, "  platform port %d\n", n.Platform)
	}
	for _, e := range n.Endpoints {
		fmt.Fprintf(b, "  endpoint %s subnet %s %s for %s\n", e.Address, n.Segments[e.Segment].Name, e.ID, e.Target)
	}
	for _, a := range n.Attachments {
		fmt.Fprintf(b, "  node %s subnet %s %s\n    namespace %s eth0 %s via %s\n    link %s %s\n", a.IP, n.Segments[a.Segment].Name, a.ID,
			a.Namespace, net.HardwareAddr(a.MAC[:]), a.Gateway, a.Link, net.HardwareAddr(a.RouterMAC[:]))
	}
	for _, r := range n.Records {
		fmt.Fprintf(b, "  record %s %s\n", r.Name, r.IP)
	}
}

func (r Rule) String() string {
	access := "deny"
	if r.Allow {
		access = "allow"
	}
	text := fmt.Sprintf("%5d %-5s %s protocol %d", r.Priority, access, r.Name, r.Protocol)
	text += " from " + join(r.Sources) + ports(r.SourcePorts) + " to " + join(r.Destinations) + ports(r.DestinationPorts)
	if r.PlatformDNS {
		text += " resolver"
	}
	return text
}

func (r Range) String() string {
	if r.First == r.Last {
		return r.First.String()
	}
	for bits := 0; bits < 32; bits++ {
		if p := netip.PrefixFrom(r.First, bits); p == p.Masked() && last(p) == r.Last {
			return p.String()
		}
	}
	return r.First.String() + "-" + r.Last.String()
}

func (r PortRange) String() string {
	if r.First == r.Last {
		return fmt.Sprint(r.First)
	}
	return fmt.Sprintf("%d-%d", r.First, r.Last)
}

func ports(list []PortRange) string {
	if len(list) == 0 {
		return ""
	}
	return ":" + join(list)
}

func join[T fmt.Stringer](list []T) string {
	if len(list) == 0 {
		return "nothing"
	}
	words := make([]string, len(list))
	for i, v := range list {
		words[i] = v.String()
	}
	return strings.Join(words, ",")
}
