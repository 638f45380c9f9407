package registry

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"casemate.dev/envelope"
	"casemate.dev/resource"
	"casemate.dev/store"
	"casemate.dev/store/depot"
	"casemate.dev/store/depot/file"
	"casemate.dev/store/storetest"
)

var testRegistry = resource.MustParseID("/subscriptions/11111111-1111-1111-1111-111111111111/resourceGroups/rg/providers/Microsoft.ContainerRegistry/registries/Reg1")

const (
	testKeyURL = "https://kv1.vault.casemate.localhost/keys/k1"
	testHost   = "reg1.azurecr.casemate.localhost"

	pusher  = "aaaaaaaa-0000-0000-0000-000000000001"
	puller  = "aaaaaaaa-0000-0000-0000-000000000002"
	deleter = "aaaaaaaa-0000-0000-0000-000000000003"
	nobody  = "aaaaaaaa-0000-0000-0000-000000000004" // has a token and no role
	onNode  = "aaaaaaaa-0000-0000-0000-000000000005" // a managed identity on node n1
)

// fixture is the service over real keys and stores, behind the smallest gateway that can run its rows.
type fixture struct {
	*Service
	t      testing.TB
	dir    string
	store  store.Store
	depot  depot.Depot
	keys   *envelope.Keys
	vault  *fakeVault
	people *people
	routes []resource.Route
	node   string // the node that requests come from

	mu    sync.Mutex
	clock time.Time
	roles map[string]string // object id → permitted actions
}

func newFixture(t testing.TB) *fixture {
	t.Helper()
	f := &fixture{t: t, dir: t.TempDir(), store: storetest.New(t), vault: &fakeVault{}, people: &people{gone: map[string]bool{}}, clock: time.Unix(1_800_000_000, 0)}
	f.people.now = f.now
	f.roles = map[string]string{pusher: actPull + " " + actPush + " " + actCatalog, puller: actPull, onNode: actPull, deleter: actPull + " " + actDelete}
	root, err := envelope.OpenRoot("", t.TempDir())
	f.check(err)
	h, err := envelope.OpenHierarchy(t.Context(), t.TempDir(), root)
	f.check(err)
	f.depot, err = file.Open(filepath.Join(f.dir, "depot"))
	f.check(err)
	f.keys = envelope.NewKeys(h, &memoryRecords{}, f.vault, envelope.Options{})
	f.check(f.keys.Create(t.Context(), testRegistry.String(), &envelope.KeyRef{KeyURL: testKeyURL, Identity: "id1"}))
	f.restart()
	f.check(f.CreateRegistry(t.Context(), testRegistry))
	return f
}

func (f *fixture) now() time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.clock
}

func (f *fixture) advance(d time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.clock = f.clock.Add(d)
}

func (f *fixture) check(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatal(err)
	}
}

// restart makes a new service over the same store and depot, as after a crash.
func (f *fixture) restart() {
	f.t.Helper()
	s, err := New(Config{Store: f.store, Depot: f.depot, Keys: f.keys, Principals: f.people, Inner: f, Domain: "casemate.localhost",
		Audience: func(a string) bool { return a == "arm" }, SignInAudience: "arm", Clock: f.now})
	f.check(err)
	f.Service, f.routes = s, s.Routes()
	for _, r := range f.routes {
		f.check(r.Validate())
	}
}

func (f *fixture) may(object, action string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return strings.Contains(f.roles[object]+" ", action+" ")
}

// Enter is resource.Inner.
func (f *fixture) Enter(_ context.Context, c resource.Caller, action string, _ bool, scope string, _ resource.Category) (func(error), error) {
	if !f.may(c.Object, action) {
		return nil, resource.Forbidden(c, action, scope)
	}
	return func(error) {}, nil
}

// ServeHTTP does what the gateway does: row, authentication, authorisation, handler, dialect.
func (f *fixture) ServeHTTP(w http.ResponseWriter, hr *http.Request) {
	q := &resource.Request{Request: hr, Resource: testRegistry.String(), Host: "reg1", Origin: resource.Origin{Kind: resource.OriginPublic, Node: f.node}}
	tracked := &trackedWriter{ResponseWriter: w}
	if err := f.run(tracked, q); err != nil {
		if tracked.wrote {
			panic(http.ErrAbortHandler)
		}
		f.refuse(w, q, resource.AsError(err))
	}
}

func (f *fixture) run(w http.ResponseWriter, q *resource.Request) error {
	q.URL.Path = "/" + strings.Trim(q.URL.Path, "/")
	pattern, rest := q.URL.Path, ""
	if below, ok := strings.CutPrefix(pattern, "/v2/"); ok && below != "_catalog" {
		pattern, rest = "/v2/{rest...}", below
	}
	q.Vars = map[string]string{"rest": rest}
	for i := range f.routes {
		if f.routes[i].Method == q.Method && f.routes[i].Pattern == pattern {
			q.Route = &f.routes[i]
		}
	}
	if q.Route == nil {
		return resource.Errorf(404, "NotFound", "no row")
	}
	q.Body = http.MaxBytesReader(w, q.Body, max(q.Route.Body, 0))
	var err error
	if q.Caller, err = f.Authenticate(q); err != nil {
		return err
	}
	if n := q.Caller.Node; n != "" && n != q.Origin.Node {
		return unauthorized("another node")
	}
	if q.Route.Open == "" {
		if q.Caller.Anonymous() {
			return unauthorized("no token")
		}
		action, scope := q.Route.Action, testRegistry.String()
		if q.Route.Resolve != nil {
			if action, _, scope, err = q.Route.Resolve(q); err != nil {
				return err
			}
		}
		if scope != testRegistry.String() || !f.may(q.Caller.Object, action) {
			return resource.Forbidden(q.Caller, action, scope)
		}
	}
	return q.Route.Handler(w, q)
}

func (f *fixture) refuse(w http.ResponseWriter, q *resource.Request, e *resource.Error) {
	code := e.Code
	switch e.Status {
	case 401:
		code = "UNAUTHORIZED"
		w.Header().Set("WWW-Authenticate", f.Challenge(q))
	case 403:
		code = "DENIED"
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(e.Status)
	_ = json.NewEncoder(w).Encode(map[string]any{"errors": []any{map[string]any{"code": code, "message": e.Message, "cause": fmt.Sprint(e.Cause)}}})
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

// do sends one request as somebody; headers are name, value pairs.
func (f *fixture) do(who, method, target string, body []byte, headers ...string) *httptest.ResponseRecorder {
	f.t.Helper()
	r := httptest.NewRequest(method, target, bytes.NewReader(body))
	r.Host = testHost + ":8443"
	if who != "" {
		r.Header.Set("Authorization", "Bearer "+f.people.token(who))
	}
	for i := 0; i+1 < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	func() {
		defer func() {
			if p := recover(); p != nil && p != http.ErrAbortHandler {
				panic(p)
			} else if p != nil {
				w.Code = 0 // broke off
			}
		}()
		f.ServeHTTP(w, r)
	}()
	return w
}

// must is do that demands a status.
func (f *fixture) must(status int, who, method, target string, body []byte, headers ...string) *httptest.ResponseRecorder {
	f.t.Helper()
	w := f.do(who, method, target, body, headers...)
	if w.Code != status {
		f.t.Fatalf("%s %s = %d %s, want %d", method, target, w.Code, w.Body, status)
	}
	return w
}

// refused demands a status and an error code.
func (f *fixture) refused(status int, code, who, method, target string, body []byte, headers ...string) string {
	f.t.Helper()
	w := f.must(status, who, method, target, body, headers...)
	var e struct {
		Errors []struct{ Code, Message string }
	}
	if err := json.Unmarshal(w.Body.Bytes(), &e); err != nil || len(e.Errors) != 1 || e.Errors[0].Code != code {
		f.t.Fatalf("%s %s answers %s, want the code %s", method, target, w.Body, code)
	}
	return e.Errors[0].Message
}

// blob pushes a blob in one request after the one that begins the upload.
func (f *fixture) blob(repo string, content []byte) digest.Digest {
	f.t.Helper()
	d := digest.FromBytes(content)
	loc := f.must(202, pusher, "POST", "/v2/"+repo+"/blobs/uploads/", nil).Header().Get("Location")
	f.must(201, pusher, "PUT", loc+"?digest="+d.String(), content)
	return d
}

const typeManifest = "application/vnd.oci.image.manifest.v1+json"

// manifest is an image of one layer.
func manifest(config, layer digest.Digest, configSize, layerSize int) []byte {
	return fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":%q,"size":%d},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":%q,"size":%d}]}`,
		typeManifest, config, configSize, layer, layerSize)
}

// image pushes an image of one layer and returns its manifest.
func (f *fixture) image(repo, tag string, layer []byte) (m []byte, config, blob digest.Digest) {
	f.t.Helper()
	conf := []byte(`{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}`)
	config, blob = f.blob(repo, conf), f.blob(repo, layer)
	m = manifest(config, blob, len(conf), len(layer))
	f.must(201, pusher, "PUT", "/v2/"+repo+"/manifests/"+tag, m, "Content-Type", typeManifest)
	return m, config, blob
}

// objects counts what the depot holds after the sweeper ran.
func (f *fixture) objects() (n int) {
	f.t.Helper()
	f.check(f.Sweep(f.t.Context()))
	for _, err := range f.depot.List(f.t.Context(), "") {
		f.check(err)
		n++
	}
	return n
}

// plaintext looks for words in all files.
func (f *fixture) plaintext(words ...string) {
	f.t.Helper()
	f.check(filepath.WalkDir(f.dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		for _, w := range words {
			if bytes.Contains(b, []byte(w)) || strings.Contains(path, w) {
				f.t.Errorf("%s holds %q", path, w)
			}
		}
		return err
	}))
}

// people is the directory: tokens are three dotted parts, as JWTs are, and name their owner.
type people struct {
	mu   sync.Mutex
	gone map[string]bool // principals that were removed
	now  func() time.Time
}

func (p *people) token(object string) string {
	b, _ := json.Marshal(map[string]any{"exp": p.now().Add(2 * time.Hour).Unix(), "oid": object, "aud": "arm"})
	return base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"RS256","kid":"dir"}`)) + "." + base64.RawURLEncoding.EncodeToString(b) + ".sig"
}

func (p *people) remove(object string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.gone[object] = true
}

func (p *people) Verify(ctx context.Context, raw string, audience func(string) bool) (resource.Caller, error) {
	var c struct {
		OID, Aud string
		Exp      int64
	}
	parts := strings.Split(raw, ".")
	if len(parts) != 3 || parts[2] != "sig" {
		return resource.Caller{}, resource.Errorf(401, "InvalidAuthenticationToken", "not a token of the directory")
	}
	b, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil || json.Unmarshal(b, &c) != nil || !audience(c.Aud) || p.now().Unix() >= c.Exp {
		return resource.Caller{}, resource.Errorf(401, "InvalidAuthenticationToken", "not a good token")
	}
	caller, err := p.CallerOf(ctx, c.OID)
	if c.OID == onNode {
		caller.Node, caller.Run, caller.OnBehalfOf = "n1", "run1", "person1"
	}
	return caller, err
}

func (p *people) CallerOf(_ context.Context, object string) (resource.Caller, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.gone[object] {
		return resource.Caller{}, resource.Errorf(401, "InvalidAuthenticationToken", "The principal does not exist any more.")
	}
	return resource.Caller{Kind: resource.KindServicePrincipal, Object: object}, nil
}

func (p *people) SignIn(_ context.Context, client, secret, audience string) (string, error) {
	if secret != "secret of "+client || audience != "arm" {
		return "", errors.New("wrong secret")
	}
	return p.token(client), nil
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

func (v *fakeVault) UnwrapKey(_ context.Context, _ envelope.KeyRef, kid string, wrapped []byte) ([]byte, error) {
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
