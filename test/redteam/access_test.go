package redteam

import (
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"

	"casemate.dev/test/harness"
)

// targetPort: Azure ML's compute instance proxy sent requests to any local port that X-MS-Target-Port named (Black Hat USA
// 2023). The header must change nothing, and nobody may knock at the port.
func targetPort(t *testing.T, w *world) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	knocked := make(chan bool, 1)
	go func() {
		if c, err := l.Accept(); err == nil {
			c.Close()
			knocked <- true
		}
		close(knocked)
	}()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	for _, url := range []string{w.URL("management", "/healthz"), w.URL("management", w.group+"?api-version=2021-04-01"), w.secretURL("canary"), w.URL(w.blobHost, "/closed/secret.csv")} {
		plain := w.send(t, harness.Call{Method: http.MethodGet, URL: url, As: w.student})
		aimed := w.send(t, harness.Call{Method: http.MethodGet, URL: url, As: w.student, Header: http.Header{
			"X-Ms-Target-Port": {port}, "X-Ms-Target-Host": {"127.0.0.1:" + port}, "X-Forwarded-Port": {port}, "X-Forwarded-Host": {"127.0.0.1:" + port}}})
		if plain.Status != aimed.Status || plain.Code() != aimed.Code() {
			t.Errorf("%s: %v with the header, %v without", url, aimed, plain)
		}
		silent(t, url, aimed)
	}
	l.Close()
	if <-knocked {
		t.Error("the server connected to the port that the header named")
	}
}

// readerListsNames: an ARM Reader could list names of keys and secrets through the control plane (azure-vault-recon).
func readerListsNames(t *testing.T, w *world) {
	w.Must(t, harness.Call{Method: http.MethodPost, URL: w.URL(w.vaultHost, "/keys/master/create?api-version=7.4"), As: w.Admin, Body: map[string]any{"kty": "oct"}}, 200, 400)
	for _, path := range []string{"/secrets", "/keys", "/deletedsecrets", "/deletedkeys", "/certificates", "/secrets/canary", "/secrets/canary/versions", "/keys/master"} {
		a := w.send(t, harness.Call{Method: http.MethodGet, URL: w.URL(w.vaultHost, path+"?api-version=7.4"), As: w.reader})
		refused(t, "reader: GET "+path, a, 403)
	}
	for _, path := range []string{"/closed?restype=container&comp=list", "/?comp=list&prefix=", "/closed/secret.csv"} {
		a := w.send(t, harness.Call{Method: http.MethodGet, URL: w.URL(w.blobHost, path), As: w.reader})
		if strings.Contains(string(a.Body), "secret.csv") || a.Status == 200 && !strings.HasPrefix(path, "/?") {
			t.Errorf("reader: GET %s = %v", path, a)
		}
		silent(t, path, a)
	}
	for _, child := range []string{"/secrets", "/keys", "/secrets/canary", "/listSecrets", "/listKeys"} {
		for _, method := range []string{http.MethodGet, http.MethodPost} {
			a := w.send(t, harness.Call{Method: method, URL: w.URL("management", w.vault+child+"?api-version="+harness.VersionVault), As: w.reader})
			if a.Status < 300 || strings.Contains(string(a.Body), `canary"`) {
				t.Errorf("reader: %s vault%s = %v", method, child, a)
			}
		}
	}
}

// contributorGrantsItself: a vault's Contributor wrote itself an access policy and read the secrets (Microsoft's own
// documentation warns of it). No control-plane write may open the data plane.
func contributorGrantsItself(t *testing.T, w *world) {
	id, host := w.NewVault(t, w.group, nil)
	w.Grant(t, id, harness.RoleVaultAdministrator, w.Admin)
	secret := w.URL(host, "/secrets/canary?api-version=7.4")
	w.Must(t, harness.Call{Method: http.MethodPut, URL: secret, As: w.Admin, Body: map[string]any{"value": canary}})
	mallory := w.NewPrincipal(t, "vault contributor")
	w.Grant(t, id, harness.RoleVaultContributor, mallory)
	policy := []any{map[string]any{"tenantId": mallory.Tenant, "objectId": mallory.ObjectID, "permissions": map[string]any{"secrets": []any{"all"}, "keys": []any{"all"}}}}
	base := map[string]any{"tenantId": mallory.Tenant, "sku": map[string]any{"family": "A", "name": "standard"}}
	with := func(more map[string]any) map[string]any {
		props := map[string]any{}
		for _, m := range []map[string]any{base, more} {
			for k, v := range m {
				props[k] = v
			}
		}
		return map[string]any{"location": "local", "properties": props}
	}
	for what, c := range map[string]struct {
		method, id string
		body       any
	}{
		"policies":               {http.MethodPut, id, with(map[string]any{"accessPolicies": policy, "enableRbacAuthorization": true})},
		"policies without roles": {http.MethodPut, id, with(map[string]any{"accessPolicies": policy, "enableRbacAuthorization": false})},
		"roles switched off":     {http.MethodPatch, id, with(map[string]any{"enableRbacAuthorization": false})},
		"policies added":         {http.MethodPut, id + "/accessPolicies/add", map[string]any{"properties": map[string]any{"accessPolicies": policy}}},
		"policies replaced":      {http.MethodPut, id + "/accessPolicies/replace", map[string]any{"properties": map[string]any{"accessPolicies": policy}}},
		"own role":               {http.MethodPut, id + "/providers/Microsoft.Authorization/roleAssignments/6a8e6c1e-7b1f-4d0c-9a55-0d7c0a3a5b11", w.AssignmentBody(harness.RoleVaultAdministrator, mallory)},
	} {
		version := harness.VersionVault
		if strings.Contains(c.id, "roleAssignments") {
			version = harness.VersionRole
		}
		a := w.send(t, harness.Call{Method: c.method, URL: w.URL("management", c.id+"?api-version="+version), As: mallory, Body: c.body})
		if a.Status >= 500 && a.Status != 501 {
			t.Errorf("%s = %v", what, a)
		}
		refused(t, what+": reading the secret", w.send(t, harness.Call{Method: http.MethodGet, URL: secret, As: mallory}), 403)
	}
	for _, child := range []string{"/listKeys", "/listAccountSas", "/listServiceSas", "/regenerateKey"} {
		a := w.send(t, harness.Call{Method: http.MethodPost, URL: w.URL("management", w.account+child+"?api-version="+harness.VersionStorage), As: w.contributor, Body: map[string]any{"keyName": "key1"}})
		if a.Status < 400 {
			t.Errorf("contributor: %s = %v", child, a)
		}
	}
	for _, path := range []string{"/closed/secret.csv", "/closed?restype=container&comp=list"} {
		refused(t, "contributor: "+path, w.send(t, harness.Call{Method: http.MethodGet, URL: w.URL(w.blobHost, path), As: w.contributor}), 403)
	}
	// The account's owner of the data plane may be changed only by those who may grant; switching keys on must not help.
	a := w.send(t, harness.Call{Method: http.MethodPatch, URL: w.URL("management", w.account+"?api-version="+harness.VersionStorage), As: w.contributor, Body: map[string]any{"properties": map[string]any{"allowSharedKeyAccess": true, "allowBlobPublicAccess": true}}})
	if a.Status >= 500 && a.Status != 501 {
		t.Errorf("switching shared keys on = %v", a)
	}
	refused(t, "anonymous read after allowing public access", w.send(t, harness.Call{Method: http.MethodGet, URL: w.URL(w.blobHost, "/closed/secret.csv")}), 401)
}

// otherTenant: tokens of one tenant were accepted in others (CVE-2025-55241).
func otherTenant(t *testing.T, w *world) {
	stranger := w.NewTenant(t, "Another hospital")
	for _, url := range []string{w.URL("management", "/subscriptions?api-version=2021-04-01"), w.URL("management", w.group+"?api-version=2021-04-01"), w.secretURL("canary"),
		w.URL(w.blobHost, "/closed/secret.csv"), w.URL("graph", "/v1.0/servicePrincipals")} {
		a := w.send(t, harness.Call{Method: http.MethodGet, URL: url, As: stranger})
		refused(t, "stranger: "+url, a, 401, 403)
	}
	// A role for the stranger's object id does not help either: it is not a principal of this tenant.
	a := w.send(t, harness.Call{Method: http.MethodPut, URL: w.URL("management", w.vault+"/providers/Microsoft.Authorization/roleAssignments/7a8e6c1e-7b1f-4d0c-9a55-0d7c0a3a5b12?api-version="+harness.VersionRole),
		As: w.Admin, Body: w.AssignmentBody(harness.RoleVaultAdministrator, stranger)})
	refused(t, "assigning a role to the stranger", a, 400)
	refused(t, "stranger with an assignment", w.send(t, harness.Call{Method: http.MethodGet, URL: w.secretURL("canary"), As: stranger}), 401, 403)

	// The client's id of this tenant at the other tenant's endpoint, and the other way round.
	for what, p := range map[string]*harness.Principal{
		"own client in the other tenant": {Tenant: stranger.Tenant, AppID: w.Admin.AppID, Secret: w.Admin.Secret},
		"stranger's client in ours":      {Tenant: w.Admin.Tenant, AppID: stranger.AppID, Secret: stranger.Secret},
		"no such tenant":                 {Tenant: "11111111-2222-4333-8444-555555555555", AppID: w.Admin.AppID, Secret: w.Admin.Secret},
	} {
		refused(t, what, w.signIn(t, p), 400, 401)
	}
	wrongAudience(t, w)
}

// wrongAudience sends each plane's good token to the other planes.
func wrongAudience(t *testing.T, w *world) {
	targets := map[string]string{
		"management": w.URL("management", w.group+"?api-version=2021-04-01"), "vault": w.secretURL("canary"),
		"storage": w.URL(w.blobHost, "/closed/secret.csv"), "graph": w.URL("graph", "/v1.0/applications"),
	}
	for from, audience := range map[string]string{"management": "https://management.azure.com", "vault": w.URL("vault", ""), "storage": "https://storage.azure.com", "graph": w.URL("graph", "/")} {
		token, err := w.Admin.Token(t.Context(), audience)
		if err != nil {
			t.Fatal(err)
		}
		for to, url := range targets {
			a := w.send(t, harness.Call{Method: http.MethodGet, URL: url, Token: token})
			if want := map[bool]int{true: 200, false: 401}[from == to]; a.Status != want {
				t.Errorf("a token for %s at %s = %d, want %d", from, to, a.Status, want)
			}
		}
	}
}

// trustBySource: a request was trusted because it came from a trusted service's addresses (Azure service tags, Tenable
// 2024). Where a request comes from must never make anybody of it.
func trustBySource(t *testing.T, w *world) {
	_, locked := w.NewVault(t, w.group, map[string]any{"networkAcls": map[string]any{"defaultAction": "Deny", "bypass": "AzureServices"}})
	_, private := w.NewVault(t, w.group, map[string]any{"publicNetworkAccess": "Disabled"})
	claims := http.Header{}
	for name, value := range map[string]string{
		"X-Forwarded-For": "127.0.0.1", "Forwarded": "for=127.0.0.1;proto=https", "X-Real-Ip": "127.0.0.1", "X-Azure-Socketip": "127.0.0.1", "X-Azure-Clientip": "127.0.0.1",
		"X-Azure-Fdid": "22222222-2222-4222-8222-222222222222", "X-Ms-Service-Tag": "AzureMachineLearning", "X-Ms-Trusted-Service": "true", "X-Ms-Client-Principal-Id": w.Admin.ObjectID,
		"X-Ms-Client-Principal-Name": "admin", "X-Ms-Client-Object-Id": w.Admin.ObjectID, "X-Ms-Private-Endpoint": "pe1", "X-Original-Host": "169.254.169.254", "Metadata": "true",
		"X-Envoy-Internal": "true", "Via": "1.1 management." + w.Domain, "X-Ssl-Client-Verify": "SUCCESS", "X-Forwarded-Client-Cert": "By=spiffe://casemate",
	} {
		claims.Set(name, value)
	}
	for _, host := range []string{w.vaultHost, locked, private} {
		url := w.URL(host, "/secrets/canary?api-version=7.4")
		refused(t, "no token but trusted headers at "+host, w.send(t, harness.Call{Method: http.MethodGet, URL: url, Header: claims}), 401)
		refused(t, "no role but trusted headers at "+host, w.send(t, harness.Call{Method: http.MethodGet, URL: url, Header: claims, As: w.nobody}), 403)
		if host != w.vaultHost {
			refused(t, "right role from outside at "+host, w.send(t, harness.Call{Method: http.MethodGet, URL: url, Header: claims, As: w.Admin}), 403)
		}
	}
	for _, path := range []string{"/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://vault.azure.net", "/msi/token?api-version=2019-08-01&resource=https://vault.azure.net"} {
		for _, host := range []string{"management", "login", "graph"} {
			a := w.send(t, harness.Call{Method: http.MethodGet, URL: w.URL(host, path), Header: claims})
			if a.Status < 400 || strings.Contains(string(a.Body), "access_token") {
				t.Errorf("instance metadata from outside at %s: %v", host, a)
			}
		}
	}
}

// secondWayIn: routes beside the checked ones needed no token (CVE-2026-0545, CVE-2026-2652). The walker in cmd/casemate
// visits every row; here are the ways around rows.
func secondWayIn(t *testing.T, w *world) {
	hosts := []string{"management", "graph", w.vaultHost, w.blobHost}
	for _, host := range hosts {
		for _, path := range []string{"/debug/pprof/", "/debug/vars", "/metrics", "/api/2.0/mlflow/experiments/search", "/ajax-api/2.0/jobs", "/v1/traces", "/graphql", "/admin", "/.env", "/server-status", "/swagger.json", "/v2/_catalog", "/actuator/env", "/healthz/../subscriptions"} {
			for _, method := range []string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodOptions, "TRACE", "CONNECT", "PROPFIND", "get"} {
				a, err := w.Send(t.Context(), harness.Call{Method: method, URL: w.URL(host, path)})
				if err != nil {
					continue // net/http's own refusal of the method on either side
				}
				if a.Status < 400 || a.Status >= 500 && a.Status != 501 {
					t.Errorf("%s %s%s without a token = %v", method, host, path, a)
				}
			}
		}
	}
	for _, header := range []http.Header{
		{"X-Http-Method-Override": {"GET"}}, {"X-Http-Method": {"GET"}}, {"X-Method-Override": {"GET"}},
		{"Upgrade": {"h2c"}, "Connection": {"Upgrade, HTTP2-Settings"}, "Http2-Settings": {"AAMAAABkAARAAAAAAAIAAAAA"}},
		{"Upgrade": {"websocket"}, "Connection": {"Upgrade"}, "Sec-Websocket-Version": {"13"}, "Sec-Websocket-Key": {"dGhlIHNhbXBsZSBub25jZQ=="}},
		{"Expect": {"100-continue"}}, {"Range": {"bytes=0-"}},
	} {
		for _, c := range []harness.Call{{Method: http.MethodGet, URL: w.secretURL("canary")}, {Method: http.MethodPost, URL: w.secretURL("canary")}, {Method: http.MethodGet, URL: w.URL(w.blobHost, "/closed/secret.csv")}} {
			c.Header = header
			a := w.send(t, c)
			refused(t, fmt.Sprint(c.Method, " ", c.URL, " ", header), a, 400, 401, 403, 404, 405, 417)
		}
	}
	// Every way to hand a token over but the one.
	token, err := w.Admin.Token(t.Context(), w.URL("vault", ""))
	if err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]harness.Call{
		"query":             {URL: w.secretURL("canary") + "&access_token=" + token},
		"query token":       {URL: w.secretURL("canary") + "&token=" + token},
		"cookie":            {URL: w.secretURL("canary"), Header: http.Header{"Cookie": {"token=" + token + "; Authorization=Bearer%20" + token}}},
		"basic":             {URL: w.secretURL("canary"), Header: http.Header{"Authorization": {"Basic " + token}}},
		"no scheme":         {URL: w.secretURL("canary"), Header: http.Header{"Authorization": {token}}},
		"two headers":       {URL: w.secretURL("canary"), Header: http.Header{"Authorization": {"Bearer " + token, "Bearer " + token}}},
		"two in one header": {URL: w.secretURL("canary"), Header: http.Header{"Authorization": {"Bearer " + token + ", Bearer " + token}}},
		"other header":      {URL: w.secretURL("canary"), Header: http.Header{"X-Authorization": {"Bearer " + token}, "Proxy-Authorization": {"Bearer " + token}}},
	} {
		c.Method = http.MethodGet
		refused(t, "token by "+what, w.send(t, c), 401)
	}
}
