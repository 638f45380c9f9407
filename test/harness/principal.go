package harness

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
)

// Built-in roles (Azure built-in roles, role definition ids).
const (
	RoleOwner              = "8e3af657-a8ff-443c-a75c-2fe8c4bcb635"
	RoleContributor        = "b24988ac-6180-42a0-ab88-20f7382dd24c"
	RoleReader             = "acdd72a7-3385-48ef-bd42-f606fba81ae7"
	RoleVaultAdministrator = "00482a5a-887f-4fb3-b363-3b7fe8e74483"
	RoleVaultContributor   = "f25e0fa2-a7c8-4377-a976-54943a77a395"
	RoleCryptoEncryption   = "e147488a-f6f5-4113-8e2d-b22465e65bf6"
	RoleSecretsUser        = "4633458b-17de-408a-b874-0445c86b69e6"
	RoleBlobOwner          = "b7e6dc6d-f1e8-4753-8033-0f276bb0955b"
	RoleBlobContributor    = "ba92f5b4-2d11-453d-a403-e96b0029c9fe"
	RoleBlobReader         = "2a2b9908-6ea1-4ae2-8e65-a410df84e7d1"
)

// Principal is a service principal with a client secret. It is safe for concurrent use.
type Principal struct {
	platform                        *Platform
	Tenant, AppID, ObjectID, Secret string

	mu     sync.Mutex // guards tokens
	tokens map[string]issued
}

type issued struct {
	raw   string
	until time.Time
}

// Token is an access token for an audience, remembered until a minute before it expires.
func (c *Principal) Token(ctx context.Context, audience string) (string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if t, ok := c.tokens[audience]; ok && time.Now().Before(t.until) {
		return t.raw, nil
	}
	a, err := c.SignIn(ctx, audience)
	if err != nil {
		return "", err
	}
	var body struct {
		AccessToken string `json:"access_token"`
		ExpiresIn   int    `json:"expires_in"`
	}
	if err := json.Unmarshal(a.Body, &body); err != nil || a.Status != http.StatusOK {
		return "", fmt.Errorf("signing in as %s: %v", c.AppID, a)
	}
	if c.tokens == nil {
		c.tokens = map[string]issued{}
	}
	c.tokens[audience] = issued{body.AccessToken, time.Now().Add(time.Duration(body.ExpiresIn-60) * time.Second)}
	return body.AccessToken, nil
}

// SignIn asks the token service and hands back what it says (RFC 6749, section 4.4).
func (c *Principal) SignIn(ctx context.Context, audience string) (Answer, error) {
	form := url.Values{"grant_type": {"client_credentials"}, "client_id": {c.AppID}, "client_secret": {c.Secret}, "scope": {audience + "/.default"}}
	return c.platform.Send(ctx, Call{Method: http.MethodPost, URL: c.platform.URL("login", "/"+c.Tenant+"/oauth2/v2.0/token"),
		Header: http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}, Body: form.Encode()})
}

// Adopt lets a principal whose credentials the test knows speak to the platform.
func (p *Platform) Adopt(c *Principal) { c.platform = p }

// Suffix makes names that no other test has.
func Suffix() string {
	var b [5]byte
	_, _ = rand.Read(b[:]) // never fails, see crypto/rand
	return hex.EncodeToString(b[:])
}

// Must sends and demands one of the statuses, or any below 300 when none is given.
func (p *Platform) Must(t testing.TB, c Call, want ...int) Answer {
	t.Helper()
	a, err := p.Send(t.Context(), c)
	if err != nil {
		t.Fatalf("%s %s: %v", c.Method, c.URL, err)
	}
	demand(t, c.Method+" "+c.URL, a, want)
	return a
}

// MustARM is ARM for what has to have one of the statuses, or any below 300 when none is given.
func (p *Platform) MustARM(t testing.TB, method, id, version string, body any, want ...int) Answer {
	t.Helper()
	a, err := p.ARM(t.Context(), method, id, version, body)
	if err != nil {
		t.Fatalf("%s %s: %v", method, id, err)
	}
	demand(t, method+" "+id, a, want)
	return a
}

func demand(t testing.TB, what string, a Answer, want []int) {
	t.Helper()
	if len(want) == 0 && a.Status < 300 {
		return
	}
	for _, w := range want {
		if a.Status == w {
			return
		}
	}
	t.Fatalf("%s = %v, want %v", what, a, want)
}

// NewPrincipal registers an application with a service principal and a secret, without any role.
func (p *Platform) NewPrincipal(t testing.TB, name string) *Principal {
	t.Helper()
	graph := func(path string, body any) Answer {
		t.Helper()
		return p.Must(t, Call{Method: http.MethodPost, URL: p.URL("graph", "/v1.0/"+path), As: p.Admin, Body: body})
	}
	app := graph("applications", map[string]any{"displayName": name})
	sp := graph("servicePrincipals", map[string]any{"appId": app.Field("appId")})
	secret := graph("servicePrincipals/"+sp.Field("id")+"/addPassword", map[string]any{"passwordCredential": map[string]any{"displayName": "test"}})
	return &Principal{platform: p, Tenant: p.Admin.Tenant, AppID: app.Field("appId"), ObjectID: sp.Field("id"), Secret: secret.Field("secretText")}
}

// NewTenant makes another tenant and hands back its administrator.
func (p *Platform) NewTenant(t testing.TB, name string) *Principal {
	t.Helper()
	a := p.Must(t, Call{Method: http.MethodPost, URL: p.URL("graph", "/v1.0/tenants"), As: p.Admin, Body: map[string]any{"displayName": name}})
	return &Principal{platform: p, Tenant: a.Field("id"), AppID: a.Field("administrator.appId"), ObjectID: a.Field("administrator.id"), Secret: a.Field("administrator.secretText")}
}

// AssignmentBody is the body of a role assignment.
func (p *Platform) AssignmentBody(role string, to *Principal) map[string]any {
	return map[string]any{"properties": map[string]any{"principalId": to.ObjectID, "principalType": "ServicePrincipal",
		"roleDefinitionId": p.Subscription() + "/providers/Microsoft.Authorization/roleDefinitions/" + role}}
}

// Grant gives a principal a role at a scope and hands back the assignment's id.
func (p *Platform) Grant(t testing.TB, scope, role string, to *Principal) string {
	t.Helper()
	id := scope + "/providers/Microsoft.Authorization/roleAssignments/" + uuid.NewString()
	p.MustARM(t, http.MethodPut, id, VersionRole, p.AssignmentBody(role, to))
	return id
}

// NewGroup makes a resource group.
func (p *Platform) NewGroup(t testing.TB) string {
	t.Helper()
	id := p.Subscription() + "/resourceGroups/test-" + Suffix()
	p.MustARM(t, http.MethodPut, id, VersionGroup, map[string]any{"location": "local"})
	return id
}

// NewVault makes a key vault; more are further properties.
func (p *Platform) NewVault(t testing.TB, group string, more map[string]any) (id, host string) {
	t.Helper()
	name := "kv-" + Suffix()
	props := map[string]any{"tenantId": p.Admin.Tenant, "sku": map[string]any{"family": "A", "name": "standard"}, "enableRbacAuthorization": true}
	for k, v := range more {
		props[k] = v
	}
	id = group + "/providers/Microsoft.KeyVault/vaults/" + name
	p.MustARM(t, http.MethodPut, id, VersionVault, map[string]any{"location": "local", "properties": props})
	return id, name + ".vault"
}

// NewAccount makes a storage account; more are further properties.
func (p *Platform) NewAccount(t testing.TB, group string, more map[string]any) (id, host string) {
	t.Helper()
	name := "sa" + Suffix()
	id = group + "/providers/Microsoft.Storage/storageAccounts/" + name
	p.MustARM(t, http.MethodPut, id, VersionStorage, map[string]any{"location": "local", "kind": "StorageV2", "sku": map[string]any{"name": "Standard_LRS"}, "properties": more})
	return id, name + ".blob.core"
}

// NewContainer makes a blob container as the administrator.
func (p *Platform) NewContainer(t testing.TB, host, name string) {
	t.Helper()
	p.Must(t, Call{Method: http.MethodPut, URL: p.URL(host, "/"+name+"?restype=container"), As: p.Admin}, http.StatusCreated)
}

// PutBlob uploads a block blob in one request.
func (p *Platform) PutBlob(ctx context.Context, as *Principal, host, path string, content []byte) (Answer, error) {
	return p.Send(ctx, Call{Method: http.MethodPut, URL: p.URL(host, path), As: as, Header: http.Header{"X-Ms-Blob-Type": {"BlockBlob"}}, Body: content})
}
