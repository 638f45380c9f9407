package identity

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"casemate.dev/resource"
)

// Routes are the rows of the token service, the directory and the instance metadata service.
func (s *Service) Routes() []resource.Route {
	return append(append(s.loginRoutes(), s.graphRoutes()...), s.nodeRoutes()...)
}

const (
	openToken     = "the client authenticates itself in the request (RFC 6749 §2.3)"
	openDiscovery = "public metadata (OpenID Connect Discovery 1.0 §4)"
)

func (s *Service) loginRoutes() []resource.Route {
	row := func(name, method, pattern, open string, audit resource.Category, h resource.Handler) resource.Route {
		body := int64(-1)
		if method == http.MethodPost {
			body = 64 << 10
		}
		return resource.Route{Name: name, Plane: resource.PlaneLogin, Method: method, Pattern: pattern, Versions: resource.Unversioned(),
			Open: open, Origin: resource.OriginAnywhere, Body: body, Timeout: 30 * time.Second, Audit: audit, Handler: h}
	}
	const get, post = http.MethodGet, http.MethodPost
	const token, probe = resource.AuditSecret, resource.AuditProbe
	return []resource.Route{
		row("Token_V2", post, "/{tenant}/oauth2/v2.0/token", openToken, token, s.tokenHandler(dialectV2)),
		row("Token_V1", post, "/{tenant}/oauth2/token", openToken, token, s.tokenHandler(dialectV1)),
		row("Token_ADFS", post, "/adfs/oauth2/token", openToken, token, s.tokenHandler(dialectADFS)),
		row("Discovery_V2", get, "/{tenant}/v2.0/.well-known/openid-configuration", openDiscovery, probe, s.discoveryHandler(dialectV2)),
		row("Discovery_V1", get, "/{tenant}/.well-known/openid-configuration", openDiscovery, probe, s.discoveryHandler(dialectV1)),
		row("Discovery_ADFS", get, "/adfs/.well-known/openid-configuration", openDiscovery, probe, s.discoveryHandler(dialectADFS)),
		row("Keys_V2", get, "/{tenant}/discovery/v2.0/keys", openDiscovery, probe, s.jwks),
		row("Keys_V1", get, "/{tenant}/discovery/keys", openDiscovery, probe, s.jwks),
		row("Keys_ADFS", get, "/adfs/discovery/keys", openDiscovery, probe, s.jwks),
		row("Instance_Discovery", get, "/common/discovery/instance", openDiscovery, probe, s.instanceDiscovery),
		row("Authorize_V2", get, "/{tenant}/oauth2/v2.0/authorize", openToken, probe, noPeople),
		row("Authorize_V1", get, "/{tenant}/oauth2/authorize", openToken, probe, noPeople),
		row("DeviceCode_V2", post, "/{tenant}/oauth2/v2.0/devicecode", openToken, probe, noPeople),
		row("DeviceCode_V1", post, "/{tenant}/oauth2/devicecode", openToken, probe, noPeople),
	}
}

// noPeople answers the ways in which people sign in.
func noPeople(http.ResponseWriter, *resource.Request) error {
	return oauth(http.StatusBadRequest, "unsupported_response_type",
		"AADSTS700054: Signing in of people is not supported here; use the client credentials of a service principal.")
}

// oauth is an error of RFC 6749 §5.2: Code is the error, Message its description.
func oauth(status int, code, format string, args ...any) *resource.Error {
	e := resource.Errorf(status, code, format, args...)
	e.Header = noStore()
	return e
}

func noStore() http.Header {
	return http.Header{"Cache-Control": {"no-store"}, "Pragma": {"no-cache"}}
}

func writeJSON(w http.ResponseWriter, status int, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encoding answer: %w", err)
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	_, err = w.Write(b)
	return err
}

// tokenHandler is the token endpoint (RFC 6749 §3.2, §4.4).
func (s *Service) tokenHandler(d dialect) resource.Handler {
	return func(w http.ResponseWriter, r *resource.Request) error {
		form, err := readForm(r)
		if err != nil {
			return err
		}
		id, plain, err := clientCredentials(r, form)
		if err != nil {
			return err
		}
		r.Remember("client", clip(id))
		d := d
		if strings.EqualFold(r.Vars["tenant"], "adfs") {
			d = dialectADFS
		}
		if err := checkGrantType(form); err != nil {
			return err
		}
		principal, credential, err := s.authenticateClient(d, r.Vars["tenant"], id, plain)
		if err != nil {
			return err
		}
		r.Remember("principal", principal.ID)
		audience, err := requestedAudience(form)
		if err != nil {
			return err
		}
		if s.urls.planeOf(audience) == "" {
			return oauth(http.StatusBadRequest, "invalid_resource", "AADSTS500011: The resource principal named %s was not found in the tenant %s. This installation has no service of that name.", clip(audience), principal.Tenant)
		}
		r.Remember("audience", audience)
		t, err := s.issue(grant{principal: principal, credential: credential, audience: audience, dialect: d, lifetime: tokenLifetime})
		if err != nil {
			return err
		}
		return s.writeToken(w, d, t)
	}
}

func (s *Service) writeToken(w http.ResponseWriter, d dialect, t Token) error {
	for k, v := range noStore() {
		w.Header()[k] = v
	}
	seconds := int64(t.Expires.Sub(s.cfg.Clock())/time.Second) - 1 // a client must not use it in its last second
	if d == dialectV2 {
		return writeJSON(w, http.StatusOK, map[string]any{"token_type": "Bearer", "expires_in": seconds, "ext_expires_in": seconds, "access_token": t.Raw})
	}
	body := map[string]any{"token_type": "Bearer", "access_token": t.Raw, "resource": t.Audience,
		"expires_on": strconv.FormatInt(t.Expires.Unix(), 10), "not_before": strconv.FormatInt(t.NotBefore.Unix(), 10)}
	body["expires_in"], body["ext_expires_in"] = any(seconds), any(seconds)
	if d == dialectV1 { // Entra's first version writes all numbers as strings
		body["expires_in"], body["ext_expires_in"] = strconv.FormatInt(seconds, 10), strconv.FormatInt(seconds, 10)
	}
	return writeJSON(w, http.StatusOK, body)
}

// readForm reads the body only: parameters in the URL do not count, so that no secret needs to stand in one.
func readForm(r *resource.Request) (url.Values, error) {
	body, err := r.ReadBody()
	if err != nil {
		return nil, err
	}
	form, err := url.ParseQuery(string(body))
	if err != nil {
		return nil, oauth(http.StatusBadRequest, "invalid_request", "AADSTS900561: The request body is not a form.")
	}
	for name, values := range form {
		if len(values) > 1 {
			return nil, oauth(http.StatusBadRequest, "invalid_request", "AADSTS9002313: The parameter '%s' is given more than once.", clip(name))
		}
	}
	return form, nil
}

func checkGrantType(form url.Values) error {
	switch grant := form.Get("grant_type"); grant {
	case "client_credentials":
		return nil
	case "":
		return oauth(http.StatusBadRequest, "invalid_request", "AADSTS900144: The request body must contain the following parameter: 'grant_type'.")
	default:
		return oauth(http.StatusBadRequest, "unsupported_grant_type", "AADSTS70003: The grant type '%s' is not supported; use client_credentials.", clip(grant))
	}
}

// clientCredentials takes the client's id and secret from the form or from Basic authentication, not from both
// (RFC 6749 §2.3).
func clientCredentials(r *resource.Request, form url.Values) (id, plain string, err error) {
	id, plain = form.Get("client_id"), form.Get("client_secret")
	if user, pass, ok := r.BasicAuth(); ok {
		u, err1 := url.QueryUnescape(user)
		p, err2 := url.QueryUnescape(pass)
		if err1 != nil || err2 != nil || plain != "" || (id != "" && id != u) {
			return "", "", oauth(http.StatusBadRequest, "invalid_request", "AADSTS9002313: The client authenticates in more than one way.")
		}
		id, plain = u, p
	}
	switch {
	case id == "":
		return "", "", oauth(http.StatusBadRequest, "invalid_request", "AADSTS900144: The request body must contain the following parameter: 'client_id'.")
	case form.Has("client_assertion"):
		return "", "", oauth(http.StatusUnauthorized, "invalid_client", "AADSTS700027: Client assertions (certificates, federated credentials) are not supported here; use a client secret.")
	case plain == "":
		return "", "", oauth(http.StatusUnauthorized, "invalid_client", "AADSTS7000218: The request body must contain the following parameter: 'client_assertion' or 'client_secret'.")
	}
	return id, plain, nil
}

// authenticateClient finds the service principal of a client and the secret that it has shown.
func (s *Service) authenticateClient(d dialect, tenant, client, plain string) (*object, string, error) {
	dir := s.dir.Load()
	client = strings.ToLower(client)
	o := dir.principals[client]
	if d != dialectADFS {
		t := dir.tenants[strings.ToLower(tenant)]
		if t == nil {
			return nil, "", oauth(http.StatusBadRequest, "invalid_request", "AADSTS90002: Tenant '%s' not found. Check to make sure you have the correct tenant ID.", clip(tenant))
		}
		if o != nil && o.Tenant != t.ID {
			o = nil
		}
	}
	if o == nil || o.Kind != kindServicePrincipal {
		return nil, "", oauth(http.StatusBadRequest, "unauthorized_client", "AADSTS700016: Application with identifier '%s' was not found in the directory '%s'.", clip(client), clip(tenant))
	}
	app := dir.applications[client]
	candidates := o.Secrets
	if app != nil {
		candidates = append(candidates[:len(candidates):len(candidates)], app.Secrets...)
	}
	for _, sec := range candidates {
		if !sec.is(plain) {
			continue
		}
		switch {
		case sec.expired(s.cfg.Clock()):
			return nil, "", oauth(http.StatusUnauthorized, "invalid_client", "AADSTS7000222: The provided client secret keys for app '%s' are expired.", client)
		case o.Disabled, app != nil && app.Disabled:
			return nil, "", oauth(http.StatusUnauthorized, "unauthorized_client", "AADSTS7000112: Application '%s'(%s) is disabled.", client, o.Name)
		}
		return o, sec.ID, nil
	}
	return nil, "", oauth(http.StatusUnauthorized, "invalid_client", "AADSTS7000215: Invalid client secret provided. Ensure the secret being sent in the request is the client secret value, not the client secret ID, for a secret added to app '%s'.", client)
}

const defaultScope = "/.default"

// requestedAudience reads scope, of which one entry ends in /.default, or the older resource parameter. A slash before
// /.default belongs to the audience.
func requestedAudience(form url.Values) (string, error) {
	scope, res := form.Get("scope"), form.Get("resource")
	if scope == "" && res != "" {
		return res, nil
	}
	if scope == "" {
		return "", oauth(http.StatusBadRequest, "invalid_request", "AADSTS900144: The request body must contain the following parameter: 'scope'.")
	}
	audience := ""
	for _, one := range strings.Fields(scope) {
		switch {
		case one == "openid", one == "offline_access", one == "profile", one == "email":
		case strings.HasSuffix(one, defaultScope) && len(one) > len(defaultScope) && audience == "":
			audience = strings.TrimSuffix(one, defaultScope)
		default:
			return "", oauth(http.StatusBadRequest, "invalid_scope", "AADSTS70011: The provided value for the input parameter 'scope' is not valid. The scope %s is not valid: client credentials ask for one scope that ends in /.default.", clip(one))
		}
	}
	if audience == "" {
		// AD FS clients name the resource beside scopes that say nothing.
		if res != "" {
			return res, nil
		}
		return "", oauth(http.StatusBadRequest, "invalid_scope", "AADSTS70011: The provided value for the input parameter 'scope' is not valid: one scope must end in /.default.")
	}
	return audience, nil
}

// clip keeps what a client sent readable in messages.
func clip(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < 0x20 || r == 0x7f {
			return -1
		}
		return r
	}, s)
	if len(s) > 100 {
		return s[:100] + "…"
	}
	return s
}
