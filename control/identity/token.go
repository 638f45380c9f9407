package identity

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// algorithm of all tokens (RFC 7518 §3.3).
const algorithm = "RS256"

// header of a token (RFC 7515 §4.1). Others than these members are refused: no key may travel in a token.
type header struct {
	Type      string `json:"typ"`
	Algorithm string `json:"alg"`
	KeyID     string `json:"kid"`
}

// claims of an access token: Entra's names where Entra has one, ours with the prefix casemate_.
type claims struct {
	Audience   string `json:"aud"`
	Issuer     string `json:"iss"`
	IssuedAt   int64  `json:"iat"`
	NotBefore  int64  `json:"nbf"`
	Expires    int64  `json:"exp"`
	AppID      string `json:"appid,omitempty"`
	AZP        string `json:"azp,omitempty"`
	Name       string `json:"app_displayname,omitempty"`
	IDType     string `json:"idtyp"`
	Object     string `json:"oid"`
	Subject    string `json:"sub"`
	Tenant     string `json:"tid"`
	TokenID    string `json:"uti"`
	Version    string `json:"ver"`
	ResourceID string `json:"xms_mirid,omitempty"`

	Epoch      int64  `json:"casemate_epoch"`
	Credential string `json:"casemate_cred,omitempty"` // keyId of the secret that the token was issued for
	Node       string `json:"casemate_node,omitempty"`
	Run        string `json:"casemate_run,omitempty"`
	OnBehalfOf string `json:"casemate_obo,omitempty"`
}

// Token is an access token on its way to the client.
type Token struct {
	Raw       string
	Audience  string
	ClientID  string
	NotBefore time.Time
	Expires   time.Time
}

// grant is what a token shall say, after everything about it has been decided.
type grant struct {
	principal  *object
	credential string
	audience   string
	dialect    dialect
	node       string
	run        string
	onBehalfOf string
	lifetime   time.Duration
}

func (s *Service) issue(g grant) (Token, error) {
	now := s.cfg.Clock()
	key := s.keys.Load().signer(now)
	if key == nil {
		return Token{}, errors.New("issuing token: no signing key")
	}
	c := claims{
		Audience: g.audience, Issuer: s.urls.issuer(g.dialect, g.principal.Tenant),
		IssuedAt: now.Unix(), NotBefore: now.Unix(), Expires: now.Add(g.lifetime).Unix(),
		AppID: g.principal.App, AZP: g.principal.App, Name: g.principal.Name, IDType: "app",
		Object: g.principal.ID, Subject: g.principal.ID, Tenant: g.principal.Tenant, TokenID: newTokenID(),
		Version: map[dialect]string{dialectV2: "2.0"}[g.dialect], ResourceID: g.principal.ResourceID, Epoch: g.principal.Epoch, Credential: g.credential,
		Node: g.node, Run: g.run, OnBehalfOf: g.onBehalfOf,
	}
	if c.Version == "" {
		c.Version = "1.0"
	}
	raw, err := key.sign(c)
	if err != nil {
		return Token{}, err
	}
	return Token{raw, g.audience, g.principal.App, time.Unix(c.NotBefore, 0), time.Unix(c.Expires, 0)}, nil
}

func newTokenID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand ends the process instead
	return base64.RawURLEncoding.EncodeToString(b[:])
}

// sign makes a compact JWS (RFC 7515 §7.1).
func (k *signingKey) sign(c claims) (string, error) {
	head, err := json.Marshal(header{"JWT", algorithm, k.id})
	if err != nil {
		return "", fmt.Errorf("encoding token header: %w", err)
	}
	body, err := json.Marshal(c)
	if err != nil {
		return "", fmt.Errorf("encoding claims: %w", err)
	}
	b64 := base64.RawURLEncoding
	input := b64.EncodeToString(head) + "." + b64.EncodeToString(body)
	sum := sha256.Sum256([]byte(input))
	sig, err := rsa.SignPKCS1v15(rand.Reader, k.private, crypto.SHA256, sum[:])
	if err != nil {
		return "", fmt.Errorf("signing token: %w", err)
	}
	return input + "." + b64.EncodeToString(sig), nil
}

// RunToken issues a token for a managed identity that acts for one run on one node, as the instance metadata service of
// that node would: it ends with the node and the run. resourceID names the identity.
func (s *Service) RunToken(_ context.Context, node, resourceID, audience string) (Token, error) {
	n, ok := s.node(node)
	if !ok {
		return Token{}, fmt.Errorf("issuing token: node %q is not known", node)
	}
	if s.urls.planeOf(audience) == "" {
		return Token{}, fmt.Errorf("issuing token: nobody answers to audience %q", audience)
	}
	p, err := s.nodeIdentity(n, identityChoice{resourceID: resourceID})
	if err != nil {
		return Token{}, err
	}
	return s.issueToNode(node, n, p, audience)
}

func (s *Service) issueToNode(node string, n NodeIdentity, p *object, audience string) (Token, error) {
	return s.issue(grant{principal: p, audience: audience, dialect: dialectV1, node: node, run: n.Run, onBehalfOf: n.OnBehalfOf, lifetime: nodeTokenLifetime})
}
