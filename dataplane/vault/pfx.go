package vault

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/fips140"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"

	pkcs12 "software.sslmate.com/src/go-pkcs12"

	"casemate.dev/resource"
)

// identity is a private key with its certificate and what stands above it, leaf first.
type identity struct {
	key   crypto.Signer
	chain []*x509.Certificate
}

const (
	maxCertificates = 20
	maxIterations   = 1_000_000 // of a password's derivation: more would keep a processor busy for a stranger
)

// parseIdentity reads what a client imports: PEM, PEM in base64 (as Azure's command line sends it), or PKCS #12 in base64.
func parseIdentity(value, password string) (id identity, contentType string, err error) {
	raw := []byte(value)
	if !bytes.Contains(raw, []byte("-----BEGIN ")) {
		raw, err = base64.StdEncoding.DecodeString(strings.Join(strings.Fields(value), ""))
		if err != nil {
			return id, "", badParameter("The property 'value' is neither PEM nor base64.").WithCause(err)
		}
	}
	if bytes.Contains(raw, []byte("-----BEGIN ")) {
		id, err = parsePEM(raw)
		contentType = typePEM
	} else {
		id, err = parsePKCS12(raw, password)
		contentType = typePKCS12
	}
	if err != nil {
		return id, contentType, err
	}
	return id, contentType, id.arrange()
}

func parsePEM(raw []byte) (id identity, err error) {
	for block, rest := pem.Decode(raw); block != nil; block, rest = pem.Decode(rest) {
		switch block.Type {
		case "CERTIFICATE":
			c, err := x509.ParseCertificate(block.Bytes)
			if err != nil || len(id.chain) == maxCertificates {
				return id, badParameter("The PEM holds a certificate that cannot be read, or more than %d of them.", maxCertificates).WithCause(err)
			}
			id.chain = append(id.chain, c)
		case "PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY":
			if id.key != nil {
				return id, badParameter("The PEM holds more than one private key.")
			}
			if id.key, err = parsePrivate(block.Bytes); err != nil {
				return id, err
			}
		case "ENCRYPTED PRIVATE KEY":
			return id, badParameter("The private key in the PEM is encrypted. Decrypt it, or import PKCS #12.")
		}
	}
	return id, nil
}

func parsePrivate(der []byte) (crypto.Signer, error) {
	var private any
	var err error
	if private, err = x509.ParsePKCS8PrivateKey(der); err != nil {
		if private, err = x509.ParsePKCS1PrivateKey(der); err != nil {
			private, err = x509.ParseECPrivateKey(der)
		}
	}
	signer, ok := private.(crypto.Signer)
	if err != nil || !ok {
		return nil, badParameter("The private key cannot be read.").WithCause(err)
	}
	return signer, nil
}

// parsePKCS12 guards the library: iterations are bounded before and panics become refusals. In FIPS 140-only mode the old
// ciphers of PKCS #12 panic by design of the standard library.
func parsePKCS12(raw []byte, password string) (id identity, err error) {
	bad := badParameter("The PKCS #12 content cannot be read. Check the password ('pwd') and that it holds one private key.")
	defer func() {
		if p := recover(); p != nil {
			id, err = identity{}, bad.WithCause(fmt.Errorf("decoding PKCS #12: %v", p))
		}
	}()
	if mostIterations(raw, 0) > maxIterations {
		return id, badParameter("The PKCS #12 content derives its keys with more than %d iterations.", maxIterations)
	}
	private, leaf, others, err := pkcs12.DecodeChain(raw, password)
	if err != nil {
		return id, bad.WithCause(err)
	}
	signer, ok := private.(crypto.Signer)
	if !ok || len(others) >= maxCertificates {
		return id, bad
	}
	return identity{key: signer, chain: append([]*x509.Certificate{leaf}, others...)}, nil
}

// mostIterations finds the greatest iteration count in DER: in every structure of PKCS #12 and PKCS #5 (MacData,
// pkcs-12PbeParams, PBKDF2-params) it is the INTEGER right after the OCTET STRING that holds the salt. What is still
// encrypted is not seen here: readIdentity bounds that.
func mostIterations(der []byte, depth int) int64 {
	var most int64
	salt := false
	for len(der) > 0 && depth < 16 {
		var v asn1.RawValue
		rest, err := asn1.Unmarshal(der, &v)
		if err != nil {
			return most
		}
		if salt && v.Class == asn1.ClassUniversal && v.Tag == asn1.TagInteger {
			var n int64
			if _, err := asn1.Unmarshal(v.FullBytes, &n); err != nil {
				n = maxIterations + 1
			}
			most = max(most, n)
		}
		salt = v.Class == asn1.ClassUniversal && v.Tag == asn1.TagOctetString
		if v.IsCompound || salt {
			most = max(most, mostIterations(v.Bytes, depth+1))
		}
		der = rest
	}
	return most
}

// arrange puts the leaf, the certificate of the key, first and checks the key.
func (id *identity) arrange() error {
	if id.key == nil || len(id.chain) == 0 {
		return badParameter("The content must hold a certificate and its private key.")
	}
	switch k := id.key.(type) {
	case *rsa.PrivateKey:
		if err := checkRSASize(k.N.BitLen()); err != nil {
			return err
		}
		if err := k.Validate(); err != nil {
			return badParameter("The RSA key is not valid.").WithCause(err)
		}
	case *ecdsa.PrivateKey:
		if _, err := curveOf(k.Params().Name); err != nil {
			return err
		}
	default:
		return badParameter("A certificate's key must be of type RSA or EC.")
	}
	for i, c := range id.chain {
		if samePublic(id.key.Public(), c.PublicKey) {
			id.chain[0], id.chain[i] = id.chain[i], id.chain[0]
			return nil
		}
	}
	return badParameter("The private key does not belong to any of the certificates.")
}

func samePublic(a, b crypto.PublicKey) bool {
	k, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(b)
}

// secretOf is the value of a certificate's secret. A key that is not exportable is left out.
func (id identity) secretOf(contentType string, exportable bool) (string, error) {
	if contentType == typePEM {
		var b bytes.Buffer
		if exportable {
			der, err := x509.MarshalPKCS8PrivateKey(id.key)
			if err != nil {
				return "", fmt.Errorf("encoding a key: %w", err)
			}
			b.Write(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
		}
		for _, c := range id.chain {
			b.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
		}
		return b.String(), nil
	}
	if fips140.Enforced() {
		return "", resource.NotSupported("PKCS #12 is not available in FIPS 140-only mode. Use the content type %s.", typePEM)
	}
	var pfx []byte
	var err error
	if exportable { // without a password, as Key Vault: the secret's permission is the protection
		pfx, err = pkcs12.Modern.Encode(id.key, id.chain[0], id.chain[1:], "")
	} else {
		pfx, err = pkcs12.Modern.EncodeTrustStore(id.chain, "")
	}
	if err != nil {
		return "", fmt.Errorf("encoding PKCS #12: %w", err)
	}
	return base64.StdEncoding.EncodeToString(pfx), nil
}

// parseChain reads certificates that are stored or merged, leaf first.
func parseChain(ders [][]byte) ([]*x509.Certificate, error) {
	if len(ders) == 0 || len(ders) > maxCertificates {
		return nil, errors.New("no certificates, or too many")
	}
	var chain []*x509.Certificate
	for _, der := range ders {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		chain = append(chain, c)
	}
	return chain, nil
}
