package vault

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"casemate.dev/resource"
	"casemate.dev/store"
)

// Sealer seals the records of one vault; an envelope handle is one.
type Sealer interface {
	SealBytes(object string, plain []byte) ([]byte, error)
	OpenBytes(object string, sealed []byte) ([]byte, error)
}

// Principals finds the caller that a resource's identity is, as of now. An unknown principal is a *resource.Error with
// status 404; other errors are outages.
type Principals interface {
	CallerOf(ctx context.Context, principalID string) (resource.Caller, error)
}

// Config is what a Service needs; every field without a default is required.
type Config struct {
	Store store.Store

	// Handle returns the sealer of a vault's records, by the vault's resource ID.
	Handle func(ctx context.Context, vaultID string) (Sealer, error)

	Principals Principals
	Inner      resource.Inner

	// Domain is the platform's domain, such as casemate.localhost, without a port.
	Domain string

	// Authority appends the public port to a host name where it is not 443.
	Authority func(host string) string

	// Login is the URL of the token service, such as https://login.casemate.localhost:8443; Tenant the tenant that a
	// challenge names when the vault does not say.
	Login, Tenant string

	// Revoked is told the URL of a version, a key or a whole vault whose state changed such that whoever uses it must ask
	// again. It is called after the change is durable and before the call that made it returns. It must not call the
	// Service. Default: nobody listens.
	Revoked func(keyURL string)

	// Rotated is told the URL without version of a key whose newest version changed and is usable. It must return at once.
	// Default: nobody listens.
	Rotated func(keyURL string)

	// Issuer signs certificates of the issuer Casemate. Default: that issuer is refused.
	Issuer Issuer

	// Backups returns the sealer of backups, one of the platform's own keys. Default: backups are refused.
	Backups func(ctx context.Context) (Sealer, error)

	// Event is told what happens to objects by itself, at least once. It must return at once. Default: nobody listens;
	// events are logged.
	Event func(Event)

	// Clock defaults to time.Now.
	Clock resource.Clock

	// Logger defaults to the default logger. Names of vaults and keys may appear in it, values and key material never.
	Logger *slog.Logger
}

// Vault is what the data plane knows of a vault.
type Vault struct {
	ID              resource.ID
	Tenant          string
	PurgeProtection bool
	RetentionDays   int // 7 to 90
	// TrustedServices says that the platform itself may use the vault's keys for resources that are encrypted with them:
	// the vault's firewall is open or lets trusted services through.
	TrustedServices bool
}

// label is the vault's host label.
func (v Vault) label() string { return strings.ToLower(v.ID.Name()) }

// Service is the data plane of all vaults. Its methods may be called concurrently.
type Service struct {
	cfg   Config
	cache *cache
	wake  chan struct{} // wakes Run when something falls due earlier than it knew

	parsing chan struct{} // holds a place for the one import that is being parsed

	mu     sync.Mutex // serialises changes of vaults
	vaults atomic.Pointer[directory]
}

// directory is an immutable picture of the vaults that exist.
type directory struct {
	byLabel map[string]Vault
	byID    map[string]Vault // by resource.ID.Key
}

// New makes a Service that knows no vault yet.
func New(cfg Config) (*Service, error) {
	var missing []error
	for name, absent := range map[string]bool{
		"Store": cfg.Store == nil, "Handle": cfg.Handle == nil, "Principals": cfg.Principals == nil, "Inner": cfg.Inner == nil,
		"Domain": cfg.Domain == "", "Authority": cfg.Authority == nil, "Login": cfg.Login == "", "Tenant": cfg.Tenant == "",
	} {
		if absent {
			missing = append(missing, fmt.Errorf("%s is required", name))
		}
	}
	if err := errors.Join(missing...); err != nil {
		return nil, fmt.Errorf("configuring key vaults: %w", err)
	}
	if cfg.Revoked == nil {
		cfg.Revoked = func(string) {}
	}
	if cfg.Rotated == nil {
		cfg.Rotated = func(string) {}
	}
	if cfg.Event == nil {
		cfg.Event = func(Event) {}
	}
	if cfg.Clock == nil {
		cfg.Clock = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	s := &Service{cfg: cfg, cache: newCache(), wake: make(chan struct{}, 1), parsing: make(chan struct{}, 1)}
	s.vaults.Store(&directory{byLabel: map[string]Vault{}, byID: map[string]Vault{}})
	return s, nil
}

// Set makes a vault reachable, or changes what is known of it. When the change shuts the platform out, the vault's keys are
// announced as revoked before Set returns.
func (s *Service) Set(v Vault) {
	s.mu.Lock()
	old, had := s.vaults.Load().byID[v.ID.Key()]
	s.change(func(d *directory) {
		d.byLabel[v.label()], d.byID[v.ID.Key()] = v, v
	})
	s.mu.Unlock()
	if had && old.TrustedServices && !v.TrustedServices {
		s.cfg.Revoked(s.URL(v.label()))
	}
	s.stir() // what fell due while the vault was away
}

// Forget makes a vault unreachable, as for one that was deleted and can be recovered: its keys are announced as revoked
// before Forget returns. Its records stay.
func (s *Service) Forget(id resource.ID) {
	s.mu.Lock()
	if v, had := s.vaults.Load().byID[id.Key()]; had {
		s.change(func(d *directory) {
			delete(d.byLabel, v.label())
			delete(d.byID, id.Key())
		})
	}
	s.mu.Unlock()
	s.cfg.Revoked(s.URL(id.Name()))
}

func (s *Service) change(fn func(*directory)) {
	old := s.vaults.Load()
	next := &directory{byLabel: maps.Clone(old.byLabel), byID: maps.Clone(old.byID)}
	fn(next)
	s.vaults.Store(next)
}

// ResourceOf finds the resource ID of the vault with a host label (the first label of its host name).
func (s *Service) ResourceOf(label string) (string, bool) {
	v, ok := s.vaults.Load().byLabel[strings.ToLower(label)]
	return v.ID.String(), ok
}

// URL is the base URL of the vault with a name, without a trailing slash.
func (s *Service) URL(name string) string {
	return "https://" + s.cfg.Authority(strings.ToLower(name)+".vault."+s.cfg.Domain)
}

// Challenge is the WWW-Authenticate header of a request without a usable token. Clients take tenant and audience from
// it, and check that the audience is a parent domain of the vault's host name, port included.
func (s *Service) Challenge(r *resource.Request) string {
	tenant := s.cfg.Tenant
	if v, ok := s.vaults.Load().byLabel[strings.ToLower(r.Host)]; ok && v.Tenant != "" {
		tenant = v.Tenant
	}
	return fmt.Sprintf(`Bearer authorization="%s/%s", resource="%s"`, strings.TrimSuffix(s.cfg.Login, "/"), tenant, s.Audience())
}

// Audience is the audience that tokens for vaults have.
func (s *Service) Audience() string { return "https://" + s.cfg.Authority("vault."+s.cfg.Domain) }

func (s *Service) now() time.Time { return s.cfg.Clock() }

// vaultOf finds the vault that a request is for.
func (s *Service) vaultOf(r *resource.Request) (Vault, error) {
	id, err := resource.ParseID(r.Resource)
	if err == nil && r.Resource != "" {
		if v, ok := s.vaults.Load().byID[id.Key()]; ok {
			return v, nil
		}
	}
	return Vault{}, resource.Errorf(404, "VaultNotFound", "The key vault '%s' was not found. It may have been deleted; a deleted vault can be recovered.", r.Host)
}
