package vault

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"casemate.dev/store"
)

// The index of what happens by itself, in order of time:
//
//	vault/due/{unix seconds, 20 digits}/{vault}/{kind}/{name}/{version}   the version expires
//	vault/due/{unix seconds, 20 digits}/{vault}/{kind}/{name}/            the deleted object is purged
//	vault/due/{unix seconds, 20 digits}/{vault}/{kind}/{name}//{task}     a task of schedule.go falls due
//
// It is written in the transaction that sets the time, so that a crash loses none. Its values say nothing.

var dueValue = []byte{1}

func dueKey(at int64, v Vault, k kind, name, id string) string {
	return store.Key("vault", "due", dueTime(at), v.ID.Key(), k.word, name, id)
}

func dueTime(at int64) string { return fmt.Sprintf("%020d", max(at, 0)) }

// due is one entry of the index.
type due struct {
	key     string
	at      time.Time
	vault   string // resource ID, lower case
	kind    kind
	name    string
	version string
	task    string
}

func parseDue(key string) (due, error) {
	parts, err := store.SplitKey(key)
	if err != nil || len(parts) != 7 && len(parts) != 8 {
		return due{}, fmt.Errorf("reading the index of due times: malformed key")
	}
	at, err := strconv.ParseInt(parts[2], 10, 64)
	if err != nil {
		return due{}, fmt.Errorf("reading the index of due times: %w", err)
	}
	k := keys
	switch parts[4] {
	case secrets.word:
		k = secrets
	case certificates.word:
		k = certificates
	}
	d := due{key: key, at: time.Unix(at, 0), vault: parts[3], kind: k, name: parts[5], version: parts[6]}
	if len(parts) == 8 {
		d.task = parts[7]
	}
	return d, nil
}

// dueRetry is the pause after a failure; dueRest the longest sleep, within which entries of other replicas are seen.
const (
	dueRetry = time.Second
	dueRest  = 10 * time.Second
)

// Run announces keys as revoked when they expire and purges what was deleted when its retention ends. It returns when ctx
// ends.
func (s *Service) Run(ctx context.Context) error {
	for {
		wait, err := s.settle(ctx)
		if err != nil && ctx.Err() == nil {
			s.cfg.Logger.Error("settling due times of keys", "error", err)
			wait = dueRetry
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-s.wake:
			timer.Stop()
		case <-timer.C:
		}
	}
}

// stir lets Run look again.
func (s *Service) stir() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// settle handles all entries that are due and says how long the next one is away. One vault's failure delays no other's:
// its entries stay and are tried again.
func (s *Service) settle(ctx context.Context) (time.Duration, error) {
	var errs []error
	for after := ""; ; {
		d, ok, err := s.nextDue(ctx, after)
		if err != nil {
			return 0, err
		}
		if !ok {
			return dueRest, errors.Join(errs...)
		}
		if wait := d.at.Sub(s.now()); wait > 0 {
			return min(wait, dueRest), errors.Join(errs...)
		}
		after = d.key
		if err := s.happen(ctx, d); err != nil {
			errs = append(errs, err)
		}
	}
}

func (s *Service) nextDue(ctx context.Context, after string) (d due, ok bool, err error) {
	err = s.cfg.Store.View(ctx, func(r store.Reader) error {
		for kv, err := range r.Scan(store.Prefix("vault", "due"), store.ScanOptions{After: after, Limit: 1, KeysOnly: true}) {
			if err != nil {
				return err
			}
			ok = true
			if d, err = parseDue(kv.Key); err != nil {
				return err
			}
		}
		return nil
	})
	return d, ok, err
}

// happen does what an entry stands for, then removes it. Doing it twice does no harm.
func (s *Service) happen(ctx context.Context, d due) error {
	v, known := s.vaults.Load().byID[d.vault]
	if d.version != "" {
		if known && d.kind == keys {
			s.cfg.Revoked(s.versionURL(v, d.kind, d.name, d.version))
		}
		if known {
			exp := d.at.Unix()
			s.event(EventExpired, v, d.kind, d.name, &version{ID: d.version, Expires: &exp})
		}
		return s.cfg.Store.Update(ctx, func(tx store.Txn) error {
			tx.Delete(d.key)
			return nil
		})
	}
	if known && d.task != "" {
		return s.perform(ctx, v, d)
	}
	if !known { // a deleted vault keeps its objects as they are until it is recovered or purged
		return nil
	}
	return s.update(ctx, v, func(b bench) error {
		o, err := b.object(d.kind, d.name)
		switch {
		case refusal(err):
		case err != nil:
			return err
		case o.Deleted != nil && o.Deleted.Purge <= s.now().Unix() && strings.EqualFold(o.Name, d.name):
			return b.eraseAll(d.kind, d.name)
		}
		b.tx.Delete(d.key)
		return nil
	})
}
