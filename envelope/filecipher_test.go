package envelope_test

import (
	"bytes"
	"errors"
	"strings"
	"sync"
	"testing"

	"casemate.dev/envelope"
	"pgregory.net/rapid"
)

func testFiles(t testing.TB) *envelope.FileCipher {
	t.Helper()
	dir := t.TempDir()
	root, err := envelope.OpenRoot("file:", dir)
	if err != nil {
		t.Fatal(err)
	}
	h, err := envelope.OpenHierarchy(t.Context(), dir, root)
	if err != nil {
		t.Fatal(err)
	}
	return h.Files()
}

// TestFileStream: encryption in one piece equals encryption in any pieces, at
// any offsets, in any order, by either stream.
func TestFileStream(t *testing.T) {
	files := testFiles(t)
	header, stream, err := files.NewFile()
	if err != nil {
		t.Fatal(err)
	}
	if len(header) != files.HeaderSize() {
		t.Fatalf("header of %d bytes, HeaderSize says %d", len(header), files.HeaderSize())
	}
	again, err := files.OpenFile(header)
	if err != nil {
		t.Fatal(err)
	}
	whole := make([]byte, 10_000)
	stream.XORKeyStreamAt(whole, whole, 0) // the key stream itself
	if bytes.Equal(whole, make([]byte, len(whole))) {
		t.Fatal("the key stream is zero")
	}
	rapid.Check(t, func(t *rapid.T) {
		off := rapid.IntRange(0, len(whole)).Draw(t, "off")
		n := rapid.IntRange(0, len(whole)-off).Draw(t, "n")
		got := make([]byte, n)
		again.XORKeyStreamAt(got, got, int64(off))
		if !bytes.Equal(got, whole[off:off+n]) {
			t.Fatalf("another key stream at %d", off)
		}
	})
	far := make([]byte, 33)
	stream.XORKeyStreamAt(far, far, 1<<45+5)
	part := make([]byte, 3)
	again.XORKeyStreamAt(part, part, 1<<45+35)
	if !bytes.Equal(part, far[30:]) {
		t.Fatal("another key stream far out")
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			p := make([]byte, len(whole))
			if stream.XORKeyStreamAt(p, p, 0); !bytes.Equal(p, whole) {
				t.Error("another key stream under concurrency")
			}
		})
	}
	wg.Wait()
	other, stream2, err := files.NewFile()
	if err != nil || bytes.Equal(other, header) {
		t.Fatal("two files have one header", err)
	}
	p := make([]byte, 100)
	if stream2.XORKeyStreamAt(p, p, 0); bytes.Equal(p, whole[:100]) {
		t.Fatal("two files have one key stream")
	}
}

func TestFileHeaderMustFail(t *testing.T) {
	files := testFiles(t)
	header, _, err := files.NewFile()
	if err != nil {
		t.Fatal(err)
	}
	for i := range header {
		bad := bytes.Clone(header)
		bad[i] ^= 1
		if _, err := files.OpenFile(bad); !errors.Is(err, envelope.ErrCorrupt) {
			t.Fatalf("byte %d altered: %v", i, err)
		}
	}
	for _, bad := range [][]byte{nil, header[:len(header)-1], append(bytes.Clone(header), 0)} {
		if _, err := files.OpenFile(bad); !errors.Is(err, envelope.ErrCorrupt) {
			t.Fatalf("%d bytes: %v", len(bad), err)
		}
	}
	if _, err := testFiles(t).OpenFile(header); !errors.Is(err, envelope.ErrCorrupt) {
		t.Fatalf("another store's header: %v", err)
	}
}

func TestNames(t *testing.T) {
	files := testFiles(t)
	seen := map[string]string{}
	rapid.Check(t, func(t *rapid.T) {
		name := rapid.OneOf(rapid.String(), rapid.SampledFrom([]string{"", "CURRENT", "MANIFEST-000001", "000123.sst", "16 bytes in name", "x\x80", "x\x00\x00"})).Draw(t, "name")
		enc := files.EncryptName(name)
		if enc != files.EncryptName(name) {
			t.Fatal("not deterministic")
		}
		if old, ok := seen[enc]; ok && old != name {
			t.Fatalf("%q and %q have one name", old, name)
		}
		seen[enc] = name
		if strings.Trim(enc, "0123456789abcdefghijklmnopqrstuv") != "" {
			t.Fatalf("%q is not a name for every file system", enc)
		}
		got, err := files.DecryptName(enc)
		if err != nil || got != name {
			t.Fatalf("%q became %q, %v", name, got, err)
		}
	})
	if n := len(files.EncryptName(strings.Repeat("n", 120))); n > 255 {
		t.Fatalf("a name of 120 bytes needs %d", n)
	}
}

func TestNamesMustFail(t *testing.T) {
	files := testFiles(t)
	enc := files.EncryptName("000123.sst")
	for i := range enc {
		for _, c := range []byte("05vV-") {
			if enc[i] == c {
				continue
			}
			bad := enc[:i] + string(c) + enc[i+1:]
			if got, err := files.DecryptName(bad); !errors.Is(err, envelope.ErrCorrupt) {
				t.Fatalf("%q decoded to %q, %v", bad, got, err)
			}
		}
	}
	for _, bad := range []string{"", "CURRENT", enc[:len(enc)-1], enc + "0", strings.ToUpper(enc), testFiles(t).EncryptName("000123.sst")} {
		if got, err := files.DecryptName(bad); !errors.Is(err, envelope.ErrCorrupt) {
			t.Fatalf("%q decoded to %q, %v", bad, got, err)
		}
	}
}

func FuzzDecryptName(f *testing.F) {
	files := testFiles(f)
	f.Add(files.EncryptName("CURRENT"))
	f.Add("")
	f.Fuzz(func(t *testing.T, s string) {
		name, err := files.DecryptName(s)
		if err == nil && files.EncryptName(name) != s || err != nil && !errors.Is(err, envelope.ErrCorrupt) {
			t.Fatal(name, err)
		}
	})
}

func BenchmarkFileStream32KiB(b *testing.B) {
	_, stream, err := testFiles(b).NewFile()
	if err != nil {
		b.Fatal(err)
	}
	p := make([]byte, 32<<10)
	b.SetBytes(int64(len(p)))
	b.ReportAllocs()
	for b.Loop() {
		stream.XORKeyStreamAt(p, p, 4097)
	}
}
