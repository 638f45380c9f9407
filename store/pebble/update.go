package pebble

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/cockroachdb/pebble/v2"

	"casemate.dev/store"
)

// commit is a transaction on its way to the disk.
type commit struct {
	revision store.Revision
	changes  []store.Change
	snapshot *snapshot

	synced    bool          // guarded by Store.mu: the log holds it durably
	published chan struct{} // closes when it and all before it are durable
}

// Update implements store.Store. It runs fn exactly once.
func (s *Store) Update(ctx context.Context, fn func(store.Txn) error) error {
	if err := s.enter(ctx); err != nil {
		return err
	}
	defer s.leave()
	select {
	case s.writer <- struct{}{}:
	case <-s.failed:
		return s.failure()
	case <-ctx.Done():
		return ctx.Err()
	}
	c, err := s.transact(ctx, fn)
	if c == nil {
		return err
	}
	// Also when fn failed or wrote nothing: what it read and its caller acts
	// upon may be the work of a commit that is not durable yet.
	select {
	case <-c.published:
		return err
	case <-s.failed:
		return s.failure()
	}
}

// transact runs fn and applies what it wrote, holding the writer token, which
// it gives back. It returns the commit that the caller must wait for, nil if
// there is none.
func (s *Store) transact(ctx context.Context, fn func(store.Txn) error) (*commit, error) {
	defer func() { <-s.writer }()
	// A failed store's last commit may still be running without the token.
	if err := s.failure(); err != nil {
		return nil, err
	}
	if err := s.checkRoom(); err != nil {
		return nil, err
	}
	batch := s.db.NewIndexedBatch()
	t := &txn{
		reader:   reader{ctx: ctx, failure: s.failure, from: batch},
		batch:    batch,
		revision: s.assigned + 1,
		writes:   map[string]store.Change{},
	}
	handedOver := false
	defer func() {
		t.end()
		if !handedOver {
			_ = batch.Close()
		}
	}()
	if err := fn(t); err != nil {
		return s.newest(), err
	}
	if t.err != nil {
		return s.newest(), t.err
	}
	if len(t.writes) == 0 {
		return s.newest(), nil
	}
	if err := batch.Set(revisionKey, binary.BigEndian.AppendUint64(nil, uint64(t.revision)), nil); err != nil {
		return s.newest(), fmt.Errorf("writing revision: %w", err)
	}
	handedOver = true
	return s.apply(batch, t)
}

// checkRoom returns store.ErrFull when the disk's reserve has been touched.
func (s *Store) checkRoom() error {
	if s.reserve == 0 {
		return nil
	}
	usage, err := s.fs.GetDiskUsage(s.dir)
	if err != nil {
		// A disk that cannot tell, such as one in memory, has no reserve.
		return nil
	}
	if usage.AvailBytes < s.reserve {
		return fmt.Errorf("%w: %d MiB are free and %d MiB reserved", store.ErrFull, usage.AvailBytes>>20, s.reserve>>20)
	}
	return nil
}

// newest returns the newest commit that is not durable yet, or nil.
func (s *Store) newest() *commit {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.pending) == 0 {
		return nil
	}
	return s.pending[len(s.pending)-1]
}

// apply makes the batch visible to the next transaction and starts waiting for
// its sync. The caller holds the writer token, so that the snapshot taken here
// holds this commit and no later one.
func (s *Store) apply(batch *pebble.Batch, t *txn) (*commit, error) {
	c := &commit{revision: t.revision, published: make(chan struct{})}
	for _, key := range slices.Sorted(maps.Keys(t.writes)) {
		c.changes = append(c.changes, t.writes[key])
	}
	applied := make(chan struct{})
	// A goroutine of its own, since it never ends when the disk fails.
	s.inflight.Add(1)
	go func() {
		defer s.inflight.Done()
		if err := s.db.ApplyNoSyncWait(batch, pebble.Sync); err != nil {
			s.fail(fmt.Errorf("committing: %w", err))
			return
		}
		c.snapshot = &snapshot{db: s.db.NewSnapshot(), revision: c.revision, refs: 1}
		s.mu.Lock()
		s.pending = append(s.pending, c)
		s.assigned = c.revision
		s.mu.Unlock()
		close(applied)
		if err := batch.SyncWait(); err != nil {
			s.fail(fmt.Errorf("syncing the log: %w", err))
			return
		}
		s.publish(c)
		_ = batch.Close()
	}()
	select {
	case <-applied:
		return c, nil
	case <-s.failed:
		return nil, s.failure()
	}
}

// publish notes that c is in the log durably, and shows to Views and Watches
// every commit up to which there is no gap.
func (s *Store) publish(c *commit) {
	var old []*snapshot
	s.mu.Lock()
	c.synced = true
	for s.err == nil || errors.Is(s.err, store.ErrClosed) {
		if len(s.pending) == 0 || !s.pending[0].synced {
			break
		}
		first := s.pending[0]
		s.pending[0] = nil
		s.pending = s.pending[1:]
		old = append(old, s.durable)
		s.durable = first.snapshot
		s.feed.append(first.changes)
		close(first.published)
	}
	s.mu.Unlock()
	for _, sn := range old {
		s.release(sn)
	}
}

// txn implements store.Txn.
type txn struct {
	reader
	batch    *pebble.Batch
	revision store.Revision          // that the commit is going to have
	writes   map[string]store.Change // the last write to each key
	size     int
	err      error // the first write that was refused; fails the Update
}

// Put implements store.Txn.
func (t *txn) Put(key string, value []byte) {
	if !t.admit(key, len(value)) {
		return
	}
	op := t.batch.SetDeferred(1+len(key), revisionSize+len(value))
	op.Key[0] = recordSpace
	copy(op.Key[1:], key)
	binary.BigEndian.PutUint64(op.Value, uint64(t.revision))
	copy(op.Value[revisionSize:], value)
	if err := op.Finish(); err != nil {
		t.err = fmt.Errorf("putting a record: %w", err)
		return
	}
	t.writes[key] = store.Change{Key: key, Value: append([]byte{}, value...), Revision: t.revision}
}

// Delete implements store.Txn.
func (t *txn) Delete(key string) {
	if !t.admit(key, 0) {
		return
	}
	// Deleting what does not exist is no change, and watchers must not see one.
	switch _, err := t.Get(key); {
	case errors.Is(err, store.ErrNotFound):
		return
	case err != nil:
		t.err = fmt.Errorf("deleting a record: %w", err)
		return
	}
	if err := t.batch.Delete(t.engineKey(key), nil); err != nil {
		t.err = fmt.Errorf("deleting a record: %w", err)
		return
	}
	t.writes[key] = store.Change{Key: key, Deleted: true, Revision: t.revision}
}

// CompareAndSet implements store.Txn.
func (t *txn) CompareAndSet(key string, want store.Revision, value []byte) error {
	var have store.Revision
	switch kv, err := t.Get(key); {
	case err == nil:
		have = kv.Revision
	case !errors.Is(err, store.ErrNotFound):
		return err
	}
	if have != want {
		return fmt.Errorf("%w: the record is at revision %d, not %d", store.ErrConflict, have, want)
	}
	t.Put(key, value)
	return t.err
}

// admit checks a write, remembering the first that must be refused.
func (t *txn) admit(key string, valueSize int) bool {
	if t.err == nil {
		t.err = t.usable()
	}
	if t.err == nil {
		t.err = checkKey(key)
	}
	if t.size += len(key) + valueSize; t.err == nil && t.size > store.MaxTransactionSize {
		t.err = fmt.Errorf("%w: more than %d bytes", store.ErrTooLarge, store.MaxTransactionSize)
	}
	return t.err == nil
}
