package keyvault

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"sync"
	"time"

	"casemate.dev/dataplane/vault"
	"casemate.dev/envelope"
	"casemate.dev/resource"
	"casemate.dev/store"
)

// typeName is the type that this provider declares.
const typeName = "Microsoft.KeyVault/vaults"

// apiVersions are those that clients are known to send, newest first.
func apiVersions() []string {
	return []string{"2026-02-01", "2025-05-01", "2024-11-01", "2023-07-01", "2023-02-01", "2022-11-01", "2022-07-01", "2021-10-01",
		"2021-06-01-preview", "2020-04-01-preview", "2019-09-01", "2018-02-14", "2016-10-01", "2015-06-01"}
}

// Keys makes and destroys the resource keys of vaults; *envelope.Keys does.
type Keys interface {
	Create(ctx context.Context, resourceID string, ref *envelope.KeyRef) error
	Destroy(ctx context.Context, resourceID string) error
}

// Plane is the data plane; *vault.Service is.
type Plane interface {
	Set(v vault.Vault)
	Forget(id resource.ID)
	Purge(ctx context.Context, v vault.Vault) error
	URL(name string) string
}

// Config is what a Provider needs; every field without a default is required.
type Config struct {
	Store  store.Store
	Keys   Keys
	Plane  Plane
	Tenant string // the tenant that vaults belong to
	// InUse refuses the deletion of a vault that something stands on, with *resource.Error 409; optional.
	InUse  func(ctx context.Context, id resource.ID) error
	Clock  resource.Clock // default: time.Now
	Logger *slog.Logger   // default: the default logger
}

// Provider is safe for concurrent use.
type Provider struct {
	cfg  Config
	wake chan struct{} // wakes Run when a vault was deleted

	mu    sync.RWMutex
	names map[string]reservation // by lower-case name; equal to the store's records
}

// New makes a Provider. Call Load before control/operation loads its documents.
func New(cfg Config) (*Provider, error) {
	if cfg.Store == nil || cfg.Keys == nil || cfg.Plane == nil || cfg.Tenant == "" {
		return nil, errors.New("configuring the key vault provider: Store, Keys, Plane and Tenant are required")
	}
	if cfg.Clock == nil {
		cfg.Clock = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	return &Provider{cfg: cfg, wake: make(chan struct{}, 1), names: map[string]reservation{}}, nil
}

// Types declares the vaults.
func (p *Provider) Types() []resource.Type {
	return []resource.Type{{
		Name: typeName, Level: resource.AtResourceGroup, APIVersions: apiVersions(), Tracked: true, Created: 201,
		NamePattern: regexp.MustCompile(`^[a-zA-Z][a-zA-Z0-9-]{1,22}[a-zA-Z0-9]$`),
		NameRule:    "A vault's name has 3 to 24 letters, digits and single dashes, begins with a letter and ends with a letter or digit",
		Validate:    p.validate, Reconcile: p.reconcile, Remove: p.remove, MayRemove: p.mayRemove,
	}}
}

func (p *Provider) mayRemove(ctx context.Context, d *resource.Document) error {
	if p.cfg.InUse == nil {
		return nil
	}
	return p.cfg.InUse(ctx, d.ID)
}

// Observe tells the data plane of the vaults that exist when the process starts, and of every change after that. Register
// it for Microsoft.KeyVault/vaults.
func (p *Provider) Observe(_ context.Context, _, d *resource.Document) {
	if d == nil || d.State == resource.StateCreating || d.State == resource.StateDeleting {
		return // not yet, or no longer: reconcile and remove say when
	}
	p.mu.RLock()
	rec, ok := p.names[label(d.ID)]
	p.mu.RUnlock()
	if ok && rec.isOf(d.ID) && rec.Ready && rec.Deleted == nil {
		p.cfg.Plane.Set(planeView(d))
	}
}

// reconcile reserves the name, makes the resource key, and opens the vault. A reservation that its own deletion left is
// taken back: the vault is recovered.
func (p *Provider) reconcile(ctx context.Context, d *resource.Document) error {
	if err := p.reserve(ctx, d.ID); err != nil {
		return err
	}
	if err := p.cfg.Keys.Create(ctx, d.ID.String(), nil); err != nil {
		return fmt.Errorf("making the key of %s: %w", d.ID, err)
	}
	if err := p.open(ctx, d.ID); err != nil {
		return err
	}
	p.cfg.Plane.Set(planeView(d))
	return nil
}

// remove deletes the vault so that it can be recovered: the data plane forgets it, and thereby revokes its keys, before the
// client hears of it. A vault that was never opened leaves nothing behind.
func (p *Provider) remove(ctx context.Context, d *resource.Document) error {
	opened, err := p.bury(ctx, d)
	if err != nil {
		return err
	}
	if !opened {
		return p.abandon(ctx, d.ID)
	}
	p.cfg.Plane.Forget(d.ID)
	p.stir()
	return nil
}

// abandon undoes a creation that never opened the vault. A name that another vault has stays its own.
func (p *Provider) abandon(ctx context.Context, id resource.ID) error {
	p.mu.RLock()
	rec, ok := p.names[label(id)]
	p.mu.RUnlock()
	if !ok || !rec.isOf(id) {
		return nil
	}
	if err := p.cfg.Keys.Destroy(ctx, id.String()); err != nil {
		return fmt.Errorf("destroying the key of %s: %w", id, err)
	}
	return p.release(ctx, id)
}

// Run purges deleted vaults at the end of their retention and finishes purges that a crash interrupted. It returns when ctx
// ends.
func (p *Provider) Run(ctx context.Context) error {
	for {
		wait := p.settle(ctx)
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-p.wake:
			timer.Stop()
		case <-timer.C:
		}
	}
}

func (p *Provider) stir() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// Pauses of Run.
const (
	settleRest  = time.Hour
	settleRetry = 10 * time.Second
)

// settle purges what is due and says when to look again.
func (p *Provider) settle(ctx context.Context) time.Duration {
	wait := settleRest
	for _, rec := range p.deletedVaults("") {
		left := time.Unix(rec.Deleted.Purge, 0).Sub(p.cfg.Clock())
		if left > 0 && !rec.Deleted.Purging {
			wait = min(wait, left)
			continue
		}
		if err := p.purge(ctx, rec); err != nil {
			p.cfg.Logger.Error("purging a deleted key vault", "id", rec.ID, "error", err)
			wait = min(wait, settleRetry)
		}
	}
	return wait
}

// purge destroys a deleted vault for ever: key first, then records, then the name is free. It may be called again.
func (p *Provider) purge(ctx context.Context, rec reservation) error {
	id, err := resource.ParseID(rec.ID)
	if err != nil {
		return fmt.Errorf("purging a key vault: %w", err)
	}
	if err := p.condemn(ctx, id); err != nil {
		return err
	}
	if err := p.cfg.Keys.Destroy(ctx, rec.ID); err != nil {
		return fmt.Errorf("destroying the key of %s: %w", id, err)
	}
	if err := p.cfg.Plane.Purge(ctx, vault.Vault{ID: id}); err != nil {
		return fmt.Errorf("purging the records of %s: %w", id, err)
	}
	return p.release(ctx, id)
}
