package file_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"casemate.dev/internal/durable"
	"casemate.dev/store/depot"
	"casemate.dev/store/depot/depottest"
	"casemate.dev/store/depot/file"
)

func TestConformance(t *testing.T) {
	depottest.Run(t, func(t testing.TB, dir string) depot.Depot {
		d, err := file.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		return d
	})
}

func TestOpenRemovesLeftovers(t *testing.T) {
	dir := t.TempDir()
	d, err := file.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		w, err := d.Create(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte("half")); err != nil {
			t.Fatal(err)
		}
	}
	depottest.Put(t, d, "committed", []byte("whole"))
	if got := files(t, dir); len(got) != 4 {
		t.Fatalf("before the restart there are %q", got)
	}
	if d, err = file.Open(dir); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"objects/co/committed"}, files(t, dir)); diff != "" {
		t.Errorf("after the restart (-want +got):\n%s", diff)
	}
	if got := depottest.Get(t, d, "committed"); string(got) != "whole" {
		t.Errorf("object holds %q", got)
	}
}

func files(t *testing.T, dir string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
		if err == nil && !entry.IsDir() {
			rel, _ := filepath.Rel(dir, path)
			out = append(out, rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// Each labelled call of opening, writing two objects and removing one fails in
// turn with "no space left". What was acknowledged is there after a restart,
// what is there is whole, and nothing else is.
func TestEachCallFailsInTurn(t *testing.T) {
	contents := bytes.Repeat([]byte("sealed"), 1000)
	for n := 1; ; n++ {
		dir := t.TempDir()
		calls := 0
		var failed durable.Op
		committed, removed, err := exercise(dir, contents, func(op durable.Op, _ string) error {
			if calls++; calls != n {
				return nil
			}
			failed = op
			return syscall.ENOSPC
		})
		if failed == "" {
			if err != nil {
				t.Fatal(err)
			}
			if n < 15 {
				t.Errorf("only %d labelled calls", n-1)
			}
			return
		}
		if !errors.Is(err, syscall.ENOSPC) || failed != durable.OpRemove && failed != durable.OpSyncDir && !errors.Is(err, depot.ErrFull) {
			t.Errorf("call %d (%s) fails: the error is %v", n, failed, err)
		}
		d, err := file.Open(dir)
		if err != nil {
			t.Fatalf("call %d (%s) fails: reopening: %v", n, failed, err)
		}
		keys := depottest.Keys(t, d, "")
		for _, key := range keys {
			if got := depottest.Get(t, d, key); !bytes.Equal(got, contents) {
				t.Errorf("call %d (%s) fails: object %s has %d bytes", n, failed, key, len(got))
			}
		}
		for _, key := range committed {
			if !slices.Contains(keys, key) && key != "a/first" {
				t.Errorf("call %d (%s) fails: object %s is lost", n, failed, key)
			}
		}
		if removed && slices.Contains(keys, "a/first") {
			t.Errorf("call %d (%s) fails: the removed object is back", n, failed)
		}
		if got := len(files(t, dir)); got != len(keys) {
			t.Errorf("call %d (%s) fails: %d files for %d objects", n, failed, got, len(keys))
		}
	}
}

func exercise(dir string, contents []byte, fault func(durable.Op, string) error) (committed []string, removed bool, err error) {
	d, err := file.OpenWithFaults(dir, fault)
	if err != nil {
		return nil, false, err
	}
	ctx := context.Background()
	for _, key := range []string{"a/first", "b/second"} {
		w, err := d.Create(ctx)
		if err != nil {
			return committed, false, err
		}
		defer w.Abort()
		if _, err := w.Write(contents); err != nil {
			return committed, false, err
		}
		if err := w.Commit(ctx, key); err != nil {
			return committed, false, err
		}
		committed = append(committed, key)
	}
	if err := d.Remove(ctx, "a/first"); err != nil {
		return committed, false, err
	}
	return committed, true, nil
}

func TestObjectsAreThePrivateFilesOfTheProcess(t *testing.T) {
	dir := t.TempDir()
	d, err := file.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	depottest.Put(t, d, "x/object", nil)
	err = filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		info, err := entry.Info()
		if err == nil && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func BenchmarkCommit1MiB(b *testing.B) {
	d, err := file.Open(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	block := make([]byte, 1<<20)
	b.SetBytes(int64(len(block)))
	keys := depottest.RandomKeys()
	for b.Loop() {
		depottest.Put(b, d, keys(), block)
	}
}
