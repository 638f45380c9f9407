package operation

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"casemate.dev/resource"
	"casemate.dev/store"
)

// Identities makes and removes the principals of resources with a managed identity; control/identity, joined in the app.
type Identities interface {
	EnsureSystemAssigned(ctx context.Context, id resource.ID) (principalID, tenantID string, err error)
	RemoveSystemAssigned(ctx context.Context, id resource.ID) error
}

// Authorizer decides whether a caller may assign a user-assigned identity to a resource.
type Authorizer interface {
	Authorize(c resource.Caller, action string, isData bool, scope resource.ID) (allowed bool, reason string)
}

// Config makes an Engine. All fields are required but Identities and Logger.
type Config struct {
	Store      store.Store
	Handle     func(ctx context.Context, resourceID string) (Handle, error)
	Types      []resource.Type
	Identities Identities
	Authorize  Authorizer
	BaseURL    string // https://management.<domain>[:port], for links
	Clock      resource.Clock
	Logger     *slog.Logger
}

// Engine keeps the documents and drives them. It implements resource.Resources. It is safe for concurrent use; Run must
// run for asynchronous types to make progress.
type Engine struct {
	cfg   Config
	types map[string]*typeInfo // by lower-case name
	order []*typeInfo

	mu        sync.RWMutex
	docs      map[string]*record    // platform documents by ID key; records are immutable once published
	ids       map[string][]string   // by lower-case type: sorted store keys of all documents, owned ones included
	names     map[string]docRef     // by store key
	observers map[string][]observer // by lower-case type

	locks keyedMutex
	tasks chan task
	ops   *operations
	// interrupted are the operations that an earlier process left running; Run sees to them.
	interrupted []*status
	kids        sync.WaitGroup // tasks waiting for a worker or for their time
	// closing is closed when Run ends.
	closing chan struct{}
}

type observer struct {
	fn resource.Observer
}

type docRef struct {
	id resource.ID
	t  *typeInfo
}

type typeInfo struct {
	resource.Type
	segments  []string // type segments behind the namespace
	namespace string
	parent    *typeInfo // nil for top-level types
}

// New checks the types. Call Load before serving.
func New(cfg Config) (*Engine, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	e := &Engine{cfg: cfg, types: map[string]*typeInfo{}, docs: map[string]*record{}, ids: map[string][]string{}, names: map[string]docRef{},
		observers: map[string][]observer{}, tasks: make(chan task, 1024), closing: make(chan struct{})}
	e.ops = newOperations(cfg.Store, cfg.Clock)
	var errs []error
	for _, t := range cfg.Types {
		if err := t.Check(); err != nil {
			errs = append(errs, err)
			continue
		}
		parts := strings.Split(t.Name, "/")
		info := &typeInfo{Type: t, namespace: parts[0], segments: parts[1:]}
		if e.types[lower(t.Name)] != nil {
			errs = append(errs, fmt.Errorf("type %s is declared twice", t.Name))
		}
		e.types[lower(t.Name)] = info
		e.order = append(e.order, info)
	}
	for _, info := range e.order {
		if n := len(info.segments); n > 1 {
			info.parent = e.types[lower(info.namespace+"/"+strings.Join(info.segments[:n-1], "/"))]
			if info.parent == nil && info.Level != resource.AtSubscriptionRaw {
				errs = append(errs, fmt.Errorf("type %s has no declared parent type", info.Name))
			}
		}
	}
	return e, errors.Join(errs...)
}

// Watch registers an observer of a type. Call it before Load: Load tells observers of every platform document that exists.
func (e *Engine) Watch(typ string, fn resource.Observer) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.observers[lower(typ)] = append(e.observers[lower(typ)], observer{fn})
}

// Load reads all documents into memory and tells the observers.
func (e *Engine) Load(ctx context.Context) error {
	if err := e.ops.load(ctx); err != nil {
		return err
	}
	e.interrupted = e.ops.running() // all of an earlier process: nothing is served yet
	for _, t := range e.order {
		var found []*record
		err := e.cfg.Store.View(ctx, func(r store.Reader) error {
			for kv, err := range r.Scan(store.Prefix("res", lower(t.Name)), store.ScanOptions{KeysOnly: t.Owner != ""}) {
				if err != nil {
					return err
				}
				rec, err := e.index(t, kv)
				if err != nil {
					return err
				}
				if rec != nil {
					found = append(found, rec)
				}
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("loading documents of type %s: %w", t.Name, err)
		}
		for _, rec := range found {
			d, err := rec.document()
			if err != nil {
				return err
			}
			e.tell(ctx, t, nil, d)
		}
	}
	return nil
}

func (e *Engine) index(t *typeInfo, kv store.KV) (*record, error) {
	parts, err := store.SplitKey(kv.Key)
	if err != nil {
		return nil, err
	}
	id, err := resource.ParseID("/" + strings.Join(parts[2:], "/"))
	if err != nil {
		return nil, err
	}
	var rec *record
	if t.Owner == "" {
		if rec, err = decodeRecord(kv.Value); err != nil {
			return nil, err
		}
		if id, err = resource.ParseID(rec.ID); err != nil {
			return nil, err
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if rec != nil {
		e.docs[id.Key()] = rec
	}
	e.insertLocked(t, id)
	return rec, nil
}

func (e *Engine) insertLocked(t *typeInfo, id resource.ID) {
	key := storeKey(t.Name, id)
	list := e.ids[lower(t.Name)]
	if i, found := slices.BinarySearch(list, key); !found {
		e.ids[lower(t.Name)] = slices.Insert(list, i, key)
	}
	e.names[key] = docRef{id, t}
}

func (e *Engine) removeLocked(t *typeInfo, id resource.ID) {
	key := storeKey(t.Name, id)
	list := e.ids[lower(t.Name)]
	if i, found := slices.BinarySearch(list, key); found {
		e.ids[lower(t.Name)] = slices.Delete(list, i, i+1)
	}
	delete(e.names, key)
	delete(e.docs, id.Key())
}

func (e *Engine) cached(id resource.ID) *record {
	e.mu.RLock()
	defer e.mu.RUnlock()
	return e.docs[id.Key()]
}

// publish brings memory up to a durable change and tells the observers; r is nil for a removed document.
func (e *Engine) publish(ctx context.Context, t *typeInfo, id resource.ID, r *record) error {
	var before, after *resource.Document
	var err error
	e.mu.Lock()
	if old := e.docs[id.Key()]; old != nil {
		before, err = old.document()
	}
	if r == nil {
		e.removeLocked(t, id)
	} else {
		if t.Owner == "" {
			copied := *r
			e.docs[id.Key()] = &copied
		}
		e.insertLocked(t, id)
	}
	e.mu.Unlock()
	if err != nil {
		return err
	}
	if r != nil {
		if after, err = r.document(); err != nil {
			return err
		}
	} else if before == nil {
		before = &resource.Document{ID: id}
	}
	e.tell(ctx, t, before, after)
	return nil
}

func (e *Engine) tell(ctx context.Context, t *typeInfo, before, after *resource.Document) {
	e.mu.RLock()
	list := e.observers[lower(t.Name)]
	e.mu.RUnlock()
	for _, o := range list {
		o.fn(ctx, before, after)
	}
}

func (e *Engine) typeOf(id resource.ID) (*typeInfo, error) {
	t := e.types[lower(id.Type())]
	if t == nil {
		return nil, resource.Errorf(404, "InvalidResourceType", "The resource type '%s' is not known to Casemate. See docs/conformance for what is supported.", id.Type())
	}
	return t, nil
}

// Get implements resource.Resources.
func (e *Engine) Get(ctx context.Context, id resource.ID) (*resource.Document, error) {
	t, err := e.typeOf(id)
	if err != nil {
		return nil, err
	}
	r, err := e.load(ctx, t, id)
	if err != nil {
		return nil, err
	}
	return r.document()
}

// Exists says whether there is a document, without opening it.
func (e *Engine) Exists(id resource.ID) bool {
	if id.IsTenant() {
		return true
	}
	e.mu.RLock()
	defer e.mu.RUnlock()
	_, ok := e.names[storeKey(id.Type(), id)]
	return ok
}

// idsBelow lists the ids of a type's documents at or below a scope, in order.
func (e *Engine) idsBelow(typ string, below resource.ID) []resource.ID {
	e.mu.RLock()
	defer e.mu.RUnlock()
	list := e.ids[lower(typ)]
	prefix := storePrefix(typ, below)
	exact := strings.TrimSuffix(prefix, "/")
	var out []resource.ID
	if i, ok := slices.BinarySearch(list, exact); ok && !below.IsTenant() {
		out = append(out, e.names[list[i]].id)
	}
	i, _ := slices.BinarySearch(list, prefix)
	for ; i < len(list) && strings.HasPrefix(list[i], prefix); i++ {
		out = append(out, e.names[list[i]].id)
	}
	return out
}

// List implements resource.Resources.
func (e *Engine) List(ctx context.Context, typ string, below resource.ID) ([]*resource.Document, error) {
	t := e.types[lower(typ)]
	if t == nil {
		return nil, fmt.Errorf("listing unknown type %s", typ)
	}
	var out []*resource.Document
	for _, id := range e.idsBelow(typ, below) {
		r, err := e.load(ctx, t, id)
		if resource.StatusOf(err) == 404 {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, err
		}
		d, err := r.document()
		if err != nil {
			return nil, err
		}
		out = append(out, d)
	}
	return out, nil
}

// Types are the declared types, for provider metadata.
func (e *Engine) Types() []resource.Type { return e.cfg.Types }

// keyedMutex holds one lock for each key in use.
type keyedMutex struct {
	mu   sync.Mutex
	held map[string]*keyLock
}

type keyLock struct {
	ch    chan struct{} // capacity 1: full when locked
	users int
}

// lock waits for the key's lock; the returned function releases it.
func (k *keyedMutex) lock(ctx context.Context, key string) (func(), error) {
	k.mu.Lock()
	if k.held == nil {
		k.held = map[string]*keyLock{}
	}
	l := k.held[key]
	if l == nil {
		l = &keyLock{ch: make(chan struct{}, 1)}
		k.held[key] = l
	}
	l.users++
	k.mu.Unlock()
	leave := func() {
		k.mu.Lock()
		if l.users--; l.users == 0 {
			delete(k.held, key)
		}
		k.mu.Unlock()
	}
	select {
	case l.ch <- struct{}{}:
		return func() { <-l.ch; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, fmt.Errorf("waiting for another change of %s: %w", key, ctx.Err())
	}
}

const retryAfter = time.Second
