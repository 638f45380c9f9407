package operation

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"casemate.dev/resource"
	"casemate.dev/store"
	"casemate.dev/store/storetest"
)

const (
	sub   = "/subscriptions/11111111-1111-1111-1111-111111111111"
	group = sub + "/resourceGroups/rg"
)

var admin = resource.Caller{Kind: resource.KindServicePrincipal, Object: "admin", App: "app"}

type allowAll struct{}

func (allowAll) Authorize(resource.Caller, string, bool, resource.ID) (bool, string) { return true, "" }

func baseTypes() []resource.Type {
	v := []string{"2024-01-01"}
	return []resource.Type{
		{Name: "Microsoft.Resources/subscriptions", Level: resource.AtSubscriptionRaw, APIVersions: v, Created: 200},
		{Name: "Microsoft.Resources/subscriptions/resourceGroups", Level: resource.AtSubscriptionRaw, APIVersions: v, Created: 201, Tracked: true, Async: true},
	}
}

type harness struct {
	t      *testing.T
	engine *Engine
	stop   func()
}

func open(t *testing.T, s store.Store, types ...resource.Type) *harness {
	t.Helper()
	e, err := New(Config{Store: s, Types: append(baseTypes(), types...), Authorize: allowAll{}, BaseURL: "https://management.test", Clock: time.Now,
		Handle: func(context.Context, string) (Handle, error) { return nil, errors.New("no handles here") }})
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { e.Run(ctx); close(done) }()
	h := &harness{t: t, engine: e, stop: func() { cancel(); <-done }}
	for _, id := range []string{sub, group} {
		if !e.Exists(resource.MustParseID(id)) {
			h.put(id, `{"location":"local"}`)
		}
	}
	return h
}

func (h *harness) put(id, body string) *resource.Document {
	h.t.Helper()
	d, err := h.tryPut(id, body)
	if err != nil {
		h.t.Fatalf("PUT %s: %v", id, err)
	}
	return d
}

func (h *harness) tryPut(id, body string) (*resource.Document, error) {
	b, err := resource.DecodeBody([]byte(body))
	if err != nil {
		return nil, err
	}
	return h.engine.Put(h.t.Context(), admin, resource.MustParseID(id), b)
}

// call runs a row as the gateway would.
func (h *harness) call(method, path, body string, header http.Header) *httptest.ResponseRecorder {
	h.t.Helper()
	req := httptest.NewRequest(method, "https://management.test"+path, strings.NewReader(body))
	for k, v := range header {
		req.Header[k] = v
	}
	for _, rt := range h.engine.Routes() {
		vars, ok := matchPattern(rt, method, req.URL.Path)
		if !ok {
			continue
		}
		rt := rt
		r := &resource.Request{Request: req, Route: &rt, Vars: vars, Caller: admin, Version: "2024-01-01", Scope: rt.Scope}
		if rt.Resolve == nil {
			for k, v := range vars {
				r.Scope = strings.ReplaceAll(r.Scope, "{"+k+"}", v)
			}
		}
		w := httptest.NewRecorder()
		if err := rt.Handler(w, r); err != nil {
			e := resource.AsError(err)
			w.WriteHeader(e.Status)
			w.WriteString(e.Code + ": " + e.Message)
		}
		return w
	}
	h.t.Fatalf("no row for %s %s", method, path)
	return nil
}

func matchPattern(rt resource.Route, method, path string) (map[string]string, bool) {
	if rt.Method != method {
		return nil, false
	}
	p, s := strings.Split(rt.Pattern, "/"), strings.Split(path, "/")
	if len(p) != len(s) {
		return nil, false
	}
	vars := map[string]string{}
	for i := range p {
		if strings.HasPrefix(p[i], "{") {
			vars[strings.Trim(p[i], "{}")] = s[i]
		} else if !strings.EqualFold(p[i], s[i]) {
			return nil, false
		}
	}
	return vars, true
}

func plainType() resource.Type {
	return resource.Type{Name: "Microsoft.Test/things", Level: resource.AtResourceGroup, APIVersions: []string{"2024-01-01"}, Created: 201, Tracked: true}
}

const thing = group + "/providers/Microsoft.Test/things/a"

func TestPutGetPatchDelete(t *testing.T) {
	h := open(t, storetest.New(t), plainType())
	defer h.stop()
	w := h.call("PUT", thing, `{"location":"Local","tags":{"a":"1"},"properties":{"Unknown":{"x":[1,2.50]},"keep":true}}`, nil)
	if w.Code != 201 {
		t.Fatalf("PUT: %d %s", w.Code, w.Body)
	}
	etag := w.Header().Get("ETag")
	if w = h.call("PATCH", thing, `{"tags":{"b":"2"},"properties":{"keep":null}}`, http.Header{"If-Match": {etag}}); w.Code != 200 {
		t.Fatalf("PATCH: %d %s", w.Code, w.Body)
	}
	if w = h.call("PATCH", thing, `{}`, http.Header{"If-Match": {etag}}); w.Code != 412 {
		t.Fatalf("PATCH with an old etag: %d %s", w.Code, w.Body)
	}
	w = h.call("GET", strings.ToUpper(thing), "", nil)
	var got struct {
		ID, Name, Type, Location string
		Tags                     map[string]string
		Properties               struct {
			Unknown           json.RawMessage
			Keep              *bool
			ProvisioningState string
		}
		SystemData struct{ CreatedBy string }
	}
	if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if got.ID != thing || got.Type != "Microsoft.Test/things" || got.Tags["a"] != "1" || got.Tags["b"] != "2" || got.Properties.Keep != nil ||
		string(got.Properties.Unknown) != `{"x":[1,2.50]}` || got.Properties.ProvisioningState != "Succeeded" || got.Location != "local" || got.SystemData.CreatedBy != "admin" {
		t.Fatalf("GET: %s", w.Body)
	}
	if w = h.call("DELETE", thing, "", nil); w.Code != 200 {
		t.Fatalf("DELETE: %d", w.Code)
	}
	if w = h.call("DELETE", thing, "", nil); w.Code != 204 {
		t.Fatalf("second DELETE: %d", w.Code)
	}
	if w = h.call("GET", thing, "", nil); w.Code != 404 {
		t.Fatalf("GET of nothing: %d", w.Code)
	}
}

func TestBadInputChangesNothing(t *testing.T) {
	h := open(t, storetest.New(t), plainType())
	defer h.stop()
	for _, tt := range []struct{ name, path, body, code string }{
		{"malformed", thing, `{"location":`, "InvalidRequestContent"},
		{"not an object", thing, `[]`, "InvalidRequestContent"},
		{"two values", thing, `{}{}`, "InvalidRequestContent"},
		{"no location", thing, `{}`, "LocationRequired"},
		{"other name", thing, `{"location":"local","name":"b"}`, "InvalidRequestContent"},
		{"tags", thing, `{"location":"local","tags":{"a":{}}}`, "InvalidTagName"},
		{"no group", sub + "/resourceGroups/none/providers/Microsoft.Test/things/a", `{"location":"local"}`, "ResourceGroupNotFound"},
	} {
		w := h.call("PUT", tt.path, tt.body, nil)
		if w.Code < 400 || w.Code >= 500 || !strings.HasPrefix(w.Body.String(), tt.code+":") {
			t.Errorf("%s: %d %s, want %s", tt.name, w.Code, w.Body, tt.code)
		}
	}
	if w := h.call("GET", group+"/providers/Microsoft.Test/things", "", nil); w.Body.String() != `{"value":[]}` {
		t.Errorf("something was stored: %s", w.Body)
	}
}

func TestSynchronousFailureUndoes(t *testing.T) {
	var fail atomic.Bool
	world := map[string]string{}
	typ := plainType()
	typ.Reconcile = func(_ context.Context, d *resource.Document) error {
		world[d.ID.Name()] = d.String("properties.v")
		if fail.Load() && d.String("properties.v") == "bad" {
			return resource.Errorf(409, "Refused", "no")
		}
		return nil
	}
	typ.Remove = func(_ context.Context, d *resource.Document) error { delete(world, d.ID.Name()); return nil }
	h := open(t, storetest.New(t), typ)
	defer h.stop()
	fail.Store(true)
	if _, err := h.tryPut(thing, `{"location":"local","properties":{"v":"bad"}}`); resource.StatusOf(err) != 409 {
		t.Fatalf("got %v", err)
	}
	if len(world) != 0 || h.engine.Exists(resource.MustParseID(thing)) {
		t.Fatalf("a failed creation left %v", world)
	}
	h.put(thing, `{"location":"local","properties":{"v":"good"}}`)
	if _, err := h.tryPut(thing, `{"location":"local","properties":{"v":"bad"}}`); resource.StatusOf(err) != 409 {
		t.Fatalf("got %v", err)
	}
	d, err := h.engine.Get(t.Context(), resource.MustParseID(thing))
	if err != nil || d.String("properties.v") != "good" || world["a"] != "good" || d.State != "Succeeded" {
		t.Fatalf("after a failed update: %v %v %v", d, world, err)
	}
}

func TestAsynchronousOperation(t *testing.T) {
	typ := plainType()
	typ.Async, typ.Created = true, 200
	gate := make(chan error)
	typ.Reconcile = func(ctx context.Context, d *resource.Document) error {
		select {
		case err := <-gate:
			d.Set("properties.made", true)
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	h := open(t, storetest.New(t), typ)
	defer h.stop()
	w := h.call("PUT", thing, `{"location":"local"}`, nil)
	link := w.Header().Get("Azure-AsyncOperation")
	if w.Code != 200 || link == "" || w.Header().Get("Retry-After") == "" || !strings.Contains(w.Body.String(), `"Creating"`) {
		t.Fatalf("PUT: %d %v %s", w.Code, w.Header(), w.Body)
	}
	path := strings.TrimPrefix(strings.Split(link, "?")[0], "https://management.test")
	if w := h.call("GET", path, "", nil); !strings.Contains(w.Body.String(), `"InProgress"`) || w.Header().Get("Retry-After") == "" {
		t.Fatalf("status: %s", w.Body)
	}
	if w := h.call("PUT", thing, `{"location":"local"}`, nil); w.Code != 409 {
		t.Fatalf("PUT during an operation: %d %s", w.Code, w.Body)
	}
	gate <- errors.New("transient")
	gate <- resource.Errorf(400, "Broken", "it broke")
	waitFor(t, func() bool { return strings.Contains(h.call("GET", path, "", nil).Body.String(), `"Failed"`) })
	if w := h.call("GET", thing, "", nil); !strings.Contains(w.Body.String(), `"provisioningState":"Failed"`) {
		t.Fatalf("GET: %s", w.Body)
	}
	h.call("PUT", thing, `{"location":"local"}`, nil)
	gate <- nil
	waitFor(t, func() bool { return strings.Contains(h.call("GET", thing, "", nil).Body.String(), `"Succeeded"`) })
}

func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	for range 2000 {
		if ok() {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatal("it did not happen within two seconds")
}

func TestUnfinishedWorkGoesOnAfterARestart(t *testing.T) {
	s := storetest.New(t)
	typ := plainType()
	typ.Async = true
	block := make(chan struct{})
	started := make(chan struct{}, 8)
	typ.Reconcile = func(ctx context.Context, d *resource.Document) error {
		started <- struct{}{}
		select {
		case <-block:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	h := open(t, s, typ)
	h.call("PUT", thing, `{"location":"local"}`, nil)
	<-started
	h.stop() // the process dies while it reconciles
	close(block)
	h = open(t, s, typ)
	defer h.stop()
	waitFor(t, func() bool {
		d, err := h.engine.Get(t.Context(), resource.MustParseID(thing))
		return err == nil && d.State == resource.StateSucceeded
	})
}

func TestDeletingAGroupRetriesWhatIsInUse(t *testing.T) {
	user, used := plainType(), plainType()
	user.Name, used.Name = "Microsoft.Test/users", "Microsoft.Test/bases"
	var h *harness
	used.MayRemove = func(ctx context.Context, d *resource.Document) error {
		if docs, err := h.engine.List(ctx, "Microsoft.Test/users", d.ID.Parent()); err != nil || len(docs) > 0 {
			return resource.Errorf(409, "InUse", "in use")
		}
		return nil
	}
	h = open(t, storetest.New(t), user, used)
	defer h.stop()
	h.put(group+"/providers/Microsoft.Test/bases/b", `{"location":"local"}`)
	h.put(group+"/providers/Microsoft.Test/users/u", `{"location":"local"}`)
	if w := h.call("DELETE", group+"/providers/Microsoft.Test/bases/b", "", nil); w.Code != 409 {
		t.Fatalf("deleting what is in use: %d %s", w.Code, w.Body)
	}
	if err := h.engine.Delete(t.Context(), admin, resource.MustParseID(group)); err != nil {
		t.Fatal(err)
	}
	if h.engine.Exists(resource.MustParseID(group + "/providers/Microsoft.Test/bases/b")) {
		t.Fatal("the group is gone but not what was in it")
	}
}

func TestListPages(t *testing.T) {
	h := open(t, storetest.New(t), plainType())
	defer h.stop()
	for _, n := range []string{"a", "b", "c", "d", "e"} {
		h.put(group+"/providers/Microsoft.Test/things/"+n, `{"location":"local"}`)
	}
	path, got := group+"/providers/Microsoft.Test/things?$top=2&api-version=2024-01-01", ""
	for range 5 {
		w := h.call("GET", path, "", nil)
		var page struct {
			Value    []struct{ Name string }
			NextLink string
		}
		if err := json.Unmarshal(w.Body.Bytes(), &page); err != nil {
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
	if got != "abcde" {
		t.Fatalf("got %q", got)
	}
}

// What comes to be while its parent is being deleted would outlive it.
func TestNothingIsMadeBelowWhatIsBeingDeleted(t *testing.T) {
	removing, finish := make(chan struct{}), make(chan struct{})
	parent := plainType()
	parent.Async = true
	parent.Reconcile = func(context.Context, *resource.Document) error { return nil }
	parent.Remove = func(context.Context, *resource.Document) error { close(removing); <-finish; return nil }
	child := plainType()
	child.Name, child.Level, child.Tracked = "Microsoft.Test/things/parts", 0, false
	h := open(t, storetest.New(t), parent, child)
	defer h.stop()
	h.put(thing, `{"location":"local"}`)
	h.put(thing+"/parts/p", `{}`)
	if w := h.call("DELETE", thing, "", nil); w.Code != http.StatusAccepted {
		t.Fatalf("DELETE: %d %s", w.Code, w.Body)
	}
	<-removing
	if _, err := h.tryPut(thing+"/parts/p", `{}`); resource.StatusOf(err) != http.StatusConflict {
		t.Errorf("a part of what is being deleted: %v", err)
	}
	close(finish)
}
