package registry

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"sync"
	"time"

	"github.com/distribution/distribution/v3"
	"github.com/distribution/distribution/v3/registry/storage"
	"github.com/distribution/reference"

	"casemate.dev/envelope"
	"casemate.dev/resource"
	"casemate.dev/store"
	"casemate.dev/store/depot"
)

// Keys gives the handle of a registry's resource key, and the name of the key above it for messages; *envelope.Keys.
type Keys interface {
	Handle(ctx context.Context, resourceID string) (*envelope.Handle, error)
	Version(resourceID string) (string, error)
}

// Principals finds out who somebody is, now; *identity.Service.
type Principals interface {
	// Verify checks a directory token whose audience the function accepts.
	Verify(ctx context.Context, raw string, audience func(string) bool) (resource.Caller, error)
	// CallerOf is the caller for acting in process as a principal that exists and is not disabled.
	CallerOf(ctx context.Context, principalID string) (resource.Caller, error)
	// SignIn authenticates a service principal by its secret and returns a directory token of the audience.
	SignIn(ctx context.Context, clientID, secret, audience string) (raw string, err error)
}

// Config is what New needs.
type Config struct {
	Store      store.Store    // required
	Depot      depot.Depot    // required; everything below "registry/" in it is this service's
	Keys       Keys           // required
	Principals Principals     // required
	Inner      resource.Inner // required: a mount reads from another repository
	// Audience says which audiences of directory tokens are good for registries: the resource manager's and the
	// registry's own. Required.
	Audience func(string) bool
	// SignInAudience is the audience that SignIn is asked for. Required.
	SignInAudience string
	Domain         string         // required, such as casemate.localhost
	Clock          resource.Clock // default: time.Now
	Log            *slog.Logger   // default: slog.Default()
}

// Service serves all registries. It is safe for concurrent use.
type Service struct {
	cfg    Config
	tokens *tokens

	wake   chan struct{} // holds one token while the sweeper has something to do
	flying flights
	gates  gates
	busy   sessions
	hashes hashes
}

// New makes the service. Run must be running for removed data to leave the disk.
func New(cfg Config) (*Service, error) {
	if cfg.Store == nil || cfg.Depot == nil || cfg.Keys == nil || cfg.Principals == nil || cfg.Inner == nil ||
		cfg.Audience == nil || cfg.SignInAudience == "" || cfg.Domain == "" {
		return nil, errors.New("configuring the registry service: only Clock and Log have defaults")
	}
	if cfg.Clock == nil {
		cfg.Clock = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	t, err := newTokens(cfg.Clock)
	if err != nil {
		return nil, err
	}
	return &Service{cfg: cfg, tokens: t, wake: make(chan struct{}, 1)}, nil
}

// plane is the first part of all keys.
const plane = "registry"

// liveKey is the record that a registry exists: registry/live/{ARM id} → incarnation, the random name below which its data
// lives. A registry that is made again under the same name has another incarnation and so none of the old data.
func liveKey(id resource.ID) string { return store.Key(plane, "live", id.Key()) }

// purgeKey marks an incarnation whose data the sweeper removes.
func purgeKey(incarnation string) string { return store.Key(plane, "purge", incarnation) }

// one is an open registry: what one request works on.
type one struct {
	arm    resource.ID
	driver *driver
	space  distribution.Namespace
	gate   *sync.RWMutex // read-locked from verifying a reference until it is written; locked to collect
}

// open opens the registry that a request is for.
func (s *Service) open(ctx context.Context, arm string) (*one, error) {
	id, err := resource.ParseID(arm)
	if err != nil {
		return nil, errNoRegistry("")
	}
	var incarnation string
	err = s.cfg.Store.View(ctx, func(r store.Reader) error {
		kv, err := r.Get(liveKey(id))
		incarnation = string(kv.Value)
		return err
	})
	if errors.Is(err, store.ErrNotFound) {
		return nil, errNoRegistry(id.Name())
	}
	if err != nil {
		return nil, fmt.Errorf("finding registry: %w", err)
	}
	h, err := s.cfg.Keys.Handle(ctx, id.String())
	if err != nil {
		return nil, s.publicError(id, err)
	}
	return s.openIncarnation(ctx, id, incarnation, h)
}

func (s *Service) openIncarnation(ctx context.Context, id resource.ID, incarnation string, h *envelope.Handle) (*one, error) {
	d := &driver{s: s, arm: id, incarnation: incarnation, handle: h}
	space, err := storage.NewRegistry(ctx, d, storage.EnableDelete, storage.EnableValidateImageIndexImagesExist, storage.ManifestURLsDenyRegexp(anyURL))
	if err != nil {
		return nil, fmt.Errorf("opening registry: %w", err)
	}
	return &one{arm: id, driver: d, space: space, gate: s.gates.of(incarnation)}, nil
}

// anyURL is where a manifest may not send clients for a layer: a registry that nodes trust serves all of its images itself.
var anyURL = regexp.MustCompile("")

// repositoryName is a name of the OCI Distribution Specification, "Pulling manifests". Docker's references also allow a host
// with a port in front, and capitals in it.
var repositoryName = regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$`)

// parseName reads the name of a repository, which comes from outside.
func parseName(name string) (reference.Named, error) {
	if !repositoryName.MatchString(name) {
		return nil, errName(name)
	}
	named, err := reference.WithName(name)
	if err != nil {
		return nil, errName(name)
	}
	return named, nil
}

// repository opens a repository.
func (o *one) repository(ctx context.Context, name string) (distribution.Repository, error) {
	named, err := parseName(name)
	if err != nil {
		return nil, err
	}
	return o.space.Repository(ctx, named)
}

// CreateRegistry makes room for a registry's data; idempotent. Its resource key must exist before it is used.
func (s *Service) CreateRegistry(ctx context.Context, id resource.ID) error {
	incarnation := newID()
	return s.cfg.Store.Update(ctx, func(t store.Txn) error {
		_, err := t.Get(liveKey(id))
		if errors.Is(err, store.ErrNotFound) {
			t.Put(liveKey(id), []byte(incarnation))
			return nil
		}
		return err
	})
}

// DestroyRegistry makes a registry's data unreachable at once and has the sweeper remove it; idempotent. The caller
// destroys the resource key.
func (s *Service) DestroyRegistry(ctx context.Context, id resource.ID) error {
	err := s.cfg.Store.Update(ctx, func(t store.Txn) error {
		kv, err := t.Get(liveKey(id))
		if errors.Is(err, store.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		t.Delete(liveKey(id))
		t.Put(purgeKey(string(kv.Value)), []byte("1"))
		return nil
	})
	if err != nil {
		return fmt.Errorf("destroying registry: %w", err)
	}
	s.sweepSoon()
	return nil
}

// Usage is how much a registry holds: the sealed bytes of its objects.
func (s *Service) Usage(ctx context.Context, id resource.ID) (bytes int64, err error) {
	err = s.cfg.Store.View(ctx, func(r store.Reader) error {
		bytes = 0
		kv, err := r.Get(liveKey(id))
		if errors.Is(err, store.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		for kv, err := range r.Scan(store.Prefix(plane, "object", string(kv.Value)), store.ScanOptions{}) {
			if err != nil {
				return err
			}
			bytes += sizeOf(kv.Value)
		}
		return nil
	})
	return bytes, err
}

// newID is a random name for depot objects and incarnations.
func newID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails, see crypto/rand
	return hex.EncodeToString(b[:])
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

// gates are the locks of registries, one for each incarnation that was opened in this process.
type gates struct {
	mu sync.Mutex
	m  map[string]*sync.RWMutex
}

func (g *gates) of(incarnation string) *sync.RWMutex {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.m == nil {
		g.m = map[string]*sync.RWMutex{}
	}
	if g.m[incarnation] == nil {
		g.m[incarnation] = &sync.RWMutex{}
	}
	return g.m[incarnation]
}

func (g *gates) forget(incarnation string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.m, incarnation)
}

// sessions are the uploads that a request is working on: one request at a time, so that what is verified is what is kept.
type sessions struct {
	mu sync.Mutex
	m  map[string]bool
}

func (b *sessions) enter(id string) (leave func(), ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.m[id] {
		return nil, false
	}
	if b.m == nil {
		b.m = map[string]bool{}
	}
	b.m[id] = true
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.m, id)
	}, true
}
