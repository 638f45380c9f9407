package identity_test

import (
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"casemate.dev/control/identity"
	"casemate.dev/resource"
)

const (
	armID    = "/subscriptions/5f2b0000-0000-4000-8000-000000000001/resourceGroups/rg/providers/Microsoft.ManagedIdentity/userAssignedIdentities/"
	trainID  = armID + "train"
	spareID  = armID + "spare"
	othersID = armID + "others"
)

// nodeWorld has node n1, with identities train (default) and spare, working for run r1 of person p1.
func nodeWorld(t testing.TB) (*world, map[string]identity.ManagedIdentity) {
	w, ids := newWorld(t), map[string]identity.ManagedIdentity{}
	for _, id := range []string{trainID, spareID, othersID} {
		mi, err := w.EnsureManagedIdentity(t.Context(), resource.MustParseID(id), id[len(armID):])
		w.must(err)
		again, err := w.EnsureManagedIdentity(t.Context(), resource.MustParseID(strings.ToLower(id)), "x")
		w.must(err)
		if mi != again {
			t.Fatalf("EnsureManagedIdentity made another: %v, %v", mi, again)
		}
		ids[id] = mi
	}
	w.nodes.Store("n1", identity.NodeIdentity{Default: trainID, Identities: []string{trainID, spareID}, Run: "r1", OnBehalfOf: "p1", Secret: "s3cret"})
	return w, ids
}

var onNode = resource.Origin{Kind: resource.OriginNode, Node: "n1"}

func imds(pairs ...string) string {
	q := form(append([]string{"api-version", "2018-02-01", "resource", "https://storage.azure.com/"}, pairs...)...)
	for k, v := range q {
		if v[0] == "-" {
			delete(q, k)
		}
	}
	return "/metadata/identity/oauth2/token?" + q.Encode()
}

func TestInstanceMetadata(t *testing.T) {
	w, ids := nodeWorld(t)
	yes := map[string]string{"Metadata": "true"}
	with := func(k, v string) map[string]string { m := maps.Clone(yes); m[k] = v; return m }
	tests := []struct {
		name, url string
		header    map[string]string
		origin    resource.Origin
		identity  string // "" : refused
		code      string
	}{
		{"default", imds(), yes, onNode, trainID, ""},
		{"header in capitals", imds(), map[string]string{"METADATA": "True"}, onNode, trainID, ""},
		{"client_id", imds("client_id", ids[spareID].ClientID), yes, onNode, spareID, ""},
		{"object_id", imds("object_id", ids[spareID].PrincipalID), yes, onNode, spareID, ""},
		{"msi_res_id", imds("msi_res_id", strings.ToUpper(spareID)), yes, onNode, spareID, ""},
		{"mi_res_id", imds("mi_res_id", spareID), yes, onNode, spareID, ""},
		{"not the node's", imds("client_id", ids[othersID].ClientID), yes, onNode, "", "invalid_request"},
		{"a service principal", imds("client_id", w.admin.ClientID), yes, onNode, "", "invalid_request"},
		{"two names", imds("client_id", ids[spareID].ClientID, "msi_res_id", spareID), yes, onNode, "", "invalid_request"},
		{"no header", imds(), nil, onNode, "", "invalid_request"},
		{"header false", imds(), map[string]string{"Metadata": "false"}, onNode, "", "invalid_request"},
		{"forwarded", imds(), with("X-Forwarded-For", "10.0.0.1"), onNode, "", "invalid_request"},
		{"through a proxy", imds(), with("Via", "1.1 squid"), onNode, "", "invalid_request"},
		{"no version", imds("api-version", "-"), yes, onNode, "", "invalid_request"},
		{"old version", imds("api-version", "2017-01-01"), yes, onNode, "", "invalid_request"},
		{"no resource", imds("resource", "-"), yes, onNode, "", "invalid_request"},
		{"unknown resource", imds("resource", "https://example.org"), yes, onNode, "", "invalid_resource"},
		{"from outside", imds(), yes, resource.Origin{Kind: resource.OriginPublic, Node: "n1"}, "", "access_denied"},
		{"unknown node", imds(), yes, resource.Origin{Kind: resource.OriginNode, Node: "n2"}, "", "access_denied"},
		{"no node", imds(), yes, resource.Origin{Kind: resource.OriginNode}, "", "access_denied"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, out, err := w.do(resource.PlaneNode, request{method: "GET", url: tt.url, header: tt.header, origin: tt.origin})
			if codeOf(err) != tt.code {
				t.Fatalf("got %v, want %q", err, tt.code)
			}
			if tt.identity == "" {
				return
			}
			mi := ids[tt.identity]
			c, err := w.Verify(t.Context(), out["access_token"].(string), w.Audience(resource.PlaneBlob))
			if err != nil {
				t.Fatal(err)
			}
			if c.Object != mi.PrincipalID || c.Kind != resource.KindManagedIdentity || c.Node != "n1" || c.Run != "r1" || c.OnBehalfOf != "p1" || c.ResourceID != tt.identity {
				t.Errorf("caller = %+v", c)
			}
			on, err := strconv.ParseInt(out["expires_on"].(string), 10, 64)
			if err != nil || on != w.now.Add(30*time.Minute).Unix() || out["expires_in"] != "1800" || out["client_id"] != mi.ClientID || out["resource"] != "https://storage.azure.com/" {
				t.Errorf("answer = %v", out)
			}
		})
	}
}

func TestIdentityEndpoint(t *testing.T) {
	w, ids := nodeWorld(t)
	at := func(version string, pairs ...string) string {
		return "/msi/token?" + form(append([]string{"api-version", version, "resource", "https://vault.casemate.localhost:8443"}, pairs...)...).Encode()
	}
	const app, ml = "2019-08-01", "2017-09-01"
	tests := []struct {
		name, url string
		header    map[string]string
		identity  string
		code      string
	}{
		{"app service", at(app), map[string]string{"X-IDENTITY-HEADER": "s3cret"}, trainID, ""},
		{"app service, client_id", at(app, "client_id", ids[spareID].ClientID), map[string]string{"X-IDENTITY-HEADER": "s3cret"}, spareID, ""},
		{"azure ml", at(ml), map[string]string{"secret": "s3cret"}, trainID, ""},
		{"azure ml, clientid", at(ml, "clientid", ids[spareID].ClientID), map[string]string{"secret": "s3cret"}, spareID, ""},
		{"wrong secret", at(app), map[string]string{"X-IDENTITY-HEADER": "S3cret"}, "", "invalid_client"},
		{"secret in the other header", at(app), map[string]string{"secret": "s3cret"}, "", "invalid_client"},
		{"no secret", at(ml), nil, "", "invalid_client"},
		{"secret in the address", at(ml, "secret", "s3cret"), nil, "", "invalid_client"},
		{"forwarded", at(ml), map[string]string{"secret": "s3cret", "X-Forwarded-For": "::1"}, "", "invalid_request"},
		{"version", at("2018-02-01"), map[string]string{"secret": "s3cret"}, "", "invalid_request"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, out, err := w.do(resource.PlaneNode, request{method: "GET", url: tt.url, header: tt.header, origin: onNode})
			if codeOf(err) != tt.code {
				t.Fatalf("got %v, want %q", err, tt.code)
			}
			if tt.identity != "" {
				c, err := w.Verify(t.Context(), out["access_token"].(string), w.Audience(resource.PlaneVault))
				if err != nil || c.ResourceID != tt.identity {
					t.Errorf("caller = %+v, %v", c, err)
				}
			}
		})
	}
	w.nodes.Store("n1", identity.NodeIdentity{Default: trainID})
	if _, _, err := w.do(resource.PlaneNode, request{method: "GET", url: at(ml), header: map[string]string{"secret": ""}, origin: onNode}); codeOf(err) != "invalid_client" {
		t.Errorf("a node without a secret: %v", err)
	}
}

func TestNodeTokensEnd(t *testing.T) {
	full := identity.NodeIdentity{Default: trainID, Run: "r1"}
	tests := map[string]func(w *world){
		"node gone":         func(w *world) { w.nodes.Delete("n1") },
		"next run":          func(w *world) { n := full; n.Run = "r2"; w.nodes.Store("n1", n) },
		"identity detached": func(w *world) { n := full; n.Default = spareID; w.nodes.Store("n1", n) },
		"identity deleted":  func(w *world) { w.must(w.RemoveManagedIdentity(w.Context(), resource.MustParseID(trainID))) },
		"identity made anew": func(w *world) {
			w.must(w.RemoveManagedIdentity(w.Context(), resource.MustParseID(trainID)))
			_, err := w.EnsureManagedIdentity(w.Context(), resource.MustParseID(trainID), "train")
			w.must(err)
		},
		"restart without nodes": func(w *world) { w.restart(); w.JoinNodes(&nodes{}) },
	}
	for name, end := range tests {
		t.Run(name, func(t *testing.T) {
			w, _ := nodeWorld(t)
			token, err := w.RunToken(t.Context(), "n1", trainID, armAudience)
			w.must(err)
			_, err = w.caller(token.Raw)
			w.must(err)
			end(w)
			if c, err := w.caller(token.Raw); resource.StatusOf(err) != http.StatusUnauthorized {
				t.Errorf("still accepted as %+v (%v)", c, err)
			}
		})
	}
}

func TestManagedIdentitiesHaveNoOtherWay(t *testing.T) {
	w, ids := nodeWorld(t)
	mi := ids[trainID]
	for _, path := range []string{"", "/addPassword"} {
		method, body := http.MethodPatch, map[string]any{"accountEnabled": false}
		if path != "" {
			method, body = http.MethodPost, map[string]any{}
		}
		if _, _, err := w.graph(method, "servicePrincipals/"+mi.PrincipalID+path, body); codeOf(err) != "Request_BadRequest" {
			t.Errorf("%s %q: %v", method, path, err)
		}
	}
	_, _, err := w.do(resource.PlaneLogin, request{method: "POST", url: "/adfs/oauth2/token", body: url.Values{
		"grant_type": {"client_credentials"}, "client_id": {mi.ClientID}, "client_secret": {"x"}, "scope": {armAudience + "/.default"}}})
	if codeOf(err) != "unauthorized_client" {
		t.Errorf("client credentials of a managed identity: %v", err)
	}
	w.must(w.RemoveManagedIdentity(t.Context(), resource.MustParseID(trainID)))
	if fmt.Sprint(w.removed) != fmt.Sprint([]string{mi.PrincipalID}) {
		t.Errorf("removed = %q", w.removed)
	}
	w.must(w.RemoveManagedIdentity(t.Context(), resource.MustParseID(trainID)))
}
