package vault

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"fmt"
	"math/big"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"casemate.dev/resource"
)

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

func unb64(t testing.TB, s string) []byte {
	t.Helper()
	b, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestCreateKey(t *testing.T) {
	r := newRig(t)
	a := r.must(200, "POST", "/keys/MyKey/create", obj{"kty": "RSA", "key_size": 2048, "tags": obj{"a": "b"}, "attributes": obj{"exp": 1_900_000_000}})
	kid := a.str("key", "kid")
	if !strings.HasPrefix(kid, "https://kv1.vault.casemate.test:8443/keys/MyKey/") || len(versionOf(kid)) != 32 {
		t.Errorf("kid = %q", kid)
	}
	if n := unb64(t, a.str("key", "n")); len(n) != 256 || a.str("key", "e") != "AQAB" {
		t.Errorf("n has %d octets, e = %q", len(n), a.str("key", "e"))
	}
	for _, private := range []string{"d", "p", "q", "k"} {
		if _, ok := a.body["key"].(map[string]any)[private]; ok {
			t.Errorf("the answer shows %q", private)
		}
	}
	want := obj{"enabled": true, "exp": 1.9e9, "created": 1.8e9, "updated": 1.8e9, "recoveryLevel": "Recoverable+Purgeable", "recoverableDays": 90.0, "exportable": false, "hsmPlatform": "0"}
	if diff := cmp.Diff(want, a.body["attributes"]); diff != "" {
		t.Errorf("attributes (-want +got):\n%s", diff)
	}
	// Without version, with a trailing slash, with the version, in another case: the same key.
	for _, path := range []string{"/keys/MyKey", "/keys/MyKey/", "/keys/mykey/" + versionOf(kid), "/keys/MYKEY/"} {
		if diff := cmp.Diff(a.body, r.must(200, "GET", path, nil).body); diff != "" {
			t.Errorf("GET %s (-created +got):\n%s", path, diff)
		}
	}
	if got := r.heard(); !cmp.Equal(got, []string{"rotated /keys/MyKey"}) {
		t.Errorf("hooks: %v", got)
	}
}

func TestCreateKeyKinds(t *testing.T) {
	r := newRig(t)
	tests := []struct {
		name   string
		body   obj
		status int
		says   string // in the message
	}{
		{"rsa-default", obj{"kty": "RSA"}, 200, ""},
		{"rsa-3072", obj{"kty": "RSA", "key_size": 3072}, 200, ""},
		{"rsa-1024", obj{"kty": "RSA", "key_size": 1024}, 400, "2048, 3072 or 4096"},
		{"rsa-hsm", obj{"kty": "RSA-HSM"}, 400, "hardware security module"},
		{"oct-hsm", obj{"kty": "oct-HSM"}, 400, "hardware security module"},
		{"oct", obj{"kty": "oct"}, 200, ""},
		{"oct-128", obj{"kty": "oct", "key_size": 128}, 200, ""},
		{"oct-100", obj{"kty": "oct", "key_size": 100}, 400, "128, 192 or 256"},
		{"ec", obj{"kty": "EC"}, 200, ""},
		{"ec-384", obj{"kty": "EC", "crv": "P-384"}, 200, ""},
		{"ec-521", obj{"kty": "EC", "crv": "P-521"}, 200, ""},
		{"ec-k", obj{"kty": "EC", "crv": "P-256K"}, 400, "P-256, P-384 or P-521"},
		{"none", obj{}, 400, "'kty' is required"},
		{"dsa", obj{"kty": "DSA"}, 400, "not supported"},
		{"ops", obj{"kty": "EC", "key_ops": []string{"wrapKey"}}, 400, "wrapKey"},
		{"bad_name", obj{"kty": "RSA"}, 400, "letters, digits and dashes"},
		{strings.Repeat("a", 128), obj{"kty": "oct"}, 400, "1 to 127"},
		{"exportable", obj{"kty": "oct", "attributes": obj{"exportable": true}}, 501, "never leave"},
		{"exponent", obj{"kty": "RSA", "public_exponent": 3}, 400, "65537"},
		{"window", obj{"kty": "oct", "attributes": obj{"nbf": 20, "exp": 10}}, 400, "later"},
		{"negative", obj{"kty": "oct", "attributes": obj{"nbf": -1}}, 400, "out of range"},
		{"tag", obj{"kty": "oct", "tags": obj{"": "x"}}, 400, "tag"},
	}
	for _, tt := range tests {
		a := r.do("POST", "/keys/"+tt.name+"/create", tt.body)
		if a.status != tt.status || a.err != nil && !strings.Contains(a.err.Message, tt.says) {
			t.Errorf("%s: status %d (%v), want %d saying %q", tt.name, a.status, a.err, tt.status, tt.says)
		}
		if a.status == 400 && a.err.Code != "BadParameter" {
			t.Errorf("%s: code %s", tt.name, a.err.Code)
		}
	}
}

func TestImport(t *testing.T) {
	r := newRig(t)
	rk, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	good := obj{"kty": "RSA", "n": b64(rk.N.Bytes()), "e": "AQAB", "d": b64(rk.D.Bytes()), "p": b64(rk.Primes[0].Bytes()), "q": b64(rk.Primes[1].Bytes())}
	a := r.must(200, "PUT", "/keys/i", obj{"key": good})
	if a.str("key", "n") != good["n"] {
		t.Error("another modulus came back")
	}
	ct := r.must(200, "POST", "/keys/i/wrapkey", obj{"alg": "RSA-OAEP-256", "value": b64([]byte("key"))})
	plain, err := rsa.DecryptOAEP(sha256New(), nil, rk, unb64(t, ct.str("value")), nil)
	if err != nil || string(plain) != "key" {
		t.Errorf("unwrapping outside: %q, %v", plain, err)
	}
	ek, err := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	point, _ := ek.PublicKey.Bytes()
	raw, _ := ek.Bytes()
	ec := obj{"kty": "EC", "crv": "P-521", "x": b64(point[1:67]), "y": b64(point[67:]), "d": b64(raw)}
	r.must(200, "PUT", "/keys/e", obj{"key": ec})
	r.must(200, "PUT", "/keys/o", obj{"key": obj{"kty": "oct", "k": b64(make([]byte, 32))}})

	broken := func(from obj, member string, to any) obj {
		out := obj{}
		for k, v := range from {
			out[k] = v
		}
		out[member] = to
		return obj{"key": out}
	}
	other := b64(new(big.Int).Add(rk.D, big.NewInt(2)).Bytes())
	for _, bad := range []obj{
		broken(good, "p", ""), broken(good, "d", other), broken(good, "e", "Aw"), broken(good, "n", b64(rk.Primes[0].Bytes())),
		broken(good, "kty", "RSA-HSM"), broken(good, "key_hsm", "AAAA"), broken(good, "n", "!!"),
		broken(ec, "x", b64(point[67:])), broken(ec, "d", "AA"), broken(ec, "crv", "P-256"),
		{"key": obj{"kty": "oct", "k": "AAAA"}}, {}, {"key": good, "Hsm": true},
	} {
		if a := r.do("PUT", "/keys/bad", bad); a.status != 400 || a.err.Code != "BadParameter" {
			t.Errorf("importing %v: %d %v", bad, a.status, a.err)
		}
	}
	r.must(404, "GET", "/keys/bad", nil)
}

func TestVersionsAndUpdate(t *testing.T) {
	r := newRig(t)
	v1 := versionOf(r.must(200, "POST", "/keys/k/create", obj{"kty": "oct"}).str("key", "kid"))
	v2 := versionOf(r.must(200, "POST", "/keys/k/rotate", nil).str("key", "kid"))
	if got := versionOf(r.must(200, "GET", "/keys/k/", nil).str("key", "kid")); got != v2 {
		t.Errorf("current version %s, want %s", got, v2)
	}
	r.heard()
	a := r.must(200, "PATCH", "/keys/k/"+v1, obj{"attributes": obj{"enabled": false}, "tags": obj{"x": "y"}})
	if versionOf(a.str("key", "kid")) != v1 || a.str("tags", "x") != "y" || a.body["attributes"].(map[string]any)["enabled"] != false {
		t.Errorf("update answered %v", a.body)
	}
	if got, want := r.heard(), []string{"revoked /keys/k/" + v1}; !cmp.Equal(got, want) {
		t.Errorf("hooks %v, want %v", got, want)
	}
	// Disabled: not usable, but visible, and can be enabled again.
	r.must(200, "GET", "/keys/k/"+v1, nil)
	if a := r.do("POST", "/keys/k/"+v1+"/encrypt", obj{"alg": "A256GCM", "value": "AA"}); a.status != 403 || a.inner() != "KeyDisabled" {
		t.Errorf("encrypt with a disabled key: %d %v", a.status, a.err)
	}
	r.must(200, "PATCH", "/keys/k/"+v2, obj{"attributes": obj{"enabled": false}})
	r.heard()
	r.must(200, "PATCH", "/keys/k/", obj{"attributes": obj{"enabled": true}}) // the current one
	if got, want := r.heard(), []string{"rotated /keys/k"}; !cmp.Equal(got, want) {
		t.Errorf("hooks after enabling %v, want %v", got, want)
	}
	r.must(200, "PATCH", "/keys/k/"+v2, obj{"key_ops": []string{"encrypt"}})
	if a := r.do("POST", "/keys/k//decrypt", obj{"alg": "A256GCM", "value": "AA"}); a.inner() != "KeyOperationForbidden" {
		t.Errorf("decrypt without the key operation: %d %v", a.status, a.err)
	}
	if got := r.heard(); len(got) != 1 {
		t.Errorf("hooks after narrowing key_ops: %v", got)
	}
	for _, body := range []obj{{"key_ops": []string{"sign"}}, {"key_ops": []string{}}, {"attributes": obj{"exp": 0, "nbf": 5}}} {
		r.must(400, "PATCH", "/keys/k/"+v2, body)
	}
	r.must(404, "PATCH", "/keys/k/"+strings.Repeat("0", 32), obj{})
	r.must(404, "GET", "/keys/k/nonsense", nil)
	list := r.must(200, "GET", "/keys/k/versions", nil).body["value"].([]any)
	if len(list) != 2 {
		t.Errorf("%d versions", len(list))
	}
	if got := r.must(200, "GET", "/keys/absent/versions", nil).body["value"].([]any); len(got) != 0 {
		t.Errorf("versions of nothing: %v", got)
	}
}

func TestValidityWindow(t *testing.T) {
	r := newRig(t)
	r.must(200, "POST", "/keys/k/create", obj{"kty": "RSA", "attributes": obj{"nbf": r.clock.Unix(), "exp": r.clock.Unix() + 60}})
	wrapped := r.must(200, "POST", "/keys/k/wrapkey", obj{"alg": "RSA-OAEP-256", "value": b64([]byte("x"))}).str("value")
	for _, tt := range []struct {
		shift time.Duration
		inner string
	}{{-time.Hour, "KeyNotYetValid"}, {2 * time.Hour, "KeyExpired"}} {
		r.advance(tt.shift)
		if a := r.do("POST", "/keys/k/wrapkey", obj{"alg": "RSA-OAEP-256", "value": "AA"}); a.status != 403 || a.inner() != tt.inner {
			t.Errorf("wrapKey: %d %v, want %s", a.status, a.err, tt.inner)
		}
		r.must(200, "POST", "/keys/k/unwrapkey", obj{"alg": "RSA-OAEP-256", "value": wrapped})
	}
}

func TestSoftDelete(t *testing.T) {
	for _, k := range []kind{keys, secrets} {
		t.Run(k.word, func(t *testing.T) {
			r := newRig(t)
			create := func(want int) answer {
				if k == keys {
					return r.must(want, "POST", "/keys/x/create", obj{"kty": "oct"})
				}
				return r.must(want, "PUT", "/secrets/x", obj{"value": "v"})
			}
			create(200)
			r.heard()
			a := r.must(200, "DELETE", "/"+k.plural+"/x", nil)
			base := "https://kv1.vault.casemate.test:8443"
			if a.str("recoveryId") != base+"/deleted"+k.plural+"/x" || a.body["deletedDate"] != 1.8e9 || a.body["scheduledPurgeDate"] != 1.8e9+90*86400 {
				t.Errorf("deleted bundle: %v", a.body)
			}
			if _, ok := a.body["value"]; ok {
				t.Error("a deleted secret shows its value")
			}
			if got := r.heard(); k == keys && !cmp.Equal(got, []string{"revoked /keys/x"}) {
				t.Errorf("hooks: %v", got)
			}
			if e := r.must(404, "GET", "/"+k.plural+"/x", nil).err; e.Code != k.title+"NotFound" {
				t.Errorf("code %s", e.Code)
			}
			if c := create(409); c.err.Code != "Conflict" || c.inner() != "ObjectIsDeletedButRecoverable" {
				t.Errorf("creating over a deleted one: %v", c.err)
			}
			r.must(404, "DELETE", "/"+k.plural+"/x", nil)
			r.must(404, "PATCH", "/"+k.plural+"/x/", obj{})
			r.must(200, "GET", "/deleted"+k.plural+"/x", nil)
			if n := len(r.must(200, "GET", "/deleted"+k.plural, nil).body["value"].([]any)); n != 1 {
				t.Errorf("%d deleted", n)
			}
			if n := len(r.must(200, "GET", "/"+k.plural, nil).body["value"].([]any)); n != 0 {
				t.Errorf("%d live", n)
			}
			r.must(200, "POST", "/deleted"+k.plural+"/x/recover", nil)
			r.must(200, "GET", "/"+k.plural+"/x", nil)
			r.must(404, "POST", "/deleted"+k.plural+"/x/recover", nil)
			r.must(404, "DELETE", "/deleted"+k.plural+"/x", nil) // a live one is never purged

			r.must(200, "DELETE", "/"+k.plural+"/x", nil)
			protected := r.vault
			protected.PurgeProtection = true
			r.Set(protected)
			if e := r.must(403, "DELETE", "/deleted"+k.plural+"/x", nil).err; e.Code != "Forbidden" || !strings.Contains(e.Message, "purge protection") {
				t.Errorf("purge under protection: %v", e)
			}
			r.Set(r.vault)
			r.must(204, "DELETE", "/deleted"+k.plural+"/x", nil)
			r.must(404, "GET", "/deleted"+k.plural+"/x", nil)
			if n := len(r.mem.kvs); n != 0 {
				t.Errorf("%d records are left after the purge: %v", n, r.mem.kvs)
			}
			create(200)
		})
	}
}

func TestPaging(t *testing.T) {
	r := newRig(t)
	for i := range 30 {
		r.must(200, "PUT", fmt.Sprintf("/secrets/S%02d", i), obj{"value": "v"})
	}
	r.must(200, "DELETE", "/secrets/s03", nil)
	for _, size := range []int{0, 1, 7, 25} {
		path := "/secrets"
		if size > 0 {
			path += fmt.Sprintf("?maxresults=%d", size)
		}
		var got []string
		for pages := 0; path != ""; pages++ {
			if pages > 40 {
				t.Fatal("paging does not end")
			}
			a := r.must(200, "GET", path, nil)
			for _, v := range a.body["value"].([]any) {
				got = append(got, versionOf(v.(map[string]any)["id"].(string)))
			}
			path = a.str("nextLink")
			if path != "" {
				u, err := url.Parse(path)
				if err != nil || u.Host != "kv1.vault.casemate.test:8443" || u.Query().Get("api-version") != "7.4" {
					t.Fatalf("nextLink %q: %v", path, err)
				}
				path = u.Path + "?" + u.RawQuery
			}
		}
		var want []string
		for i := range 30 {
			if i != 3 {
				want = append(want, fmt.Sprintf("S%02d", i))
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("maxresults %d (-want +got):\n%s", size, diff)
		}
	}
	for _, q := range []string{"maxresults=0", "maxresults=26", "maxresults=x", "$skiptoken=%25%25", "$skiptoken=" + b64(make([]byte, 200))} {
		r.must(400, "GET", "/keys?"+q, nil)
	}
}

func TestSecrets(t *testing.T) {
	r := newRig(t)
	a := r.must(200, "PUT", "/secrets/s", obj{"value": "one", "contentType": "text/plain", "tags": obj{"t": "1"}})
	v1 := versionOf(a.str("id"))
	v2 := versionOf(r.must(200, "PUT", "/secrets/s", obj{"value": ""}).str("id"))
	if got := r.must(200, "GET", "/secrets/s/", nil); versionOf(got.str("id")) != v2 || got.body["value"] != "" {
		t.Errorf("current: %v", got.body)
	}
	if got := r.must(200, "GET", "/secrets/s/"+v1, nil); got.str("value") != "one" || got.str("contentType") != "text/plain" {
		t.Errorf("first: %v", got.body)
	}
	u := r.must(200, "PATCH", "/secrets/s/"+v1, obj{"contentType": "x", "attributes": obj{"enabled": false, "exp": 1}})
	if _, ok := u.body["value"]; ok || u.str("contentType") != "x" {
		t.Errorf("update: %v", u.body)
	}
	if a := r.do("GET", "/secrets/s/"+v1, nil); a.status != 403 || a.inner() != "SecretDisabled" {
		t.Errorf("reading a disabled secret: %d %v", a.status, a.err)
	}
	r.must(200, "PATCH", "/secrets/s/"+v1, obj{"attributes": obj{"enabled": true}})
	r.must(200, "GET", "/secrets/s/"+v1, nil) // exp only informs
	if n := len(r.must(200, "GET", "/secrets/s/versions", nil).body["value"].([]any)); n != 2 {
		t.Errorf("%d versions", n)
	}
	r.must(200, "PUT", "/secrets/big", obj{"value": strings.Repeat("x", maxSecret)})
	for _, body := range []obj{{"value": strings.Repeat("x", maxSecret+1)}, {}, {"value": "x", "contentType": strings.Repeat("x", 256)}} {
		r.must(400, "PUT", "/secrets/bad", body)
	}
	if e := r.must(404, "GET", "/secrets/absent", nil).err; e.Code != "SecretNotFound" {
		t.Errorf("code %s", e.Code)
	}
	for k, kv := range r.mem.kvs {
		if strings.Contains(string(kv.Value), "xxxx") || strings.Contains(string(kv.Value), "text/plain") {
			t.Errorf("record %s is not sealed", k)
		}
	}
}

func TestUnsupportedAndUnknown(t *testing.T) {
	r := newRig(t)
	for _, tt := range [][2]string{
		{"GET", "/certificates/contacts"}, {"GET", "/certificates/issuers"}, {"POST", "/keys/k/release"},
		{"POST", "/keys/k/backup"}, {"GET", "/keys/k/0/attestation"},
	} {
		if a := r.do(tt[0], tt[1], nil); a.status != 501 || a.err.Code != "NotSupported" {
			t.Errorf("%v: %d %v", tt, a.status, a.err)
		}
	}
	r.Forget(r.vault.ID)
	if e := r.must(404, "GET", "/keys/k", nil).err; e.Code != "VaultNotFound" {
		t.Errorf("code %s", e.Code)
	}
	if got := r.heard(); !cmp.Equal(got, []string{"revoked "}) { // the whole vault's URL
		t.Errorf("hooks: %q", got)
	}
}

func TestChallenge(t *testing.T) {
	r := newRig(t)
	want := `Bearer authorization="https://login.casemate.test:8443/11111111-1111-1111-1111-111111111111", resource="https://vault.casemate.test:8443"`
	if got := r.Challenge(&resource.Request{Host: "kv1"}); got != want {
		t.Errorf("challenge %s\nwant %s", got, want)
	}
	v := r.vault
	v.Tenant = "22222222-2222-2222-2222-222222222222"
	r.Set(v)
	if got := r.Challenge(&resource.Request{Host: "KV1"}); !strings.Contains(got, "/22222222-") {
		t.Errorf("challenge of a vault of another tenant: %s", got)
	}
}
