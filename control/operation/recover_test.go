package operation

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"casemate.dev/resource"
	"casemate.dev/store"
	"casemate.dev/store/storetest"
)

// A process that dies between the end of the work and the end of the operation leaves a client that polls.
func TestOperationEndsAfterACrashBehindItsWork(t *testing.T) {
	s := storetest.New(t)
	typ := plainType()
	typ.Async = true
	typ.Reconcile = func(context.Context, *resource.Document) error { return nil }
	h := open(t, s, typ)
	h.put(thing, `{"location":"local"}`)
	var lost []string
	for _, id := range []string{thing, group + "/providers/Microsoft.Test/things/gone"} {
		op, err := h.engine.ops.start(t.Context(), resource.MustParseID(id), typ.Name, admin)
		if err != nil {
			t.Fatal(err)
		}
		lost = append(lost, op)
	}
	h.stop()
	h = open(t, s, typ)
	defer h.stop()
	for _, op := range lost {
		waitFor(t, func() bool { return h.engine.ops.get(op).Status == resource.StateSucceeded })
	}
}

// interrupt leaves in the store what a process leaves that dies while it changes a thing.
func interrupt(t *testing.T, s store.Store, typ resource.Type, state string, next string, previous *record) {
	t.Helper()
	body, err := resource.DecodeBody([]byte(next))
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(record{ID: thing, Body: body, State: state, Previous: previous, Generation: 2})
	if err != nil {
		t.Fatal(err)
	}
	left, err := json.Marshal(task{Type: typ.Name, ID: thing})
	if err != nil {
		t.Fatal(err)
	}
	id := resource.MustParseID(thing)
	err = s.Update(t.Context(), func(tx store.Txn) error {
		tx.Put(storeKey(typ.Name, id), b)
		tx.Put(taskKey(id), left)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// What fails synchronously leaves the world as it was, also when a crash lies between.
func TestInterruptedChangeIsUndone(t *testing.T) {
	typ := plainType()
	var removed atomic.Bool
	typ.Reconcile = func(_ context.Context, d *resource.Document) error {
		if d.String("properties.v") == "bad" {
			return resource.Errorf(409, "Refused", "no")
		}
		return nil
	}
	typ.Remove = func(context.Context, *resource.Document) error { removed.Store(true); return nil }
	s := storetest.New(t)
	h := open(t, s, typ)
	h.put(thing, `{"location":"local","properties":{"v":"good"}}`)
	old := h.engine.cached(resource.MustParseID(thing))
	h.stop()
	interrupt(t, s, typ, resource.StateUpdating, `{"location":"local","properties":{"v":"bad"}}`, old)
	h = open(t, s, typ)
	waitFor(t, func() bool {
		d, err := h.engine.Get(t.Context(), resource.MustParseID(thing))
		return err == nil && d.State == resource.StateSucceeded && d.String("properties.v") == "good"
	})
	h.stop()
	interrupt(t, s, typ, resource.StateCreating, `{"location":"local","properties":{"v":"bad"}}`, nil)
	h = open(t, s, typ)
	defer h.stop()
	waitFor(t, func() bool { return !h.engine.Exists(resource.MustParseID(thing)) })
	if !removed.Load() {
		t.Error("a creation was forgotten without being undone")
	}
}

// failing is a store of which one write fails when it is told to.
type failing struct {
	store.Store
	next atomic.Bool
}

func (f *failing) Update(ctx context.Context, fn func(store.Txn) error) error {
	if f.next.CompareAndSwap(true, false) {
		return errors.New("disk on fire")
	}
	return f.Store.Update(ctx, fn)
}

// A change whose end could not be stored is brought to its end later: until then, and not for ever, its resource is busy.
func TestChangeWhoseEndIsNotStored(t *testing.T) {
	s := &failing{Store: storetest.New(t)}
	typ := plainType()
	var once atomic.Bool
	typ.Reconcile = func(context.Context, *resource.Document) error {
		s.next.Store(once.CompareAndSwap(false, true))
		return nil
	}
	h := open(t, s, typ)
	defer h.stop()
	if _, err := h.tryPut(thing, `{"location":"local"}`); err == nil {
		t.Fatal("what was not stored was acknowledged")
	}
	waitFor(t, func() bool {
		d, err := h.engine.Get(t.Context(), resource.MustParseID(thing))
		return err == nil && d.State == resource.StateSucceeded
	})
}

func TestNothingIsMadeInAGroupThatIsBeingDeleted(t *testing.T) {
	typ, slow := plainType(), plainType()
	slow.Name = "Microsoft.Test/slow"
	gate := make(chan struct{})
	slow.Remove = func(context.Context, *resource.Document) error { <-gate; return nil }
	h := open(t, storetest.New(t), typ, slow)
	defer h.stop()
	h.put(group+"/providers/Microsoft.Test/slow/s", `{"location":"local"}`)
	if w := h.call("DELETE", group, "", nil); w.Code != 202 {
		t.Fatalf("DELETE: %d %s", w.Code, w.Body)
	}
	w := h.call("PUT", thing, `{"location":"local"}`, nil)
	close(gate)
	if w.Code != 409 || !strings.HasPrefix(w.Body.String(), "ResourceGroupBeingDeleted:") {
		t.Errorf("PUT: %d %s", w.Code, w.Body)
	}
}

// nothing denies everything.
type nothing struct{}

func (nothing) Authorize(resource.Caller, string, bool, resource.ID) (bool, string) { return false, "" }

// Deleting a group takes the role with it that allowed the deletion; its client polls all the same. Nobody else may.
func TestWhoBeganAnOperationFollowsIt(t *testing.T) {
	typ := plainType()
	typ.Async = true
	typ.Reconcile = func(context.Context, *resource.Document) error { return nil }
	h := open(t, storetest.New(t), typ)
	defer h.stop()
	w := h.call("PUT", thing, `{"location":"local"}`, nil)
	status := strings.TrimPrefix(strings.Split(w.Header().Get("Azure-AsyncOperation"), "?")[0], "https://management.test")
	op := status[strings.LastIndexByte(status, '/')+1:]
	waitFor(t, func() bool { return h.engine.ops.get(op).Status == resource.StateSucceeded })
	h.engine.cfg.Authorize = nothing{}
	ask := func(handler resource.Handler, c resource.Caller) int {
		w := httptest.NewRecorder()
		r := &resource.Request{Request: httptest.NewRequest("GET", "https://management.test"+status, nil), Vars: map[string]string{"operationId": op}, Caller: c}
		if err := handler(w, r); err != nil {
			return resource.StatusOf(err)
		}
		return w.Code
	}
	other := resource.Caller{Kind: resource.KindUser, Object: "other"}
	for _, tt := range []struct {
		name    string
		handler resource.Handler
		c       resource.Caller
		want    int
	}{
		{"own status", h.engine.getStatus, admin, 200}, {"other's status", h.engine.getStatus, other, 403}, {"nobody's status", h.engine.getStatus, resource.Caller{}, 401},
		{"own result without a right to it", h.engine.getResult, admin, 403}, {"other's result", h.engine.getResult, other, 403},
	} {
		if got := ask(tt.handler, tt.c); got != tt.want {
			t.Errorf("%s: %d, want %d", tt.name, got, tt.want)
		}
	}
	h.engine.cfg.Authorize = allowAll{}
	if err := h.engine.Delete(t.Context(), admin, resource.MustParseID(thing)); err != nil {
		t.Fatal(err)
	}
	h.engine.cfg.Authorize = nothing{}
	if got := ask(h.engine.getResult, admin); got != 200 {
		t.Errorf("own result after the deletion: %d", got)
	}
}

// A filter that adds documents in an order of its own, as that of role definitions does, loses none of them between pages.
func TestPagesOfUnorderedLists(t *testing.T) {
	typ := plainType()
	typ.Filter = func(_ *resource.Request, docs []*resource.Document) ([]*resource.Document, error) {
		slices.Reverse(docs)
		return docs, nil
	}
	h := open(t, storetest.New(t), typ)
	defer h.stop()
	for _, n := range []string{"a", "b", "c"} {
		h.put(group+"/providers/Microsoft.Test/things/"+n, `{"location":"local"}`)
	}
	path, got := group+"/providers/Microsoft.Test/things?$top=1&api-version=2024-01-01", ""
	for range 4 {
		var page struct {
			Value    []struct{ Name string }
			NextLink string
		}
		if err := json.Unmarshal(h.call("GET", path, "", nil).Body.Bytes(), &page); err != nil {
			t.Fatal(err)
		}
		for _, v := range page.Value {
			got += v.Name
		}
		if page.NextLink == "" {
			break
		}
		path = strings.TrimPrefix(page.NextLink, "https://management.test")
	}
	if got != "abc" {
		t.Fatalf("got %q", got)
	}
}

func TestVisibleListsAskForNoRole(t *testing.T) {
	types := baseTypes()
	for i := range types {
		types[i].Filter = func(_ *resource.Request, docs []*resource.Document) ([]*resource.Document, error) { return docs, nil }
	}
	e, err := New(Config{Store: storetest.New(t), Types: types, Authorize: nothing{}})
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, r := range e.Routes() {
		if !strings.HasSuffix(r.Name, "_List") {
			continue
		}
		if err := r.Validate(); err != nil || r.Open == "" {
			t.Errorf("%s: open %q, %v", r.Name, r.Open, err)
		}
		w := httptest.NewRecorder()
		req := &resource.Request{Request: httptest.NewRequest(http.MethodGet, "https://management.test/", nil), Route: &r, Vars: map[string]string{"subscriptionId": "s"}}
		if err := r.Handler(w, req); resource.StatusOf(err) != 401 {
			t.Errorf("%s answers nobody: %v", r.Name, err)
		}
		n++
	}
	if n != 2 {
		t.Fatalf("%d lists", n)
	}
}

func TestPatchKeepsNamesThatDifferByCase(t *testing.T) {
	for range 50 { // maps have no order
		target := map[string]any{"http_proxy": "a", "HTTP_PROXY": "b"}
		got, _ := mergePatch(target, map[string]any{"http_proxy": "c"}).(map[string]any)
		if got["http_proxy"] != "c" || got["HTTP_PROXY"] != "b" || len(got) != 2 {
			t.Fatal(got)
		}
	}
}

func TestOldOperationsAreForgotten(t *testing.T) {
	now := time.Now()
	s := storetest.New(t)
	clock := func() time.Time { return now }
	o := newOperations(s, clock)
	var ids []string
	for range 3 {
		id, err := o.start(t.Context(), resource.MustParseID(thing), "Microsoft.Test/things", admin)
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
	}
	finish := func(id string) {
		if err := o.finish(t.Context(), id, nil); err != nil {
			t.Fatal(err)
		}
	}
	finish(ids[0])
	now = now.Add(keepOperations)
	finish(ids[1])
	now = now.Add(time.Minute)
	if err := o.sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	again := newOperations(s, clock)
	if err := again.load(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, o := range []*operations{o, again} {
		if o.get(ids[0]) != nil || o.get(ids[1]) == nil || o.get(ids[2]) == nil {
			t.Errorf("kept: %v", o.all)
		}
	}
}

// A document that a provider cannot bear fails alone: it must not end the process, at this start or at the next.
func TestADocumentThatPanics(t *testing.T) {
	for _, async := range []bool{false, true} {
		s := storetest.New(t)
		typ := plainType()
		typ.Async = async
		var fatal atomic.Bool
		fatal.Store(true)
		work := func(_ context.Context, d *resource.Document) error {
			if fatal.Load() {
				panic("secret detail")
			}
			return nil
		}
		typ.Reconcile, typ.Remove = work, work
		h := open(t, s, typ)
		_, err := h.tryPut(thing, `{"location":"local"}`)
		if resource.StatusOf(err) != 500 || strings.Contains(resource.AsError(err).Message, "secret detail") {
			t.Errorf("PUT (asynchronous %v): %v", async, err)
		}
		if err := h.engine.Delete(t.Context(), admin, resource.MustParseID(thing)); resource.StatusOf(err) != 500 {
			t.Errorf("DELETE (asynchronous %v): %v", async, err)
		}
		h.stop()
		h = open(t, s, typ)
		fatal.Store(false)
		if err := h.engine.Delete(t.Context(), admin, resource.MustParseID(thing)); err != nil {
			t.Errorf("DELETE (asynchronous %v): %v", async, err)
		}
		h.stop()
	}
}
