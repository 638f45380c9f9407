package envelope

import (
	"context"
	"errors"
	"fmt"
)

// Rebind puts a resource key under ref, or under the master key when nil. The
// resource key stays the same: no data is rewritten, and handles and streams go
// on. Both the old key and the new must be usable.
func (k *Keys) Rebind(ctx context.Context, resourceID string, ref *KeyRef) error {
	id := canonicalID(resourceID)
	leave, err := k.turns.take(ctx, id)
	if err != nil {
		return err
	}
	defer leave()
	rec, err := k.loadLive(ctx, id)
	if err != nil {
		return err
	}
	if rec.Ref.equal(ref) {
		return nil
	}
	_, err = k.rewrapInTurn(ctx, id, rec, ref)
	return err
}

// Rotate rewraps every resource key that is bound to the key, whatever its
// version, to the newest version, except those pinned to one. It gives the
// number rewrapped. Each record says by itself how far the rotation came, so
// after an error, an interruption or a crash a new call does the rest. What
// fails for one resource does not keep the others.
func (k *Keys) Rotate(ctx context.Context, keyURLWithoutVersion string) (n int, err error) {
	name, _, err := splitKeyURL(keyURLWithoutVersion)
	if err != nil {
		return 0, err
	}
	ids, err := k.records.List(ctx)
	if err != nil {
		return 0, fmt.Errorf("%w: listing the key records: %w", ErrUnavailable, err)
	}
	var failed []error
	newest := "" // the version the vault used last
	for _, id := range ids {
		if ctx.Err() != nil {
			failed = append(failed, ctx.Err())
			break
		}
		changed, kid, err := k.rotateOne(ctx, id, name, newest)
		switch {
		case err != nil:
			failed = append(failed, fmt.Errorf("rotating the key of %s: %w", id, err))
		case changed:
			n++
		}
		if kid != "" {
			newest = kid
		}
	}
	return n, errors.Join(failed...)
}

// rotateOne gives the kid now in use if the record is one of name's.
func (k *Keys) rotateOne(ctx context.Context, id, name, newest string) (changed bool, kid string, err error) {
	leave, err := k.turns.take(ctx, id)
	if err != nil {
		return false, "", err
	}
	defer leave()
	rec, err := k.load(ctx, id)
	if errors.Is(err, ErrNoRecord) || err == nil && (rec.Destroyed || rec.Ref == nil) {
		return false, "", nil
	}
	if err != nil {
		return false, "", err
	}
	bound, pinned, err := splitKeyURL(rec.Ref.KeyURL)
	if err != nil || bound != name || pinned != "" {
		return false, "", err
	}
	if newest != "" && foldURL(rec.Kid) == foldURL(newest) {
		return false, "", nil
	}
	next, err := k.rewrapInTurn(ctx, id, rec, rec.Ref)
	if err != nil {
		return false, "", err
	}
	return foldURL(next.Kid) != foldURL(rec.Kid), next.Kid, nil
}

// rewrapInTurn moves a resource key from its record to ref: unwrap, wrap,
// prove, save, and only then let the handle know. The caller has the turn.
func (k *Keys) rewrapInTurn(ctx context.Context, id string, rec *record, ref *KeyRef) (*record, error) {
	secret, err := k.unwrap(ctx, id, rec)
	if err != nil {
		return nil, err
	}
	defer secret.zero()
	next, err := k.wrap(ctx, id, secret, ref)
	if err != nil {
		return nil, err
	}
	if rec.Ref.equal(ref) && foldURL(next.Kid) == foldURL(rec.Kid) {
		return rec, nil // it is the newest already
	}
	generation, asked := k.now()
	if err := k.prove(ctx, id, next); err != nil {
		return nil, err
	}
	if err := k.save(ctx, id, next); err != nil {
		return nil, err
	}
	k.adopt(ctx, id, next, generation, asked)
	return next, nil
}

// adopt tells a live handle of its new binding. When the generation has moved
// since the binding was proved, it is proved again, or the epoch ends.
func (k *Keys) adopt(ctx context.Context, id string, rec *record, generation uint64, asked int64) {
	const attempts = 8
	err := fmt.Errorf("%w: the state of key %s changed while it was taken into use", ErrRevoked, rec.Kid)
	for range attempts {
		if k.adoptSince(id, rec.binding(), generation, asked) {
			return
		}
		generation, asked = k.now()
		if err = k.prove(ctx, id, rec); err != nil {
			break
		}
	}
	k.mu.RLock()
	h := k.handles[id]
	k.mu.RUnlock()
	if h != nil {
		_ = h.end(err)
	}
}

// adoptSince is false if generation has moved.
func (k *Keys) adoptSince(id string, b *binding, generation uint64, asked int64) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.generation != generation && b.ref != nil {
		return false
	}
	if h := k.handles[id]; h != nil {
		h.adopt(b, asked)
	}
	return true
}

// Destroy removes the key of a resource: its handles end, and what it sealed is
// unreadable for ever. A tombstone stays, so that the key's id is not
// forgotten. A resource without a key is no error.
func (k *Keys) Destroy(ctx context.Context, resourceID string) error {
	id := canonicalID(resourceID)
	leave, err := k.turns.take(ctx, id)
	if err != nil {
		return err
	}
	defer leave()
	rec, err := k.load(ctx, id)
	if errors.Is(err, ErrNoRecord) {
		return nil
	}
	if err != nil {
		return err
	}
	if !rec.Destroyed {
		if err := k.save(ctx, id, &record{KeyID: rec.KeyID, Destroyed: true}); err != nil {
			return err
		}
	}
	k.mu.Lock()
	h := k.handles[id]
	delete(k.handles, id)
	k.mu.Unlock()
	if h != nil {
		_ = h.end(fmt.Errorf("%w: key %x of %s", ErrDestroyed, rec.KeyID, id))
	}
	return nil
}
