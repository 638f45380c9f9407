package identity

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"casemate.dev/resource"
)

// maxToken bounds what Verify reads.
const maxToken = 8 << 10

// Verify finds out who a bearer token speaks for. audience decides which audiences the asking plane accepts. The error is
// a *resource.Error of status 401 whose message says what is wrong without repeating the token.
//
// The signature and the static claims of a token are remembered; everything that can change is looked up each time.
func (s *Service) Verify(_ context.Context, raw string, audience func(string) bool) (resource.Caller, error) {
	keys, now := s.keys.Load(), s.cfg.Clock()
	digest := digestOf(raw)
	c, ok := s.checked.get(digest)
	if !ok || keys.find(c.keyID) == nil {
		fresh, err := s.open(keys, raw)
		if err != nil {
			return resource.Caller{}, err
		}
		c = fresh
		s.checked.put(digest, c)
	}
	if err := s.checkTimes(&c.claims, now); err != nil {
		return resource.Caller{}, err
	}
	if !audience(c.Audience) {
		return resource.Caller{}, unauthenticated("The access token has been obtained for the wrong audience or resource '%s'.", c.Audience)
	}
	return s.standing(&c.claims)
}

// digestOf hashes a token of the usual size without copying it to the heap.
func digestOf(raw string) [sha256.Size]byte {
	var buf [2 << 10]byte
	return sha256.Sum256(append(buf[:0], raw...))
}

func unauthenticated(format string, args ...any) *resource.Error {
	return resource.Errorf(http.StatusUnauthorized, "InvalidAuthenticationToken", format, args...)
}

func (s *Service) checkTimes(c *claims, now time.Time) error {
	latest := now.Add(clockSkew).Unix()
	switch {
	case c.Expires <= now.Unix():
		return resource.Errorf(http.StatusUnauthorized, "ExpiredAuthenticationToken",
			"The access token expiry UTC time '%s' is earlier than current UTC time '%s'.", time.Unix(c.Expires, 0).UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	case c.NotBefore > latest, c.IssuedAt > latest:
		return unauthenticated("The access token is not valid yet.")
	}
	return nil
}

// standing looks up what a token may not be believed for: that its principal, credential and node are still there.
func (s *Service) standing(c *claims) (resource.Caller, error) {
	d := s.dir.Load()
	if c.Tenant != d.home {
		return resource.Caller{}, resource.Errorf(http.StatusUnauthorized, "InvalidAuthenticationTokenTenant",
			"The access token is from the wrong issuer. It must match the tenant '%s' that this installation serves; the token's is '%s'.", d.home, c.Tenant)
	}
	o := d.objects[c.Object]
	if o == nil || o.Tenant != c.Tenant || o.App != c.AppID || (o.Kind != kindServicePrincipal && o.Kind != kindManagedIdentity) {
		return resource.Caller{}, unauthenticated("The principal of the access token does not exist any more.")
	}
	app := d.applications[o.App]
	if o.Disabled || (app != nil && app.Disabled) {
		return resource.Caller{}, unauthenticated("The principal of the access token is disabled.")
	}
	if o.Epoch != c.Epoch {
		return resource.Caller{}, unauthenticated("The access token has been revoked.")
	}
	if o.Kind == kindServicePrincipal && !holds(o, c.Credential) && (app == nil || !holds(app, c.Credential)) {
		return resource.Caller{}, unauthenticated("The credential that the access token was issued for has been removed.")
	}
	caller := d.caller(o)
	caller.Audience, caller.TokenID = c.Audience, c.TokenID
	if o.Kind != kindManagedIdentity {
		return caller, nil
	}
	if c.Node == "" || !strings.EqualFold(c.ResourceID, o.ResourceID) {
		return resource.Caller{}, unauthenticated("The access token of a managed identity names no node.")
	}
	n, ok := s.node(c.Node)
	if !ok || n.Run != c.Run || !n.has(o.ResourceID) {
		return resource.Caller{}, unauthenticated("The node or the run that the access token was issued to has ended.")
	}
	caller.Node, caller.Run, caller.OnBehalfOf = c.Node, c.Run, c.OnBehalfOf
	return caller, nil
}

func holds(o *object, credential string) bool {
	return credential != "" && slices.ContainsFunc(o.Secrets, func(s secret) bool { return s.ID == credential })
}

// checkedToken is a token whose signature and static claims are good under the key keyID.
type checkedToken struct {
	claims
	keyID string
}

// open checks everything about a token that cannot change as long as its key stands.
func (s *Service) open(keys *keySet, raw string) (*checkedToken, error) {
	if len(raw) > maxToken {
		return nil, unauthenticated("The access token is too long.")
	}
	if strings.ContainsAny(raw, "\r\n") { // which encoding/base64 would pass over: a token has one spelling
		return nil, unauthenticated("The access token is not a signed JWT.")
	}
	parts := strings.Split(raw, ".")
	if len(parts) != 3 {
		return nil, unauthenticated("The access token is not a signed JWT.")
	}
	var h header
	if err := decodePart(parts[0], &h, true); err != nil {
		return nil, unauthenticated("The header of the access token cannot be read: %s.", err)
	}
	key := keys.find(h.KeyID)
	if key == nil {
		return nil, unauthenticated("The access token is signed with a key that this authority does not know.")
	}
	if h.Algorithm != algorithm || h.Type != "JWT" {
		return nil, unauthenticated("The access token is not signed with RS256.")
	}
	sig, err := base64.RawURLEncoding.Strict().DecodeString(parts[2])
	if err != nil {
		return nil, unauthenticated("The signature of the access token cannot be read.")
	}
	sum := sha256.Sum256([]byte(raw[:len(raw)-len(parts[2])-1]))
	if err := rsa.VerifyPKCS1v15(&key.private.PublicKey, crypto.SHA256, sum[:], sig); err != nil {
		return nil, unauthenticated("The signature of the access token is wrong.")
	}
	c := checkedToken{keyID: h.KeyID}
	if err := decodePart(parts[1], &c.claims, false); err != nil {
		return nil, unauthenticated("The claims of the access token cannot be read: %s.", err)
	}
	if err := s.checkClaims(&c.claims); err != nil {
		return nil, err
	}
	return &c, nil
}

func (s *Service) checkClaims(c *claims) error {
	for name, v := range map[string]string{"aud": c.Audience, "iss": c.Issuer, "oid": c.Object, "sub": c.Subject, "tid": c.Tenant, "uti": c.TokenID, "appid": c.AppID} {
		if v == "" {
			return unauthenticated("The access token has no claim '%s'.", name)
		}
	}
	switch {
	case !s.urls.issues(c.Issuer, c.Tenant):
		return unauthenticated("The access token is from the wrong issuer '%s'.", c.Issuer)
	case c.Subject != c.Object, c.AppID != c.AZP, c.IDType != "app":
		return unauthenticated("The claims of the access token contradict each other.")
	case c.IssuedAt <= 0, c.NotBefore <= 0, c.Expires <= c.NotBefore, c.Expires-c.IssuedAt > int64(tokenLifetime/time.Second):
		return unauthenticated("The access token has no usable times.")
	}
	return nil
}

// decodePart reads one base64url part; exact refuses members that v does not have.
func decodePart(part string, v any, exact bool) error {
	b, err := base64.RawURLEncoding.Strict().DecodeString(part)
	if err != nil {
		return errors.New("it is not base64url")
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	if exact {
		dec.DisallowUnknownFields()
	}
	if err := dec.Decode(v); err != nil {
		return errors.New("it is not the JSON object that it should be")
	}
	if _, err := dec.Token(); err != io.EOF {
		return errors.New("something follows its JSON object")
	}
	return nil
}

// tokenCache remembers checked tokens by the SHA-256 of their text: at most two generations of cacheGeneration tokens.
// It never holds a decision, only that a text was signed by a key; Verify asks whether that key still stands.
type tokenCache struct {
	mu       sync.RWMutex // guards the fields below
	now, old map[[sha256.Size]byte]*checkedToken
}

const cacheGeneration = 4096

func newTokenCache() *tokenCache {
	return &tokenCache{now: map[[sha256.Size]byte]*checkedToken{}}
}

func (t *tokenCache) get(digest [sha256.Size]byte) (*checkedToken, bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if c, ok := t.now[digest]; ok {
		return c, true
	}
	c, ok := t.old[digest]
	return c, ok
}

func (t *tokenCache) put(digest [sha256.Size]byte, c *checkedToken) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.now) >= cacheGeneration {
		t.old, t.now = t.now, make(map[[sha256.Size]byte]*checkedToken, cacheGeneration)
	}
	t.now[digest] = c
}
