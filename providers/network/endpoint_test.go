package network

import (
	"encoding/json"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	datanet "casemate.dev/dataplane/network"
	"casemate.dev/dataplane/network/plan"
	"casemate.dev/resource"
)

func peBody(list, target, group string) string {
	return `{"location":"local","properties":{"subnet":{"id":"` + net1 + `/subnets/endpoints"},"` + list + `":[{"name":"c","properties":{"privateLinkServiceId":"` + target + `","groupIds":["` + group + `"]}}]}}`
}

func autoPE(target, group string) string {
	return peBody("privateLinkServiceConnections", target, group)
}
func manualPE(target, group string) string {
	return peBody("manualPrivateLinkServiceConnections", target, group)
}

func TestEndpoint(t *testing.T) {
	h := newHarness(t)
	h.base()
	h.put(pe1, autoPE(vault1, "vault"))
	if diff := cmp.Diff([]string{"net1 10.1.2.4:8443", "net1 168.63.129.16:8443"}, h.kernel.open()); diff != "" {
		t.Errorf("listeners:\n%s", diff)
	}
	names := h.names(net1)
	want := map[string]string{"kv1.vault.casemate.test.": "10.1.2.4", "login.casemate.test.": "168.63.129.16", "management.casemate.test.": "168.63.129.16", "graph.casemate.test.": "168.63.129.16"}
	if diff := cmp.Diff(want, names); diff != "" {
		t.Errorf("names:\n%s", diff)
	}
	d := h.get(pe1)
	configs, _ := json.Marshal(d.Get("properties.customDnsConfigs"))
	if string(configs) != `[{"fqdn":"kv1.vault.casemate.test","ipAddresses":["10.1.2.4"]}]` {
		t.Errorf("customDnsConfigs: %s", configs)
	}
	list, _ := d.Get("properties.privateLinkServiceConnections").([]any)
	c := resource.Document{Body: list[0].(map[string]any)}
	if c.String("properties.privateLinkServiceConnectionState.status") != approved || c.String("id") != pe1+"/privateLinkServiceConnections/c" {
		t.Errorf("connection: %v", c.Body)
	}
	// What a client read, it can write back.
	raw, err := json.Marshal(h.get(pe1).Wire())
	h.check(err)
	h.put(pe1, string(raw))
	if got := h.names(net1)["kv1.vault.casemate.test."]; got != "10.1.2.4" {
		t.Errorf("address after writing back: %s", got)
	}
	for body, code := range map[string]string{
		autoPE(account1, "blob"): "PrivateLinkServiceConnectionCannotBeChanged",
		strings.Replace(autoPE(vault1, "vault"), "endpoints", "training", 1): "PrivateEndpointSubnetCannotBeChanged",
	} {
		_, err := h.tryPut(admin, pe1, body)
		h.refused(err, code)
	}
	h.refused(h.engine.Delete(t.Context(), admin, resource.MustParseID(net1)), "InUseSubnetCannotBeDeleted")
	h.delete(pe1)
	if diff := cmp.Diff([]string{"net1 168.63.129.16:8443"}, h.kernel.open()); diff != "" {
		t.Errorf("listeners:\n%s", diff)
	}
}

func TestEndpointRefusals(t *testing.T) {
	h := newHarness(t)
	h.base()
	h.put(net1+"/subnets/tiny", `{"properties":{"addressPrefix":"10.1.3.0/29"}}`)
	for _, c := range []struct{ body, code string }{
		{autoPE(vault1, "blob"), "InvalidGroupId"},
		{autoPE(account1, "dfs"), "NotSupported"},
		{autoPE(vault1+"x", "vault"), "InvalidResourceReference"},
		{autoPE(rg+"/providers/Microsoft.Sql/servers/s", "sqlServer"), "NotSupported"},
		{autoPE("vault1", "vault"), "InvalidParameter"},
		{strings.Replace(autoPE(vault1, "vault"), "endpoints", "none", 1), "InvalidResourceReference"},
		{strings.Replace(autoPE(vault1, "vault"), `["vault"]`, `["vault","x"]`, 1), "InvalidRequestFormat"},
		{strings.Replace(autoPE(vault1, "vault"), `"location":"local",`, `"location":"local","x":1,`, 1), ""},
		{`{"location":"local","properties":{"subnet":{"id":"` + net1 + `/subnets/endpoints"}}}`, "InvalidRequestFormat"},
	} {
		_, err := h.tryPut(admin, pe1, c.body)
		if c.code == "" {
			h.check(err)
			h.delete(pe1)
			continue
		}
		h.refused(err, c.code)
	}
	_, err := h.tryPut(stranger, pe1, autoPE(vault1, "vault"))
	h.refused(err, "LinkedAuthorizationFailed")
	tiny := func(body string) string { return strings.Replace(body, "/endpoints", "/tiny", 1) }
	h.put(pe1+"a", tiny(autoPE(vault1, "vault")))
	h.put(pe1+"b", tiny(autoPE(workspace1, "amlworkspace"))) // two addresses: the subnet is full
	_, err = h.tryPut(admin, pe1+"c", tiny(autoPE(account1, "blob")))
	h.refused(err, "SubnetIsFull")
}

func TestApproval(t *testing.T) {
	h := newHarness(t)
	h.base()
	h.rights.grant(stranger, joinSubnet)
	_, err := h.tryPut(stranger, pe1, autoPE(vault1, "vault"))
	h.check(err)
	closed := []string{"net1 168.63.129.16:8443"}
	opened := []string{"net1 10.1.2.4:8443", "net1 168.63.129.16:8443"}
	expect := func(status string, listeners []string) {
		t.Helper()
		if got := statusOf(h.get(pe1)); got != status {
			t.Errorf("status %s, want %s", got, status)
		}
		if diff := cmp.Diff(listeners, h.kernel.open()); diff != "" {
			t.Errorf("listeners:\n%s", diff)
		}
		if _, resolves := h.names(net1)["kv1.vault.casemate.test."]; resolves != (len(listeners) > 1) {
			t.Errorf("while %s the name resolves: %v", status, resolves)
		}
	}
	expect(pending, closed)
	list := h.p.ConnectionsOf(strings.ToUpper(vault1))
	if len(list) != 1 {
		t.Fatalf("connections: %v", list)
	}
	at := "/privateEndpointConnections/" + list[0]["name"].(string)
	put := func(status string) string {
		return `{"properties":{"privateLinkServiceConnectionState":{"status":"` + status + `","description":"by test"}}}`
	}
	if status, code := h.row(stranger, "PUT", vault1, at, put("Approved")); status != 403 {
		t.Errorf("approving without the right: %d %s", status, code)
	}
	if status, code := h.row(admin, "PUT", vault1, at, put("Disconnected")); status != 400 {
		t.Errorf("a status that nobody may set: %d %s", status, code)
	}
	if status, body := h.row(admin, "PUT", vault1, at, put("approved")); status != 200 || !strings.Contains(body, `"status":"Approved"`) {
		t.Errorf("approving: %d %s", status, body)
	}
	expect(approved, opened)
	// Writing the endpoint again neither approves nor loses the approval.
	_, err = h.tryPut(stranger, pe1, autoPE(vault1, "vault"))
	h.check(err)
	expect(approved, opened)
	if status, body := h.row(admin, "PUT", vault1, at, put("Rejected")); status != 200 {
		t.Errorf("rejecting: %d %s", status, body)
	}
	expect(rejected, closed)
	if status, body := h.row(admin, "GET", vault1, "/privateEndpointConnections", ""); status != 200 || !strings.Contains(body, pe1) {
		t.Errorf("list: %d %s", status, body)
	}
	if status, _ := h.row(admin, "GET", account1, at, ""); status != 404 {
		t.Errorf("another resource's connection: %d", status)
	}
	if status, _ := h.row(admin, "DELETE", vault1, at, ""); status != 200 {
		t.Errorf("delete: %d", status)
	}
	expect(disconnected, closed)
	if status, _ := h.row(admin, "PUT", vault1, at, put("Approved")); status != 404 {
		t.Errorf("approving what was disconnected: %d", status)
	}
	h.stop()
	h.start(nil)
	expect(disconnected, closed)
	if status, body := h.row(admin, "GET", account1, "/privateLinkResources", ""); status != 200 || !strings.Contains(body, `"groupId":"blob"`) || strings.Contains(body, "dfs") {
		t.Errorf("private link resources: %d %s", status, body)
	}
	h.put(pe1+"m", manualPE(vault1, "vault"))
	if got := statusOf(h.get(pe1 + "m")); got != pending {
		t.Errorf("a manual connection of an administrator is %s", got)
	}
}

func TestDeletedTargetDisconnects(t *testing.T) {
	h := newHarness(t)
	h.base()
	h.put(pe1, autoPE(vault1, "vault"))
	h.delete(vault1)
	h.put(vault1, `{"location":"local"}`) // of the same name, but not what was approved
	if got := statusOf(h.get(pe1)); got != disconnected {
		t.Errorf("status %s", got)
	}
	if diff := cmp.Diff([]string{"net1 168.63.129.16:8443"}, h.kernel.open()); diff != "" {
		t.Errorf("listeners:\n%s", diff)
	}
}

func TestWorkspaceNames(t *testing.T) {
	h := newHarness(t)
	h.base()
	h.put(workspace1+"/onlineEndpoints/Churn", `{"location":"local"}`)
	h.put(pe1, autoPE(workspace1, "amlworkspace"))
	names := h.names(net1)
	for name, want := range map[string]string{"guid-ws1.workspace.casemate.test.": "10.1.2.4", "*.local.inference.casemate.test.": "10.1.2.5", "churn.local.inference.casemate.test.": "10.1.2.5"} {
		if names[name] != want {
			t.Errorf("%s is %q, want %s", name, names[name], want)
		}
	}
}

func TestZones(t *testing.T) {
	h := newHarness(t)
	h.base()
	h.put(pe1, autoPE(vault1, "vault"))
	_, err := h.tryPut(admin, zone1, `{"location":"local"}`)
	h.refused(err, "LocationNotAvailableForResourceType")
	h.put(zone1, `{"location":"global"}`)
	link := `{"location":"global","properties":{"virtualNetwork":{"id":"` + net1 + `"},"registrationEnabled":false}}`
	_, err = h.tryPut(stranger, zone1+"/virtualNetworkLinks/l", link)
	h.refused(err, "LinkedAuthorizationFailed")
	h.put(zone1+"/virtualNetworkLinks/l", link)
	_, err = h.tryPut(admin, zone1+"/virtualNetworkLinks/other", link)
	h.refused(err, "Conflict")
	h.put(zone1+"/A/manual", `{"properties":{"ttl":60,"aRecords":[{"ipv4Address":"10.1.0.9"},{"ipv4Address":"10.1.0.8"}]}}`)
	_, err = h.tryPut(admin, zone1+"/A/bad", `{"properties":{"ttl":60,"aRecords":[{"ipv4Address":"10.1.0"}]}}`)
	h.refused(err, "BadRequest")
	groupBody := `{"properties":{"privateDnsZoneConfigs":[{"name":"z","properties":{"privateDnsZoneId":"` + zone1 + `"}}]}}`
	h.put(pe1+"/privateDnsZoneGroups/default", groupBody)
	_, err = h.tryPut(admin, pe1+"/privateDnsZoneGroups/second", groupBody)
	h.refused(err, "PrivateEndpointCanHaveOnlyOnePrivateDnsZoneGroup")
	names := h.names(net1)
	for name, want := range map[string]string{"manual.privatelink.vaultcore.azure.net.": "10.1.0.8 10.1.0.9", "kv1.privatelink.vaultcore.azure.net.": "10.1.2.4", "kv1.vault.casemate.test.": "10.1.2.4"} {
		if names[name] != want {
			t.Errorf("%s is %q, want %q", name, names[name], want)
		}
	}
	h.refused(h.engine.Delete(t.Context(), admin, resource.MustParseID(zone1)), "CannotDeleteResource")
	h.delete(pe1)
	if _, ok := h.names(net1)["kv1.privatelink.vaultcore.azure.net."]; ok {
		t.Error("the record set of a deleted endpoint resolves")
	}
	h.delete(zone1 + "/virtualNetworkLinks/l")
	if _, ok := h.names(net1)["manual.privatelink.vaultcore.azure.net."]; ok {
		t.Error("a zone that is not linked resolves")
	}
}

// TestDeclaredRecordsGoFirst: a linked zone may say what an endpoint's name means, but not where the platform is.
func TestDeclaredRecordsGoFirst(t *testing.T) {
	h := newHarness(t)
	h.base()
	h.put(pe1, autoPE(vault1, "vault"))
	zone := rg + "/providers/Microsoft.Network/privateDnsZones/casemate.test"
	h.put(zone, `{"location":"global"}`)
	h.put(zone+"/virtualNetworkLinks/l", `{"location":"global","properties":{"virtualNetwork":{"id":"`+net1+`"}}}`)
	h.put(zone+"/A/kv1.vault", `{"properties":{"ttl":60,"aRecords":[{"ipv4Address":"10.1.2.77"}]}}`)
	h.put(zone+"/A/login", `{"properties":{"ttl":60,"aRecords":[{"ipv4Address":"10.1.2.78"}]}}`)
	names := h.names(net1)
	if names["kv1.vault.casemate.test."] != "10.1.2.77" || names["login.casemate.test."] != "168.63.129.16" {
		t.Errorf("names: %v", names)
	}
}

func TestOrigins(t *testing.T) {
	h := newHarness(t)
	h.base()
	h.put(pe1, autoPE(vault1, "vault"))
	_, err := h.p.Attach(t.Context(), "node-1", net1+"/subnets/training")
	h.check(err)
	remote := netip.MustParseAddrPort("10.1.0.4:40000")
	from := func(source, endpoint string) datanet.Origin {
		return datanet.Origin{Network: net1, Subnet: net1 + "/subnets/training", PrivateEndpoint: endpoint, Source: source, Remote: remote}
	}
	private := resource.Origin{Kind: resource.OriginPrivate, Network: net1, Subnet: net1 + "/subnets/training", Node: "node-1", Remote: remote}
	at := func(change func(*resource.Origin)) resource.Origin {
		o := private
		change(&o)
		return o
	}
	for _, c := range []struct {
		listener string
		from     datanet.Origin
		want     resource.Origin
	}{
		{net1 + " 10.1.2.4:8443", from("node-1", pe1), at(func(o *resource.Origin) { o.PrivateEndpoint, o.Target, o.GroupID = pe1, vault1, "vault" })},
		{net1 + " 10.1.2.4:8443", from(machine1, pe1), at(func(o *resource.Origin) { o.PrivateEndpoint, o.Target, o.GroupID, o.Node = pe1, vault1, "vault", "" })},
		{net1 + " 10.1.2.4:8443", from("node-1", pe1+"x"), resource.Origin{}},
		{net1 + " 10.1.2.4:8443", from("node-1", ""), resource.Origin{}},
		{net1 + " 168.63.129.16:8443", from("node-1", ""), at(func(o *resource.Origin) { o.GroupID = "platform" })},
		{"node-1 169.254.169.254:80", from("node-1", ""), at(func(o *resource.Origin) { o.Kind = resource.OriginNode })},
		{"node-1 169.254.169.254:80", from("node-2", ""), resource.Origin{}},
	} {
		a, b := net.Pipe()
		h.kernel.mu.Lock()
		l := h.kernel.listeners[strings.ToLower(c.listener)]
		h.kernel.mu.Unlock()
		if l == nil {
			t.Fatalf("no listener %s", c.listener)
		}
		l.conns <- connected{a, c.from}
		if diff := cmp.Diff(c.want, <-h.origins, cmpopts.EquateComparable(netip.AddrPort{})); diff != "" {
			t.Errorf("%s from %s:\n%s", c.listener, c.from.Source, diff)
		}
		b.Close()
	}
	a, _ := net.Pipe()
	if got := h.p.origin(place{at: netip.AddrPortFrom(plan.PlatformAddress, port)}, a); got != (resource.Origin{}) {
		t.Errorf("a connection that tells nothing has the origin %+v", got)
	}
}

// TestReopen: a listener that the data plane had to close is opened again, as long as its endpoint stands.
func TestReopen(t *testing.T) {
	h := newHarness(t)
	h.base()
	h.put(pe1, autoPE(vault1, "vault"))
	key := strings.ToLower(net1) + " 10.1.2.4:8443"
	for len(h.kernel.opened) > 0 {
		<-h.kernel.opened
	}
	h.kernel.mu.Lock()
	h.kernel.listeners[key].Close()
	h.kernel.mu.Unlock()
	if got := <-h.kernel.opened; got != key {
		t.Errorf("opened %s", got)
	}
	h.delete(pe1)
	if diff := cmp.Diff([]string{"net1 168.63.129.16:8443"}, h.kernel.open()); diff != "" {
		t.Errorf("listeners:\n%s", diff)
	}
}

// FuzzBodies writes hostile bodies of every type: they are refused or stored, and what is stored can be shown, applied and
// written back.
func FuzzBodies(f *testing.F) {
	ids := []string{net1, net1 + "/subnets/x", nsg1, nsg1 + "/securityRules/x", pe1, pe1 + "/privateDnsZoneGroups/x", zone1, zone1 + "/A/x", zone1 + "/virtualNetworkLinks/x", machine1}
	for i, body := range []string{
		`{"addressSpace":{"addressPrefixes":["10.1.0.0/16"]},"subnets":[{"name":"a","properties":{"addressPrefix":"10.1.0.0/24"}},null,7]}`, `{"addressPrefix":"10.1.9.0/24","networkSecurityGroup":"x"}`,
		`{"securityRules":[{"name":"r","properties":{"priority":1e9}}]}`, `{"priority":100,"direction":"Inbound","access":"Allow","protocol":"*","sourceAddressPrefixes":["*",""],"destinationPortRanges":["1-"]}`,
		`{"subnet":{"id":"` + net1 + `/subnets/endpoints"},"privateLinkServiceConnections":[null]}`, `{"privateDnsZoneConfigs":[{"properties":7}]}`, `{}`,
		`{"ttl":1,"aRecords":[{"ipv4Address":"1.2.3.4"},{}]}`, `{"virtualNetwork":{"id":"` + net1 + `"}}`, `{"subnet":{"id":"` + net1 + `/subnets/training"}}`,
	} {
		f.Add(uint8(i), body)
	}
	f.Fuzz(func(t *testing.T, at uint8, properties string) {
		h := newHarness(t)
		h.base()
		h.put(pe1, autoPE(vault1, "vault"))
		h.put(zone1, `{"location":"global"}`)
		body, err := resource.DecodeBody([]byte(`{"properties":` + properties + `}`))
		if err != nil {
			return
		}
		id := ids[int(at)%len(ids)]
		body["location"] = "local"
		if resource.MustParseID(id).Is(zoneType) || resource.MustParseID(id).Is(linkType) {
			body["location"] = "global"
		}
		if _, err := h.engine.Put(t.Context(), admin, resource.MustParseID(id), body); err != nil {
			if resource.StatusOf(err) >= 500 && resource.AsError(err).Code != "NotSupported" {
				t.Fatalf("%s: %v", id, err)
			}
			return
		}
		raw, err := json.Marshal(h.get(id).Wire())
		h.check(err)
		h.put(id, string(raw))
		if len(h.p.broken) > 0 {
			t.Fatalf("%s cannot be applied", id)
		}
	})
}
