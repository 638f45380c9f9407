package envelope

import (
	"context"
	"crypto/cipher"
	"errors"
	"fmt"
	"sync"
	"time"
)

// Options adjusts Keys. The zero value is what production wants.
type Options struct {
	// Now is the clock, time.Now when nil.
	Now func() time.Time
	// Confirm is how often Run asks the vault about the keys in use, 15 s when
	// zero.
	Confirm time.Duration
	// Expire is how long a handle lives without a confirmation, 60 s when zero.
	Expire time.Duration
}

// Keys are the resource keys: one for each resource that owns data. It is safe
// for concurrent use, by one process at a time for one set of records.
//
// For each resource one change at a time holds its turn; turns are taken before
// mu, and mu before a handle's own lock. The vault is asked under a turn and
// never under mu, so Revoked, which takes mu only, may be called by a vault
// that is being asked.
type Keys struct {
	hierarchy *Hierarchy
	records   Records
	vault     Vault
	confirm   time.Duration
	space     *workspace
	turns     turns

	mu         sync.RWMutex // guards the fields below
	handles    map[string]*Handle
	generation uint64 // counts the calls of Revoked and Reconfirm
}

// NewKeys gives the keys below h. vault may be nil where there are no
// customer-managed keys.
func NewKeys(h *Hierarchy, records Records, vault Vault, opt Options) *Keys {
	if opt.Now == nil {
		opt.Now = time.Now
	}
	if opt.Confirm == 0 {
		opt.Confirm = 15 * time.Second
	}
	if opt.Expire == 0 {
		opt.Expire = 60 * time.Second
	}
	if vault == nil {
		vault = noVault{}
	}
	return &Keys{
		hierarchy: h, records: records, vault: vault, confirm: opt.Confirm,
		space: newWorkspace(opt.Now, opt.Expire), handles: make(map[string]*Handle),
	}
}

// Create makes the key of a resource, under ref or, when nil, under the master
// key. It is idempotent: with a key there under the same ref it does nothing,
// under another it answers ErrBound. After Destroy it makes a new key, which
// opens nothing that the old one sealed.
func (k *Keys) Create(ctx context.Context, resourceID string, ref *KeyRef) error {
	id := canonicalID(resourceID)
	if id == "" {
		return errors.New("creating a resource key: the resource id is empty")
	}
	leave, err := k.turns.take(ctx, id)
	if err != nil {
		return err
	}
	defer leave()
	rec, err := k.load(ctx, id)
	switch {
	case err == nil && !rec.Destroyed:
		if !rec.Ref.equal(ref) {
			return fmt.Errorf("%w: %s", ErrBound, id)
		}
		return nil
	case err != nil && !errors.Is(err, ErrNoRecord):
		return err
	}
	secret := newKey()
	defer secret.zero()
	if rec, err = k.wrap(ctx, id, secret, ref); err != nil {
		return err
	}
	if err := k.prove(ctx, id, rec); err != nil {
		return err
	}
	return k.save(ctx, id, rec)
}

// prove unwraps a fresh record, before it replaces anything: a permission to
// wrap is not yet one to unwrap.
func (k *Keys) prove(ctx context.Context, id string, rec *record) error {
	secret, err := k.unwrap(ctx, id, rec)
	if err != nil {
		return fmt.Errorf("proving the wrapped key: %w", err)
	}
	secret.zero()
	return nil
}

// Handle gives the handle of a resource's key. While an epoch lasts this is a
// look-up; else the record is read and, for a customer's key, the vault asked:
// ErrRevoked when it refuses, ErrUnavailable when it does not answer.
func (k *Keys) Handle(ctx context.Context, resourceID string) (*Handle, error) {
	id := canonicalID(resourceID)
	if h := k.live(id); h != nil {
		return h, nil
	}
	leave, err := k.turns.take(ctx, id)
	if err != nil {
		return nil, err
	}
	defer leave()
	if h := k.live(id); h != nil { // another caller was faster
		return h, nil
	}
	rec, err := k.loadLive(ctx, id)
	if err != nil {
		return nil, err
	}
	const attempts = 8
	for range attempts {
		generation, asked := k.now()
		secret, err := k.unwrap(ctx, id, rec)
		if err != nil {
			return nil, err
		}
		h := newHandle(k.space, id, secret, rec.binding())
		h.confirmed.Store(asked)
		if k.install(h, generation) {
			return h, nil
		}
		_ = h.end(fmt.Errorf("%w: the state of key %s changed", ErrRevoked, rec.Kid))
	}
	return nil, fmt.Errorf("%w: key %s changed its state again and again", ErrUnavailable, rec.Kid)
}

// live gives the handle whose epoch lasts, or nil.
func (k *Keys) live(id string) *Handle {
	k.mu.RLock()
	h := k.handles[id]
	k.mu.RUnlock()
	if h == nil || h.Check() != nil {
		return nil
	}
	return h
}

// now gives what an answer of the vault must be judged by: it is as fresh as
// its question, and void if Revoked or Reconfirm came after it.
func (k *Keys) now() (generation uint64, at int64) {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return k.generation, k.space.elapsed()
}

// install makes h the handle of its resource, unless the vault's answer is void
// because generation has moved.
func (k *Keys) install(h *Handle, generation uint64) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.generation != generation && h.binding.Load().ref != nil {
		return false
	}
	k.handles[h.id] = h
	return true
}

// newHandle takes the secret over.
func newHandle(space *workspace, id string, secret *key, b *binding) *Handle {
	defer secret.zero()
	h := &Handle{id: id, resource: hashResource(id), space: space, secret: *secret, done: make(chan struct{})}
	h.key, _ = secret.identify(h.resource) // unwrap did the same before
	h.binding.Store(b)
	h.openings = make(map[[valueSaltSize]byte]cipher.AEAD)
	return h
}

// Version gives the effective key of a resource: the key URL with the version
// that wraps its key now, or "" when it is platform-managed.
func (k *Keys) Version(resourceID string) (string, error) {
	id := canonicalID(resourceID)
	if h := k.live(id); h != nil {
		return h.binding.Load().kid, nil
	}
	rec, err := k.loadLive(context.Background(), id) // one read of local records
	if err != nil {
		return "", err
	}
	return rec.Kid, nil
}

// noVault refuses nothing and answers nothing.
type noVault struct{}

var errNoVault = errors.New("no key vault is connected")

func (noVault) WrapKey(context.Context, KeyRef, []byte) ([]byte, string, error) {
	return nil, "", errNoVault
}

func (noVault) UnwrapKey(context.Context, KeyRef, string, []byte) ([]byte, error) {
	return nil, errNoVault
}

// turns gives one caller at a time the turn of an id.
type turns struct {
	mu   sync.Mutex
	byID map[string]*turn
}

type turn struct {
	free  chan struct{} // holds one token while nobody has the turn
	users int           // holder and waiters; guarded by turns.mu
}

// take waits for the turn; leave must be called once.
func (t *turns) take(ctx context.Context, id string) (leave func(), err error) {
	t.mu.Lock()
	if t.byID == nil {
		t.byID = make(map[string]*turn)
	}
	mine := t.byID[id]
	if mine == nil {
		mine = &turn{free: make(chan struct{}, 1)}
		mine.free <- struct{}{}
		t.byID[id] = mine
	}
	mine.users++
	t.mu.Unlock()
	select {
	case <-mine.free:
		return func() { mine.free <- struct{}{}; t.drop(id, mine) }, nil
	case <-ctx.Done():
		t.drop(id, mine)
		return nil, fmt.Errorf("%w: waiting for the key of %s: %w", ErrUnavailable, id, ctx.Err())
	}
}

func (t *turns) drop(id string, mine *turn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if mine.users--; mine.users == 0 {
		delete(t.byID, id)
	}
}
