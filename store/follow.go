package store

import (
	"context"
	"errors"
)

// Follow keeps a caller's picture of the keys with prefix current: it calls
// load with a snapshot, then apply with the changes after that snapshot, and
// begins again with load whenever the feed was compacted. It blocks until ctx
// ends, a function returns an error, or the store fails or closes.
//
// Changes may be applied that the snapshot held already (never the other way
// round), so apply must be idempotent: set what a Change says, by key.
func Follow(ctx context.Context, s Store, prefix string, load func(Reader) error, apply func([]Change) error) error {
	for {
		// Taken before the View, so that no change falls between the two.
		after := s.Revision()
		if err := s.View(ctx, load); err != nil {
			return err
		}
		err := s.Watch(ctx, prefix, after, apply)
		if !errors.Is(err, ErrCompacted) {
			return err
		}
	}
}
