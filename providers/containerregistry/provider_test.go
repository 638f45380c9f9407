package containerregistry

import (
	"context"
	"encoding/json"
	"errors"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"casemate.dev/dataplane/registry"
	"casemate.dev/envelope"
	"casemate.dev/resource"
	"casemate.dev/store/depot/file"
	"casemate.dev/store/storetest"
)

const (
	group      = "/subscriptions/11111111-1111-1111-1111-111111111111/resourceGroups/rg"
	identityID = group + "/providers/Microsoft.ManagedIdentity/userAssignedIdentities/id1"
	clientID   = "22222222-2222-2222-2222-222222222222"
)

var registryID = resource.MustParseID(group + "/providers/Microsoft.ContainerRegistry/registries/Reg01")

// documents answer Get only.
type documents struct {
	resource.Resources
	m map[string]*resource.Document
}

func (d documents) Get(_ context.Context, id resource.ID) (*resource.Document, error) {
	if doc := d.m[id.Key()]; doc != nil {
		return doc.Clone(), nil
	}
	return nil, resource.NotFound(id)
}

type records struct{ m sync.Map }

func (r *records) Load(_ context.Context, id string) ([]byte, error) {
	if v, ok := r.m.Load(id); ok {
		return v.([]byte), nil
	}
	return nil, envelope.ErrNoRecord
}
func (r *records) Save(_ context.Context, id string, rec []byte) error {
	r.m.Store(id, append([]byte(nil), rec...))
	return nil
}
func (r *records) Remove(_ context.Context, id string) error { r.m.Delete(id); return nil }
func (r *records) List(context.Context) ([]string, error)    { return nil, nil }

// vault allows identity "principal1" only.
type vault struct{}

func (vault) WrapKey(_ context.Context, ref envelope.KeyRef, plain []byte) ([]byte, string, error) {
	if ref.Identity != "principal1" {
		return nil, "", envelope.Refused(ref.KeyURL, errors.New("no role"))
	}
	kid := ref.KeyURL
	if strings.HasSuffix(kid, "/k1") {
		kid += "/v7" // the newest version
	}
	return append([]byte("wrapped"), plain...), kid, nil
}

func (vault) UnwrapKey(_ context.Context, _ envelope.KeyRef, _ string, wrapped []byte) ([]byte, error) {
	return []byte(strings.TrimPrefix(string(wrapped), "wrapped")), nil
}

type directory struct{}

func (directory) Verify(context.Context, string, func(string) bool) (resource.Caller, error) {
	return resource.Caller{}, errors.New("nobody signs in here")
}
func (d directory) CallerOf(ctx context.Context, _ string) (resource.Caller, error) {
	return d.Verify(ctx, "", nil)
}
func (directory) SignIn(context.Context, string, string, string) (string, error) {
	return "", errors.New("nobody signs in here")
}
func (directory) Enter(context.Context, resource.Caller, string, bool, string, resource.Category) (func(error), error) {
	return nil, errors.New("nobody enters here")
}

type fixture struct {
	*Provider
	t     *testing.T
	typ   resource.Type
	docs  documents
	plane *registry.Service
	keys  *envelope.Keys
	inUse error
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	f := &fixture{t: t, docs: documents{m: map[string]*resource.Document{}}}
	root, err := envelope.OpenRoot("", t.TempDir())
	f.check(err)
	h, err := envelope.OpenHierarchy(t.Context(), t.TempDir(), root)
	f.check(err)
	depot, err := file.Open(t.TempDir())
	f.check(err)
	st := storetest.New(t)
	f.keys = envelope.NewKeys(h, &records{}, vault{}, envelope.Options{})
	f.plane, err = registry.New(registry.Config{Store: st, Depot: depot, Keys: f.keys, Principals: directory{}, Inner: directory{},
		Audience: func(string) bool { return true }, SignInAudience: "arm", Domain: "casemate.localhost"})
	f.check(err)
	f.Provider, err = New(Config{Store: st, Keys: f.keys, Plane: f.plane, Resources: f.docs, Domain: "casemate.localhost",
		Authority: func(h string) string { return h + ":8443" }, InUse: func(context.Context, resource.ID) error { return f.inUse }})
	f.check(err)
	f.typ = f.Types()[0]
	f.check(f.typ.Check())
	for _, r := range f.Routes() {
		f.check(r.Validate())
	}
	f.docs.m[strings.ToLower(identityID)] = &resource.Document{Body: map[string]any{"properties": map[string]any{"principalId": "principal1", "clientId": clientID}}}
	return f
}

func (f *fixture) check(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatal(err)
	}
}

func document(id resource.ID, body string) *resource.Document {
	d := &resource.Document{ID: id}
	if err := json.Unmarshal([]byte(body), &d.Body); err != nil {
		panic(err)
	}
	return d
}

// put does what the engine does for a PUT.
func (f *fixture) put(id resource.ID, body string) (*resource.Document, error) {
	d := document(id, body)
	if err := f.typ.Validate(f.t.Context(), &resource.Write{New: d, Method: "PUT"}); err != nil {
		return nil, err
	}
	if err := f.typ.Reconcile(f.t.Context(), d); err != nil {
		return nil, err
	}
	f.docs.m[id.Key()] = d.Clone()
	f.typ.View(f.t.Context(), d)
	return d, nil
}

func customer(key, identity string) string {
	return `{"location":"local","sku":{"name":"premium"},"identity":{"type":"UserAssigned","userAssignedIdentities":{"` + identityID + `":{}}},
		"properties":{"encryption":{"status":"enabled","keyVaultProperties":{"keyIdentifier":"` + key + `","identity":"` + identity + `"}}}}`
}

func TestCreate(t *testing.T) {
	f := newFixture(t)
	d, err := f.put(registryID, `{"location":"local","sku":{"name":"basic"}}`)
	f.check(err)
	for path, want := range map[string]any{
		"properties.loginServer": "reg01.azurecr.casemate.localhost:8443", "sku.name": "Basic", "sku.tier": "Basic",
		"properties.adminUserEnabled": false, "properties.publicNetworkAccess": "Enabled", "properties.encryption.status": "disabled",
		"properties.zoneRedundancy": "Disabled", "properties.networkAcls": nil,
	} {
		if diff := cmp.Diff(want, d.Get(path)); diff != "" {
			t.Errorf("%s: %s", path, diff)
		}
	}
	if id, ok := f.ResourceOf("reg01"); !ok || id != registryID.String() {
		t.Errorf("ResourceOf = %q %v", id, ok)
	}
	again, err := New(f.cfg)
	f.check(err)
	f.check(again.Load(t.Context()))
	if id, ok := again.ResourceOf("REG01"); !ok || id != registryID.String() {
		t.Errorf("after a restart ResourceOf = %q %v", id, ok)
	}
	other := resource.MustParseID(group + "2/providers/Microsoft.ContainerRegistry/registries/reg01")
	if _, err := f.put(other, `{"location":"local","sku":{"name":"Basic"}}`); resource.AsError(err).Code != "AlreadyInUse" {
		t.Errorf("the name is given twice: %v", err)
	}
	f.check(f.typ.Remove(t.Context(), document(other, `{}`)))
	if _, ok := f.ResourceOf("reg01"); !ok {
		t.Error("removing the one that never was gives the other's name back")
	}
	f.inUse = resource.Errorf(409, "InUse", "a workspace needs it")
	if err := f.typ.MayRemove(t.Context(), d); !errors.Is(err, f.inUse) {
		t.Errorf("%v", err)
	}
	f.check(f.typ.Remove(t.Context(), d))
	f.check(f.typ.Remove(t.Context(), d))
	if _, ok := f.ResourceOf("reg01"); ok {
		t.Error("the name is still taken")
	}
	if _, err := f.keys.Handle(t.Context(), registryID.String()); err == nil {
		t.Error("the key is still there")
	}
}

func TestRefused(t *testing.T) {
	f := newFixture(t)
	const key = "https://kv1.vault.casemate.localhost:8443/keys/k1"
	for name, tt := range map[string]struct{ body, target string }{
		"no sku":              {`{}`, "sku.name"},
		"other sku":           {`{"sku":{"name":"Gold"}}`, "sku.name"},
		"admin user":          {`{"sku":{"name":"Basic"},"properties":{"adminUserEnabled":true}}`, "properties.adminUserEnabled"},
		"anonymous pull":      {`{"sku":{"name":"Basic"},"properties":{"anonymousPullEnabled":true}}`, "properties.anonymousPullEnabled"},
		"quarantine":          {`{"sku":{"name":"Basic"},"properties":{"policies":{"quarantinePolicy":{"status":"enabled"}}}}`, "properties.policies.quarantinePolicy.status"},
		"repository roles":    {`{"sku":{"name":"Basic"},"properties":{"roleAssignmentMode":"AbacRepositoryPermissions"}}`, "properties.roleAssignmentMode"},
		"public access":       {`{"sku":{"name":"Basic"},"properties":{"publicNetworkAccess":"sometimes"}}`, "properties.publicNetworkAccess"},
		"network rule":        {`{"sku":{"name":"Premium"},"properties":{"networkRuleSet":{"defaultAction":"Deny","ipRules":[{"value":"here"}]}}}`, "properties.networkRuleSet.ipRules[0].value"},
		"export":              {`{"sku":{"name":"Premium"},"properties":{"policies":{"exportPolicy":{"status":"disabled"}}}}`, "properties.policies.exportPolicy.status"},
		"no key":              {`{"sku":{"name":"Premium"},"properties":{"encryption":{"status":"enabled"}}}`, "properties.encryption.keyVaultProperties.keyIdentifier"},
		"key and basic":       {strings.Replace(customer(key, clientID), "premium", "basic", 1), "sku.name"},
		"plain HTTP":          {customer(strings.Replace(key, "https", "http", 1), clientID), "properties.encryption.keyVaultProperties.keyIdentifier"},
		"a secret":            {customer(strings.Replace(key, "/keys/", "/secrets/", 1), clientID), "properties.encryption.keyVaultProperties.keyIdentifier"},
		"no identity":         {customer(key, ""), "properties.encryption.keyVaultProperties.identity"},
		"unassigned identity": {customer(key, "33333333-3333-3333-3333-333333333333"), "properties.encryption.keyVaultProperties.identity"},
		"no system identity":  {customer(key, "system"), "properties.encryption.keyVaultProperties.identity"},
	} {
		_, err := f.put(registryID, tt.body)
		if e := resource.AsError(err); e.Status < 400 || e.Status == 500 || e.Target != tt.target {
			t.Errorf("%s: %v, want a refusal of %s", name, err, tt.target)
		}
	}
	for _, a := range f.typ.Actions {
		if a.Name == "listUsages" {
			continue
		}
		if _, err := a.Handler(t.Context(), document(registryID, `{}`), nil); err == nil || resource.StatusOf(err) == 500 {
			t.Errorf("%s: %v", a.Name, err)
		}
	}
}

func TestCustomerKey(t *testing.T) {
	f := newFixture(t)
	const key = "https://kv1.vault.casemate.localhost:8443/keys/k1"
	version := func() string {
		kid, err := f.keys.Version(registryID.String())
		f.check(err)
		return kid
	}
	if _, err := f.put(registryID, `{"sku":{"name":"Premium"}}`); err != nil || strings.HasPrefix(version(), key) {
		t.Fatalf("%v %s", err, version())
	}
	for _, identity := range []string{clientID, identityID} {
		d, err := f.put(registryID, customer(key, identity))
		f.check(err)
		if got := d.String("properties.encryption.keyVaultProperties.versionedKeyIdentifier"); got != key+"/v7" || version() != key+"/v7" ||
			!d.Bool("properties.encryption.keyVaultProperties.keyRotationEnabled") {
			t.Errorf("%s: the key in use is %q, %q", identity, got, version())
		}
	}
	d, err := f.put(registryID, customer(key+"/0123456789abcdef0123456789abcdef", clientID))
	f.check(err)
	if d.Bool("properties.encryption.keyVaultProperties.keyRotationEnabled") {
		t.Error("a fixed version is said to rotate")
	}
	d, err = f.put(registryID, `{"sku":{"name":"Premium"}}`)
	f.check(err)
	if d.Get("properties.encryption.keyVaultProperties") != nil || strings.HasPrefix(version(), key) {
		t.Errorf("the customer's key is still in use: %s", version())
	}
	f.docs.m[strings.ToLower(identityID)].Set("properties.principalId", "somebody")
	if _, err := f.put(registryID, customer(key, clientID)); resource.AsError(err).Code != "KeyVaultEncryptionKeyNotFound" {
		t.Errorf("a key without permission: %v", err)
	}
}

// The gateway's origin stage reads networkAcls: the rules must arrive there, and be shown to nobody.
func TestNetworkRules(t *testing.T) {
	f := newFixture(t)
	d, err := f.put(registryID, `{"sku":{"name":"Premium"},"properties":{"networkAcls":{"defaultAction":"Allow"},"networkRuleSet":{"defaultAction":"deny","ipRules":[{"action":"Allow","value":"203.0.113.0/24"}]}}}`)
	f.check(err)
	if d.Get("properties.networkAcls") != nil {
		t.Error("networkAcls is shown")
	}
	kept := f.docs.m[registryID.Key()]
	if diff := cmp.Diff(map[string]any{"defaultAction": "Deny", "ipRules": []any{map[string]any{"value": "203.0.113.0/24", "action": "Allow"}}}, kept.Get("properties.networkAcls")); diff != "" {
		t.Error(diff)
	}
}

func TestUsagesAndNames(t *testing.T) {
	f := newFixture(t)
	d, err := f.put(registryID, `{"sku":{"name":"Basic"}}`)
	f.check(err)
	got, err := f.listUsages(t.Context(), d, nil)
	f.check(err)
	if b, _ := json.Marshal(got); !strings.Contains(string(b), `"currentValue":0`) {
		t.Errorf("%s", b)
	}
	for name, want := range map[string]string{"reg01": `"AlreadyExists"`, "x": `"Invalid"`, "reg02": `"nameAvailable":true`} {
		w := httptest.NewRecorder()
		r := httptest.NewRequest("POST", "/", strings.NewReader(`{"name":"`+name+`","type":"Microsoft.ContainerRegistry/registries"}`))
		f.check(f.checkName(w, &resource.Request{Request: r}))
		if !strings.Contains(w.Body.String(), want) {
			t.Errorf("%s: %s", name, w.Body)
		}
	}
}
