package keyvault

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"casemate.dev/resource"
	"casemate.dev/store"
)

// reservation is the record that makes a vault's name its own over all tenants, from before the vault is made until it is
// purged, and that remembers a deleted vault:
//
//	keyvault/name/{lower-case name}   reservation
//
// It holds what the management plane shows, no key, no secret and no name of either.
type reservation struct {
	ID      string   `json:"id"`
	Ready   bool     `json:"ready"` // the vault was opened once: its deletion can be taken back
	Deleted *deleted `json:"deleted,omitempty"`
}

// deleted is a vault between its deletion and its purge; times are Unix seconds.
type deleted struct {
	At      int64          `json:"at"`
	Purge   int64          `json:"purge"`
	Purging bool           `json:"purging"` // past recovery
	Body    map[string]any `json:"body"`    // what recovery brings back
}

func label(id resource.ID) string { return strings.ToLower(id.Name()) }

func (r reservation) isOf(id resource.ID) bool { return strings.EqualFold(r.ID, id.String()) }

// doc is the body of a deleted vault as a document, for its accessors.
func (r reservation) doc() *resource.Document {
	id, _ := resource.ParseID(r.ID) // a malformed one reads as the tenant, which has nothing
	return &resource.Document{ID: id, Body: r.Deleted.Body}
}

func nameKey(label string) string { return store.Key("keyvault", "name", label) }

// Load reads the reservations into memory.
func (p *Provider) Load(ctx context.Context) error {
	return p.cfg.Store.View(ctx, func(r store.Reader) error {
		p.mu.Lock()
		defer p.mu.Unlock()
		for kv, err := range r.Scan(store.Prefix("keyvault", "name"), store.ScanOptions{}) {
			if err != nil {
				return fmt.Errorf("reading the names of key vaults: %w", err)
			}
			rec, err := decodeReservation(kv)
			if err != nil {
				return err
			}
			id, err := resource.ParseID(rec.ID)
			if err != nil {
				return fmt.Errorf("reading the names of key vaults: %w", err)
			}
			p.names[label(id)] = *rec
		}
		return nil
	})
}

func decodeReservation(kv store.KV) (*reservation, error) {
	var rec reservation
	if err := json.Unmarshal(kv.Value, &rec); err != nil {
		return nil, fmt.Errorf("decoding the reservation of a key vault's name: %w", err)
	}
	return &rec, nil
}

// change runs fn on the reservation of id's name (nil: there is none) in a transaction and brings memory up to it. fn returns
// what the reservation becomes; it must not modify its argument.
func (p *Provider) change(ctx context.Context, id resource.ID, fn func(*reservation) (*reservation, error)) error {
	var next *reservation
	p.mu.Lock() // changes reach memory in the order in which they became durable
	defer p.mu.Unlock()
	err := p.cfg.Store.Update(ctx, func(tx store.Txn) error {
		var old *reservation
		kv, err := tx.Get(nameKey(label(id)))
		switch {
		case errors.Is(err, store.ErrNotFound):
		case err != nil:
			return err
		default:
			if old, err = decodeReservation(kv); err != nil {
				return err
			}
		}
		if next, err = fn(old); err != nil {
			return err
		}
		if next == nil {
			tx.Delete(nameKey(label(id)))
			return nil
		}
		b, err := json.Marshal(next)
		if err != nil {
			return err
		}
		tx.Put(nameKey(label(id)), b)
		return nil
	})
	if err != nil {
		return err
	}
	if next == nil {
		delete(p.names, label(id))
	} else {
		p.names[label(id)] = *next
	}
	return nil
}

// reserve takes the name for id.
func (p *Provider) reserve(ctx context.Context, id resource.ID) error {
	return p.change(ctx, id, func(old *reservation) (*reservation, error) {
		if old == nil {
			return &reservation{ID: id.String()}, nil
		}
		if !old.isOf(id) || old.Deleted != nil && old.Deleted.Purging {
			return nil, alreadyExists(id.Name())
		}
		return old, nil
	})
}

// open marks the vault as existing; a deletion is taken back.
func (p *Provider) open(ctx context.Context, id resource.ID) error {
	return p.change(ctx, id, func(old *reservation) (*reservation, error) {
		if old == nil || !old.isOf(id) || old.Deleted != nil && old.Deleted.Purging {
			return nil, alreadyExists(id.Name())
		}
		return &reservation{ID: old.ID, Ready: true}, nil
	})
}

// bury marks the vault as deleted; opened is false when there was nothing to bury.
func (p *Provider) bury(ctx context.Context, d *resource.Document) (opened bool, err error) {
	days := planeView(d).RetentionDays
	err = p.change(ctx, d.ID, func(old *reservation) (*reservation, error) {
		opened = old != nil && old.isOf(d.ID) && old.Ready
		if !opened || old.Deleted != nil {
			return old, nil
		}
		now := p.cfg.Clock()
		return &reservation{ID: d.ID.String(), Ready: true, Deleted: &deleted{
			At: now.Unix(), Purge: now.Add(time.Duration(days) * 24 * time.Hour).Unix(), Body: d.Clone().Body,
		}}, nil
	})
	return opened, err
}

// condemn puts a deleted vault past recovery.
func (p *Provider) condemn(ctx context.Context, id resource.ID) error {
	return p.change(ctx, id, func(old *reservation) (*reservation, error) {
		if old == nil || !old.isOf(id) || old.Deleted == nil {
			return nil, deletedNotFound(id.Name())
		}
		gone := *old.Deleted
		gone.Purging = true
		return &reservation{ID: old.ID, Ready: true, Deleted: &gone}, nil
	})
}

// release frees the name.
func (p *Provider) release(ctx context.Context, id resource.ID) error {
	return p.change(ctx, id, func(old *reservation) (*reservation, error) {
		if old != nil && !old.isOf(id) {
			return old, nil
		}
		return nil, nil
	})
}

// lookup finds who has a name.
func (p *Provider) lookup(name string) (reservation, bool) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	rec, ok := p.names[strings.ToLower(name)]
	return rec, ok
}

// deletedVaults lists the deleted vaults of a subscription ("" for all) in order of names.
func (p *Provider) deletedVaults(subscription string) []reservation {
	p.mu.RLock()
	defer p.mu.RUnlock()
	var out []reservation
	for _, name := range slices.Sorted(maps.Keys(p.names)) {
		rec := p.names[name]
		if rec.Deleted != nil && (subscription == "" || strings.EqualFold(rec.doc().ID.Subscription(), subscription)) {
			out = append(out, rec)
		}
	}
	return out
}

func alreadyExists(name string) *resource.Error {
	return resource.Errorf(http.StatusConflict, "VaultAlreadyExists",
		"The vault name '%s' is already in use. Vault names are globally unique so it is possible that the name is already taken. If you are sure that the vault name was not taken then it is possible that a vault with the same name was recently deleted but not purged after being placed in a recoverable state. Choose another name, or recover or purge the deleted vault.", name)
}

func deletedNotFound(name string) *resource.Error {
	return resource.Errorf(http.StatusNotFound, "DeletedVaultNotFound", "The specified deleted vault '%s' does not exist.", name)
}
