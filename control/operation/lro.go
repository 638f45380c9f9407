package operation

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/google/uuid"

	"casemate.dev/resource"
	"casemate.dev/store"
)

// Operation statuses are kept for a day after their end.
const (
	keepOperations = 24 * time.Hour
	sweepEvery     = time.Hour
)

// status is a long-running operation (ARM RPC, "Asynchronous operations"), at Key("op", id).
type status struct {
	ID       string    `json:"id"`
	Resource string    `json:"resource"`
	Type     string    `json:"type"`
	Caller   string    `json:"caller"`
	Status   string    `json:"status"` // InProgress, Succeeded, Failed
	Start    time.Time `json:"start"`
	End      time.Time `json:"end,omitzero"`
	Fault    *fault    `json:"fault,omitempty"`
}

type operations struct {
	store store.Store
	clock resource.Clock

	mu   sync.Mutex // guards the maps
	all  map[string]*status
	done map[string]chan struct{} // closed at the operation's end
}

func newOperations(s store.Store, clock resource.Clock) *operations {
	return &operations{store: s, clock: clock, all: map[string]*status{}, done: map[string]chan struct{}{}}
}

func (o *operations) load(ctx context.Context) error {
	err := o.store.View(ctx, func(r store.Reader) error {
		for kv, err := range r.Scan(store.Prefix("op"), store.ScanOptions{}) {
			if err != nil {
				return err
			}
			var s status
			if err := json.Unmarshal(kv.Value, &s); err != nil {
				return err
			}
			o.put(&s)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("loading operations: %w", err)
	}
	return o.sweep(ctx)
}

// sweep forgets the operations that ended long ago.
func (o *operations) sweep(ctx context.Context) error {
	var expired []string
	o.mu.Lock()
	for id, s := range o.all {
		if !s.End.IsZero() && o.clock().Sub(s.End) > keepOperations {
			expired = append(expired, id)
		}
	}
	o.mu.Unlock()
	if len(expired) == 0 {
		return nil
	}
	err := o.store.Update(ctx, func(tx store.Txn) error {
		for _, id := range expired {
			tx.Delete(store.Key("op", id))
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("forgetting old operations: %w", err)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, id := range expired {
		delete(o.all, id)
		delete(o.done, id)
	}
	return nil
}

// sweepOperations runs until ctx ends. What could not be forgotten is tried again.
func (e *Engine) sweepOperations(ctx context.Context) error {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if err := e.ops.sweep(ctx); err != nil && ctx.Err() == nil {
			e.cfg.Logger.Warn("sweeping", "cause", err)
		}
	}
}

func (o *operations) put(s *status) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.all[s.ID] = s
	ch := o.done[s.ID]
	if ch == nil {
		ch = make(chan struct{})
		o.done[s.ID] = ch
	}
	if !s.End.IsZero() {
		select {
		case <-ch:
		default:
			close(ch)
		}
	}
}

func (o *operations) get(id string) *status {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.all[id]
}

// running are the operations that have not ended.
func (o *operations) running() []*status {
	o.mu.Lock()
	defer o.mu.Unlock()
	var out []*status
	for _, s := range o.all {
		if s.End.IsZero() {
			out = append(out, s)
		}
	}
	return out
}

func (o *operations) start(ctx context.Context, id resource.ID, typ string, c resource.Caller) (string, error) {
	s := &status{ID: uuid.NewString(), Resource: id.String(), Type: typ, Caller: c.Object, Status: "InProgress", Start: o.clock().UTC()}
	return s.ID, o.save(ctx, s)
}

func (o *operations) save(ctx context.Context, s *status) error {
	b, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("encoding operation: %w", err)
	}
	if err := o.store.Update(ctx, func(tx store.Txn) error { tx.Put(store.Key("op", s.ID), b); return nil }); err != nil {
		return fmt.Errorf("storing operation: %w", err)
	}
	o.put(s)
	return nil
}

// finish ends an operation; err nil means that it succeeded.
func (o *operations) finish(ctx context.Context, id string, err *resource.Error) error {
	s := o.get(id)
	if s == nil || !s.End.IsZero() {
		return nil
	}
	ended := *s
	ended.Status, ended.End = resource.StateSucceeded, o.clock().UTC()
	if err != nil {
		ended.Status, ended.Fault = resource.StateFailed, toFault(err)
	}
	return o.save(ctx, &ended)
}

// wait returns when the operation has ended.
func (o *operations) wait(ctx context.Context, id string) (*status, error) {
	o.mu.Lock()
	ch := o.done[id]
	o.mu.Unlock()
	if ch == nil {
		return nil, fmt.Errorf("waiting for unknown operation %s", id)
	}
	select {
	case <-ch:
		return o.get(id), nil
	case <-ctx.Done():
		return nil, fmt.Errorf("waiting for operation %s: %w", id, ctx.Err())
	}
}

// settleOrphans ends the operations whose work ended just before a crash: their clients still poll.
func (e *Engine) settleOrphans(ctx context.Context, left []task) error {
	waited := map[string]bool{}
	for _, t := range left {
		waited[t.Operation] = true
	}
	for _, s := range e.interrupted {
		if waited[s.ID] {
			continue
		}
		id, err := resource.ParseID(s.Resource)
		if err != nil {
			return err
		}
		var fault *resource.Error // of a document that is gone there is none: it was deleted
		if t, err := e.typeOf(id); err == nil {
			if r, err := e.load(ctx, t, id); err == nil {
				fault = r.Fault.asError()
			}
		}
		if err := e.ops.finish(ctx, s.ID, fault); err != nil {
			return err
		}
	}
	return nil
}

// links are the headers of an answer whose work goes on.
func (e *Engine) links(h http.Header, t *typeInfo, id resource.ID, op, version string) {
	sub := id.Subscription()
	if sub == "" {
		sub = "00000000-0000-0000-0000-000000000000"
	}
	base := fmt.Sprintf("%s/subscriptions/%s/providers/%s/locations/local", e.cfg.BaseURL, sub, t.namespace)
	h.Set("Azure-AsyncOperation", fmt.Sprintf("%s/operationStatuses/%s?api-version=%s", base, op, version))
	h.Set("Location", fmt.Sprintf("%s/operationResults/%s?api-version=%s", base, op, version))
	h.Set("Retry-After", "1")
}

func (e *Engine) statusOf(r *resource.Request) (*status, error) {
	s := e.ops.get(r.Vars["operationId"])
	if s == nil {
		return nil, resource.Errorf(http.StatusNotFound, "OperationNotFound", "The operation '%s' is not known. Statuses are kept for a day after the end.", r.Vars["operationId"])
	}
	return s, nil
}

// followed is the operation that a request asks for, when its caller began it or may read the resource that it works on. Whoever
// deletes a group follows the deletion to its end, although the role that allowed it goes with the group.
func (e *Engine) followed(r *resource.Request) (*status, error) {
	if r.Caller.Anonymous() {
		return nil, resource.Errorf(http.StatusUnauthorized, "AuthenticationFailed", "Authentication failed. Sign in and send a bearer token.")
	}
	s, err := e.statusOf(r)
	if err != nil {
		return nil, err
	}
	r.Scope = s.Resource
	if s.Caller == r.Caller.Object {
		return s, nil
	}
	return s, e.mayRead(r, s)
}

func (e *Engine) mayRead(r *resource.Request, s *status) error {
	id, err := resource.ParseID(s.Resource)
	if err != nil {
		return err
	}
	if ok, _ := e.cfg.Authorize.Authorize(r.Caller, s.Type+"/read", false, id); !ok {
		return resource.Forbidden(r.Caller, s.Type+"/read", s.Resource)
	}
	return nil
}

func (e *Engine) getStatus(w http.ResponseWriter, r *resource.Request) error {
	s, err := e.followed(r)
	if err != nil {
		return err
	}
	body := map[string]any{"id": r.URL.Path, "name": s.ID, "status": s.Status, "startTime": s.Start, "resourceId": s.Resource}
	if s.End.IsZero() {
		w.Header().Set("Retry-After", "1")
	} else {
		body["endTime"] = s.End
		body["percentComplete"] = 100
	}
	if s.Fault != nil {
		body["error"] = map[string]any{"code": s.Fault.Code, "message": s.Fault.Message, "target": s.Fault.Target}
	}
	return writeJSON(w, http.StatusOK, body)
}

// getResult is the Location form: 202 while running, then what the operation gave.
func (e *Engine) getResult(w http.ResponseWriter, r *resource.Request) error {
	s, err := e.followed(r)
	if err != nil {
		return err
	}
	if s.End.IsZero() {
		w.Header().Set("Retry-After", "1")
		w.Header().Set("Location", e.cfg.BaseURL+r.URL.Path+"?api-version="+r.Version)
		w.WriteHeader(http.StatusAccepted)
		return nil
	}
	if s.Fault != nil {
		return s.Fault.asError()
	}
	id, err := resource.ParseID(s.Resource)
	if err != nil {
		return err
	}
	d, err := e.Get(r.Context(), id)
	if resource.StatusOf(err) == http.StatusNotFound {
		w.WriteHeader(http.StatusOK) // deleted; az refuses 204 for groups
		return nil
	}
	if err != nil {
		return err
	}
	if err := e.mayRead(r, s); err != nil { // having begun it once gives no right to what stands there now
		return err
	}
	t, err := e.typeOf(id)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, e.show(r.Context(), t, d))
}
