package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"casemate.dev/dataplane/network/plan"
	"casemate.dev/resource"
)

func netBody(prefixes, subnets string) string {
	body := `{"location":"local","properties":{"addressSpace":{"addressPrefixes":[` + prefixes + `]}`
	if subnets != "" {
		body += `,"subnets":` + subnets
	}
	return body + `}}`
}

const twoSubnets = `[{"name":"training","properties":{"addressPrefix":"10.1.0.0/24","networkSecurityGroup":{"id":"` + nsg1 + `"}}},
	{"name":"endpoints","properties":{"addressPrefix":"10.1.2.0/24"}}]`

const denyRest = `{"location":"local","properties":{"securityRules":[{"name":"deny-rest","properties":{"priority":4096,"direction":"Outbound","access":"Deny","protocol":"*",
	"sourceAddressPrefix":"*","sourcePortRange":"*","destinationAddressPrefix":"*","destinationPortRange":"*"}}]}}`

func (h *harness) base() {
	h.t.Helper()
	h.put(nsg1, denyRest)
	h.put(net1, netBody(`"10.1.0.0/16"`, twoSubnets))
	for _, id := range []string{vault1, account1, workspace1} {
		h.put(id, `{"location":"local"}`)
	}
}

func (h *harness) subnets() string {
	var out []string
	for _, s := range h.network(net1).Segments {
		out = append(out, s.Name+" "+s.Prefix.String())
	}
	return strings.Join(out, ", ")
}

func TestSubnetsInlineAndChildren(t *testing.T) {
	h := newHarness(t)
	h.base()
	if got := h.subnets(); got != "training 10.1.0.0/24, endpoints 10.1.2.0/24" {
		t.Errorf("subnets: %s", got)
	}
	list, _ := h.get(net1).Get("properties.subnets").([]any)
	if len(list) != 2 {
		t.Fatalf("the network shows %v", list)
	}
	first := resource.Document{Body: list[0].(map[string]any)}
	if first.String("id") != net1+"/subnets/endpoints" || first.String("properties.provisioningState") != "Succeeded" || first.String("properties.addressPrefix") != "10.1.2.0/24" {
		t.Errorf("shown subnet: %v", first.Body)
	}
	h.put(net1+"/subnets/scoring", `{"properties":{"addressPrefix":"10.1.1.0/24"}}`)
	// A write that says nothing of subnets keeps them.
	h.put(net1, netBody(`"10.1.0.0/16","10.9.0.0/16"`, ""))
	if got := h.subnets(); got != "training 10.1.0.0/24, scoring 10.1.1.0/24, endpoints 10.1.2.0/24" {
		t.Errorf("subnets: %s", got)
	}
	// One that lists them makes them equal: one goes, one moves, one comes, at once.
	before := h.kernel.applies
	h.put(net1, netBody(`"10.9.0.0/16"`, `[{"name":"training","properties":{"addressPrefix":"10.9.1.0/24"}},{"name":"new","properties":{"addressPrefixes":["10.9.0.0/24"]}}]`))
	if got := h.subnets(); got != "new 10.9.0.0/24, training 10.9.1.0/24" || h.kernel.applies != before+1 {
		t.Errorf("subnets: %s after %d applies", got, h.kernel.applies-before)
	}
	if _, err := h.engine.Get(t.Context(), resource.MustParseID(net1+"/subnets/scoring")); resource.StatusOf(err) != 404 {
		t.Errorf("a subnet that left the list: %v", err)
	}
	// What a client read, it can write back.
	raw, err := json.Marshal(h.get(net1).Wire())
	h.check(err)
	h.put(net1, string(raw))
	raw, err = json.Marshal(h.get(nsg1).Wire())
	h.check(err)
	h.put(nsg1, string(raw))
	if got := h.subnets(); got != "new 10.9.0.0/24, training 10.9.1.0/24" {
		t.Errorf("subnets: %s", got)
	}
	h.put(net1, netBody(`"10.9.0.0/16"`, `[]`))
	if got := h.subnets(); got != "" {
		t.Errorf("subnets: %s", got)
	}
	h.delete(net1)
	if got := len(h.plan().Networks); got != 0 {
		t.Errorf("%d networks after deletion", got)
	}
}

func TestNetworkRefusals(t *testing.T) {
	h := newHarness(t)
	h.base()
	for _, c := range []struct{ id, body, code string }{
		{net1, netBody(``, ""), "InvalidRequestFormat"},
		{net1, netBody(`"10.1.0.0"`, ""), "InvalidCIDRNotation"},
		{net1, netBody(`"10.1.0.1/16"`, ""), "InvalidCIDRNotation"},
		{net1, netBody(`"fd00::/48"`, ""), "NotSupported"},
		{net1, netBody(`"169.254.0.0/16"`, ""), "InvalidAddressPrefix"},
		{net1, netBody(`"10.1.0.0/16","10.1.4.0/24"`, ""), "AddressPrefixesOverlap"},
		{net1, netBody(`"10.2.0.0/16"`, ""), "NetcfgInvalidSubnet"}, // the subnets are elsewhere
		{net1, netBody(`"10.1.0.0/16"`, `[{"name":"a","properties":{"addressPrefix":"10.1.0.0/24"}},{"name":"b","properties":{"addressPrefix":"10.1.0.128/25"}}]`), "NetcfgSubnetRangesOverlap"},
		{net1, netBody(`"10.1.0.0/16"`, `[{"name":"a","properties":{"addressPrefix":"10.1.0.0/24"}},{"name":"A","properties":{"addressPrefix":"10.1.1.0/24"}}]`), "InvalidRequestFormat"},
		{net1, netBody(`"10.1.0.0/16"`, `[{"name":"a/b","properties":{"addressPrefix":"10.1.0.0/24"}}]`), "InvalidResourceName"},
		{net1, netBody(`"10.1.0.0/16"`, `{}`), "InvalidParameter"},
		{net1, `{"location":"local","properties":{"addressSpace":{"addressPrefixes":["10.1.0.0/16"]},"virtualNetworkPeerings":[{"name":"p"}]}}`, "NotSupported"},
		{net1 + "/subnets/x", `{"properties":{"addressPrefix":"10.1.0.64/26"}}`, "NetcfgSubnetRangesOverlap"},
		{net1 + "/subnets/x", `{"properties":{"addressPrefix":"10.2.0.0/24"}}`, "NetcfgInvalidSubnet"},
		{net1 + "/subnets/x", `{"properties":{"addressPrefix":"10.1.9.0/30"}}`, "NetcfgSubnetRangeInvalid"},
		{net1 + "/subnets/x", `{"properties":{}}`, "InvalidRequestFormat"},
		{net1 + "/subnets/x", `{"properties":{"addressPrefix":"10.1.9.0/24","natGateway":{"id":"/x/y"}}}`, "NotSupported"},
		{net1 + "/subnets/x", `{"properties":{"addressPrefix":"10.1.9.0/24","networkSecurityGroup":{"id":"` + nsg1 + `2"}}}`, "InvalidResourceReference"},
	} {
		_, err := h.tryPut(admin, c.id, c.body)
		h.refused(err, c.code)
	}
	_, err := h.tryPut(stranger, net1+"/subnets/x", `{"properties":{"addressPrefix":"10.1.9.0/24","networkSecurityGroup":{"id":"`+nsg1+`"}}}`)
	h.refused(err, "LinkedAuthorizationFailed")
	if got := h.subnets(); got != "training 10.1.0.0/24, endpoints 10.1.2.0/24" {
		t.Errorf("refused writes changed the subnets: %s", got)
	}
}

func TestFailedApplyChangesNothing(t *testing.T) {
	h := newHarness(t)
	h.base()
	h.kernel.mu.Lock()
	h.kernel.fail = errors.New("no such device")
	h.kernel.mu.Unlock()
	_, err := h.tryPut(admin, net1, netBody(`"10.1.0.0/16"`, `[{"name":"training","properties":{"addressPrefix":"10.1.7.0/24"}},{"name":"more","properties":{"addressPrefix":"10.1.8.0/24"}}]`))
	if err == nil {
		t.Fatal("a change that the kernel refused was acknowledged")
	}
	h.kernel.mu.Lock()
	h.kernel.fail = nil
	h.kernel.mu.Unlock()
	var got []string
	docs, err := h.engine.List(t.Context(), subnetType, resource.MustParseID(net1))
	h.check(err)
	for _, d := range docs {
		got = append(got, d.ID.Name()+" "+d.String("properties.addressPrefix"))
	}
	if diff := cmp.Diff([]string{"endpoints 10.1.2.0/24", "training 10.1.0.0/24"}, got); diff != "" {
		t.Errorf("documents after a failed change:\n%s", diff)
	}
	h.put(net1, netBody(`"10.1.0.0/16"`, ""))
	if got := h.subnets(); got != "training 10.1.0.0/24, endpoints 10.1.2.0/24" {
		t.Errorf("subnets: %s", got)
	}
}

func TestSecurityRules(t *testing.T) {
	h := newHarness(t)
	h.base()
	h.put(machine1, `{"location":"local","properties":{"subnet":{"id":"`+net1+`/subnets/training"}}}`)
	reach := func(to string, at uint16) bool {
		return h.plan().Verdict(plan.Flow{From: machine1, Destination: plan.PlatformAddress, DestinationPort: at, Protocol: plan.TCP}).Allow && to == "platform"
	}
	if reach("platform", port) {
		t.Error("a group that denies everything lets the platform be reached")
	}
	rule := func(priority int, to string) string {
		return fmt.Sprintf(`{"properties":{"priority":%d,"direction":"Outbound","access":"Allow","protocol":"Tcp","sourceAddressPrefix":"*","sourcePortRange":"*","destinationAddressPrefix":%q,"destinationPortRange":"8443"}}`, priority, to)
	}
	h.put(nsg1+"/securityRules/platform", rule(100, "AzureResourceManager"))
	if !reach("platform", port) {
		t.Error("the rule does not hold when the call returns")
	}
	d := h.get(nsg1)
	rules, _ := d.Get("properties.securityRules").([]any)
	defaults, _ := d.Get("properties.defaultSecurityRules").([]any)
	subnets, _ := d.Get("properties.subnets").([]any)
	if len(rules) != 2 || len(defaults) != 6 || len(subnets) != 1 {
		t.Errorf("the group shows %d rules, %d default rules, %d subnets", len(rules), len(defaults), len(subnets))
	}
	for _, c := range []struct{ body, code string }{
		{rule(100, "*"), "SecurityRuleConflict"},
		{rule(99, "*"), "SecurityRuleInvalidPriority"},
		{rule(101, "Storrage"), "SecurityRuleInvalidAddressPrefix"},
		{strings.Replace(rule(101, "*"), "8443", "84430", 1), "SecurityRuleInvalidPortRange"},
		{strings.Replace(rule(101, "*"), "Tcp", "Quic", 1), "SecurityRuleInvalidProtocol"},
		{strings.Replace(rule(101, "*"), "Allow", "Perhaps", 1), "SecurityRuleInvalidAccess"},
		{strings.Replace(rule(101, "*"), "Outbound", "Sideways", 1), "SecurityRuleInvalidDirection"},
		{strings.Replace(rule(101, "*"), `"sourceAddressPrefix":"*",`, "", 1), "SecurityRuleParameterMissing"},
		{strings.Replace(rule(101, "*"), `"sourceAddressPrefix":"*",`, `"sourceApplicationSecurityGroups":[{"id":"/a/b"}],`, 1), "NotSupported"},
		{strings.Replace(rule(101, "*"), `"8443"`, `8443`, 1), "InvalidRequestContent"},
	} {
		_, err := h.tryPut(admin, nsg1+"/securityRules/other", c.body)
		h.refused(err, c.code)
	}
	h.delete(nsg1 + "/securityRules/platform")
	if reach("platform", port) {
		t.Error("a deleted rule still holds")
	}
	h.refused(h.engine.Delete(t.Context(), admin, resource.MustParseID(nsg1)), "InUseNetworkSecurityGroupCannotBeDeleted")
}

func TestUnavailable(t *testing.T) {
	h := newHarness(t)
	h.base()
	h.stop()
	h.start(errors.New("networks are unavailable: no root"))
	_, err := h.tryPut(admin, net1, netBody(`"10.1.0.0/16"`, ""))
	h.refused(err, "VirtualNetworksUnavailable")
	_, err = h.p.Attach(t.Context(), "n", net1+"/subnets/training")
	h.refused(err, "VirtualNetworksUnavailable")
	h.refused(h.p.CheckJoin(admin, net1+"/subnets/training"), "VirtualNetworksUnavailable")
	h.delete(net1) // what exists can go
}

func TestAttach(t *testing.T) {
	h := newHarness(t)
	h.base()
	subnet := net1 + "/subnets/training"
	h.refused(h.p.CheckJoin(stranger, subnet), "LinkedAuthorizationFailed")
	h.refused(h.p.CheckJoin(admin, subnet+"x"), "InvalidResourceReference")
	h.check(h.p.CheckJoin(admin, subnet))
	at, err := h.p.Attach(t.Context(), "Node-1", strings.ToUpper(subnet))
	h.check(err)
	if at.IP.String() != "10.1.0.4" || at.NetNSPath == "" || !strings.Contains(string(at.ResolvConf), "168.63.129.16") {
		t.Errorf("attachment: %+v", at)
	}
	again, err := h.p.Attach(t.Context(), "node-1", subnet)
	if err != nil || again.IP != at.IP {
		t.Errorf("attaching again: %+v, %v", again, err)
	}
	_, err = h.p.Attach(t.Context(), "node-1", net1+"/subnets/endpoints")
	h.refused(err, "NodeAlreadyAttached")
	_, err = h.p.Attach(t.Context(), "node-2", net1+"/subnets/none")
	h.refused(err, "InvalidResourceReference")
	if diff := cmp.Diff([]string{"net1 168.63.129.16:8443", "node-1 169.254.169.254:80"}, h.kernel.open()); diff != "" {
		t.Errorf("listeners:\n%s", diff)
	}
	h.refused(h.engine.Delete(t.Context(), admin, resource.MustParseID(subnet)), "InUseSubnetCannotBeDeleted")
	h.refused(h.engine.Delete(t.Context(), admin, resource.MustParseID(net1)), "InUseSubnetCannotBeDeleted")
	_, err = h.tryPut(admin, net1, netBody(`"10.1.0.0/16"`, `[]`))
	h.refused(err, "InUseSubnetCannotBeDeleted")
	_, err = h.tryPut(admin, subnet, `{"properties":{"addressPrefix":"10.1.5.0/24"}}`)
	h.refused(err, "InUsePrefixCannotBeDeleted")
	h.refused(h.p.Foresee(subnet, 251), "SubnetIsFull")
	h.check(h.p.Foresee(subnet, 250))
	h.check(h.p.Detach(t.Context(), "NODE-1"))
	h.check(h.p.Detach(t.Context(), "node-1"))
	if diff := cmp.Diff([]string{"net1 168.63.129.16:8443"}, h.kernel.open()); diff != "" {
		t.Errorf("listeners:\n%s", diff)
	}
	h.inUse[strings.ToLower(subnet)] = true
	h.refused(h.engine.Delete(t.Context(), admin, resource.MustParseID(subnet)), "ResourceInUse")
}

func TestMachineOutlivesRestartAndNodesDoNot(t *testing.T) {
	h := newHarness(t)
	h.base()
	_, err := h.p.Attach(t.Context(), "node-1", net1+"/subnets/training")
	h.check(err)
	body := `{"location":"local","properties":{"subnet":{"id":"` + net1 + `/subnets/training"}}}`
	_, err = h.tryPut(stranger, machine1, body)
	h.refused(err, "LinkedAuthorizationFailed")
	h.rights.grant(stranger, joinSubnet)
	d, err := h.tryPut(stranger, machine1, body)
	h.check(err)
	if d.String("properties.privateIPAddress") != "10.1.0.5" || d.String("properties.namespacePath") == "" {
		t.Errorf("machine: %v", d.Body)
	}
	h.stop()
	h.start(nil)
	n := h.network(net1)
	if len(n.Attachments) != 1 || n.Attachments[0].ID != machine1 || n.Attachments[0].IP.String() != "10.1.0.5" {
		t.Errorf("attachments after a restart: %+v", n.Attachments)
	}
	_, err = h.tryPut(admin, machine1, strings.Replace(body, "training", "endpoints", 1))
	h.refused(err, "PropertyChangeNotAllowed")
	h.delete(machine1)
	if n := h.network(net1); len(n.Attachments) != 0 {
		t.Errorf("attachments after deletion: %+v", n.Attachments)
	}
	// Deleting the group deletes everything in whatever order it takes.
	h.delete(rg)
	if got := len(h.plan().Networks); got != 0 {
		t.Errorf("%d networks after the group was deleted", got)
	}
}
