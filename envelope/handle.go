package envelope

import (
	"crypto/cipher"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Handle seals and opens with one resource key for one epoch: from when the
// key was unwrapped until it is revoked, destroyed, or unconfirmed for too
// long. Then every method, and every Sealer and Opened made by it, answers
// ErrRevoked, ErrDestroyed or ErrUnavailable, for ever; [Keys.Handle] gives the
// next epoch if there is one. A Handle is safe for concurrent use.
type Handle struct {
	id       string
	resource resourceHash
	key      keyID
	space    *workspace

	binding   atomic.Pointer[binding]
	confirmed atomic.Int64 // when the vault was last asked with success, as in workspace.elapsed
	ended     atomic.Pointer[ending]
	done      chan struct{} // closed when ended is set

	mu     sync.Mutex // guards secret and the changes of binding and ended
	secret key        // zero once ended

	sealing  atomic.Pointer[valueRun]
	openMu   sync.RWMutex // guards openings
	openings map[[valueSaltSize]byte]cipher.AEAD
}

// ending is why an epoch is over.
type ending struct{ err error }

// workspace is what all handles of one Keys share.
type workspace struct {
	now     func() time.Time
	start   time.Time
	expire  time.Duration
	scratch sync.Pool // of *scratch
}

func newWorkspace(now func() time.Time, expire time.Duration) *workspace {
	w := &workspace{now: now, start: now(), expire: expire}
	w.scratch.New = func() any { return new(scratch) }
	return w
}

// elapsed is a clock that fits into an atomic and follows the monotonic one.
func (w *workspace) elapsed() int64 { return int64(w.now().Sub(w.start)) }

// binding is what wraps a resource key. It is immutable.
type binding struct {
	ref     *KeyRef // nil: platform-managed, under the master key
	kid     string  // the key URL with the version used; "" when platform-managed
	wrapped []byte
}

// concerns tells whether url is the binding's key, with or without version, or
// its vault, or nothing in particular.
func (b *binding) concerns(url string) bool {
	if b.ref == nil {
		return false
	}
	kid, url := foldURL(b.kid), foldURL(url)
	return url == "" || kid == url || strings.HasPrefix(kid, url+"/")
}

// String names the resource and hides the rest.
func (h *Handle) String() string { return "key handle of " + h.id }

// Format is String for every verb, so that no format shows the key.
func (h *Handle) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, h.String()) }

// Check is nil while the epoch lasts.
func (h *Handle) Check() error {
	if e := h.ended.Load(); e != nil {
		return e.err
	}
	b := h.binding.Load()
	if b.ref == nil {
		return nil
	}
	if silent := time.Duration(h.space.elapsed() - h.confirmed.Load()); silent >= h.space.expire {
		return h.end(fmt.Errorf("%w: the key vault has not confirmed %s for %v", ErrUnavailable, b.kid, silent.Round(time.Second)))
	}
	return nil
}

// Done is closed when the epoch ends, to break what is blocked elsewhere. An
// end for want of confirmation is noticed by the next Check, or by [Keys.Run]
// within a second.
func (h *Handle) Done() <-chan struct{} { return h.done }

// end ends the epoch for the reason err, or gives the reason why it had ended.
func (h *Handle) end(err error) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.endLocked(err)
}

// endIf ends the epoch if the handle is still bound by b.
func (h *Handle) endIf(b *binding, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.binding.Load() == b {
		h.endLocked(err)
	}
}

func (h *Handle) endLocked(err error) error {
	if e := h.ended.Load(); e != nil {
		return e.err
	}
	h.ended.Store(&ending{err: err})
	h.secret.zero()
	h.sealing.Store(nil)
	h.openMu.Lock()
	h.openings = nil
	h.openMu.Unlock()
	close(h.done)
	return err
}

// adopt replaces the binding; the key under it is the same, so the epoch goes on.
func (h *Handle) adopt(b *binding, confirmed int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ended.Load() == nil {
		h.confirmed.Store(confirmed) // before the binding: Check reads them in the other order
		h.binding.Store(b)
	}
}

// confirm notes that the vault, asked at the time, allowed b.
func (h *Handle) confirm(b *binding, at int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.binding.Load() == b {
		h.confirmed.Store(max(at, h.confirmed.Load()))
	}
}

// derive gives the cipher of one object or one run of values.
func (h *Handle) derive(salt []byte, label string) (cipher.AEAD, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if e := h.ended.Load(); e != nil {
		return nil, e.err
	}
	return h.secret.deriveAEAD(salt, label+string(h.resource[:])+string(h.key[:]))
}
