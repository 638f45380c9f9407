// Package depot is the contract for large ciphertext: immutable objects that
// are written once, read at any offset, and removed. Blobs, registry layers
// and artifacts keep their sealed bytes here and their metadata in the store.
// Package depot/file keeps objects on a local disk; depot/depottest is the
// conformance suite.
//
// A depot is not trusted: it sees only ciphertext under opaque keys, and may
// lose, swap, truncate or alter what it holds. Readers find that out by
// opening objects through an envelope handle, never here. A depot encrypts
// nothing, counts no references and knows no tenants: callers name objects by
// random keys, never by a user's words, and record the key in the store after
// Commit, so that a crash leaves an object without a record and never a record
// without an object.
package depot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"strings"
)

// Sentinel errors. Implementations wrap them; compare with errors.Is.
var (
	// ErrNotFound: no object has been committed under the key.
	ErrNotFound = errors.New("object not found")

	// ErrExists: Commit found another object under the key and kept it.
	ErrExists = errors.New("object exists")

	// ErrInvalidKey: ValidateKey refuses the key.
	ErrInvalidKey = errors.New("invalid object key")

	// ErrFull: the depot has no room. The writer can only be aborted.
	ErrFull = errors.New("depot is out of space")
)

// MaxKeySize is the longest key, in bytes.
const MaxKeySize = 512

// Depot is safe for concurrent use.
type Depot interface {
	// Create begins an object. It is invisible until Commit; the caller must
	// call Commit or Abort.
	Create(ctx context.Context) (Writer, error)

	// Open opens a committed object for reading, or returns ErrNotFound. An
	// open object stays readable while it is removed.
	Open(ctx context.Context, key string) (Object, error)

	// Remove removes the object, durably. Removing what is not there is no
	// error.
	Remove(ctx context.Context, key string) error

	// List yields the keys of committed objects that begin with prefix, in
	// bytewise order; prefix "" means all. Objects that are committed or
	// removed meanwhile may or may not appear. After a non-nil error it
	// yields nothing more.
	List(ctx context.Context, prefix string) iter.Seq2[string, error]
}

// Writer writes one object; it is not safe for concurrent use. Write does not
// buffer: write blocks of 64 KiB or more.
type Writer interface {
	io.Writer

	// Commit makes the object durable and visible under key before it
	// returns nil. When the key is taken it returns ErrExists. After an error
	// the object is not visible, or (when only the last sync failed) its
	// durability is unknown; the writer is finished either way.
	Commit(ctx context.Context, key string) error

	// Abort discards what was written. It does nothing after Commit.
	Abort()
}

// Object is one committed object. ReadAt is safe for concurrent use.
type Object interface {
	io.ReaderAt
	io.Closer

	// Size is the object's length in bytes.
	Size() int64
}

// ValidateKey accepts segments of the characters 0-9, a-z, '_' and '-' that
// are joined by single slashes, up to MaxKeySize bytes: a key can never name
// anything outside the depot. It returns an error wrapping ErrInvalidKey.
func ValidateKey(key string) error {
	if key == "" || len(key) > MaxKeySize {
		return fmt.Errorf("%w: its length is %d, not 1 to %d", ErrInvalidKey, len(key), MaxKeySize)
	}
	for segment := range strings.SplitSeq(key, "/") {
		if segment == "" || len(segment) > 255 {
			return fmt.Errorf("%w: a segment's length is %d, not 1 to 255", ErrInvalidKey, len(segment))
		}
		for i := range len(segment) {
			c := segment[i]
			if (c < '0' || c > '9') && (c < 'a' || c > 'z') && c != '_' && c != '-' {
				return fmt.Errorf("%w: byte %#02x at %d of a segment", ErrInvalidKey, c, i)
			}
		}
	}
	return nil
}
