package registry

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"casemate.dev/resource"
)

// form posts a form to a token row and returns the named token.
func (f *fixture) form(status int, path, want string, pairs ...string) string {
	f.t.Helper()
	v := url.Values{}
	for i := 0; i < len(pairs); i += 2 {
		v.Set(pairs[i], pairs[i+1])
	}
	w := f.must(status, "", "POST", path, []byte(v.Encode()), "Content-Type", "application/x-www-form-urlencoded")
	var m map[string]any
	f.check(json.Unmarshal(w.Body.Bytes(), &m))
	s, _ := m[want].(string)
	return s
}

// docker gets a token as docker does, with user name and password; "" when that is refused.
func (f *fixture) docker(user, password string) string {
	f.t.Helper()
	w := f.do("", "GET", "/oauth2/token?service="+testHost+":8443&scope=repository:app:pull&account=x", nil,
		"Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(user+":"+password)))
	if w.Code == http.StatusUnauthorized {
		return ""
	}
	var m map[string]any
	if err := json.Unmarshal(w.Body.Bytes(), &m); err != nil || w.Code != 200 || m["access_token"] != m["token"] {
		f.t.Fatalf("%d %s", w.Code, w.Body)
	}
	s, _ := m["access_token"].(string)
	return s
}

func bearer(token string) []string { return []string{"Authorization", "Bearer " + token} }

func TestChallenge(t *testing.T) {
	f := newFixture(t)
	realm := `Bearer realm="https://` + testHost + `:8443/oauth2/token",service="` + testHost + `:8443"`
	for path, want := range map[string]string{
		"GET /v2/":                      realm,
		"GET /v2/_catalog":              realm + `,scope="registry:catalog:*"`,
		"GET /v2/a/b/manifests/v1":      realm + `,scope="repository:a/b:pull"`,
		"POST /v2/a/b/blobs/uploads/":   realm + `,scope="repository:a/b:pull,push"`,
		"DELETE /v2/a/manifests/v1":     realm + `,scope="repository:a:delete"`,
		"GET /v2/a%22b/manifests/v1":    realm,
		"GET /v2/blobs/blobs/sha256:aa": realm + `,scope="repository:blobs:pull"`,
	} {
		method, target, _ := strings.Cut(path, " ")
		if got := f.must(401, "", method, target, nil).Header().Get("WWW-Authenticate"); got != want {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
	}
	if got := f.must(401, "", "GET", "/v2/", nil, bearer("x.y.z")...).Header().Get("WWW-Authenticate"); got != realm+`,error="invalid_token"` {
		t.Error(got)
	}
	f.must(200, nobody, "GET", "/v2/", nil) // a good token, and no role
	f.must(403, nobody, "GET", "/v2/app/tags/list", nil)
}

// The exchange that az and docker do (CLIENTS.md §1.7).
func TestTokenExchange(t *testing.T) {
	f := newFixture(t)
	f.image("app", "v1", []byte("layer"))
	refresh := f.form(200, "/oauth2/exchange", "refresh_token", "grant_type", "access_token", "service", testHost+":8443", "tenant", "t", "access_token", f.people.token(puller))
	access := f.form(200, "/oauth2/token", "access_token", "grant_type", "refresh_token", "service", testHost+":8443", "scope", "repository:app:pull,push", "refresh_token", refresh)
	for name, token := range map[string]string{
		"az": access, "az acr login": f.docker(tokenUser, refresh), "--expose-token": f.docker(tokenUser, access),
		"directory token": f.docker(tokenUser, f.people.token(puller)), "service principal": f.docker(puller, "secret of "+puller),
		"password grant": f.form(200, "/oauth2/token", "access_token", "grant_type", "password", "username", puller, "password", "secret of "+puller),
	} {
		f.must(200, "", "GET", "/v2/", nil, bearer(token)...)
		f.must(200, "", "GET", "/v2/app/manifests/v1", nil, bearer(token)...)
		// The scope that was asked for gives nothing: the role does.
		if w := f.do("", "POST", "/v2/app/blobs/uploads/", nil, bearer(token)...); w.Code != 403 {
			t.Errorf("%s: a puller begins an upload: %d", name, w.Code)
		}
	}
	f.must(401, "", "GET", "/v2/", nil, bearer(refresh)...) // not for this use
	for name, pair := range map[string][2]string{
		"wrong secret": {puller, "secret of another"}, "admin user": {"reg1", "password"}, "no token": {tokenUser, "x"},
	} {
		if f.docker(pair[0], pair[1]) != "" {
			t.Errorf("%s gets a token", name)
		}
	}
	f.must(401, "", "GET", "/oauth2/token?service="+testHost, nil)
	f.form(401, "/oauth2/exchange", "", "grant_type", "access_token", "access_token", "a.b.c")
	f.form(401, "/oauth2/exchange", "", "grant_type", "access_token", "access_token", access)
	f.form(400, "/oauth2/exchange", "", "grant_type", "access_token", "service", "reg2.azurecr.casemate.localhost", "access_token", f.people.token(puller))
	f.form(400, "/oauth2/exchange", "", "grant_type", "client_credentials")
	f.form(400, "/oauth2/token", "", "grant_type", "client_credentials")
	f.must(400, "", "POST", "/oauth2/token", []byte("%zz"))

	f.advance(accessLife)
	f.must(401, "", "GET", "/v2/app/manifests/v1", nil, bearer(access)...)
	f.form(401, "/oauth2/token", "", "grant_type", "refresh_token", "refresh_token", refresh)
}

// An access token that is exchanged for another one does not live longer by it.
func TestTokensDoNotRenewThemselves(t *testing.T) {
	f := newFixture(t)
	access := f.docker(puller, "secret of "+puller)
	f.advance(accessLife - time.Minute)
	again := f.docker(tokenUser, access)
	f.must(200, "", "GET", "/v2/", nil, bearer(again)...)
	f.advance(time.Minute)
	f.must(401, "", "GET", "/v2/", nil, bearer(again)...)
}

func TestTokenEndsWithItsPrincipal(t *testing.T) {
	f := newFixture(t)
	f.image("app", "v1", []byte("layer"))
	access := f.docker(puller, "secret of "+puller)
	acting, _, err := f.AccessToken(resource.Caller{Kind: resource.KindManagedIdentity, Object: puller}, "reg1")
	f.check(err)
	for _, token := range []string{access, acting} {
		f.must(200, "", "GET", "/v2/app/manifests/v1", nil, bearer(token)...)
	}
	f.mu.Lock()
	f.roles[puller] = ""
	f.mu.Unlock()
	for _, token := range []string{access, acting} {
		f.must(403, "", "GET", "/v2/app/manifests/v1", nil, bearer(token)...)
	}
	f.people.remove(puller)
	for _, token := range []string{access, acting} {
		f.must(401, "", "GET", "/v2/app/manifests/v1", nil, bearer(token)...)
	}
	f.restart()
	f.must(401, "", "GET", "/v2/", nil, bearer(access)...)
	if _, _, err := f.AccessToken(resource.Caller{}, "reg1"); err == nil {
		t.Error("nobody gets a token")
	}
}

// A node's token is good on its node only, in whichever coat it comes.
func TestNodeToken(t *testing.T) {
	f := newFixture(t)
	f.image("app", "v1", []byte("layer"))
	f.form(401, "/oauth2/exchange", "", "grant_type", "access_token", "access_token", f.people.token(onNode))
	f.node = "n1"
	refresh := f.form(200, "/oauth2/exchange", "refresh_token", "grant_type", "access_token", "access_token", f.people.token(onNode))
	access := f.docker(tokenUser, refresh)
	f.must(200, "", "GET", "/v2/app/manifests/v1", nil, bearer(access)...)
	caller, err := f.callerOf(t.Context(), access, testHost)
	if err != nil || caller.Node != "n1" || caller.Run != "run1" || caller.Person() != "person1" {
		t.Errorf("%+v %v", caller, err)
	}
	for _, node := range []string{"", "n2"} {
		f.node = node
		f.must(401, "", "GET", "/v2/app/manifests/v1", nil, bearer(access)...)
		f.form(401, "/oauth2/token", "", "grant_type", "refresh_token", "refresh_token", refresh)
	}
}

// forge makes a token signed by key.
func forge(t *testing.T, key *ecdsa.PrivateKey, header, payload string) string {
	t.Helper()
	text := base64.RawURLEncoding.EncodeToString([]byte(header)) + "." + base64.RawURLEncoding.EncodeToString([]byte(payload))
	sum := sha256.Sum256([]byte(text))
	r, s, err := ecdsa.Sign(rand.Reader, key, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	sig := make([]byte, 64)
	r.FillBytes(sig[:32])
	s.FillBytes(sig[32:])
	return text + "." + base64.RawURLEncoding.EncodeToString(sig)
}

// CVE-2026-33540 and its kin: the header of a token chooses neither key nor algorithm.
func TestR28AttackersKeyInToken(t *testing.T) {
	f := newFixture(t)
	f.image("app", "v1", []byte("layer"))
	own, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	f.check(err)
	point, err := own.PublicKey.Bytes() // 4, x, y
	f.check(err)
	x, y := base64.RawURLEncoding.EncodeToString(point[1:33]), base64.RawURLEncoding.EncodeToString(point[33:])
	jwk := `"jwk":{"kty":"EC","crv":"P-256","x":"` + x + `","y":"` + y + `"}`
	good, _, err := f.AccessToken(resource.Caller{Kind: resource.KindServicePrincipal, Object: pusher}, "reg1")
	f.check(err)
	payload := strings.Split(good, ".")[1]
	plain, err := base64.RawURLEncoding.DecodeString(payload)
	f.check(err)
	kid := f.tokens.kid
	for name, token := range map[string]string{
		"own key":             forge(t, own, `{"alg":"ES256","kid":"`+kid+`","typ":"JWT"}`, string(plain)),
		"own key in header":   forge(t, own, `{"alg":"ES256","kid":"`+kid+`","typ":"JWT",`+jwk+`}`, string(plain)),
		"only key in header":  forge(t, own, `{"alg":"ES256",`+jwk+`}`, string(plain)),
		"extra member":        forge(t, f.tokens.key, `{"alg":"ES256","kid":"`+kid+`","typ":"JWT",`+jwk+`}`, string(plain)),
		"no algorithm":        base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none","kid":"`+kid+`","typ":"JWT"}`)) + "." + payload + ".",
		"HMAC":                base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"HS256","kid":"`+kid+`","typ":"JWT"}`)) + "." + payload + "." + payload,
		"other claims":        strings.Replace(good, payload, base64.RawURLEncoding.EncodeToString([]byte(strings.Replace(string(plain), pusher, deleter, 1))), 1),
		"unknown claim":       forge(t, f.tokens.key, `{"alg":"ES256","kid":"`+kid+`","typ":"JWT"}`, strings.Replace(string(plain), "{", `{"roles":"all",`, 1)),
		"other registry":      forge(t, f.tokens.key, `{"alg":"ES256","kid":"`+kid+`","typ":"JWT"}`, strings.Replace(string(plain), "reg1.", "reg2.", 1)),
		"other issuer":        forge(t, f.tokens.key, `{"alg":"ES256","kid":"`+kid+`","typ":"JWT"}`, strings.Replace(string(plain), issuer, "other", 1)),
		"something behind it": good + "A",
		"trailing newline":    good + "\n",
	} {
		r := httptest.NewRequest("GET", "/v2/app/manifests/v1", nil)
		r.Header["Authorization"] = []string{"Bearer " + strings.TrimSuffix(token, "\n")}
		w := httptest.NewRecorder()
		if name == "trailing newline" {
			if _, err := f.tokens.read(token, testHost, useAccess); err == nil {
				t.Errorf("%s: accepted", name)
			}
			continue
		}
		f.ServeHTTP(w, r)
		if w.Code != 401 {
			t.Errorf("%s: %d", name, w.Code)
		}
	}
	f.must(200, "", "GET", "/v2/app/manifests/v1", nil, bearer(good)...)
	// The proof of one token does not serve another.
	c1 := &claims{Subject: pusher, ID: "1"}
	f.tokens.seal(c1, "raw")
	c1.Subject = puller
	if _, err := f.tokens.unseal(c1); err == nil {
		t.Error("a proof was moved to another token")
	}
}

func FuzzReadToken(f *testing.F) {
	t, err := newTokens(time.Now)
	if err != nil {
		f.Fatal(err)
	}
	good, err := t.sign(&claims{Issuer: issuer, Audience: testHost, Subject: "s", Use: useAccess, Expires: time.Now().Add(time.Hour).Unix()})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add("a.b.c")
	f.Add(good + ".")
	f.Fuzz(func(tt *testing.T, raw string) {
		if c, err := t.read(raw, testHost, useAccess); err == nil && raw != good {
			tt.Errorf("%q was read as %+v", raw, c)
		}
	})
}
