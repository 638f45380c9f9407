package fleet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"casemate.dev/dataplane/runtime"
	"casemate.dev/dataplane/runtime/agent"
	"casemate.dev/store"
)

// ServePlanner says what one instance of a deployment is.
type ServePlanner interface {
	PlanServe(ctx context.Context, deployment, node string) (Plan, error)
}

// DeploymentSpec is what a deployment should be. A changed Revision replaces all instances.
type DeploymentSpec struct {
	ID        string `json:"id"`
	Owner     string `json:"owner"` // the workspace; without its key no instance lives
	Instances int    `json:"instances"`
	Revision  string `json:"revision"` // changes with everything that an instance is made from
}

// Serving keeps the instances of deployments alive: it starts them, replaces those that end, and brings all back after a
// restart.
//
//	machinelearning/serving/{deployment id}   DeploymentSpec: ids and numbers only
type Serving struct {
	cfg      Config
	launcher *launcher

	mu          sync.Mutex // guards deployments and each one's instances
	deployments map[string]*deployment
	base        context.Context // of Run; nil before
}

type deployment struct {
	spec     DeploymentSpec
	stop     context.CancelFunc
	done     sync.WaitGroup
	ready    map[string]int // requests in flight on each ready node
	failed   error          // of the newest instance that ended
	failures int            // counts them
	change   chan struct{}  // closed and replaced when ready or failed changes
}

// Start and replacement pauses of an instance that keeps ending.
const (
	firstPause = time.Second
	maxPause   = time.Minute
)

// NewServing makes a keeper of deployments; nothing happens before Run.
func NewServing(cfg Config, registry *Registry) *Serving {
	cfg = cfg.withDefaults()
	return &Serving{cfg: cfg, launcher: newLauncher(cfg, registry), deployments: map[string]*deployment{}}
}

func servingKey(id string) string { return store.Key("machinelearning", "serving", fold(id)) }

// Run brings back the deployments that an earlier process served, and keeps all until ctx ends.
func (v *Serving) Run(ctx context.Context) error {
	specs, err := v.stored(ctx)
	if err != nil {
		return fmt.Errorf("loading deployments: %w", err)
	}
	v.mu.Lock()
	v.base = ctx
	for _, s := range specs {
		v.beginLocked(s)
	}
	v.mu.Unlock()
	<-ctx.Done()
	v.mu.Lock()
	all := make([]*deployment, 0, len(v.deployments))
	for _, d := range v.deployments {
		all = append(all, d)
	}
	v.base = nil
	v.mu.Unlock()
	for _, d := range all {
		d.done.Wait()
	}
	return nil
}

func (v *Serving) stored(ctx context.Context) ([]DeploymentSpec, error) {
	var out []DeploymentSpec
	err := v.cfg.Store.View(ctx, func(r store.Reader) error {
		for kv, err := range r.Scan(store.Prefix("machinelearning", "serving"), store.ScanOptions{}) {
			if err != nil {
				return err
			}
			var s DeploymentSpec
			if err := json.Unmarshal(kv.Value, &s); err != nil {
				return fmt.Errorf("decoding deployment %s: %w", kv.Key, err)
			}
			out = append(out, s)
		}
		return nil
	})
	return out, err
}

// errNotServing says that Run has not been called or is over.
var errNotServing = errors.New("deployments are not being served: the platform is starting or stopping")

// Deploy makes a deployment what spec says and returns when all instances are ready, or with the first failure of one, in
// which case nothing of the deployment is left running. Deploying the same spec again waits for it.
func (v *Serving) Deploy(ctx context.Context, spec DeploymentSpec) error {
	value, err := json.Marshal(spec)
	if err != nil {
		return err
	}
	v.mu.Lock()
	old := v.deployments[fold(spec.ID)]
	serving := v.base != nil
	same := old != nil && old.spec == spec
	before := 0 // failures before this was asked for, whose replacements are on the way
	if same {
		before = old.failures
	}
	v.mu.Unlock()
	if !serving {
		return errNotServing
	}
	if !same {
		v.halt(spec.ID)
		err := v.cfg.Store.Update(ctx, func(t store.Txn) error { t.Put(servingKey(spec.ID), value); return nil })
		if err != nil {
			return fmt.Errorf("recording deployment: %w", err)
		}
		v.mu.Lock()
		if v.base == nil {
			v.mu.Unlock()
			return errNotServing
		}
		v.beginLocked(spec)
		v.mu.Unlock()
	}
	if err := v.await(ctx, spec, before); err != nil {
		if ctx.Err() != nil {
			return err // asked again later; the instances go on starting
		}
		return errors.Join(err, v.Withdraw(ctx, spec.ID))
	}
	return nil
}

// await blocks until every instance is ready or one has failed after so many failures.
func (v *Serving) await(ctx context.Context, spec DeploymentSpec, before int) error {
	for {
		v.mu.Lock()
		d := v.deployments[fold(spec.ID)]
		if d == nil || d.spec != spec {
			v.mu.Unlock()
			return fmt.Errorf("deployment %s was replaced meanwhile", spec.ID)
		}
		ready, failed, fresh, change := len(d.ready), d.failed, d.failures > before, d.change
		v.mu.Unlock()
		if ready >= spec.Instances {
			return nil
		}
		if failed != nil && fresh {
			return failed
		}
		select {
		case <-change:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Withdraw ends a deployment's instances and forgets it. Idempotent.
func (v *Serving) Withdraw(ctx context.Context, id string) error {
	if err := v.cfg.Store.Update(ctx, func(t store.Txn) error { t.Delete(servingKey(id)); return nil }); err != nil {
		return fmt.Errorf("withdrawing deployment: %w", err)
	}
	v.halt(id)
	return nil
}

func (v *Serving) halt(id string) {
	v.mu.Lock()
	d := v.deployments[fold(id)]
	delete(v.deployments, fold(id))
	v.mu.Unlock()
	if d != nil {
		d.stop()
		d.done.Wait()
	}
}

func (v *Serving) beginLocked(spec DeploymentSpec) {
	ctx, stop := context.WithCancel(v.base)
	d := &deployment{spec: spec, stop: stop, ready: map[string]int{}, change: make(chan struct{})}
	v.deployments[fold(spec.ID)] = d
	for range spec.Instances {
		d.done.Go(func() { v.keep(ctx, d) })
	}
}

// keep keeps one instance alive.
func (v *Serving) keep(ctx context.Context, d *deployment) {
	pause := firstPause
	for ctx.Err() == nil {
		served, err := v.instance(ctx, d)
		if ctx.Err() != nil {
			return
		}
		if served {
			pause = firstPause
		}
		v.cfg.Log.Warn("deployment instance ended", "deployment", d.spec.ID, "cause", err)
		v.mu.Lock()
		d.failed, d.failures = err, d.failures+1
		d.changedLocked()
		v.mu.Unlock()
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
		}
		pause = min(2*pause, maxPause)
	}
}

// instance runs one node of a deployment from start to end.
func (v *Serving) instance(ctx context.Context, d *deployment) (served bool, err error) {
	key, err := v.cfg.Handles(ctx, d.spec.Owner)
	if err != nil {
		return false, err
	}
	node := newNodeID()
	v.launcher.registry.reserve(node)
	var n runtime.Node
	defer func() { v.launcher.end(ctx, node, n) }()
	plan, err := v.cfg.Serve.PlanServe(ctx, d.spec.ID, node)
	if err != nil {
		return false, err
	}
	failed := make(chan agent.Event, 1)
	n, ctrl, err := v.launcher.start(ctx, d.spec.ID, node, plan, func(_ context.Context, e agent.Event) error {
		switch {
		case e.State == agent.StateReady:
			v.mu.Lock()
			d.ready[node], d.failed = 0, nil
			d.changedLocked()
			v.mu.Unlock()
		case e.State.Final():
			failed <- e
		}
		return nil
	})
	if err != nil {
		return false, err
	}
	defer func() {
		v.mu.Lock()
		_, served = d.ready[node]
		delete(d.ready, node)
		d.changedLocked()
		v.mu.Unlock()
	}()
	return false, v.untilGone(ctx, n, ctrl, key, failed)
}

func (v *Serving) untilGone(ctx context.Context, n runtime.Node, ctrl *agent.Controller, key Handle, failed <-chan agent.Event) error {
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		_, _ = n.Wait(context.WithoutCancel(ctx))
	}()
	var cause error
	select {
	case <-gone:
	case <-key.Done():
		cause = errors.New("the workspace's key was revoked")
	case <-ctx.Done():
		cause = ctx.Err()
		ctrl.Cancel() // requests under way may end
		t := time.NewTimer(v.cfg.Grace)
		defer t.Stop()
		select {
		case <-gone:
		case <-t.C:
		}
	}
	if cause != nil {
		_ = n.Kill() // Remove, deferred by the caller, reports what cannot be killed
		<-gone
		return cause
	}
	select {
	case e := <-failed:
		code, message := userFailure(e)
		return fmt.Errorf("%w: %s: %s", ErrInstance, code, message)
	default:
		return fmt.Errorf("%w: its node ended without saying why", ErrInstance)
	}
}

// ErrInstance is wrapped by failures that the deployment's own code or image caused; the text is for its owner.
var ErrInstance = errors.New("the deployment's instance ended")

func (d *deployment) changedLocked() {
	close(d.change)
	d.change = make(chan struct{})
}

// Borrow picks the ready node with the fewest requests in flight; release must be called when the request is over.
func (v *Serving) Borrow(id string) (node string, release func(), ok bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	d := v.deployments[fold(id)]
	if d == nil {
		return "", nil, false
	}
	for n, load := range d.ready {
		if node == "" || load < d.ready[node] {
			node = n
		}
	}
	if node == "" {
		return "", nil, false
	}
	d.ready[node]++
	return node, func() {
		v.mu.Lock()
		defer v.mu.Unlock()
		if _, still := d.ready[node]; still {
			d.ready[node]--
		}
	}, true
}

// Ready counts a deployment's ready instances.
func (v *Serving) Ready(id string) int {
	v.mu.Lock()
	defer v.mu.Unlock()
	if d := v.deployments[fold(id)]; d != nil {
		return len(d.ready)
	}
	return 0
}

// Nodes lists a deployment's ready nodes.
func (v *Serving) Nodes(id string) []string {
	v.mu.Lock()
	defer v.mu.Unlock()
	var out []string
	if d := v.deployments[fold(id)]; d != nil {
		for n := range d.ready {
			out = append(out, n)
		}
	}
	return out
}
