package certificate

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"testing"
	"time"
)

type plainSealer struct{}

func (plainSealer) SealBytes(_ string, b []byte) ([]byte, error) {
	return append([]byte("x"), b...), nil
}
func (plainSealer) OpenBytes(_ string, b []byte) ([]byte, error) { return b[1:], nil }

type memRecords struct{ b []byte }

func (m *memRecords) Load(context.Context) ([]byte, error)   { return m.b, nil }
func (m *memRecords) Save(_ context.Context, b []byte) error { m.b = b; return nil }

func TestIssueRenewAndReopen(t *testing.T) {
	now := time.Now()
	cfg := Config{Sealer: plainSealer{}, Records: &memRecords{}, Domain: "casemate.test", Names: []string{"management", "*.vault"}, Clock: func() time.Time { return now }}
	a, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	check := func(a *Authority, sni, verify string, ok bool) *tls.Certificate {
		t.Helper()
		c, err := a.Certificate(&tls.ClientHelloInfo{ServerName: sni})
		if err != nil {
			t.Fatal(err)
		}
		leaf, err := x509.ParseCertificate(c.Certificate[0])
		if err != nil {
			t.Fatal(err)
		}
		_, err = leaf.Verify(x509.VerifyOptions{DNSName: verify, Roots: a.Pool(), CurrentTime: now})
		if (err == nil) != ok {
			t.Fatalf("%s verified as %s: %v", sni, verify, err)
		}
		return c
	}
	first := check(a, "management.casemate.test", "management.casemate.test", true)
	check(a, "v1.vault.casemate.test", "v1.vault.casemate.test", true)
	check(a, "127.0.0.1", "127.0.0.1", true)
	check(a, "e.westeurope.inference.casemate.test", "e.westeurope.inference.casemate.test", true)
	check(a, "evil.example.com", "evil.example.com", false)
	check(a, "x.y.z.inference.casemate.test.evil.com", "x.y.z.inference.casemate.test.evil.com", false)
	if again := check(a, "management.casemate.test", "management.casemate.test", true); again != first {
		t.Fatal("a certificate was issued anew although it is fresh")
	}
	now = now.Add(leafLife * 3 / 4)
	if again := check(a, "management.casemate.test", "management.casemate.test", true); again == first {
		t.Fatal("a certificate was not renewed")
	}
	b, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if string(b.PEM()) != string(a.PEM()) {
		t.Fatal("reopening made another root")
	}
}

// Handshakes need no credential: whoever asks for many regions must not keep others from being served.
func TestManyRegions(t *testing.T) {
	a, err := Open(t.Context(), Config{Sealer: plainSealer{}, Records: &memRecords{}, Domain: "casemate.test", Names: []string{"management"}, Clock: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"management.casemate.test", "e.westeurope.inference.casemate.test"} {
		for i := range 2 * maxExtra {
			if _, err := a.Certificate(&tls.ClientHelloInfo{ServerName: fmt.Sprintf("e.region%d.inference.casemate.test", i)}); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := a.Certificate(&tls.ClientHelloInfo{ServerName: name}); err != nil {
			t.Fatal(err)
		}
	}
	if len(a.leaves) > maxExtra+1 {
		t.Fatalf("%d certificates are kept", len(a.leaves))
	}
}
