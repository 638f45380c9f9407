package fleet

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"time"

	"casemate.dev/dataplane/runtime"
	"casemate.dev/dataplane/runtime/agent"
	"casemate.dev/resource"
	"casemate.dev/store"
	"casemate.dev/store/storetest"
)

// fakeNode is a node whose agent the test plays.
type fakeNode struct {
	spec runtime.NodeSpec
	seq  int64

	mu      sync.Mutex
	gone    chan struct{}
	killed  bool
	removed bool
	exit    runtime.Exit
}

func (n *fakeNode) ID() string { return n.spec.ID }
func (n *fakeNode) Wait(ctx context.Context) (runtime.Exit, error) {
	<-n.gone
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.exit, nil
}
func (n *fakeNode) Kill() error { n.end(runtime.Exit{}, true); return nil }
func (n *fakeNode) Remove(context.Context) error {
	n.end(runtime.Exit{}, false)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.removed = true
	return nil
}
func (n *fakeNode) Evidence() runtime.Evidence { return runtime.Evidence{} }
func (n *fakeNode) end(exit runtime.Exit, killed bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	select {
	case <-n.gone:
	default:
		n.exit, n.killed = exit, killed
		close(n.gone)
	}
}

// say plays one event of the agent and returns the server's status.
func (n *fakeNode) say(e agent.Event) int {
	n.seq++
	e.Sequence = n.seq
	b, _ := json.Marshal(e)
	w := httptest.NewRecorder()
	n.spec.Agent.ServeHTTP(w, httptest.NewRequest("POST", "/event", bytes.NewReader(b)))
	return w.Code
}

func (n *fakeNode) agentSpec(t *testing.T) agent.Spec {
	t.Helper()
	w := httptest.NewRecorder()
	n.spec.Agent.ServeHTTP(w, httptest.NewRequest("GET", "/spec", nil))
	var s agent.Spec
	if err := json.Unmarshal(w.Body.Bytes(), &s); err != nil {
		t.Fatal(err)
	}
	return s
}

// awaitSignal blocks until the server wants the agent to stop.
func (n *fakeNode) awaitSignal() {
	n.spec.Agent.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/signal", nil))
}

type fakeRuntime struct {
	started chan *fakeNode
	mu      sync.Mutex
	nodes   []*fakeNode
	err     error
}

func (r *fakeRuntime) SelfTest(context.Context) error { return nil }
func (r *fakeRuntime) Cleanup(context.Context) error  { return nil }
func (r *fakeRuntime) Start(_ context.Context, spec runtime.NodeSpec) (runtime.Node, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return nil, r.err
	}
	n := &fakeNode{spec: spec, gone: make(chan struct{})}
	r.nodes = append(r.nodes, n)
	r.started <- n
	return n, nil
}

type fakeNetwork struct {
	mu       sync.Mutex
	attached map[string]bool
}

func (f *fakeNetwork) Attach(_ context.Context, node, subnet string) (Attachment, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.attached[node] = true
	return Attachment{NetNSPath: "/run/netns/" + node}, nil
}
func (f *fakeNetwork) Detach(_ context.Context, node string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.attached, node)
	return nil
}

// fakeHandle marks what it seals, so that a record that was stored unsealed cannot be read.
type fakeHandle struct{ done chan struct{} }

func (h fakeHandle) SealBytes(object string, plain []byte) ([]byte, error) {
	return append([]byte("sealed:"+object+":"), plain...), nil
}
func (h fakeHandle) OpenBytes(object string, sealed []byte) ([]byte, error) {
	plain, ok := bytes.CutPrefix(sealed, []byte("sealed:"+object+":"))
	if !ok {
		return nil, errors.New("not sealed for " + object)
	}
	return plain, nil
}
func (h fakeHandle) Done() <-chan struct{} { return h.done }

// world is one machine: the store survives a restart, the rest is made anew by boot.
type world struct {
	t        *testing.T
	store    store.Store
	runtime  *fakeRuntime
	network  *fakeNetwork
	registry *Registry
	sched    *Scheduler
	serving  *Serving
	changes  chan Record
	stop     func()

	mu       sync.Mutex
	capacity int
	revoked  bool
	key      fakeHandle
	plan     error // refusal of the planner
	deaf     bool  // Changed fails
}

const (
	testWorkspace = "/subscriptions/s/resourceGroups/g/providers/Microsoft.MachineLearningServices/workspaces/w"
	testCluster   = testWorkspace + "/computes/c"
)

func newWorld(t *testing.T) *world {
	w := &world{t: t, store: storetest.New(t), capacity: 2, key: fakeHandle{make(chan struct{})}}
	w.boot()
	return w
}

func (w *world) boot() {
	w.runtime = &fakeRuntime{started: make(chan *fakeNode, 64)}
	w.network = &fakeNetwork{attached: map[string]bool{}}
	w.registry = NewRegistry()
	w.changes = make(chan Record, 256)
	cfg := Config{
		Store: w.store, Runtime: w.runtime, Network: w.network, Planner: w, Serve: w, Handles: w.handle,
		Changed: w.changed, Grace: 20 * time.Millisecond, Retry: 2 * time.Millisecond,
	}
	w.sched, w.serving = NewScheduler(cfg, w.registry), NewServing(cfg, w.registry)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = w.sched.Run(ctx) })
	running.Go(func() { _ = w.serving.Run(ctx) })
	w.stop = sync.OnceFunc(func() {
		cancel()
		running.Wait()
		w.checkClean()
	})
	w.t.Cleanup(w.stop)
}

// restart is kill -9 as the store sees it: stopping writes nothing.
func (w *world) restart() { w.stop(); w.boot() }

func (w *world) checkClean() {
	w.t.Helper()
	for _, n := range w.runtime.nodes {
		if !n.removed {
			w.t.Errorf("node %s was not removed", n.ID())
		}
	}
	if len(w.network.attached) > 0 || len(w.registry.nodes) > 0 {
		w.t.Errorf("left behind: attachments %v, identities %v", w.network.attached, w.registry.nodes)
	}
}

func (w *world) handle(context.Context, string) (Handle, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.revoked {
		return nil, errors.New("the key is revoked")
	}
	return w.key, nil
}

func (w *world) revoke() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.revoked = true
	close(w.key.done)
}

func (w *world) restoreKey() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.revoked, w.key = false, fakeHandle{make(chan struct{})}
}

func (w *world) changed(_ context.Context, r Record) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.deaf {
		return errors.New("deaf")
	}
	w.changes <- r
	return nil
}

func (w *world) PlanJob(_ context.Context, r Record, node string) (Plan, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.registry.NodeAlive(node) {
		return Plan{}, fmt.Errorf("node %s is not alive while it is planned", node)
	}
	return Plan{Subnet: "subnet", Identity: Identity{Default: "mi", Run: r.ID}, Spec: agent.Spec{Kind: agent.KindJob, RunID: r.ID}}, w.plan
}

func (w *world) PlanServe(_ context.Context, deployment, node string) (Plan, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return Plan{Subnet: "subnet", Identity: Identity{Default: "mi", Run: deployment}, Spec: agent.Spec{Kind: agent.KindServe}}, w.plan
}

func (w *world) Capacity(context.Context, string) (int, error) { return w.capacity, nil }

func (w *world) submit(names ...string) {
	w.t.Helper()
	for _, n := range names {
		if err := w.sched.Submit(context.Background(), testWorkspace+"/jobs/"+n, testWorkspace, testCluster); err != nil {
			w.t.Fatal(err)
		}
	}
}

// await returns the next told record of the job that has one of the statuses.
func (w *world) await(name string, want ...Status) Record {
	w.t.Helper()
	for {
		select {
		case r := <-w.changes:
			if r.ID == testWorkspace+"/jobs/"+name && slices.Contains(want, r.Status) {
				return r
			}
		case <-time.After(20 * time.Second):
			w.t.Fatalf("job %s did not become %v", name, want)
		}
	}
}

func (w *world) node() *fakeNode {
	w.t.Helper()
	select {
	case n := <-w.runtime.started:
		return n
	case <-time.After(20 * time.Second):
		w.t.Fatal("no node was started")
		return nil
	}
}

func (w *world) status(name string) Record {
	w.t.Helper()
	r, err := w.sched.Status(context.Background(), testWorkspace+"/jobs/"+name, testWorkspace)
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

var errNoImage = resource.Errorf(400, "ImageNotFound", "The image 'x' is not in the registry.")
