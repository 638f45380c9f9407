package identity

import (
	"net/http"
	"net/url"
	"strings"

	"casemate.dev/resource"
)

// tenantInPath returns the tenant of a discovery URL: a tenant's id, "adfs", or one of the words for "any".
func (s *Service) tenantInPath(r *resource.Request, d dialect) (string, dialect, error) {
	t := strings.ToLower(r.Vars["tenant"])
	switch {
	case d == dialectADFS, t == "adfs":
		return "adfs", dialectADFS, nil
	case t == "common", t == "organizations":
		return t, d, nil
	case s.dir.Load().tenants[t] == nil:
		return "", d, oauth(http.StatusBadRequest, "invalid_tenant", "AADSTS90002: Tenant '%s' not found. Check to make sure you have the correct tenant ID.", clip(t))
	}
	return t, d, nil
}

// discoveryHandler answers OpenID Connect Discovery 1.0 §4.2. The issuer's host is the host of the endpoints: clients
// refuse anything else.
func (s *Service) discoveryHandler(d dialect) resource.Handler {
	return func(w http.ResponseWriter, r *resource.Request) error {
		tenant, d, err := s.tenantInPath(r, d)
		if err != nil {
			return err
		}
		base := s.urls.login + "/" + tenant
		issuerTenant := tenant
		if tenant == "common" || tenant == "organizations" {
			issuerTenant = "{tenantid}"
		}
		oauth2, keys := base+"/oauth2", base+"/discovery/keys"
		if d == dialectV2 {
			oauth2, keys = base+"/oauth2/v2.0", base+"/discovery/v2.0/keys"
		}
		return writeJSON(w, http.StatusOK, map[string]any{
			"issuer": s.urls.issuer(d, issuerTenant), "token_endpoint": oauth2 + "/token",
			"authorization_endpoint": oauth2 + "/authorize", "device_authorization_endpoint": oauth2 + "/devicecode",
			"jwks_uri":                              keys,
			"token_endpoint_auth_methods_supported": []string{"client_secret_post", "client_secret_basic"},
			"grant_types_supported":                 []string{"client_credentials"},
			"response_types_supported":              []string{"code"}, "response_modes_supported": []string{"query"},
			"subject_types_supported": []string{"public"}, "id_token_signing_alg_values_supported": []string{algorithm},
			"scopes_supported":                []string{"openid", "profile", "email", "offline_access"},
			"claims_supported":                []string{"aud", "iss", "iat", "nbf", "exp", "sub", "oid", "tid", "appid", "azp", "uti", "ver"},
			"tenant_region_scope":             nil,
			"request_uri_parameter_supported": false,
		})
	}
}

// jwks publishes all keys that verify, the one that will sign next included (RFC 7517 §5).
func (s *Service) jwks(w http.ResponseWriter, r *resource.Request) error {
	if _, _, err := s.tenantInPath(r, dialectV2); err != nil && r.Vars["tenant"] != "" {
		return err
	}
	keys := []map[string]string{}
	for _, k := range s.keys.Load().list {
		keys = append(keys, k.jwk())
	}
	w.Header().Set("Cache-Control", "max-age=3600")
	return writeJSON(w, http.StatusOK, map[string]any{"keys": keys})
}

// instanceDiscovery tells a client that it may trust this authority, when it asks about this one (or about Microsoft's
// own, in networks whose names lead here). Any other authority is unknown.
func (s *Service) instanceDiscovery(w http.ResponseWriter, r *resource.Request) error {
	asked, err := url.Parse(r.URL.Query().Get("authorization_endpoint"))
	host, _, _ := strings.Cut(s.urls.host, ":")
	if err != nil || asked.Scheme != "https" || (!strings.EqualFold(asked.Hostname(), host) && asked.Host != "login.microsoftonline.com") {
		return oauth(http.StatusBadRequest, "invalid_instance", "AADSTS50049: Unknown or invalid instance.")
	}
	tenant, _, _ := strings.Cut(strings.TrimPrefix(asked.Path, "/"), "/")
	if d := s.dir.Load(); tenant != "common" && tenant != "organizations" && d.tenants[strings.ToLower(tenant)] == nil {
		tenant = d.home
	}
	aliases := []string{s.urls.host}
	if host != s.urls.host {
		aliases = append(aliases, host)
	}
	if asked.Host == "login.microsoftonline.com" {
		aliases = append(aliases, asked.Host)
	}
	return writeJSON(w, http.StatusOK, map[string]any{
		"tenant_discovery_endpoint": s.urls.login + "/" + tenant + "/v2.0/.well-known/openid-configuration",
		"api-version":               "1.1",
		"metadata":                  []any{map[string]any{"preferred_network": s.urls.host, "preferred_cache": s.urls.host, "aliases": aliases}},
	})
}
