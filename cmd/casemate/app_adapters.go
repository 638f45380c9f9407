package main

import (
	"context"
	"time"

	"casemate.dev/resource"
)

func (a *App) clock() resource.Clock { return time.Now }

// principalRemoved deletes the role assignments of a principal that is gone.
func (a *App) principalRemoved(ctx context.Context, objectID string) error {
	if a.removePrincipal == nil {
		return errNotJoined
	}
	return a.removePrincipal(ctx, objectID)
}

// assignmentChanged asks the vaults again about every key in use when a role is taken away: a lost permission is a
// revocation, and it holds before the client hears of it.
func (a *App) assignmentChanged(ctx context.Context, before, after *resource.Document) {
	if before == nil || after != nil {
		return
	}
	if err := a.keys.Reconfirm(ctx, ""); err != nil {
		a.log.Warn("asking the vaults again after a role was taken away", "cause", err)
	}
}

// rotated rewraps the resource keys below a key that has a new version, in the background; whoever reads meanwhile uses the
// old version, which stays valid.
func (a *App) rotated(keyURL string) {
	a.work.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
		defer cancel()
		if n, err := a.keys.Rotate(ctx, keyURL); err != nil {
			a.log.Error("rewrapping after a rotation", "key", keyURL, "rewrapped", n, "cause", err)
		}
	})
}
