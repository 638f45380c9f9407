package registry

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"strings"
	"time"

	"casemate.dev/resource"
)

const (
	accessLife  = time.Hour       // of a token of a client
	actingLife  = 5 * time.Minute // of a token made in process, which stands for no directory token
	clockSkew   = 30 * time.Second
	maxRegistry = 16 << 10 // bytes of a registry token
	algorithm   = "ES256"
	issuer      = "casemate registry"
)

// The uses of a token. A refresh token is good at the token endpoint only, an access token everywhere else.
const (
	useRefresh = "refresh"
	useAccess  = "access"
)

// claims are what a registry token says. It says nothing about rights.
//
//	header.payload.signature, each base64url: {"alg":"ES256","kid":…,"typ":"JWT"} . this . r‖s (RFC 7515, RFC 7518 §3.4)
//
// Proof is the directory token that it was exchanged for, encrypted: every use of the registry token verifies that one
// again, so that it ends with the credential, the principal, the node or the run that the directory token ends with. A
// token without it was made in process for a principal.
type claims struct {
	Issuer     string `json:"iss"`
	Audience   string `json:"aud"` // host name of the registry, without port
	Subject    string `json:"sub"` // object id of the principal
	ID         string `json:"jti"`
	Use        string `json:"use"`
	IssuedAt   int64  `json:"iat"`
	NotBefore  int64  `json:"nbf"`
	Expires    int64  `json:"exp"`
	Proof      []byte `json:"proof,omitempty"`
	Node       string `json:"node,omitempty"`
	Run        string `json:"run,omitempty"`
	OnBehalfOf string `json:"obo,omitempty"`
}

type header struct {
	Algorithm string `json:"alg"`
	KeyID     string `json:"kid"`
	Type      string `json:"typ"`
}

// tokens signs and reads registry tokens. Its keys live as long as the process: a restart ends all tokens, and clients get
// new ones with what they signed in with.
type tokens struct {
	key   *ecdsa.PrivateKey
	kid   string
	proof cipher.AEAD
	now   resource.Clock
}

func newTokens(now resource.Clock) (*tokens, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generating token key: %w", err)
	}
	secret := make([]byte, 32)
	_, _ = rand.Read(secret) // never fails, see crypto/rand
	block, err := aes.NewCipher(secret)
	if err != nil {
		return nil, fmt.Errorf("generating proof key: %w", err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, fmt.Errorf("generating proof key: %w", err)
	}
	return &tokens{key: key, kid: newID(), proof: aead, now: now}, nil
}

// seal encrypts the directory token of a registry token; subject and id bind it to that one.
func (t *tokens) seal(c *claims, raw string) {
	c.Proof = t.proof.Seal(nil, nil, []byte(raw), []byte("registry proof "+c.Subject+" "+c.ID))
}

func (t *tokens) unseal(c *claims) (string, error) {
	raw, err := t.proof.Open(nil, nil, c.Proof, []byte("registry proof "+c.Subject+" "+c.ID))
	if err != nil {
		return "", errors.New("its proof cannot be read")
	}
	return string(raw), nil
}

// sign writes a token.
func (t *tokens) sign(c *claims) (string, error) {
	h, err := json.Marshal(header{algorithm, t.kid, "JWT"})
	if err != nil {
		return "", err
	}
	p, err := json.Marshal(c)
	if err != nil {
		return "", err
	}
	text := base64.RawURLEncoding.EncodeToString(h) + "." + base64.RawURLEncoding.EncodeToString(p)
	sum := sha256.Sum256([]byte(text))
	r, s, err := ecdsa.Sign(rand.Reader, t.key, sum[:])
	if err != nil {
		return "", fmt.Errorf("signing token: %w", err)
	}
	sig := make([]byte, 64)
	r.FillBytes(sig[:32])
	s.FillBytes(sig[32:])
	return text + "." + base64.RawURLEncoding.EncodeToString(sig), nil
}

// mine says whether a text claims to be a token of this signer, by its key id.
func (t *tokens) mine(raw string) bool {
	first, _, _ := strings.Cut(raw, ".")
	var h struct {
		KeyID  string `json:"kid"`
		Issuer string `json:"iss"`
	}
	b, err := base64.RawURLEncoding.DecodeString(first)
	return err == nil && json.Unmarshal(b, &h) == nil && h.KeyID == t.kid
}

// read checks everything about a token but who its subject is now. The algorithm and the key are ours, whatever the header
// says: a header with any other member, an embedded key above all, is refused.
func (t *tokens) read(raw, audience string, uses ...string) (*claims, error) {
	if len(raw) > maxRegistry || strings.ContainsAny(raw, "\r\n") {
		return nil, errors.New("it is not a signed JWT")
	}
	parts := strings.Split(raw, ".")
	if len(parts) != 3 {
		return nil, errors.New("it is not a signed JWT")
	}
	var h header
	if err := decode(parts[0], &h); err != nil || h != (header{algorithm, t.kid, "JWT"}) {
		return nil, errors.New("it was not signed here, or before the last restart")
	}
	sig, err := base64.RawURLEncoding.Strict().DecodeString(parts[2])
	if err != nil || len(sig) != 64 {
		return nil, errors.New("its signature cannot be read")
	}
	sum := sha256.Sum256([]byte(parts[0] + "." + parts[1]))
	if !ecdsa.Verify(&t.key.PublicKey, sum[:], new(big.Int).SetBytes(sig[:32]), new(big.Int).SetBytes(sig[32:])) {
		return nil, errors.New("its signature is wrong")
	}
	var c claims
	if err := decode(parts[1], &c); err != nil {
		return nil, errors.New("its claims cannot be read")
	}
	now := t.now()
	known := false
	for _, use := range uses {
		known = known || c.Use == use
	}
	switch {
	case c.Issuer != issuer || c.Subject == "" || !known:
		return nil, errors.New("it is not meant for this use")
	case !strings.EqualFold(c.Audience, audience):
		return nil, errors.New("it was issued for another registry")
	case now.Unix() >= c.Expires:
		return nil, errors.New("it has expired")
	case now.Add(clockSkew).Unix() < c.NotBefore:
		return nil, errors.New("it is not valid yet")
	}
	return &c, nil
}

// decode reads one part, which holds nothing but the members of v.
func decode(part string, v any) error {
	b, err := base64.RawURLEncoding.Strict().DecodeString(part)
	if err != nil {
		return err
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return err
	}
	if _, err := dec.Token(); err != io.EOF {
		return errors.New("something follows the object")
	}
	return nil
}

// expiryOf reads when a directory token ends, after it was verified.
func expiryOf(raw string) time.Time {
	parts := strings.Split(raw, ".")
	if len(parts) != 3 {
		return time.Time{}
	}
	b, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return time.Time{}
	}
	var c struct {
		Expires int64 `json:"exp"`
	}
	if json.Unmarshal(b, &c) != nil {
		return time.Time{}
	}
	return time.Unix(c.Expires, 0)
}
