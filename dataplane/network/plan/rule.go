package plan

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// A SecurityGroup is a declared network security group. The default rules are added by Compile.
type SecurityGroup struct {
	ID    string
	Rules []SecurityRule
}

// A SecurityRule is one rule as the client wrote it. [Microsoft.Network/networkSecurityGroups, SecurityRulePropertiesFormat]
// Singular and plural properties are merged by the caller; an empty list means "*".
type SecurityRule struct {
	Name                 string
	Priority             int    // 100 to 4096, unique per direction
	Direction            string // Inbound or Outbound
	Access               string // Allow or Deny
	Protocol             string // Tcp, Udp, Icmp, Esp, Ah or *
	SourcePrefixes       []string
	SourcePorts          []string
	DestinationPrefixes  []string
	DestinationPorts     []string
	ApplicationGroupsSet bool // the rule names application security groups, which are not supported
}

// A Group is a compiled security group: each direction in order of priority, ending with Azure's default rules.
type Group struct {
	ID       string
	Inbound  []Rule
	Outbound []Rule
}

// A Rule matches a flow when every one of its fields does. Empty Sources or Destinations match nothing; empty
// ports match everything, and a rule with ports matches TCP and UDP only, other protocols having none.
type Rule struct {
	Name             string
	Priority         int
	Allow            bool
	Protocol         Protocol
	Sources          []Range
	Destinations     []Range
	SourcePorts      []PortRange
	DestinationPorts []PortRange
	// PlatformDNS: the rule names the service tag AzurePlatformDNS. The resolver is subject to such rules alone.
	PlatformDNS bool
}

// A Range is a closed interval of IPv4 addresses. Lists of ranges are sorted, disjoint and not adjacent.
type Range struct{ First, Last netip.Addr }

// A PortRange is a closed interval of ports.
type PortRange struct{ First, Last uint16 }

// A Protocol is an IP protocol number; zero stands for all.
type Protocol uint8

// Protocols that a security rule can name. [IANA protocol numbers]
const (
	AnyProtocol Protocol = 0
	ICMP        Protocol = 1
	TCP         Protocol = 6
	UDP         Protocol = 17
	ESP         Protocol = 50
	AH          Protocol = 51
)

var protocols = map[string]Protocol{"*": AnyProtocol, "tcp": TCP, "udp": UDP, "icmp": ICMP, "esp": ESP, "ah": AH}

// publicTags are service tags that stand for public addresses of Azure alone. No network of ours leads to a public
// address, so they match nothing here; they are listed because a misspelt tag must be an error, not a rule without effect.
var publicTags = map[string]bool{
	"actiongroup": true, "apimanagement": true, "appconfiguration": true, "appservice": true,
	"azurearcinfrastructure": true, "azurebackup": true, "azurecloud": true, "azurecognitivesearch": true,
	"azurecontainerregistry": true, "azurecosmosdb": true, "azuredatabricks": true, "azuredataexplorermanagement": true,
	"azuredevops": true, "azureeventgrid": true, "azurefrontdoor": true, "azurekeyvault": true, "azuremachinelearning": true,
	"azuremachinelearninginference": true, "azuremonitor": true, "azureopenai": true, "azuresiterecovery": true,
	"azuretrafficmanager": true, "batchnodemanagement": true, "cognitiveservicesmanagement": true, "datafactory": true,
	"datafactorymanagement": true, "eventhub": true, "gatewaymanager": true, "guestandhybridmanagement": true, "hdinsight": true,
	"keyvault": true, "microsoftcloudappsecurity": true, "microsoftcontainerregistry": true, "microsoftdefenderforendpoint": true,
	"powerbi": true, "servicebus": true, "sql": true, "sqlmanagement": true, "storage": true, "storagesyncservice": true,
}

func compileGroup(g *SecurityGroup, space []netip.Prefix) (*Group, error) {
	if g == nil {
		return nil, nil
	}
	out := &Group{ID: g.ID}
	for i, r := range slices.Concat(g.Rules, defaultRules()) {
		if i < len(g.Rules) && (r.Priority < 100 || r.Priority > 4096) {
			return nil, fmt.Errorf("security rule %s of %s: priority %d is not in 100 to 4096", r.Name, g.ID, r.Priority)
		}
		compiled, err := compileRule(r, space)
		if err != nil {
			return nil, fmt.Errorf("security rule %s of %s: %w", r.Name, g.ID, err)
		}
		list := &out.Inbound
		switch strings.ToLower(r.Direction) {
		case "inbound":
		case "outbound":
			list = &out.Outbound
		default:
			return nil, fmt.Errorf("security rule %s of %s: direction %q is neither Inbound nor Outbound", r.Name, g.ID, r.Direction)
		}
		*list = append(*list, compiled)
	}
	for _, list := range [][]Rule{out.Inbound, out.Outbound} {
		slices.SortStableFunc(list, func(a, b Rule) int { return cmp.Compare(a.Priority, b.Priority) })
		for i := range list[1:] {
			if list[i].Priority == list[i+1].Priority {
				return nil, fmt.Errorf("security rules %s and %s of %s have the same priority %d", list[i].Name, list[i+1].Name, g.ID, list[i].Priority)
			}
		}
	}
	return out, nil
}

// defaultRules are Azure's, which every group ends with. [Network security groups, "Default security rules"]
func defaultRules() []SecurityRule {
	rule := func(name string, priority int, direction, access, from, to string) SecurityRule {
		return SecurityRule{Name: name, Priority: priority, Direction: direction, Access: access, Protocol: "*",
			SourcePrefixes: []string{from}, DestinationPrefixes: []string{to}}
	}
	return []SecurityRule{
		rule("AllowVnetInBound", 65000, "Inbound", "Allow", "VirtualNetwork", "VirtualNetwork"),
		rule("AllowAzureLoadBalancerInBound", 65001, "Inbound", "Allow", "AzureLoadBalancer", "*"),
		rule("DenyAllInBound", 65500, "Inbound", "Deny", "*", "*"),
		rule("AllowVnetOutBound", 65000, "Outbound", "Allow", "VirtualNetwork", "VirtualNetwork"),
		rule("AllowInternetOutBound", 65001, "Outbound", "Allow", "*", "Internet"),
		rule("DenyAllOutBound", 65500, "Outbound", "Deny", "*", "*"),
	}
}

func compileRule(r SecurityRule, space []netip.Prefix) (Rule, error) {
	protocol, ok := protocols[strings.ToLower(r.Protocol)]
	if !ok {
		return Rule{}, fmt.Errorf("protocol %q is not one of Tcp, Udp, Icmp, Esp, Ah and *", r.Protocol)
	}
	out := Rule{Name: r.Name, Priority: r.Priority, Protocol: protocol}
	switch strings.ToLower(r.Access) {
	case "allow":
		out.Allow = true
	case "deny":
	default:
		return out, fmt.Errorf("access %q is neither Allow nor Deny", r.Access)
	}
	if r.ApplicationGroupsSet {
		return out, fmt.Errorf("application security groups are not supported")
	}
	var err error
	if out.Sources, _, err = parsePrefixes(r.SourcePrefixes, space); err != nil {
		return out, err
	}
	if out.Destinations, out.PlatformDNS, err = parsePrefixes(r.DestinationPrefixes, space); err != nil {
		return out, err
	}
	if out.SourcePorts, err = parsePorts(r.SourcePorts); err != nil {
		return out, err
	}
	if out.DestinationPorts, err = parsePorts(r.DestinationPorts); err != nil {
		return out, err
	}
	ports := len(out.SourcePorts)+len(out.DestinationPorts) > 0
	if ports && protocol != AnyProtocol && protocol != TCP && protocol != UDP {
		return out, fmt.Errorf("protocol %s has no ports", r.Protocol)
	}
	return out, nil
}

// parsePrefixes resolves addresses, prefixes and service tags to ranges. dns reports the tag AzurePlatformDNS.
func parsePrefixes(list []string, space []netip.Prefix) (ranges []Range, dns bool, err error) {
	if len(list) == 0 {
		list = []string{"*"}
	}
	virtual := (&Network{Prefixes: space}).Space() // the tag VirtualNetwork includes the host's virtual address
	for _, text := range list {
		service, _, _ := strings.Cut(strings.ToLower(text), ".") // "Storage.WestEurope" is a tag in one region
		switch tag := strings.ToLower(text); {
		case tag == "*" || tag == "any" || tag == "0.0.0.0/0":
			ranges = append(ranges, Range{netip.IPv4Unspecified(), netip.AddrFrom4([4]byte{255, 255, 255, 255})})
		case tag == "virtualnetwork":
			ranges = append(ranges, virtual...)
		case tag == "internet":
			ranges = append(ranges, complement(virtual)...)
		case tag == "azureloadbalancer" || service == "azureactivedirectory" || service == "azureresourcemanager":
			ranges = append(ranges, Range{PlatformAddress, PlatformAddress})
		case tag == "azureplatformdns":
			dns = true
		case tag == "azureplatformimds" || tag == "azureplatformlkm":
			return nil, false, fmt.Errorf("service tag %s is not supported", text)
		case publicTags[service]:
		default:
			r, ok, err := parsePrefix(text)
			if err != nil {
				return nil, false, err
			}
			if ok {
				ranges = append(ranges, r)
			}
		}
	}
	return merge(ranges), dns, nil
}

// parsePrefix reports false for IPv6, which no network carries, so that it matches nothing.
func parsePrefix(text string) (Range, bool, error) {
	if a, err := netip.ParseAddr(text); err == nil && a.Zone() == "" && !a.Is4In6() {
		return Range{a, a}, a.Is4(), nil
	}
	p, err := netip.ParsePrefix(text)
	if err != nil || p.Addr().Is4In6() {
		return Range{}, false, fmt.Errorf("%q is not an address, a prefix or a known service tag", text)
	}
	if !p.Addr().Is4() {
		return Range{}, false, nil
	}
	return Range{p.Masked().Addr(), last(p)}, true, nil
}

func parsePorts(list []string) ([]PortRange, error) {
	var ranges []PortRange
	for _, text := range list {
		if text == "*" {
			return nil, nil
		}
		first, last, isRange := strings.Cut(text, "-")
		if !isRange {
			last = first
		}
		from, err1 := strconv.ParseUint(first, 10, 16)
		to, err2 := strconv.ParseUint(last, 10, 16)
		if err1 != nil || err2 != nil || from > to {
			return nil, fmt.Errorf("%q is not a port, a range of ports or *", text)
		}
		ranges = append(ranges, PortRange{uint16(from), uint16(to)})
	}
	slices.SortFunc(ranges, func(a, b PortRange) int { return cmp.Compare(a.First, b.First) })
	out := ranges[:0]
	for _, r := range ranges {
		if n := len(out); n > 0 && int(r.First) <= int(out[n-1].Last)+1 {
			out[n-1].Last = max(out[n-1].Last, r.Last)
			continue
		}
		out = append(out, r)
	}
	if len(out) == 1 && out[0] == (PortRange{0, 65535}) {
		return nil, nil
	}
	return out, nil
}

// All reports whether the range holds every address.
func (r Range) All() bool {
	return r.First == netip.IPv4Unspecified() && r.Last == netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

// Intersect returns the addresses that are in both lists.
func Intersect(a, b []Range) []Range {
	var out []Range
	for _, x := range a {
		for _, y := range b {
			both := Range{x.First, x.Last}
			if y.First.Compare(both.First) > 0 {
				both.First = y.First
			}
			if y.Last.Compare(both.Last) < 0 {
				both.Last = y.Last
			}
			if both.First.Compare(both.Last) <= 0 {
				out = append(out, both)
			}
		}
	}
	return merge(out)
}

// merge sorts ranges and joins those that overlap or touch.
func merge(ranges []Range) []Range {
	slices.SortFunc(ranges, func(a, b Range) int { return a.First.Compare(b.First) })
	var out []Range
	for _, r := range ranges {
		if n := len(out); n > 0 {
			if end := out[n-1].Last; r.First.Compare(end) <= 0 || r.First == end.Next() {
				if r.Last.Compare(end) > 0 {
					out[n-1].Last = r.Last
				}
				continue
			}
		}
		out = append(out, r)
	}
	return out
}

// complement returns all addresses outside the merged ranges.
func complement(ranges []Range) []Range {
	var out []Range
	next := netip.IPv4Unspecified()
	for _, r := range ranges {
		if next.Is4() && next.Compare(r.First) < 0 {
			out = append(out, Range{next, r.First.Prev()})
		}
		next = r.Last.Next() // invalid after 255.255.255.255
	}
	if next.Is4() {
		out = append(out, Range{next, netip.AddrFrom4([4]byte{255, 255, 255, 255})})
	}
	return out
}
