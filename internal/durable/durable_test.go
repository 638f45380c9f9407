package durable_test

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"casemate.dev/internal/durable"
)

func TestWriteFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	for _, want := range []string{"one", "a longer second", ""} {
		if err := durable.WriteFile(path, []byte(want), 0o600); err != nil {
			t.Fatal(err)
		}
		expectFile(t, path, want)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := info.Mode().Perm(); got != 0o600 {
		t.Errorf("mode is %v, want 0600", got)
	}
}

// Each labelled call fails in turn; old or new contents must stand whole and
// no temporary file may stay.
func TestWriteFileFailsAtEachCall(t *testing.T) {
	for n := 0; ; n++ {
		dir := t.TempDir()
		path := filepath.Join(dir, "key")
		if err := durable.WriteFile(path, []byte("old"), 0o600); err != nil {
			t.Fatal(err)
		}
		var failed durable.Op
		calls := 0
		fs := durable.FS{Fault: func(op durable.Op, _ string) error {
			calls++
			if calls == n+1 {
				failed = op
				return syscall.ENOSPC
			}
			return nil
		}}
		err := fs.WriteFile(path, []byte("new"), 0o600)
		if failed == "" {
			if err != nil {
				t.Fatal(err)
			}
			if n != 6 {
				t.Errorf("WriteFile passed %d labelled calls, want 6", n)
			}
			return
		}
		if !durable.IsFull(err) {
			t.Errorf("failing %s: WriteFile returned %v, want ENOSPC", failed, err)
		}
		want := "old"
		if failed == durable.OpSyncDir {
			want = "new"
		}
		expectFile(t, path, want)
		if entries, _ := os.ReadDir(dir); len(entries) != 1 {
			t.Errorf("failing %s: directory holds %v", failed, entries)
		}
	}
}

func TestLinkToKeepsWhatIsThere(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "object")
	if err := durable.WriteFile(path, []byte("first"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := durable.FS{}.CreateTemp(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Discard()
	if err := f.LinkTo(path); !errors.Is(err, os.ErrExist) {
		t.Errorf("LinkTo over a file returned %v, want ErrExist", err)
	}
	expectFile(t, path, "first")
}

func TestRemove(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a", "b")
	if err := durable.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := durable.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := durable.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("file is still there: %v", err)
	}
	if err := durable.Remove(filepath.Join(filepath.Dir(path), "no", "such")); err != nil {
		t.Errorf("removing below a missing directory: %v", err)
	}
}

func TestMkdirAllRefusesAFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := durable.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := durable.MkdirAll(path, 0o700); !errors.Is(err, syscall.ENOTDIR) {
		t.Errorf("MkdirAll over a file returned %v, want ENOTDIR", err)
	}
}

func expectFile(t *testing.T, path, want string) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("file holds %q, want %q", got, want)
	}
}
