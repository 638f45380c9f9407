package envelope

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"sync"
	"time"
)

const (
	// confirmTimeout bounds one question to a vault. It leaves room for a
	// second one before a handle expires.
	confirmTimeout = 10 * time.Second
	// sweepEvery is how late Done of an expired handle may be.
	sweepEvery = time.Second
)

// Revoked is called when the state of a key changed in any way that may forbid
// its use. keyURL is a key with its version, a key, or a whole vault
// (https://VAULT); everything below it is meant, and "" means all keys. The
// epochs of all handles concerned end before it returns. The next use asks the
// vault again, whose answer must then be by the new state.
func (k *Keys) Revoked(keyURL string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.generation++
	for _, h := range k.handles {
		if b := h.binding.Load(); b.concerns(keyURL) {
			h.endIf(b, fmt.Errorf("%w: the state of key %s changed", ErrRevoked, b.kid))
		}
	}
}

// Reconfirm asks the vault now about the keys in use that keyURL names, as for
// Revoked. The epochs of those it refuses end before it returns; the others go
// on. The error tells of the keys about which there was no answer. It is what
// to call where a change may have touched a permission, and Revoked where it
// certainly did.
func (k *Keys) Reconfirm(ctx context.Context, keyURL string) error {
	var (
		wg     sync.WaitGroup
		mu     sync.Mutex // guards failed
		failed []error
	)
	k.mu.Lock()
	k.generation++ // answers that are under way may be by the old state
	k.mu.Unlock()
	for _, uses := range k.usesByVault(keyURL) {
		wg.Go(func() { // a vault that hangs shall delay its own keys only
			if err := k.confirmUses(ctx, uses); err != nil {
				mu.Lock()
				defer mu.Unlock()
				failed = append(failed, err)
			}
		})
	}
	wg.Wait()
	return errors.Join(failed...)
}

// use is one version of a key used by one identity. One question to the vault
// answers for all handles of it.
type use struct {
	handles  []*Handle
	bindings []*binding // of the handles when they were collected
}

// usesByVault gives the uses concerned, by vault and then by kid and identity.
func (k *Keys) usesByVault(keyURL string) map[string]map[KeyRef]*use {
	k.mu.RLock()
	defer k.mu.RUnlock()
	vaults := make(map[string]map[KeyRef]*use)
	for _, h := range k.handles {
		b := h.binding.Load()
		if !b.concerns(keyURL) || h.Check() != nil {
			continue
		}
		vault := vaultOf(b.kid)
		if vaults[vault] == nil {
			vaults[vault] = make(map[KeyRef]*use)
		}
		which := KeyRef{KeyURL: foldURL(b.kid), Identity: b.ref.Identity}
		u := vaults[vault][which]
		if u == nil {
			u = new(use)
			vaults[vault][which] = u
		}
		u.handles = append(u.handles, h)
		u.bindings = append(u.bindings, b)
	}
	return vaults
}

// vaultOf gives the host of a key's vault.
func vaultOf(kid string) string {
	u, err := url.Parse(foldURL(kid))
	if err != nil {
		return kid // wrap never lets such a kid in
	}
	return u.Host
}

// confirmUses asks one vault about all its uses, one after the other. After a
// question that timed out the rest waits for the next round.
func (k *Keys) confirmUses(ctx context.Context, uses map[KeyRef]*use) error {
	var failed []error
	for _, u := range uses {
		err := k.confirmUse(ctx, u)
		if err == nil {
			continue
		}
		failed = append(failed, err)
		if errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil {
			break
		}
	}
	return errors.Join(failed...)
}

// confirmUse is nil when the vault gave an answer, whichever.
func (k *Keys) confirmUse(ctx context.Context, u *use) error {
	ctx, cancel := context.WithTimeout(ctx, confirmTimeout)
	defer cancel()
	_, asked := k.now()
	h, b := u.handles[0], u.bindings[0]
	rec := &record{KeyID: h.key[:], Ref: b.ref, Kid: b.kid, Wrapped: b.wrapped}
	secret, err := k.unwrap(ctx, h.id, rec)
	switch {
	case err == nil:
		secret.zero()
		for i, h := range u.handles {
			h.confirm(u.bindings[i], asked)
		}
		return nil
	case errors.Is(err, ErrRevoked):
		for i, h := range u.handles {
			h.endIf(u.bindings[i], err)
		}
		return nil
	}
	return fmt.Errorf("confirming key %s: %w", b.kid, err)
}

// Run confirms the keys in use and ends the handles that nobody confirmed in
// time, until ctx is done.
func (k *Keys) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		// An outage is no error here: the sweep ends what was not confirmed.
		every(ctx, k.confirm, func() { _ = k.Reconfirm(ctx, "") })
	})
	every(ctx, sweepEvery, k.sweep)
	return nil
}

// sweep lets every handle notice that its time is over.
func (k *Keys) sweep() {
	k.mu.RLock()
	defer k.mu.RUnlock()
	for _, h := range k.handles {
		_ = h.Check()
	}
}

func every(ctx context.Context, period time.Duration, do func()) {
	t := time.NewTicker(period)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			do()
		}
	}
}
