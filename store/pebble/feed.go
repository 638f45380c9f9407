package pebble

import (
	"context"
	"strings"
	"sync"

	"casemate.dev/store"
)

// feed is the ring of the newest durable commits, from which Watches read. It
// is bounded in memory; a Watch that needs a commit which has left the ring
// gets store.ErrCompacted. Writers never wait for a Watch.
type feed struct {
	limit int // bytes

	mu    sync.Mutex
	ring  []entry        // revisions floor+1, floor+2, … without a gap
	bytes int            // held by ring
	floor store.Revision // the newest revision that is no longer held
	wake  chan struct{}  // closes at the next append or stop
	err   error          // the store failed or closed
}

type entry struct {
	changes []store.Change
	bytes   int
}

// What the ring holds beside a change's key and value, about.
const changeOverhead = 96

// A Watch's fn gets no more changes at once than this, but always whole commits.
const maxChanges = 1024

func newFeed(limit int) *feed {
	if limit <= 0 {
		limit = defaultFeedBytes
	}
	return &feed{limit: limit, wake: make(chan struct{})}
}

// start says which revision the store has reached; nothing before is known.
func (f *feed) start(r store.Revision) { f.floor = r }

// append adds the changes of the next commit, whose revision is the last one's
// plus 1.
func (f *feed) append(changes []store.Change) {
	size := changeOverhead
	for i := range changes {
		size += len(changes[i].Key) + len(changes[i].Value) + changeOverhead
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ring = append(f.ring, entry{changes, size})
	f.bytes += size
	for f.bytes > f.limit {
		f.bytes -= f.ring[0].bytes
		f.ring[0] = entry{}
		f.ring = f.ring[1:]
		f.floor++
	}
	f.wakeLocked()
}

// stop ends every Watch with err.
func (f *feed) stop(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
	f.wakeLocked()
}

func (f *feed) wakeLocked() {
	close(f.wake)
	f.wake = make(chan struct{})
}

// next returns changes of whole commits after the revision, and the revision
// up to which they go. Without any it returns the channel to wait for.
func (f *feed) next(prefix string, after store.Revision) ([]store.Change, store.Revision, <-chan struct{}, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	newest := f.floor + store.Revision(len(f.ring))
	if f.err != nil {
		return nil, after, nil, f.err
	}
	if after < f.floor || after > newest {
		return nil, after, nil, store.ErrCompacted
	}
	var found []store.Change
	for ; after < newest && len(found) < maxChanges; after++ {
		for _, c := range f.ring[after-f.floor].changes {
			if strings.HasPrefix(c.Key, prefix) {
				found = append(found, c)
			}
		}
	}
	return found, after, f.wake, nil
}

// Watch implements store.Store.
func (s *Store) Watch(ctx context.Context, prefix string, after store.Revision, fn func([]store.Change) error) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		changes, upTo, wake, err := s.feed.next(prefix, after)
		if err != nil {
			return err
		}
		after = upTo
		if len(changes) > 0 {
			if err := fn(changes); err != nil {
				return err
			}
			continue
		}
		select {
		case <-wake:
		case <-ctx.Done():
		}
	}
}
