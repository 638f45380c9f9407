package operation

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"casemate.dev/resource"
	"casemate.dev/store"
)

const (
	workers     = 8
	firstRetry  = 100 * time.Millisecond
	lastRetry   = 30 * time.Second
	deletePause = 50 * time.Millisecond
)

// Run drives unfinished work, what a crash left over first, until ctx ends. It runs once in an Engine's life.
func (e *Engine) Run(ctx context.Context) error {
	left, err := e.unfinished(ctx)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	for range workers {
		g.Go(func() error {
			for {
				select {
				case <-ctx.Done():
					return nil
				case t := <-e.tasks:
					e.drive(ctx, t)
				}
			}
		})
	}
	g.Go(func() error { return e.sweepOperations(ctx) })
	if err := e.settleOrphans(ctx, left); err != nil {
		return err
	}
	for _, t := range left {
		e.enqueue(t)
	}
	err = g.Wait()
	close(e.closing)
	e.kids.Wait()
	return err
}

func (e *Engine) unfinished(ctx context.Context) ([]task, error) {
	var out []task
	err := e.cfg.Store.View(ctx, func(r store.Reader) error {
		for kv, err := range r.Scan(store.Prefix("resq"), store.ScanOptions{}) {
			if err != nil {
				return err
			}
			var t task
			if err := json.Unmarshal(kv.Value, &t); err != nil {
				return fmt.Errorf("decoding task %q: %w", kv.Key, err)
			}
			out = append(out, t)
		}
		return nil
	})
	return out, err
}

// enqueue never blocks the caller; the queue in the store is the truth.
func (e *Engine) enqueue(t task) { e.enqueueAfter(t, 0) }

// enqueueAfter hands a task to the workers after a while.
func (e *Engine) enqueueAfter(t task, wait time.Duration) {
	if wait == 0 {
		select {
		case e.tasks <- t:
			return
		default:
		}
	}
	e.kids.Go(func() {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-e.closing:
			return
		}
		select {
		case e.tasks <- t:
		case <-e.closing:
		}
	})
}

// drive works on a task once; what is worth trying again comes back later, so that no worker waits.
func (e *Engine) drive(ctx context.Context, t task) {
	err := e.attempt(ctx, t)
	if err == nil || ctx.Err() != nil {
		return
	}
	e.cfg.Logger.Warn("retrying", "id", t.ID, "delete", t.Delete, "cause", err)
	t.wait = min(max(2*t.wait, firstRetry), lastRetry)
	e.enqueueAfter(t, t.wait)
}

// attempt returns an error only when it is worth trying again.
func (e *Engine) attempt(ctx context.Context, t task) error {
	id, err := resource.ParseID(t.ID)
	if err != nil {
		e.cfg.Logger.Error("dropping a malformed task", "id", t.ID, "cause", err)
		return nil
	}
	info, err := e.typeOf(id)
	if err != nil {
		e.cfg.Logger.Error("dropping a task of an unknown type", "id", t.ID, "cause", err)
		return nil
	}
	unlock, err := e.locks.lock(ctx, id.Key())
	if err != nil {
		return err
	}
	defer unlock()
	if t.Delete {
		err = e.removeTree(ctx, info, id)
		if err != nil && !final(err) {
			return err
		}
		return e.settleRemoval(ctx, info, id, t, err)
	}
	return e.attemptReconcile(ctx, info, id, t)
}

func (e *Engine) attemptReconcile(ctx context.Context, info *typeInfo, id resource.ID, t task) error {
	r, err := e.load(ctx, info, id)
	if resource.StatusOf(err) == http.StatusNotFound {
		return e.ops.finish(ctx, t.Operation, resource.NotFound(id))
	}
	if err != nil {
		return err
	}
	if r.State == resource.StateDeleting {
		return nil
	}
	if t.Operation == "" { // asked for by Again: whoever waits for the work that is under way hears of its end
		p, err := e.pending(ctx, id)
		if err != nil {
			return err
		}
		if p != nil {
			t.Operation = p.Operation
		}
	}
	next := *r
	next.Previous = nil
	err = e.reconcile(ctx, info, &next)
	if err != nil && !final(err) {
		return err
	}
	if err != nil && !info.Async && (r.State == resource.StateCreating || r.Previous != nil) {
		e.cfg.Logger.Warn("undoing an interrupted change", "id", t.ID, "cause", err)
		return e.undo(ctx, info, id, r.Previous, r)
	}
	next.State, next.Fault = resource.StateSucceeded, nil
	var public *resource.Error
	if err != nil {
		public = resource.AsError(err)
		next.State, next.Fault = resource.StateFailed, toFault(public)
	}
	if err := e.save(ctx, info, id, &next, nil); err != nil {
		return err
	}
	return e.ops.finish(ctx, t.Operation, public)
}

func (e *Engine) settleRemoval(ctx context.Context, info *typeInfo, id resource.ID, t task, cause error) error {
	if cause == nil {
		return e.ops.finish(ctx, t.Operation, nil)
	}
	if err := e.markUndeleted(ctx, info, id, cause); err != nil {
		return err
	}
	return e.ops.finish(ctx, t.Operation, resource.AsError(cause))
}

// markUndeleted lets a resource live on whose deletion was refused.
func (e *Engine) markUndeleted(ctx context.Context, info *typeInfo, id resource.ID, cause error) error {
	r, err := e.load(ctx, info, id)
	if resource.StatusOf(err) == http.StatusNotFound {
		return nil
	}
	if err != nil {
		return err
	}
	next := *r
	next.State, next.Fault = resource.StateSucceeded, toFault(resource.AsError(cause))
	return e.save(ctx, info, id, &next, nil)
}

// remove is a client's DELETE. It returns the id of the operation that goes on, or "".
func (e *Engine) remove(ctx context.Context, c resource.Caller, id resource.ID, cond condition) (op string, existed bool, err error) {
	t, err := e.typeOf(id)
	if err != nil {
		return "", false, err
	}
	if r, err := e.load(ctx, t, id); err == nil {
		if err := busy(id, r); err != nil {
			return "", true, err
		}
	}
	unlock, err := e.locks.lock(ctx, id.Key())
	if err != nil {
		return "", false, err
	}
	defer unlock()
	r, err := e.load(ctx, t, id)
	if resource.StatusOf(err) == http.StatusNotFound {
		if cond.match != "" {
			return "", false, cond.check(id, nil)
		}
		return "", false, nil
	}
	if err != nil {
		return "", false, err
	}
	if err := cond.check(id, r); err != nil {
		return "", true, err
	}
	if err := busy(id, r); err != nil {
		return "", true, err
	}
	if err := e.mayRemove(ctx, t, id, r); err != nil {
		return "", true, err
	}
	next := *r
	next.State = resource.StateDeleting
	left := task{Type: t.Name, ID: id.String(), Delete: true}
	if t.Async {
		if left.Operation, err = e.ops.start(ctx, id, t.Name, c); err != nil {
			return "", true, err
		}
	}
	if err := e.save(ctx, t, id, &next, &left); err != nil {
		return "", true, err
	}
	if t.Async {
		e.enqueue(left)
		return left.Operation, true, nil
	}
	ctx = context.WithoutCancel(ctx)
	if err := e.removeTree(ctx, t, id); err != nil {
		if final(err) {
			return "", true, e.refuseRemoval(ctx, t, id, err)
		}
		e.enqueue(left) // goes on in the background
		return "", true, err
	}
	return "", true, nil
}

func (e *Engine) refuseRemoval(ctx context.Context, t *typeInfo, id resource.ID, cause error) error {
	if err := e.markUndeleted(ctx, t, id, cause); err != nil {
		return err
	}
	return cause
}

// mayRemove asks the resource and everything below it.
func (e *Engine) mayRemove(ctx context.Context, t *typeInfo, id resource.ID, r *record) error {
	if t.MayRemove == nil {
		return nil
	}
	d, err := r.document()
	if err != nil {
		return err
	}
	return e.guarded(t.MayRemove)(ctx, d)
}

// removeTree removes everything below id and then id, deepest first. What is refused because something else still uses it
// is tried again after the rest is gone; a round without progress ends with the refusal. The caller holds id's lock.
func (e *Engine) removeTree(ctx context.Context, t *typeInfo, id resource.ID) error {
	for {
		below := e.below(id)
		if len(below) == 0 {
			return e.removeOne(ctx, t, id)
		}
		progress, refused := false, error(nil)
		for _, ref := range below {
			err := e.removeChild(ctx, ref)
			switch {
			case err == nil:
				progress = true
			case final(err):
				refused = err
			default:
				return err
			}
		}
		if !progress {
			return refused
		}
		if refused != nil {
			if err := sleep(ctx, deletePause); err != nil {
				return err
			}
		}
	}
}

func (e *Engine) removeChild(ctx context.Context, ref docRef) error {
	unlock, err := e.locks.lock(ctx, ref.id.Key())
	if err != nil {
		return err
	}
	defer unlock()
	r, err := e.load(ctx, ref.t, ref.id)
	if resource.StatusOf(err) == http.StatusNotFound {
		return nil
	}
	if err == nil {
		if err := e.mayRemove(ctx, ref.t, ref.id, r); err != nil {
			return err
		}
	}
	return e.removeOne(ctx, ref.t, ref.id)
}

// below lists what lies below id, deepest first.
func (e *Engine) below(id resource.ID) []docRef {
	e.mu.RLock()
	defer e.mu.RUnlock()
	var out []docRef
	prefix := id.Key() + "/"
	if id.IsTenant() {
		prefix = "/"
	}
	for _, ref := range e.names {
		if strings.HasPrefix(ref.id.Key(), prefix) {
			out = append(out, ref)
		}
	}
	slices.SortFunc(out, func(a, b docRef) int {
		if d := strings.Count(b.id.String(), "/") - strings.Count(a.id.String(), "/"); d != 0 {
			return d
		}
		return strings.Compare(a.id.Key(), b.id.Key())
	})
	return out
}

// removeOne removes one resource without anything below it. Of a document that cannot be opened any more because its owner's
// key is gone, what it said is unknown: a principal of its own goes with it, for a resource of its name would inherit the
// roles.
func (e *Engine) removeOne(ctx context.Context, t *typeInfo, id resource.ID) error {
	r, err := e.load(ctx, t, id)
	if resource.StatusOf(err) == http.StatusNotFound {
		return nil
	}
	d := &resource.Document{ID: id}
	if err == nil {
		if d, err = r.document(); err != nil {
			return err
		}
	} else if t.Owner == "" {
		return err
	} else {
		d.Remember("systemAssigned", true)
	}
	if t.Remove != nil {
		if err := e.guarded(t.Remove)(ctx, d); err != nil {
			return err
		}
	}
	if err := e.removeIdentity(ctx, d); err != nil {
		return err
	}
	return e.drop(ctx, t, id)
}

// Put implements resource.Resources.
func (e *Engine) Put(ctx context.Context, c resource.Caller, id resource.ID, body map[string]any) (*resource.Document, error) {
	res, err := e.apply(ctx, change{caller: c, id: id, body: body})
	if err != nil {
		return nil, err
	}
	if res.operation == "" {
		return res.doc, nil
	}
	s, err := e.ops.wait(ctx, res.operation)
	if err != nil {
		return nil, err
	}
	if s.Fault != nil {
		return nil, s.Fault.asError()
	}
	return e.Get(ctx, id)
}

// Delete implements resource.Resources.
func (e *Engine) Delete(ctx context.Context, c resource.Caller, id resource.ID) error {
	op, _, err := e.remove(ctx, c, id, condition{})
	if err != nil || op == "" {
		return err
	}
	s, err := e.ops.wait(ctx, op)
	if err != nil {
		return err
	}
	if s.Fault != nil {
		return s.Fault.asError()
	}
	return nil
}

// Update implements resource.Resources.
func (e *Engine) Update(ctx context.Context, id resource.ID, fn func(*resource.Document) error) (*resource.Document, error) {
	t, err := e.typeOf(id)
	if err != nil {
		return nil, err
	}
	unlock, err := e.locks.lock(ctx, id.Key())
	if err != nil {
		return nil, err
	}
	defer unlock()
	r, err := e.load(ctx, t, id)
	if err != nil {
		return nil, err
	}
	d, err := r.document()
	if err != nil {
		return nil, err
	}
	if err := fn(d); err != nil {
		return nil, err
	}
	next := *r
	next.adopt(d)
	next.Generation++
	left, err := e.pending(ctx, id)
	if err != nil {
		return nil, err
	}
	if err := e.save(ctx, t, id, &next, left); err != nil {
		return nil, err
	}
	return next.document()
}

// pending is the task that the queue holds for a document; nil when it is settled.
func (e *Engine) pending(ctx context.Context, id resource.ID) (*task, error) {
	var out *task
	err := e.cfg.Store.View(ctx, func(r store.Reader) error {
		kv, err := r.Get(taskKey(id))
		if err != nil {
			return nil //nolint:nilerr // absent: nothing is pending
		}
		out = &task{}
		return json.Unmarshal(kv.Value, out)
	})
	return out, err
}

// Again implements resource.Resources.
func (e *Engine) Again(ctx context.Context, id resource.ID) error {
	t, err := e.typeOf(id)
	if err != nil {
		return err
	}
	if !e.Exists(id) {
		return resource.NotFound(id)
	}
	e.enqueue(task{Type: t.Name, ID: id.String()})
	return nil
}
