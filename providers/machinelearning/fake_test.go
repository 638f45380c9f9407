package machinelearning

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"iter"
	"net"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"casemate.dev/control/operation"
	"casemate.dev/dataplane/blob"
	"casemate.dev/dataplane/runtime"
	"casemate.dev/dataplane/runtime/agent"
	"casemate.dev/dataplane/tracking"
	"casemate.dev/providers/machinelearning/fleet"
	"casemate.dev/resource"
	"casemate.dev/store"
	"casemate.dev/store/storetest"
)

const (
	testGroup     = "/subscriptions/11111111-1111-1111-1111-111111111111/resourceGroups/rg"
	testStorage   = testGroup + "/providers/Microsoft.Storage/storageAccounts/acct"
	testVault     = testGroup + "/providers/Microsoft.KeyVault/vaults/kv"
	testRegistry  = testGroup + "/providers/Microsoft.ContainerRegistry/registries/reg"
	testNetwork   = testGroup + "/providers/Microsoft.Network/virtualNetworks/net"
	testSubnet    = testNetwork + "/subnets/training"
	testIdentity  = testGroup + "/providers/Microsoft.ManagedIdentity/userAssignedIdentities/mi"
	testWorkspace = testGroup + "/providers/Microsoft.MachineLearningServices/workspaces/ws1"
)

var (
	engineer  = resource.Caller{Kind: resource.KindUser, Object: "engineer", Name: "Emil"}
	scientist = resource.Caller{Kind: resource.KindUser, Object: "scientist", Name: "Ada"}
	visitor   = resource.Caller{Kind: resource.KindUser, Object: "visitor", Name: "Mallory"}
	platform  = resource.Caller{Kind: resource.KindPlatform, Object: "platform"}
)

// fakeBlobs is a storage account in memory that remembers who read.
type fakeBlobs struct {
	mu      sync.Mutex
	blobs   map[string]string // container/name
	readers map[string]bool
}

func (f *fakeBlobs) ListBlobs(_ context.Context, _ resource.Caller, _ resource.ID, container, prefix string) iter.Seq2[blob.BlobInfo, error] {
	return func(yield func(blob.BlobInfo, error) bool) {
		f.mu.Lock()
		var names []string
		for n := range f.blobs {
			if strings.HasPrefix(n, container+"/"+prefix) {
				names = append(names, n)
			}
		}
		f.mu.Unlock()
		slices.Sort(names)
		for _, n := range names {
			if !yield(blob.BlobInfo{Name: strings.TrimPrefix(n, container+"/"), Size: int64(len(f.blobs[n]))}, nil) {
				return
			}
		}
	}
}

func (f *fakeBlobs) GetBlob(_ context.Context, c resource.Caller, _ resource.ID, container, name string, _ int64) (io.ReadCloser, blob.BlobInfo, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.readers[c.Object] = true
	b, ok := f.blobs[container+"/"+name]
	if !ok {
		return nil, blob.BlobInfo{}, resource.Errorf(404, "BlobNotFound", "no blob")
	}
	return io.NopCloser(strings.NewReader(b)), blob.BlobInfo{Name: name, Size: int64(len(b))}, nil
}

func (f *fakeBlobs) PutBlob(_ context.Context, _ resource.Caller, _ resource.ID, container, name string, body io.Reader, _ int64, _ string) error {
	b, err := io.ReadAll(body)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.blobs[container+"/"+name] = string(b)
	return err
}

func (f *fakeBlobs) DeleteBlob(_ context.Context, _ resource.Caller, _ resource.ID, container, name string) error {
	delete(f.blobs, container+"/"+name)
	return nil
}

func (f *fakeBlobs) EnsureContainer(_ context.Context, _ resource.Caller, _ resource.ID, container string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.blobs[container+"/"] = ""
	return nil
}

// fakeKeys remembers what was bound to what.
type fakeKeys struct {
	mu    sync.Mutex
	calls []string
}

func (f *fakeKeys) note(verb string, ref *KeyRef) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if ref != nil {
		verb += " " + ref.KeyURL + " as " + ref.Identity
	}
	f.calls = append(f.calls, verb)
	return nil
}
func (f *fakeKeys) Create(_ context.Context, _ string, ref *KeyRef) error {
	return f.note("create", ref)
}
func (f *fakeKeys) Rebind(_ context.Context, _ string, ref *KeyRef) error {
	return f.note("rebind", ref)
}
func (f *fakeKeys) Destroy(context.Context, string) error { return f.note("destroy", nil) }
func (f *fakeKeys) Version(string) (string, error)        { return "kid", nil }

type fakeHandle struct{}

func (fakeHandle) SealBytes(object string, plain []byte) ([]byte, error) {
	return append([]byte("sealed:"+object+":"), plain...), nil
}
func (fakeHandle) OpenBytes(object string, sealed []byte) ([]byte, error) {
	plain, ok := bytes.CutPrefix(sealed, []byte("sealed:"+object+":"))
	if !ok {
		return nil, errors.New("not sealed for " + object)
	}
	return plain, nil
}
func (fakeHandle) Done() <-chan struct{} { return nil }

// fakeNode is a node whose agent the test plays.
type fakeNode struct {
	spec runtime.NodeSpec
	seq  int64
	once sync.Once
	gone chan struct{}
}

func (n *fakeNode) ID() string                                 { return n.spec.ID }
func (n *fakeNode) Wait(context.Context) (runtime.Exit, error) { <-n.gone; return runtime.Exit{}, nil }
func (n *fakeNode) Kill() error                                { n.once.Do(func() { close(n.gone) }); return nil }
func (n *fakeNode) Remove(context.Context) error               { return n.Kill() }
func (n *fakeNode) Evidence() runtime.Evidence                 { return runtime.Evidence{} }
func (n *fakeNode) say(t *testing.T, states ...agent.State) {
	t.Helper()
	for _, s := range states {
		n.seq++
		b, _ := json.Marshal(agent.Event{Sequence: n.seq, State: s})
		w := httptest.NewRecorder()
		n.spec.Agent.ServeHTTP(w, httptest.NewRequest("POST", "/event", bytes.NewReader(b)))
		if w.Code != 204 {
			t.Fatalf("event %s answered %d %s", s, w.Code, w.Body)
		}
	}
}
func (n *fakeNode) work(t *testing.T) agent.Spec {
	t.Helper()
	w := httptest.NewRecorder()
	n.spec.Agent.ServeHTTP(w, httptest.NewRequest("GET", "/spec", nil))
	var s agent.Spec
	if err := json.Unmarshal(w.Body.Bytes(), &s); err != nil {
		t.Fatal(err)
	}
	return s
}

type fakeRuntime struct{ started chan *fakeNode }

func (r *fakeRuntime) SelfTest(context.Context) error { return nil }
func (r *fakeRuntime) Cleanup(context.Context) error  { return nil }
func (r *fakeRuntime) Start(_ context.Context, spec runtime.NodeSpec) (runtime.Node, error) {
	n := &fakeNode{spec: spec, gone: make(chan struct{})}
	ctx, cancel := context.WithCancel(context.Background())
	go func() { <-n.gone; cancel() }()
	go func() { // an agent that obeys at once
		spec.Agent.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/signal", nil).WithContext(ctx))
		_ = n.Kill()
	}()
	r.started <- n
	return n, nil
}

type fakeNetwork struct{}

func (fakeNetwork) Attach(_ context.Context, node, _ string) (fleet.Attachment, error) {
	return fleet.Attachment{NetNSPath: "/run/netns/" + node}, nil
}
func (fakeNetwork) Detach(context.Context, string) error { return nil }

// fakes that are one function each.
type fakeImages struct{ caller chan resource.Caller }

func (f fakeImages) Ensure(_ context.Context, c resource.Caller, registry resource.ID, repository, _ string) (Image, error) {
	if repository == "none" {
		return Image{}, resource.Errorf(404, "ImageNotFound", "There is no image 'none' in the registry '%s'.", registry.Name())
	}
	select {
	case f.caller <- c:
	default:
	}
	return Image{Digest: "sha256:" + strings.Repeat("a", 64), Env: []string{"PATH=/bin", "LANG=C"}}, nil
}

type fakePrincipals struct{}

func (fakePrincipals) CallerOf(_ context.Context, principal string) (resource.Caller, error) {
	return resource.Caller{Kind: resource.KindManagedIdentity, Object: principal}, nil
}

type fakeRuns struct {
	mu     sync.Mutex
	status map[string]string
}

func (f *fakeRuns) OpenJob(_ context.Context, _ resource.ID, job tracking.JobRun) error {
	return f.ChangeJob(context.Background(), resource.Tenant, job.ID, "OPEN", time.Time{}, time.Time{})
}
func (f *fakeRuns) ChangeJob(_ context.Context, _ resource.ID, run, status string, _, _ time.Time) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.status[run] = status
	return nil
}
func (f *fakeRuns) of(run string) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.status[run]
}
func (f *fakeRuns) Drop(context.Context, resource.ID) error { return nil }

// mayNotJoin denies the scientist the subnet, and the visitor everything that is not machine learning's.
type mayNotJoin struct{}

func (mayNotJoin) Authorize(c resource.Caller, action string, _ bool, _ resource.ID) (bool, string) {
	if c.Object == "visitor" {
		return strings.HasPrefix(action, namespace), ""
	}
	return c.Object != "scientist" || action != joinSubnetAction, ""
}

type fakeIdentities struct{}

func (fakeIdentities) EnsureSystemAssigned(_ context.Context, id resource.ID) (string, string, error) {
	return "principal-of-" + id.Name(), "tenant", nil
}
func (fakeIdentities) RemoveSystemAssigned(context.Context, resource.ID) error { return nil }

// lateEngine breaks the circle between provider and engine.
type lateEngine struct{ *operation.Engine }

// world is the provider on the real operation engine and store.
type world struct {
	t      *testing.T
	p      *Provider
	engine *operation.Engine
	store  store.Store
	blobs  *fakeBlobs
	keys   *fakeKeys
	nodes  *fakeRuntime
	images fakeImages
	runs   *fakeRuns
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, store: storetest.New(t), blobs: &fakeBlobs{blobs: map[string]string{}, readers: map[string]bool{}}, keys: &fakeKeys{},
		nodes: &fakeRuntime{started: make(chan *fakeNode, 16)}, images: fakeImages{make(chan resource.Caller, 16)}, runs: &fakeRuns{status: map[string]string{}}}
	late := &lateEngine{}
	var err error
	w.p, err = New(Config{
		Resources: late, Store: w.store, Keys: w.keys, Principals: fakePrincipals{}, Blobs: w.blobs, Images: w.images, Runtime: w.nodes, Network: fakeNetwork{},
		Handles: func(context.Context, string) (fleet.Handle, error) { return fakeHandle{}, nil },
		Runs:    w.runs, Authorize: mayNotJoin{}, Authority: func(h string) string { return h + ":8443" }, Domain: "casemate.localhost", Tenant: "tenant", Platform: platform,
		Dial: func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("nothing listens") },
		RunToken: func(_ context.Context, node, identity, audience string) (string, error) {
			if !w.p.Registry().NodeAlive(node) {
				return "", errors.New("token for a node that is not")
			}
			return "token of " + identity + " for " + audience, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	w.engine, err = operation.New(operation.Config{
		Store: w.store, Types: append(w.p.Types(), otherTypes()...), Identities: fakeIdentities{}, Authorize: mayNotJoin{},
		Handle:  func(context.Context, string) (operation.Handle, error) { return fakeHandle{}, nil },
		BaseURL: "https://management.casemate.localhost:8443", Clock: time.Now,
	})
	if err != nil {
		t.Fatal(err)
	}
	late.Engine = w.engine
	if err := w.engine.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = w.engine.Run(ctx) })
	running.Go(func() { _ = w.p.Run(ctx) })
	t.Cleanup(func() { cancel(); running.Wait() })
	w.put(engineer, "/subscriptions/11111111-1111-1111-1111-111111111111", `{}`)
	w.put(engineer, testGroup, `{"location":"local"}`)
	for _, id := range []string{testStorage, testVault, testRegistry, testNetwork} {
		w.put(engineer, id, `{"location":"local","properties":{}}`)
	}
	w.put(engineer, testIdentity, `{"location":"local","properties":{"principalId":"principal-mi","clientId":"client-mi"}}`)
	w.put(engineer, testSubnet, `{"properties":{"addressPrefix":"10.0.0.0/24"}}`)
	return w
}

// otherTypes stand for the other providers' types: documents and nothing behind them.
func otherTypes() []resource.Type {
	var out []resource.Type
	for name, level := range map[string]resource.Level{
		"Microsoft.Resources/subscriptions": resource.AtSubscriptionRaw, "Microsoft.Resources/subscriptions/resourceGroups": resource.AtSubscriptionRaw,
		storageType: resource.AtResourceGroup, vaultType: resource.AtResourceGroup, registryType: resource.AtResourceGroup,
		"Microsoft.Network/virtualNetworks": resource.AtResourceGroup, subnetType: 0, userAssignedType: resource.AtResourceGroup,
		"Microsoft.Authorization/roleAssignments": resource.AtAnyScope,
	} {
		out = append(out, resource.Type{Name: name, Level: level, APIVersions: []string{"2024-01-01"}, Created: 200})
	}
	return out
}

func (w *world) try(c resource.Caller, id, body string) (*resource.Document, error) {
	w.t.Helper()
	b, err := resource.DecodeBody([]byte(body))
	if err != nil {
		w.t.Fatalf("%s: %v", body, err)
	}
	return w.engine.Put(w.t.Context(), c, resource.MustParseID(id), b)
}

func (w *world) put(c resource.Caller, id, body string) *resource.Document {
	w.t.Helper()
	d, err := w.try(c, id, body)
	if err != nil {
		w.t.Fatalf("PUT %s: %v", id, err)
	}
	return d
}

func (w *world) refused(code, text string, c resource.Caller, id, body string) {
	w.t.Helper()
	_, err := w.try(c, id, body)
	var e *resource.Error
	if !errors.As(err, &e) || e.Code != code || !strings.Contains(e.Message, text) {
		w.t.Errorf("PUT %s %.120s:\n got %v\nwant %s %s", id, body, err, code, text)
	}
}

func (w *world) node() *fakeNode {
	w.t.Helper()
	select {
	case n := <-w.nodes.started:
		return n
	case <-time.After(20 * time.Second):
		w.t.Fatal("no node was started")
		return nil
	}
}

// view is what a client sees of a resource.
func (w *world) view(id string) *resource.Document {
	w.t.Helper()
	rid := resource.MustParseID(id)
	d, err := w.engine.Get(w.t.Context(), rid)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, typ := range w.p.Types() {
		if rid.Is(typ.Name) && typ.View != nil {
			typ.View(w.t.Context(), d)
		}
	}
	return d
}
