package registry

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"

	"casemate.dev/resource"
)

func unauthorized(format string, args ...any) *resource.Error {
	return resource.Errorf(http.StatusUnauthorized, "UNAUTHORIZED", format, args...)
}

// Authenticate finds the caller of a request to the registry plane: by a registry token, or by a directory token itself.
// The token rows read their own credentials. It is the gateway's authenticate stage.
func (s *Service) Authenticate(r *resource.Request) (resource.Caller, error) {
	scheme, raw, _ := strings.Cut(r.Request.Header.Get("Authorization"), " ")
	raw = strings.TrimSpace(raw)
	switch {
	case scheme == "" || strings.HasPrefix(r.URL.Path, "/oauth2/"):
		return resource.Caller{}, nil
	case !strings.EqualFold(scheme, "Bearer"):
		return resource.Caller{}, unauthorized("The registry takes bearer tokens. Exchange user name and password for one at the address in the WWW-Authenticate header.")
	}
	return s.callerOf(r.Context(), raw, s.audience(r))
}

// audience names the registry that a request is for, without port: the same one is reached by several.
func (s *Service) audience(r *resource.Request) string {
	return strings.ToLower(r.Host + ".azurecr." + s.cfg.Domain)
}

// callerOf is who a bearer token speaks for, now.
func (s *Service) callerOf(ctx context.Context, raw, audience string) (resource.Caller, error) {
	if !s.tokens.mine(raw) {
		return s.cfg.Principals.Verify(ctx, raw, s.cfg.Audience)
	}
	c, err := s.tokens.read(raw, audience, useAccess)
	if err != nil {
		return resource.Caller{}, unauthorized("The registry token is not accepted: %s.", err)
	}
	return s.standing(ctx, c)
}

// standing looks up what a registry token may not be believed for.
func (s *Service) standing(ctx context.Context, c *claims) (resource.Caller, error) {
	if len(c.Proof) > 0 {
		raw, err := s.tokens.unseal(c)
		if err != nil {
			return resource.Caller{}, unauthorized("The registry token is not accepted: %s.", err)
		}
		caller, err := s.cfg.Principals.Verify(ctx, raw, s.cfg.Audience)
		if err != nil {
			return resource.Caller{}, err
		}
		if caller.Object != c.Subject {
			return resource.Caller{}, unauthorized("The registry token belongs to another principal than its proof.")
		}
		caller.TokenID = c.ID
		return caller, nil
	}
	caller, err := s.cfg.Principals.CallerOf(ctx, c.Subject)
	if err != nil {
		return resource.Caller{}, unauthorized("The principal of the registry token does not exist any more or is disabled.").WithCause(err)
	}
	caller.Audience, caller.TokenID = c.Audience, c.ID
	caller.Node, caller.Run, caller.OnBehalfOf = c.Node, c.Run, c.OnBehalfOf
	return caller, nil
}

// AccessToken makes a short-lived access token for acting in process as a caller on one registry; label is the registry's
// host label. The caller's principal is looked up again at each use.
func (s *Service) AccessToken(c resource.Caller, label string) (token string, expires time.Time, err error) {
	if c.Anonymous() {
		return "", time.Time{}, unauthorized("Nobody gets no token.")
	}
	now := s.cfg.Clock()
	expires = now.Add(actingLife)
	token, err = s.tokens.sign(&claims{Issuer: issuer, Audience: strings.ToLower(label + ".azurecr." + s.cfg.Domain), Subject: c.Object, ID: newID(),
		Use: useAccess, IssuedAt: now.Unix(), NotBefore: now.Unix(), Expires: expires.Unix(), Node: c.Node, Run: c.Run, OnBehalfOf: c.OnBehalfOf})
	return token, expires, err
}

// Challenge is the WWW-Authenticate value of a 401: where a token is to be had, for which service and scope (Docker Registry
// v2 authentication, "Requesting a Token"). The host is the one that the client used, which the gateway has recognised: the
// same registry has other ports at private endpoints.
func (s *Service) Challenge(r *resource.Request) string {
	if strings.HasPrefix(r.URL.Path, "/oauth2/") {
		return ""
	}
	host := r.Request.Host
	if strings.ContainsAny(host, "\"\\ \t\r\n") {
		host = s.audience(r)
	}
	out := fmt.Sprintf(`Bearer realm="https://%s/oauth2/token",service="%s"`, host, host)
	if scope := scopeOf(r); scope != "" {
		out += `,scope="` + scope + `"`
	}
	if r.Request.Header.Get("Authorization") != "" {
		out += `,error="invalid_token"`
	}
	return out
}

// scopeOf names what a request needs in the words of Docker's token scopes; clients repeat it to the token endpoint.
func scopeOf(r *resource.Request) string {
	rest, below := strings.CutPrefix(r.URL.Path, "/v2/")
	if !below || rest == "" {
		return ""
	}
	if rest == "_catalog" {
		return "registry:catalog:*"
	}
	t, ok := parse(rest)
	if !ok || strings.ContainsAny(t.name, "\"\\") {
		return ""
	}
	switch {
	case r.Method == http.MethodDelete && t.kind != kindUpload:
		return "repository:" + t.name + ":delete"
	case r.Method == http.MethodGet || r.Method == http.MethodHead:
		return "repository:" + t.name + ":pull"
	}
	return "repository:" + t.name + ":pull,push"
}
