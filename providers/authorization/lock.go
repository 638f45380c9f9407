package authorization

import (
	"context"
	"maps"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"

	"casemate.dev/resource"
)

// Levels of locks, weakest first.
const (
	LevelCanNotDelete = "CanNotDelete"
	LevelReadOnly     = "ReadOnly"
)

func validateLock(_ context.Context, w *resource.Write) error {
	switch level := w.New.String("properties.level"); {
	case strings.EqualFold(level, LevelCanNotDelete):
		w.New.Set("properties.level", LevelCanNotDelete)
	case strings.EqualFold(level, LevelReadOnly):
		w.New.Set("properties.level", LevelReadOnly)
	default:
		return badRequest("InvalidLockLevel", "properties.level", "The lock level '%s' is not valid. Use CanNotDelete or ReadOnly.", level)
	}
	if notes := w.New.String("properties.notes"); len(notes) > 512 {
		return badRequest("LockNotesTooLong", "properties.notes", "The notes of a lock have at most 512 characters.")
	}
	return nil
}

type lock struct {
	id    resource.ID
	level string
}

// lockTable holds the locks by the scope that they lie on. Readers take an immutable map; the mutex orders writers.
type lockTable struct {
	now atomic.Pointer[map[string][]lock]
	mu  sync.Mutex
}

func (t *lockTable) load() map[string][]lock {
	if m := t.now.Load(); m != nil {
		return *m
	}
	return nil
}

func (t *lockTable) observe(_ context.Context, old, now *resource.Document) {
	d := now
	if d == nil {
		d = old
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	next := maps.Clone(t.load())
	if next == nil {
		next = map[string][]lock{}
	}
	scope := d.ID.Parent().Key()
	var list []lock
	for _, l := range next[scope] {
		if !l.id.Equal(d.ID) {
			list = append(list, l)
		}
	}
	if now != nil && now.State != resource.StateDeleting {
		list = append(list, lock{now.ID, now.String("properties.level")})
	}
	if next[scope] = list; len(list) == 0 {
		delete(next, scope)
	}
	t.now.Store(&next)
}

// LockOf returns the strongest lock on a scope or above it: its level, and its ID. "" is none.
func (p *Provider) LockOf(scope resource.ID) (level, id string) {
	m := p.locks.load()
	if len(m) == 0 {
		return "", ""
	}
	for _, key := range scope.Scopes() {
		for _, l := range m[key] {
			if level == "" || l.level == LevelReadOnly {
				level, id = l.level, l.id.String()
			}
		}
	}
	return level, id
}

// lockBelow returns a lock under a scope, which keeps the scope itself from being deleted.
func (p *Provider) lockBelow(scope resource.ID) string {
	for _, list := range p.locks.load() {
		for _, l := range list {
			if scope.Contains(l.id) && !strings.EqualFold(l.id.Parent().String(), scope.String()) {
				return l.id.String()
			}
		}
	}
	return ""
}

// Govern is the gateway's governor for locks: CanNotDelete refuses DELETE, ReadOnly refuses everything but reads, each at
// the lock's scope and below; a DELETE is refused for a lock below its scope as well. Locks themselves can always be
// changed by those who may. They concern the control plane only, as Azure's do.
func (p *Provider) Govern(r *resource.Request) error {
	if r.Route.Plane != resource.PlaneManagement || r.Method == http.MethodGet || r.Method == http.MethodHead || len(p.locks.load()) == 0 {
		return nil
	}
	scope, err := resource.ParseID(r.Scope)
	if err != nil || scope.Is(TypeLock) {
		return nil
	}
	level, id := p.LockOf(scope)
	verb := "write"
	if r.Method == http.MethodDelete {
		verb = "delete"
		if below := p.lockBelow(scope); level == "" && below != "" {
			level, id = LevelCanNotDelete, below
		}
	}
	if level == "" || (level == LevelCanNotDelete && verb != "delete") {
		return nil
	}
	return resource.Errorf(http.StatusConflict, "ScopeLocked",
		"The scope '%s' cannot perform %s operation because following scope(s) are locked: '%s'. Please remove the lock and try again.", scope, verb, id)
}
