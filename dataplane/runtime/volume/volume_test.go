package volume

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"pgregory.net/rapid"
)

func privileged(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mounting file systems needs root")
	}
	for _, dev := range []string{"/dev/fuse", "/dev/loop-control"} {
		if _, err := os.Stat(dev); err != nil {
			t.Skipf("this kernel offers no %s", dev)
		}
	}
}

func drivers(t testing.TB) []Driver {
	privileged(t)
	a, b := t.TempDir(), t.TempDir()
	t.Cleanup(func() {
		for _, dir := range []string{a, b} {
			if err := Cleanup(dir); err != nil {
				t.Error(err)
			}
		}
	})
	return []Driver{Fscrypt{Dir: a}, FUSE{Dir: b}}
}

func TestChoosePassesEveryDriver(t *testing.T) {
	for _, d := range drivers(t) {
		got, all, err := Choose(t.Context(), d)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: set up in %v, writes %.0f MB/s", got.Name(), all[0].Setup, all[0].WriteMB)
	}
}

func TestChooseWithoutDriverFails(t *testing.T) {
	if _, _, err := Choose(t.Context()); err == nil {
		t.Error("no driver was chosen without an error")
	}
	if _, _, err := Choose(t.Context(), Fscrypt{Dir: "/nonexistent"}); err == nil {
		t.Error("a driver without a directory was chosen")
	}
}

func TestVolumeHidesContentsAndNames(t *testing.T) {
	for _, d := range drivers(t) {
		t.Run(d.Name(), func(t *testing.T) {
			v, err := d.Create(t.Context(), Spec{ID: "n1", Bytes: 64 << 20, UID: 123456, GID: 123457})
			if err != nil {
				t.Fatal(err)
			}
			secret := []byte("patient-4711-canary-in-contents")
			name := "patient-4711-canary-in-name"
			if err := os.MkdirAll(filepath.Join(v.Path(), name), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(v.Path(), name, "f"), bytes.Repeat(secret, 1000), 0o644); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(string(secret), filepath.Join(v.Path(), "link")); err != nil {
				t.Fatal(err)
			}
			if err := Sync(v.Path()); err != nil {
				t.Fatal(err)
			}
			for _, needle := range [][]byte{secret, []byte(name)} {
				if found, err := Contains(v.Raw(), needle); err != nil || found {
					t.Errorf("raw bytes hold %q: %v, %v", needle, found, err)
				}
			}
			if err := v.Close(); err != nil {
				t.Fatal(err)
			}
			if _, err := os.Stat(v.Raw()); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("raw bytes survive: %v", err)
			}
			if err := v.Close(); err != nil {
				t.Errorf("closing twice: %v", err)
			}
		})
	}
}

// The search itself must find what is there, or the test above proves nothing.
func TestContainsFindsAcrossWindows(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("canary"), 5<<20-3); err != nil {
		t.Fatal(err)
	}
	for needle, want := range map[string]bool{"canary": true, "Canary": false} {
		if got, err := Contains(path, []byte(needle)); err != nil || got != want {
			t.Errorf("Contains(%q) = %v, %v", needle, got, err)
		}
	}
}

func TestPersistentVolumeNeedsItsKey(t *testing.T) {
	d := drivers(t)[0]
	key := randomKey()
	spec := Spec{ID: "images", Bytes: 64 << 20, Key: key}
	v, err := d.Create(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(v.Path(), "f"), []byte("kept"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
	other := spec
	other.Key = randomKey()
	if _, err := d.Create(t.Context(), other); err == nil {
		t.Error("opened with a wrong key")
	}
	if v, err = d.Create(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join(v.Path(), "f"))
	if err != nil || string(got) != "kept" {
		t.Errorf("read %q, %v", got, err)
	}
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := (FUSE{Dir: t.TempDir()}).Create(t.Context(), spec); !errors.Is(err, ErrPersistent) {
		t.Errorf("FUSE with a key: %v", err)
	}
}

// TestPersistentVolumeIsMountedOnce opens a volume again as a new server does, while a copied mount namespace still holds what a killed one had
// mounted: it must be the same file system, since two of them on one image destroy it.
func TestPersistentVolumeIsMountedOnce(t *testing.T) {
	d := drivers(t)[0].(Fscrypt)
	spec := Spec{ID: "images", Bytes: 64 << 20, Key: randomKey()}
	v, err := d.Create(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	holder := exec.CommandContext(t.Context(), "unshare", "--mount", "--propagation", "private", "sh", "-c", "echo held; exec sleep 60")
	out, err := holder.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 8)); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", "b"} {
		if err := os.WriteFile(filepath.Join(v.Path(), name), []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := Cleanup(d.Dir); err != nil { // nobody has closed it
			t.Fatal(err)
		}
		if v, err = d.Create(t.Context(), spec); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(filepath.Join(v.Path(), name))
		if err != nil || string(got) != name {
			t.Errorf("read %q, %v", got, err)
		}
		if loops, err := loopsOf(func(backing string) bool { return backing == v.Raw() }); err != nil || len(loops) != 1 {
			t.Errorf("loop devices %v, %v, want one", loops, err)
		}
	}
	if err := holder.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = holder.Wait() // it was killed
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestCleanupRemovesLeftovers(t *testing.T) {
	ds := drivers(t)
	dir := ds[0].(Fscrypt).Dir
	v, err := ds[0].Create(t.Context(), Spec{ID: "left", Bytes: 64 << 20})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // idempotent
		if err := Cleanup(dir); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(v.Raw()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("raw image survives cleanup: %v", err)
	}
	if _, err := ds[0].Create(t.Context(), Spec{ID: "left", Bytes: 64 << 20}); err != nil {
		t.Errorf("creating again after cleanup: %v", err)
	}
}

func TestSpecRefusals(t *testing.T) {
	for _, s := range []Spec{{ID: "../x", Bytes: 1 << 30}, {ID: "", Bytes: 1 << 30}, {ID: "x", Bytes: 1}, {ID: "x", Bytes: 1 << 30, Key: make([]byte, 5)}} {
		for _, d := range []Driver{Fscrypt{Dir: t.TempDir()}, FUSE{Dir: t.TempDir()}} {
			if _, err := d.Create(t.Context(), s); err == nil {
				t.Errorf("%s took %+v", d.Name(), s)
			}
		}
	}
}

// Files of the sealed file system behave like ordinary ones under ordinary tools.
func TestFUSEBehavesLikeAFileSystem(t *testing.T) {
	v, err := drivers(t)[1].Create(t.Context(), Spec{ID: "n1", Bytes: 32 << 20, Mode: 0o777})
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	script := `set -e; cd "$0"
		mkdir -p a/b; echo one > a/b/f; echo two >> a/b/f; ln a/b/f a/hard; ln -s b/f a/soft
		[ "$(cat a/soft)" = "one
two" ]; [ "$(stat -c %h a/hard)" = 2 ]; rm a/b/f; [ "$(stat -c %h a/hard)" = 1 ]; [ "$(wc -l < a/hard)" = 2 ]
		! rmdir a 2>/dev/null; mv a/hard x; mkdir c; ! mv -T a c/../a/b 2>/dev/null; truncate -s 10000 x; [ "$(stat -c %s x)" = 10000 ]
		chmod 600 x; [ "$(stat -c %a x)" = 600 ]; exec 3<x; rm x; head -c 3 <&3 | grep -q one; exec 3<&-
		mknod d c 1 3 2>/dev/null && exit 3; ! dd if=/dev/zero of=big bs=1M count=40 2>/dev/null; rm big; dd if=/dev/zero of=big bs=1M count=20 2>/dev/null
		cp /bin/sh sh; ./sh -c 'exit 0'; rm -r a c big sh; [ -z "$(ls -A)" ]`
	if out, err := exec.Command("sh", "-xc", script, v.Path()).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// A sealed file equals a byte slice under any sequence of operations, and never returns bytes that were changed on the disk.
func TestSealedFileEqualsOracle(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		dir, err := os.MkdirTemp(t.TempDir(), "")
		if err != nil {
			rt.Fatal(err)
		}
		q := &quota{limit: 64}
		f, err := newSealedFile(filepath.Join(dir, "1"), q)
		if err != nil {
			rt.Fatal(err)
		}
		var oracle []byte
		for range rapid.IntRange(1, 12).Draw(rt, "steps") {
			off := rapid.IntRange(0, 5*blockSize).Draw(rt, "off")
			n := rapid.IntRange(0, 3*blockSize).Draw(rt, "n")
			switch rapid.IntRange(0, 2).Draw(rt, "op") {
			case 0:
				data := make([]byte, n)
				for i := range data {
					data[i] = byte(rand.Uint32())
				}
				if _, err := f.WriteAt(data, int64(off)); err != nil {
					rt.Fatal(err)
				}
				if n > 0 && len(oracle) < off+n {
					oracle = append(oracle, make([]byte, off+n-len(oracle))...)
				}
				copy(oracle[min(off, len(oracle)):], data)
			case 1:
				if err := f.Truncate(int64(off)); err != nil {
					rt.Fatal(err)
				}
				if off < len(oracle) {
					oracle = oracle[:off:off]
				} else {
					oracle = append(oracle, make([]byte, off-len(oracle))...)
				}
			}
			got := make([]byte, len(oracle)+10)
			m, err := f.ReadAt(got, 0)
			if err != nil || !bytes.Equal(got[:m], oracle) {
				rt.Fatalf("file has %d bytes, oracle %d, %v", m, len(oracle), err)
			}
		}
		if err := f.destroy(); err != nil || q.used.Load() != 0 {
			rt.Fatalf("destroy: %v, %d blocks still used", err, q.used.Load())
		}
	})
}

func TestSealedFileRefusesChangedBytes(t *testing.T) {
	write := func(t *testing.T) (*sealedFile, []byte) {
		f, err := newSealedFile(filepath.Join(t.TempDir(), "1"), &quota{limit: 64})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt(make([]byte, 3*blockSize), 0); err != nil {
			t.Fatal(err)
		}
		raw, err := os.ReadFile(f.file.Name())
		if err != nil {
			t.Fatal(err)
		}
		return f, raw
	}
	for name, change := range map[string]func(f *sealedFile, raw []byte) []byte{
		"bit": func(_ *sealedFile, raw []byte) []byte { raw[100] ^= 1; return raw },
		"swapped": func(_ *sealedFile, raw []byte) []byte {
			return append(append(raw[sealedSize:2*sealedSize:2*sealedSize], raw[:sealedSize]...), raw[2*sealedSize:]...)
		},
		"zeroed":   func(_ *sealedFile, raw []byte) []byte { clear(raw); return raw },
		"cut":      func(_ *sealedFile, raw []byte) []byte { return raw[:sealedSize] },
		"rollback": func(f *sealedFile, raw []byte) []byte { _, _ = f.WriteAt([]byte("new"), 0); return raw },
	} {
		t.Run(name, func(t *testing.T) {
			f, raw := write(t)
			if err := os.WriteFile(f.file.Name(), change(f, raw), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := f.ReadAt(make([]byte, 3*blockSize), 0); err == nil {
				t.Error("changed bytes were read without an error")
			}
		})
	}
}

func BenchmarkCreate(b *testing.B) {
	for _, d := range drivers(b) {
		b.Run(d.Name(), func(b *testing.B) {
			for b.Loop() {
				v, err := d.Create(b.Context(), Spec{ID: "n1", Bytes: 8 << 30})
				if err != nil {
					b.Fatal(err)
				}
				if err := v.Close(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
