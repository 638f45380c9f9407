package storage

import (
	"context"
	"encoding/json"
	"errors"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"casemate.dev/dataplane/blob"
	"casemate.dev/envelope"
	"casemate.dev/resource"
	"casemate.dev/store/depot/file"
	"casemate.dev/store/storetest"
)

const (
	group      = "/subscriptions/11111111-1111-1111-1111-111111111111/resourceGroups/rg"
	identityID = group + "/providers/Microsoft.ManagedIdentity/userAssignedIdentities/id1"
)

var accountID = resource.MustParseID(group + "/providers/Microsoft.Storage/storageAccounts/acct1")

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
	return append([]byte("wrapped"), plain...), ref.KeyURL + "/v7", nil
}

func (vault) UnwrapKey(_ context.Context, ref envelope.KeyRef, _ string, wrapped []byte) ([]byte, error) {
	return []byte(strings.TrimPrefix(string(wrapped), "wrapped")), nil
}

type fixture struct {
	*Provider
	t     *testing.T
	typ   resource.Type
	docs  documents
	plane *blob.Service
	inUse error
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	root, err := envelope.OpenRoot("", t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	h, err := envelope.OpenHierarchy(t.Context(), t.TempDir(), root)
	if err != nil {
		t.Fatal(err)
	}
	depot, err := file.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{t: t, docs: documents{m: map[string]*resource.Document{}}}
	st, keys := storetest.New(t), envelope.NewKeys(h, &records{}, vault{}, envelope.Options{})
	if f.plane, err = blob.New(blob.Config{Store: st, Depot: depot, Keys: keys, Resources: f.docs}); err != nil {
		t.Fatal(err)
	}
	f.Provider, err = New(Config{Store: st, Keys: keys, Plane: f.plane, Resources: f.docs, Domain: "casemate.localhost",
		Authority: func(h string) string { return h + ":8443" }, InUse: func(context.Context, resource.ID) error { return f.inUse }})
	if err != nil {
		t.Fatal(err)
	}
	f.typ = f.Types()[0]
	if err := f.typ.Check(); err != nil {
		t.Fatal(err)
	}
	for _, r := range f.Routes() {
		if err := r.Validate(); err != nil {
			t.Fatal(err)
		}
	}
	f.docs.m[strings.ToLower(identityID)] = &resource.Document{Body: map[string]any{"properties": map[string]any{"principalId": "principal1"}}}
	return f
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

func (f *fixture) call(method, path, body string) (int, string) {
	f.t.Helper()
	for _, r := range f.Routes() {
		vars, ok := match(r.Pattern, path)
		if r.Method != method || !ok {
			continue
		}
		w := httptest.NewRecorder()
		err := r.Handler(w, &resource.Request{Request: httptest.NewRequest(method, path, strings.NewReader(body)), Vars: vars})
		if err != nil {
			return resource.StatusOf(err), resource.AsError(err).Code
		}
		return w.Code, w.Body.String()
	}
	f.t.Fatalf("no row for %s %s", method, path)
	return 0, ""
}

func match(pattern, path string) (map[string]string, bool) {
	a, b := strings.Split(pattern, "/"), strings.Split(path, "/")
	if len(a) != len(b) {
		return nil, false
	}
	vars := map[string]string{}
	for i := range a {
		if name, ok := strings.CutPrefix(a[i], "{"); ok {
			vars[strings.TrimSuffix(name, "}")] = b[i]
		} else if !strings.EqualFold(a[i], b[i]) {
			return nil, false
		}
	}
	return vars, true
}

const plainBody = `{"location":"local","sku":{"name":"Standard_LRS"},"kind":"StorageV2"}`

func customerBody(more string) string {
	return `{"location":"local","sku":{"name":"Standard_LRS"},"identity":{"type":"UserAssigned","userAssignedIdentities":{"` + identityID + `":{}}},
	"properties":{"encryption":{"keySource":"Microsoft.KeyVault","identity":{"userAssignedIdentity":"` + strings.ToUpper(identityID[:5]) + identityID[5:] + `"},
	"keyvaultproperties":{"keyvaulturi":"https://KV1.vault.casemate.localhost:8443/","keyname":"k1"` + more + `}}}}`
}

func TestDefaults(t *testing.T) {
	f := newFixture(t)
	d, err := f.put(accountID, plainBody)
	if err != nil {
		t.Fatal(err)
	}
	got := []any{d.String("properties.encryption.keySource"), d.Get("properties.allowSharedKeyAccess"), d.String("properties.publicNetworkAccess"),
		d.String("properties.minimumTlsVersion"), d.String("properties.primaryEndpoints.blob"), d.String("properties.networkAcls.defaultAction")}
	want := []any{"Microsoft.Storage", false, "Enabled", "TLS1_2", "https://acct1.blob.core.casemate.localhost:8443/", "Allow"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if id, ok := f.ResourceOf("ACCT1"); !ok || id != accountID.String() {
		t.Errorf("ResourceOf = %q %v", id, ok)
	}
}

func TestValidateRefuses(t *testing.T) {
	f := newFixture(t)
	props := func(p string) string { return strings.TrimSuffix(plainBody, "}") + `,"properties":{` + p + `}}` }
	tests := []struct {
		body   string
		status int
		target string
	}{
		{`{"kind":"StorageV2"}`, 400, "sku.name"},
		{`{"sku":{"name":"Gold"}}`, 400, "sku.name"},
		{`{"sku":{"name":"Premium_LRS"}}`, 501, ""},
		{`{"sku":{"name":"Standard_LRS"},"kind":"BlobStorage"}`, 501, ""},
		{props(`"allowSharedKeyAccess":true`), 501, "properties.allowSharedKeyAccess"},
		{props(`"isHnsEnabled":true`), 501, "properties.isHnsEnabled"},
		{props(`"allowBlobPublicAccess":true`), 400, "properties.allowBlobPublicAccess"},
		{props(`"supportsHttpsTrafficOnly":false`), 400, "properties.supportsHttpsTrafficOnly"},
		{props(`"minimumTlsVersion":"TLS1_0"`), 400, "properties.minimumTlsVersion"},
		{props(`"publicNetworkAccess":"Sometimes"`), 400, "properties.publicNetworkAccess"},
		{props(`"networkAcls":{"defaultAction":"Perhaps"}`), 400, "properties.networkAcls.defaultAction"},
		{props(`"networkAcls":{"ipRules":[{"value":"10.0.0.0/99"}]}`), 400, "properties.networkAcls.ipRules[0].value"},
		{props(`"networkAcls":{"virtualNetworkRules":[{"id":"x"}]}`), 400, "properties.networkAcls.virtualNetworkRules[0].id"},
		{props(`"encryption":{"keySource":"Elsewhere"}`), 400, "properties.encryption.keySource"},
		{props(`"encryption":{"services":{"blob":{"enabled":false}}}`), 400, "properties.encryption.services.blob.enabled"},
		{props(`"encryption":{"keySource":"Microsoft.Keyvault"}`), 400, "properties.encryption.keyvaultproperties.keyvaulturi"},
		{props(`"encryption":{"keySource":"Microsoft.Keyvault","keyvaultproperties":{"keyvaulturi":"https://kv/","keyname":"k"}}`), 400, "properties.encryption.identity.userAssignedIdentity"},
		{customerBody(`,"keyversion":"../x"`), 400, "properties.encryption.keyvaultproperties.keyversion"},
		{strings.Replace(customerBody(""), "KV1", "user:pw@KV1", 1), 400, "properties.encryption.keyvaultproperties.keyvaulturi"},
		{strings.Replace(customerBody(""), `"userAssignedIdentities":{"`+identityID+`":{}}`, `"userAssignedIdentities":{}`, 1), 400, "properties.encryption.identity.userAssignedIdentity"},
	}
	for _, tt := range tests {
		_, err := f.put(accountID, tt.body)
		if resource.StatusOf(err) != tt.status || err == nil || resource.AsError(err).Target != tt.target {
			t.Errorf("%s: %v", tt.body, err)
		}
	}
	if _, taken := f.ResourceOf("acct1"); taken {
		t.Error("a refused account has its name")
	}
}

func TestKeySwitchesOnALiveAccount(t *testing.T) {
	f := newFixture(t)
	if _, err := f.put(accountID, plainBody); err != nil {
		t.Fatal(err)
	}
	if _, _, err := f.plane.CreateContainer(t.Context(), accountID, "data", map[string]string{"k": "v"}); err != nil {
		t.Fatal(err)
	}
	d, err := f.put(accountID, customerBody(""))
	if err != nil {
		t.Fatal(err)
	}
	if got := d.String("properties.encryption.keyvaultproperties.currentVersionedKeyIdentifier"); got != "https://kv1.vault.casemate.localhost:8443/keys/k1/v7" {
		t.Errorf("current version = %q", got)
	}
	if _, err := f.put(accountID, customerBody("")); err != nil {
		t.Errorf("the same again: %v", err)
	}
	for _, body := range []string{customerBody(""), plainBody} {
		if _, err := f.put(accountID, body); err != nil {
			t.Fatal(err)
		}
		if c, err := f.plane.StatContainer(t.Context(), accountID, "data"); err != nil || c.Metadata["k"] != "v" {
			t.Errorf("data after the switch: %+v, %v", c, err)
		}
	}
	f.docs.m[strings.ToLower(identityID)].Set("properties.principalId", "stranger")
	if _, err := f.put(accountID, customerBody("")); resource.AsError(err).Code != "KeyVaultEncryptionKeyNotFound" {
		t.Errorf("a key that the identity may not use: %v", err)
	}
	if _, err := f.plane.StatContainer(t.Context(), accountID, "data"); err != nil {
		t.Errorf("data after a refused switch: %v", err)
	}
}

func TestNamesAreGlobal(t *testing.T) {
	f := newFixture(t)
	if _, err := f.put(accountID, plainBody); err != nil {
		t.Fatal(err)
	}
	other := resource.MustParseID(strings.Replace(accountID.String(), "/rg/", "/rg2/", 1))
	if _, err := f.put(other, plainBody); resource.AsError(err).Code != "StorageAccountAlreadyTaken" {
		t.Errorf("a second account of the name: %v", err)
	}
	if err := f.typ.Reconcile(t.Context(), document(other, plainBody)); resource.AsError(err).Code != "StorageAccountAlreadyTaken" {
		t.Errorf("a race for the name: %v", err)
	}
	if err := f.typ.Remove(t.Context(), document(other, plainBody)); err != nil {
		t.Fatal(err)
	}
	if id, _ := f.ResourceOf("acct1"); id != accountID.String() {
		t.Errorf("removing the loser released the winner's name: %q", id)
	}
	status, body := f.call("POST", "/subscriptions/s/providers/Microsoft.Storage/checkNameAvailability", `{"name":"acct1","type":"x"}`)
	if status != 200 || !strings.Contains(body, `"reason":"AlreadyExists"`) {
		t.Errorf("check name = %d %s", status, body)
	}
	again, err := New(f.cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, ok := again.ResourceOf("acct1"); !ok {
		t.Error("the name is forgotten at a restart")
	}
}

func TestRemove(t *testing.T) {
	f := newFixture(t)
	d, err := f.put(accountID, plainBody)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := f.plane.CreateContainer(t.Context(), accountID, "data", nil); err != nil {
		t.Fatal(err)
	}
	f.inUse = resource.Errorf(409, "InUse", "in use")
	if err := f.typ.MayRemove(t.Context(), d); resource.StatusOf(err) != 409 {
		t.Errorf("removing what is in use: %v", err)
	}
	for range 2 {
		if err := f.typ.Remove(t.Context(), d); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := f.plane.StatContainer(t.Context(), accountID, "data"); err == nil {
		t.Error("data is still there")
	}
	if _, err := f.put(accountID, plainBody); err != nil {
		t.Fatal(err)
	}
	if _, err := f.plane.StatContainer(t.Context(), accountID, "data"); resource.AsError(err).Code != "ContainerNotFound" {
		t.Errorf("an account of the same name sees its predecessor's container: %v", err)
	}
}

func TestContainerRows(t *testing.T) {
	f := newFixture(t)
	if _, err := f.put(accountID, plainBody); err != nil {
		t.Fatal(err)
	}
	base := accountID.String() + "/blobServices"
	tests := []struct {
		method, path, body string
		status             int
		contains           string
	}{
		{"GET", base, "", 200, `"value":[{`},
		{"GET", base + "/default", "", 200, `"isVersioningEnabled":false`},
		{"PUT", base + "/default", `{"properties":{"isVersioningEnabled":true}}`, 501, "NotSupported"},
		{"PUT", base + "/default", `{"properties":{"isVersioningEnabled":false}}`, 200, serviceType},
		{"PUT", base + "/default/containers/c1", "", 400, "InvalidResourceName"},
		{"PUT", base + "/default/containers/data", `{"properties":{"publicAccess":"Blob"}}`, 400, "InvalidParameter"},
		{"PUT", base + "/default/containers/data", `{"properties":{"metadata":{"k":"v"}}}`, 201, `"metadata":{"k":"v"}`},
		{"PUT", base + "/default/containers/data", "", 200, `"metadata":{"k":"v"}`},
		{"PATCH", base + "/default/containers/nope", "", 404, "ContainerNotFound"},
		{"GET", base + "/default/containers/data", "", 200, containerType},
		{"GET", base + "/default/containers", "", 200, `"name":"data"`},
		{"DELETE", base + "/default/containers/data", "", 200, ""},
		{"DELETE", base + "/default/containers/data", "", 204, ""},
		{"GET", base + "/default/containers/data", "", 404, "ContainerNotFound"},
		{"GET", strings.Replace(base, "acct1", "acct2", 1) + "/default", "", 404, "ResourceNotFound"},
	}
	for _, tt := range tests {
		if status, body := f.call(tt.method, tt.path, tt.body); status != tt.status || !strings.Contains(body, tt.contains) {
			t.Errorf("%s %s = %d %s, want %d with %s", tt.method, tt.path, status, body, tt.status, tt.contains)
		}
	}
}

func TestSharedKeysAreRefused(t *testing.T) {
	f := newFixture(t)
	for _, a := range f.typ.Actions {
		_, err := a.Handler(t.Context(), &resource.Document{ID: accountID}, nil)
		if resource.AsError(err).Code != "KeyBasedAuthenticationNotPermitted" {
			t.Errorf("%s: %v", a.Name, err)
		}
	}
}
