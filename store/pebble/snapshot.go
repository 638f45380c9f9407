package pebble

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"

	"github.com/cockroachdb/pebble/v2"

	"casemate.dev/store"
)

// snapshot is the state right after one commit. The store holds one reference
// to the durable one, each View another; refs is guarded by Store.mu.
type snapshot struct {
	db       *pebble.Snapshot
	revision store.Revision
	refs     int
}

// release gives one reference back.
func (s *Store) release(sn *snapshot) {
	s.mu.Lock()
	sn.refs--
	last := sn.refs == 0
	s.mu.Unlock()
	// Not once the store has failed: a parked goroutine may hold Pebble's
	// locks for ever.
	if last && s.failure() == nil {
		_ = sn.db.Close()
	}
}

// View implements store.Store.
func (s *Store) View(ctx context.Context, fn func(store.Reader) error) error {
	if err := s.enter(ctx); err != nil {
		return err
	}
	defer s.leave()
	s.mu.Lock()
	sn := s.durable
	sn.refs++
	s.mu.Unlock()
	defer s.release(sn)
	r := &reader{ctx: ctx, failure: s.failure, from: sn.db}
	defer r.end()
	if err := fn(r); err != nil {
		return err
	}
	// What was read may be wrong if the disk proved to be corrupt meanwhile.
	return s.failure()
}

// source is what a reader reads: a *pebble.Snapshot or an indexed batch.
type source interface {
	Get(key []byte) ([]byte, io.Closer, error)
	NewIter(o *pebble.IterOptions) (*pebble.Iterator, error)
}

// reader implements store.Reader.
type reader struct {
	ctx     context.Context
	failure func() error
	from    source
	ended   bool
	buf     []byte // for the engine's form of a key, reused
}

var errEnded = errors.New("the transaction has ended")

func (r *reader) end() { r.ended = true }

func (r *reader) usable() error {
	if r.ended {
		return errEnded
	}
	if err := r.failure(); err != nil {
		return err
	}
	return r.ctx.Err()
}

// engineKey returns the engine's form of key, valid until the next call.
func (r *reader) engineKey(key string) []byte {
	r.buf = append(append(r.buf[:0], recordSpace), key...)
	return r.buf
}

// Get implements store.Reader.
func (r *reader) Get(key string) (store.KV, error) {
	if err := r.usable(); err != nil {
		return store.KV{}, err
	}
	if err := checkKey(key); err != nil {
		return store.KV{}, err
	}
	raw, closer, err := r.from.Get(r.engineKey(key))
	if errors.Is(err, pebble.ErrNotFound) {
		return store.KV{}, fmt.Errorf("getting a record: %w", store.ErrNotFound)
	}
	if err != nil {
		return store.KV{}, fmt.Errorf("getting a record: %w", err)
	}
	kv, err := record(key, raw, false)
	return kv, errors.Join(err, closer.Close())
}

func checkKey(key string) error {
	if key == "" || len(key) > store.MaxKeySize {
		return fmt.Errorf("%w: its length is %d, not 1 to %d", store.ErrInvalidKey, len(key), store.MaxKeySize)
	}
	return nil
}

// record decodes the engine's value, copying it.
func record(key string, raw []byte, keyOnly bool) (store.KV, error) {
	if len(raw) < revisionSize {
		return store.KV{}, errors.New("decoding a record: it has no revision")
	}
	kv := store.KV{Key: key, Revision: store.Revision(binary.BigEndian.Uint64(raw))}
	if !keyOnly {
		kv.Value = append([]byte{}, raw[revisionSize:]...)
	}
	return kv, nil
}

// Scan implements store.Reader.
func (r *reader) Scan(prefix string, opt store.ScanOptions) iter.Seq2[store.KV, error] {
	return func(yield func(store.KV, error) bool) {
		if err := r.scan(prefix, opt, func(kv store.KV) bool { return yield(kv, nil) }); err != nil {
			yield(store.KV{}, fmt.Errorf("scanning records: %w", err))
		}
	}
}

// scan calls each until it returns false.
func (r *reader) scan(prefix string, opt store.ScanOptions, each func(store.KV) bool) (err error) {
	if err := r.usable(); err != nil {
		return err
	}
	lower, upper := bounds(prefix, opt)
	if string(lower) >= string(upper) {
		return nil
	}
	it, err := r.from.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	start, next := it.First, it.Next
	if opt.Reverse {
		start, next = it.Last, it.Prev
	}
	n := 0
	for ok := start(); ok; ok = next() {
		if err := r.usable(); err != nil {
			return err
		}
		raw, err := it.ValueAndErr()
		if err != nil {
			return err
		}
		kv, err := record(string(it.Key()[1:]), raw, opt.KeysOnly)
		if err != nil {
			return err
		}
		if n++; !each(kv) || n == opt.Limit {
			return nil
		}
	}
	return it.Error()
}

// bounds returns the range [lower, upper) of engine keys to scan.
func bounds(prefix string, opt store.ScanOptions) (lower, upper []byte) {
	lower = append([]byte{recordSpace}, prefix...)
	upper = successor(lower)
	if opt.After == "" {
		return lower, upper
	}
	after := append([]byte{recordSpace}, opt.After...)
	if opt.Reverse {
		return lower, least(upper, after)
	}
	// The least key greater than after is after and a zero byte.
	return greatest(lower, append(after, 0)), upper
}

// successor returns the least key greater than all that begin with prefix,
// which begins with recordSpace and so has a byte that can be incremented.
func successor(prefix []byte) []byte {
	next := append([]byte{}, prefix...)
	for i := len(next) - 1; ; i-- {
		if next[i] < 0xff {
			next[i]++
			return next[:i+1]
		}
	}
}

func least(a, b []byte) []byte {
	if string(a) < string(b) {
		return a
	}
	return b
}

func greatest(a, b []byte) []byte {
	if string(a) > string(b) {
		return a
	}
	return b
}
