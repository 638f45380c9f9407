package pebble_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"

	"casemate.dev/store"
	"casemate.dev/store/pebble"
	"casemate.dev/store/pebble/cryptfs"
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

func TestDiskShowsNoPlaintext(t *testing.T) {
	dir := t.TempDir()
	cipher := storetest.NewCipher()
	open := func() *pebble.Store {
		s, err := pebble.Open(pebble.Config{Dir: dir, Cipher: cipher, FreeReserve: -1}.WithMemTable(smallMemTable))
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	const canary = "canary"
	s := open()
	for i := range 100 {
		err := s.Update(context.Background(), func(tx store.Txn) error {
			tx.Put(store.Key(canary, strconv.Itoa(i)), bytes.Repeat([]byte(canary), 500))
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	storetest.NoPlaintext(t, dir, canary, ".log", ".sst", "MANIFEST", "OPTIONS", "pebble", "leveldb")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open()
	if got, err := contents(s); err != nil || len(got) != 100 {
		t.Errorf("after reopening there are %d records, %v", len(got), err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	storetest.NoPlaintext(t, dir, canary, ".log", ".sst", "MANIFEST", "OPTIONS", "pebble", "leveldb")
}

func TestOpenRefuses(t *testing.T) {
	mem, cipher := vfs.NewMem(), storetest.NewCipher()
	for name, cfg := range map[string]pebble.Config{
		"no directory": {Cipher: cipher, FS: mem},
		"no cipher":    {Dir: "store", FS: mem},
	} {
		if _, err := pebble.Open(cfg); err == nil {
			t.Errorf("opened with %s", name)
		}
	}
	s, err := openOn(mem, cipher)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := openOn(mem, cipher); err == nil {
		t.Error("opened twice at once")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := openOn(mem, storetest.NewCipher()); err == nil {
		t.Error("opened with another key")
	}
	if s, err = openOn(mem, cipher); err != nil {
		t.Fatalf("after the refusals: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestFreeReserve(t *testing.T) {
	mem := vfs.NewMem()
	s, err := openOn(mem, storetest.NewCipher())
	if err != nil {
		t.Fatal(err)
	}
	put := func() error {
		return s.Update(context.Background(), func(tx store.Txn) error { tx.Put("k", nil); return nil })
	}
	for _, tt := range []struct {
		free uint64
		want error
	}{{1 << 30, nil}, {100 << 20, store.ErrFull}, {0, store.ErrFull}, {1 << 30, nil}} {
		mem.TestingSetDiskUsage(vfs.DiskUsage{AvailBytes: tt.free, TotalBytes: 1 << 40})
		if err := put(); !errors.Is(err, tt.want) {
			t.Errorf("with %d bytes free Update returned %v, want %v", tt.free, err, tt.want)
		}
		if _, err := contents(s); err != nil {
			t.Errorf("with %d bytes free View returned %v", tt.free, err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// A flipped bit in a table is an error, and ends the store, rather than a value.
func TestCorruptionIsNeverAValue(t *testing.T) {
	mem, cipher := vfs.NewMem(), storetest.NewCipher()
	sc := newScript(80, 12<<10)
	s, err := openOn(mem, cipher)
	if err != nil {
		t.Fatal(err)
	}
	var acked atomic.Int64
	if err := errors.Join(sc.run(s, &acked), s.Close()); err != nil {
		t.Fatal(err)
	}
	tables := 0
	logical := cryptfs.New(mem, "store", cipher)
	names, err := logical.List("store")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if !strings.HasSuffix(name, ".sst") {
			continue
		}
		tables++
		path := "store/" + cipher.EncryptName(name)
		intact := readAll(t, mem, path)
		for at := cipher.HeaderSize(); at < len(intact); at += len(intact)/20 + 1 {
			corrupt := slices.Clone(intact)
			corrupt[at] ^= 0x10
			writeAll(t, mem, path, corrupt)
			expectIntactOrError(t, sc, mem, cipher, fmt.Sprintf("%s with byte %d flipped", name, at))
		}
		writeAll(t, mem, path, intact)
	}
	if tables == 0 {
		t.Error("the script filled no table")
	}
}

// expectIntactOrError opens a copy of the disk.
func expectIntactOrError(t *testing.T, sc script, mem *vfs.MemFS, cipher *storetest.Cipher, what string) {
	t.Helper()
	scratch := vfs.NewMem()
	if _, err := vfs.Clone(mem, scratch, "store", "store"); err != nil {
		t.Fatal(err)
	}
	s, err := openOn(scratch, cipher)
	if err != nil {
		return
	}
	got, err := contents(s)
	if err != nil {
		_ = s.Close()
		return
	}
	if diff := cmp.Diff(sc.states[len(sc.states)-1], got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
	_ = s.Close()
}

func readAll(t *testing.T, fs vfs.FS, path string) []byte {
	t.Helper()
	f, err := fs.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(f)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	return data
}

func writeAll(t *testing.T, fs vfs.FS, path string, data []byte) {
	t.Helper()
	f, err := fs.Create(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.Write(slices.Clone(data))
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}
