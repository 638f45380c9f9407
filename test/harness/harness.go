// Package harness starts real servers for tests and speaks to them as an outsider does: over TLS, with a client secret,
// knowing nothing but what `casemate serve` leaves in DIR/client.
//
// It is for the tests below test/ and for those of cmd/casemate. It imports no package of the platform but client/image, which
// pushes images as any client does, so that no test that uses it can pass by a way that outsiders do not have. It trusts the server in nothing: every helper hands back the
// status and the bytes that came, and judging them is the test's business.
//
// Platform is a running server seen from outside, Server a process that can be killed and started again, Lab a workspace on it
// whose nodes really run. Nothing here leaves the loopback interface and the namespaces that the server makes.
package harness

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// API versions that the tests send.
const (
	VersionGroup   = "2021-04-01"
	VersionStorage = "2023-05-01"
	VersionVault   = "2023-07-01"
	VersionRole    = "2022-04-01"
	VersionSecret  = "7.4"
	VersionBlob    = "2023-11-03"
)

// Platform is a running server, as its clients know it. It is safe for concurrent use.
type Platform struct {
	Env    map[string]string // the assignments of DIR/client/env
	Domain string            // without port
	Port   string
	HTTP   *http.Client // trusts the platform's authority only; every host name leads to the loopback address
	TLS    *tls.Config
	Admin  *Principal
}

// Connect reads a data directory's client files.
func Connect(dir string) (*Platform, error) {
	env, err := ReadEnv(filepath.Join(dir, "client", "env"))
	if err != nil {
		return nil, err
	}
	pem, err := os.ReadFile(env["SSL_CERT_FILE"])
	if err != nil {
		return nil, fmt.Errorf("reading the authority's certificate: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s holds no certificate", env["SSL_CERT_FILE"])
	}
	p := &Platform{Env: env, TLS: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}}
	if p.Domain, p.Port, err = net.SplitHostPort(env["CASEMATE_DOMAIN"]); err != nil {
		return nil, fmt.Errorf("reading CASEMATE_DOMAIN: %w", err)
	}
	var dialer net.Dialer
	p.HTTP = &http.Client{
		Timeout:       2 * time.Minute,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			TLSClientConfig: p.TLS, DisableCompression: true, MaxIdleConnsPerHost: 16,
			DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
				return dialer.DialContext(ctx, network, p.Address())
			},
		},
	}
	p.Admin = &Principal{platform: p, Tenant: env["AZURE_TENANT_ID"], AppID: env["AZURE_CLIENT_ID"], ObjectID: env["CASEMATE_OBJECT_ID"], Secret: env["AZURE_CLIENT_SECRET"]}
	return p, nil
}

// ReadEnv reads shell assignments.
func ReadEnv(path string) (map[string]string, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading the client environment: %w", err)
	}
	env := map[string]string{}
	for line := range strings.Lines(string(raw)) {
		if name, value, ok := strings.Cut(strings.TrimPrefix(strings.TrimSpace(line), "export "), "="); ok {
			env[name] = strings.Trim(value, `"'`)
		}
	}
	return env, nil
}

// Address is where the public listener is.
func (p *Platform) Address() string { return net.JoinHostPort("127.0.0.1", p.Port) }

// Host is a platform host name, such as management or v1.vault, with port.
func (p *Platform) Host(name string) string { return net.JoinHostPort(name+"."+p.Domain, p.Port) }

// URL is the address of a path on a platform host.
func (p *Platform) URL(host, path string) string { return "https://" + p.Host(host) + path }

// Subscription is the ARM id of the subscription that the first start made.
func (p *Platform) Subscription() string { return "/subscriptions/" + p.Env["AZURE_SUBSCRIPTION_ID"] }

// audience is what a client asks a token for to speak to a host.
func (p *Platform) audience(host string) string {
	name, _, _ := strings.Cut(host, ":")
	name = strings.TrimSuffix(name, "."+p.Domain)
	switch {
	case strings.HasSuffix(name, ".vault"):
		return p.URL("vault", "")
	case strings.HasSuffix(name, ".core"):
		return "https://storage.azure.com"
	case name == "graph":
		return p.URL("graph", "/")
	}
	return "https://management.azure.com"
}

// Call is one request.
type Call struct {
	Method, URL string
	As          *Principal  // whose token is sent; nil: none, unless Token is set
	Token       string      // sent as it is instead
	Header      http.Header // further headers
	Body        any         // []byte and string as they are, io.Reader streamed, everything else as JSON
}

// Answer is what came back.
type Answer struct {
	Status int
	Header http.Header
	Body   []byte
}

// Code is the error code of an ARM, vault, storage or OAuth answer; empty when there is none.
func (a Answer) Code() string {
	if c := a.Header.Get("x-ms-error-code"); c != "" {
		return c
	}
	var body struct {
		Error json.RawMessage `json:"error"`
	}
	if json.Unmarshal(a.Body, &body) != nil {
		return ""
	}
	var text string
	var object struct {
		Code string `json:"code"`
	}
	if json.Unmarshal(body.Error, &text) == nil {
		return text
	}
	_ = json.Unmarshal(body.Error, &object) // an error without a code has none
	return object.Code
}

func (a Answer) String() string {
	b := a.Body
	if len(b) > 600 {
		b = b[:600]
	}
	return fmt.Sprintf("%d %s", a.Status, b)
}

// JSON decodes the body; nil when it is no JSON object.
func (a Answer) JSON() map[string]any {
	var m map[string]any
	_ = json.Unmarshal(a.Body, &m) // nil says so
	return m
}

// Field is a string below dots in a JSON body, empty when it is not there.
func (a Answer) Field(path string) string {
	var v any = a.JSON()
	for name := range strings.SplitSeq(path, ".") {
		m, _ := v.(map[string]any)
		v = m[name]
	}
	s, _ := v.(string)
	return s
}

// Send makes one request and reads the whole answer.
func (p *Platform) Send(ctx context.Context, c Call) (Answer, error) {
	body, isJSON, err := encode(c.Body)
	if err != nil {
		return Answer{}, err
	}
	r, err := http.NewRequestWithContext(ctx, c.Method, c.URL, body)
	if err != nil {
		return Answer{}, fmt.Errorf("making the request %s %s: %w", c.Method, c.URL, err)
	}
	if isJSON {
		r.Header.Set("Content-Type", "application/json")
	}
	if strings.Contains(r.Host, ".blob.core.") {
		r.Header.Set("x-ms-version", VersionBlob)
	}
	for name, values := range c.Header {
		r.Header[name] = values
	}
	token := c.Token
	if c.As != nil {
		if token, err = c.As.Token(ctx, p.audience(r.URL.Host)); err != nil {
			return Answer{}, err
		}
	}
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	return p.do(r)
}

func (p *Platform) do(r *http.Request) (Answer, error) {
	resp, err := p.HTTP.Do(r)
	if err != nil {
		return Answer{}, err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		return Answer{}, fmt.Errorf("reading the answer to %s %s: %w", r.Method, r.URL, err)
	}
	return Answer{Status: resp.StatusCode, Header: resp.Header, Body: raw}, nil
}

func encode(body any) (r io.Reader, isJSON bool, err error) {
	switch b := body.(type) {
	case nil:
		return nil, false, nil
	case []byte:
		return bytes.NewReader(b), false, nil
	case string:
		return strings.NewReader(b), false, nil
	case io.Reader:
		return b, false, nil
	}
	raw, err := json.Marshal(body)
	if err != nil {
		return nil, false, fmt.Errorf("encoding the body: %w", err)
	}
	return bytes.NewReader(raw), true, nil
}

// ARM sends one request to the resource manager as the administrator, and follows a long-running answer to its end.
func (p *Platform) ARM(ctx context.Context, method, id, version string, body any) (Answer, error) {
	return p.ARMAs(ctx, p.Admin, method, id, version, body)
}

// ARMAs is ARM for any principal.
func (p *Platform) ARMAs(ctx context.Context, as *Principal, method, id, version string, body any) (Answer, error) {
	a, err := p.Send(ctx, Call{Method: method, URL: p.URL("management", id+"?api-version="+version), As: as, Body: body})
	if err != nil || a.Status >= 300 {
		return a, err
	}
	next := a.Header.Get("Azure-AsyncOperation")
	if next == "" && a.Status == http.StatusAccepted {
		next = a.Header.Get("Location")
	}
	if next == "" {
		return a, nil
	}
	return p.poll(ctx, as, a, next)
}

// poll asks until the operation has ended (ARM RPC, "Asynchronous Operations"). The answer is the last poll's.
func (p *Platform) poll(ctx context.Context, as *Principal, first Answer, next string) (Answer, error) {
	u, err := url.Parse(next)
	if err != nil {
		return first, fmt.Errorf("reading the poll address: %w", err)
	}
	for range 600 {
		a, err := p.Send(ctx, Call{Method: http.MethodGet, URL: u.String(), As: as})
		if err != nil {
			return a, err
		}
		state := a.Field("status")
		switch {
		case a.Status >= 300, state == "Succeeded":
			return a, nil
		case state == "Failed", state == "Canceled":
			a.Status = http.StatusConflict
			return a, nil
		case a.Status == http.StatusOK && state == "", a.Status == http.StatusNoContent:
			return a, nil
		}
		select {
		case <-ctx.Done():
			return a, fmt.Errorf("waiting for %s: %w", next, ctx.Err())
		case <-time.After(50 * time.Millisecond): // polling is what the protocol offers
		}
	}
	return first, fmt.Errorf("the operation at %s does not end", next)
}
