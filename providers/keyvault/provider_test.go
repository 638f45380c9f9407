package keyvault

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"casemate.dev/control/operation"
	"casemate.dev/dataplane/vault"
	"casemate.dev/envelope"
	"casemate.dev/resource"
	"casemate.dev/store"
	"casemate.dev/store/pebble"
)

const (
	tenant       = "11111111-1111-1111-1111-111111111111"
	subscription = "/subscriptions/00000000-0000-0000-0000-000000000001"
)

// records keeps wrapped keys in memory, beyond the life of one platform.
type records struct {
	mu sync.Mutex
	m  map[string][]byte
}

func (r *records) Load(_ context.Context, id string) ([]byte, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if b, ok := r.m[id]; ok {
		return slices.Clone(b), nil
	}
	return nil, envelope.ErrNoRecord
}

func (r *records) Save(_ context.Context, id string, b []byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.m[id] = slices.Clone(b)
	return nil
}

func (r *records) Remove(_ context.Context, id string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.m, id)
	return nil
}

func (r *records) List(context.Context) ([]string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Sorted(maps.Keys(r.m)), nil
}

type anybody struct{}

func (anybody) CallerOf(_ context.Context, id string) (resource.Caller, error) {
	return resource.Caller{Kind: resource.KindManagedIdentity, Object: id}, nil
}

func (anybody) Enter(context.Context, resource.Caller, string, bool, string, resource.Category) (func(error), error) {
	return func(error) {}, nil
}

func (anybody) Authorize(resource.Caller, string, bool, resource.ID) (bool, string) { return true, "" }

// failing makes the first calls of Create fail.
type failing struct {
	*envelope.Keys
	failures int
}

func (f *failing) Create(ctx context.Context, id string, ref *envelope.KeyRef) error {
	if f.failures > 0 {
		f.failures--
		return errors.New("disk trouble")
	}
	return f.Keys.Create(ctx, id, ref)
}

// platform joins the real parts as the app does.
type platform struct {
	t       *testing.T
	dir     string
	records *records
	clock   time.Time

	store  *pebble.Store
	keys   *failing
	plane  *vault.Service
	p      *Provider
	engine *operation.Engine
	told   []string
}

func newPlatform(t *testing.T) *platform {
	f := &platform{t: t, dir: t.TempDir(), records: &records{m: map[string][]byte{}}, clock: time.Unix(1_800_000_000, 0)}
	f.start()
	for _, id := range []string{subscription, subscription + "/resourceGroups/rg", subscription + "/resourceGroups/other",
		subscription + "/resourceGroups/a", subscription + "/resourceGroups/b", subscription + "/resourceGroups/c", subscription + "/resourceGroups/d"} {
		_, err := f.engine.Put(t.Context(), resource.Caller{Kind: resource.KindPlatform, Object: "p"}, resource.MustParseID(id), map[string]any{})
		f.check(err)
	}
	t.Cleanup(func() { _ = f.store.Close() })
	return f
}

func (f *platform) check(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatal(err)
	}
}

func (f *platform) start() {
	f.t.Helper()
	ctx := f.t.Context()
	root, err := envelope.OpenRoot("", f.dir)
	f.check(err)
	h, err := envelope.OpenHierarchy(ctx, f.dir, root)
	f.check(err)
	f.store, err = pebble.Open(pebble.Config{Dir: filepath.Join(f.dir, "store"), Cipher: h.Files()})
	f.check(err)
	f.keys = &failing{Keys: envelope.NewKeys(h, f.records, nil, envelope.Options{})}
	clock := func() time.Time { return f.clock }
	f.plane, err = vault.New(vault.Config{
		Store:      f.store,
		Handle:     func(ctx context.Context, id string) (vault.Sealer, error) { return f.keys.Handle(ctx, id) },
		Principals: anybody{}, Inner: anybody{}, Domain: "casemate.test", Authority: func(h string) string { return h },
		Login: "https://login.casemate.test", Tenant: tenant, Clock: clock,
		Revoked: func(u string) { f.told = append(f.told, u) },
	})
	f.check(err)
	f.p, err = New(Config{Store: f.store, Keys: f.keys, Plane: f.plane, Tenant: tenant, Clock: clock})
	f.check(err)
	f.engine, err = operation.New(operation.Config{
		Store: f.store, Types: append(groups(), f.p.Types()...), Authorize: anybody{}, BaseURL: "https://management.casemate.test", Clock: clock,
		Handle: func(ctx context.Context, id string) (operation.Handle, error) { return f.keys.Handle(ctx, id) },
	})
	f.check(err)
	f.engine.Watch(typeName, f.p.Observe)
	f.check(f.p.Load(ctx))
	f.check(f.engine.Load(ctx))
}

// groups are the types above the vaults.
func groups() []resource.Type {
	return []resource.Type{
		{Name: "Microsoft.Resources/subscriptions", Level: resource.AtSubscriptionRaw, APIVersions: []string{"2021-04-01"}, Created: 200},
		{Name: "Microsoft.Resources/subscriptions/resourceGroups", Level: resource.AtSubscriptionRaw, APIVersions: []string{"2021-04-01"}, Created: 201},
	}
}

// restart is a crash: nothing is closed in order but the store, whose lock must go.
func (f *platform) restart() {
	f.t.Helper()
	f.check(f.store.Close())
	f.start()
}

func idOf(name string) resource.ID {
	return resource.MustParseID(subscription + "/resourceGroups/rg/providers/Microsoft.KeyVault/vaults/" + name)
}

type obj = map[string]any

func (f *platform) put(id resource.ID, properties obj) (*resource.Document, error) {
	return f.engine.Put(f.t.Context(), resource.Caller{Kind: resource.KindUser, Object: "o", Tenant: tenant}, id, obj{"location": "local", "tags": obj{"a": "b"}, "properties": properties})
}

func (f *platform) mustPut(id resource.ID, properties obj) *resource.Document {
	f.t.Helper()
	d, err := f.put(id, properties)
	f.check(err)
	return d
}

func (f *platform) delete(id resource.ID) {
	f.t.Helper()
	f.check(f.engine.Delete(f.t.Context(), resource.Caller{Kind: resource.KindUser, Object: "o"}, id))
}

// call runs one of the provider's own rows.
func (f *platform) call(name string, vars map[string]string, body string) (*httptest.ResponseRecorder, error) {
	f.t.Helper()
	for _, row := range f.p.Routes() {
		f.check(row.Validate())
		if row.Name == name {
			w := httptest.NewRecorder()
			vars["subscriptionId"] = idOf("x").Subscription()
			r := httptest.NewRequest(row.Method, "https://management.casemate.test/", strings.NewReader(body))
			return w, row.Handler(w, &resource.Request{Request: r, Vars: vars})
		}
	}
	f.t.Fatalf("no row %s", name)
	return nil, nil
}

func statusAndCode(err error) string {
	if err == nil {
		return ""
	}
	return resource.AsError(err).Code
}

func TestCreate(t *testing.T) {
	f := newPlatform(t)
	d := f.mustPut(idOf("Kv1"), obj{"tenantId": tenant, "sku": obj{"family": "A", "name": "standard"}, "enablePurgeProtection": nil, "unknown": obj{"kept": true}})
	want := obj{
		"tenantId": tenant, "sku": obj{"family": "A", "name": "standard"}, "enableRbacAuthorization": true, "accessPolicies": []any{},
		"enableSoftDelete": true, "softDeleteRetentionInDays": 90, "publicNetworkAccess": "Enabled", "vaultUri": "https://kv1.vault.casemate.test/",
		"provisioningState": "Succeeded", "unknown": obj{"kept": true},
	}
	got := d.Wire()["properties"].(obj)
	got["softDeleteRetentionInDays"] = planeView(d).RetentionDays
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("properties (-want +got):\n%s", diff)
	}
	if id, ok := f.plane.ResourceOf("KV1"); !ok || id != idOf("Kv1").String() {
		t.Errorf("ResourceOf: %s, %v", id, ok)
	}
	f.restart()
	if _, ok := f.plane.ResourceOf("kv1"); !ok {
		t.Error("the vault is not known after a restart")
	}
}

func TestValidate(t *testing.T) {
	f := newPlatform(t)
	f.mustPut(idOf("taken"), obj{"enablePurgeProtection": true, "softDeleteRetentionInDays": 7})
	elsewhere := resource.MustParseID(strings.Replace(idOf("Taken").String(), "/rg/", "/other/", 1))
	tests := []struct {
		name       string
		id         resource.ID
		properties obj
		code, says string
	}{
		{"access policies", idOf("kv2"), obj{"accessPolicies": []any{obj{"objectId": "x"}}}, "BadRequest", "assign roles"},
		{"policy model", idOf("kv2"), obj{"enableRbacAuthorization": false}, "BadRequest", "role assignments"},
		{"soft delete off", idOf("kv2"), obj{"enableSoftDelete": false}, "BadRequest", "enableSoftDelete"},
		{"purge protection false", idOf("kv2"), obj{"enablePurgeProtection": false}, "BadRequest", "irreversible"},
		{"retention short", idOf("kv2"), obj{"softDeleteRetentionInDays": 6}, "BadRequest", "7 to 90"},
		{"retention long", idOf("kv2"), obj{"softDeleteRetentionInDays": 91}, "BadRequest", "7 to 90"},
		{"retention changed", idOf("taken"), obj{"softDeleteRetentionInDays": 8}, "BadRequest", "can't be modified"},
		{"other tenant", idOf("kv2"), obj{"tenantId": "22222222-2222-2222-2222-222222222222"}, "BadRequest", "tenantId"},
		{"sku", idOf("kv2"), obj{"sku": obj{"name": "gold"}}, "BadRequest", "sku.name"},
		{"network access", idOf("kv2"), obj{"publicNetworkAccess": "sometimes"}, "BadRequest", "publicNetworkAccess"},
		{"bypass", idOf("kv2"), obj{"networkAcls": obj{"bypass": "All"}}, "BadRequest", "bypass"},
		{"default action", idOf("kv2"), obj{"networkAcls": obj{"defaultAction": "Maybe"}}, "BadRequest", "defaultAction"},
		{"ip rule", idOf("kv2"), obj{"networkAcls": obj{"ipRules": []any{obj{"value": "1.2.3"}}}}, "BadRequest", "IP rule"},
		{"subnet rule", idOf("kv2"), obj{"networkAcls": obj{"virtualNetworkRules": []any{obj{"id": "x"}}}}, "BadRequest", "subnet"},
		{"create mode", idOf("kv2"), obj{"createMode": "purge"}, "BadRequest", "createMode"},
		{"recover nothing", idOf("kv2"), obj{"createMode": "recover"}, "DeletedVaultNotFound", "kv2"},
		{"name in use", elsewhere, obj{}, "VaultAlreadyExists", "Taken"},
		{"short name", idOf("kv"), obj{}, "InvalidResourceName", "3 to 24"},
		{"digit first", idOf("1kv"), obj{}, "InvalidResourceName", "begins with a letter"},
		{"two dashes", idOf("kv--1"), obj{}, "VaultNameNotValid", "two dashes"},
		{"wrong type", idOf("kv2"), obj{"softDeleteRetentionInDays": "many"}, "InvalidRequestContent", "deserialized"},
	}
	for _, tt := range tests {
		_, err := f.put(tt.id, tt.properties)
		if statusAndCode(err) != tt.code || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: %v, want %s saying %q", tt.name, err, tt.code, tt.says)
		}
	}
	if _, ok := f.plane.ResourceOf("kv2"); ok {
		t.Error("a refused vault is known")
	}
	d := f.mustPut(idOf("taken"), obj{"networkAcls": obj{"defaultAction": "deny", "ipRules": []any{obj{"value": "10.0.0.0/8"}}}})
	if !d.Bool("properties.enablePurgeProtection") || planeView(d).RetentionDays != 7 || d.String("properties.networkAcls.defaultAction") != "Deny" {
		t.Errorf("a PUT without them lost protection or retention: %v", d.Body)
	}
}

func TestFirewallRevokes(t *testing.T) {
	f := newPlatform(t)
	f.mustPut(idOf("kv1"), obj{})
	tests := []struct {
		properties obj
		trusted    bool
	}{
		{obj{"publicNetworkAccess": "Disabled"}, true}, // bypass defaults to AzureServices
		{obj{"publicNetworkAccess": "disabled", "networkAcls": obj{"bypass": "None"}}, false},
		{obj{"networkAcls": obj{"bypass": "None", "defaultAction": "Allow"}}, true},
		{obj{"networkAcls": obj{"bypass": "none", "defaultAction": "deny"}}, false},
		{obj{"networkAcls": obj{"defaultAction": "Deny"}}, true},
	}
	trusted := true
	for _, tt := range tests {
		f.told = nil
		if d := f.mustPut(idOf("kv1"), tt.properties); planeView(d).TrustedServices != tt.trusted {
			t.Errorf("%v: trusted services %v", tt.properties, !tt.trusted)
		}
		if want := trusted && !tt.trusted; (len(f.told) > 0) != want {
			t.Errorf("%v: revoked %v, want %v", tt.properties, f.told, want)
		}
		trusted = tt.trusted
	}
}

func TestSoftDelete(t *testing.T) {
	f := newPlatform(t)
	id := idOf("kv1")
	at := map[string]string{"vaultName": "KV1", "location": "Local"}
	f.mustPut(id, obj{"softDeleteRetentionInDays": 10})
	before, err := f.keys.Handle(t.Context(), id.String())
	f.check(err)
	sealed, err := before.SealBytes("x", []byte("record"))
	f.check(err)
	f.told = nil
	f.delete(id)
	if !cmp.Equal(f.told, []string{"https://kv1.vault.casemate.test"}) {
		t.Errorf("revoked %v", f.told)
	}
	f.restart()
	if _, ok := f.plane.ResourceOf("kv1"); ok {
		t.Error("a deleted vault is known")
	}
	if _, err := f.put(id, obj{}); statusAndCode(err) != "ConflictError" {
		t.Errorf("creating over a deleted vault: %v", err)
	}
	w, err := f.call("Vaults_GetDeleted", at, "")
	f.check(err)
	for _, want := range []string{`"vaultId":"` + id.String() + `"`, `"deletionDate":"2027-01-15T08:00:00Z"`, `"scheduledPurgeDate":"2027-01-25T08:00:00Z"`, `"tags":{"a":"b"}`} {
		if !strings.Contains(w.Body.String(), want) {
			t.Errorf("deleted vault %s lacks %s", w.Body, want)
		}
	}
	w, err = f.call("Vaults_ListDeleted", map[string]string{}, "")
	f.check(err)
	if !strings.Contains(w.Body.String(), "/locations/local/deletedVaults/kv1") {
		t.Errorf("list: %s", w.Body)
	}
	w, err = f.call("Vaults_CheckNameAvailability", map[string]string{}, `{"name":"kv1","type":"Microsoft.KeyVault/vaults"}`)
	f.check(err)
	if !strings.Contains(w.Body.String(), `"nameAvailable":false`) {
		t.Errorf("name check: %s", w.Body)
	}

	d := f.mustPut(id, obj{"createMode": "recover"})
	if planeView(d).RetentionDays != 10 || d.Get("properties.createMode") != nil || d.String("tags.a") != "b" {
		t.Errorf("recovered: %v", d.Body)
	}
	after, err := f.keys.Handle(t.Context(), id.String())
	f.check(err)
	if got, err := after.OpenBytes("x", sealed); err != nil || string(got) != "record" {
		t.Errorf("records after recovery: %q, %v", got, err)
	}
	if _, err := f.call("Vaults_PurgeDeleted", at, ""); statusAndCode(err) != "DeletedVaultNotFound" {
		t.Errorf("purging a live vault: %v", err)
	}

	f.delete(id)
	_, err = f.call("Vaults_PurgeDeleted", at, "")
	f.check(err)
	if err := after.Check(); !errors.Is(err, envelope.ErrDestroyed) {
		t.Errorf("the key of a purged vault: %v", err)
	}
	f.mustPut(id, obj{})
	again, err := f.keys.Handle(t.Context(), id.String())
	f.check(err)
	if _, err := again.OpenBytes("x", sealed); err == nil {
		t.Error("records of a purged vault open under its successor's key")
	}
}

func TestPurgeProtection(t *testing.T) {
	f := newPlatform(t)
	f.mustPut(idOf("kv1"), obj{"enablePurgeProtection": true, "softDeleteRetentionInDays": 7})
	f.delete(idOf("kv1"))
	_, err := f.call("Vaults_PurgeDeleted", map[string]string{"vaultName": "kv1", "location": "local"}, "")
	if e := resource.AsError(err); e.Status != http.StatusMethodNotAllowed || e.Code != "MethodNotAllowed" {
		t.Errorf("purging a protected vault: %v", err)
	}
	if wait := f.p.settle(t.Context()); wait != settleRest {
		t.Errorf("next look in %v", wait)
	}
	f.clock = f.clock.Add(7*24*time.Hour - time.Minute)
	if wait := f.p.settle(t.Context()); wait != time.Minute {
		t.Errorf("next look in %v", wait)
	}
	f.clock = f.clock.Add(time.Minute)
	f.p.settle(t.Context())
	if _, taken := f.p.lookup("kv1"); taken {
		t.Error("the name is not free after the retention")
	}
}

func TestInterruptedPurgeIsFinished(t *testing.T) {
	f := newPlatform(t)
	id := idOf("kv1")
	f.mustPut(id, obj{})
	f.delete(id)
	f.check(f.p.condemn(t.Context(), id))
	f.check(f.keys.Destroy(t.Context(), id.String()))
	f.restart()
	if _, err := f.put(id, obj{"createMode": "recover"}); statusAndCode(err) != "DeletedVaultNotFound" {
		t.Errorf("recovering what is being purged: %v", err)
	}
	f.p.settle(t.Context())
	f.check(f.store.View(t.Context(), func(r store.Reader) error {
		if _, err := r.Get(nameKey("kv1")); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("the reservation is left: %v", err)
		}
		return nil
	}))
	f.mustPut(id, obj{})
}

func TestFailedCreationLeavesNothing(t *testing.T) {
	f := newPlatform(t)
	f.keys.failures = 100
	if _, err := f.put(idOf("kv1"), obj{}); err == nil {
		t.Fatal("created without a key")
	}
	if _, taken := f.p.lookup("kv1"); taken {
		t.Error("the name is still reserved")
	}
	f.keys.failures = 1 // transient: tried again
	f.mustPut(resource.MustParseID(strings.Replace(idOf("kv1").String(), "/rg/", "/other/", 1)), obj{})
}

// TestNameRace lets many requests want one name: one vault wins, the others are told, and the losers take nothing with them.
func TestNameRace(t *testing.T) {
	f := newPlatform(t)
	var wg sync.WaitGroup
	var mu sync.Mutex
	won := 0
	for _, group := range []string{"a", "b", "c", "d"} {
		id := resource.MustParseID(strings.Replace(idOf("kv1").String(), "/rg/", "/"+group+"/", 1))
		wg.Go(func() {
			_, err := f.put(id, obj{})
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				won++
			} else if statusAndCode(err) != "VaultAlreadyExists" {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	id, ok := f.plane.ResourceOf("kv1")
	if won != 1 || !ok {
		t.Fatalf("%d vaults have the name, known: %v", won, ok)
	}
	if _, err := f.keys.Handle(t.Context(), id); err != nil {
		t.Errorf("the winner's key: %v", err)
	}
}
