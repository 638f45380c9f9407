package storetest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"casemate.dev/store"
)

var errEnough = errors.New("enough")

// collect watches until it has n changes or more, rendered as key=value@revision.
func collect(t testing.TB, s store.Store, prefix string, after store.Revision, n int) []string {
	t.Helper()
	var got []string
	err := s.Watch(context.Background(), prefix, after, func(changes []store.Change) error {
		for _, c := range changes {
			value := string(c.Value)
			if c.Deleted {
				value = "(deleted)"
			}
			got = append(got, fmt.Sprintf("%s=%s@%d", c.Key, value, c.Revision))
		}
		if len(got) >= n {
			return errEnough
		}
		return nil
	})
	wantError(t, "Watch", err, errEnough)
	return got
}

func testWatch(t *testing.T, f Factory) {
	s := open(t, f)
	put(t, s, "b", "1", "a", "1")
	put(t, s, "c", "2")
	update(t, s, func(tx store.Txn) error {
		tx.Put("b", []byte("x"))
		tx.Put("b", []byte("3"))
		tx.Delete("a")
		tx.Delete("never there")
		return nil
	})
	tests := []struct {
		prefix string
		after  store.Revision
		want   []string
	}{
		{"", 0, []string{"a=1@1", "b=1@1", "c=2@2", "a=(deleted)@3", "b=3@3"}},
		{"", 1, []string{"c=2@2", "a=(deleted)@3", "b=3@3"}},
		{"", 2, []string{"a=(deleted)@3", "b=3@3"}},
		{"b", 0, []string{"b=1@1", "b=3@3"}},
		{"a", 1, []string{"a=(deleted)@3"}},
	}
	for _, tt := range tests {
		if diff := cmp.Diff(tt.want, collect(t, s, tt.prefix, tt.after, len(tt.want))); diff != "" {
			t.Errorf("Watch(%q, %d) (-want +got):\n%s", tt.prefix, tt.after, diff)
		}
	}
}

// Watchers beside concurrent writers see every revision once and in order,
// never before a View can see it, and whole transactions.
func testWatchExactlyOnce(t *testing.T, f Factory) {
	s := open(t, f)
	const writers, rounds, watchers = 6, 20, 4
	watched := make(chan error, watchers)
	for range watchers {
		go func() { watched <- watchPairs(s, writers*rounds) }()
	}
	each(t, writers, func(i int) error {
		for n := range rounds {
			err := s.Update(context.Background(), func(tx store.Txn) error {
				tx.Put(fmt.Sprint("left", i), []byte{byte(n)})
				tx.Put(fmt.Sprint("right", i), []byte{byte(n)})
				return nil
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
	for range watchers {
		if err := <-watched; err != nil {
			t.Error(err)
		}
	}
}

func watchPairs(s store.Store, commits store.Revision) error {
	next := store.Revision(1)
	err := s.Watch(context.Background(), "", 0, func(changes []store.Change) error {
		if newest := s.Revision(); newest < changes[len(changes)-1].Revision {
			return fmt.Errorf("a change of revision %d came when the store was at %d", changes[len(changes)-1].Revision, newest)
		}
		for len(changes) > 0 {
			if len(changes) < 2 || changes[0].Revision != next || changes[1].Revision != next {
				return fmt.Errorf("want both changes of revision %d, got %v", next, changes)
			}
			changes = changes[2:]
			next++
		}
		if next > commits {
			return errEnough
		}
		return nil
	})
	if errors.Is(err, errEnough) {
		return nil
	}
	return err
}

func testWatchResumes(t *testing.T, f Factory) {
	s := open(t, f)
	var after store.Revision
	for i := range 10 {
		put(t, s, fmt.Sprint("k", i), "v")
		if i%2 == 0 {
			continue
		}
		got := collect(t, s, "", after, 2)
		want := []string{fmt.Sprintf("k%d=v@%d", i-1, i), fmt.Sprintf("k%d=v@%d", i, i+1)}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("resuming after %d (-want +got):\n%s", after, diff)
		}
		after = store.Revision(i + 1)
	}
}

func testWatchCompacted(t *testing.T, f Factory) {
	dir := t.TempDir()
	s := f.Open(t, dir)
	put(t, s, "a", "1")
	put(t, s, "a", "2")
	fn := func(changes []store.Change) error { return fmt.Errorf("got %v", changes) }
	wantError(t, "Watch from the future", s.Watch(context.Background(), "", 3, fn), store.ErrCompacted)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	s = f.OpenSmallFeed(t, dir)
	closeAtEnd(t, s)
	big := strings.Repeat("x", 64<<10)
	for range 17 {
		put(t, s, "big", big)
	}
	wantError(t, "Watch from before the ring", s.Watch(context.Background(), "", 2, fn), store.ErrCompacted)
	newest := s.Revision()
	put(t, s, "a", "3")
	if diff := cmp.Diff([]string{"a=3@20"}, collect(t, s, "a", newest, 1)); diff != "" {
		t.Errorf("Watch of the newest (-want +got):\n%s", diff)
	}
}

// A watcher that does not return from fn holds nobody up, and is told when it
// has missed something.
func testWatchSlowly(t *testing.T, f Factory) {
	s := f.OpenSmallFeed(t, t.TempDir())
	closeAtEnd(t, s)
	called, release, ended := make(chan struct{}), make(chan struct{}), make(chan error)
	go func() {
		ended <- s.Watch(context.Background(), "", 0, func([]store.Change) error {
			called <- struct{}{}
			<-release
			return nil
		})
	}()
	put(t, s, "a", "1")
	<-called
	big := strings.Repeat("x", 64<<10)
	for range 17 {
		put(t, s, "big", big)
	}
	if diff := cmp.Diff([]string{"a=2@19"}, func() []string {
		put(t, s, "a", "2")
		return collect(t, s, "a", 18, 1)
	}()); diff != "" {
		t.Errorf("beside a slow watcher (-want +got):\n%s", diff)
	}
	close(release)
	wantError(t, "the slow Watch", <-ended, store.ErrCompacted)
}

func testWatchEnds(t *testing.T, f Factory) {
	s := open(t, f)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() {
		ended <- s.Watch(ctx, "", 0, func([]store.Change) error { return nil })
	}()
	cancel()
	wantError(t, "a cancelled Watch", <-ended, context.Canceled)
	put(t, s, "a", "1")
	reason := errors.New("reason")
	err := s.Watch(context.Background(), "", 0, func([]store.Change) error { return reason })
	wantError(t, "a Watch whose fn fails", err, reason)
}

// Follow's picture equals the store although its feed is compacted again and
// again.
func testFollow(t *testing.T, f Factory) {
	s := f.OpenSmallFeed(t, t.TempDir())
	closeAtEnd(t, s)
	put(t, s, "n/before", "1", "other", "1")
	picture := map[string]string{}
	var loads atomic.Int32
	ended := make(chan error)
	go func() {
		load := func(r store.Reader) error {
			loads.Add(1)
			clear(picture)
			for kv, err := range r.Scan("n/", store.ScanOptions{}) {
				if err != nil {
					return err
				}
				picture[kv.Key] = kv.Key
			}
			return nil
		}
		ended <- store.Follow(context.Background(), s, "n/", load, func(changes []store.Change) error {
			for _, c := range changes {
				picture[c.Key] = c.Key
				if c.Key == "n/last" {
					return errEnough
				}
			}
			return nil
		})
	}()
	big := strings.Repeat("x", 300<<10)
	want := map[string]string{"n/before": "n/before", "n/last": "n/last"}
	for i := range 12 {
		key := fmt.Sprint("n/", i)
		want[key] = key
		put(t, s, key, big)
	}
	// Follow may be in load when the last change comes, and see it there: so
	// the last change is made until Follow has applied it.
	for done := false; !done; {
		put(t, s, "n/last", "1")
		select {
		case err := <-ended:
			wantError(t, "Follow", err, errEnough)
			done = true
		default:
		}
	}
	if diff := cmp.Diff(want, picture); diff != "" {
		t.Errorf("after %d loads (-want +got):\n%s", loads.Load(), diff)
	}
}
