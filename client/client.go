// Package client speaks Casemate's own public interface: tokens, resource manager, directory, vault, blob, workspace and
// scoring, each over HTTPS as any other client of those protocols would.
//
// It is for the demonstration and for the operator's commands, which run as named principals from a place in the network that
// they choose: a Site carries the dialer, so the same code speaks through the public listener or from inside a
// virtual network. It holds no key of the platform and imports no plane: what it cannot do over the wire it cannot do.
//
// Servers are believed only under the authority that the Site trusts. What they answer is bounded in size and kept as data;
// redirects are not followed, so that no answer can send a token elsewhere. The package retries nothing but polls:
// a refusal is an Error that says status, code and message, for callers who want to see exactly that.
package client

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"
)

// maxAnswer bounds a body that is read whole.
const maxAnswer = 64 << 20

// Site is an installation and the way to it.
type Site struct {
	Domain string         // required, such as casemate.localhost
	Port   string         // public port; "" or "443": left out of URLs
	Roots  *x509.CertPool // required: who may vouch for the servers
	// Dial opens connections. Default: by the system's names. At, and dialers inside virtual networks, go here.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
}

// LoadRoots reads the authority's certificate.
func LoadRoots(path string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading the authority's certificate: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("reading the authority's certificate: %s holds none", path)
	}
	return roots, nil
}

// At returns a dialer that finds every name of the installation at one address.
func At(addr string) func(ctx context.Context, network, _ string) (net.Conn, error) {
	return func(ctx context.Context, network, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, addr)
	}
}

// Authority is a host of the installation with the port where it is needed.
func (s Site) Authority(name string) string {
	host := name + "." + s.Domain
	if s.Port == "" || s.Port == "443" {
		return host
	}
	return net.JoinHostPort(host, s.Port)
}

// URL is the base URL of a host of the installation, such as management.
func (s Site) URL(name string) string { return "https://" + s.Authority(name) }

// Transport makes a transport of the site.
func (s Site) Transport() *http.Transport {
	return &http.Transport{
		DialContext: s.Dial, TLSClientConfig: &tls.Config{RootCAs: s.Roots, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout: 10 * time.Second, ResponseHeaderTimeout: 3 * time.Minute, IdleConnTimeout: time.Minute, MaxIdleConnsPerHost: 8,
	}
}

// Credential is a service principal. Its zero value is nobody.
type Credential struct {
	Tenant, ClientID, Secret string
	ObjectID                 string // of the principal, for role assignments
}

// Client is one principal at one place. It is safe for concurrent use.
type Client struct {
	Site
	As     Credential
	http   *http.Client
	tokens tokenCache
}

// New makes a client. With the zero Credential its requests carry no token.
func New(s Site, c Credential) (*Client, error) {
	if s.Domain == "" || s.Roots == nil {
		return nil, errors.New("making a client: Domain and Roots are required")
	}
	return &Client{Site: s, As: c, http: &http.Client{Transport: s.Transport(),
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}}, nil
}

// From is the same principal at another place.
func (c *Client) From(dial func(ctx context.Context, network, addr string) (net.Conn, error)) *Client {
	s := c.Site
	s.Dial = dial
	other, _ := New(s, c.As) // c was made by New
	return other
}

// Close ends idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Error is a refusal or failure as the server told it.
type Error struct {
	Status        int
	Code, Message string
}

func (e *Error) Error() string {
	return strings.TrimSpace(fmt.Sprintf("%d %s: %s", e.Status, e.Code, e.Message))
}

// StatusOf is the HTTP status in an error; 0 when no server answered.
func StatusOf(err error) int {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Status
	}
	return 0
}

// Request is one call.
type Request struct {
	Method   string // default GET
	URL      string
	Audience string // of the token; "": none is sent
	Token    string // sent instead of one of Audience
	Header   http.Header
	Body     io.Reader
	Size     int64 // of Body; 0: found out where possible
	JSON     any   // encoded as the body
}

// Open sends a request and returns the answer with its body open. Status 400 and above is an *Error.
func (c *Client) Open(ctx context.Context, q Request) (*http.Response, error) {
	if q.JSON != nil {
		b, err := json.Marshal(q.JSON)
		if err != nil {
			return nil, fmt.Errorf("encoding request: %w", err)
		}
		q.Body = bytes.NewReader(b)
	}
	r, err := http.NewRequestWithContext(ctx, q.Method, q.URL, q.Body)
	if err != nil {
		return nil, fmt.Errorf("making request: %w", err)
	}
	if q.Size > 0 {
		r.ContentLength = q.Size
	}
	for k, v := range q.Header {
		r.Header[http.CanonicalHeaderKey(k)] = v
	}
	if q.JSON != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	token := q.Token
	if token == "" && q.Audience != "" && c.As.ClientID != "" {
		if token, err = c.Token(ctx, q.Audience); err != nil {
			return nil, err
		}
	}
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	res, err := c.http.Do(r)
	if err != nil {
		return nil, err // *url.Error names method and URL
	}
	if res.StatusCode >= 400 {
		defer func() { _ = res.Body.Close() }() // the refusal is what matters
		return nil, readError(res)
	}
	return res, nil
}

// Do sends a request, reads the whole answer, and decodes it as JSON where out is not nil.
func (c *Client) Do(ctx context.Context, q Request, out any) (http.Header, error) {
	res, err := c.Open(ctx, q)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err := errors.Join(err, res.Body.Close()); err != nil {
		return res.Header, fmt.Errorf("reading answer of %s: %w", q.URL, err)
	}
	if raw, ok := out.(*[]byte); ok {
		*raw = b
		return res.Header, nil
	}
	if out == nil || len(bytes.TrimSpace(b)) == 0 {
		return res.Header, nil
	}
	if err := json.Unmarshal(b, out); err != nil {
		return res.Header, fmt.Errorf("decoding answer of %s: %w", q.URL, err)
	}
	return res.Header, nil
}

func escape(path string) string {
	parts := strings.Split(path, "/")
	for i, p := range parts {
		parts[i] = url.PathEscape(p)
	}
	return strings.Join(parts, "/")
}
