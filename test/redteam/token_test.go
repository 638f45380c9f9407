package redteam

import (
	"crypto"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"math/big"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"casemate.dev/test/harness"
)

func (w *world) signIn(t *testing.T, p *harness.Principal) harness.Answer {
	t.Helper()
	form := url.Values{"grant_type": {"client_credentials"}, "client_id": {p.AppID}, "client_secret": {p.Secret}, "scope": {"https://management.azure.com/.default"}}
	return w.send(t, harness.Call{Method: http.MethodPost, URL: w.URL("login", "/"+p.Tenant+"/oauth2/v2.0/token"), Body: form.Encode(),
		Header: http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}})
}

// defaultCredentials: default, empty and guessable passwords (CVE-2025-11200, Kubeflow's 12341234, Harbor, Flyte, MinIO).
func defaultCredentials(t *testing.T, w *world) {
	secrets := []string{"", " ", "admin", "password", "12341234", "minioadmin", "Harbor12345", "foobar", "changeme", "secret", "casemate", "Casemate", "null", "undefined", "*", "0",
		w.Admin.AppID, w.Admin.ObjectID, w.Admin.Tenant, w.Admin.Secret[:len(w.Admin.Secret)-1], w.Admin.Secret + "=", " " + w.Admin.Secret, strings.ToLower(w.Admin.Secret), w.Admin.Secret + "\x00"}
	apps := []string{w.Admin.AppID, "admin", "casemate", "minioadmin", "00000000-0000-0000-0000-000000000000", "04b07795-8ddb-461a-bbee-02f9e1bf7b46", w.Admin.ObjectID}
	for _, tenant := range []string{w.Admin.Tenant, "adfs", "common", "organizations"} {
		for _, app := range apps {
			for _, secret := range secrets {
				a := w.signIn(t, &harness.Principal{Tenant: tenant, AppID: app, Secret: secret})
				if a.Status != 400 && a.Status != 401 || strings.Contains(string(a.Body), "access_token") {
					t.Errorf("signing in to %s as %q with %q = %v", tenant, app, secret, a)
				}
			}
		}
	}
	for _, form := range []string{"grant_type=password&username=admin&password=admin&client_id=" + w.Admin.AppID + "&scope=https://management.azure.com/.default",
		"grant_type=client_credentials&client_id=" + w.Admin.AppID + "&client_secret=x&client_secret=" + url.QueryEscape(w.Admin.Secret) + "&scope=https://management.azure.com/.default",
		"grant_type=urn:ietf:params:oauth:grant-type:jwt-bearer&assertion=x&client_id=" + w.Admin.AppID} {
		a := w.send(t, harness.Call{Method: http.MethodPost, URL: w.URL("login", "/"+w.Admin.Tenant+"/oauth2/v2.0/token"), Body: form, Header: http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}})
		refused(t, "token request "+form[:30], a, 400, 401)
	}
	// The secret counts in the body only: a URL lands in logs.
	a := w.send(t, harness.Call{Method: http.MethodPost, URL: w.URL("login", "/"+w.Admin.Tenant+"/oauth2/v2.0/token?grant_type=client_credentials&scope=https://management.azure.com/.default&client_id="+w.Admin.AppID+"&client_secret="+url.QueryEscape(w.Admin.Secret))})
	refused(t, "secret in the query", a, 400, 401)
}

func part(v any) string {
	raw, _ := json.Marshal(v) // maps of strings and numbers only
	return base64.RawURLEncoding.EncodeToString(raw)
}

func split(t *testing.T, token string) (header, claims map[string]any) {
	t.Helper()
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		t.Fatal("the token is no JWT")
	}
	for i, v := range []*map[string]any{&header, &claims} {
		raw, err := base64.RawURLEncoding.DecodeString(parts[i])
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(raw, v); err != nil {
			t.Fatal(err)
		}
	}
	return header, claims
}

// publicKey reads the key set that everybody can read.
func (w *world) publicKey(t *testing.T) *rsa.PublicKey {
	t.Helper()
	a := w.Must(t, harness.Call{Method: http.MethodGet, URL: w.URL("login", "/"+w.Admin.Tenant+"/discovery/v2.0/keys")})
	var set struct {
		Keys []struct{ N, E string }
	}
	if err := json.Unmarshal(a.Body, &set); err != nil || len(set.Keys) == 0 {
		t.Fatalf("keys: %v %v", a, err)
	}
	n, err := base64.RawURLEncoding.DecodeString(set.Keys[0].N)
	if err != nil {
		t.Fatal(err)
	}
	return &rsa.PublicKey{N: new(big.Int).SetBytes(n), E: 65537}
}

// forgedTokens: emulators accept alg none, HS256 with the public key as secret, unsigned id tokens, a well-known account
// key and the all-zero object id. Nothing of it may work, nor any token of which one claim or one byte was changed.
func forgedTokens(t *testing.T, w *world) {
	good, err := w.Admin.Token(t.Context(), "https://management.azure.com")
	if err != nil {
		t.Fatal(err)
	}
	target := w.URL("management", w.group+"?api-version=2021-04-01")
	w.Must(t, harness.Call{Method: http.MethodGet, URL: target, Token: good}, 200)
	header, claims := split(t, good)
	for what, token := range w.forgeries(t, good, header, claims) {
		a := w.send(t, harness.Call{Method: http.MethodGet, URL: target, Token: token})
		refused(t, what, a, 401)
		if strings.Contains(string(a.Body), token) && len(token) > 20 {
			t.Errorf("%s: the answer repeats the token", what)
		}
	}
	emulatorKey(t, w)
}

func (w *world) forgeries(t *testing.T, good string, header, claims map[string]any) map[string]string {
	t.Helper()
	parts := strings.Split(good, ".")
	pub := w.publicKey(t)
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	own, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	with := func(m map[string]any, name string, v any) map[string]any {
		c := maps.Clone(m)
		if v == nil {
			delete(c, name)
		} else {
			c[name] = v
		}
		return c
	}
	hs := func(key []byte, h map[string]any) string {
		signed := part(h) + "." + part(claims)
		mac := hmac.New(sha256.New, key)
		mac.Write([]byte(signed))
		return signed + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
	}
	rs := func(h, c map[string]any) string {
		signed := part(h) + "." + part(c)
		sum := sha256.Sum256([]byte(signed))
		sig, err := rsa.SignPKCS1v15(rand.Reader, own, crypto.SHA256, sum[:])
		if err != nil {
			t.Fatal(err)
		}
		return signed + "." + base64.RawURLEncoding.EncodeToString(sig)
	}
	hs256 := with(header, "alg", "HS256")
	out := map[string]string{
		"empty signature": parts[0] + "." + parts[1] + ".", "no signature": parts[0] + "." + parts[1], "four parts": good + ".x", "five parts": good + ".x.y",
		"HS256 with PEM":      hs(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), hs256),
		"HS256 with DER":      hs(der, hs256),
		"HS256 with N":        hs(pub.N.Bytes(), hs256),
		"HS256 empty key":     hs(nil, hs256),
		"own key":             rs(header, claims),
		"own key unknown kid": rs(with(header, "kid", "mine"), claims),
		"own key no kid":      rs(with(header, "kid", nil), claims),
		"jwk in header":       rs(with(with(header, "kid", nil), "jwk", map[string]any{"kty": "RSA", "n": base64.RawURLEncoding.EncodeToString(own.N.Bytes()), "e": "AQAB"}), claims),
		"jku in header":       rs(with(header, "jku", "https://127.0.0.1:1/keys"), claims),
		"kid is a path":       rs(with(header, "kid", "../../../../dev/null"), claims),
		"garbage":             "x.y.z", "dots": "..", "word": "null",
	}
	for _, alg := range []string{"none", "None", "NONE", "nOnE", ""} {
		h := with(header, "alg", alg)
		out["alg "+alg] = part(h) + "." + part(claims) + "."
		out["alg "+alg+" with signature"] = part(h) + "." + part(claims) + "." + parts[2]
	}
	for _, alg := range []string{"RS384", "RS512", "PS256", "ES256", "EdDSA", "rs256"} {
		out["alg "+alg] = part(with(header, "alg", alg)) + "." + parts[1] + "." + parts[2]
	}
	zero := "00000000-0000-0000-0000-000000000000"
	for name, values := range map[string][]any{
		"aud": {w.URL("vault", ""), "*", "", []any{"https://management.azure.com"}}, "iss": {"https://sts.windows.net/" + zero + "/", "https://evil.example/"},
		"tid": {zero, "11111111-2222-4333-8444-555555555555"}, "oid": {zero, w.nobody.ObjectID}, "sub": {zero}, "appid": {zero, w.nobody.AppID},
		"exp": {time.Now().Add(-time.Hour).Unix(), time.Now().Add(1e4 * time.Hour).Unix(), "never"}, "nbf": {time.Now().Add(time.Hour).Unix()}, "iat": {0}, "uti": {nil}, "idtyp": {"user"}, "wids": {[]any{"62e90394-69f5-4237-9190-012177145e10"}},
	} {
		for i, v := range values {
			c := with(claims, name, v)
			out[fmt.Sprintf("claim %s/%d old signature", name, i)] = parts[0] + "." + part(c) + "." + parts[2]
			out[fmt.Sprintf("claim %s/%d own key", name, i)] = rs(header, c)
			out[fmt.Sprintf("claim %s/%d unsigned", name, i)] = part(with(header, "alg", "none")) + "." + part(c) + "."
		}
	}
	for i := 0; i < len(good); i += 17 { // one byte changed
		b := []byte(good)
		if b[i]++; b[i] == 'z'+1 {
			b[i] = 'A'
		}
		out[fmt.Sprintf("byte %d", i)] = string(b)
	}
	return out
}

// emulatorKey signs with the account key that every storage emulator accepts (it is in Microsoft's documentation).
func emulatorKey(t *testing.T, w *world) {
	key, err := base64.StdEncoding.DecodeString("Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==")
	if err != nil {
		t.Fatal(err)
	}
	date := time.Now().UTC().Format(http.TimeFormat)
	for _, account := range []string{"devstoreaccount1", strings.TrimSuffix(w.blobHost, ".blob.core")} {
		text := "GET\n\n\n\n\n\n\n\n\n\n\n\nx-ms-date:" + date + "\nx-ms-version:" + harness.VersionBlob + "\n/" + account + "/closed/secret.csv"
		mac := hmac.New(sha256.New, key)
		mac.Write([]byte(text))
		signature := base64.StdEncoding.EncodeToString(mac.Sum(nil))
		for _, scheme := range []string{"SharedKey", "SharedKeyLite"} {
			a := w.send(t, harness.Call{Method: http.MethodGet, URL: w.URL(w.blobHost, "/closed/secret.csv"), Header: http.Header{"X-Ms-Date": {date}, "Authorization": {scheme + " " + account + ":" + signature}}})
			refused(t, scheme+" of "+account, a, 401, 403)
		}
		sas := "?sv=2023-11-03&ss=b&srt=sco&sp=rwdlac&se=2099-01-01T00:00:00Z&st=2020-01-01T00:00:00Z&spr=https&sig=" + url.QueryEscape(signature)
		refused(t, "account SAS", w.send(t, harness.Call{Method: http.MethodGet, URL: w.URL(w.blobHost, "/closed/secret.csv"+sas)}), 401, 403)
	}
	refused(t, "emulator's path style", w.send(t, harness.Call{Method: http.MethodGet, URL: "https://127.0.0.1:" + w.Port + "/devstoreaccount1/closed/secret.csv"}), 400, 401, 403, 404, 421)
}
