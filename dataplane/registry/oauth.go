package registry

import (
	"context"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/google/uuid"

	"casemate.dev/resource"
)

// tokenUser is the user name that goes with a token as password ("az acr login --expose-token").
const tokenUser = "00000000-0000-0000-0000-000000000000"

// exchange answers POST /oauth2/exchange: a directory token for a refresh token.
func (s *Service) exchange(w http.ResponseWriter, r *resource.Request) error {
	form, err := readForm(r)
	if err != nil {
		return err
	}
	if grant := form.Get("grant_type"); grant != "access_token" {
		return unsupportedGrant(grant, "access_token")
	}
	if err := s.checkService(r, form.Get("service")); err != nil {
		return err
	}
	raw := form.Get("access_token")
	if raw == "" {
		return badForm("The parameter 'access_token' is required.")
	}
	token, err := s.refreshToken(r, raw)
	if err != nil {
		return err
	}
	return sendToken(w, map[string]any{"refresh_token": token})
}

// refresh answers POST /oauth2/token: a refresh token, or user name and password, for an access token.
func (s *Service) refresh(w http.ResponseWriter, r *resource.Request) error {
	form, err := readForm(r)
	if err != nil {
		return err
	}
	if err := s.checkService(r, form.Get("service")); err != nil {
		return err
	}
	r.Remember("scope", clip(form.Get("scope")))
	var c *claims
	switch grant := form.Get("grant_type"); grant {
	case "refresh_token":
		c, err = s.readToken(r, form.Get("refresh_token"))
	case "password":
		c, err = s.signIn(r, form.Get("username"), form.Get("password"))
	default:
		return unsupportedGrant(grant, "refresh_token")
	}
	if err != nil {
		return err
	}
	return s.sendAccess(w, r, c)
}

// basic answers GET /oauth2/token with user name and password in the Authorization header (docker login).
func (s *Service) basic(w http.ResponseWriter, r *resource.Request) error {
	q := r.URL.Query()
	if err := s.checkService(r, q.Get("service")); err != nil {
		return err
	}
	user, password, ok := r.Request.BasicAuth()
	if !ok {
		return unauthorized("Anonymous pull is not offered. Sign in with a service principal's application id and secret, or with the user name %s and a token.", tokenUser)
	}
	r.Remember("scope", clip(strings.Join(q["scope"], " ")))
	c, err := s.signIn(r, user, password)
	if err != nil {
		return err
	}
	return s.sendAccess(w, r, c)
}

// signIn turns user name and password into the claims of a token.
func (s *Service) signIn(r *resource.Request, user, password string) (*claims, error) {
	if user == tokenUser {
		return s.readToken(r, password)
	}
	if _, err := uuid.Parse(user); err != nil {
		return nil, unauthorized("The user '%s' does not exist: there is no admin account. Sign in with a service principal's application id and secret, or with the user name %s and a token.", clip(user), tokenUser)
	}
	r.Remember("client", user)
	raw, err := s.cfg.Principals.SignIn(r.Context(), user, password, s.cfg.SignInAudience)
	if err != nil {
		return nil, unauthorized("The application id or the secret is wrong, or expired.").WithCause(err)
	}
	return s.prove(r, raw)
}

// readToken accepts any token that may be exchanged for access: ours, or the directory's.
func (s *Service) readToken(r *resource.Request, raw string) (*claims, error) {
	if !s.tokens.mine(raw) {
		return s.prove(r, raw)
	}
	c, err := s.tokens.read(raw, s.audience(r), useRefresh, useAccess)
	if err != nil {
		return nil, unauthorized("The token is not accepted: %s.", err)
	}
	caller, err := s.standing(r.Context(), c)
	if err != nil {
		return nil, err
	}
	return c, onItsNode(r, caller)
}

// prove makes claims of a directory token. They end when it ends.
func (s *Service) prove(r *resource.Request, raw string) (*claims, error) {
	caller, err := s.verify(r.Context(), raw)
	if err != nil {
		return nil, err
	}
	if err := onItsNode(r, caller); err != nil {
		return nil, err
	}
	r.Remember("principal", caller.Object)
	now := s.cfg.Clock()
	c := &claims{Issuer: issuer, Audience: s.audience(r), Subject: caller.Object, ID: newID(), IssuedAt: now.Unix(), NotBefore: now.Unix(),
		Expires: min(now.Add(accessLife).Unix(), expiryOf(raw).Unix()), Node: caller.Node, Run: caller.Run, OnBehalfOf: caller.OnBehalfOf}
	s.tokens.seal(c, raw)
	return c, nil
}

func (s *Service) verify(ctx context.Context, raw string) (resource.Caller, error) {
	caller, err := s.cfg.Principals.Verify(ctx, raw, s.cfg.Audience)
	if err == nil && caller.Anonymous() {
		err = unauthorized("The token speaks for nobody.")
	}
	return caller, err
}

// onItsNode refuses a node's token that comes from elsewhere. The gateway does this for tokens in the Authorization
// header; here they come in a form.
func onItsNode(r *resource.Request, c resource.Caller) error {
	if c.Node != "" && c.Node != r.Origin.Node {
		return unauthorized("The access token was issued to a node and is valid on that node only.")
	}
	return nil
}

func (s *Service) refreshToken(r *resource.Request, raw string) (string, error) {
	c, err := s.prove(r, raw)
	if err != nil {
		return "", err
	}
	c.Use = useRefresh
	return s.tokens.sign(c)
}

// sendAccess sends an access token that lasts no longer than what it was exchanged for.
func (s *Service) sendAccess(w http.ResponseWriter, r *resource.Request, c *claims) error {
	c.Use = useAccess
	token, err := s.tokens.sign(c)
	if err != nil {
		return err
	}
	r.Remember("principal", c.Subject)
	left := max(c.Expires-s.cfg.Clock().Unix()-1, 0) // a client must not use it in its last second
	return sendToken(w, map[string]any{"access_token": token, "token": token, "expires_in": left,
		"issued_at": time.Unix(c.IssuedAt, 0).UTC().Format(time.RFC3339)})
}

// sendToken writes an answer that must not be kept by anybody in between (RFC 6749 §5.1).
func sendToken(w http.ResponseWriter, v map[string]any) error {
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Pragma", "no-cache")
	return sendJSON(w, v)
}

// checkService refuses a token request that was meant for another registry.
func (s *Service) checkService(r *resource.Request, service string) error {
	host, _, _ := strings.Cut(service, ":")
	if service == "" || strings.EqualFold(host, s.audience(r)) || strings.EqualFold(service, r.Request.Host) {
		return nil
	}
	return badForm("The service '%s' is not this registry.", clip(service))
}

func readForm(r *resource.Request) (url.Values, error) {
	b, err := r.ReadBody()
	if err != nil {
		return nil, err
	}
	form, err := url.ParseQuery(string(b))
	if err != nil {
		return nil, badForm("The request body is not a form.")
	}
	return form, nil
}

func badForm(format string, args ...any) *resource.Error {
	return resource.Errorf(http.StatusBadRequest, "UNSUPPORTED", format, args...)
}

func unsupportedGrant(grant, want string) *resource.Error {
	return badForm("The grant type '%s' is not supported; use %s.", clip(grant), want)
}
