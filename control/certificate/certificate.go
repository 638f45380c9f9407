// Package certificate is the platform's own certificate authority: one root, made at the first start, and short-lived leaf
// certificates for the platform's host names, renewed long before they end.
//
// It is for the gateway's listeners, which ask it for a certificate at each handshake, and for the scoring front and the
// private endpoints, which use the same names. Clients trust it through DIR/client/ca.pem. The root's private key is kept
// sealed in the metadata store; leaf keys live in memory only.
//
// A peer chooses the server name it asks for, and may lie: names outside the platform's domain get no certificate of their
// own. The package signs for nobody but the platform itself.
package certificate

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"strings"
	"sync"
	"time"
)

// Sealer seals the root's key; an envelope handle.
type Sealer interface {
	SealBytes(object string, plain []byte) ([]byte, error)
	OpenBytes(object string, sealed []byte) ([]byte, error)
}

// Records keeps one sealed record, durably when Save returns; Load gives nil where there is none.
type Records interface {
	Load(ctx context.Context) ([]byte, error)
	Save(ctx context.Context, sealed []byte) error
}

// Config opens an Authority. All fields are required.
type Config struct {
	Sealer  Sealer
	Records Records
	Domain  string
	Names   []string // host names below the domain that one certificate covers: "management", "*.vault"
	Clock   func() time.Time
}

const (
	rootLife = 10 * 365 * 24 * time.Hour
	leafLife = 30 * 24 * time.Hour
	maxExtra = 64 // certificates beside the main one: one for each region that has endpoints
	object   = "certificate authority"
)

// Authority issues and renews. It is safe for concurrent use.
type Authority struct {
	cfg  Config
	root *x509.Certificate
	key  *ecdsa.PrivateKey

	mu     sync.Mutex // guards leaves
	leaves map[string]*leaf
}

type leaf struct {
	cert  *tls.Certificate
	renew time.Time
}

// Open loads the root, or makes it at the first start.
func Open(ctx context.Context, cfg Config) (*Authority, error) {
	a := &Authority{cfg: cfg, leaves: map[string]*leaf{}}
	sealed, err := cfg.Records.Load(ctx)
	if err != nil {
		return nil, fmt.Errorf("loading the certificate authority: %w", err)
	}
	if sealed == nil {
		return a, a.create(ctx)
	}
	plain, err := cfg.Sealer.OpenBytes(object, sealed)
	if err != nil {
		return nil, fmt.Errorf("opening the certificate authority: %w", err)
	}
	return a, a.parse(plain)
}

func (a *Authority) create(ctx context.Context) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("generating the authority's key: %w", err)
	}
	now := a.cfg.Clock()
	tmpl := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "Casemate authority of " + a.cfg.Domain, Organization: []string{"Casemate"}},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(rootLife), IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		// The root is good for the platform's own names and loopback only: whoever trusts it trusts it for nothing else.
		PermittedDNSDomainsCritical: true, PermittedDNSDomains: []string{a.cfg.Domain},
		PermittedIPRanges: []*net.IPNet{{IP: net.IPv4(127, 0, 0, 0).To4(), Mask: net.CIDRMask(8, 32)}, {IP: net.IPv6loopback, Mask: net.CIDRMask(128, 128)}},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		return fmt.Errorf("signing the authority's certificate: %w", err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("encoding the authority's key: %w", err)
	}
	plain := append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})...)
	sealed, err := a.cfg.Sealer.SealBytes(object, plain)
	if err != nil {
		return fmt.Errorf("sealing the certificate authority: %w", err)
	}
	if err := a.cfg.Records.Save(ctx, sealed); err != nil {
		return fmt.Errorf("saving the certificate authority: %w", err)
	}
	return a.parse(plain)
}

func (a *Authority) parse(plain []byte) error {
	pair, err := tls.X509KeyPair(plain, plain)
	if err != nil {
		return fmt.Errorf("parsing the certificate authority: %w", err)
	}
	key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	if !ok {
		return errors.New("the authority's key is not an ECDSA key")
	}
	a.root, a.key = pair.Leaf, key
	return nil
}

// PEM is the root certificate, for clients to trust.
func (a *Authority) PEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.root.Raw})
}

// Pool trusts this authority and nobody else.
func (a *Authority) Pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.root)
	return p
}

// Certificate serves tls.Config.GetCertificate: the main certificate, or one for *.<region>.inference.<domain>.
func (a *Authority) Certificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	name := strings.ToLower(strings.TrimSuffix(hello.ServerName, "."))
	_, suffix, _ := strings.Cut(name, ".")
	if strings.HasSuffix(suffix, ".inference."+a.cfg.Domain) && strings.Count(suffix, ".") == strings.Count(a.cfg.Domain, ".")+2 {
		return a.leaf("*." + suffix)
	}
	return a.leaf("")
}

// leaf is the current certificate for one extra name, or for all of Names; it is renewed after two thirds of its life.
func (a *Authority) leaf(extra string) (*tls.Certificate, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.cfg.Clock()
	l := a.leaves[extra]
	if l != nil && now.Before(l.renew) {
		return l.cert, nil
	}
	if l == nil && len(a.leaves) > maxExtra {
		// Strangers choose the names that they ask for: they may cost a signature, not keep a region from being served.
		for name := range a.leaves {
			if name != "" {
				delete(a.leaves, name)
				break
			}
		}
	}
	names, ips := []string{extra}, []net.IP(nil)
	if extra == "" {
		names, ips = nil, []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}
		for _, n := range a.cfg.Names {
			names = append(names, n+"."+a.cfg.Domain)
		}
	}
	cert, err := a.issue(names, ips, now)
	if err != nil {
		return nil, err
	}
	a.leaves[extra] = &leaf{cert: cert, renew: now.Add(leafLife * 2 / 3)}
	return cert, nil
}

func (a *Authority) issue(names []string, ips []net.IP, now time.Time) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generating a leaf key: %w", err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: names[0]}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(leafLife),
		DNSNames: names, IPAddresses: ips, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.root, &key.PublicKey, a.key)
	if err != nil {
		return nil, fmt.Errorf("signing a leaf certificate: %w", err)
	}
	return &tls.Certificate{Certificate: [][]byte{der, a.root.Raw}, PrivateKey: key}, nil
}

func serial() *big.Int {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // never fails
	b[0] &= 0x7f
	return new(big.Int).SetBytes(b)
}
