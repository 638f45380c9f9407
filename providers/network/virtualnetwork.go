package network

import (
	"context"
	"net/http"
	"net/netip"
	"strings"

	"casemate.dev/dataplane/network/plan"
	"casemate.dev/resource"
)

// reservedSpace are ranges that no address space may touch. [Azure Virtual Network FAQ; plan refuses them too]
func reservedSpace() []netip.Prefix {
	return []netip.Prefix{netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("168.63.129.16/32"),
		netip.MustParsePrefix("169.254.0.0/16"), netip.MustParsePrefix("224.0.0.0/4"), netip.MustParsePrefix("255.255.255.255/32")}
}

func bad(code, format string, args ...any) *resource.Error {
	return resource.Errorf(http.StatusBadRequest, code, format, args...)
}

// parsePrefix reads an IPv4 prefix in CIDR notation whose host bits are zero.
func parsePrefix(text string, of resource.ID) (netip.Prefix, error) {
	prefix, err := netip.ParsePrefix(text)
	switch {
	case err != nil:
		return prefix, bad("InvalidCIDRNotation", "The address prefix '%s' of resource %s has an invalid CIDR notation.", text, of)
	case !prefix.Addr().Is4():
		return prefix, resource.NotSupported("The address prefix '%s' is not IPv4. Virtual networks carry IPv4 only.", text)
	case prefix != prefix.Masked():
		return prefix, bad("InvalidCIDRNotation", "The address prefix %s in resource %s has an invalid CIDR notation. For the given prefix length, the address prefix should be %s.", text, of, prefix.Masked())
	}
	return prefix, nil
}

// stringsAt reads a list of strings; absent is empty.
func stringsAt(d *resource.Document, path string) ([]string, error) {
	raw := d.Get(path)
	if raw == nil {
		return nil, nil
	}
	list, ok := raw.([]any)
	if !ok {
		return nil, resource.Invalid(path, "The member '%s' must be a list of strings.", path)
	}
	var out []string
	for _, e := range list {
		s, ok := e.(string)
		if !ok {
			return nil, resource.Invalid(path, "The member '%s' must be a list of strings.", path)
		}
		out = append(out, s)
	}
	return out, nil
}

func addressSpace(d *resource.Document) ([]netip.Prefix, error) {
	const path = "properties.addressSpace.addressPrefixes"
	list, err := stringsAt(d, path)
	if err != nil {
		return nil, err
	}
	if len(list) == 0 {
		return nil, bad("InvalidRequestFormat", "A virtual network needs at least one address prefix in %s.", path).WithTarget(path)
	}
	var out []netip.Prefix
	for _, text := range list {
		prefix, err := parsePrefix(text, d.ID)
		if err != nil {
			return nil, err
		}
		for _, r := range reservedSpace() {
			if prefix.Overlaps(r) {
				return nil, bad("InvalidAddressPrefix", "The address prefix %s overlaps %s, which no virtual network may use.", prefix, r).WithTarget(path)
			}
		}
		for _, o := range out {
			if prefix.Overlaps(o) {
				return nil, bad("AddressPrefixesOverlap", "The address prefixes %s and %s of virtual network '%s' overlap.", o, prefix, d.ID.Name()).WithTarget(path)
			}
		}
		out = append(out, prefix)
	}
	return out, nil
}

func subnetPrefix(d *resource.Document) (netip.Prefix, error) {
	list, err := stringsAt(d, "properties.addressPrefixes")
	if err != nil {
		return netip.Prefix{}, err
	}
	if one := d.String("properties.addressPrefix"); one != "" && (len(list) != 1 || list[0] != one) {
		list = append(list, one)
	}
	if len(list) != 1 {
		return netip.Prefix{}, bad("InvalidRequestFormat", "Subnet '%s' needs exactly one address prefix.", d.ID.Name()).WithTarget("properties.addressPrefix")
	}
	return parsePrefix(list[0], d.ID)
}

// refuseSet refuses what a body asks for and no network here does; empty lists and objects ask for nothing.
func refuseSet(d *resource.Document, why map[string]string) error {
	for path, reason := range why {
		switch v := d.Get(path).(type) {
		case nil:
			continue
		case bool:
			if !v {
				continue
			}
		case []any:
			if len(v) == 0 {
				continue
			}
		case map[string]any:
			if len(v) == 0 {
				continue
			}
		}
		return resource.NotSupported("%s", reason).WithTarget(path)
	}
	return nil
}

func (p *Provider) validateNetwork(ctx context.Context, w *resource.Write) error {
	d := w.New
	err := refuseSet(d, map[string]string{
		"properties.virtualNetworkPeerings":                 "Virtual network peerings are not supported: networks have no path to each other.",
		"properties.dhcpOptions.dnsServers":                 "Custom DNS servers are not supported: nodes ask the platform's resolver at 168.63.129.16. Use private DNS zones.",
		"properties.ddosProtectionPlan":                     "DDoS protection plans are not supported: networks have no public addresses.",
		"properties.enableDdosProtection":                   "DDoS protection plans are not supported: networks have no public addresses.",
		"properties.encryption.enabled":                     "Encryption of a virtual network is not supported: its packets never leave the kernel of one machine.",
		"properties.ipAllocations":                          "IP allocations are not supported.",
		"properties.bgpCommunities":                         "BGP communities are not supported.",
		"properties.addressSpace.ipamPoolPrefixAllocations": "IPAM pools are not supported.",
		"extendedLocation":                                  "Extended locations are not supported.",
	})
	if err != nil {
		return err
	}
	prefixes, err := addressSpace(d)
	if err != nil {
		return err
	}
	subnets, given, err := inlineSubnets.read(d)
	if err != nil {
		return err
	}
	s := p.view()
	old := s.children(d.ID, subnetType)
	if !given {
		return p.checkSubnets(ctx, d, prefixes, old, nil)
	}
	for _, c := range subnets {
		before := s.docs[c.ID.Key()]
		if err := p.checkSubnetBody(w.Caller, c, before); err != nil {
			return err
		}
	}
	return p.checkSubnets(ctx, d, prefixes, subnets, old)
}

// checkSubnets checks the whole set of a network's subnets, and that none which goes away or moves is in use.
func (p *Provider) checkSubnets(ctx context.Context, network *resource.Document, prefixes []netip.Prefix, subnets, old []*resource.Document) error {
	if err := rangesFit(network.ID, prefixes, subnets); err != nil {
		return err
	}
	kept := map[string]*resource.Document{}
	for _, d := range subnets {
		kept[d.ID.Key()] = d
	}
	for _, d := range old {
		if kept[d.ID.Key()] == nil {
			if err := p.mayRemoveSubnet(ctx, d); err != nil {
				return err
			}
		} else if err := p.mayMove(d, kept[d.ID.Key()]); err != nil {
			return err
		}
	}
	return p.check(ctx, func(s state) {
		s.set(network)
		for _, d := range old {
			s.unset(d.ID)
		}
		for _, d := range subnets {
			s.set(d)
		}
	})
}

// rangesFit checks that subnets lie inside the address space and do not overlap.
func rangesFit(network resource.ID, space []netip.Prefix, subnets []*resource.Document) error {
	var seen []*resource.Document
	for _, d := range subnets {
		prefix, err := subnetPrefix(d)
		if err != nil {
			return err
		}
		if prefix.Bits() > 29 {
			return bad("NetcfgSubnetRangeInvalid", "Subnet '%s' with range %s is too small: the smallest is /29, of which the platform keeps five addresses.", d.ID.Name(), prefix)
		}
		inside := false
		for _, s := range space {
			inside = inside || s.Bits() <= prefix.Bits() && s.Contains(prefix.Addr())
		}
		if !inside {
			return bad("NetcfgInvalidSubnet", "Subnet '%s' is not valid in virtual network '%s': its range %s is outside the address space.", d.ID.Name(), network.Name(), prefix)
		}
		for _, o := range seen {
			if other, err := subnetPrefix(o); err == nil && other.Overlaps(prefix) {
				return bad("NetcfgSubnetRangesOverlap", "Subnet '%s' is not valid because its IP address range overlaps with that of an existing subnet in virtual network '%s' ('%s').", d.ID.Name(), network.Name(), o.ID.Name())
			}
		}
		seen = append(seen, d)
	}
	return nil
}

// checkSubnetBody checks one subnet by itself and what it refers to.
func (p *Provider) checkSubnetBody(c resource.Caller, d, old *resource.Document) error {
	err := refuseSet(d, map[string]string{
		"properties.natGateway":                "NAT gateways are not supported: nodes have no way out but their virtual network.",
		"properties.routeTable":                "Route tables are not supported: a virtual network routes between its own subnets only.",
		"properties.serviceEndpoints":          "Service endpoints are not supported. Use private endpoints.",
		"properties.ipAllocations":             "IP allocations are not supported.",
		"properties.ipamPoolPrefixAllocations": "IPAM pools are not supported.",
	})
	if err != nil {
		return err
	}
	for _, readOnly := range []string{"privateEndpoints", "ipConfigurations", "resourceNavigationLinks", "serviceAssociationLinks", "purpose"} {
		d.Unset("properties." + readOnly)
	}
	if _, err := subnetPrefix(d); err != nil {
		return err
	}
	const path = "properties.networkSecurityGroup.id"
	group := d.String(path)
	if group == "" {
		d.Unset("properties.networkSecurityGroup")
		return nil
	}
	id, err := resource.ParseID(group)
	if err != nil || !id.Is(groupType) {
		return resource.Invalid(path, "'%s' is not the resource ID of a network security group.", group)
	}
	if old == nil || !strings.EqualFold(old.String(path), group) {
		if err := p.linked(c, joinGroup, id, path); err != nil {
			return err
		}
	}
	if p.document(id) == nil {
		return missingReference(id).WithTarget(path)
	}
	return nil
}

func (p *Provider) validateSubnet(ctx context.Context, w *resource.Write) error {
	d := w.New
	s := p.view()
	before := s.docs[d.ID.Key()]
	if err := p.checkSubnetBody(w.Caller, d, before); err != nil {
		return err
	}
	network := s.docs[d.ID.Parent().Key()]
	if batchOf(ctx) != nil || network == nil {
		return nil // the network's own write checked the whole
	}
	prefixes, err := addressSpace(network)
	if err != nil {
		return err
	}
	all := []*resource.Document{}
	for _, c := range s.children(network.ID, subnetType) {
		if !c.ID.Equal(d.ID) {
			all = append(all, c)
		}
	}
	if err := rangesFit(network.ID, prefixes, append(all, d)); err != nil {
		return err
	}
	if before != nil {
		if err := p.mayMove(before, d); err != nil {
			return err
		}
	}
	return p.check(ctx, func(s state) { s.set(d) })
}

// mayMove refuses another range for a subnet in which something lives at an address that the new range does not hold.
func (p *Provider) mayMove(old, d *resource.Document) error {
	a, err1 := subnetPrefix(old)
	b, err2 := subnetPrefix(d)
	if err1 != nil || err2 != nil || a == b {
		return nil
	}
	if users := p.view().users(old.ID); len(users) > 0 {
		return bad("InUsePrefixCannotBeDeleted", "IpPrefix %s on Subnet %s has active allocations and cannot be deleted (%s).", a, old.ID.Name(), users[0].id)
	}
	return nil
}

func (p *Provider) reconcileNetwork(ctx context.Context, d *resource.Document) error {
	return p.reconcileInline(ctx, d, inlineSubnets)
}

func (p *Provider) viewNetwork(_ context.Context, d *resource.Document) {
	inlineSubnets.show(p.view(), d)
	if d.Get("properties.virtualNetworkPeerings") == nil {
		d.Set("properties.virtualNetworkPeerings", []any{})
	}
}

func (p *Provider) mayRemoveNetwork(ctx context.Context, d *resource.Document) error {
	for _, c := range p.view().children(d.ID, subnetType) {
		if err := p.mayRemoveSubnet(ctx, c); err != nil {
			return err
		}
	}
	return p.cfg.InUse(ctx, d.ID)
}

func (p *Provider) mayRemoveSubnet(ctx context.Context, d *resource.Document) error {
	if users := p.view().users(d.ID); len(users) > 0 {
		return inUseSubnet(d.ID, users[0].id)
	}
	return p.cfg.InUse(ctx, d.ID)
}

func inUseSubnet(id resource.ID, by string) error {
	return resource.Errorf(http.StatusConflict, "InUseSubnetCannotBeDeleted",
		"Subnet %s is in use by %s and cannot be deleted. In order to delete the subnet, delete all the resources within the subnet.", id.Name(), by)
}

// removeSubnet asks again: something may have come since.
func (p *Provider) removeSubnet(ctx context.Context, d *resource.Document) error {
	if batchOf(ctx) != nil {
		return p.forget(ctx, d)
	}
	return p.change(ctx, func(s state) error {
		if users := s.users(d.ID); len(users) > 0 {
			return inUseSubnet(d.ID, users[0].id)
		}
		s.unset(d.ID)
		return nil
	})
}

// allocate gives count free addresses of a subnet.
func (s state) allocate(subnet resource.ID, count int) ([]netip.Addr, error) {
	in, err := s.subnet(subnet)
	if err != nil {
		return nil, err
	}
	taken := s.taken(subnet)
	if err := plan.Foresee(in, taken, count); err != nil {
		return nil, exhausted(err)
	}
	var out []netip.Addr
	for range count {
		a, err := plan.Allocate(in, taken)
		if err != nil {
			return nil, exhausted(err)
		}
		out, taken = append(out, a), append(taken, a)
	}
	return out, nil
}
