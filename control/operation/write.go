package operation

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"runtime/debug"
	"strings"
	"time"

	"casemate.dev/resource"
)

// condition is If-Match and If-None-Match.
type condition struct{ match, noneMatch string }

func (c condition) check(id resource.ID, old *record) error {
	failed := resource.Errorf(http.StatusPreconditionFailed, "PreconditionFailed", "The condition of the request was not met for '%s'. Read the resource again and use its current etag.", id)
	switch {
	case c.noneMatch == "*" && old != nil:
		return failed
	case c.noneMatch != "" && old != nil && c.noneMatch == old.etag():
		return failed
	case c.match == "":
		return nil
	case old == nil:
		return failed
	case c.match != "*" && c.match != old.etag():
		return failed
	}
	return nil
}

// change is one PUT or PATCH.
type change struct {
	caller  resource.Caller
	id      resource.ID
	body    map[string]any
	patch   bool
	cond    condition
	version string
}

// result is what became of a change.
type result struct {
	doc       *resource.Document
	created   bool
	operation string // id of the operation still running; empty: done
}

// apply validates, stores and reconciles (or, for asynchronous types, starts reconciling).
func (e *Engine) apply(ctx context.Context, c change) (*result, error) {
	t, err := e.typeOf(c.id)
	if err != nil {
		return nil, err
	}
	if err := e.makeParent(ctx, t, c); err != nil {
		return nil, err
	}
	// A worker holds the lock while it reconciles: who comes meanwhile is told so instead of waiting.
	if r, err := e.load(ctx, t, c.id); err == nil {
		if err := busy(c.id, r); err != nil {
			return nil, err
		}
	}
	unlock, err := e.locks.lock(ctx, c.id.Key())
	if err != nil {
		return nil, err
	}
	defer unlock()
	old, err := e.load(ctx, t, c.id)
	if err != nil && resource.StatusOf(err) != http.StatusNotFound {
		return nil, err
	}
	if err := e.admit(ctx, c, old); err != nil {
		return nil, err
	}
	next, err := e.prepare(ctx, t, c, old)
	if err != nil {
		return nil, err
	}
	if t.Async && t.Reconcile != nil {
		return e.begin(ctx, t, c, old, next)
	}
	return e.complete(ctx, t, c, old, next)
}

// makeParent creates the container of an asset's versions where the type asks for it.
func (e *Engine) makeParent(ctx context.Context, t *typeInfo, c change) error {
	if !t.MakesParent || c.patch || e.Exists(c.id.Parent()) {
		return nil
	}
	_, err := e.apply(ctx, change{caller: c.caller, id: c.id.Parent(), body: map[string]any{}, version: c.version, cond: condition{noneMatch: "*"}})
	if status := resource.StatusOf(err); (status == http.StatusConflict || status == http.StatusPreconditionFailed) && e.Exists(c.id.Parent()) {
		return nil // somebody was faster
	}
	return err
}

func (e *Engine) admit(ctx context.Context, c change, old *record) error {
	if err := c.cond.check(c.id, old); err != nil {
		return err
	}
	if old == nil {
		if c.patch {
			return resource.NotFound(c.id)
		}
		if gone := e.deletedAbove(c); gone != nil {
			return gone
		}
		if p := e.declaredScope(c.id); !e.Exists(p) {
			if p.Is("Microsoft.Resources/subscriptions/resourceGroups") {
				return resource.Errorf(http.StatusNotFound, "ResourceGroupNotFound", "Resource group '%s' could not be found. Create it first.", p.Name())
			}
			if p.Is("Microsoft.Resources/subscriptions") {
				return resource.Errorf(http.StatusNotFound, "SubscriptionNotFound", "The subscription '%s' could not be found.", p.Name())
			}
			return resource.Errorf(http.StatusNotFound, "ParentResourceNotFound", "Can not perform requested operation on nested resource. Parent resource '%s' not found.", p)
		}
		return e.parentStays(ctx, c.id)
	}
	return busy(c.id, old)
}

// parentStays refuses a new resource below one that is being deleted: it would be left behind, sealed under a key that is
// gone, and be found by the next resource of that name.
func (e *Engine) parentStays(ctx context.Context, id resource.ID) error {
	for p := e.declaredScope(id); !p.IsTenant(); p = p.Parent() {
		t := e.types[lower(p.Type())]
		if t == nil {
			continue
		}
		r, err := e.load(ctx, t, p)
		if resource.StatusOf(err) == http.StatusNotFound {
			continue // a scope that has no document
		}
		if err != nil {
			return err
		}
		if r.State == resource.StateDeleting {
			return busy(p, r)
		}
	}
	return nil
}

// deletedAbove refuses a new resource below what is being deleted: it would be left behind, without its group.
func (e *Engine) deletedAbove(c change) error {
	if c.caller.Kind == resource.KindPlatform {
		return nil
	}
	for p := c.id.Parent(); !p.IsTenant(); p = p.Parent() {
		r := e.cached(p)
		if r == nil || r.State != resource.StateDeleting {
			continue
		}
		if p.Is("Microsoft.Resources/subscriptions/resourceGroups") {
			return resource.Errorf(http.StatusConflict, "ResourceGroupBeingDeleted", "The resource group '%s' is in deprovisioning state and cannot perform this operation.", p.Name())
		}
		return resource.Errorf(http.StatusConflict, "ParentResourceBeingDeleted", "The resource '%s' is being deleted. Wait until that has ended.", p)
	}
	return nil
}

// declaredScope is what must exist above a new resource: its parent or, for an extension resource on a data scope (a key, a
// blob container), the nearest resource of a declared type.
func (e *Engine) declaredScope(id resource.ID) resource.ID {
	p := id.Parent()
	for t := e.types[lower(id.Type())]; t != nil && t.Level == resource.AtAnyScope && !p.IsTenant() && e.types[lower(p.Type())] == nil; {
		p = p.Parent()
	}
	return p
}

// busy refuses a change of what is being changed.
func busy(id resource.ID, r *record) error {
	switch r.State {
	case resource.StateDeleting, resource.StateCreating, resource.StateUpdating:
		e := resource.Errorf(http.StatusConflict, "AnotherOperationInProgress", "Another operation on '%s' is in progress (%s). Wait until it has ended and try again.", id, r.State)
		e.RetryAfter = retryAfter
		return e
	}
	return nil
}

// prepare makes the record that is to be stored, after all checks; it changes nothing.
func (e *Engine) prepare(ctx context.Context, t *typeInfo, c change, old *record) (*record, error) {
	next := &record{ID: c.id.String(), Created: e.cfg.Clock().UnixNano(), Creator: c.caller}
	var before *resource.Document
	if old != nil {
		var err error
		if before, err = old.document(); err != nil {
			return nil, err
		}
		*next = record{ID: old.ID, Created: old.Created, Generation: old.Generation, System: old.System, Creator: old.Creator, Internal: before.Clone().Internal}
	}
	next.Generation++
	body := c.body
	if c.patch {
		body, _ = mergePatch(before.Clone().Body, c.body).(map[string]any)
	}
	id := c.id
	if before != nil {
		id = before.ID // keep the spelling of the creator
	}
	if err := checkEnvelope(t, id, body, before); err != nil {
		return nil, err
	}
	doc := &resource.Document{ID: id, Body: body, Internal: next.Internal, System: next.System, Creator: next.Creator}
	if err := e.checkIdentity(c.caller, doc, before); err != nil {
		return nil, err
	}
	keepPrincipals(doc, before)
	if err := e.showAssigned(doc); err != nil { // Validate reads them
		return nil, err
	}
	if t.Validate != nil {
		if err := t.Validate(ctx, &resource.Write{Caller: c.caller, Old: before, New: doc, Version: c.version, Method: method(c)}); err != nil {
			return nil, err
		}
	}
	next.adopt(doc)
	touch(&next.System, c.caller, e.cfg.Clock())
	return next, nil
}

func method(c change) string {
	if c.patch {
		return http.MethodPatch
	}
	return http.MethodPut
}

var generalName = regexp.MustCompile(`^[^<>%&:\\?/#\x00-\x1f]{1,260}$`)

// checkEnvelope checks the members that all resources share, and drops those that only the platform sets.
func checkEnvelope(t *typeInfo, id resource.ID, body map[string]any, before *resource.Document) error {
	pattern, rule := t.NamePattern, t.NameRule
	if pattern == nil {
		pattern, rule = generalName, "Use 1 to 260 characters other than <>%&:\\?/# and control characters"
	}
	if before == nil && !pattern.MatchString(id.Name()) {
		return resource.Errorf(http.StatusBadRequest, "InvalidResourceName", "The name '%s' is not valid for a resource of type %s. %s.", id.Name(), t.Name, strings.TrimSuffix(rule, "."))
	}
	for member, want := range map[string]string{"id": id.String(), "name": id.Name(), "type": id.WireType()} {
		if got, ok := body[member].(string); ok && !strings.EqualFold(got, want) && !strings.EqualFold(got, fmt.Sprint(strings.Join(id.Names(), "/"))) {
			return resource.Errorf(http.StatusBadRequest, "InvalidRequestContent", "The %s '%s' in the body is not that of the request, '%s'.", member, got, want)
		}
		delete(body, member)
	}
	for _, member := range []string{"systemData", "etag"} {
		delete(body, member)
	}
	if props, ok := body["properties"]; ok && props != nil {
		if m, ok := props.(map[string]any); ok {
			delete(m, "provisioningState")
		} else {
			return resource.Errorf(http.StatusBadRequest, "InvalidRequestContent", "The member 'properties' must be an object.")
		}
	}
	if err := checkLocation(t, body, before); err != nil {
		return err
	}
	return checkTags(body["tags"])
}

func checkLocation(t *typeInfo, body map[string]any, before *resource.Document) error {
	raw, ok := body["location"]
	loc, isString := raw.(string)
	if ok && raw != nil && !isString {
		return resource.Errorf(http.StatusBadRequest, "InvalidRequestContent", "The member 'location' must be a string.")
	}
	if before != nil && before.String("location") != "" {
		if loc == "" {
			body["location"] = before.String("location")
		} else if canonLocation(loc) != before.Location() {
			return resource.Errorf(http.StatusConflict, "InvalidResourceLocation", "The resource '%s' already exists in location '%s'. A resource cannot be moved to location '%s'; delete it first.", before.ID.Name(), before.Location(), loc)
		}
		return nil
	}
	if t.Tracked && loc == "" {
		return resource.Errorf(http.StatusBadRequest, "LocationRequired", "The location property is required for this resource type. Use 'local', or the region name that your templates use.")
	}
	if loc != "" {
		body["location"] = canonLocation(loc)
	}
	return nil
}

func canonLocation(s string) string { return strings.ToLower(strings.ReplaceAll(s, " ", "")) }

func checkTags(v any) error {
	if v == nil {
		return nil
	}
	tags, ok := v.(map[string]any)
	if !ok {
		return resource.Errorf(http.StatusBadRequest, "InvalidTags", "The member 'tags' must be an object of strings.")
	}
	if len(tags) > 50 {
		return resource.Errorf(http.StatusBadRequest, "TagCountExceeded", "A resource may have 50 tags, not %d.", len(tags))
	}
	for name, value := range tags {
		s, ok := value.(string)
		if !ok && value != nil || name == "" || len(name) > 512 || len(s) > 256 || strings.ContainsAny(name, `<>%&\?/`) {
			return resource.Errorf(http.StatusBadRequest, "InvalidTagName", "The tag '%s' is not valid: names have 1 to 512 characters other than <>%%&\\?/, values are strings of at most 256.", name)
		}
	}
	return nil
}

// mergePatch is RFC 7396.
func mergePatch(target, patch any) any {
	p, ok := patch.(map[string]any)
	if !ok {
		return patch
	}
	t, ok := target.(map[string]any)
	if !ok {
		t = map[string]any{}
	}
	for k, v := range p {
		key := k
		if _, exact := t[k]; !exact { // names of environment variables may differ by case only
			for have := range t {
				if strings.EqualFold(have, k) {
					key = have
				}
			}
		}
		if v == nil {
			delete(t, key)
			continue
		}
		t[key] = mergePatch(t[key], v)
	}
	return t
}

// begin stores the record as unfinished and leaves the rest to a worker.
func (e *Engine) begin(ctx context.Context, t *typeInfo, c change, old, next *record) (*result, error) {
	next.State = resource.StateUpdating
	if old == nil {
		next.State = resource.StateCreating
	}
	op, err := e.ops.start(ctx, c.id, t.Name, c.caller)
	if err != nil {
		return nil, err
	}
	left := task{Type: t.Name, ID: c.id.String(), Operation: op}
	if err := e.save(ctx, t, c.id, next, &left); err != nil {
		return nil, errors.Join(err, e.ops.finish(context.WithoutCancel(ctx), op, resource.AsError(err)))
	}
	e.enqueue(left)
	doc, err := next.document()
	return &result{doc: doc, created: old == nil, operation: op}, err
}

const syncAttempts = 4

// complete reconciles before the client hears anything. A failure leaves the world as it was.
func (e *Engine) complete(ctx context.Context, t *typeInfo, c change, old, next *record) (*result, error) {
	if t.Reconcile != nil {
		next.State, next.Previous = resource.StateUpdating, old
		if old == nil {
			next.State = resource.StateCreating
		} else {
			old.Previous = nil
		}
		left := task{Type: t.Name, ID: c.id.String()}
		if err := e.save(ctx, t, c.id, next, &left); err != nil {
			return nil, err
		}
		settled := false
		defer func() {
			if !settled { // a worker goes on with what the store still calls unfinished, as after a crash
				e.enqueueAfter(left, firstRetry)
			}
		}()
		// From here on the client may go away; the work is done or undone nevertheless.
		ctx = context.WithoutCancel(ctx)
		if err := e.reconcileSync(ctx, t, next); err != nil {
			undone := e.undo(ctx, t, c.id, old, next)
			settled = undone == nil
			return nil, errors.Join(err, undone)
		}
		done := *next
		done.State, done.Previous, done.Fault = resource.StateSucceeded, nil, nil
		if err := e.save(ctx, t, c.id, &done, nil); err != nil {
			return nil, err
		}
		settled = true
		doc, err := done.document()
		return &result{doc: doc, created: old == nil}, err
	}
	next.State, next.Previous, next.Fault = resource.StateSucceeded, nil, nil
	if err := e.save(ctx, t, c.id, next, nil); err != nil {
		return nil, err
	}
	doc, err := next.document()
	return &result{doc: doc, created: old == nil}, err
}

func (e *Engine) reconcileSync(ctx context.Context, t *typeInfo, r *record) error {
	var err error
	for attempt := range syncAttempts {
		if err = e.reconcile(ctx, t, r); err == nil || final(err) {
			return err
		}
		if wait := time.Duration(attempt+1) * 50 * time.Millisecond; attempt < syncAttempts-1 {
			if err := sleep(ctx, wait); err != nil {
				return err
			}
		}
	}
	return err
}

// reconcile runs the provider's Reconcile and keeps what it set.
func (e *Engine) reconcile(ctx context.Context, t *typeInfo, r *record) error {
	d, err := r.document()
	if err != nil {
		return err
	}
	if err := e.reconcileIdentity(ctx, d); err != nil {
		return err
	}
	if t.Reconcile != nil {
		if err := e.guarded(t.Reconcile)(ctx, d); err != nil {
			return err
		}
	}
	r.adopt(d)
	return nil
}

// guarded turns a panic over a document into a final error. Requests have the gateway's recover; what is unfinished is worked on
// outside of any request and again at each start, so one document that a provider cannot bear would end the platform for good.
func (e *Engine) guarded(work func(context.Context, *resource.Document) error) func(context.Context, *resource.Document) error {
	return func(ctx context.Context, d *resource.Document) (err error) {
		defer func() {
			if p := recover(); p != nil {
				e.cfg.Logger.Error("a provider panicked", "id", d.ID.String(), "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
				err = resource.Internal(fmt.Errorf("working on %s: panic: %v", d.ID, p))
			}
		}()
		return work(ctx, d)
	}
}

// final says that trying again will not help.
func final(err error) bool {
	var e *resource.Error
	return errors.As(err, &e) && e.RetryAfter == 0
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// undo returns to the record before a failed change: an update is reconciled back, a creation removed.
func (e *Engine) undo(ctx context.Context, t *typeInfo, id resource.ID, old, next *record) error {
	if old == nil {
		d, err := next.document()
		if err != nil {
			return err
		}
		if t.Remove != nil {
			if err := e.guarded(t.Remove)(ctx, d); err != nil {
				e.cfg.Logger.Error("undoing a failed creation", "id", id.String(), "cause", err)
				next.State, next.Fault = resource.StateFailed, toFault(resource.AsError(err))
				return e.save(ctx, t, id, next, nil)
			}
		}
		if err := e.removeIdentity(ctx, d); err != nil {
			return err
		}
		return e.drop(ctx, t, id)
	}
	back := *old
	back.Previous = nil
	if t.Reconcile != nil {
		if err := e.reconcileSync(ctx, t, &back); err != nil {
			e.cfg.Logger.Error("undoing a failed update", "id", id.String(), "cause", err)
			back.State, back.Fault = resource.StateFailed, toFault(resource.AsError(err))
		}
	}
	return e.save(ctx, t, id, &back, nil)
}
