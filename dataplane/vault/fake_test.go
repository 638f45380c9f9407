package vault

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"iter"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"casemate.dev/resource"
	"casemate.dev/store"
)

// memory is a store.Store that forgets at exit: one transaction at a time, snapshots by copying.
type memory struct {
	mu   sync.Mutex
	kvs  map[string]store.KV
	rev  store.Revision
	fail error // what the next Updates answer
}

func newMemory() *memory { return &memory{kvs: map[string]store.KV{}} }

type memoryTxn struct {
	kvs map[string]store.KV
	rev store.Revision
}

func (t memoryTxn) Get(key string) (store.KV, error) {
	kv, ok := t.kvs[key]
	if !ok {
		return kv, store.ErrNotFound
	}
	kv.Value = slices.Clone(kv.Value)
	return kv, nil
}

func (t memoryTxn) Scan(prefix string, opt store.ScanOptions) iter.Seq2[store.KV, error] {
	all := slices.Sorted(maps.Keys(t.kvs))
	if opt.Reverse {
		panic("not needed here")
	}
	return func(yield func(store.KV, error) bool) {
		n := 0
		for _, k := range all {
			if !strings.HasPrefix(k, prefix) || k <= opt.After {
				continue
			}
			if n++; opt.Limit > 0 && n > opt.Limit {
				return
			}
			kv, err := t.Get(k)
			if errors.Is(err, store.ErrNotFound) {
				continue
			}
			if !yield(kv, err) {
				return
			}
		}
	}
}

func (t memoryTxn) Put(key string, value []byte) {
	t.kvs[key] = store.KV{Key: key, Value: slices.Clone(value), Revision: t.rev}
}

func (t memoryTxn) Delete(key string) { delete(t.kvs, key) }

func (t memoryTxn) CompareAndSet(key string, want store.Revision, value []byte) error {
	if t.kvs[key].Revision != want {
		return store.ErrConflict
	}
	t.Put(key, value)
	return nil
}

func (m *memory) View(_ context.Context, fn func(store.Reader) error) error {
	m.mu.Lock()
	snapshot := memoryTxn{kvs: maps.Clone(m.kvs)}
	m.mu.Unlock()
	return fn(snapshot)
}

func (m *memory) Update(_ context.Context, fn func(store.Txn) error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	// The contract allows fn to run more than once: make sure that it may.
	for range 2 {
		t := memoryTxn{kvs: maps.Clone(m.kvs), rev: m.rev + 1}
		if err := fn(t); err != nil {
			return err
		}
		defer func() { m.kvs, m.rev = t.kvs, t.rev }()
	}
	if m.fail != nil {
		return m.fail
	}
	return nil
}

func (m *memory) Watch(ctx context.Context, _ string, _ store.Revision, _ func([]store.Change) error) error {
	<-ctx.Done()
	return ctx.Err()
}
func (m *memory) Revision() store.Revision { return m.rev }
func (m *memory) Close() error             { return nil }

// testSealer seals with a key of its own.
type testSealer struct{ aead cipher.AEAD }

func newSealer() testSealer {
	key := make([]byte, 32)
	rand.Read(key)
	block, err := aes.NewCipher(key)
	if err != nil {
		panic(err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		panic(err)
	}
	return testSealer{aead}
}

func (s testSealer) SealBytes(object string, plain []byte) ([]byte, error) {
	return s.aead.Seal(nil, nil, plain, []byte(object)), nil
}

func (s testSealer) OpenBytes(object string, sealed []byte) ([]byte, error) {
	return s.aead.Open(nil, nil, sealed, []byte(object))
}

// principals knows every principal but "nobody", and is down for "outage".
type principals struct{}

func (principals) CallerOf(_ context.Context, id string) (resource.Caller, error) {
	switch id {
	case "nobody":
		return resource.Caller{}, resource.Errorf(404, "PrincipalNotFound", "No such principal.")
	case "outage":
		return resource.Caller{}, errors.New("directory is down")
	}
	return resource.Caller{Kind: resource.KindManagedIdentity, Object: id}, nil
}

// inner allows everybody but "stranger" and remembers what was asked.
type inner struct {
	mu    sync.Mutex
	asked []string
}

func (i *inner) Enter(_ context.Context, c resource.Caller, action string, isData bool, scope string, cat resource.Category) (func(error), error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if !isData || cat != resource.AuditSecret {
		return nil, errors.New("wrong columns")
	}
	i.asked = append(i.asked, c.Object+" "+action+" "+scope)
	switch c.Object {
	case "stranger":
		return nil, resource.Forbidden(c, action, scope)
	case "unrecorded":
		return nil, resource.Errorf(503, "AuditUnavailable", "The audit log cannot be written.")
	}
	return func(error) {}, nil
}

const vaultID = "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/rg/providers/Microsoft.KeyVault/vaults/Kv1"

// rig is a service with one vault, and a dispatcher that does what the gateway does to a path.
type rig struct {
	*Service
	t      testing.TB
	store  store.Store
	mem    *memory
	inner  *inner
	vault  Vault
	mu     sync.Mutex
	told   []string // "revoked URL" and "rotated URL" in order
	clock  time.Time
	routes []resource.Route
}

func newRig(t testing.TB) *rig {
	m := newMemory()
	r := newRigOn(t, m, newSealer())
	r.mem = m
	return r
}

func newRigOn(t testing.TB, st store.Store, sealer Sealer) *rig {
	t.Helper()
	r := &rig{t: t, store: st, inner: &inner{}, clock: time.Unix(1_800_000_000, 0)}
	s, err := New(Config{
		Store:      st,
		Handle:     handleOf(sealer),
		Principals: principals{}, Inner: r.inner,
		Domain:    "casemate.test",
		Authority: func(h string) string { return h + ":8443" },
		Login:     "https://login.casemate.test:8443", Tenant: "11111111-1111-1111-1111-111111111111",
		Revoked: func(u string) { r.tell("revoked " + u) },
		Rotated: func(u string) { r.tell("rotated " + u) },
		Clock:   r.time,
	})
	if err != nil {
		t.Fatal(err)
	}
	r.Service = s
	r.routes = s.Routes()
	for _, row := range r.routes {
		if err := row.Validate(); err != nil {
			t.Fatal(err)
		}
	}
	r.vault = Vault{ID: resource.MustParseID(vaultID), RetentionDays: 90, TrustedServices: true}
	s.Set(r.vault)
	return r
}

func (r *rig) tell(s string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.told = append(r.told, strings.ReplaceAll(s, "https://kv1.vault.casemate.test:8443", ""))
}

// heard returns what the hooks were told since the last call.
func (r *rig) heard() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := r.told
	r.told = nil
	return out
}

func (r *rig) time() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.clock
}

func (r *rig) advance(d time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.clock = r.clock.Add(d)
}

// answer is a response: its status and its JSON.
type answer struct {
	status int
	err    *resource.Error
	body   map[string]any
}

func (a answer) str(path ...string) string {
	var cur any = a.body
	for _, p := range path {
		m, _ := cur.(map[string]any)
		cur = m[p]
	}
	s, _ := cur.(string)
	return s
}

func (a answer) inner() string {
	if a.err == nil || len(a.err.Details) == 0 {
		return ""
	}
	return a.err.Details[0].Code
}

// do sends a request as the gateway would hand it over. path may hold a query.
func (r *rig) do(method, path string, body any) answer {
	r.t.Helper()
	u, err := url.Parse(path)
	if err != nil {
		r.t.Fatal(err)
	}
	q := u.Query()
	q.Set("api-version", "7.4")
	var in io.Reader = http.NoBody
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			r.t.Fatal(err)
		}
		in = bytes.NewReader(b)
	}
	segs := slices.DeleteFunc(strings.Split(u.Path, "/"), func(s string) bool { return s == "" })
	hr := httptest.NewRequest(method, "https://kv1.vault.casemate.test:8443/"+strings.Join(segs, "/")+"?"+q.Encode(), in)
	req := &resource.Request{Request: hr, Host: "kv1", Resource: vaultID}
	for i := range r.routes {
		row := &r.routes[i]
		vars, ok := match(row.Pattern, segs)
		if !ok || row.Method != method || req.Route != nil && strings.Count(req.Route.Pattern, "{") <= strings.Count(row.Pattern, "{") {
			continue
		}
		req.Route, req.Vars = row, vars
	}
	if req.Route == nil {
		r.t.Fatalf("no row for %s %s", method, path)
	}
	w := httptest.NewRecorder()
	if err := req.Route.Handler(w, req); err != nil {
		e := resource.AsError(err)
		if e.Status == 500 && r.mem != nil && r.mem.fail == nil {
			r.t.Fatalf("%s %s: %v", method, path, err)
		}
		return answer{status: e.Status, err: e}
	}
	a := answer{status: w.Code}
	if w.Body.Len() > 0 {
		if err := json.Unmarshal(w.Body.Bytes(), &a.body); err != nil {
			r.t.Fatal(err)
		}
	}
	return a
}

func match(pattern string, segs []string) (map[string]string, bool) {
	parts := strings.Split(strings.TrimPrefix(pattern, "/"), "/")
	vars := map[string]string{}
	for i, p := range parts {
		if strings.HasSuffix(p, "...}") {
			vars[p[1:len(p)-4]] = strings.Join(segs[min(i, len(segs)):], "/")
			return vars, len(segs) >= i
		}
		if i >= len(segs) {
			return nil, false
		}
		if strings.HasPrefix(p, "{") {
			vars[p[1:len(p)-1]] = segs[i]
		} else if p != segs[i] {
			return nil, false
		}
	}
	return vars, len(parts) == len(segs)
}

// must is do with a demand on the status.
func (r *rig) must(status int, method, path string, body any) answer {
	r.t.Helper()
	a := r.do(method, path, body)
	if a.status != status {
		r.t.Fatalf("%s %s: status %d (%v), want %d", method, path, a.status, a.err, status)
	}
	return a
}

// obj abbreviates JSON objects.
type obj = map[string]any

// versionOf is the last segment of an identifier.
func versionOf(id string) string { return id[strings.LastIndexByte(id, '/')+1:] }

func mustID(s string) resource.ID { return resource.MustParseID(s) }

func handleOf(s Sealer) func(context.Context, string) (Sealer, error) {
	return func(context.Context, string) (Sealer, error) { return s, nil }
}
