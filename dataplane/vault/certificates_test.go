package vault

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"errors"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	pkcs12 "software.sslmate.com/src/go-pkcs12"
)

// policyOf is a certificate policy with an EC key, which is quick to make.
func policyOf(issuer string, more obj) obj {
	p := obj{
		"issuer": obj{"name": issuer}, "key_props": obj{"kty": "EC", "crv": "P-256"},
		"x509_props": obj{"subject": "CN=www.contoso.com, O=\"Contoso, Ltd\"", "sans": obj{"dns_names": []string{"www.contoso.com"}}, "validity_months": 10},
	}
	for k, v := range more {
		p[k] = v
	}
	return obj{"policy": p, "tags": obj{"a": "b"}}
}

func leafOf(t testing.TB, a answer) *x509.Certificate {
	t.Helper()
	der, err := base64.StdEncoding.DecodeString(a.str("cer"))
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// made creates a certificate and lets Run complete it.
func (r *rig) made(name string, body obj) answer {
	r.t.Helper()
	op := r.must(202, "POST", "/certificates/"+name+"/create", body)
	if op.str("status") != "inProgress" || op.str("csr") == "" {
		r.t.Fatalf("operation: %v", op.body)
	}
	r.settled()
	op = r.must(200, "GET", "/certificates/"+name+"/pending", nil)
	if op.str("status") != "completed" || op.str("target") != base+"/certificates/"+name {
		r.t.Fatalf("operation: %v", op.body)
	}
	return r.must(200, "GET", "/certificates/"+name, nil)
}

func TestSelfSignedCertificate(t *testing.T) {
	r := newRig(t).hearEvents()
	c := r.made("web", policyOf("Self", nil))
	leaf := leafOf(t, c)
	if got := leaf.Subject.String(); got != `CN=www.contoso.com,O=Contoso\, Ltd` || leaf.VerifyHostname("www.contoso.com") != nil || leaf.CheckSignature(leaf.SignatureAlgorithm, leaf.RawTBSCertificate, leaf.Signature) != nil {
		t.Errorf("certificate of %s, %v", got, leaf.DNSNames)
	}
	if leaf.NotAfter.Sub(r.time()) < 300*day || c.body["attributes"].(map[string]any)["exp"] != float64(leaf.NotAfter.Unix()) {
		t.Errorf("valid until %v: %v", leaf.NotAfter, c.body["attributes"])
	}
	id := versionOf(c.str("id"))
	for part, url := range map[string]string{"kid": "keys", "sid": "secrets"} {
		if c.str(part) != base+"/"+url+"/web/"+id {
			t.Errorf("%s = %s", part, c.str(part))
		}
	}
	key := r.must(200, "GET", "/keys/web", nil)
	if key.body["managed"] != true || key.str("key", "crv") != "P-256" {
		t.Errorf("key: %v", key.body)
	}
	secret := r.must(200, "GET", "/secrets/web", nil)
	pfx, err := base64.StdEncoding.DecodeString(secret.str("value"))
	if err != nil {
		t.Fatal(err)
	}
	private, fromPFX, err := pkcs12.Decode(pfx, "")
	if err != nil || !fromPFX.Equal(leaf) || !samePublic(private.(crypto.Signer).Public(), leaf.PublicKey) || secret.str("contentType") != typePKCS12 {
		t.Errorf("secret: %v %v", secret.str("contentType"), err)
	}
	digest := make([]byte, 32)
	sig := unb64(t, r.must(200, "POST", "/keys/web/sign", obj{"alg": "ES256", "value": b64(digest)}).str("value"))
	if !ecdsa.Verify(leaf.PublicKey.(*ecdsa.PublicKey), digest, new(big.Int).SetBytes(sig[:32]), new(big.Int).SetBytes(sig[32:])) {
		t.Error("the key is not the certificate's")
	}
	for _, tt := range []struct {
		method, path string
		body         obj
	}{
		{"DELETE", "/keys/web", nil}, {"DELETE", "/secrets/web", nil}, {"PUT", "/secrets/web", obj{"value": "x"}}, {"POST", "/keys/web/create", obj{"kty": "oct"}},
		{"POST", "/keys/web/rotate", nil}, {"PATCH", "/keys/web", obj{"attributes": obj{"enabled": false}}}, {"PUT", "/keys/web/rotationpolicy", obj{}},
	} {
		if a := r.do(tt.method, tt.path, tt.body); a.status != 403 || a.inner() != "ManagedByCertificate" {
			t.Errorf("%s %s: %d %v", tt.method, tt.path, a.status, a.err)
		}
	}
	r.must(200, "PATCH", "/certificates/web", obj{"attributes": obj{"enabled": false}})
	if a := r.do("GET", "/secrets/web", nil); a.status != 403 {
		t.Errorf("the secret of a disabled certificate: %d", a.status)
	}
	for k, kv := range r.mem.kvs {
		if strings.Contains(string(kv.Value), "contoso") {
			t.Errorf("record %s is not sealed", k)
		}
	}
}

func TestCertificateLife(t *testing.T) {
	seal := newSealer()
	r := newRig(t).withBackups(seal)
	made := r.made("c", policyOf("Self", obj{"secret_props": obj{"contentType": typePEM}}))
	secret := r.must(200, "GET", "/secrets/c", nil)
	blob := r.must(200, "POST", "/certificates/c/backup", nil).str("value")
	r.must(200, "DELETE", "/certificates/c", nil)
	for _, path := range []string{"/certificates/c", "/keys/c", "/secrets/c"} {
		r.must(404, "GET", path, nil)
	}
	if a := r.do("POST", "/certificates/c/create", policyOf("Self", nil)); a.status != 409 || a.inner() != "ObjectIsDeletedButRecoverable" {
		t.Errorf("creating over a deleted one: %d %v", a.status, a.err)
	}
	r.must(403, "POST", "/deletedkeys/c/recover", nil)
	r.must(403, "DELETE", "/deletedsecrets/c", nil)
	r.must(200, "GET", "/deletedcertificates/c", nil)
	r.must(200, "POST", "/deletedcertificates/c/recover", nil)
	if diff := cmp.Diff(made.body, r.must(200, "GET", "/certificates/c", nil).body); diff != "" {
		t.Errorf("recovered:\n%s", diff)
	}
	r.must(200, "DELETE", "/certificates/c", nil)
	r.advance(91 * day)
	r.settled()
	r.must(404, "GET", "/deletedcertificates/c", nil)
	r.must(404, "GET", "/deletedkeys/c", nil)
	for k := range r.mem.kvs {
		t.Errorf("left after the purge: %q", k)
	}
	r.must(200, "POST", "/certificates/restore", obj{"value": blob})
	if diff := cmp.Diff(secret.body, r.must(200, "GET", "/secrets/c", nil).body); diff != "" {
		t.Errorf("restored:\n%s", diff)
	}
	if a := r.do("POST", "/keys/restore", obj{"value": blob}); a.status != 400 {
		t.Errorf("a certificate restored as a key: %d", a.status)
	}
	r.must(200, "PUT", "/secrets/taken", obj{"value": "x"})
	if a := r.do("POST", "/certificates/taken/create", policyOf("Self", nil)); a.status != 409 {
		t.Errorf("a name that a secret holds: %d", a.status)
	}
}

// TestImportCertificate: what a secret gives out can be imported again, in every form that clients send.
func TestImportCertificate(t *testing.T) {
	r := newRig(t)
	for _, contentType := range []string{typePEM, typePKCS12} {
		made := r.made("a", policyOf("Self", obj{"secret_props": obj{"contentType": contentType}}))
		value := r.must(200, "GET", "/secrets/a", nil).str("value")
		forms := []string{value}
		if contentType == typePEM {
			forms = append(forms, base64.StdEncoding.EncodeToString([]byte(value)))
		}
		for _, form := range forms {
			got := r.must(200, "POST", "/certificates/b/import", obj{"value": form})
			if got.str("cer") != made.str("cer") || got.str("contentType") != contentType {
				t.Errorf("imported %s: %v", contentType, got.body)
			}
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	leaf := leafOf(t, r.must(200, "GET", "/certificates/a", nil))
	foreign, err := pkcs12.Modern.Encode(key, leaf, nil, "pw")
	if err != nil {
		t.Fatal(err)
	}
	slow, err := pkcs12.Modern.WithIterations(maxIterations+1).Encode(key, leaf, nil, "pw")
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct{ value, says string }{
		"not base64":     {"%%%", "base64"},
		"garbage":        {base64.StdEncoding.EncodeToString([]byte("garbage")), "PKCS #12"},
		"another's key":  {base64.StdEncoding.EncodeToString(foreign), "does not belong"},
		"too many turns": {base64.StdEncoding.EncodeToString(slow), "iterations"},
		"no key":         {"-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n", "cannot be read"},
	} {
		if a := r.do("POST", "/certificates/bad/import", obj{"value": tt.value, "pwd": "pw"}); a.status != 400 || !strings.Contains(a.err.Message, tt.says) {
			t.Errorf("%s: %d %v", name, a.status, a.err)
		}
	}
	if a := r.do("POST", "/certificates/bad/import", obj{"value": base64.StdEncoding.EncodeToString(foreign), "pwd": "wrong"}); a.status != 400 {
		t.Errorf("a wrong password: %d", a.status)
	}
}

// authority is a small CA.
type authority struct {
	key  *ecdsa.PrivateKey
	fail error
}

func newAuthority(t testing.TB) *authority {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{key: key}
}

func (a *authority) Issue(_ context.Context, _ string, template *x509.Certificate, public crypto.PublicKey) ([][]byte, error) {
	if a.fail != nil {
		return nil, a.fail
	}
	parent := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"}}
	template.SerialNumber = big.NewInt(2)
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, a.key)
	return [][]byte{der}, err
}

func TestMergeCertificate(t *testing.T) {
	r := newRig(t)
	op := r.must(202, "POST", "/certificates/m/create", policyOf("Unknown", nil))
	r.settled()
	r.must(404, "GET", "/certificates/m", nil)
	der, err := base64.StdEncoding.DecodeString(op.str("csr"))
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil || csr.CheckSignature() != nil || csr.DNSNames[0] != "www.contoso.com" {
		t.Fatalf("request: %v", err)
	}
	if a := r.do("POST", "/certificates/m/create", policyOf("Unknown", nil)); a.status != 409 {
		t.Errorf("a second operation: %d", a.status)
	}
	ca := newAuthority(t)
	template := func() *x509.Certificate {
		return &x509.Certificate{RawSubject: csr.RawSubject, NotBefore: r.time(), NotAfter: r.time().Add(90 * day)}
	}
	good, err := ca.Issue(t.Context(), "", template(), csr.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	bad, err := ca.Issue(t.Context(), "", template(), ca.key.Public())
	if err != nil {
		t.Fatal(err)
	}
	if a := r.do("POST", "/certificates/m/pending/merge", obj{"x5c": bad}); a.status != 400 {
		t.Errorf("merging a certificate of another key: %d", a.status)
	}
	got := r.must(201, "POST", "/certificates/m/pending/merge", obj{"x5c": good})
	if got.str("cer") != base64.StdEncoding.EncodeToString(good[0]) || got.str("policy", "issuer", "name") != "Unknown" {
		t.Errorf("merged: %v", got.body)
	}
	r.must(400, "POST", "/certificates/m/pending/merge", obj{"x5c": good})

	r.must(202, "POST", "/certificates/x/create", policyOf("Unknown", nil))
	if op := r.must(200, "PATCH", "/certificates/x/pending", obj{"cancellation_requested": true}); op.str("status") != "cancelled" {
		t.Errorf("cancelled: %v", op.body)
	}
	r.must(400, "POST", "/certificates/x/pending/merge", obj{"x5c": good})
	r.must(200, "DELETE", "/certificates/x/pending", nil)
	r.must(404, "GET", "/certificates/x/pending", nil)
}

func TestIssuedAndRenewed(t *testing.T) {
	r := newRig(t).hearEvents()
	if a := r.do("POST", "/certificates/c/create", policyOf("Casemate", nil)); a.status != 501 {
		t.Errorf("without an authority: %d", a.status)
	}
	ca := newAuthority(t)
	r.cfg.Issuer = ca
	ca.fail = errors.New("authority is down")
	r.must(202, "POST", "/certificates/c/create", policyOf("Casemate", nil))
	if _, err := r.settle(t.Context()); err == nil {
		t.Error("an outage of the authority went unnoticed")
	}
	if op := r.must(200, "GET", "/certificates/c/pending", nil); op.str("status") != "inProgress" {
		t.Errorf("during an outage: %v", op.body)
	}
	ca.fail = nil
	r.heard()
	issued := []string{"rotated /keys/c", "event Microsoft.KeyVault.CertificateNewVersionCreated c"}
	if got := r.settled(); !cmp.Equal(got, issued) {
		t.Errorf("issued: %v", got)
	}
	first := leafOf(t, r.must(200, "GET", "/certificates/c", nil))
	if first.Issuer.CommonName != "authority" {
		t.Errorf("issuer %v", first.Issuer)
	}
	r.advance(first.NotAfter.Sub(first.NotBefore)*79/100 + time.Hour)
	if got := r.settled(); got != nil {
		t.Errorf("too early: %v", got)
	}
	r.advance(first.NotAfter.Sub(first.NotBefore) * 2 / 100)
	var got []string
	for range 2 {
		got = append(got, r.settled()...)
	}
	if !cmp.Equal(got, issued) {
		t.Errorf("renewed: %v", got)
	}
	renewed := r.must(200, "GET", "/certificates/c", nil)
	if leafOf(t, renewed).Equal(first) || !cmp.Equal(renewed.body["tags"], any(obj{"a": "b"})) {
		t.Errorf("after the renewal: %v", renewed.body)
	}
	if n := len(r.must(200, "GET", "/certificates/c/versions", nil).body["value"].([]any)); n != 2 {
		t.Errorf("%d versions", n)
	}
	ca.fail = badParameter("not for you")
	r.must(202, "POST", "/certificates/d/create", policyOf("Casemate", nil))
	r.settled()
	if op := r.must(200, "GET", "/certificates/d/pending", nil); op.str("status") != "failed" || op.str("error", "message") != "not for you" {
		t.Errorf("refused: %v", op.body)
	}
	r.must(404, "GET", "/certificates/d", nil)
}

func TestCertificatePolicy(t *testing.T) {
	r := newRig(t)
	for says, body := range map[string]obj{
		"'policy' is required": {},
		"was not found":        policyOf("DigiCert", nil),
		"hardware":             policyOf("Self", obj{"key_props": obj{"kty": "RSA-HSM"}}),
		"RSA or EC":            policyOf("Self", obj{"key_props": obj{"kty": "oct"}}),
		"distinguished name":   policyOf("Self", obj{"x509_props": obj{"subject": "www.contoso.com"}}),
		"alternative names":    policyOf("Self", obj{"x509_props": obj{}}),
		"validity_months":      policyOf("Self", obj{"x509_props": obj{"subject": "CN=x", "validity_months": -1}}),
		"object identifier":    policyOf("Self", obj{"x509_props": obj{"subject": "CN=x", "ekus": []string{"serverAuth"}}}),
		"key usage":            policyOf("Self", obj{"x509_props": obj{"subject": "CN=x", "key_usage": []string{"all"}}}),
		"content type":         policyOf("Self", obj{"secret_props": obj{"contentType": "text/plain"}}),
		"lifetime_percentage":  policyOf("Self", obj{"lifetime_actions": []obj{{"trigger": obj{}, "action": obj{"action_type": "AutoRenew"}}}}),
		"cannot renew":         policyOf("Unknown", obj{"lifetime_actions": []obj{{"trigger": obj{"lifetime_percentage": 80}, "action": obj{"action_type": "AutoRenew"}}}}),
		"of authorities":       policyOf("Casemate", obj{"x509_props": obj{"subject": "CN=x", "basic_constraints": obj{"ca": true}}}),
	} {
		if a := r.do("POST", "/certificates/p/create", body); a.status != 400 || !strings.Contains(a.err.Message, says) {
			t.Errorf("%q: %d %v", says, a.status, a.err)
		}
	}
	r.made("p", policyOf("Self", nil))
	p := r.must(200, "PATCH", "/certificates/p/policy", obj{"lifetime_actions": []obj{{"trigger": obj{"days_before_expiry": 30}, "action": obj{"action_type": "EmailContacts"}}}})
	if p.str("id") != base+"/certificates/p/policy" || p.str("issuer", "name") != "Self" {
		t.Errorf("policy: %v", p.body)
	}
	if diff := cmp.Diff(p.body, r.must(200, "GET", "/certificates/p/policy", nil).body); diff != "" {
		t.Error(diff)
	}
}

func FuzzParseIdentity(f *testing.F) {
	f.Add("", "")
	f.Add("MIIB", "x")
	f.Add("-----BEGIN PRIVATE KEY-----\nAA==\n-----END PRIVATE KEY-----\n", "")
	f.Fuzz(func(t *testing.T, value, password string) {
		id, _, err := parseIdentity(value, password)
		if err == nil && !samePublic(id.key.Public(), id.chain[0].PublicKey) {
			t.Error("the key is not the leaf's")
		}
	})
}
