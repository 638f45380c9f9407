package plan

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// forbidden are the ranges no address space may touch. [Azure Virtual Network FAQ, "address ranges I can use"]
var forbidden = [...]netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),
	netip.MustParsePrefix("127.0.0.0/8"),
	netip.MustParsePrefix("168.63.129.16/32"),
	netip.MustParsePrefix("169.254.0.0/16"),
	netip.MustParsePrefix("224.0.0.0/4"),
	netip.MustParsePrefix("255.255.255.255/32"),
}

func checkAddressSpace(prefixes []netip.Prefix) error {
	if len(prefixes) == 0 {
		return fmt.Errorf("address space is empty")
	}
	for i, p := range prefixes {
		if !p.IsValid() || !p.Addr().Is4() || p != p.Masked() {
			return fmt.Errorf("address prefix %s is not an IPv4 network", p)
		}
		for _, f := range forbidden {
			if p.Overlaps(f) {
				return fmt.Errorf("address prefix %s overlaps %s, which no network may use", p, f)
			}
		}
		for _, q := range prefixes[:i] {
			if p.Overlaps(q) {
				return fmt.Errorf("address prefixes %s and %s overlap", q, p)
			}
		}
	}
	return nil
}

func (n *Network) checkSubnet(s Subnet) error {
	p := s.Prefix
	if !p.IsValid() || !p.Addr().Is4() || p != p.Masked() || p.Bits() > 29 {
		return fmt.Errorf("prefix %s is not an IPv4 network of /29 or larger", p)
	}
	inside := func(q netip.Prefix) bool { return q.Bits() <= p.Bits() && q.Contains(p.Addr()) }
	if !slices.ContainsFunc(n.Prefixes, inside) {
		return fmt.Errorf("prefix %s is not inside the network's address space %v", p, n.Prefixes)
	}
	for _, other := range n.Segments {
		if other.Prefix.Overlaps(p) {
			return fmt.Errorf("prefix %s overlaps subnet %s (%s)", p, other.Name, other.Prefix)
		}
	}
	return nil
}

// canonicalName returns the absolute lower-case form of a host name, with an optional "*." in front.
// Limits are those of RFC 1035 section 2.3.4; letters, digits, hyphen and underscore only.
func canonicalName(name string) (string, error) {
	canonical := strings.ToLower(strings.TrimSuffix(name, "."))
	labels := strings.Split(canonical, ".")
	if labels[0] == "*" {
		labels = labels[1:]
	}
	if len(labels) == 0 || len(canonical) > 253 {
		return "", fmt.Errorf("DNS name %q is empty or too long", name)
	}
	for _, l := range labels {
		if l == "" || len(l) > 63 || strings.Trim(l, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
			return "", fmt.Errorf("DNS name %q has a bad label %q", name, l)
		}
	}
	return canonical + ".", nil
}
