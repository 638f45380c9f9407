// Package depottest is the conformance suite of depot.Depot: whatever passes
// Run can keep the objects of every data plane. It also has small functions
// for tests that put and get whole objects.
//
// It is for tests only. What an implementation does when its disk or network
// fails is tested beside that implementation.
package depottest

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	mathrand "math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"casemate.dev/store/depot"
)

// Open opens the depot that is kept under dir, a directory of the test's,
// creating it at first.
type Open func(t testing.TB, dir string) depot.Depot

// Run runs the conformance suite.
func Run(t *testing.T, open Open) {
	tests := []struct {
		name string
		run  func(*testing.T, Open)
	}{
		{"put and get", testPutGet},
		{"read at", testReadAt},
		{"invisible until commit", testInvisible},
		{"abort", testAbort},
		{"exists", testExists},
		{"remove", testRemove},
		{"remove while open", testRemoveWhileOpen},
		{"keys", testKeys},
		{"list", testList},
		{"list agrees with sorting", testListOracle},
		{"context", testContext},
		{"concurrent", testConcurrent},
		{"reopen", testReopen},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { tt.run(t, open) })
	}
}

// Put writes an object in blocks and commits it.
func Put(t testing.TB, d depot.Depot, key string, data []byte) {
	t.Helper()
	w, err := d.Create(context.Background())
	if err != nil {
		t.Fatalf("creating object: %v", err)
	}
	defer w.Abort()
	for block := range slices.Chunk(data, 64<<10) {
		if n, err := w.Write(block); err != nil || n != len(block) {
			t.Fatalf("Write = %d, %v; want %d", n, err, len(block))
		}
	}
	if err := w.Commit(context.Background(), key); err != nil {
		t.Fatalf("committing object: %v", err)
	}
}

// Get reads an object.
func Get(t testing.TB, d depot.Depot, key string) []byte {
	t.Helper()
	o, err := d.Open(context.Background(), key)
	if err != nil {
		t.Fatalf("opening object: %v", err)
	}
	data := make([]byte, o.Size())
	n, err := o.ReadAt(data, 0)
	if n != len(data) || err != nil && err != io.EOF {
		t.Fatalf("ReadAt = %d, %v; want %d", n, err, len(data))
	}
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	return data
}

// Keys lists objects.
func Keys(t testing.TB, d depot.Depot, prefix string) []string {
	t.Helper()
	var keys []string
	for key, err := range d.List(context.Background(), prefix) {
		if err != nil {
			t.Fatalf("listing objects: %v", err)
		}
		keys = append(keys, key)
	}
	return keys
}

// RandomKeys returns a source of keys as the data planes make them.
func RandomKeys() func() string {
	return func() string {
		var id [16]byte
		_, _ = rand.Read(id[:]) // never fails, see crypto/rand
		return hex.EncodeToString(id[:])
	}
}

func wantError(t testing.TB, what string, got, want error) {
	t.Helper()
	if !errors.Is(got, want) {
		t.Errorf("%s returned %v, want %v", what, got, want)
	}
}

func testPutGet(t *testing.T, open Open) {
	d := open(t, t.TempDir())
	for _, size := range []int{0, 1, 64 << 10, 3<<20 + 7} {
		data := make([]byte, size)
		_, _ = rand.Read(data)
		key := fmt.Sprint("size/", size)
		Put(t, d, key, data)
		if !bytes.Equal(Get(t, d, key), data) {
			t.Errorf("an object of %d bytes came back changed", size)
		}
	}
	_, err := d.Open(context.Background(), "size/2")
	wantError(t, "Open of a missing object", err, depot.ErrNotFound)
}

func testReadAt(t *testing.T, open Open) {
	d := open(t, t.TempDir())
	data := []byte("0123456789")
	Put(t, d, "digits", data)
	o, err := d.Open(context.Background(), "digits")
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	for off := range int64(12) {
		for size := range 12 {
			got, want := make([]byte, size), make([]byte, size)
			n, err := o.ReadAt(got, off)
			wantN, wantErr := bytes.NewReader(data).ReadAt(want, off)
			if size == 0 || n == size {
				err, wantErr = nil, nil // io.EOF is optional then, see io.ReaderAt
			}
			if n != wantN || err != wantErr || !bytes.Equal(got, want) {
				t.Errorf("ReadAt(%d bytes, %d) = %q, %v; want %q, %v", size, off, got[:n], err, want[:wantN], wantErr)
			}
		}
	}
	var wg sync.WaitGroup
	for off := range data {
		wg.Go(func() {
			b := make([]byte, 1)
			if _, err := o.ReadAt(b, int64(off)); err != nil && err != io.EOF || b[0] != data[off] {
				t.Errorf("concurrent ReadAt(%d) = %q, %v", off, b, err)
			}
		})
	}
	wg.Wait()
}

func testInvisible(t *testing.T, open Open) {
	dir := t.TempDir()
	d := open(t, dir)
	w, err := d.Create(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("data")); err != nil {
		t.Fatal(err)
	}
	if keys := Keys(t, d, ""); keys != nil {
		t.Errorf("before Commit there are %q", keys)
	}
	if err := w.Commit(context.Background(), "k"); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"k"}, Keys(t, d, "")); diff != "" {
		t.Errorf("after Commit (-want +got):\n%s", diff)
	}
	w.Abort()
	if err := w.Commit(context.Background(), "k2"); err == nil {
		t.Error("a second Commit succeeded")
	}
	if _, err := w.Write([]byte("more")); err == nil {
		t.Error("Write after Commit succeeded")
	}
	if got := Get(t, d, "k"); string(got) != "data" {
		t.Errorf("object holds %q", got)
	}
}

func testAbort(t *testing.T, open Open) {
	d := open(t, t.TempDir())
	w, err := d.Create(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("data")); err != nil {
		t.Fatal(err)
	}
	w.Abort()
	w.Abort()
	if err := w.Commit(context.Background(), "k"); err == nil {
		t.Error("Commit after Abort succeeded")
	}
	if keys := Keys(t, d, ""); keys != nil {
		t.Errorf("after Abort there are %q", keys)
	}
}

func testExists(t *testing.T, open Open) {
	d := open(t, t.TempDir())
	Put(t, d, "k", []byte("first"))
	w, err := d.Create(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("second")); err != nil {
		t.Fatal(err)
	}
	wantError(t, "Commit over an object", w.Commit(context.Background(), "k"), depot.ErrExists)
	if got := Get(t, d, "k"); string(got) != "first" {
		t.Errorf("object holds %q", got)
	}
}

func testRemove(t *testing.T, open Open) {
	d := open(t, t.TempDir())
	Put(t, d, "a/b", []byte("1"))
	Put(t, d, "a", []byte("2"))
	for range 2 {
		if err := d.Remove(context.Background(), "a/b"); err != nil {
			t.Errorf("Remove: %v", err)
		}
	}
	if err := d.Remove(context.Background(), "never/there"); err != nil {
		t.Errorf("Remove: %v", err)
	}
	if diff := cmp.Diff([]string{"a"}, Keys(t, d, "")); diff != "" {
		t.Errorf("after Remove (-want +got):\n%s", diff)
	}
	_, err := d.Open(context.Background(), "a/b")
	wantError(t, "Open of a removed object", err, depot.ErrNotFound)
	Put(t, d, "a/b", []byte("3"))
	if got := Get(t, d, "a/b"); string(got) != "3" {
		t.Errorf("object holds %q", got)
	}
}

func testRemoveWhileOpen(t *testing.T, open Open) {
	d := open(t, t.TempDir())
	Put(t, d, "k", []byte("data"))
	o, err := d.Open(context.Background(), "k")
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	if err := d.Remove(context.Background(), "k"); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 4)
	if _, err := o.ReadAt(got, 0); err != nil && err != io.EOF || string(got) != "data" {
		t.Errorf("after Remove ReadAt = %q, %v", got, err)
	}
}

func testKeys(t *testing.T, open Open) {
	d := open(t, t.TempDir())
	bad := []string{
		"", "/", "a/", "/a", "a//b", ".", "..", "../a", "a/../b", "a/.", "A", "a b", "a.d", "a\x00", "a\\b", "ä", "%2e",
		strings.Repeat("a", 256), strings.Repeat("a/", 256) + "a",
	}
	for _, key := range bad {
		w, err := d.Create(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		wantError(t, fmt.Sprintf("Commit as %q", key), w.Commit(context.Background(), key), depot.ErrInvalidKey)
		_, err = d.Open(context.Background(), key)
		wantError(t, fmt.Sprintf("Open of %q", key), err, depot.ErrInvalidKey)
		wantError(t, fmt.Sprintf("Remove of %q", key), d.Remove(context.Background(), key), depot.ErrInvalidKey)
	}
	if keys := Keys(t, d, ""); keys != nil {
		t.Errorf("there are %q", keys)
	}
	good := []string{"0", "a", "a/b", "a/b/c", "ab", "-", "_", strings.Repeat("a", 255), strings.Repeat("a/", 255) + "a"}
	for _, key := range good {
		Put(t, d, key, []byte(key))
	}
	for _, key := range good {
		if got := Get(t, d, key); string(got) != key {
			t.Errorf("object %q holds %q", key, got)
		}
	}
}

func testList(t *testing.T, open Open) {
	d := open(t, t.TempDir())
	all := []string{"a", "a-x", "a/b", "a/bb", "a/bb-c", "a/bb/c", "a/bbb", "a0", "ab", "ab-/x", "ab/c", "abc", "b"}
	shuffled := slices.Clone(all)
	mathrand.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
	for _, key := range shuffled {
		Put(t, d, key, nil)
	}
	for _, prefix := range []string{"", "a", "a/", "a/b", "a/bb", "a/bb/", "ab", "ab-", "b", "c", "a/bb/c", "a/bb/cc", "A", "..", "/"} {
		var want []string
		for _, key := range all {
			if strings.HasPrefix(key, prefix) {
				want = append(want, key)
			}
		}
		if diff := cmp.Diff(want, Keys(t, d, prefix)); diff != "" {
			t.Errorf("List(%q) (-want +got):\n%s", prefix, diff)
		}
	}
	for key, err := range d.List(context.Background(), "") {
		if err != nil || key != "a" {
			t.Errorf("List yields %q, %v first", key, err)
		}
		break
	}
}

func testListOracle(t *testing.T, open Open) {
	segment := rapid.StringMatching(`[ab0_-]{1,4}`)
	key := rapid.Map(rapid.SliceOfN(segment, 1, 3), func(s []string) string { return strings.Join(s, "/") })
	checks := 0
	rapid.Check(t, func(rt *rapid.T) {
		if checks++; checks > 15 {
			return // each check costs many fsyncs
		}
		d := open(t, t.TempDir())
		objects := map[string]bool{}
		for _, key := range rapid.SliceOfNDistinct(key, 0, 12, rapid.ID).Draw(rt, "keys") {
			Put(t, d, key, nil)
			objects[key] = true
		}
		for _, prefix := range []string{"", rapid.StringMatching(`[ab0_/-]{0,3}`).Draw(rt, "prefix")} {
			var want []string
			for _, key := range slices.Sorted(maps.Keys(objects)) {
				if strings.HasPrefix(key, prefix) {
					want = append(want, key)
				}
			}
			if diff := cmp.Diff(want, Keys(t, d, prefix)); diff != "" {
				rt.Fatalf("List(%q) (-want +got):\n%s", prefix, diff)
			}
		}
	})
}

func testContext(t *testing.T, open Open) {
	d := open(t, t.TempDir())
	Put(t, d, "k", nil)
	ctx, cancel := context.WithCancel(context.Background())
	w, err := d.Create(ctx)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	wantError(t, "Commit", w.Commit(ctx, "late"), context.Canceled)
	_, err = d.Create(ctx)
	wantError(t, "Create", err, context.Canceled)
	_, err = d.Open(ctx, "k")
	wantError(t, "Open", err, context.Canceled)
	wantError(t, "Remove", d.Remove(ctx, "k"), context.Canceled)
	for key, err := range d.List(ctx, "") {
		wantError(t, fmt.Sprintf("List, which yields %q,", key), err, context.Canceled)
	}
	if diff := cmp.Diff([]string{"k"}, Keys(t, d, "")); diff != "" {
		t.Errorf("afterwards (-want +got):\n%s", diff)
	}
}

// Of many that commit the same key one wins, and its contents stay.
func testConcurrent(t *testing.T, open Open) {
	d := open(t, t.TempDir())
	var wg sync.WaitGroup
	won := make(chan string, 8)
	for i := range 8 {
		wg.Go(func() {
			w, err := d.Create(context.Background())
			if err != nil {
				t.Error(err)
				return
			}
			data := fmt.Sprint("writer ", i)
			if _, err := w.Write([]byte(data)); err != nil {
				t.Error(err)
			}
			switch err := w.Commit(context.Background(), "x/y/shared"); {
			case err == nil:
				won <- data
			case !errors.Is(err, depot.ErrExists):
				t.Error(err)
			}
			Put(t, d, fmt.Sprint("x/y/own", i), []byte(data))
		})
	}
	wg.Wait()
	close(won)
	winner := <-won
	if second, ok := <-won; ok || winner == "" {
		t.Errorf("winners are %q and %q", winner, second)
	}
	if got := Get(t, d, "x/y/shared"); string(got) != winner {
		t.Errorf("the object holds %q, the winner's is %q", got, winner)
	}
	if got := Keys(t, d, ""); len(got) != 9 {
		t.Errorf("there are %q", got)
	}
}

func testReopen(t *testing.T, open Open) {
	dir := t.TempDir()
	Put(t, open(t, dir), "k", []byte("data"))
	if got := Get(t, open(t, dir), "k"); string(got) != "data" {
		t.Errorf("after reopening the object holds %q", got)
	}
}
