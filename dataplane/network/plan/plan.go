// Package plan turns declared virtual networks into the exact kernel objects that realise them, purely.
//
// Its input is what the network provider stores: address prefixes, subnets with their security groups, private
// endpoints, private DNS records, and the nodes attached to subnets (a "machine", where a person's client runs
// inside a network, is a node like any other). Its output, a Plan, holds names, addresses, links and parsed
// security rules; package network makes the kernel equal to it, and Verdict says what must then happen to any flow.
//
// The declarations come from people and may be wrong or hostile: Compile refuses whatever it cannot honour in full
// (unknown service tags, overlapping prefixes, addresses outside their subnet) instead of leaving it out.
// Two networks never share an object of a plan, so that no path between them exists rather than being blocked.
//
// Semantics follow Azure: five reserved addresses per subnet, security rules by priority with the default rules
// 65000, 65001 and 65500, source subnet's outbound rules and destination subnet's inbound rules both applied, within
// one subnet and towards private endpoints too. The package does no I/O and knows neither netlink nor nftables.
package plan

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Addresses that are the same in every network. [IP address 168.63.129.16, Azure documentation; IMDS, likewise]
var (
	// PlatformAddress is the platform's own address inside each network: it answers DNS, and the platform's
	// connections to nodes (scoring, probes) come from it. Service tag AzureLoadBalancer. Where a network's Platform names
	// a port, it also serves what every node needs: the token service and the resource manager, service tags
	// AzureActiveDirectory and AzureResourceManager.
	PlatformAddress = netip.AddrFrom4([4]byte{168, 63, 129, 16})
	// MetadataAddress is the instance metadata service, an address of each node's own loopback interface.
	MetadataAddress = netip.AddrFrom4([4]byte{169, 254, 169, 254})
)

// A VirtualNetwork is one declared network. IDs are resource ids, compared without regard to case.
type VirtualNetwork struct {
	ID        string
	Prefixes  []netip.Prefix // address space, IPv4, disjoint; at least one
	Subnets   []Subnet
	Endpoints []PrivateEndpoint
	Nodes     []Node
	Records   []Record // private DNS zones linked to this network; endpoints' names are added by Compile
	Platform  uint16   // TCP port of the token service and the resource manager at PlatformAddress; 0: not offered
}

// A Subnet is one declared subnet, /29 or larger, inside one of its network's prefixes.
type Subnet struct {
	ID     string
	Name   string
	Prefix netip.Prefix
	Group  *SecurityGroup // nil: nothing filters, as in Azure
}

// A PrivateEndpoint is a resource made reachable at private addresses of a subnet, on one TCP port.
type PrivateEndpoint struct {
	ID        string
	Subnet    string // subnet ID
	Target    string // resource ID behind the endpoint
	Port      uint16
	Addresses []EndpointAddress // one per IP configuration; at least one
}

// An EndpointAddress is one private address of an endpoint with the names that resolve to it inside the network.
type EndpointAddress struct {
	IP    netip.Addr
	FQDNs []string // a leading "*." stands for every name below
}

// A Node is an attachment of one network namespace to a subnet: a compute node or a person's machine.
type Node struct {
	ID     string
	Subnet string // subnet ID
	IP     netip.Addr
}

// A Record is one private DNS address record. A name may have several.
type Record struct {
	Name string
	IP   netip.Addr
}

// A Plan is the compiled state of all networks of one server. The zero value means: nothing exists.
// It is immutable after Compile; equal inputs in any order give equal plans.
type Plan struct {
	Instance string // name prefix of everything the plan owns, "cm-" and a hash; empty only in the zero Plan
	Networks []Network
}

// A Network is one virtual network: a router namespace whose loopback interface carries the local addresses.
type Network struct {
	ID          string
	Namespace   string
	Prefixes    []netip.Prefix
	Segments    []Segment
	Local       []netip.Addr // platform address, gateways, endpoints
	Endpoints   []Endpoint
	Attachments []Attachment
	Records     []Record // sorted, absolute lower-case names
	Platform    uint16   // TCP port at PlatformAddress; 0: none
}

// A Segment is a subnet as the kernel will know it.
type Segment struct {
	ID      string
	Name    string
	Prefix  netip.Prefix
	Gateway netip.Addr
	Group   *Group
}

// Range returns the addresses of the subnet.
func (s Segment) Range() Range { return Range{s.Prefix.Addr(), last(s.Prefix)} }

// An Endpoint is one private address of a private endpoint.
type Endpoint struct {
	ID      string
	Target  string
	Address netip.AddrPort
	Segment int // index in Network.Segments
}

// An Attachment is a node's namespace and the point-to-point link between it and the router namespace.
// The node holds IP/32 and a default route through Gateway; both neighbours are fixed, so nothing answers ARP.
type Attachment struct {
	ID        string
	Namespace string
	Segment   int
	IP        netip.Addr
	Gateway   netip.Addr
	Link      string  // router side interface; the node side is eth0
	MAC       [6]byte // node side
	RouterMAC [6]byte
	Mark      uint32 // put on packets that enter by Link, so that a connection tells which node opened it
}

// InstanceName returns the prefix of all kernel names owned by one server, derived from what distinguishes
// it on its machine (its data directory).
func InstanceName(distinct string) string { return "cm-" + digest("instance", distinct, 4) }

// Compile checks the declared networks and returns the plan for them. instance comes from InstanceName.
// The error names the offending resource; no partial plan is ever returned.
func Compile(instance string, declared []VirtualNetwork) (*Plan, error) {
	if !strings.HasPrefix(instance, "cm-") || len(instance) != len("cm-")+8 {
		return nil, fmt.Errorf("compiling networks: instance %q is not made by InstanceName", instance)
	}
	p := &Plan{Instance: instance}
	networks, nodes := map[string]bool{}, map[string]bool{}
	for _, v := range declared {
		n, err := compileNetwork(instance, v)
		if err != nil {
			return nil, fmt.Errorf("compiling virtual network %s: %w", v.ID, err)
		}
		if !claim(networks, n.ID) {
			return nil, fmt.Errorf("compiling virtual network %s: declared twice", v.ID)
		}
		for _, a := range n.Attachments {
			if !claim(nodes, a.ID) {
				return nil, fmt.Errorf("compiling virtual network %s: node %s is attached twice", v.ID, a.ID)
			}
		}
		p.Networks = append(p.Networks, n)
	}
	slices.SortFunc(p.Networks, func(a, b Network) int { return cmp.Compare(fold(a.ID), fold(b.ID)) })
	return p, nil
}

func compileNetwork(instance string, v VirtualNetwork) (Network, error) {
	n := Network{
		ID:        v.ID,
		Namespace: instance + "-" + digest("network", v.ID, 6),
		Prefixes:  slices.SortedFunc(slices.Values(v.Prefixes), netip.Prefix.Compare),
		Local:     []netip.Addr{PlatformAddress},
		Platform:  v.Platform,
	}
	if v.ID == "" {
		return n, fmt.Errorf("id is empty")
	}
	if v.Platform == 53 {
		return n, fmt.Errorf("port 53 of the platform's address belongs to the resolver")
	}
	if err := checkAddressSpace(n.Prefixes); err != nil {
		return n, err
	}
	if err := n.addSegments(v.Subnets); err != nil {
		return n, err
	}
	used := map[netip.Addr]string{}
	if err := n.addEndpoints(v.Endpoints, used); err != nil {
		return n, err
	}
	if err := n.addAttachments(instance, v.Nodes, used); err != nil {
		return n, err
	}
	slices.SortFunc(n.Local, netip.Addr.Compare)
	return n, n.addRecords(v)
}

func (n *Network) addSegments(subnets []Subnet) error {
	ids := map[string]bool{}
	for _, s := range subnets {
		if s.ID == "" || !claim(ids, s.ID) {
			return fmt.Errorf("subnet id %q is empty or declared twice", s.ID)
		}
		if err := n.checkSubnet(s); err != nil {
			return fmt.Errorf("subnet %s: %w", s.Name, err)
		}
		group, err := compileGroup(s.Group, n.Prefixes)
		if err != nil {
			return fmt.Errorf("subnet %s: %w", s.Name, err)
		}
		gateway := s.Prefix.Addr().Next()
		n.Segments = append(n.Segments, Segment{ID: s.ID, Name: s.Name, Prefix: s.Prefix, Gateway: gateway, Group: group})
		n.Local = append(n.Local, gateway)
	}
	slices.SortFunc(n.Segments, func(a, b Segment) int { return a.Prefix.Compare(b.Prefix) })
	return nil
}

func (n *Network) addEndpoints(endpoints []PrivateEndpoint, used map[netip.Addr]string) error {
	ids := map[string]bool{}
	for _, e := range endpoints {
		if e.ID == "" || !claim(ids, e.ID) {
			return fmt.Errorf("private endpoint id %q is empty or declared twice", e.ID)
		}
		if e.Port == 0 || len(e.Addresses) == 0 {
			return fmt.Errorf("private endpoint %s: needs a port and an address", e.ID)
		}
		for _, a := range e.Addresses {
			segment, err := n.place(e.ID, e.Subnet, a.IP, used)
			if err != nil {
				return fmt.Errorf("private endpoint %s: %w", e.ID, err)
			}
			n.Endpoints = append(n.Endpoints, Endpoint{ID: e.ID, Target: e.Target, Address: netip.AddrPortFrom(a.IP, e.Port), Segment: segment})
			n.Local = append(n.Local, a.IP)
		}
	}
	slices.SortFunc(n.Endpoints, func(a, b Endpoint) int { return a.Address.Compare(b.Address) })
	return nil
}

func (n *Network) addAttachments(instance string, nodes []Node, used map[netip.Addr]string) error {
	for _, d := range nodes {
		if d.ID == "" {
			return fmt.Errorf("node id is empty")
		}
		segment, err := n.place(d.ID, d.Subnet, d.IP, used)
		if err != nil {
			return fmt.Errorf("node %s: %w", d.ID, err)
		}
		n.Attachments = append(n.Attachments, Attachment{
			ID:        d.ID,
			Namespace: instance + "-" + digest("node", d.ID, 6),
			Segment:   segment,
			IP:        d.IP,
			Gateway:   n.Segments[segment].Gateway,
			Link:      "v" + digest("link", d.ID, 6),
			MAC:       mac("node", d.ID),
			RouterMAC: mac("router", d.ID),
			Mark:      mark(d.ID),
		})
	}
	slices.SortFunc(n.Attachments, func(a, b Attachment) int { return a.IP.Compare(b.IP) })
	return nil
}

func (n *Network) addRecords(v VirtualNetwork) error {
	records := slices.Clone(v.Records)
	for _, e := range v.Endpoints {
		for _, a := range e.Addresses {
			for _, name := range a.FQDNs {
				records = append(records, Record{Name: name, IP: a.IP})
			}
		}
	}
	for i, r := range records {
		name, err := canonicalName(r.Name)
		if err != nil {
			return err
		}
		if !r.IP.Is4() {
			return fmt.Errorf("record %s: address %s is not IPv4", r.Name, r.IP)
		}
		records[i].Name = name
	}
	slices.SortFunc(records, func(a, b Record) int { return cmp.Or(cmp.Compare(a.Name, b.Name), a.IP.Compare(b.IP)) })
	n.Records = slices.Compact(records)
	return nil
}

// place checks that ip is a usable, unused address of the subnet and returns the subnet's segment.
func (n *Network) place(owner, subnet string, ip netip.Addr, used map[netip.Addr]string) (int, error) {
	i := slices.IndexFunc(n.Segments, func(s Segment) bool { return fold(s.ID) == fold(subnet) })
	if i < 0 {
		return 0, fmt.Errorf("subnet %s is not in this network", subnet)
	}
	prefix := n.Segments[i].Prefix
	if !ip.Is4() || !prefix.Contains(ip) || reserved(prefix, ip) {
		return 0, fmt.Errorf("address %s is not a usable address of subnet %s (%s)", ip, n.Segments[i].Name, prefix)
	}
	if other, ok := used[ip]; ok {
		return 0, fmt.Errorf("address %s already belongs to %s", ip, other)
	}
	used[ip] = owner
	return i, nil
}

// Network finds a network by its resource id.
func (p *Plan) Network(id string) (*Network, bool) {
	for i := range p.Networks {
		if fold(p.Networks[i].ID) == fold(id) {
			return &p.Networks[i], true
		}
	}
	return nil, false
}

// Node finds an attachment, and its network, by the node's id.
func (p *Plan) Node(id string) (*Network, *Attachment, bool) {
	for i := range p.Networks {
		for j := range p.Networks[i].Attachments {
			if fold(p.Networks[i].Attachments[j].ID) == fold(id) {
				return &p.Networks[i], &p.Networks[i].Attachments[j], true
			}
		}
	}
	return nil, nil, false
}

// Space returns the addresses that belong to the network, the platform's included.
func (n *Network) Space() []Range {
	space := []Range{{PlatformAddress, PlatformAddress}}
	for _, p := range n.Prefixes {
		space = append(space, Range{p.Addr(), last(p)})
	}
	return merge(space)
}

// At finds the attachment that owns an address of the network.
func (n *Network) At(ip netip.Addr) (*Attachment, bool) {
	i, ok := slices.BinarySearchFunc(n.Attachments, ip, func(a Attachment, ip netip.Addr) int { return a.IP.Compare(ip) })
	if !ok {
		return nil, false
	}
	return &n.Attachments[i], true
}

// Endpoint finds the endpoint that listens at an address and port of the network.
func (n *Network) Endpoint(at netip.AddrPort) (*Endpoint, bool) {
	i, ok := slices.BinarySearchFunc(n.Endpoints, at, func(e Endpoint, at netip.AddrPort) int { return e.Address.Compare(at) })
	if !ok {
		return nil, false
	}
	return &n.Endpoints[i], true
}

// IsPlatform says whether the platform's own services listen at an address and port of the network.
func (n *Network) IsPlatform(at netip.AddrPort) bool {
	return n.Platform != 0 && at == netip.AddrPortFrom(PlatformAddress, n.Platform)
}

func fold(id string) string { return strings.ToLower(id) }

func claim(seen map[string]bool, id string) bool {
	if seen[fold(id)] {
		return false
	}
	seen[fold(id)] = true
	return true
}

// digest names a kernel object after a resource id; 6 bytes leave room in the 15 characters of an interface name.
func digest(kind, id string, size int) string {
	sum := sha256.Sum256([]byte(kind + "\x00" + fold(id)))
	return hex.EncodeToString(sum[:size])
}

// mark is never zero, which is the mark of packets that entered by no link.
func mark(id string) uint32 {
	sum := sha256.Sum256([]byte("mark\x00" + fold(id)))
	return max(1, binary.BigEndian.Uint32(sum[:4]))
}

// mac is a locally administered unicast address (IEEE 802, U/L bit set, I/G bit clear).
func mac(side, id string) [6]byte {
	sum := sha256.Sum256([]byte("mac\x00" + side + "\x00" + fold(id)))
	address := [6]byte(sum[:6])
	address[0] = address[0]&^1 | 2
	return address
}
