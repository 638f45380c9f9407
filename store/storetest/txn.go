package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"casemate.dev/store"
)

func testGetPut(t *testing.T, f Factory) {
	s := open(t, f)
	err := s.View(context.Background(), func(r store.Reader) error {
		_, err := r.Get("a")
		return err
	})
	wantError(t, "Get of a missing key", err, store.ErrNotFound)
	put(t, s, "a", "1")
	put(t, s, "b", "", "a", "2")
	expect(t, s, "a=2@2", "b=@2")
	update(t, s, func(tx store.Txn) error {
		tx.Delete("a")
		tx.Delete("never there")
		return nil
	})
	expect(t, s, "b=@2")
	err = s.View(context.Background(), func(r store.Reader) error {
		_, err := r.Get("a")
		return err
	})
	wantError(t, "Get of a deleted key", err, store.ErrNotFound)
}

func testKeys(t *testing.T, f Factory) {
	s := open(t, f)
	for _, key := range []string{"", strings.Repeat("k", store.MaxKeySize+1)} {
		writes := map[string]func(store.Txn) error{
			"Put":           func(tx store.Txn) error { tx.Put(key, nil); return nil },
			"Delete":        func(tx store.Txn) error { tx.Delete(key); return nil },
			"CompareAndSet": func(tx store.Txn) error { return tx.CompareAndSet(key, 0, nil) },
			"Get":           func(tx store.Txn) error { _, err := tx.Get(key); return err },
		}
		for name, write := range writes {
			err := s.Update(context.Background(), func(tx store.Txn) error {
				tx.Put("beside", nil)
				return write(tx)
			})
			wantError(t, fmt.Sprintf("%s of a key of %d bytes", name, len(key)), err, store.ErrInvalidKey)
		}
	}
	expect(t, s)
	longest := strings.Repeat("k", store.MaxKeySize)
	put(t, s, longest, "v", "\x00\xff", "w")
	expect(t, s, "\x00\xff=w@1", longest+"=v@1")
}

func testValuesAreCopies(t *testing.T, f Factory) {
	s := open(t, f)
	value := []byte("value")
	update(t, s, func(tx store.Txn) error {
		tx.Put("k", value)
		value[0] = 'X'
		kv, err := tx.Get("k")
		if err != nil {
			return err
		}
		kv.Value[1] = 'X'
		return nil
	})
	value[2] = 'X'
	err := s.View(context.Background(), func(r store.Reader) error {
		kv, err := r.Get("k")
		if err != nil {
			return err
		}
		kv.Value[3] = 'X'
		for kv, err := range r.Scan("", store.ScanOptions{}) {
			if err != nil {
				return err
			}
			kv.Value[4] = 'X'
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	expect(t, s, "k=value@1")
}

func testOwnWrites(t *testing.T, f Factory) {
	s := open(t, f)
	put(t, s, "a", "old", "b", "old", "c", "old")
	update(t, s, func(tx store.Txn) error {
		tx.Put("a", []byte("new"))
		tx.Delete("b")
		tx.Put("d", []byte("new"))
		want := []string{"a=new@2", "c=old@1", "d=new@2"}
		if diff := cmp.Diff(want, dump(t, tx.Scan("", store.ScanOptions{}))); diff != "" {
			t.Errorf("scan of own writes (-want +got):\n%s", diff)
		}
		if _, err := tx.Get("b"); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("Get of a key deleted here: %v", err)
		}
		tx.Put("b", []byte("back"))
		tx.Put("a", []byte("newer"))
		tx.Delete("d")
		return nil
	})
	expect(t, s, "a=newer@2", "b=back@2", "c=old@1")
}

func testRollback(t *testing.T, f Factory) {
	s := open(t, f)
	put(t, s, "a", "1")
	reason := errors.New("a reason")
	err := s.Update(context.Background(), func(tx store.Txn) error {
		tx.Put("a", []byte("2"))
		tx.Put("b", []byte("2"))
		return reason
	})
	wantError(t, "Update", err, reason)
	expect(t, s, "a=1@1")
	if got := s.Revision(); got != 1 {
		t.Errorf("revision is %d after a rollback, want 1", got)
	}
	put(t, s, "b", "3")
	expect(t, s, "a=1@1", "b=3@2")
}

func testCompareAndSet(t *testing.T, f Factory) {
	s := open(t, f)
	cas := func(key string, want store.Revision, value string) error {
		return s.Update(context.Background(), func(tx store.Txn) error {
			return tx.CompareAndSet(key, want, []byte(value))
		})
	}
	steps := []struct {
		want  store.Revision
		value string
		err   error
	}{
		{1, "absent", store.ErrConflict},
		{0, "created", nil},
		{0, "again", store.ErrConflict},
		{2, "future", store.ErrConflict},
		{1, "changed", nil},
		{1, "stale", store.ErrConflict},
		{2, "changed again", nil},
	}
	for _, step := range steps {
		wantError(t, "CompareAndSet to "+step.value, cas("k", step.want, step.value), step.err)
	}
	expect(t, s, "k=changed again@3")

	// A conflict that fn swallows leaves the rest of the transaction alone.
	update(t, s, func(tx store.Txn) error {
		wantError(t, "CompareAndSet", tx.CompareAndSet("k", 1, nil), store.ErrConflict)
		tx.Delete("k")
		if err := tx.CompareAndSet("k", 0, []byte("anew")); err != nil {
			return err
		}
		return tx.CompareAndSet("k", 4, []byte("anew twice"))
	})
	expect(t, s, "k=anew twice@4")
}

func testRevisions(t *testing.T, f Factory) {
	s := open(t, f)
	if got := s.Revision(); got != 0 {
		t.Errorf("an empty store is at revision %d", got)
	}
	put(t, s, "a", "1")
	update(t, s, func(tx store.Txn) error { return nil })
	update(t, s, func(tx store.Txn) error { tx.Delete("nothing"); return nil })
	if got := s.Revision(); got != 1 {
		t.Errorf("revision is %d after one write, want 1", got)
	}
	put(t, s, "a", "1")
	expect(t, s, "a=1@2")
}

func testScan(t *testing.T, f Factory) {
	s := open(t, f)
	put(t, s, "a", "", "a/", "", "a/1", "", "a/2", "", "a/3", "", "a0", "", "b", "", "\xff", "", "\xff\xff", "", "\xff\xff\x00", "")
	tests := []struct {
		prefix string
		opt    store.ScanOptions
		want   string
	}{
		{"a/", store.ScanOptions{}, "a/ a/1 a/2 a/3"},
		{"a/", store.ScanOptions{Reverse: true}, "a/3 a/2 a/1 a/"},
		{"a/", store.ScanOptions{Limit: 2}, "a/ a/1"},
		{"a/", store.ScanOptions{Limit: 2, Reverse: true}, "a/3 a/2"},
		{"a/", store.ScanOptions{After: "a/1"}, "a/2 a/3"},
		{"a/", store.ScanOptions{After: "a/1", Reverse: true}, "a/"},
		{"a/", store.ScanOptions{After: "a/15", Limit: 1}, "a/2"},
		{"a/", store.ScanOptions{After: "a/15", Reverse: true, Limit: 1}, "a/1"},
		{"a/", store.ScanOptions{After: "A"}, "a/ a/1 a/2 a/3"},
		{"a/", store.ScanOptions{After: "z"}, ""},
		{"a/", store.ScanOptions{After: "z", Reverse: true}, "a/3 a/2 a/1 a/"},
		{"a/", store.ScanOptions{After: "A", Reverse: true}, ""},
		{"a/", store.ScanOptions{After: "a/3"}, ""},
		{"c", store.ScanOptions{}, ""},
		{"\xff", store.ScanOptions{}, "\xff \xff\xff \xff\xff\x00"},
		{"\xff\xff", store.ScanOptions{Reverse: true}, "\xff\xff\x00 \xff\xff"},
		{"", store.ScanOptions{Limit: 3}, "a a/ a/1"},
		{"", store.ScanOptions{Limit: 1, Reverse: true}, "\xff\xff\x00"},
	}
	for _, tt := range tests {
		for _, keysOnly := range []bool{false, true} {
			tt.opt.KeysOnly = keysOnly
			got := strings.Join(scanKeys(t, s, tt.prefix, tt.opt), " ")
			if got != tt.want {
				t.Errorf("Scan(%q, %+v) yields %q, want %q", tt.prefix, tt.opt, got, tt.want)
			}
		}
	}
}

func scanKeys(t testing.TB, s store.Store, prefix string, opt store.ScanOptions) []string {
	t.Helper()
	var keys []string
	err := s.View(context.Background(), func(r store.Reader) error {
		for kv, err := range r.Scan(prefix, opt) {
			if err != nil {
				return err
			}
			if opt.KeysOnly != (kv.Value == nil) {
				t.Errorf("with KeysOnly %v the value is %v", opt.KeysOnly, kv.Value)
			}
			keys = append(keys, kv.Key)
		}
		return nil
	})
	if err != nil {
		t.Fatalf("View: %v", err)
	}
	return keys
}

func testScanInTransaction(t *testing.T, f Factory) {
	s := open(t, f)
	put(t, s, "a", "1", "b", "1", "c", "1")
	update(t, s, func(tx store.Txn) error {
		seen := 0
		for kv, err := range tx.Scan("", store.ScanOptions{}) {
			if err != nil {
				return err
			}
			seen++
			tx.Delete(kv.Key)
			tx.Put(kv.Key+"x", kv.Value)
		}
		if seen != 3 {
			t.Errorf("the scan saw %d records, want the 3 from before it", seen)
		}
		return nil
	})
	expect(t, s, "ax=1@2", "bx=1@2", "cx=1@2")
}

func testViewIsSnapshot(t *testing.T, f Factory) {
	s := open(t, f)
	put(t, s, "a", "1", "b", "1")
	err := s.View(context.Background(), func(r store.Reader) error {
		put(t, s, "a", "2", "c", "2")
		update(t, s, func(tx store.Txn) error { tx.Delete("b"); return nil })
		want := []string{"a=1@1", "b=1@1"}
		if diff := cmp.Diff(want, dump(t, r.Scan("", store.ScanOptions{}))); diff != "" {
			t.Errorf("an old View changed (-want +got):\n%s", diff)
		}
		kv, err := r.Get("b")
		if string(kv.Value) != "1" {
			t.Errorf("Get(b) = %q in an old View", kv.Value)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	expect(t, s, "a=2@2", "c=2@2")
}

func testEndedTransactions(t *testing.T, f Factory) {
	s := open(t, f)
	put(t, s, "a", "1")
	var oldReader store.Reader
	var oldTxn store.Txn
	if err := s.View(context.Background(), func(r store.Reader) error { oldReader = r; return nil }); err != nil {
		t.Fatal(err)
	}
	update(t, s, func(tx store.Txn) error { oldTxn = tx; tx.Put("b", nil); return nil })
	for name, r := range map[string]store.Reader{"Reader": oldReader, "Txn": oldTxn} {
		if kv, err := r.Get("a"); err == nil {
			t.Errorf("Get on an ended %s = %v", name, kv)
		}
		for kv, err := range r.Scan("", store.ScanOptions{}) {
			if err == nil {
				t.Errorf("Scan on an ended %s yields %v", name, kv)
			}
		}
	}
	oldTxn.Put("c", nil)
	oldTxn.Delete("a")
	if err := oldTxn.CompareAndSet("d", 0, nil); err == nil {
		t.Error("CompareAndSet on an ended Txn succeeded")
	}
	expect(t, s, "a=1@1", "b=@2")
}

func testContext(t *testing.T, f Factory) {
	s := open(t, f)
	put(t, s, "a", "1", "b", "1")
	ctx, cancel := context.WithCancel(context.Background())
	err := s.View(ctx, func(r store.Reader) error {
		for _, err := range r.Scan("", store.ScanOptions{}) {
			if err != nil {
				return err
			}
			cancel()
		}
		return nil
	})
	wantError(t, "View whose scan is cancelled", err, context.Canceled)
	wantError(t, "View", s.View(ctx, func(store.Reader) error { return nil }), context.Canceled)
	wantError(t, "Update", s.Update(ctx, func(tx store.Txn) error { return nil }), context.Canceled)
	wantError(t, "Watch", s.Watch(ctx, "", 0, func([]store.Change) error { return nil }), context.Canceled)

	// An Update that waits for another gives up when its context does.
	ctx, cancel = context.WithCancel(context.Background())
	update(t, s, func(tx store.Txn) error {
		cancel()
		done := make(chan error)
		go func() { done <- s.Update(ctx, func(store.Txn) error { return nil }) }()
		wantError(t, "a waiting Update", <-done, context.Canceled)
		return nil
	})
}

func testLargeValues(t *testing.T, f Factory) {
	s := open(t, f)
	large := bytes.Repeat([]byte("0123456789abcdef"), 640<<10)
	put(t, s, "small", "1")
	update(t, s, func(tx store.Txn) error { tx.Put("large", large); return nil })
	put(t, s, "small", "2")
	err := s.View(context.Background(), func(r store.Reader) error {
		kv, err := r.Get("large")
		if !bytes.Equal(kv.Value, large) {
			t.Errorf("a value of %d bytes came back as %d others", len(large), len(kv.Value))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	err = s.Update(context.Background(), func(tx store.Txn) error {
		for i := range store.MaxTransactionSize/len(large) + 1 {
			tx.Put(fmt.Sprint("part", i), large)
		}
		return nil
	})
	wantError(t, "Update with too much", err, store.ErrTooLarge)
	if got := scanKeys(t, s, "part", store.ScanOptions{KeysOnly: true}); got != nil {
		t.Errorf("a refused transaction left %q", got)
	}
}

func testPanic(t *testing.T, f Factory) {
	s := open(t, f)
	put(t, s, "a", "1")
	catch := func(fn func()) {
		defer func() {
			if recover() == nil {
				t.Error("the panic did not come through")
			}
		}()
		fn()
	}
	catch(func() {
		_ = s.Update(context.Background(), func(tx store.Txn) error { tx.Put("a", nil); panic("x") })
	})
	catch(func() {
		_ = s.View(context.Background(), func(store.Reader) error { panic("x") })
	})
	put(t, s, "b", "2")
	expect(t, s, "a=1@1", "b=2@2")
}
