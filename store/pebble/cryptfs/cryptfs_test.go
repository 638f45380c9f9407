package cryptfs_test

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"casemate.dev/store/pebble/cryptfs"
	"casemate.dev/store/storetest"
)

const root = "/data/store"

func newFS(t testing.TB) (*cryptfs.FS, *vfs.MemFS, *storetest.Cipher) {
	t.Helper()
	mem, cipher := vfs.NewMem(), storetest.NewCipher()
	fs := cryptfs.New(mem, root, cipher)
	if err := fs.MkdirAll(root, 0o700); err != nil {
		t.Fatal(err)
	}
	return fs, mem, cipher
}

func write(t testing.TB, fs vfs.FS, name string, blocks ...string) {
	t.Helper()
	f, err := fs.Create(name, vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range blocks {
		if n, err := f.Write([]byte(b)); err != nil || n != len(b) {
			t.Fatalf("Write = %d, %v", n, err)
		}
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
}

func read(t testing.TB, fs vfs.FS, name string) string {
	t.Helper()
	f, err := fs.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	data, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestWriteThenRead(t *testing.T) {
	fs, _, _ := newFS(t)
	name := root + "/000001.log"
	write(t, fs, name, "hello", ", ", "world", strings.Repeat("x", 1000))
	want := "hello, world" + strings.Repeat("x", 1000)
	if got := read(t, fs, name); got != want {
		t.Errorf("read %q", got)
	}
	info, err := fs.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	if info.Size() != int64(len(want)) || info.Name() != "000001.log" {
		t.Errorf("Stat gives %s of %d bytes, want 000001.log of %d", info.Name(), info.Size(), len(want))
	}
}

func TestReadAtAgreesWithBytes(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		fs, _, _ := newFS(t)
		want := rapid.SliceOfN(rapid.Byte(), 1, 300).Draw(rt, "data")
		cut := rapid.IntRange(0, len(want)).Draw(rt, "cut")
		write(t, fs, root+"/f", string(want[:cut]), string(want[cut:]))
		f, err := fs.Open(root + "/f")
		if err != nil {
			rt.Fatal(err)
		}
		defer f.Close()
		off := rapid.IntRange(0, len(want)+5).Draw(rt, "offset")
		size := rapid.IntRange(1, 400).Draw(rt, "size")
		got, wantBuf := make([]byte, size), make([]byte, size)
		n, gotErr := f.ReadAt(got, int64(off))
		wantN, wantErr := bytes.NewReader(want).ReadAt(wantBuf, int64(off))
		if n != wantN || gotErr != wantErr || !bytes.Equal(got[:n], wantBuf[:wantN]) {
			rt.Fatalf("ReadAt(%d bytes, %d) = %d, %v; want %d, %v", size, off, n, gotErr, wantN, wantErr)
		}
	})
}

// A canary in contents, names and directory names must not be on the disk.
func TestDiskShowsNoPlaintext(t *testing.T) {
	dir := t.TempDir()
	fs := cryptfs.New(vfs.Default, dir, storetest.NewCipher())
	const canary = "canary"
	sub := filepath.Join(dir, canary+"-directory")
	if err := fs.MkdirAll(sub, 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, fs, filepath.Join(sub, canary+".sst"), strings.Repeat(canary, 100))
	if got := read(t, fs, filepath.Join(sub, canary+".sst")); got != strings.Repeat(canary, 100) {
		t.Fatalf("read back %q", got)
	}
	storetest.NoPlaintext(t, dir, canary, ".sst")
}

func TestSamePlaintextNeverLooksTheSame(t *testing.T) {
	fs, mem, cipher := newFS(t)
	seen := map[string]string{}
	for _, name := range []string{"a", "b", "c"} {
		write(t, fs, root+"/"+name, strings.Repeat("p", 64))
	}
	reused, err := fs.ReuseForWrite(root+"/c", root+"/d", vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := reused.Write([]byte(strings.Repeat("p", 64))); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", "b", "d"} {
		raw := read(t, mem, root+"/"+cipher.EncryptName(name))[cipher.HeaderSize():]
		if other, ok := seen[raw]; ok {
			t.Errorf("files %s and %s have the same ciphertext", name, other)
		}
		seen[raw] = name
	}
	if _, err := fs.Stat(root + "/c"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the reused file is still there: %v", err)
	}
}

func TestTornHeaderReadsAsEmpty(t *testing.T) {
	fs, mem, cipher := newFS(t)
	for size := 0; size <= cipher.HeaderSize(); size += 12 {
		f, err := mem.Create(root+"/"+cipher.EncryptName("wal"), vfs.WriteCategoryUnspecified)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write(make([]byte, size)); err != nil {
			t.Fatal(err)
		}
		if got := read(t, fs, root+"/wal"); got != "" {
			t.Errorf("with %d bytes of header, read %q", size, got)
		}
		if info, err := fs.Stat(root + "/wal"); err != nil || info.Size() != 0 {
			t.Errorf("with %d bytes of header, Stat = %v, %v", size, info, err)
		}
	}
}

func TestForgedHeaderIsAnError(t *testing.T) {
	fs, mem, cipher := newFS(t)
	write(t, fs, root+"/a", "contents")
	raw := []byte(read(t, mem, root+"/"+cipher.EncryptName("a")))
	for i := range cipher.HeaderSize() {
		forged := slices.Clone(raw)
		forged[i] ^= 1
		write(t, mem, root+"/"+cipher.EncryptName("a"), string(forged))
		if f, err := fs.Open(root + "/a"); err == nil {
			f.Close()
			t.Fatalf("opened with byte %d of the header flipped", i)
		}
	}
}

func TestListFailsUnderTheWrongKey(t *testing.T) {
	fs, mem, _ := newFS(t)
	write(t, fs, root+"/a", "x")
	write(t, fs, root+"/b", "x")
	names, err := fs.List(root)
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(names)
	if diff := cmp.Diff([]string{"a", "b"}, names); diff != "" {
		t.Errorf("List (-want +got):\n%s", diff)
	}
	if names, err := cryptfs.New(mem, root, storetest.NewCipher()).List(root); err == nil {
		t.Errorf("List under another key = %q, want an error", names)
	}
}

func TestOverwritingIsRefused(t *testing.T) {
	fs, _, _ := newFS(t)
	if _, err := fs.OpenReadWrite(root+"/a", vfs.WriteCategoryUnspecified); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("OpenReadWrite returned %v", err)
	}
	f, err := fs.Create(root+"/a", vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("x"), 0); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("WriteAt returned %v", err)
	}
	if _, err := fs.Create("/data/beside", vfs.WriteCategoryUnspecified); err == nil {
		t.Error("created a file outside the root in the clear")
	}
}

func TestNamesMoveWithTheirFiles(t *testing.T) {
	fs, _, _ := newFS(t)
	write(t, fs, root+"/a", "contents")
	steps := []struct {
		name string
		do   func() error
		want []string
	}{
		{"link", func() error { return fs.Link(root+"/a", root+"/b") }, []string{"a", "b"}},
		{"rename", func() error { return fs.Rename(root+"/a", root+"/c") }, []string{"b", "c"}},
		{"remove", func() error { return fs.Remove(root + "/c") }, []string{"b"}},
	}
	for _, s := range steps {
		if err := s.do(); err != nil {
			t.Fatalf("%s: %v", s.name, err)
		}
		names, err := fs.List(root)
		if err != nil {
			t.Fatal(err)
		}
		slices.Sort(names)
		if diff := cmp.Diff(s.want, names); diff != "" {
			t.Errorf("after %s (-want +got):\n%s", s.name, diff)
		}
		for _, name := range names {
			if got := read(t, fs, root+"/"+name); got != "contents" {
				t.Errorf("after %s, %s holds %q", s.name, name, got)
			}
		}
	}
}

// Whatever a crash leaves of a file, it opens, and what had been synced is there.
func TestCrashLeavesAFileThatOpens(t *testing.T) {
	for seed := range uint64(200) {
		mem := vfs.NewCrashableMem()
		cipher := storetest.NewCipher()
		fs := cryptfs.New(mem, "/s", cipher)
		if err := fs.MkdirAll("/s", 0o700); err != nil {
			t.Fatal(err)
		}
		dir, err := fs.OpenDir("/")
		if err != nil {
			t.Fatal(err)
		}
		if err := dir.Sync(); err != nil {
			t.Fatal(err)
		}
		f, err := fs.Create("/s/wal", vfs.WriteCategoryUnspecified)
		if err != nil {
			t.Fatal(err)
		}
		sdir, err := fs.OpenDir("/s")
		if err != nil {
			t.Fatal(err)
		}
		if err := sdir.Sync(); err != nil {
			t.Fatal(err)
		}
		synced := ""
		for i := range seed % 4 {
			if _, err := f.Write([]byte("block of text ")); err != nil {
				t.Fatal(err)
			}
			if i%2 == 1 {
				if err := f.Sync(); err != nil {
					t.Fatal(err)
				}
				synced = strings.Repeat("block of text ", int(i)+1)
			}
		}
		rng := rand.New(rand.NewPCG(seed, 1))
		clone := mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: int(seed % 101), RNG: rng})
		if got := read(t, cryptfs.New(clone, "/s", cipher), "/s/wal"); !strings.HasPrefix(got, synced) {
			t.Fatalf("seed %d: after the crash the file holds %q, want at least %q", seed, got, synced)
		}
	}
}
