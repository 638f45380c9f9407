package blob

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"

	"casemate.dev/envelope"
	"casemate.dev/resource"
	"casemate.dev/store"
	"casemate.dev/store/depot"
	"casemate.dev/store/storetest"
)

var testAccount = resource.MustParseID("/subscriptions/11111111-1111-1111-1111-111111111111/resourceGroups/rg/providers/Microsoft.Storage/storageAccounts/acct1")

// testHost is where the account is reached.
const testHost = "acct1.blob.core.casemate.localhost"

const testKeyURL = "https://kv1.vault.casemate.localhost/keys/k1"

// fixture is the service over real keys and a real store, behind the smallest gateway that can run its rows.
type fixture struct {
	*Service
	t      testing.TB
	store  store.Store
	depot  *memoryDepot
	keys   *envelope.Keys
	vault  *fakeVault
	inner  *fakeInner
	routes []resource.Route
	host   string
}

func newFixture(t testing.TB) *fixture {
	t.Helper()
	f := &fixture{t: t, store: storetest.New(t), depot: &memoryDepot{objects: map[string][]byte{}}, vault: &fakeVault{}, inner: &fakeInner{}, host: testHost}
	root, err := envelope.OpenRoot("", t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	h, err := envelope.OpenHierarchy(t.Context(), t.TempDir(), root)
	if err != nil {
		t.Fatal(err)
	}
	f.keys = envelope.NewKeys(h, &memoryRecords{}, f.vault, envelope.Options{})
	if err := f.keys.Create(t.Context(), testAccount.String(), &envelope.KeyRef{KeyURL: testKeyURL, Identity: "id1"}); err != nil {
		t.Fatal(err)
	}
	f.restart()
	if err := f.CreateAccount(t.Context(), testAccount); err != nil {
		t.Fatal(err)
	}
	return f
}

// restart makes a new service over the same store and depot, as after a crash.
func (f *fixture) restart() {
	f.t.Helper()
	s, err := New(Config{Store: f.store, Depot: f.depot, Keys: f.keys, Inner: f.inner})
	if err != nil {
		f.t.Fatal(err)
	}
	f.Service, f.routes = s, s.Routes()
	for _, r := range f.routes {
		if err := r.Validate(); err != nil {
			f.t.Fatal(err)
		}
	}
}

// ServeHTTP finds the row as the gateway does and writes errors as x-ms-error-code and text.
func (f *fixture) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	q := &resource.Request{Request: r, Resource: testAccount.String(), Vars: map[string]string{}}
	pattern, ok := f.split(r.URL.EscapedPath(), q.Vars)
	var best *resource.Route
	for i, row := range f.routes {
		if row.Method == r.Method && row.Pattern == pattern && satisfied(row.Query, r) && (best == nil || len(row.Query) > len(best.Query)) {
			best = &f.routes[i]
		}
	}
	if !ok || best == nil {
		http.Error(w, "no row", http.StatusNotFound)
		return
	}
	q.Route = best
	tracked := &trackedWriter{ResponseWriter: w}
	if err := best.Handler(tracked, q); err != nil {
		if tracked.wrote {
			panic(http.ErrAbortHandler)
		}
		e := resource.AsError(err)
		for k, v := range e.Header {
			w.Header()[k] = v
		}
		w.Header().Set("x-ms-error-code", e.Code)
		w.WriteHeader(e.Status)
		fmt.Fprint(w, e.Error())
	}
}

func (f *fixture) split(path string, vars map[string]string) (pattern string, ok bool) {
	container, blob, deep := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	if container == "" {
		return serviceURL, true
	}
	var err1, err2 error
	vars["container"], err1 = url.PathUnescape(container)
	if !deep {
		return containerURL, err1 == nil
	}
	vars["blob"], err2 = url.PathUnescape(blob)
	return blobURL, err1 == nil && err2 == nil
}

func satisfied(conds []string, r *http.Request) bool {
	q := r.URL.Query()
	for _, c := range conds {
		not := strings.HasPrefix(c, "!")
		c = strings.TrimPrefix(c, "!")
		var has bool
		if h, ok := strings.CutPrefix(c, "header:"); ok {
			has = r.Header.Get(h) != ""
		} else if k, v, ok := strings.Cut(c, "="); ok {
			has = q.Get(k) == v
		} else {
			has = q.Has(c)
		}
		if has == not {
			return false
		}
	}
	return true
}

type trackedWriter struct {
	http.ResponseWriter
	wrote bool
}

func (w *trackedWriter) WriteHeader(status int) { w.wrote = true; w.ResponseWriter.WriteHeader(status) }
func (w *trackedWriter) Write(p []byte) (int, error) {
	w.wrote = true
	return w.ResponseWriter.Write(p)
}
func (w *trackedWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// do sends one request; headers are name, value pairs.
func (f *fixture) do(method, target, body string, headers ...string) *httptest.ResponseRecorder {
	f.t.Helper()
	r := httptest.NewRequest(method, target, strings.NewReader(body))
	r.Host = f.host
	r.Header.Set("x-ms-version", "2026-12-06")
	for i := 0; i+1 < len(headers); i += 2 {
		if headers[i+1] == "" {
			r.Header.Del(headers[i])
		} else {
			r.Header.Set(headers[i], headers[i+1])
		}
	}
	w := httptest.NewRecorder()
	f.ServeHTTP(w, r)
	return w
}

// must is do that demands a status.
func (f *fixture) must(status int, method, target, body string, headers ...string) *httptest.ResponseRecorder {
	f.t.Helper()
	w := f.do(method, target, body, headers...)
	if w.Code != status {
		f.t.Fatalf("%s %s = %d %s, want %d", method, target, w.Code, w.Body, status)
	}
	return w
}

func (f *fixture) container(name string) {
	f.t.Helper()
	f.must(201, "PUT", "/"+name+"?restype=container", "")
}

func (f *fixture) upload(target, body string, headers ...string) *httptest.ResponseRecorder {
	f.t.Helper()
	return f.must(201, "PUT", target, body, append([]string{"x-ms-blob-type", "BlockBlob"}, headers...)...)
}

// settled runs the sweeper and returns how many objects the depot still holds.
func (f *fixture) settled() int {
	f.t.Helper()
	if _, err := f.Sweep(f.t.Context()); err != nil {
		f.t.Fatal(err)
	}
	return f.depot.count()
}

var errFault = errors.New("disk on fire")

// memoryDepot keeps objects in memory; fault makes calls fail.
type memoryDepot struct {
	mu      sync.Mutex
	objects map[string][]byte
	fault   func(op string) error
}

func (d *memoryDepot) at(op string) error {
	if d.fault == nil {
		return nil
	}
	return d.fault(op)
}

func (d *memoryDepot) count() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.objects)
}

func (d *memoryDepot) Create(context.Context) (depot.Writer, error) {
	return &memoryWriter{d: d}, d.at("create")
}

type memoryWriter struct {
	bytes.Buffer
	d *memoryDepot
}

func (w *memoryWriter) Write(p []byte) (int, error) {
	if err := w.d.at("write"); err != nil {
		return 0, err
	}
	return w.Buffer.Write(p)
}

func (w *memoryWriter) Commit(_ context.Context, key string) error {
	if err := depot.ValidateKey(key); err != nil {
		return err
	}
	if err := w.d.at("commit"); err != nil {
		return err
	}
	w.d.mu.Lock()
	defer w.d.mu.Unlock()
	w.d.objects[key] = bytes.Clone(w.Bytes())
	return nil
}

func (w *memoryWriter) Abort() {}

type memoryObject struct{ *bytes.Reader }

func (memoryObject) Close() error { return nil }

func (d *memoryDepot) Open(_ context.Context, key string) (depot.Object, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	b, ok := d.objects[key]
	if !ok {
		return nil, depot.ErrNotFound
	}
	return memoryObject{bytes.NewReader(b)}, nil
}

func (d *memoryDepot) Remove(_ context.Context, key string) error {
	if err := d.at("remove"); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.objects, key)
	return nil
}

func (d *memoryDepot) List(_ context.Context, prefix string) iter.Seq2[string, error] {
	d.mu.Lock()
	var keys []string
	for k := range d.objects {
		if strings.HasPrefix(k, prefix) {
			keys = append(keys, k)
		}
	}
	d.mu.Unlock()
	slices.Sort(keys)
	return func(yield func(string, error) bool) {
		for _, k := range keys {
			if !yield(k, nil) {
				return
			}
		}
	}
}

// memoryRecords are envelope.Records.
type memoryRecords struct{ m sync.Map }

func (r *memoryRecords) Load(_ context.Context, id string) ([]byte, error) {
	v, ok := r.m.Load(id)
	if !ok {
		return nil, envelope.ErrNoRecord
	}
	return v.([]byte), nil
}

func (r *memoryRecords) Save(_ context.Context, id string, rec []byte) error {
	r.m.Store(id, bytes.Clone(rec))
	return nil
}
func (r *memoryRecords) Remove(_ context.Context, id string) error { r.m.Delete(id); return nil }
func (r *memoryRecords) List(context.Context) (out []string, err error) {
	r.m.Range(func(k, _ any) bool { out = append(out, k.(string)); return true })
	return out, nil
}

// fakeVault wraps by inverting bits and refuses while revoked.
type fakeVault struct {
	mu      sync.Mutex
	revoked bool
}

func (v *fakeVault) set(revoked bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.revoked = revoked
}

func (v *fakeVault) WrapKey(_ context.Context, ref envelope.KeyRef, plain []byte) ([]byte, string, error) {
	return invert(plain), ref.KeyURL + "/v1", nil
}

func (v *fakeVault) UnwrapKey(_ context.Context, ref envelope.KeyRef, kid string, wrapped []byte) ([]byte, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.revoked {
		return nil, envelope.Refused(kid, errors.New("the key is disabled"))
	}
	return invert(wrapped), nil
}

func invert(p []byte) []byte {
	out := bytes.Clone(p)
	for i := range out {
		out[i] ^= 0xff
	}
	return out
}

// revoke does what the vault does when a key is disabled.
func (f *fixture) revoke() {
	f.vault.set(true)
	f.keys.Revoked(testKeyURL)
}

// fakeInner allows what allow says and remembers what was asked.
type fakeInner struct {
	mu    sync.Mutex
	deny  bool
	asked []string
	open  int
}

func (i *fakeInner) Enter(_ context.Context, c resource.Caller, action string, isData bool, scope string, cat resource.Category) (func(error), error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.asked = append(i.asked, fmt.Sprintf("%s %s %v %s %s", c.Object, action, isData, scope, cat))
	if i.deny {
		return nil, resource.Forbidden(c, action, scope)
	}
	i.open++
	return func(error) {
		i.mu.Lock()
		defer i.mu.Unlock()
		i.open--
	}, nil
}

func readAll(t testing.TB, r io.Reader) string {
	t.Helper()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
