package pebble_test

import (
	"testing"

	"casemate.dev/store"
	"casemate.dev/store/pebble"
	"casemate.dev/store/storetest"
)

func TestConformance(t *testing.T) {
	cipher := storetest.NewCipher()
	open := func(feedBytes int) func(t testing.TB, dir string) store.Store {
		return func(t testing.TB, dir string) store.Store {
			t.Helper()
			s, err := pebble.Open(pebble.Config{Dir: dir, Cipher: cipher, FeedBytes: feedBytes, FreeReserve: -1})
			if err != nil {
				t.Fatalf("opening store: %v", err)
			}
			return s
		}
	}
	storetest.Run(t, storetest.Factory{Open: open(0), OpenSmallFeed: open(1 << 20)})
}
