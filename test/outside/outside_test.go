// Package outside drives a running platform with Microsoft's own unmodified
// clients, as an outsider would: over TLS, with a service principal, knowing
// nothing but the files that `casemate serve` leaves for its clients.
//
// `go test` here builds and starts a server of its own. Set
// CASEMATE_OUTSIDE_ENV to DIR/client/env of a running server to use that
// instead, or CASEMATE_BIN to a binary. The tests make what they need and
// remove it.
package outside

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/cloud"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/google/uuid"
)

// envName is the variable that names the client/env file of the server under test.
const envName = "CASEMATE_OUTSIDE_ENV"

// platform is a running server, reached as its administrator.
type platform struct {
	t    *testing.T
	env  map[string]string
	http *http.Client
	cred azcore.TokenCredential
	opt  azcore.ClientOptions
}

// newPlatform connects as the administrator.
func newPlatform(t *testing.T) *platform {
	t.Helper()
	p := &platform{t: t, env: readEnv(t, os.Getenv(envName))}
	p.http = p.client()
	p.opt = azcore.ClientOptions{
		Transport: p.http, Retry: policy.RetryOptions{MaxRetries: -1},
		Cloud: cloud.Configuration{ActiveDirectoryAuthorityHost: p.env["AZURE_AUTHORITY_HOST"], Services: map[cloud.ServiceName]cloud.ServiceConfiguration{
			cloud.ResourceManager: {Endpoint: p.env["CASEMATE_ENDPOINT"], Audience: p.env["CASEMATE_ENDPOINT"]},
		}},
	}
	var err error
	p.cred, err = azidentity.NewClientSecretCredential(p.env["AZURE_TENANT_ID"], p.env["AZURE_CLIENT_ID"], p.env["AZURE_CLIENT_SECRET"],
		&azidentity.ClientSecretCredentialOptions{ClientOptions: p.opt, DisableInstanceDiscovery: true})
	p.check(err)
	return p
}

func (p *platform) check(err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatal(err)
	}
}

// readEnv reads shell assignments.
func readEnv(t *testing.T, path string) map[string]string {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	env := map[string]string{}
	for line := range strings.Lines(string(raw)) {
		line = strings.TrimPrefix(strings.TrimSpace(line), "export ")
		if name, value, ok := strings.Cut(line, "="); ok && !strings.HasPrefix(line, "#") {
			env[name] = strings.Trim(value, `"'`)
		}
	}
	return env
}

// client trusts the platform's authority only, and finds its host names at the loopback address.
func (p *platform) client() *http.Client {
	p.t.Helper()
	pem, err := os.ReadFile(p.env["SSL_CERT_FILE"])
	p.check(err)
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		p.t.Fatal("no certificate in SSL_CERT_FILE")
	}
	domain, _, _ := strings.Cut(p.env["CASEMATE_DOMAIN"], ":")
	dialer := net.Dialer{Timeout: 10 * time.Second}
	return &http.Client{Timeout: 2 * time.Minute, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12},
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			if host, port, err := net.SplitHostPort(addr); err == nil && strings.HasSuffix(host, "."+domain) {
				addr = net.JoinHostPort("127.0.0.1", port)
			}
			return dialer.DialContext(ctx, network, addr)
		},
	}}
}

func (p *platform) token() string {
	p.t.Helper()
	tok, err := p.cred.GetToken(p.t.Context(), policy.TokenRequestOptions{Scopes: []string{"https://management.azure.com/.default"}})
	p.check(err)
	return tok.Token
}

// objectID is the administrator's own, as its token says.
func (p *platform) objectID() string {
	p.t.Helper()
	parts := strings.Split(p.token(), ".")
	if len(parts) != 3 {
		p.t.Fatal("the token is no JWT")
	}
	raw, err := base64.RawURLEncoding.DecodeString(parts[1])
	p.check(err)
	var claims struct{ Oid string }
	p.check(json.Unmarshal(raw, &claims))
	return claims.Oid
}

// arm sends one request to the resource manager and returns status and body.
func (p *platform) arm(method, path, version string, body any) (int, map[string]any) {
	p.t.Helper()
	var in io.Reader = http.NoBody
	if body != nil {
		raw, err := json.Marshal(body)
		p.check(err)
		in = bytes.NewReader(raw)
	}
	// Not the test's context: what a test made is removed after that has ended.
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, method, strings.TrimSuffix(p.env["CASEMATE_ENDPOINT"], "/")+path+"?api-version="+version, in)
	p.check(err)
	tok, err := p.cred.GetToken(ctx, policy.TokenRequestOptions{Scopes: []string{"https://management.azure.com/.default"}})
	p.check(err)
	r.Header.Set("Authorization", "Bearer "+tok.Token)
	r.Header.Set("Content-Type", "application/json")
	resp, err := p.http.Do(r)
	p.check(err)
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	p.check(err)
	out := map[string]any{}
	if len(raw) > 0 {
		if err := json.Unmarshal(raw, &out); err != nil {
			p.t.Fatalf("%s %s: %s %s", method, path, resp.Status, raw)
		}
	}
	return resp.StatusCode, out
}

// must is arm for what has to succeed.
func (p *platform) must(method, path, version string, body any) map[string]any {
	p.t.Helper()
	status, out := p.arm(method, path, version, body)
	if status >= 300 {
		p.t.Fatalf("%s %s = %d %v", method, path, status, out)
	}
	return out
}

// newGroup makes a resource group that goes with the test.
func (p *platform) newGroup() string {
	p.t.Helper()
	group := "/subscriptions/" + p.env["AZURE_SUBSCRIPTION_ID"] + "/resourceGroups/outside-" + suffix()
	p.must("PUT", group, "2021-04-01", map[string]any{"location": "local"})
	p.t.Cleanup(func() {
		if status, out := p.arm("DELETE", group, "2021-04-01", nil); status >= 300 {
			p.t.Errorf("removing %s = %d %v", group, status, out)
		}
	})
	return group
}

// grant gives the administrator a role at a scope.
func (p *platform) grant(scope, role string) {
	p.t.Helper()
	p.must("PUT", scope+"/providers/Microsoft.Authorization/roleAssignments/"+uuid.NewString(), "2022-04-01", map[string]any{
		"properties": map[string]any{"principalId": p.objectID(), "principalType": "ServicePrincipal",
			"roleDefinitionId": "/subscriptions/" + p.env["AZURE_SUBSCRIPTION_ID"] + "/providers/Microsoft.Authorization/roleDefinitions/" + role}})
}

// suffix makes names that no other test has.
func suffix() string {
	var b [5]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}
