package storetest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"casemate.dev/store"
)

// each runs fn in n goroutines and fails the test with their errors.
func each(t testing.TB, n int, fn func(i int) error) {
	t.Helper()
	var wg sync.WaitGroup
	errs := make([]error, n)
	for i := range n {
		wg.Go(func() { errs[i] = fn(i) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func number(r store.Reader, key string) (int, error) {
	kv, err := r.Get(key)
	if errors.Is(err, store.ErrNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(string(kv.Value))
}

// No increment is lost: Updates are serializable.
func testConcurrentIncrements(t *testing.T, f Factory) {
	s := open(t, f)
	const writers, rounds = 8, 25
	each(t, writers, func(int) error {
		for range rounds {
			err := s.Update(context.Background(), func(tx store.Txn) error {
				n, err := number(tx, "n")
				tx.Put("n", []byte(strconv.Itoa(n+1)))
				return err
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
	expect(t, s, fmt.Sprintf("n=%d@%d", writers*rounds, writers*rounds))
}

// Money moves between accounts while Views watch that none appears or vanishes.
func testConcurrentTransfers(t *testing.T, f Factory) {
	s := open(t, f)
	const accounts, total = 5, 500
	update(t, s, func(tx store.Txn) error {
		for i := range accounts {
			tx.Put(store.Key("account", strconv.Itoa(i)), []byte(strconv.Itoa(total/accounts)))
		}
		return nil
	})
	transfer := func(rng *rand.Rand) error {
		return s.Update(context.Background(), func(tx store.Txn) error {
			from := store.Key("account", strconv.Itoa(rng.IntN(accounts)))
			to := store.Key("account", strconv.Itoa(rng.IntN(accounts)))
			a, err := number(tx, from)
			if err != nil {
				return err
			}
			tx.Put(from, []byte(strconv.Itoa(a-1)))
			b, err := number(tx, to)
			tx.Put(to, []byte(strconv.Itoa(b+1)))
			return err
		})
	}
	sum := func() error {
		return s.View(context.Background(), func(r store.Reader) error {
			sum := 0
			for kv, err := range r.Scan(store.Prefix("account"), store.ScanOptions{}) {
				if err != nil {
					return err
				}
				n, err := strconv.Atoi(string(kv.Value))
				if err != nil {
					return err
				}
				sum += n
			}
			if sum != total {
				return fmt.Errorf("a View found %d, want %d", sum, total)
			}
			return nil
		})
	}
	each(t, 8, func(i int) error {
		rng := rand.New(rand.NewPCG(uint64(i), 0))
		for range 25 {
			var err error
			if i%2 == 0 {
				err = transfer(rng)
			} else {
				err = sum()
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

func testReopen(t *testing.T, f Factory) {
	dir := t.TempDir()
	var want []string
	for i := range 5 {
		s := f.Open(t, dir)
		if got := s.Revision(); got != store.Revision(i) {
			t.Errorf("opened at revision %d, want %d", got, i)
		}
		expect(t, s, want...)
		put(t, s, fmt.Sprint("k", i), "v")
		want = append(want, fmt.Sprintf("k%d=v@%d", i, i+1))
		expect(t, s, want...)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func testClose(t *testing.T, f Factory) {
	s := f.Open(t, t.TempDir())
	watching := make(chan error)
	go func() {
		watching <- s.Watch(context.Background(), "", 0, func([]store.Change) error { return nil })
	}()
	put(t, s, "a", "1")
	for range 2 {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	wantError(t, "Watch", <-watching, store.ErrClosed)
	ctx := context.Background()
	never := errors.New("fn was called on a closed store")
	wantError(t, "View", s.View(ctx, func(store.Reader) error { return never }), store.ErrClosed)
	wantError(t, "Update", s.Update(ctx, func(store.Txn) error { return never }), store.ErrClosed)
	wantError(t, "Watch", s.Watch(ctx, "", 1, func([]store.Change) error { return never }), store.ErrClosed)
	if got := s.Revision(); got != 1 {
		t.Errorf("the revision of a closed store is %d, want 1", got)
	}
}

// oracle is the slow, obvious store: a map, and the whole feed.
type oracle struct {
	records  map[string]store.KV
	revision store.Revision
	feed     []store.Change
}

func (o *oracle) commit(writes map[string]*string) {
	changed := false
	for _, key := range slices.Sorted(maps.Keys(writes)) {
		value := writes[key]
		if _, ok := o.records[key]; value == nil && !ok {
			continue
		}
		if !changed {
			changed = true
			o.revision++
		}
		if value == nil {
			delete(o.records, key)
			o.feed = append(o.feed, store.Change{Key: key, Deleted: true, Revision: o.revision})
			continue
		}
		o.records[key] = store.KV{Key: key, Value: []byte(*value), Revision: o.revision}
		o.feed = append(o.feed, store.Change{Key: key, Value: []byte(*value), Revision: o.revision})
	}
}

// Random transactions, rollbacks and reopenings give what the oracle has.
func testOracle(t *testing.T, f Factory) {
	checks := 0
	rapid.Check(t, func(rt *rapid.T) {
		if checks++; checks > 15 {
			return // each check costs many fsyncs
		}
		dir := t.TempDir()
		s := f.Open(t, dir)
		defer func() { _ = s.Close() }()
		o := &oracle{records: map[string]store.KV{}}
		key := rapid.SampledFrom([]string{"a", "a/", "a/b", "b", "\x00", "\xff", "\xff\xff"})
		for range rapid.IntRange(1, 12).Draw(rt, "steps") {
			switch rapid.IntRange(0, 9).Draw(rt, "step") {
			case 0:
				if err := s.Close(); err != nil {
					rt.Fatal(err)
				}
				s = f.Open(t, dir)
				o.feed = nil
			case 1:
				_ = s.Update(context.Background(), func(tx store.Txn) error {
					tx.Put(key.Draw(rt, "key"), []byte("rolled back"))
					return errors.New("rollback")
				})
			default:
				oracleUpdate(rt, s, o, key)
			}
			compare(rt, s, o)
		}
		compareFeed(rt, s, o)
	})
}

func oracleUpdate(rt *rapid.T, s store.Store, o *oracle, key *rapid.Generator[string]) {
	// Drawn beforehand, since an implementation may run fn again.
	type write struct {
		key   string
		value string
		del   bool
	}
	existed := map[string]bool{}
	var writes []write
	for range rapid.IntRange(0, 4).Draw(rt, "writes") {
		w := write{key.Draw(rt, "key"), rapid.StringN(0, 3, -1).Draw(rt, "value"), rapid.Bool().Draw(rt, "delete")}
		if _, ok := o.records[w.key]; w.del && !ok && existed[w.key] {
			continue // whether put and delete in one is a change is not specified
		}
		existed[w.key] = true
		writes = append(writes, w)
	}
	err := s.Update(context.Background(), func(tx store.Txn) error {
		for _, w := range writes {
			if w.del {
				tx.Delete(w.key)
			} else {
				tx.Put(w.key, []byte(w.value))
			}
		}
		return nil
	})
	if err != nil {
		rt.Fatal(err)
	}
	last := map[string]*string{}
	for _, w := range writes {
		if last[w.key] = &w.value; w.del {
			last[w.key] = nil
		}
	}
	o.commit(last)
}

func compare(rt *rapid.T, s store.Store, o *oracle) {
	if got := s.Revision(); got != o.revision {
		rt.Fatalf("revision is %d, the oracle's %d", got, o.revision)
	}
	prefix := rapid.SampledFrom([]string{"", "a", "a/", "\xff"}).Draw(rt, "prefix")
	opt := store.ScanOptions{
		After:   rapid.SampledFrom([]string{"", "a", "a/a", "b", "\xff"}).Draw(rt, "after"),
		Limit:   rapid.IntRange(0, 3).Draw(rt, "limit"),
		Reverse: rapid.Bool().Draw(rt, "reverse"),
	}
	var got []store.KV
	err := s.View(context.Background(), func(r store.Reader) error {
		got = nil
		for kv, err := range r.Scan(prefix, opt) {
			if err != nil {
				return err
			}
			got = append(got, kv)
		}
		return nil
	})
	if err != nil {
		rt.Fatal(err)
	}
	if diff := cmp.Diff(o.scan(prefix, opt), got); diff != "" {
		rt.Fatalf("Scan(%q, %+v) (-oracle +store):\n%s", prefix, opt, diff)
	}
}

func (o *oracle) scan(prefix string, opt store.ScanOptions) []store.KV {
	keys := slices.Sorted(maps.Keys(o.records))
	if opt.Reverse {
		slices.Reverse(keys)
	}
	var out []store.KV
	for _, key := range keys {
		past := opt.After == "" || key > opt.After
		if opt.Reverse {
			past = opt.After == "" || key < opt.After
		}
		if past && len(key) >= len(prefix) && key[:len(prefix)] == prefix {
			out = append(out, o.records[key])
		}
		if len(out) == opt.Limit && opt.Limit > 0 {
			break
		}
	}
	return out
}

func compareFeed(rt *rapid.T, s store.Store, o *oracle) {
	if len(o.feed) == 0 {
		return
	}
	var got []store.Change
	enough := errors.New("enough")
	err := s.Watch(context.Background(), "", o.feed[0].Revision-1, func(changes []store.Change) error {
		got = append(got, changes...)
		if len(got) >= len(o.feed) {
			return enough
		}
		return nil
	})
	if !errors.Is(err, enough) {
		rt.Fatalf("Watch: %v", err)
	}
	if diff := cmp.Diff(o.feed, got); diff != "" {
		rt.Fatalf("feed (-oracle +store):\n%s", diff)
	}
}
