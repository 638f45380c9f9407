package blob

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"time"

	"casemate.dev/envelope"
	"casemate.dev/resource"
	"casemate.dev/store"
	"casemate.dev/store/depot"
)

// Keys gives the handle of an account's resource key, and the name of the key above it for messages; *envelope.Keys.
type Keys interface {
	Handle(ctx context.Context, resourceID string) (*envelope.Handle, error)
	Version(resourceID string) (string, error)
}

// Config is what New needs.
type Config struct {
	Store     store.Store        // required
	Depot     depot.Depot        // required; everything below "blob/" in it is this service's
	Keys      Keys               // required
	Resources resource.Resources // required for account information (sku, kind)
	Inner     resource.Inner     // required for the in-process operations
	Clock     resource.Clock     // default: time.Now
	Log       *slog.Logger       // default: slog.Default()
}

// Service is the Blob service of all accounts. It is safe for concurrent use.
type Service struct {
	store     store.Store
	depot     depot.Depot
	keys      Keys
	resources resource.Resources
	inner     resource.Inner
	now       resource.Clock
	log       *slog.Logger

	flying flights
	pins   pins
	wake   chan struct{} // holds one token while the sweeper has something to do
}

// New makes the service. Run must be running for removed data to leave the disk.
func New(cfg Config) (*Service, error) {
	if cfg.Store == nil || cfg.Depot == nil || cfg.Keys == nil {
		return nil, errors.New("blob: Store, Depot and Keys are required")
	}
	s := &Service{
		store: cfg.Store, depot: cfg.Depot, keys: cfg.Keys, resources: cfg.Resources, inner: cfg.Inner,
		now: cfg.Clock, log: cfg.Log, wake: make(chan struct{}, 1),
	}
	if s.now == nil {
		s.now = time.Now
	}
	if s.log == nil {
		s.log = slog.Default()
	}
	return s, nil
}

// stampNow is a new ETag and modification time.
func (s *Service) stampNow() stamp {
	return stamp{ETag: newETag(), Modified: s.now().UTC()}
}

// account opens the account that a request is for.
func (s *Service) account(ctx context.Context, arm string) (*account, error) {
	id, err := resource.ParseID(arm)
	if err != nil {
		return nil, resource.Errorf(404, "ResourceNotFound", "The specified account does not exist.")
	}
	incarnation, err := s.incarnation(ctx, id)
	if err != nil {
		return nil, err
	}
	a := &account{id: incarnation, arm: id}
	if a.handle, err = s.keys.Handle(ctx, id.String()); err != nil {
		return nil, s.publicError(a, err)
	}
	return a, nil
}

func (s *Service) incarnation(ctx context.Context, id resource.ID) (string, error) {
	var found string
	err := s.store.View(ctx, func(r store.Reader) error {
		kv, err := r.Get(accountKey(id))
		found = string(kv.Value)
		return err
	})
	if errors.Is(err, store.ErrNotFound) {
		return "", resource.Errorf(404, "ResourceNotFound", "The account '%s' does not exist.", id.Name())
	}
	if err != nil {
		return "", err
	}
	return found, nil
}

// CreateAccount makes room for an account's data; idempotent. Its resource key must exist before it is used.
func (s *Service) CreateAccount(ctx context.Context, id resource.ID) error {
	incarnation := newID()
	return s.store.Update(ctx, func(t store.Txn) error {
		_, err := t.Get(accountKey(id))
		if errors.Is(err, store.ErrNotFound) {
			t.Put(accountKey(id), []byte(incarnation))
			return nil
		}
		return err
	})
}

// DestroyAccount makes an account's data unreachable at once and has the sweeper remove it; idempotent. The caller
// destroys the resource key.
func (s *Service) DestroyAccount(ctx context.Context, id resource.ID) error {
	err := s.store.Update(ctx, func(t store.Txn) error {
		kv, err := t.Get(accountKey(id))
		if errors.Is(err, store.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		t.Delete(accountKey(id))
		t.Put(purgeKey(string(kv.Value), ""), []byte("1"))
		return nil
	})
	if err != nil {
		return err
	}
	s.sweepSoon()
	return nil
}

// current says inside a transaction whether the account is still the one that the request was for.
func (a *account) current(r store.Reader) error {
	kv, err := r.Get(accountKey(a.arm))
	if err == nil && string(kv.Value) == a.id {
		return nil
	}
	if err == nil || errors.Is(err, store.ErrNotFound) {
		return resource.Errorf(404, "ResourceNotFound", "The account '%s' does not exist.", a.arm.Name())
	}
	return err
}

// flights are the objects that were committed to the depot, or are about to be, and are not in the store yet. The sweeper
// leaves them alone.
type flights struct {
	mu      sync.Mutex
	objects map[string]bool // depot keys
}

func (f *flights) begin(key string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.objects == nil {
		f.objects = map[string]bool{}
	}
	f.objects[key] = true
}

func (f *flights) end(key string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.objects, key)
}

func (f *flights) has(key string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.objects[key]
}

// pins count the readers of each lineage. A reader takes its pin while it looks at the store; the sweeper lists the trash
// first and the pins afterwards. So whoever saw a record that refers to an object in that list has its pin in place, and
// whoever comes later sees a store in which nothing refers to the object.
type pins struct {
	looking sync.RWMutex // read-locked from before a reader's View until its pin is set
	mu      sync.Mutex
	count   map[string]int
}

// look runs view and pins the lineage that it returns; "" pins nothing.
func (p *pins) look(view func() (lineage string, err error)) (release func(), err error) {
	p.looking.RLock()
	defer p.looking.RUnlock()
	lineage, err := view()
	if err != nil || lineage == "" {
		return func() {}, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.count == nil {
		p.count = map[string]int{}
	}
	p.count[lineage]++
	return sync.OnceFunc(func() { p.release(lineage) }), nil
}

func (p *pins) release(lineage string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.count[lineage]--; p.count[lineage] == 0 {
		delete(p.count, lineage)
	}
}

// snapshot waits for readers that are looking and returns what is pinned.
func (p *pins) snapshot() map[string]bool {
	p.looking.Lock()
	defer p.looking.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make(map[string]bool, len(p.count))
	for k := range p.count {
		out[k] = true
	}
	return out
}

// scopeOf is the container's data scope.
func scopeOf(arm resource.ID, container string) string {
	return strings.TrimSuffix(arm.String(), "/") + "/blobServices/default/containers/" + container
}
