package identity_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
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

	"casemate.dev/control/identity"
	"casemate.dev/resource"
	"casemate.dev/store"
)

// memory is a store in a map. fail, when set, refuses writes.
type memory struct {
	mu   sync.Mutex
	data map[string][]byte
	fail error
}

func (m *memory) Get(key string) (store.KV, error) {
	v, ok := m.data[key]
	if !ok {
		return store.KV{}, store.ErrNotFound
	}
	return store.KV{Key: key, Value: v}, nil
}

func (m *memory) Scan(prefix string, _ store.ScanOptions) iter.Seq2[store.KV, error] {
	return func(yield func(store.KV, error) bool) {
		for _, k := range slices.Sorted(maps.Keys(m.data)) {
			if strings.HasPrefix(k, prefix) && !yield(store.KV{Key: k, Value: bytes.Clone(m.data[k])}, nil) {
				return
			}
		}
	}
}
func (m *memory) Put(key string, value []byte)                       { m.data[key] = bytes.Clone(value) }
func (m *memory) Delete(key string)                                  { delete(m.data, key) }
func (m *memory) CompareAndSet(string, store.Revision, []byte) error { return errors.ErrUnsupported }
func (m *memory) View(_ context.Context, fn func(store.Reader) error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return fn(m)
}
func (m *memory) Watch(context.Context, string, store.Revision, func([]store.Change) error) error {
	return errors.ErrUnsupported
}
func (m *memory) Revision() store.Revision { return 0 }
func (m *memory) Close() error             { return nil }
func (m *memory) Update(_ context.Context, fn func(store.Txn) error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		return m.fail
	}
	return fn(m)
}

// bound is a sealer that hides nothing but notices a record in the wrong place.
type bound struct{}

func (bound) SealBytes(object string, plain []byte) ([]byte, error) {
	return append([]byte(object+"\x00"), plain...), nil
}

func (bound) OpenBytes(object string, sealed []byte) ([]byte, error) {
	plain, ok := bytes.CutPrefix(sealed, []byte(object+"\x00"))
	if !ok {
		return nil, errors.New("sealed elsewhere")
	}
	return plain, nil
}

// nodes is a registry of nodes.
type nodes struct{ sync.Map }

func (n *nodes) NodeIdentity(id string) (identity.NodeIdentity, bool) {
	v, ok := n.Load(id)
	if !ok {
		return identity.NodeIdentity{}, false
	}
	return v.(identity.NodeIdentity), true
}

// world is a bootstrapped service with everything around it.
type world struct {
	testing.TB
	*identity.Service
	store   *memory
	cfg     identity.Config
	admin   identity.Administrator
	nodes   *nodes
	now     time.Time
	removed []string
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{TB: t, store: &memory{data: map[string][]byte{}}, nodes: &nodes{}, now: time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)}
	w.cfg = identity.Config{
		Store: w.store, Sealer: bound{}, Domain: "casemate.localhost", Clock: func() time.Time { return w.now },
		Authority:        func(host string) string { return host + ":8443" },
		PrincipalRemoved: func(_ context.Context, id string) error { w.removed = append(w.removed, id); return nil },
	}
	// Making a key takes longer than most tests: the first world's key serves them all.
	firstKey.Do(func() {
		w.restart()
		for k, v := range w.store.data {
			if strings.HasPrefix(k, "identity/key/") {
				firstKeyRecord = store.KV{Key: k, Value: v}
			}
		}
	})
	w.store.data = map[string][]byte{firstKeyRecord.Key: firstKeyRecord.Value}
	w.restart()
	return w
}

var (
	firstKey       sync.Once
	firstKeyRecord store.KV
)

// restart opens the service again from what is stored.
func (w *world) restart() {
	w.Helper()
	s, err := identity.New(w.cfg)
	w.must(err)
	_, err = s.Bootstrap(w.Context(), func(a identity.Administrator) error { w.admin = a; return nil })
	w.must(err)
	s.JoinNodes(w.nodes)
	w.Service = s
}

func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

// request is one call of a row.
type request struct {
	method, url string
	body        any // url.Values, or anything that becomes JSON
	header      map[string]string
	caller      resource.Caller
	origin      resource.Origin
}

// do finds the row, the one with the most literal segments, and calls it.
func (w *world) do(plane resource.Plane, q request) (int, map[string]any, error) {
	w.Helper()
	var body string
	switch b := q.body.(type) {
	case nil:
	case url.Values:
		body = b.Encode()
	default:
		raw, err := json.Marshal(b)
		w.must(err)
		body = string(raw)
	}
	hr := httptest.NewRequest(q.method, q.url, strings.NewReader(body))
	for k, v := range q.header {
		hr.Header.Set(k, v)
	}
	var best *resource.Route
	var vars map[string]string
	for _, row := range w.Routes() {
		if row.Plane != plane || row.Method != q.method {
			continue
		}
		if v, ok := matchPattern(row.Pattern, hr.URL.Path); ok && (best == nil || len(v) < len(vars)) {
			best, vars = &row, v
		}
	}
	if best == nil {
		w.Fatalf("no row for %s %s", q.method, hr.URL.Path)
	}
	rec := httptest.NewRecorder()
	err := best.Handler(rec, &resource.Request{Request: hr, Route: best, Vars: vars, Caller: q.caller, Origin: q.origin})
	if err != nil {
		return resource.StatusOf(err), nil, err
	}
	var out map[string]any
	if rec.Body.Len() > 0 {
		w.must(json.Unmarshal(rec.Body.Bytes(), &out))
	}
	return rec.Code, out, nil
}

func matchPattern(pattern, path string) (map[string]string, bool) {
	p, s := strings.Split(pattern, "/"), strings.Split(path, "/")
	if len(p) != len(s) {
		return nil, false
	}
	vars := map[string]string{}
	for i := range p {
		if name, ok := strings.CutPrefix(p[i], "{"); ok {
			vars[strings.TrimSuffix(name, "}")] = s[i]
		} else if p[i] != s[i] {
			return nil, false
		}
	}
	return vars, true
}

const armAudience = "https://management.casemate.localhost:8443"

func form(pairs ...string) url.Values {
	v := url.Values{}
	for i := 0; i < len(pairs); i += 2 {
		v.Set(pairs[i], pairs[i+1])
	}
	return v
}

// token gets a token for a client by the second version's endpoint.
func (w *world) token(a identity.Administrator, audience string) string {
	w.Helper()
	_, out, err := w.do(resource.PlaneLogin, request{method: "POST", url: "/" + a.TenantID + "/oauth2/v2.0/token",
		body: form("grant_type", "client_credentials", "client_id", a.ClientID, "client_secret", a.Secret, "scope", audience+"/.default")})
	w.must(err)
	return out["access_token"].(string)
}

// caller verifies a token for the management plane.
func (w *world) caller(token string) (resource.Caller, error) {
	return w.Verify(w.Context(), token, w.Audience(resource.PlaneManagement))
}

// graph calls a directory row as the administrator.
func (w *world) graph(method, path string, body any) (int, map[string]any, error) {
	w.Helper()
	c, err := w.CallerOf(w.Context(), w.admin.ObjectID)
	w.must(err)
	return w.do(resource.PlaneGraph, request{method: method, url: "/v1.0/" + path, body: body, caller: c})
}

func (w *world) mustGraph(method, path string, body any) map[string]any {
	w.Helper()
	_, out, err := w.graph(method, path, body)
	w.must(err)
	return out
}

// application makes an application with a service principal and a secret.
func (w *world) application(name string) (a identity.Administrator, applicationID, keyID string) {
	w.Helper()
	app := w.mustGraph(http.MethodPost, "applications", map[string]any{"displayName": name})
	sp := w.mustGraph(http.MethodPost, "servicePrincipals", map[string]any{"appId": app["appId"]})
	pw := w.mustGraph(http.MethodPost, fmt.Sprintf("applications/%s/addPassword", app["id"]), map[string]any{"passwordCredential": map[string]any{"displayName": "one"}})
	return identity.Administrator{TenantID: w.admin.TenantID, ClientID: app["appId"].(string), ObjectID: sp["id"].(string), Secret: pw["secretText"].(string)},
		app["id"].(string), pw["keyId"].(string)
}

func codeOf(err error) string {
	if err == nil {
		return ""
	}
	return resource.AsError(err).Code
}

func describe(err error) string {
	if err == nil {
		return ""
	}
	e := resource.AsError(err)
	return fmt.Sprintf("%d %s %s", e.Status, e.Code, e.Message)
}
