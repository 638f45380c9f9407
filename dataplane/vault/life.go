package vault

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"casemate.dev/store"
)

// add stores v as the newest version of an object, making the object when there is none.
func (s *Service) add(ctx context.Context, vault Vault, k kind, name string, v *version) (object, error) {
	var o object
	err := s.update(ctx, vault, func(b bench) error {
		o = object{Name: name}
		if _, err := b.open(objectKey(vault, k, name), &o); err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
		if o.Deleted != nil {
			return deletedConflict(k, name)
		}
		if err := o.free(k, "set"); err != nil {
			return err
		}
		o.Current = v.ID
		if err := b.putVersion(k, o.Name, nil, v); err != nil {
			return err
		}
		b.schedule(k, &o, v)
		return b.putObject(k, o)
	})
	if err != nil {
		return o, err
	}
	s.stir()
	if k == keys && v.usable(s.now()) {
		s.cfg.Rotated(s.objectURL(vault, k, o.Name))
	}
	return o, nil
}

// amend changes one version (the current one when id is "") with fn and announces what that means for its users.
func (s *Service) amend(ctx context.Context, vault Vault, k kind, name, id string, fn func(*version) error) (object, version, error) {
	var o object
	var old, v version
	err := s.update(ctx, vault, func(b bench) error {
		var err error
		if o, old, err = b.live(k, name, id); err != nil {
			return err
		}
		if err := o.free(k, "update"); err != nil {
			return err
		}
		v = old
		if err := fn(&v); err != nil {
			return err
		}
		v.Updated = s.now().Unix()
		if err := b.putVersion(k, o.Name, &old, &v); err != nil || v.ID != o.Current {
			return err
		}
		b.schedule(k, &o, &v)
		return b.putObject(k, o)
	})
	if err != nil {
		if !refusal(err) && v.ID != "" && k == keys { // whether it was written is unknown: ask again
			s.cfg.Revoked(s.versionURL(vault, k, o.Name, v.ID))
		}
		return o, v, err
	}
	s.stir()
	if k == keys {
		s.announce(vault, o, &old, &v)
	}
	return o, v, nil
}

func (s *Service) announce(vault Vault, o object, old, v *version) {
	now := s.now()
	if !v.usable(now) || !slices.Equal(old.Key.Ops, v.Key.Ops) {
		s.cfg.Revoked(s.versionURL(vault, keys, o.Name, v.ID))
	}
	if !old.usable(now) && v.usable(now) && o.Current == v.ID {
		s.cfg.Rotated(s.objectURL(vault, keys, o.Name))
	}
}

// remove deletes an object so that it can be recovered until its purge date.
func (s *Service) remove(ctx context.Context, vault Vault, k kind, name string) (object, version, error) {
	var o object
	var v version
	err := s.update(ctx, vault, func(b bench) error {
		now := s.now()
		deleted := &deletion{At: now.Unix(), Purge: now.Add(time.Duration(vault.RetentionDays) * 24 * time.Hour).Unix()}
		for i, part := range partsOf(k) {
			po, pv, err := b.live(part, name, "")
			if err != nil {
				return err
			}
			if i == 0 {
				if err := po.free(k, "delete"); err != nil {
					return err
				}
				b.tx.Put(dueKey(deleted.Purge, vault, k, po.Name, ""), dueValue)
				o, v = po, pv
				o.Deleted = deleted
			}
			po.Deleted = deleted
			b.schedule(part, &po, &pv)
			if err := b.putObject(part, po); err != nil {
				return err
			}
		}
		return nil
	})
	if k != secrets && o.Name != "" && (err == nil || !refusal(err)) {
		s.cfg.Revoked(s.objectURL(vault, keys, o.Name))
	}
	if err == nil {
		s.stir()
	}
	return o, v, err
}

// recover takes a deletion back.
func (s *Service) recover(ctx context.Context, vault Vault, k kind, name string) (object, version, error) {
	var o object
	var v version
	err := s.update(ctx, vault, func(b bench) error {
		for i, part := range partsOf(k) {
			po, pv, err := b.deleted(part, name)
			if err != nil {
				return err
			}
			if i == 0 {
				if err := po.free(k, "recover"); err != nil {
					return err
				}
				b.tx.Delete(dueKey(po.Deleted.Purge, vault, k, po.Name, ""))
			}
			po.Deleted = nil
			b.schedule(part, &po, &pv)
			if err := b.putObject(part, po); err != nil {
				return err
			}
			if i == 0 {
				o, v = po, pv
			}
		}
		return nil
	})
	if err == nil {
		s.stir()
	}
	return o, v, err
}

// purge removes a deleted object and its versions for ever.
func (s *Service) purge(ctx context.Context, vault Vault, k kind, name string) error {
	if vault.PurgeProtection {
		return purgeProtected()
	}
	return s.update(ctx, vault, func(b bench) error {
		o, err := b.object(k, name)
		if err != nil {
			return err
		}
		if o.Deleted == nil {
			return notFound(k, name, "")
		}
		if err := o.free(k, "purge"); err != nil {
			return err
		}
		return b.eraseAll(k, name)
	})
}

// free refuses to change a certificate's key or secret by itself.
func (o object) free(k kind, op string) error {
	if o.Managed {
		return forbidden("ManagedByCertificate", "Operation %s is not allowed on the %s '%s': it belongs to the certificate of that name.", op, k.word, o.Name)
	}
	return nil
}

// eraseAll removes a deleted object with everything that lives and dies with it.
func (b bench) eraseAll(k kind, name string) error {
	for _, part := range partsOf(k) {
		o, err := b.object(part, name)
		if err != nil {
			return err
		}
		if o.Deleted == nil {
			return fmt.Errorf("purging %s: its %s is not deleted", k.word, part.word)
		}
		if err := b.erase(part, o); err != nil {
			return err
		}
	}
	if k == certificates {
		b.tx.Delete(pendingKey(b.vault, name))
	}
	return nil
}

// erase removes all records of a deleted object.
func (b bench) erase(k kind, o object) error {
	b.tx.Delete(dueKey(o.Deleted.Purge, b.vault, k, o.Name, ""))
	prefix := versionKey(b.vault, k, o.Name, "")
	for kv, err := range b.Scan(prefix, store.ScanOptions{}) {
		if err != nil {
			return err
		}
		var v version
		if err := b.decode(kv, &v); err != nil {
			return err
		}
		if v.Expires != nil {
			b.tx.Delete(dueKey(*v.Expires, b.vault, k, o.Name, v.ID))
		}
		b.tx.Delete(kv.Key)
	}
	b.tx.Delete(objectKey(b.vault, k, o.Name))
	return nil
}

// purgeBatch bounds the records that one transaction of Purge removes.
const purgeBatch = 1000

// Purge removes every record of a vault that is gone for ever. The vault's key may be destroyed already: nothing is
// opened. It may be called again after a failure.
func (s *Service) Purge(ctx context.Context, vault Vault) error {
	of := func(parts []string) bool { return parts[3] == vault.ID.Key() } // vault/due/{time}/{vault}/…
	if err := s.sweep(ctx, store.Prefix("vault", "due"), of); err != nil {
		return err
	}
	if err := s.sweep(ctx, store.Prefix("vault", "pending", vault.ID.Key()), nil); err != nil {
		return err
	}
	for _, k := range []kind{keys, secrets, certificates} {
		for _, family := range []string{k.word + "version", k.word} {
			if err := s.sweep(ctx, store.Prefix("vault", family, vault.ID.Key()), nil); err != nil {
				return err
			}
		}
	}
	return nil
}

// sweep deletes the keys with a prefix that match (all for nil), some at a time.
func (s *Service) sweep(ctx context.Context, prefix string, match func(parts []string) bool) error {
	for after, more := "", true; more; {
		var n int
		var next string
		err := s.cfg.Store.Update(ctx, func(tx store.Txn) error {
			n, next = 0, after
			for kv, err := range tx.Scan(prefix, store.ScanOptions{After: after, Limit: purgeBatch, KeysOnly: true}) {
				if err != nil {
					return err
				}
				n, next = n+1, kv.Key
				if match != nil {
					if parts, err := store.SplitKey(kv.Key); err != nil || !match(parts) {
						continue
					}
				}
				tx.Delete(kv.Key)
			}
			return nil
		})
		if err != nil {
			return err
		}
		after, more = next, n == purgeBatch
	}
	return nil
}
