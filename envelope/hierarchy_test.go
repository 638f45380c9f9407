package envelope_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"casemate.dev/envelope"
	"casemate.dev/internal/durable"
)

func mustRoot(t *testing.T, spec, dir string) envelope.Root {
	t.Helper()
	r, err := envelope.OpenRoot(spec, dir)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestOpenRootSpecs(t *testing.T) {
	dir := t.TempDir()
	short := filepath.Join(dir, "short")
	if err := os.WriteFile(short, []byte("tooshort\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("CASEMATE_TEST_PASSPHRASE", "correct horse battery")
	for spec, want := range map[string]string{
		"":                                    "",
		"file:":                               "",
		"file:/somewhere/key":                 "",
		"passphrase:CASEMATE_TEST_PASSPHRASE": "",
		"passphrase:":                         "names no environment variable",
		"passphrase:CASEMATE_TEST_UNSET":      "environment variable CASEMATE_TEST_UNSET has 0 bytes",
		"passphrase:" + short:                 "at least 12",
		"passphrase:/no/such/file":            "no such file",
		"pkcs11:token=x":                      "not supported yet: use file or passphrase",
		"tpm:":                                "not supported yet",
		"kms:aws":                             "not supported yet",
		"smoke:signal":                        "file and passphrase are supported",
		"/etc/key":                            "has no scheme",
	} {
		_, err := envelope.OpenRoot(spec, dir)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("OpenRoot(%q): %v, want %q", spec, err, want)
		}
	}
}

// TestHierarchyStays opens one hierarchy again and again: the keys are the same,
// and another root is told so and changes nothing.
func TestHierarchyStays(t *testing.T) {
	t.Setenv("CASEMATE_TEST_PASSPHRASE", "correct horse battery")
	t.Setenv("CASEMATE_TEST_OTHER", "incorrect horse battery")
	for _, spec := range []string{"file:", "passphrase:CASEMATE_TEST_PASSPHRASE"} {
		ctx, dir := t.Context(), t.TempDir()
		h, err := envelope.OpenHierarchy(ctx, dir, mustRoot(t, spec, dir))
		if err != nil {
			t.Fatal(err)
		}
		header, stream, err := h.Files().NewFile()
		if err != nil {
			t.Fatal(err)
		}
		cipher := make([]byte, 100)
		stream.XORKeyStreamAt(cipher, pattern(100), 7)
		path := filepath.Join(dir, "keys", "hierarchy.json")
		before, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Fatal(info.Mode(), err)
		}
		for _, wrong := range []envelope.Root{
			mustRoot(t, "passphrase:CASEMATE_TEST_OTHER", dir),
			otherFileRoot(t),
		} {
			if _, err := envelope.OpenHierarchy(ctx, dir, wrong); !errors.Is(err, envelope.ErrWrongRoot) {
				t.Errorf("%s opened with another %s: %v", spec, wrong.Scheme(), err)
			}
		}
		if after, _ := os.ReadFile(path); !bytes.Equal(before, after) {
			t.Error("a wrong root changed the hierarchy")
		}
		again, err := envelope.OpenHierarchy(ctx, dir, mustRoot(t, spec, dir))
		if err != nil {
			t.Fatal(err)
		}
		stream, err = again.Files().OpenFile(header)
		if err != nil {
			t.Fatal(err)
		}
		plain := make([]byte, 100)
		if stream.XORKeyStreamAt(plain, cipher, 7); !bytes.Equal(plain, pattern(100)) {
			t.Error("the file opened to other bytes")
		}
		for name, bad := range map[string][]byte{"empty": {}, "cut": before[:len(before)/2], "other format": bytes.Replace(before, []byte("hierarchy-1"), []byte("hierarchy-9"), 1)} {
			if err := os.WriteFile(path, bad, 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := envelope.OpenHierarchy(ctx, dir, mustRoot(t, spec, dir)); !errors.Is(err, envelope.ErrCorrupt) {
				t.Errorf("%s file: %v", name, err)
			}
			if after, _ := os.ReadFile(path); !bytes.Equal(bad, after) {
				t.Errorf("%s file was replaced", name)
			}
		}
	}
}

func otherFileRoot(t *testing.T) envelope.Root {
	t.Helper()
	r := mustRoot(t, "file:", t.TempDir())
	if _, err := r.Wrap(t.Context(), []byte("makes the key file")); err != nil {
		t.Fatal(err)
	}
	return r
}

func TestRootFileIsGuarded(t *testing.T) {
	ctx, dir := t.Context(), t.TempDir()
	path := filepath.Join(dir, "root.key")
	if _, err := envelope.OpenHierarchy(ctx, dir, mustRoot(t, "file:", dir)); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		text []byte
		mode os.FileMode
		want string
	}{
		"readable by others": {good, 0o644, "mode 0644"},
		"not a key":          {[]byte("hello\n"), 0o600, "not a root key"},
		"half a key":         {good[:len(good)-10], 0o600, "not a root key"},
	} {
		if err := errors.Join(os.Remove(path), os.WriteFile(path, c.text, c.mode), os.Chmod(path, c.mode)); err != nil {
			t.Fatal(err)
		}
		if _, err := envelope.OpenHierarchy(ctx, dir, mustRoot(t, "file:", dir)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if _, err := envelope.OpenHierarchy(ctx, dir, mustRoot(t, "file:", dir)); err == nil || !strings.Contains(err.Error(), "is missing; restore it") {
		t.Errorf("missing key file: %v", err)
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Error("a lost root key was replaced by a new one")
	}
	if err := os.WriteFile(path, good, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := envelope.OpenHierarchy(ctx, dir, mustRoot(t, "file:", dir)); err != nil {
		t.Errorf("restored key file: %v", err)
	}
}

func TestPassphraseBlob(t *testing.T) {
	t.Setenv("CASEMATE_TEST_PASSPHRASE", "correct horse battery")
	root := mustRoot(t, "passphrase:CASEMATE_TEST_PASSPHRASE", "")
	wrapped, err := root.Wrap(t.Context(), []byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	plain, err := root.Unwrap(t.Context(), wrapped)
	if err != nil || string(plain) != "secret" {
		t.Fatalf("%q, %v", plain, err)
	}
	for name, at := range map[string]int{"kdf": 0, "iterations, absurdly high": 1, "iterations, too low": 2, "salt": 5, "nonce": 37, "tag": len(wrapped) - 1} {
		bad := bytes.Clone(wrapped)
		bad[at] ^= 0xff
		if name == "iterations, too low" {
			copy(bad[1:], []byte{0, 0, 0, 1})
		}
		if _, err := root.Unwrap(t.Context(), bad); !errors.Is(err, envelope.ErrCorrupt) && !errors.Is(err, envelope.ErrWrongRoot) {
			t.Errorf("%s altered: %v", name, err)
		}
	}
	if _, err := root.Unwrap(t.Context(), wrapped[:40]); !errors.Is(err, envelope.ErrCorrupt) {
		t.Errorf("cut: %v", err)
	}
}

// TestFirstStartCrash fails each call to the disk in turn, at the first start,
// for the root key and for the hierarchy: what stands opens at the next start.
func TestFirstStartCrash(t *testing.T) {
	crash := errors.New("power cut")
	for failAt := 1; ; failAt++ {
		dir, calls := t.TempDir(), 0
		disk := durable.FS{Fault: func(durable.Op, string) error {
			if calls++; calls >= failAt { // nothing works after the first failure
				return crash
			}
			return nil
		}}
		path := filepath.Join(dir, "root", "root.key")
		_, err := envelope.OpenHierarchyOn(t.Context(), disk, dir, envelope.FileRootOn(disk, path))
		if calls < failAt {
			if err != nil || failAt < 10 {
				t.Fatalf("%d calls in all, %v", calls, err)
			}
			return
		}
		if !errors.Is(err, crash) {
			t.Fatalf("call %d failed and the start said %v", failAt, err)
		}
		h, err := envelope.OpenHierarchy(t.Context(), dir, mustRoot(t, "file:"+path, dir))
		if err != nil {
			t.Fatalf("after a crash at call %d: %v", failAt, err)
		}
		name := h.Files().EncryptName("same keys")
		h, err = envelope.OpenHierarchy(t.Context(), dir, mustRoot(t, "file:"+path, dir))
		if err != nil || h.Files().EncryptName("same keys") != name {
			t.Fatalf("after a crash at call %d the keys do not last: %v", failAt, err)
		}
	}
}

// TestTwoFirstStarts: a process that comes second uses what the first made.
func TestTwoFirstStarts(t *testing.T) {
	dir := t.TempDir()
	var first *envelope.Hierarchy
	inner := mustRoot(t, "file:", dir)
	slow := rootFunc{inner, func(ctx context.Context) {
		var err error
		if first, err = envelope.OpenHierarchy(ctx, dir, inner); err != nil {
			t.Error(err)
		}
	}}
	second, err := envelope.OpenHierarchy(t.Context(), dir, slow)
	if err != nil {
		t.Fatal(err)
	}
	if first.Files().EncryptName("x") != second.Files().EncryptName("x") {
		t.Fatal("two hierarchies over one directory")
	}
}

// rootFunc calls before between the decision to create and the creation.
type rootFunc struct {
	envelope.Root
	before func(context.Context)
}

func (r rootFunc) Wrap(ctx context.Context, plain []byte) ([]byte, error) {
	r.before(ctx)
	return r.Root.Wrap(ctx, plain)
}
