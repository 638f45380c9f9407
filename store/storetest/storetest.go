// Package storetest is the conformance suite of store.Store: whatever passes
// Run can stand below every plane. It also has what tests of those planes
// need: a store in memory (New), a file cipher, and a search for plaintext.
//
// It is for tests only. It does not test what an implementation does when its
// disk fails or the process dies: those tests stand beside each
// implementation, because each has its own disk.
package storetest

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"casemate.dev/store"
)

// Factory makes stores for Run.
type Factory struct {
	// Open opens the store that is kept under dir, a directory of the test's,
	// creating it at first. Required.
	Open func(t testing.TB, dir string) store.Store

	// OpenSmallFeed is Open with a change feed that cannot hold the changes
	// of 1 MiB of values. Required.
	OpenSmallFeed func(t testing.TB, dir string) store.Store
}

// Run runs the conformance suite.
func Run(t *testing.T, f Factory) {
	tests := []struct {
		name string
		run  func(*testing.T, Factory)
	}{
		{"get and put", testGetPut},
		{"keys", testKeys},
		{"values belong to the caller", testValuesAreCopies},
		{"own writes", testOwnWrites},
		{"rollback", testRollback},
		{"compare and set", testCompareAndSet},
		{"revisions", testRevisions},
		{"scan", testScan},
		{"scan in a transaction", testScanInTransaction},
		{"view is a snapshot", testViewIsSnapshot},
		{"ended transactions", testEndedTransactions},
		{"context", testContext},
		{"large values", testLargeValues},
		{"panic", testPanic},
		{"concurrent increments", testConcurrentIncrements},
		{"concurrent transfers", testConcurrentTransfers},
		{"reopen", testReopen},
		{"close", testClose},
		{"oracle", testOracle},
		{"watch", testWatch},
		{"watch sees each change once", testWatchExactlyOnce},
		{"watch resumes", testWatchResumes},
		{"watch compacted", testWatchCompacted},
		{"watch slowly", testWatchSlowly},
		{"watch ends", testWatchEnds},
		{"follow", testFollow},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { tt.run(t, f) })
	}
}

// open opens a new store that the test closes.
func open(t *testing.T, f Factory) store.Store {
	t.Helper()
	s := f.Open(t, t.TempDir())
	closeAtEnd(t, s)
	return s
}

func closeAtEnd(t *testing.T, s store.Store) {
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("closing: %v", err)
		}
	})
}

func update(t testing.TB, s store.Store, fn func(store.Txn) error) {
	t.Helper()
	if err := s.Update(context.Background(), fn); err != nil {
		t.Fatalf("Update: %v", err)
	}
}

func put(t testing.TB, s store.Store, keysAndValues ...string) {
	t.Helper()
	update(t, s, func(tx store.Txn) error {
		for pair := range slices.Chunk(keysAndValues, 2) {
			tx.Put(pair[0], []byte(pair[1]))
		}
		return nil
	})
}

// dump renders what a scan yields: key=value@revision.
func dump(t testing.TB, seq iter.Seq2[store.KV, error]) []string {
	t.Helper()
	var out []string
	for kv, err := range seq {
		if err != nil {
			t.Fatalf("scanning: %v", err)
		}
		out = append(out, fmt.Sprintf("%s=%s@%d", kv.Key, kv.Value, kv.Revision))
	}
	return out
}

// expect compares the whole store with want, see dump.
func expect(t testing.TB, s store.Store, want ...string) {
	t.Helper()
	err := s.View(context.Background(), func(r store.Reader) error {
		if diff := cmp.Diff(want, dump(t, r.Scan("", store.ScanOptions{}))); diff != "" {
			t.Errorf("store (-want +got):\n%s", diff)
		}
		return nil
	})
	if err != nil {
		t.Fatalf("View: %v", err)
	}
}

func wantError(t testing.TB, what string, got, want error) {
	t.Helper()
	if !errors.Is(got, want) {
		t.Errorf("%s returned %v, want %v", what, got, want)
	}
}
