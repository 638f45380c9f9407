package registry

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"casemate.dev/resource"
	"casemate.dev/store"
)

const (
	sweepBatch = 1000           // records in one transaction of the sweeper
	uploadLife = 24 * time.Hour // how long an upload may rest
	sweepEvery = time.Hour      // how often abandoned uploads are looked for
	sweepRetry = 10 * time.Second
)

// sweepSoon tells Run that there is something to remove.
func (s *Service) sweepSoon() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Run removes from the disk what nothing refers to: contents that were replaced or deleted, registries, uploads to which
// nothing was added for a day, and, once at the start, objects that a crash left between the depot's commit and the store's.
// It blocks until ctx ends. Only for uploads does it need a key; those of a revoked one wait.
func (s *Service) Run(ctx context.Context) error {
	if err := s.sweepOrphans(ctx); err != nil && ctx.Err() == nil {
		s.cfg.Log.Warn("sweeping orphans", "error", err)
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
			if err := s.SweepUploads(ctx); err != nil && ctx.Err() == nil {
				s.cfg.Log.Warn("sweeping uploads", "error", err)
			}
		}
		if err := s.Sweep(ctx); err != nil && ctx.Err() == nil {
			s.cfg.Log.Warn("sweeping", "error", err)
			again.Reset(sweepRetry)
		}
	}
}

// Sweep removes everything that may be removed now.
func (s *Service) Sweep(ctx context.Context) error {
	purges, err := s.scanKeys(ctx, store.Prefix(plane, "purge"))
	if err != nil {
		return err
	}
	for _, key := range purges {
		if err := s.purge(ctx, key); err != nil {
			return fmt.Errorf("purging registry: %w", err)
		}
	}
	return s.removeObjects(ctx, store.Prefix(plane, "trash"))
}

// purge removes everything of an incarnation.
func (s *Service) purge(ctx context.Context, key string) error {
	parts, err := store.SplitKey(key)
	if err != nil || len(parts) != 3 {
		return fmt.Errorf("purge key %q has another form", key)
	}
	incarnation := parts[2]
	for {
		keys, err := s.scanKeys(ctx, store.Prefix(plane, "file", incarnation))
		if err != nil {
			return err
		}
		if len(keys) == 0 {
			break
		}
		if err := s.drop(ctx, keys); err != nil {
			return err
		}
	}
	for _, kind := range []string{"object", "trash"} {
		if err := s.removeObjects(ctx, store.Prefix(plane, kind, incarnation)); err != nil {
			return err
		}
	}
	s.gates.forget(incarnation)
	return s.drop(ctx, []string{key})
}

// removeObjects removes from the depot what the keys with the prefix name, and then the keys. Whoever still reads an object
// goes on reading it: the depot keeps open ones.
func (s *Service) removeObjects(ctx context.Context, prefix string) error {
	for {
		keys, err := s.scanKeys(ctx, prefix)
		if err != nil || len(keys) == 0 {
			return err
		}
		for _, k := range keys {
			parts, err := store.SplitKey(k)
			if err != nil || len(parts) != 4 {
				return fmt.Errorf("object key %q has another form", k)
			}
			if err := s.cfg.Depot.Remove(ctx, depotKey(parts[2], parts[3])); err != nil {
				return fmt.Errorf("removing object: %w", err)
			}
		}
		if err := s.drop(ctx, keys); err != nil {
			return err
		}
	}
}

func (s *Service) scanKeys(ctx context.Context, prefix string) (keys []string, err error) {
	err = s.cfg.Store.View(ctx, func(r store.Reader) error {
		keys = keys[:0]
		for kv, err := range r.Scan(prefix, store.ScanOptions{Limit: sweepBatch, KeysOnly: true}) {
			if err != nil {
				return err
			}
			keys = append(keys, kv.Key)
		}
		return nil
	})
	return keys, err
}

func (s *Service) drop(ctx context.Context, keys []string) error {
	return s.cfg.Store.Update(ctx, func(t store.Txn) error {
		for _, k := range keys {
			t.Delete(k)
		}
		return nil
	})
}

// sweepOrphans removes objects to which no record refers. An object is in flight first and in the store afterwards, so
// asking in this order misses none that lives.
func (s *Service) sweepOrphans(ctx context.Context) error {
	for key, err := range s.cfg.Depot.List(ctx, plane+"/") {
		if err != nil {
			return fmt.Errorf("listing objects: %w", err)
		}
		parts := strings.Split(key, "/")
		if len(parts) != 3 || s.flying.has(key) {
			continue
		}
		known := false
		err := s.cfg.Store.View(ctx, func(r store.Reader) error {
			for _, k := range []string{objectKey(parts[1], parts[2]), trashKey(parts[1], parts[2])} {
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
			if err := s.cfg.Depot.Remove(ctx, key); err != nil {
				return fmt.Errorf("removing orphan: %w", err)
			}
		}
	}
	return nil
}

// SweepUploads ends uploads that have rested for a day, in all registries whose key can be used.
func (s *Service) SweepUploads(ctx context.Context) error {
	live, err := s.scanKeys(ctx, store.Prefix(plane, "live"))
	if err != nil {
		return err
	}
	var errs []error
	for _, key := range live {
		parts, err := store.SplitKey(key)
		if err != nil || len(parts) != 3 {
			return fmt.Errorf("registry key %q has another form", key)
		}
		o, err := s.open(ctx, parts[2])
		if err != nil {
			var public *resource.Error
			if !errors.As(err, &public) {
				errs = append(errs, err)
			}
			continue // revoked, or gone: its uploads wait
		}
		errs = append(errs, s.expire(ctx, o))
	}
	return errors.Join(errs...)
}

// expire ends the old uploads of one registry.
func (s *Service) expire(ctx context.Context, o *one) error {
	old := s.cfg.Clock().Add(-uploadLife)
	newest := map[string]time.Time{} // path of an upload → last change
	err := s.cfg.Store.View(ctx, func(r store.Reader) error {
		clear(newest)
		for kv, err := range r.Scan(o.driver.below([]string{"docker", "registry", "v2", "repositories"}), store.ScanOptions{}) {
			if err != nil {
				return err
			}
			dir, ok := uploadDir(kv.Key)
			if !ok {
				continue
			}
			rec, err := o.driver.unseal(kv)
			if err != nil {
				return err
			}
			if at := rec.modified(); at.After(newest[dir]) {
				newest[dir] = at
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for dir, at := range newest {
		leave, free := s.busy.enter(o.driver.incarnation + "/" + dir[strings.LastIndexByte(dir, '/')+1:])
		if !free {
			continue
		}
		if at.Before(old) {
			err = errors.Join(err, o.driver.Delete(ctx, dir))
		}
		leave()
	}
	return err
}

// uploadDir is the driver path of the upload that a file belongs to: …/_uploads/{id}. A path part that begins with an
// underscore is no part of a repository's name.
func uploadDir(key string) (string, bool) {
	parts, err := store.SplitKey(key)
	if err != nil {
		return "", false
	}
	i := slices.Index(parts, "_uploads")
	if i < 0 || i+1 >= len(parts)-1 || uuid.Validate(parts[i+1]) != nil {
		return "", false
	}
	return "/" + strings.Join(parts[3:i+2], "/"), true
}
