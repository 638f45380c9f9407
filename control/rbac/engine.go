package rbac

import (
	"hash/maphash"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"casemate.dev/resource"
)

// Deny is a deny assignment: it takes actions away from principals whatever roles they hold. The platform makes them;
// customers cannot (Azure RBAC, "Deny assignments").
type Deny struct {
	ID          string
	Scope       resource.ID
	OnlyHere    bool     // doNotApplyToChildScopes
	Principals  []string // object ids; empty: everybody
	Excluded    []string // object ids
	Permissions []Permission
}

// Reasons of decisions.
const (
	ReasonGranted   = "granted by a role assignment"
	ReasonNoGrant   = "no role assignment of the caller, or of its groups, grants the action at this scope or above"
	ReasonAnonymous = "the caller is not authenticated"
	ReasonDenied    = "refused by a deny assignment"
	ReasonNoAction  = "the request names no action"
)

// Decision is the answer to one Check. The zero value denies.
type Decision struct {
	Allowed    bool
	Assignment string // ID of the role assignment that granted, or of the deny assignment that refused
	Role       string // name of the role that granted
	Reason     string // one of the Reason constants
}

// snapshot is everything a decision reads. It is immutable. Recent changes live in a small second index, so that a
// change costs in proportion to the recent changes and not to all assignments.
type snapshot struct {
	seed    maphash.Seed // of the hashes of both indexes
	roles   *roleSet
	base    *index
	recent  *index
	removed map[string]struct{} // keys of assignments of base that no longer hold
	denies  []compiledDeny
}

type compiledDeny struct {
	Deny
	blocks []block
}

// Engine holds roles and assignments. Its methods are safe for concurrent use.
type Engine struct {
	now atomic.Pointer[snapshot]

	mu      sync.Mutex            // held by writers; guards the fields below
	slots   map[string]uint32     // role key → slot; slots are never reused
	all     map[string]Assignment // by assignment key
	changed map[string]struct{}   // keys of assignments that are not in base, or differ from it
	inBase  map[string]struct{}
	denies  map[string]Deny
}

// New returns an engine that knows the given roles and no assignment.
func New(roles ...Role) *Engine {
	e := &Engine{
		slots: map[string]uint32{}, all: map[string]Assignment{}, changed: map[string]struct{}{},
		inBase: map[string]struct{}{}, denies: map[string]Deny{},
	}
	seed := maphash.MakeSeed()
	empty := buildIndex(seed, nil)
	e.now.Store(&snapshot{seed: seed, roles: &roleSet{}, base: empty, recent: empty})
	e.SetRoles(roles...)
	return e
}

// Check decides whether the caller may perform the action (isData: data action) at the scope.
func (e *Engine) Check(caller resource.Caller, action string, isData bool, scope resource.ID) Decision {
	if caller.Anonymous() {
		return Decision{Reason: ReasonAnonymous}
	}
	if action == "" {
		return Decision{Reason: ReasonNoAction}
	}
	s := e.now.Load()
	if len(s.denies) > 0 {
		if id, denied := s.denied(caller, action, isData, scope); denied {
			return Decision{Assignment: id, Reason: ReasonDenied}
		}
	}
	allowing := s.roles.allowing(action, isData)
	d := Decision{Reason: ReasonNoGrant}
	s.visit(&caller, scope, func(g grant) bool {
		if g.inert || !allowing.has(g.slot) {
			return true
		}
		d = Decision{Allowed: true, Assignment: g.assignment.ID, Role: s.roles.slots[g.slot].Name, Reason: ReasonGranted}
		return false
	})
	return d
}

func (s *snapshot) visit(caller *resource.Caller, scope resource.ID, yield func(grant) bool) {
	var buf [512]byte
	var list [24]ancestor
	path := takeApart(s.seed, scope, buf[:0], list[:0])
	more := true
	s.base.visit(caller, &path, func(g grant) bool {
		if len(s.removed) > 0 {
			if _, gone := s.removed[assignmentKey(g.assignment.ID)]; gone {
				return true
			}
		}
		more = yield(g)
		return more
	})
	if more {
		s.recent.visit(caller, &path, yield)
	}
}

func (s *snapshot) denied(caller resource.Caller, action string, isData bool, scope resource.ID) (string, bool) {
	lower := strings.ToLower(action)
	names := func(list []string) bool {
		return slices.ContainsFunc(list, func(id string) bool {
			return strings.EqualFold(id, caller.Object) ||
				slices.ContainsFunc(caller.Groups, func(g string) bool { return strings.EqualFold(id, g) })
		})
	}
	for _, d := range s.denies {
		here := d.Scope.Contains(scope) && !(d.OnlyHere && !d.Scope.Equal(scope))
		if !here || (len(d.Principals) > 0 && !names(d.Principals)) || names(d.Excluded) {
			continue
		}
		if (&compiledRole{blocks: d.blocks}).allows(lower, isData) {
			return d.ID, true
		}
	}
	return "", false
}

// Permissions lists the permission blocks that the caller holds at the scope, without those that carry a condition.
func (e *Engine) Permissions(caller resource.Caller, scope resource.ID) []Permission {
	if caller.Anonymous() {
		return nil
	}
	s := e.now.Load()
	var out []Permission
	seen := map[uint32]bool{}
	s.visit(&caller, scope, func(g grant) bool {
		role := s.roles.at(g.slot)
		if role == nil || seen[g.slot] || g.inert {
			return true
		}
		seen[g.slot] = true
		for _, p := range role.Permissions {
			if p.Condition == "" {
				out = append(out, p)
			}
		}
		return true
	})
	return out
}

// Role finds a role by its GUID or by a resource ID that ends in it.
func (e *Engine) Role(id string) (Role, bool) {
	for _, r := range e.now.Load().roles.slots {
		if r != nil && roleKey(r.ID) == roleKey(id) {
			return r.Role, true
		}
	}
	return Role{}, false
}

// Roles lists all roles, built-in ones first as they were given.
func (e *Engine) Roles() []Role {
	var out []Role
	for _, r := range e.now.Load().roles.slots {
		if r != nil {
			out = append(out, r.Role)
		}
	}
	return out
}

// SetRoles adds roles, or replaces those with the same GUID.
func (e *Engine) SetRoles(roles ...Role) {
	e.mu.Lock()
	defer e.mu.Unlock()
	slots := slices.Clone(e.now.Load().roles.slots)
	for _, r := range roles {
		i, ok := e.slots[roleKey(r.ID)]
		if !ok {
			i = uint32(len(e.slots))
			e.slots[roleKey(r.ID)] = i
		}
		for len(slots) <= int(i) {
			slots = append(slots, nil)
		}
		slots[i] = compileRole(r)
	}
	e.publishLocked(func(s *snapshot) { s.roles = &roleSet{slots: slots} })
}

// RemoveRole forgets a role; assignments of it grant nothing from then on.
func (e *Engine) RemoveRole(id string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	i, ok := e.slots[roleKey(id)]
	slots := slices.Clone(e.now.Load().roles.slots)
	if !ok || int(i) >= len(slots) {
		return
	}
	slots[i] = nil
	e.publishLocked(func(s *snapshot) { s.roles = &roleSet{slots: slots} })
}

// SetDenies replaces all deny assignments.
func (e *Engine) SetDenies(denies ...Deny) {
	e.mu.Lock()
	defer e.mu.Unlock()
	compiled := make([]compiledDeny, 0, len(denies))
	for _, d := range denies {
		unconditional := slices.Clone(d.Permissions)
		for i := range unconditional {
			unconditional[i].Condition = "" // not evaluated, so it cannot lift the denial
		}
		compiled = append(compiled, compiledDeny{d, compileRole(Role{Permissions: unconditional}).blocks})
	}
	e.publishLocked(func(s *snapshot) { s.denies = compiled })
}

func assignmentKey(id string) string { return strings.ToLower(id) }

// SetAssignments adds assignments, or replaces those with the same ID. Many at once cost little more than one.
func (e *Engine) SetAssignments(list ...Assignment) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, a := range list {
		key := assignmentKey(a.ID)
		e.all[key] = a
		e.changed[key] = struct{}{}
	}
	e.reindexLocked()
}

// RemoveAssignment forgets an assignment.
func (e *Engine) RemoveAssignment(id string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	key := assignmentKey(id)
	if _, ok := e.all[key]; !ok {
		return
	}
	delete(e.all, key)
	e.changed[key] = struct{}{}
	e.reindexLocked()
}

// RemoveScope forgets the assignments at a scope and below it, and returns their IDs.
func (e *Engine) RemoveScope(scope resource.ID) []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	var gone []string
	for key, a := range e.all {
		if scope.Contains(a.Scope) {
			gone = append(gone, a.ID)
			delete(e.all, key)
			e.changed[key] = struct{}{}
		}
	}
	if len(gone) > 0 {
		e.reindexLocked()
	}
	slices.Sort(gone)
	return gone
}

// mergeAt is how many recent changes, at least, are kept apart before everything is indexed anew. The share keeps the
// cost of a change, averaged over many, in proportion to the logarithm rather than the number of assignments.
const (
	mergeAt    = 512
	mergeShare = 64
)

func (e *Engine) reindexLocked() {
	seed := e.now.Load().seed
	if len(e.changed) > max(mergeAt, len(e.all)/mergeShare) {
		base := buildIndex(seed, e.grantsLocked(maps.Keys(e.all)))
		e.changed, e.inBase = map[string]struct{}{}, make(map[string]struct{}, len(e.all))
		for key := range e.all {
			e.inBase[key] = struct{}{}
		}
		e.publishLocked(func(s *snapshot) { s.base, s.recent, s.removed = base, buildIndex(seed, nil), nil })
	} else {
		recent, removed := buildIndex(seed, e.grantsLocked(maps.Keys(e.changed))), map[string]struct{}{}
		for key := range e.changed {
			if _, ok := e.inBase[key]; ok {
				removed[key] = struct{}{}
			}
		}
		e.publishLocked(func(s *snapshot) { s.recent, s.removed = recent, removed })
	}
}

// grantsLocked resolves the roles of assignments. A role that is assigned before it is defined gets a slot beyond the end
// of the role set, which allows nothing until SetRoles fills it.
func (e *Engine) grantsLocked(keys iter.Seq[string]) []grant {
	var out []grant
	for key := range keys {
		a, ok := e.all[key]
		if !ok {
			continue
		}
		role := roleKey(a.Role)
		slot, ok := e.slots[role]
		if !ok {
			slot = uint32(len(e.slots))
			e.slots[role] = slot
		}
		out = append(out, grant{assignment: &a, slot: slot, inert: a.Condition != ""})
	}
	return out
}

// publishLocked makes a changed copy of the snapshot the one that decisions read.
func (e *Engine) publishLocked(change func(*snapshot)) {
	s := *e.now.Load()
	change(&s)
	e.now.Store(&s)
}

// Authorize is Check as the gateway and the operation engine ask: the reason is for the audit record.
func (e *Engine) Authorize(c resource.Caller, action string, isData bool, scope resource.ID) (allowed bool, reason string) {
	d := e.Check(c, action, isData, scope)
	if d.Allowed {
		return true, d.Role + " by " + d.Assignment
	}
	return false, d.Reason
}

// Holds says whether the caller has any role at the scope, above it or anywhere below it. It decides only what lists
// mention, never what may be done.
func (e *Engine) Holds(caller resource.Caller, scope resource.ID) bool {
	if caller.Anonymous() {
		return false
	}
	found := false
	e.now.Load().visitAll(&caller, func(g grant) bool {
		found = !g.inert && (scope.Contains(g.assignment.Scope) || g.assignment.Scope.Contains(scope))
		return !found
	})
	return found
}

func (s *snapshot) visitAll(caller *resource.Caller, yield func(grant) bool) {
	for _, x := range []*index{s.base, s.recent} {
		for _, object := range append([]string{caller.Object}, caller.Groups...) {
			for _, g := range x.of(object) {
				_, gone := s.removed[assignmentKey(g.assignment.ID)]
				if !(gone && x == s.base) && !yield(g.grant) {
					return
				}
			}
		}
	}
}
