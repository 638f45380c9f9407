package storetest

import (
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"casemate.dev/store"
	"casemate.dev/store/pebble"
)

// New returns an empty store in memory, which the test's end closes. It is the
// real implementation on a disk in memory, so it behaves as in production.
func New(t testing.TB) store.Store {
	t.Helper()
	s, err := pebble.Open(pebble.Config{Dir: "/store", FS: vfs.NewMem(), Cipher: NewCipher()})
	if err != nil {
		t.Fatalf("opening store in memory: %v", err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("closing store: %v", err)
		}
	})
	return s
}
