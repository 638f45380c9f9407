package identity

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"casemate.dev/resource"
	"casemate.dev/store"
)

// Sealer encrypts records; object binds a ciphertext to its place.
type Sealer interface {
	SealBytes(object string, plain []byte) ([]byte, error)
	OpenBytes(object string, sealed []byte) ([]byte, error)
}

// Config is what a Service needs.
type Config struct {
	Store  store.Store // required
	Sealer Sealer      // required
	// Authority turns a host name into the authority of URLs: the public port is appended where it is not 443. Required.
	Authority func(host string) string
	Domain    string         // required, such as casemate.localhost
	Clock     resource.Clock // default time.Now
	// PrincipalRemoved is told of each principal that is gone, so that its role assignments go too. Optional.
	PrincipalRemoved func(ctx context.Context, objectID string) error
	KeyLifetime      time.Duration // of a signing key; default 30 days
}

// Lifetimes of tokens and tolerance of clocks.
const (
	tokenLifetime     = time.Hour
	nodeTokenLifetime = 30 * time.Minute
	clockSkew         = 5 * time.Minute // for nbf and iat; expiry has none
)

// Service is the directory and the token authority. Its methods are safe for concurrent use.
type Service struct {
	cfg     Config
	urls    urls
	dir     atomic.Pointer[directory] // never nil
	keys    atomic.Pointer[keySet]    // never nil
	nodes   atomic.Pointer[Nodes]
	checked *tokenCache

	mu sync.Mutex // held by writers of directory and keys, from reading what they change to publishing it
}

// New returns a service that knows nobody and refuses everything until Bootstrap has read the store.
func New(cfg Config) (*Service, error) {
	if cfg.Store == nil || cfg.Sealer == nil || cfg.Authority == nil || cfg.Domain == "" {
		return nil, errors.New("identity needs a store, a sealer, an authority function and a domain")
	}
	if cfg.Clock == nil {
		cfg.Clock = time.Now
	}
	if cfg.KeyLifetime == 0 {
		cfg.KeyLifetime = 30 * 24 * time.Hour
	}
	s := &Service{cfg: cfg, urls: newURLs(cfg), checked: newTokenCache()}
	s.dir.Store(buildDirectory(nil, nil))
	s.keys.Store(&keySet{})
	return s, nil
}

// Administrator is the first principal of a tenant with its only secret, which is shown once and kept nowhere.
type Administrator struct {
	TenantID, ClientID, ObjectID, Secret string
}

// Bootstrap reads directory and signing keys. In an empty store it first creates the home tenant, whose principals are
// the ones that every plane serves, and its administrator. deliver gets the administrator's secret before anything is
// stored, and must have it on disk when it returns: a crash between the two makes a new administrator at the next start
// and locks nobody out. created says whether that happened; the administrator holds no role yet.
func (s *Service) Bootstrap(ctx context.Context, deliver func(Administrator) error) (created bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.loadLocked(ctx); err != nil {
		return false, err
	}
	if err := s.loadKeysLocked(ctx); err != nil {
		return false, err
	}
	if len(s.keys.Load().list) == 0 {
		if _, err := s.addKeyLocked(ctx, s.cfg.Clock()); err != nil {
			return false, err
		}
	}
	if s.dir.Load().home != "" {
		return false, nil
	}
	t, objects, admin, err := s.newTenant("Casemate", true)
	if err != nil {
		return false, err
	}
	if err := deliver(admin); err != nil {
		return false, fmt.Errorf("delivering the administrator's secret: %w", err)
	}
	return true, s.changeLocked(ctx, change{tenant: t, put: objects})
}

// HomeTenant is the tenant that the planes serve; "" before Bootstrap.
func (s *Service) HomeTenant() string { return s.dir.Load().home }

// CreateTenant makes another tenant with an administrator of its own. Its principals get tokens from its own endpoints;
// the planes of this installation belong to the home tenant and refuse them.
func (s *Service) CreateTenant(ctx context.Context, name string) (Administrator, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t, objects, admin, err := s.newTenant(name, false)
	if err != nil {
		return Administrator{}, err
	}
	return admin, s.changeLocked(ctx, change{tenant: t, put: objects})
}

func (s *Service) newTenant(name string, home bool) (*tenant, []*object, Administrator, error) {
	now := s.cfg.Clock().UTC()
	t := &tenant{ID: newGUID(), Name: name, Home: home, Created: now}
	app, sp := newApplication(t.ID, name+" administrator", now)
	plain, sec, err := newSecret("bootstrap", now, now.AddDate(100, 0, 0))
	if err != nil {
		return nil, nil, Administrator{}, err
	}
	app.Secrets = []secret{sec}
	return t, []*object{app, sp}, Administrator{TenantID: t.ID, ClientID: sp.App, ObjectID: sp.ID, Secret: plain}, nil
}

// Run rotates signing keys until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	tick := time.NewTicker(time.Minute)
	defer tick.Stop()
	for {
		if err := s.rotateDue(ctx); err != nil && ctx.Err() == nil {
			return fmt.Errorf("rotating signing keys: %w", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}
