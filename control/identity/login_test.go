package identity_test

import (
	"context"
	"encoding/base64"
	"errors"
	"net/url"
	"strings"
	"testing"

	"casemate.dev/control/identity"
	"casemate.dev/resource"
)

func TestRowsAreComplete(t *testing.T) {
	names := map[string]bool{}
	for _, row := range newWorld(t).Routes() {
		if err := row.Validate(); err != nil {
			t.Error(err)
		}
		key := string(row.Plane) + " " + row.Name
		if names[key] {
			t.Errorf("row %s stands twice", key)
		}
		names[key] = true
	}
}

func TestTokenEndpoints(t *testing.T) {
	w := newWorld(t)
	a := w.admin
	cred := []string{"grant_type", "client_credentials", "client_id", a.ClientID, "client_secret", a.Secret}
	with := func(pairs ...string) url.Values { return form(append(append([]string(nil), cred...), pairs...)...) }
	basic := map[string]string{"Authorization": "Basic " + base64.StdEncoding.EncodeToString([]byte(a.ClientID+":"+a.Secret))}
	v2, v1, adfs := "/"+a.TenantID+"/oauth2/v2.0/token", "/"+a.TenantID+"/oauth2/token", "/adfs/oauth2/token"
	unknown := "11111111-2222-4333-8444-555555555555"
	tests := []struct {
		name, path string
		body       url.Values
		header     map[string]string
		audience   string // of the token; "": refused
		failure    string // prefix of "status code message"
	}{
		{"v2", v2, with("scope", armAudience+"/.default"), nil, armAudience, ""},
		{"v2 slash", v2, with("scope", armAudience+"//.default"), nil, armAudience + "/", ""},
		{"v2 several scopes", v2, with("scope", "openid https://storage.azure.com/.default offline_access profile"), nil, "https://storage.azure.com", ""},
		{"v2 capital tenant", strings.ToUpper(a.TenantID), nil, nil, "", ""},
		{"v1", v1, with("resource", "https://management.core.windows.net/"), nil, "https://management.core.windows.net/", ""},
		{"adfs", adfs, with("scope", "https://vault.casemate.localhost:8443/.default"), nil, "https://vault.casemate.localhost:8443", ""},
		{"adfs in the tenant's place", "/adfs/oauth2/v2.0/token", with("scope", "https://graph.microsoft.com/.default"), nil, "https://graph.microsoft.com", ""},
		{"basic", v2, form("grant_type", "client_credentials", "scope", "https://ml.azure.com/.default"), basic, "https://ml.azure.com", ""},
		{"account's own audience", v2, with("scope", "https://acct1.blob.core.casemate.localhost:8443/.default"), nil, "https://acct1.blob.core.casemate.localhost:8443", ""},
		{"claims ignored", v2, with("scope", armAudience+"/.default", "claims", `{"access_token":{}}`, "client_info", "1"), nil, armAudience, ""},
		{"basic and form", v2, with("scope", armAudience+"/.default"), basic, "", "400 invalid_request AADSTS9002313"},
		{"wrong secret", v2, form("grant_type", "client_credentials", "client_id", a.ClientID, "client_secret", a.Secret+"x", "scope", armAudience+"/.default"), nil, "", "401 invalid_client AADSTS7000215"},
		{"empty secret", v2, form("grant_type", "client_credentials", "client_id", a.ClientID, "scope", armAudience+"/.default"), nil, "", "401 invalid_client AADSTS7000218"},
		{"assertion", v2, form("grant_type", "client_credentials", "client_id", a.ClientID, "client_assertion", "x"), nil, "", "401 invalid_client AADSTS700027"},
		{"no client", v2, form("grant_type", "client_credentials"), nil, "", "400 invalid_request AADSTS900144"},
		{"unknown client", v2, form("grant_type", "client_credentials", "client_id", unknown, "client_secret", "x"), nil, "", "400 unauthorized_client AADSTS700016"},
		{"unknown tenant", "/" + unknown + "/oauth2/v2.0/token", with("scope", armAudience+"/.default"), nil, "", "400 invalid_request AADSTS90002"},
		{"no scope", v2, with(), nil, "", "400 invalid_request AADSTS900144"},
		{"scope without default", v2, with("scope", armAudience+"/user_impersonation"), nil, "", "400 invalid_scope AADSTS70011"},
		{"two resources", v2, with("scope", armAudience+"/.default https://storage.azure.com/.default"), nil, "", "400 invalid_scope AADSTS70011"},
		{"only default", v2, with("scope", "/.default"), nil, "", "400 invalid_scope AADSTS70011"},
		{"unknown resource", v2, with("scope", "https://example.org/.default"), nil, "", "400 invalid_resource AADSTS500011"},
		{"suffix is not enough", v2, with("scope", "https://evil.example/x.blob.core.casemate.localhost:8443/.default"), nil, "", "400 invalid_resource AADSTS500011"},
		{"http resource", v2, with("scope", "http://management.azure.com/.default"), nil, "", "400 invalid_resource AADSTS500011"},
		{"grant type", v2, form("grant_type", "password", "client_id", a.ClientID, "client_secret", a.Secret), nil, "", "400 unsupported_grant_type AADSTS70003"},
		{"parameter twice", v2, url.Values{"client_id": {a.ClientID, a.ClientID}}, nil, "", "400 invalid_request AADSTS9002313"},
	}
	for _, tt := range tests {
		if tt.body == nil {
			tt.path, tt.body, tt.audience = "/"+tt.path+"/oauth2/v2.0/token", with("scope", armAudience+"/.default"), armAudience
		}
		t.Run(tt.name, func(t *testing.T) {
			_, out, err := w.do(resource.PlaneLogin, request{method: "POST", url: tt.path, body: tt.body, header: tt.header})
			if tt.audience == "" {
				if err == nil || !strings.HasPrefix(describe(err), tt.failure) {
					t.Fatalf("got %q, want %q", describe(err), tt.failure)
				}
				if strings.Contains(describe(err), a.Secret) {
					t.Error("the message repeats the secret")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			c, err := w.Verify(t.Context(), out["access_token"].(string), func(aud string) bool { return aud == tt.audience })
			if err != nil {
				t.Fatal(err)
			}
			if c.Object != a.ObjectID || c.App != a.ClientID || c.Tenant != a.TenantID || c.Kind != resource.KindServicePrincipal || c.TokenID == "" {
				t.Errorf("caller = %+v", c)
			}
		})
	}
}

func TestDiscovery(t *testing.T) {
	w := newWorld(t)
	login := "https://login.casemate.localhost:8443/"
	tests := []struct{ path, issuer, token string }{
		{"/" + w.admin.TenantID + "/v2.0/.well-known/openid-configuration", login + w.admin.TenantID + "/v2.0", login + w.admin.TenantID + "/oauth2/v2.0/token"},
		{"/" + w.admin.TenantID + "/.well-known/openid-configuration", login + w.admin.TenantID + "/", login + w.admin.TenantID + "/oauth2/token"},
		{"/adfs/.well-known/openid-configuration", login + "adfs", login + "adfs/oauth2/token"},
		{"/common/v2.0/.well-known/openid-configuration", login + "{tenantid}/v2.0", login + "common/oauth2/v2.0/token"},
	}
	for _, tt := range tests {
		_, out, err := w.do(resource.PlaneLogin, request{method: "GET", url: tt.path})
		if err != nil {
			t.Fatal(err)
		}
		if out["issuer"] != tt.issuer || out["token_endpoint"] != tt.token {
			t.Errorf("%s: issuer %v, token endpoint %v", tt.path, out["issuer"], out["token_endpoint"])
		}
		u, _ := url.Parse(out["jwks_uri"].(string))
		_, keys, err := w.do(resource.PlaneLogin, request{method: "GET", url: u.Path})
		if err != nil {
			if strings.HasPrefix(tt.path, "/common") {
				continue
			}
			t.Fatal(err)
		}
		if n := len(keys["keys"].([]any)); n != 1 {
			t.Errorf("%s: %d keys", u.Path, n)
		}
	}
	if _, _, err := w.do(resource.PlaneLogin, request{method: "GET", url: "/nobody/v2.0/.well-known/openid-configuration"}); codeOf(err) != "invalid_tenant" {
		t.Errorf("unknown tenant: %v", err)
	}
	for endpoint, want := range map[string]string{
		"https://login.casemate.localhost/" + w.admin.TenantID + "/oauth2/v2.0/authorize": "",
		"https://login.microsoftonline.com/common/oauth2/authorize":                       "",
		"https://login.example.org/common/oauth2/authorize":                               "invalid_instance",
		"": "invalid_instance",
	} {
		_, _, err := w.do(resource.PlaneLogin, request{method: "GET", url: "/common/discovery/instance?authorization_endpoint=" + url.QueryEscape(endpoint)})
		if codeOf(err) != want {
			t.Errorf("instance discovery of %q: %v", endpoint, err)
		}
	}
}

func TestBootstrapOnceAndRestart(t *testing.T) {
	w := newWorld(t)
	admin, token := w.admin, w.token(w.admin, armAudience)
	w.admin = identity.Administrator{}
	w.restart()
	if w.admin != (identity.Administrator{}) {
		t.Fatal("a second start made another administrator")
	}
	if _, err := w.caller(token); err != nil {
		t.Errorf("token after restart: %v", err)
	}
	w.token(admin, armAudience)
}

func TestBootstrapStoresNothingUndelivered(t *testing.T) {
	w := newWorld(t)
	cfg := w.cfg
	cfg.Store = &memory{data: map[string][]byte{}}
	s, err := identity.New(cfg)
	w.must(err)
	lost := errors.New("disk full")
	if _, err := s.Bootstrap(context.Background(), func(identity.Administrator) error { return lost }); !errors.Is(err, lost) {
		t.Fatalf("Bootstrap = %v", err)
	}
	var second identity.Administrator
	created, err := s.Bootstrap(context.Background(), func(a identity.Administrator) error { second = a; return nil })
	if err != nil || !created || second.Secret == "" {
		t.Fatalf("second Bootstrap = %v, %v", created, err)
	}
}

func TestNobodyBeforeBootstrap(t *testing.T) {
	w := newWorld(t)
	s, err := identity.New(w.cfg)
	w.must(err)
	if _, err := s.Verify(t.Context(), w.token(w.admin, armAudience), s.Audience(resource.PlaneManagement)); codeOf(err) != "InvalidAuthenticationToken" {
		t.Errorf("Verify = %v", err)
	}
}

func TestSecretsAreNotStored(t *testing.T) {
	w := newWorld(t)
	a, _, _ := w.application("app")
	for key, v := range w.store.data {
		for _, s := range []string{a.Secret, w.admin.Secret} {
			if strings.Contains(string(v), s) {
				t.Errorf("record %s holds a secret", key)
			}
		}
	}
}
