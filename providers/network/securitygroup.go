package network

import (
	"context"
	"encoding/json"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"casemate.dev/dataplane/network/plan"
	"casemate.dev/resource"
)

// rule is the view of a security rule's body. Azure has a singular and a plural member for each list.
type rule struct {
	Properties struct {
		Protocol          string      `json:"protocol"`
		Access            string      `json:"access"`
		Direction         string      `json:"direction"`
		Priority          json.Number `json:"priority"`
		SourcePort        string      `json:"sourcePortRange"`
		SourcePorts       []string    `json:"sourcePortRanges"`
		DestinationPort   string      `json:"destinationPortRange"`
		DestinationPorts  []string    `json:"destinationPortRanges"`
		Source            string      `json:"sourceAddressPrefix"`
		Sources           []string    `json:"sourceAddressPrefixes"`
		Destination       string      `json:"destinationAddressPrefix"`
		Destinations      []string    `json:"destinationAddressPrefixes"`
		SourceGroups      []any       `json:"sourceApplicationSecurityGroups"`
		DestinationGroups []any       `json:"destinationApplicationSecurityGroups"`
	} `json:"properties"`
}

func both(one string, more []string) []string {
	if one != "" && !slices.Contains(more, one) {
		return append([]string{one}, more...)
	}
	return more
}

// readRule reads a security rule as the plan has it. The members must have their types; their values are not checked.
func readRule(d *resource.Document) (plan.SecurityRule, error) {
	var body rule
	if err := d.Into(&body); err != nil {
		return plan.SecurityRule{}, err
	}
	r := body.Properties
	priority, err := r.Priority.Int64()
	if err != nil || priority < 100 || priority > 4096 {
		return plan.SecurityRule{}, bad("SecurityRuleInvalidPriority", "Security rule %s has invalid Priority. Value provided: %s Allowed range 100-4096.", d.ID.Name(), r.Priority).WithTarget("properties.priority")
	}
	return plan.SecurityRule{
		Name: d.ID.Name(), Priority: int(priority), Direction: r.Direction, Access: r.Access, Protocol: r.Protocol,
		SourcePrefixes: both(r.Source, r.Sources), SourcePorts: both(r.SourcePort, r.SourcePorts),
		DestinationPrefixes: both(r.Destination, r.Destinations), DestinationPorts: both(r.DestinationPort, r.DestinationPorts),
		ApplicationGroupsSet: len(r.SourceGroups)+len(r.DestinationGroups) > 0,
	}, nil
}

// checkRule checks one rule by itself. Empty lists, which the plan takes for everything, are refused as Azure does: a
// forgotten member must not open a network.
func checkRule(d *resource.Document) (plan.SecurityRule, error) {
	r, err := readRule(d)
	if err != nil {
		return r, err
	}
	name := d.ID.Name()
	switch {
	case r.ApplicationGroupsSet:
		return r, resource.NotSupported("Security rule %s names application security groups, which are not supported. Use address prefixes.", name)
	case !oneOf(r.Access, "Allow", "Deny"):
		return r, bad("SecurityRuleInvalidAccess", "Security rule %s has invalid Access '%s'. Use Allow or Deny.", name, r.Access).WithTarget("properties.access")
	case !oneOf(r.Direction, "Inbound", "Outbound"):
		return r, bad("SecurityRuleInvalidDirection", "Security rule %s has invalid Direction '%s'. Use Inbound or Outbound.", name, r.Direction).WithTarget("properties.direction")
	case !oneOf(r.Protocol, "Tcp", "Udp", "Icmp", "Esp", "Ah", "*"):
		return r, bad("SecurityRuleInvalidProtocol", "Security rule %s has invalid Protocol '%s'. Use Tcp, Udp, Icmp, Esp, Ah or *.", name, r.Protocol).WithTarget("properties.protocol")
	}
	for member, list := range map[string][]string{"sourceAddressPrefix": r.SourcePrefixes, "destinationAddressPrefix": r.DestinationPrefixes,
		"sourcePortRange": r.SourcePorts, "destinationPortRange": r.DestinationPorts} {
		if len(list) == 0 {
			return r, bad("SecurityRuleParameterMissing", "Security rule %s needs %s or its plural. Use * for any.", name, member).WithTarget("properties." + member)
		}
	}
	unported := r
	unported.SourcePorts, unported.DestinationPorts = nil, nil
	if err := tryGroup(unported); err != nil {
		return r, bad("SecurityRuleInvalidAddressPrefix", "Security rule %s has an invalid address prefix: %v.", name, err)
	}
	if err := tryGroup(r); err != nil {
		return r, bad("SecurityRuleInvalidPortRange", "Security rule %s has an invalid port range: %v.", name, err)
	}
	return r, nil
}

func oneOf(s string, of ...string) bool {
	return slices.ContainsFunc(of, func(o string) bool { return strings.EqualFold(o, s) })
}

// tryGroup compiles a group of rules in a network made up for it.
func tryGroup(rules ...plan.SecurityRule) error {
	space := netip.MustParsePrefix("10.0.0.0/24")
	_, err := plan.Compile(plan.InstanceName("check"), []plan.VirtualNetwork{{ID: "network", Prefixes: []netip.Prefix{space},
		Subnets: []plan.Subnet{{ID: "subnet", Name: "subnet", Prefix: space, Group: &plan.SecurityGroup{ID: "group", Rules: rules}}}}})
	return err
}

func checkRules(rules []*resource.Document) error {
	type slot struct {
		direction string
		priority  int
	}
	seen := map[slot]string{}
	for _, d := range rules {
		r, err := checkRule(d)
		if err != nil {
			return err
		}
		at := slot{strings.ToLower(r.Direction), r.Priority}
		if other, ok := seen[at]; ok {
			return bad("SecurityRuleConflict", "Security rule %s conflicts with rule %s. Rules cannot have the same Priority and Direction.", r.Name, other)
		}
		seen[at] = r.Name
	}
	return nil
}

func (p *Provider) validateGroup(ctx context.Context, w *resource.Write) error {
	d := w.New
	for _, readOnly := range []string{"defaultSecurityRules", "subnets", "networkInterfaces", "flowLogs"} {
		d.Unset("properties." + readOnly)
	}
	rules, given, err := inlineRules.read(d)
	if err != nil || !given {
		return err
	}
	if err := checkRules(rules); err != nil {
		return err
	}
	return p.check(ctx, func(s state) {
		s.set(d)
		for _, c := range s.children(d.ID, ruleType) {
			s.unset(c.ID)
		}
		for _, c := range rules {
			s.set(c)
		}
	})
}

func (p *Provider) validateRule(ctx context.Context, w *resource.Write) error {
	if batchOf(ctx) != nil {
		return nil // the group's own write checked the whole
	}
	rules := []*resource.Document{}
	for _, c := range p.view().children(w.New.ID.Parent(), ruleType) {
		if !c.ID.Equal(w.New.ID) {
			rules = append(rules, c)
		}
	}
	if err := checkRules(append(rules, w.New)); err != nil {
		return err
	}
	return p.check(ctx, func(s state) { s.set(w.New) })
}

func (p *Provider) reconcileGroup(ctx context.Context, d *resource.Document) error {
	return p.reconcileInline(ctx, d, inlineRules)
}

// securityGroup is the group with an ID; nil for none. A subnet never loses its filter because its group is missing.
func (s state) securityGroup(id string) (*plan.SecurityGroup, error) {
	if id == "" {
		return nil, nil
	}
	d := s.get(id)
	if d == nil || !d.ID.Is(groupType) {
		return nil, bad("InvalidResourceReference", "The network security group '%s' was not found.", id)
	}
	g := &plan.SecurityGroup{ID: d.ID.String()}
	for _, c := range s.children(d.ID, ruleType) {
		r, err := readRule(c)
		if err != nil {
			return nil, err
		}
		g.Rules = append(g.Rules, r)
	}
	return g, nil
}

// subnetsOf lists the subnets that a group filters.
func (s state) subnetsOf(group resource.ID) []*resource.Document {
	return slices.DeleteFunc(s.list(subnetType), func(d *resource.Document) bool {
		return !strings.EqualFold(d.String("properties.networkSecurityGroup.id"), group.String())
	})
}

func (p *Provider) viewGroup(_ context.Context, d *resource.Document) {
	s := p.view()
	inlineRules.show(s, d)
	d.Set("properties.defaultSecurityRules", defaultRules(d.ID))
	subnets := []any{}
	for _, c := range s.subnetsOf(d.ID) {
		subnets = append(subnets, map[string]any{"id": c.ID.String()})
	}
	d.Set("properties.subnets", subnets)
}

// defaultRules is how Azure shows the rules that end every group; plan compiles the same.
func defaultRules(group resource.ID) []any {
	var out []any
	add := func(name string, priority int, direction, access, from, to string) {
		out = append(out, map[string]any{"id": group.String() + "/defaultSecurityRules/" + name, "name": name, "type": groupType + "/defaultSecurityRules",
			"properties": map[string]any{"provisioningState": resource.StateSucceeded, "priority": priority, "direction": direction, "access": access, "protocol": "*",
				"sourceAddressPrefix": from, "sourcePortRange": "*", "destinationAddressPrefix": to, "destinationPortRange": "*"}})
	}
	add("AllowVnetInBound", 65000, "Inbound", "Allow", "VirtualNetwork", "VirtualNetwork")
	add("AllowAzureLoadBalancerInBound", 65001, "Inbound", "Allow", "AzureLoadBalancer", "*")
	add("DenyAllInBound", 65500, "Inbound", "Deny", "*", "*")
	add("AllowVnetOutBound", 65000, "Outbound", "Allow", "VirtualNetwork", "VirtualNetwork")
	add("AllowInternetOutBound", 65001, "Outbound", "Allow", "*", "Internet")
	add("DenyAllOutBound", 65500, "Outbound", "Deny", "*", "*")
	return out
}

func inUseGroup(id resource.ID, by *resource.Document) error {
	return resource.Errorf(http.StatusConflict, "InUseNetworkSecurityGroupCannotBeDeleted",
		"Network security group %s cannot be deleted because it is in use by the following resources: %s. Remove it from them first.", id, by.ID)
}

func (p *Provider) mayRemoveGroup(_ context.Context, d *resource.Document) error {
	if users := p.view().subnetsOf(d.ID); len(users) > 0 {
		return inUseGroup(d.ID, users[0])
	}
	return nil
}

func (p *Provider) removeGroup(ctx context.Context, d *resource.Document) error {
	return p.change(ctx, func(s state) error {
		if users := s.subnetsOf(d.ID); len(users) > 0 {
			return inUseGroup(d.ID, users[0])
		}
		s.unset(d.ID)
		return nil
	})
}
