package pebble_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"github.com/google/go-cmp/cmp"

	"casemate.dev/store"
	"casemate.dev/store/pebble"
	"casemate.dev/store/storetest"
)

const smallMemTable = 64 << 10

func openOn(fs vfs.FS, cipher *storetest.Cipher) (*pebble.Store, error) {
	return pebble.Open(pebble.Config{Dir: "store", FS: fs, Cipher: cipher}.WithMemTable(smallMemTable))
}

// A script is a row of updates, and what the store holds after each.
type script struct {
	updates []map[string]string // "" deletes
	states  []map[string]string // by revision
}

func newScript(n, valueSize int) script {
	rng := rand.New(rand.NewPCG(1, 2))
	sc := script{states: []map[string]string{{}}}
	for i := range n {
		state := maps.Clone(sc.states[i])
		writes := map[string]string{"counter": fmt.Sprint(i)}
		for range rng.IntN(4) {
			key := fmt.Sprint("key", rng.IntN(10))
			writes[key] = fmt.Sprint(i, strings.Repeat("v", rng.IntN(valueSize)))
			if rng.IntN(4) == 0 {
				writes[key] = ""
			}
		}
		for key, value := range writes {
			if state[key] = value; value == "" {
				delete(state, key)
			}
		}
		sc.updates = append(sc.updates, writes)
		sc.states = append(sc.states, state)
	}
	return sc
}

// run makes the updates one after the other, counting those acknowledged,
// until one fails.
func (sc script) run(s store.Store, acked *atomic.Int64) error {
	for _, writes := range sc.updates {
		err := s.Update(context.Background(), func(tx store.Txn) error {
			for key, value := range writes {
				if value == "" {
					tx.Delete(key)
				} else {
					tx.Put(key, []byte(value))
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		acked.Add(1)
	}
	return nil
}

// verify opens the disk that a crash has left: it must hold what some prefix
// of the script wrote, nothing acknowledged missing, and take new updates.
func (sc script) verify(fs vfs.FS, cipher *storetest.Cipher, acked int64) error {
	s, err := openOn(fs, cipher)
	if err != nil {
		return fmt.Errorf("opening after the crash: %w", err)
	}
	revision := s.Revision()
	if int64(revision) < acked {
		return fmt.Errorf("%d updates were acknowledged and %d are there", acked, revision)
	}
	got, err := contents(s)
	if err != nil {
		return err
	}
	if diff := cmp.Diff(sc.states[revision], got); diff != "" {
		return fmt.Errorf("at revision %d (-want +got):\n%s", revision, diff)
	}
	err = s.Update(context.Background(), func(tx store.Txn) error { tx.Put("after the crash", nil); return nil })
	return errors.Join(err, s.Close())
}

func contents(s store.Store) (map[string]string, error) {
	got := map[string]string{}
	err := s.View(context.Background(), func(r store.Reader) error {
		for kv, err := range r.Scan("", store.ScanOptions{}) {
			if err != nil {
				return err
			}
			got[kv.Key] = string(kv.Value)
		}
		return nil
	})
	return got, err
}

// crasher is a disk that calls at before each of its writes, with their number.
func crasher(mem *vfs.MemFS, at func(n int)) vfs.FS {
	var n atomic.Int64
	return errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind.ReadOrWrite() == errorfs.OpIsWrite {
			at(int(n.Add(1)))
		}
		return nil
	}))
}

// crash returns what the disk may hold after a power failure now: all that was
// synced, and percent of what was not.
func crash(mem *vfs.MemFS, percent int, seed uint64) *vfs.MemFS {
	return mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rand.New(rand.NewPCG(seed, 3))})
}

// The power fails before each single write in turn, from the creation of the
// store through commits, flushes and compactions.
func TestCrashAtEveryWrite(t *testing.T) {
	sc := newScript(60, 12<<10)
	mem, cipher := vfs.NewCrashableMem(), storetest.NewCipher()
	var acked atomic.Int64
	var wg sync.WaitGroup
	slots := make(chan struct{}, 4)
	crashes := 0
	var mu sync.Mutex
	disk := crasher(mem, func(n int) {
		mu.Lock()
		defer mu.Unlock()
		crashes++
		percents := []int{0, 50}
		if testing.Short() {
			percents = percents[n%2:][:1]
		}
		for _, percent := range percents {
			before := acked.Load()
			clone := crash(mem, percent, uint64(n))
			slots <- struct{}{}
			wg.Go(func() {
				defer func() { <-slots }()
				if err := sc.verify(clone, cipher, before); err != nil {
					t.Errorf("crash before write %d, keeping %d %% of what was not synced: %v", n, percent, err)
				}
			})
		}
	})
	s, err := openOn(disk, cipher)
	if err != nil {
		t.Fatal(err)
	}
	if err := sc.run(s, &acked); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	if crashes < 200 {
		t.Errorf("the script made only %d writes", crashes)
	}
	t.Logf("%d crash points", crashes)
}

// The power fails while many writers share syncs: every acknowledged pair is
// there, and no half of a pair.
func TestCrashUnderConcurrentWriters(t *testing.T) {
	const writers, rounds = 8, 30
	mem, cipher := vfs.NewCrashableMem(), storetest.NewCipher()
	var acked [writers]atomic.Int64
	var mu sync.Mutex
	verify := func(clone *vfs.MemFS, before [writers]int64) error {
		s, err := openOn(clone, cipher)
		if err != nil {
			return err
		}
		got, err := contents(s)
		if err != nil {
			return err
		}
		for w, want := range before {
			left, right := got[fmt.Sprint("left", w)], got[fmt.Sprint("right", w)]
			if left != right || int64(len(left)) < want {
				return fmt.Errorf("writer %d had %d acknowledged; found %d and %d", w, want, len(left), len(right))
			}
		}
		return s.Close()
	}
	disk := crasher(mem, func(n int) {
		if n%5 != 0 {
			return
		}
		mu.Lock()
		defer mu.Unlock()
		var before [writers]int64
		for w := range before {
			before[w] = acked[w].Load()
		}
		if err := verify(crash(mem, n%100, uint64(n)), before); err != nil {
			t.Errorf("crash before write %d: %v", n, err)
		}
	})
	s, err := openOn(disk, cipher)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for n := 1; n <= rounds; n++ {
				err := s.Update(context.Background(), func(tx store.Txn) error {
					tx.Put(fmt.Sprint("left", w), []byte(strings.Repeat("x", n)))
					tx.Put(fmt.Sprint("right", w), []byte(strings.Repeat("x", n)))
					return nil
				})
				if err != nil {
					t.Errorf("writer %d: %v", w, err)
					return
				}
				acked[w].Store(int64(n))
			}
		})
	}
	wg.Wait()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// Each operation on the disk fails in turn with "no space left". The store
// goes on as if nothing was, or is closed for every use; in either case
// nothing acknowledged is lost.
func TestEveryOperationFailsInTurn(t *testing.T) {
	sc := newScript(25, 12<<10)
	failed := 0
	for n := int64(0); ; n++ {
		mem, cipher := vfs.NewCrashableMem(), storetest.NewCipher()
		var count, acked atomic.Int64
		var op errorfs.Op
		disk := errorfs.Wrap(mem, errorfs.InjectorFunc(func(o errorfs.Op) error {
			if count.Add(1) != n+1 {
				return nil
			}
			op = o
			return syscall.ENOSPC
		}))
		s, err := openOn(disk, cipher)
		if err == nil {
			if err = sc.run(s, &acked); errors.Is(err, store.ErrFailed) {
				failed++
				expectFailed(t, s)
			} else {
				err = errors.Join(err, s.Close())
			}
		}
		if err != nil && !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("operation %d fails: %v does not give the reason", n, err)
		}
		if err := sc.verify(crash(mem, 0, 0), cipher, acked.Load()); err != nil {
			t.Errorf("operation %d (kind %d) fails: %v", n, op.Kind, err)
		}
		if count.Load() <= n {
			t.Logf("%d operations, %d of which end the store", n, failed)
			break
		}
		if n > 5000 {
			t.Fatal("the script does not end")
		}
	}
	if failed < 50 {
		t.Errorf("only %d operations ended the store", failed)
	}
}

// expectFailed checks that a failed store refuses every use.
func expectFailed(t *testing.T, s *pebble.Store) {
	t.Helper()
	ctx := context.Background()
	never := errors.New("fn was called on a failed store")
	uses := map[string]error{
		"View":   s.View(ctx, func(store.Reader) error { return never }),
		"Update": s.Update(ctx, func(store.Txn) error { return never }),
		"Watch":  s.Watch(ctx, "", s.Revision(), func([]store.Change) error { return never }),
		"Run":    s.Run(ctx),
		"Close":  s.Close(),
	}
	for use, err := range uses {
		if !errors.Is(err, store.ErrFailed) {
			t.Errorf("%s of a failed store returned %v", use, err)
		}
	}
}

// The disk fills while a Watch waits and many writers commit: all of them hear
// of it, and no Update was acknowledged in vain.
func TestDiskFullInTheLog(t *testing.T) {
	const writers = 8
	mem, cipher := vfs.NewCrashableMem(), storetest.NewCipher()
	var full atomic.Bool
	disk := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if full.Load() && op.Kind.ReadOrWrite() == errorfs.OpIsWrite {
			return syscall.ENOSPC
		}
		return nil
	}))
	s, err := openOn(disk, cipher)
	if err != nil {
		t.Fatal(err)
	}
	watching := make(chan error)
	go func() {
		watching <- s.Watch(context.Background(), "none", 0, func([]store.Change) error { return nil })
	}()
	var acked [writers]int
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for n := 1; ; n++ {
				if w == 0 && n == 10 {
					full.Store(true)
				}
				err := s.Update(context.Background(), func(tx store.Txn) error {
					tx.Put(fmt.Sprint(w), []byte(strings.Repeat("x", n)))
					return nil
				})
				if err != nil {
					if !errors.Is(err, store.ErrFailed) || !errors.Is(err, syscall.ENOSPC) {
						t.Errorf("on a full disk Update returned %v", err)
					}
					return
				}
				acked[w] = n
			}
		})
	}
	wg.Wait()
	if err := <-watching; !errors.Is(err, store.ErrFailed) {
		t.Errorf("the Watch ended with %v", err)
	}
	expectFailed(t, s)

	again, err := openOn(crash(mem, 0, 0), cipher)
	if err != nil {
		t.Fatal(err)
	}
	got, err := contents(again)
	if err != nil {
		t.Fatal(err)
	}
	for w, n := range acked {
		if len(got[fmt.Sprint(w)]) < n {
			t.Errorf("writer %d: %d updates were acknowledged and %d are there", w, n, len(got[fmt.Sprint(w)]))
		}
	}
	if err := again.Close(); err != nil {
		t.Fatal(err)
	}
}

// What is not durable yet is shown to no View and acknowledged to no Update,
// not even to one that only read it.
func TestNothingIsShownBeforeItIsDurable(t *testing.T) {
	mem := vfs.NewMem()
	gate := make(chan struct{})
	var closed atomic.Bool
	disk := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if closed.Load() && (op.Kind == errorfs.OpFileSync || op.Kind == errorfs.OpFileSyncData) {
			<-gate
		}
		return nil
	}))
	s, err := openOn(disk, storetest.NewCipher())
	if err != nil {
		t.Fatal(err)
	}
	put := func(value string) error {
		return s.Update(context.Background(), func(tx store.Txn) error { tx.Put("k", []byte(value)); return nil })
	}
	if err := put("old"); err != nil {
		t.Fatal(err)
	}
	closed.Store(true)
	written := make(chan error, 1)
	go func() { written <- put("new") }()

	// Transactions read their predecessors' writes at once…
	readOnly := make(chan error, 1)
	sawNew := make(chan struct{})
	go func() {
		for seen := false; !seen; {
			err := s.Update(context.Background(), func(tx store.Txn) error {
				kv, err := tx.Get("k")
				if string(kv.Value) == "new" && !seen {
					seen = true
					close(sawNew)
				}
				return err
			})
			if err != nil || seen {
				readOnly <- err
				return
			}
		}
	}()
	<-sawNew
	// …but nobody outside hears of them.
	if got, err := contents(s); err != nil || got["k"] != "old" {
		t.Errorf("before the sync a View sees %q, %v", got["k"], err)
	}
	if got := s.Revision(); got != 1 {
		t.Errorf("before the sync the revision is %d", got)
	}
	select {
	case err := <-written:
		t.Errorf("the write returned %v before its sync", err)
	case err := <-readOnly:
		t.Errorf("the read returned %v before the sync of what it read", err)
	default:
	}
	closed.Store(false)
	close(gate)
	if err := errors.Join(<-written, <-readOnly); err != nil {
		t.Error(err)
	}
	if got, err := contents(s); err != nil || got["k"] != "new" {
		t.Errorf("after the sync a View sees %q, %v", got["k"], err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}
