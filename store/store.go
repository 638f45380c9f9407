// Package store is the contract of the metadata store: an ordered key space
// with serializable transactions, compare-and-set, prefix scans and a change
// feed. Every plane keeps its records here; package store/pebble is the
// embedded implementation and store/storetest the conformance suite which an
// implementation must pass.
//
// Callers are trusted code of this process. The disk below an implementation
// is not trusted with plaintext: implementations encrypt names and contents at
// rest. Whoever holds the disk may still roll it back or destroy it, which the
// store does not detect; records owned by a workspace are sealed by their
// owner with an envelope handle before Put, so that one customer's key can be
// revoked without touching the others.
//
// The store does not interpret values, keeps one version of each key, and has
// no time-to-live and no secondary index: an index is further keys written in
// the same transaction.
package store

import (
	"context"
	"errors"
	"iter"
)

// Sentinel errors. Implementations wrap them; compare with errors.Is.
var (
	// ErrNotFound: the key does not exist in the snapshot that was read.
	ErrNotFound = errors.New("not found")

	// ErrConflict: the record is not at the revision that CompareAndSet wanted.
	ErrConflict = errors.New("revision conflict")

	// ErrCompacted: the change feed no longer (or, after a restore, not yet)
	// knows the revision to resume from. Read everything again with View and
	// watch from the revision taken before that View; Follow does this.
	ErrCompacted = errors.New("revision compacted")

	// ErrFull: the disk's free space is below the reserve. Nothing was
	// written and the store goes on serving reads; retry after making room.
	ErrFull = errors.New("store is out of disk space")

	// ErrInvalidKey: the key is empty or longer than MaxKeySize.
	ErrInvalidKey = errors.New("invalid key")

	// ErrTooLarge: the transaction exceeds MaxTransactionSize.
	ErrTooLarge = errors.New("transaction too large")

	// ErrFailed: the disk below refused a write whose outcome is therefore
	// unknown. The store is closed for every use until the process reopens it.
	ErrFailed = errors.New("store failed")

	// ErrClosed: Close was called.
	ErrClosed = errors.New("store closed")
)

const (
	// MaxKeySize is the longest key, in bytes, after escaping by Key.
	MaxKeySize = 8 << 10

	// MaxTransactionSize bounds the keys and values, in bytes, that one
	// Update writes. Large objects belong in a depot.
	MaxTransactionSize = 64 << 20
)

// Revision numbers commits: each durable Update that wrote something has a
// revision greater than all before it, also across reopening. 0 means "never".
type Revision uint64

// KV is one record. Value is the caller's own copy, nil under KeysOnly.
// Revision is that of the Update which last wrote the key; within the Update
// that writes it, the revision that Update is going to have.
type KV struct {
	Key      string
	Value    []byte
	Revision Revision
}

// ScanOptions narrow a Scan. The zero value yields every key with the prefix,
// ascending.
type ScanOptions struct {
	// After excludes this key and all before it in the direction of the
	// scan: ascending yields keys > After, Reverse yields keys < After.
	// "" starts at the beginning. It need not exist or have the prefix.
	After string

	// Limit is the greatest number of records to yield; 0 means no limit.
	Limit int

	// Reverse yields in descending order.
	Reverse bool

	// KeysOnly leaves KV.Value nil.
	KeysOnly bool
}

// Reader reads one consistent snapshot. It is valid only inside the function
// that it was given to, and not safe for concurrent use.
type Reader interface {
	// Get returns the record, or ErrNotFound.
	Get(key string) (KV, error)

	// Scan yields the records whose keys begin with prefix in bytewise order
	// of the keys. After a non-nil error it yields nothing more.
	Scan(prefix string, opt ScanOptions) iter.Seq2[KV, error]
}

// Txn reads and writes inside one Update; reads see the transaction's own
// writes. Writing while ranging over a Scan of the same Txn does not change
// what that Scan yields. The store copies keys and values.
type Txn interface {
	Reader

	// Put writes the record. An invalid key, or too large a transaction,
	// makes Update fail.
	Put(key string, value []byte)

	// Delete removes the record; removing what does not exist is no error.
	Delete(key string)

	// CompareAndSet writes the record if its revision is want, where 0
	// means that it must not exist; else it returns ErrConflict and writes
	// nothing.
	CompareAndSet(key string, want Revision, value []byte) error
}

// Change is one entry of the change feed. Value is shared between watchers
// and must not be modified; it is nil if Deleted.
type Change struct {
	Key      string
	Value    []byte
	Deleted  bool
	Revision Revision
}

// Store is safe for concurrent use.
type Store interface {
	// View calls fn with a snapshot of durable state at some revision not
	// older than Revision() was when View was called: what a View has seen,
	// no crash takes back. It returns fn's error.
	View(ctx context.Context, fn func(Reader) error) error

	// Update calls fn in a serializable transaction and returns nil only
	// when what fn wrote is durable and visible to Views. When fn returns an
	// error nothing is written and Update returns that error. An
	// implementation may call fn again, so fn must have no side effects, and
	// fn must not call the Store. ctx bounds the wait for fn to start; once
	// fn has returned nil, Update returns only when the outcome is known.
	// When Update returns ErrFailed the outcome is unknown.
	Update(ctx context.Context, fn func(Txn) error) error

	// Watch calls fn with every durable change to keys with the prefix and
	// with Revision > after: in order, exactly once, the changes of one
	// Update never split over two calls. It blocks until ctx ends, fn
	// returns an error (both returned), the store fails or closes, or the
	// watcher has fallen too far behind (ErrCompacted). A slow fn delays
	// nobody else. To resume, pass the Revision of the last change seen.
	Watch(ctx context.Context, prefix string, after Revision, fn func([]Change) error) error

	// Revision is the newest durable revision.
	Revision() Revision

	// Close waits for Updates and Views that have begun, ends Watches with
	// ErrClosed, and releases the files. It is idempotent.
	Close() error
}
