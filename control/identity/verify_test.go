package identity_test

import (
	"crypto"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"strings"
	"testing"
	"time"

	"casemate.dev/control/identity"
	"casemate.dev/resource"
)

var b64 = base64.RawURLEncoding

func parts(t testing.TB, token string) (head, claims map[string]any) {
	t.Helper()
	p := strings.Split(token, ".")
	for i, v := range []*map[string]any{&head, &claims} {
		raw, err := b64.DecodeString(p[i])
		if err != nil {
			t.Fatal(err)
		}
		dec := json.NewDecoder(strings.NewReader(string(raw)))
		dec.UseNumber()
		if err := dec.Decode(v); err != nil {
			t.Fatal(err)
		}
	}
	return head, claims
}

func unsigned(head, claims map[string]any) string {
	h, _ := json.Marshal(head)
	c, _ := json.Marshal(claims)
	return b64.EncodeToString(h) + "." + b64.EncodeToString(c)
}

// signingKey is the service's own key, read out of the store: what only a thief could do.
func (w *world) signingKey() *rsa.PrivateKey {
	w.Helper()
	for key, v := range w.store.data {
		if !strings.HasPrefix(key, "identity/key/") {
			continue
		}
		_, plain, _ := strings.Cut(string(v), "\x00")
		var rec struct{ PKCS8 []byte }
		w.must(json.Unmarshal([]byte(plain), &rec))
		k, err := x509.ParsePKCS8PrivateKey(rec.PKCS8)
		w.must(err)
		return k.(*rsa.PrivateKey)
	}
	w.Fatal("no signing key")
	return nil
}

func signRS256(t testing.TB, k *rsa.PrivateKey, input string) string {
	t.Helper()
	sum := sha256.Sum256([]byte(input))
	sig, err := rsa.SignPKCS1v15(nil, k, crypto.SHA256, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	return input + "." + b64.EncodeToString(sig)
}

// TestOneClaimWrong signs, with the right key, tokens that differ from a good one in one claim (R17).
func TestOneClaimWrong(t *testing.T) {
	w := newWorld(t)
	key := w.signingKey()
	head, good := parts(t, w.token(w.admin, armAudience))
	other, err := w.CreateTenant(t.Context(), "Other")
	w.must(err)
	user := w.mustGraph(http.MethodPost, "users", map[string]any{"displayName": "Ada", "userPrincipalName": "ada@example.org"})
	now := w.now.Unix()
	login := "https://login.casemate.localhost:8443/"
	sign := func(claims map[string]any) string { return signRS256(t, key, unsigned(head, claims)) }
	if _, err := w.caller(sign(good)); err != nil {
		t.Fatalf("the unchanged token is refused: %v", err)
	}
	wrong := map[string][]any{
		"aud":             {"", nil, "https://storage.azure.com", "https://management.azure.com.evil.org", []string{armAudience}, armAudience + "//", "management.azure.com"},
		"iss":             {"", nil, login + other.TenantID + "/v2.0", "https://login.microsoftonline.com/" + w.admin.TenantID + "/v2.0", login + w.admin.TenantID, login, "https://sts.windows.net/" + w.admin.TenantID + "/"},
		"tid":             {"", nil, other.TenantID, strings.ToUpper(w.admin.TenantID), "00000000-0000-0000-0000-000000000000"},
		"oid":             {"", nil, other.ObjectID, user["id"], "00000000-0000-0000-0000-000000000000", w.admin.ClientID},
		"sub":             {"", nil, other.ObjectID},
		"appid":           {"", nil, other.ClientID},
		"azp":             {nil, other.ClientID},
		"idtyp":           {"", nil, "user"},
		"uti":             {"", nil},
		"exp":             {0, nil, now, now - 1, now + 7200, "soon", -1, 9.9e18},
		"nbf":             {0, nil, now + 301, now + 1e9},
		"iat":             {0, nil, now + 301, -now},
		"casemate_epoch":  {1, -1},
		"casemate_cred":   {"", nil, "00000000-0000-0000-0000-000000000000"},
		"casemate_node":   {5},
		"xms_mirid":       {[]string{"x"}},
		"app_displayname": {map[string]any{}},
	}
	for claim, values := range wrong {
		for _, v := range values {
			c := maps.Clone(good)
			if c[claim] = v; v == nil {
				delete(c, claim)
			}
			token := sign(c)
			for range 2 { // also when it is remembered
				if caller, err := w.caller(token); resource.StatusOf(err) != http.StatusUnauthorized {
					t.Errorf("%s = %v: accepted as %+v (%v)", claim, v, caller, err)
				}
			}
		}
	}
}

// TestForgedTokens are the signatures that must never pass (R26, R35).
func TestForgedTokens(t *testing.T) {
	w := newWorld(t)
	good := w.token(w.admin, armAudience)
	head, claims := parts(t, good)
	key, foreign := w.signingKey(), mustKey(t)
	p := strings.Split(good, ".")
	header := func(change map[string]any) map[string]any {
		h := maps.Clone(head)
		maps.Copy(h, change)
		return h
	}
	hs := func(h map[string]any, secret []byte) string {
		input := unsigned(h, claims)
		m := hmac.New(sha256.New, secret)
		m.Write([]byte(input))
		return input + "." + b64.EncodeToString(m.Sum(nil))
	}
	pkix, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	w.must(err)
	flipped := []byte(p[1])
	flipped[len(flipped)/2] ^= 1
	jwk := map[string]any{"kty": "RSA", "n": b64.EncodeToString(foreign.N.Bytes()), "e": "AQAB"}
	pss := func() string {
		input := unsigned(header(map[string]any{"alg": "PS256"}), claims)
		sum := sha256.Sum256([]byte(input))
		sig, err := rsa.SignPSS(rand.Reader, key, crypto.SHA256, sum[:], nil)
		w.must(err)
		return input + "." + b64.EncodeToString(sig)
	}
	tests := map[string]string{
		"empty":                  "",
		"dots":                   "..",
		"two parts":              p[0] + "." + p[1],
		"four parts":             good + ".x",
		"no signature":           p[0] + "." + p[1] + ".",
		"alg none":               unsigned(header(map[string]any{"alg": "none"}), claims) + ".",
		"alg None, signed":       signRS256(t, key, unsigned(header(map[string]any{"alg": "None"}), claims)),
		"alg none, good rest":    unsigned(header(map[string]any{"alg": "none"}), claims) + "." + p[2],
		"HS256 with PKIX key":    hs(header(map[string]any{"alg": "HS256"}), pkix),
		"HS256 with modulus":     hs(header(map[string]any{"alg": "HS256"}), key.N.Bytes()),
		"HS256 with empty key":   hs(header(map[string]any{"alg": "HS256"}), nil),
		"RS256 header, HMAC":     hs(head, pkix),
		"PS256":                  pss(),
		"RS512 header":           signRS256(t, key, unsigned(header(map[string]any{"alg": "RS512"}), claims)),
		"foreign key":            signRS256(t, foreign, unsigned(head, claims)),
		"foreign key in jwk":     signRS256(t, foreign, unsigned(header(map[string]any{"jwk": jwk}), claims)),
		"own key, jku":           signRS256(t, key, unsigned(header(map[string]any{"jku": "https://evil.example/keys"}), claims)),
		"own key, crit":          signRS256(t, key, unsigned(header(map[string]any{"crit": []string{"exp"}}), claims)),
		"unknown kid":            signRS256(t, key, unsigned(header(map[string]any{"kid": "x"}), claims)),
		"no kid":                 signRS256(t, key, unsigned(map[string]any{"alg": "RS256", "typ": "JWT"}, claims)),
		"kid is a path":          signRS256(t, foreign, unsigned(header(map[string]any{"kid": "../../dev/null"}), claims)),
		"other typ":              signRS256(t, key, unsigned(header(map[string]any{"typ": "secevent+jwt"}), claims)),
		"claims changed":         p[0] + "." + string(flipped) + "." + p[2],
		"signature of another":   p[0] + "." + p[1] + "." + strings.Split(w.token(w.admin, "https://storage.azure.com"), ".")[2],
		"padded base64":          good + "=",
		"newline":                good + "\n",
		"claims are a list":      signRS256(t, key, b64.EncodeToString(mustJSON(head))+"."+b64.EncodeToString([]byte(`[]`))),
		"claims are null":        signRS256(t, key, b64.EncodeToString(mustJSON(head))+"."+b64.EncodeToString([]byte(`null`))),
		"two objects":            signRS256(t, key, b64.EncodeToString(mustJSON(head))+"."+b64.EncodeToString(append(mustJSON(claims), mustJSON(claims)...))),
		"very long":              strings.Repeat("a", 9000) + "." + p[1] + "." + p[2],
		"emulator's account key": "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==",
	}
	for name, token := range tests {
		for range 2 {
			if c, err := w.caller(token); resource.StatusOf(err) != http.StatusUnauthorized {
				t.Errorf("%s: accepted as %+v (%v)", name, c, err)
			}
		}
	}
}

func mustKey(t testing.TB) *rsa.PrivateKey {
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func mustJSON(v any) []byte { b, _ := json.Marshal(v); return b }

func TestTokensEndAtOnce(t *testing.T) {
	tests := []struct {
		name string
		end  func(w *world, a identity.Administrator, applicationID, keyID string)
	}{
		{"secret removed", func(w *world, _ identity.Administrator, app, key string) {
			w.mustGraph(http.MethodPost, "applications/"+app+"/removePassword", map[string]any{"keyId": key})
		}},
		{"disabled", func(w *world, a identity.Administrator, _, _ string) {
			w.mustGraph(http.MethodPatch, "servicePrincipals/"+a.ObjectID, map[string]any{"accountEnabled": false})
		}},
		{"disabled and enabled", func(w *world, a identity.Administrator, _, _ string) {
			w.mustGraph(http.MethodPatch, "servicePrincipals/"+a.ObjectID, map[string]any{"accountEnabled": false})
			w.mustGraph(http.MethodPatch, "servicePrincipals/"+a.ObjectID, map[string]any{"accountEnabled": true})
		}},
		{"service principal deleted", func(w *world, a identity.Administrator, _, _ string) {
			w.mustGraph(http.MethodDelete, "servicePrincipals/"+a.ObjectID, nil)
		}},
		{"application deleted", func(w *world, _ identity.Administrator, app, _ string) {
			w.mustGraph(http.MethodDelete, "applications/"+app, nil)
		}},
		{"expired", func(w *world, _ identity.Administrator, _, _ string) { w.now = w.now.Add(time.Hour) }},
		{"keys replaced", func(w *world, _ identity.Administrator, _, _ string) { w.must(w.ReplaceKeys(w.Context())) }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			a, app, key := w.application("app")
			token := w.token(a, armAudience)
			for range 2 {
				_, err := w.caller(token)
				w.must(err)
			}
			tt.end(w, a, app, key)
			if c, err := w.caller(token); resource.StatusOf(err) != http.StatusUnauthorized {
				t.Errorf("still accepted as %+v (%v)", c, err)
			}
			if strings.Contains(tt.name, "deleted") && len(w.removed) != 1 {
				t.Errorf("principals reported as removed: %q", w.removed)
			}
		})
	}
}

func TestOtherCredentialSurvives(t *testing.T) {
	w := newWorld(t)
	a, app, key := w.application("app")
	second := w.mustGraph(http.MethodPost, "applications/"+app+"/addPassword", map[string]any{})
	b := a
	b.Secret = second["secretText"].(string)
	token := w.token(b, armAudience)
	w.mustGraph(http.MethodPost, "applications/"+app+"/removePassword", map[string]any{"keyId": key})
	if _, err := w.caller(token); err != nil {
		t.Error(err)
	}
	w.now = w.now.AddDate(2, 0, 0)
	_, _, err := w.do(resource.PlaneLogin, request{method: "POST", url: "/adfs/oauth2/token",
		body: form("grant_type", "client_credentials", "client_id", b.ClientID, "client_secret", b.Secret, "scope", armAudience+"/.default")})
	if !strings.HasPrefix(describe(err), "401 invalid_client AADSTS7000222") {
		t.Errorf("expired secret: %v", err)
	}
}

func TestAnotherTenantsToken(t *testing.T) {
	w := newWorld(t)
	out := w.mustGraph(http.MethodPost, "tenants", map[string]any{"displayName": "Rival"})
	admin := out["administrator"].(map[string]any)
	rival := identity.Administrator{TenantID: out["id"].(string), ClientID: admin["appId"].(string), Secret: admin["secretText"].(string)}
	if _, err := w.caller(w.token(rival, armAudience)); codeOf(err) != "InvalidAuthenticationTokenTenant" {
		t.Errorf("Verify = %v", err)
	}
	// A client of one tenant cannot ask at another's endpoint.
	_, _, err := w.do(resource.PlaneLogin, request{method: "POST", url: "/" + w.admin.TenantID + "/oauth2/v2.0/token",
		body: form("grant_type", "client_credentials", "client_id", rival.ClientID, "client_secret", rival.Secret, "scope", armAudience+"/.default")})
	if !strings.HasPrefix(describe(err), "400 unauthorized_client AADSTS700016") {
		t.Errorf("token of another tenant's endpoint: %v", err)
	}
	if _, ok := w.PrincipalType(admin["id"].(string)); ok {
		t.Error("a principal of another tenant can be given a role")
	}
	if _, err := w.CallerOf(t.Context(), admin["id"].(string)); err == nil {
		t.Error("a principal of another tenant can be acted for")
	}
}

func TestGroupsAreLookedUpLive(t *testing.T) {
	w := newWorld(t)
	token := w.token(w.admin, armAudience)
	inner := w.mustGraph(http.MethodPost, "groups", map[string]any{"displayName": "inner", "mailEnabled": false, "securityEnabled": true, "mailNickname": "x"})["id"].(string)
	outer := w.mustGraph(http.MethodPost, "groups", map[string]any{"displayName": "outer"})["id"].(string)
	ref := func(id string) map[string]any {
		return map[string]any{"@odata.id": "https://graph.casemate.localhost:8443/v1.0/directoryObjects/" + id}
	}
	w.mustGraph(http.MethodPost, "groups/"+outer+"/members/$ref", ref(inner))
	w.mustGraph(http.MethodPost, "groups/"+inner+"/members/$ref", ref(outer)) // a circle does no harm
	w.mustGraph(http.MethodPost, "groups/"+inner+"/members/$ref", ref(w.admin.ObjectID))
	c, err := w.caller(token)
	w.must(err)
	if len(c.Groups) != 2 {
		t.Errorf("groups = %q", c.Groups)
	}
	w.mustGraph(http.MethodDelete, "groups/"+inner+"/members/"+w.admin.ObjectID+"/$ref", nil)
	if c, _ = w.caller(token); len(c.Groups) != 0 {
		t.Errorf("groups after leaving = %q", c.Groups)
	}
}

func TestKeyRotation(t *testing.T) {
	w := newWorld(t)
	keys := func() []any {
		_, out, err := w.do(resource.PlaneLogin, request{method: "GET", url: "/adfs/discovery/keys"})
		w.must(err)
		return out["keys"].([]any)
	}
	kid := func(token string) any { h, _ := parts(t, token); return h["kid"] }
	first := kid(w.token(w.admin, armAudience))
	w.now = w.now.Add(29 * 24 * time.Hour)
	w.must(w.RotateDue(t.Context()))
	w.must(w.RotateDue(t.Context()))
	old := w.token(w.admin, armAudience)
	if n := len(keys()); n != 2 || kid(old) != first {
		t.Fatalf("%d keys are published, %v signs; want the new key published and the old one signing", n, kid(old))
	}
	w.now = w.now.Add(24*time.Hour - time.Minute)
	old = w.token(w.admin, armAudience)
	w.now = w.now.Add(time.Minute)
	w.must(w.RotateDue(t.Context()))
	if kid(w.token(w.admin, armAudience)) == first {
		t.Error("the old key still signs")
	}
	if _, err := w.caller(old); err != nil {
		t.Errorf("token of the old key during overlap: %v", err)
	}
	w.now = w.now.Add(2 * time.Hour)
	w.must(w.RotateDue(t.Context()))
	if n := len(keys()); n != 1 {
		t.Errorf("%d keys after overlap", n)
	}
	w.restart()
	if n := len(keys()); n != 1 || kid(w.token(w.admin, armAudience)) == first {
		t.Errorf("%d keys after restart", n)
	}
}

func TestFailedWriteChangesNothing(t *testing.T) {
	w := newWorld(t)
	w.store.fail = errors.New("disk on fire")
	if _, _, err := w.graph(http.MethodPost, "groups", map[string]any{"displayName": "g"}); err == nil {
		t.Fatal("a failed write was acknowledged")
	}
	w.store.fail = nil
	if list := w.mustGraph(http.MethodGet, "groups", nil)["value"].([]any); len(list) != 0 {
		t.Errorf("groups = %v", list)
	}
}

func BenchmarkVerify(b *testing.B) {
	w := newWorld(b)
	token := w.token(w.admin, armAudience)
	accept := w.Audience(resource.PlaneManagement)
	b.Run("remembered", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := w.Verify(b.Context(), token, accept); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("new", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			w.ForgetTokens()
			if _, err := w.Verify(b.Context(), token, accept); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkIssue(b *testing.B) {
	w := newWorld(b)
	for b.Loop() {
		w.token(w.admin, armAudience)
	}
}

func FuzzVerify(f *testing.F) {
	w := newWorld(f)
	good := w.token(w.admin, armAudience)
	f.Add(good)
	f.Add(fmt.Sprintf("%s.%s.", b64.EncodeToString([]byte(`{"alg":"none"}`)), b64.EncodeToString([]byte(`{}`))))
	f.Fuzz(func(t *testing.T, token string) {
		if c, err := w.Verify(t.Context(), token, w.Audience(resource.PlaneManagement)); err == nil && token != good {
			t.Fatalf("%q is accepted as %+v", token, c)
		}
	})
}
