package blob

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"casemate.dev/store"
)

const (
	sweepBatch = 1000               // records in one transaction of the sweeper
	uploadLife = 7 * 24 * time.Hour // how long uncommitted blocks stay ("Put Block", Remarks)
	sweepEvery = time.Hour          // how often old uploads are looked for
	sweepRetry = 10 * time.Second   // pause after a fault, and while readers hold something back
)

// sweepSoon tells Run that there is something to remove.
func (s *Service) sweepSoon() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Run removes from the disk what nothing refers to: contents of blobs that were replaced or deleted, containers and
// accounts, uncommitted blocks older than a week, and, once at the start, objects that a crash left between the depot's
// commit and the store's. It blocks until ctx ends. It needs no key.
func (s *Service) Run(ctx context.Context) error {
	if err := s.sweepOrphans(ctx); err != nil && ctx.Err() == nil {
		s.log.Warn("sweeping orphans", "error", err)
	}
	uploads := time.NewTicker(sweepEvery)
	defer uploads.Stop()
	again := time.NewTimer(0)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.wake:
		case <-again.C:
		case <-uploads.C:
			if err := s.sweepUploads(ctx); err != nil && ctx.Err() == nil {
				s.log.Warn("sweeping uploads", "error", err)
			}
		}
		held, err := s.Sweep(ctx)
		if err != nil && ctx.Err() == nil {
			s.log.Warn("sweeping", "error", err)
		}
		if held || err != nil {
			again.Reset(sweepRetry)
		}
	}
}

// Sweep removes everything that may be removed now. held says that readers hold something back.
func (s *Service) Sweep(ctx context.Context) (held bool, err error) {
	if err := s.sweepPurges(ctx); err != nil {
		return false, err
	}
	return s.sweepTrash(ctx)
}

// scanKeys reads up to sweepBatch keys with a prefix, after the key after.
func (s *Service) scanKeys(ctx context.Context, prefix, after string) (keys []string, err error) {
	err = s.store.View(ctx, func(r store.Reader) error {
		keys = keys[:0]
		for kv, err := range r.Scan(prefix, store.ScanOptions{After: after, Limit: sweepBatch, KeysOnly: true}) {
			if err != nil {
				return err
			}
			keys = append(keys, kv.Key)
		}
		return nil
	})
	return keys, err
}

// drop deletes keys in one transaction.
func (s *Service) drop(ctx context.Context, keys ...string) error {
	if len(keys) == 0 {
		return nil
	}
	return s.store.Update(ctx, func(t store.Txn) error {
		for _, k := range keys {
			t.Delete(k)
		}
		return nil
	})
}

// sweepTrash removes objects from the depot and then from the trash.
func (s *Service) sweepTrash(ctx context.Context) (held bool, err error) {
	for after := ""; ; {
		trash, err := s.trash(ctx, after)
		if err != nil || len(trash) == 0 {
			return held, err
		}
		pinned := s.pins.snapshot() // after the trash was listed, see pins
		var done []string
		for _, item := range trash {
			if pinned[item.lineage] {
				held = true
				continue
			}
			if err := s.depot.Remove(ctx, item.object); err != nil {
				return held, fmt.Errorf("removing object: %w", err)
			}
			done = append(done, item.key)
		}
		if err := s.drop(ctx, done...); err != nil {
			return held, fmt.Errorf("clearing trash: %w", err)
		}
		after = trash[len(trash)-1].key
	}
}

type trashItem struct {
	key, object, lineage string
}

func (s *Service) trash(ctx context.Context, after string) (out []trashItem, err error) {
	err = s.store.View(ctx, func(r store.Reader) error {
		out = out[:0]
		for kv, err := range r.Scan(store.Prefix(plane, "trash"), store.ScanOptions{After: after, Limit: sweepBatch}) {
			if err != nil {
				return err
			}
			parts, err := store.SplitKey(kv.Key)
			if err != nil || len(parts) != 5 {
				return fmt.Errorf("trash key %q has another form", kv.Key)
			}
			out = append(out, trashItem{key: kv.Key, object: depotKey(parts[2], parts[3], parts[4]), lineage: string(kv.Value)})
		}
		return nil
	})
	return out, err
}

// sweepPurges removes containers and accounts that were deleted.
func (s *Service) sweepPurges(ctx context.Context) error {
	purges, err := s.scanKeys(ctx, store.Prefix(plane, "purge"), "")
	if err != nil {
		return err
	}
	for _, key := range purges {
		parts, err := store.SplitKey(key)
		if err != nil || len(parts) != 4 {
			return fmt.Errorf("purge key %q has another form", key)
		}
		if err := s.purge(ctx, parts[2], parts[3]); err != nil {
			return fmt.Errorf("purging: %w", err)
		}
		if err := s.drop(ctx, key); err != nil {
			return err
		}
	}
	return nil
}

// purge removes all below an account's incarnation, or below one container of it. Containers go first: with its record
// gone, a transaction that is under way for a container no longer commits anything there.
func (s *Service) purge(ctx context.Context, a, c string) error {
	below := []string{a}
	kinds := []string{"blob", "snapshot", "content", "block", "upload"}
	if c != "" {
		below = append(below, c)
	} else {
		kinds = append([]string{"container"}, kinds...)
	}
	for _, kind := range kinds {
		if err := s.dropAll(ctx, store.Prefix(append([]string{plane, kind}, below...)...)); err != nil {
			return err
		}
	}
	if c == "" {
		if err := s.drop(ctx, serviceKey(a)); err != nil {
			return err
		}
	}
	for _, kind := range []string{"object", "trash"} {
		if err := s.purgeObjects(ctx, store.Prefix(append([]string{plane, kind}, below...)...)); err != nil {
			return err
		}
	}
	return nil
}

func (s *Service) dropAll(ctx context.Context, prefix string) error {
	for {
		keys, err := s.scanKeys(ctx, prefix, "")
		if err != nil || len(keys) == 0 {
			return err
		}
		if err := s.drop(ctx, keys...); err != nil {
			return err
		}
	}
}

// purgeObjects removes the depot objects that the keys with the prefix name, and then the keys.
func (s *Service) purgeObjects(ctx context.Context, prefix string) error {
	for {
		keys, err := s.scanKeys(ctx, prefix, "")
		if err != nil || len(keys) == 0 {
			return err
		}
		for _, k := range keys {
			parts, err := store.SplitKey(k)
			if err != nil || len(parts) != 5 {
				return fmt.Errorf("object key %q has another form", k)
			}
			if err := s.depot.Remove(ctx, depotKey(parts[2], parts[3], parts[4])); err != nil {
				return err
			}
		}
		if err := s.drop(ctx, keys...); err != nil {
			return err
		}
	}
}

// sweepUploads discards uncommitted blocks of blobs to which none was added for a week.
func (s *Service) sweepUploads(ctx context.Context) error {
	old := s.now().Add(-uploadLife)
	for after := ""; ; {
		keys, err := s.scanKeys(ctx, store.Prefix(plane, "upload"), after)
		if err != nil || len(keys) == 0 {
			return err
		}
		for _, k := range keys {
			parts, err := store.SplitKey(k)
			if err != nil || len(parts) != 5 {
				return fmt.Errorf("upload key %q has another form", k)
			}
			if err := s.expire(ctx, parts[2], parts[3], parts[4], old); err != nil {
				return err
			}
		}
		after = keys[len(keys)-1]
	}
}

func (s *Service) expire(ctx context.Context, a, c, hash string, old time.Time) error {
	err := s.store.Update(ctx, func(t store.Txn) error {
		var up uploadRecord
		if ok, err := loadPlain(t, uploadKey(a, c, hash), &up); err != nil || !ok || up.Touched.After(old) {
			return err
		}
		acct := &account{id: a}
		var blocks []string
		for kv, err := range t.Scan(blockPrefix(a, c, hash), store.ScanOptions{}) {
			if err != nil {
				return err
			}
			blocks = append(blocks, kv.Key)
		}
		for _, k := range blocks {
			var p part
			if _, err := loadPlain(t, k, &p); err != nil {
				return err
			}
			t.Delete(k)
			if err := acct.discard(t, c, p.Object, ""); err != nil {
				return err
			}
		}
		t.Delete(uploadKey(a, c, hash))
		return nil
	})
	s.sweepSoon()
	return err
}

// sweepOrphans removes objects to which no record refers. An object is in flight first and in the store afterwards, so
// asking in this order misses none that lives.
func (s *Service) sweepOrphans(ctx context.Context) error {
	for key, err := range s.depot.List(ctx, plane+"/") {
		if err != nil {
			return fmt.Errorf("listing objects: %w", err)
		}
		parts := strings.Split(key, "/")
		if len(parts) != 4 || s.flying.has(key) {
			continue
		}
		known := false
		err := s.store.View(ctx, func(r store.Reader) error {
			for _, k := range []string{objectKey(parts[1], parts[2], parts[3]), trashKey(parts[1], parts[2], parts[3])} {
				if _, err := r.Get(k); err == nil {
					known = true
				} else if !errors.Is(err, store.ErrNotFound) {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		if !known {
			if err := s.depot.Remove(ctx, key); err != nil {
				return fmt.Errorf("removing orphan: %w", err)
			}
		}
	}
	return nil
}
