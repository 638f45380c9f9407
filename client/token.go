package client

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
)

// Audiences of the planes.
const (
	AudienceStorage   = "https://storage.azure.com"
	AudienceWorkspace = "https://ml.azure.com"
	AudienceRegistry  = "https://containerregistry.azure.net"
)

// tokenMargin is how long before its end a token is replaced.
const tokenMargin = 2 * time.Minute

type tokenCache struct {
	mu   sync.Mutex // guards held
	held map[string]heldToken
}

type heldToken struct {
	token string
	until time.Time
}

// Token gets a token for an audience with the client's secret (RFC 6749 §4.4), or one that it still holds.
func (c *Client) Token(ctx context.Context, audience string) (string, error) {
	c.tokens.mu.Lock()
	defer c.tokens.mu.Unlock()
	if t, ok := c.tokens.held[audience]; ok && time.Until(t.until) > tokenMargin {
		return t.token, nil
	}
	form := url.Values{"grant_type": {"client_credentials"}, "client_id": {c.As.ClientID}, "client_secret": {c.As.Secret}, "scope": {audience + "/.default"}}
	var answer struct {
		Token   string `json:"access_token"`
		Expires int64  `json:"expires_in"`
	}
	_, err := c.Do(ctx, Request{Method: http.MethodPost, URL: c.URL("login") + "/" + c.As.Tenant + "/oauth2/v2.0/token",
		Header: http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}, Body: strings.NewReader(form.Encode())}, &answer)
	if err != nil {
		return "", fmt.Errorf("getting a token for %s: %w", audience, err)
	}
	if c.tokens.held == nil {
		c.tokens.held = map[string]heldToken{}
	}
	c.tokens.held[audience] = heldToken{answer.Token, time.Now().Add(time.Duration(answer.Expires) * time.Second)}
	return answer.Token, nil
}

// Forget drops the tokens that the client holds.
func (c *Client) Forget() {
	c.tokens.mu.Lock()
	defer c.tokens.mu.Unlock()
	c.tokens.held = nil
}
