package envelope_test

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"casemate.dev/envelope"
	"pgregory.net/rapid"
)

const testResource = "/subscriptions/S/resourceGroups/Ward/providers/Microsoft.Storage/storageAccounts/patients"

func testHandle() *envelope.Handle { return envelope.HandleOf(testResource, [32]byte(pattern(32))) }

func testOracle() oracleKey { return oracleKey{testResource, [32]byte(pattern(32))} }

// sealAll seals in one Write.
func sealAll(t testing.TB, h *envelope.Handle, object string, plain []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	s, err := h.Seal(&out, object)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Write(plain); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// sizes around the borders of segments.
func drawSize(t *rapid.T) int {
	return rapid.OneOf(
		rapid.IntRange(0, 3*envelope.SegmentSize+100),
		rapid.SampledFrom([]int{0, 1, 65535, 65536, 65537, 2*65536 - 1, 2 * 65536, 2*65536 + 1}),
	).Draw(t, "size")
}

// TestSealAgainstOracle writes in pieces of any size, by Write and ReadFrom, and
// lets the oracle read.
func TestSealAgainstOracle(t *testing.T) {
	needOracle(t)
	h := testHandle()
	rapid.Check(t, func(t *rapid.T) {
		plain := pattern(drawSize(t))
		var out bytes.Buffer
		s, err := h.Seal(&out, "place")
		if err != nil {
			t.Fatal(err)
		}
		for rest := plain; len(rest) > 0; {
			n := min(len(rest), rapid.IntRange(1, 100_000).Draw(t, "piece"))
			switch rapid.IntRange(0, 2).Draw(t, "way") {
			case 0:
				_, err = s.Write(rest[:n])
			case 1:
				_, err = s.ReadFrom(bytes.NewReader(rest[:n]))
			default:
				_, err = s.ReadFrom(iotest.DataErrReader(bytes.NewReader(rest[:n])))
			}
			if err != nil {
				t.Fatal(err)
			}
			rest = rest[n:]
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if got := envelope.SealedSize(int64(len(plain))); got != int64(out.Len()) {
			t.Fatalf("SealedSize says %d, it is %d", got, out.Len())
		}
		got, err := testOracle().open("place", out.Bytes())
		if err != nil || !bytes.Equal(got, plain) {
			t.Fatalf("the oracle read %d bytes, %v; want %d", len(got), err, len(plain))
		}
	})
}

// TestReadAgainstOracle compares every way of reading with a slice of the whole.
func TestReadAgainstOracle(t *testing.T) {
	h := testHandle()
	rapid.Check(t, func(t *rapid.T) {
		plain := pattern(drawSize(t))
		var buf bytes.Buffer
		s, _ := h.Seal(&buf, "place")
		_, _ = s.Write(plain)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		o, err := h.Open(bytes.NewReader(buf.Bytes()), int64(buf.Len()), "place")
		if err != nil {
			t.Fatal(err)
		}
		if o.Size() != int64(len(plain)) {
			t.Fatalf("Size is %d, want %d", o.Size(), len(plain))
		}
		slow := bytes.NewReader(plain)
		for range rapid.IntRange(1, 8).Draw(t, "reads") {
			off := rapid.Int64Range(0, int64(len(plain)+10)).Draw(t, "off")
			p, want := make([]byte, rapid.IntRange(0, 140_000).Draw(t, "len")), []byte(nil)
			want = make([]byte, len(p))
			switch rapid.IntRange(0, 2).Draw(t, "way") {
			case 0:
				n, err := o.ReadAt(p, off)
				m, wantErr := slow.ReadAt(want, off)
				if len(p) == 0 {
					wantErr = nil // bytes.Reader says EOF for nothing at the end
				}
				if n != m || err != wantErr || !bytes.Equal(p, want) {
					t.Fatalf("ReadAt(%d, %d) = %d, %v; want %d, %v", len(p), off, n, err, m, wantErr)
				}
			case 1:
				pos, err := o.Seek(off, io.SeekStart)
				if err != nil || pos != off {
					t.Fatal(pos, err)
				}
				n, err := io.ReadFull(o, p)
				_, _ = slow.Seek(off, io.SeekStart)
				m, wantErr := io.ReadFull(slow, want)
				if n != m || err != wantErr || !bytes.Equal(p, want) {
					t.Fatalf("ReadFull(%d) at %d = %d, %v; want %d, %v", len(p), off, n, err, m, wantErr)
				}
			default:
				_, _ = o.Seek(off-o.Size(), io.SeekEnd)
				got, err := readAllByWriterTo(o)
				if err != nil || !bytes.Equal(got, plain[min(off, int64(len(plain))):]) {
					t.Fatalf("WriteTo from %d gave %d bytes, %v", off, len(got), err)
				}
			}
		}
	})
}

func readAllByWriterTo(o *envelope.Opened) ([]byte, error) {
	var out bytes.Buffer
	_, err := o.WriteTo(&out)
	return out.Bytes(), err
}

// TestMutations alters sealed objects in every manner and reads in every
// manner: no byte comes out that was not there at that place.
func TestMutations(t *testing.T) {
	h := testHandle()
	plain := pattern(2*envelope.SegmentSize + 500)
	good := sealAll(t, h, "place", plain)
	rapid.Check(t, func(t *rapid.T) {
		bad := bytes.Clone(good)
		switch rapid.IntRange(0, 3).Draw(t, "manner") {
		case 0: // flip
			bad[rapid.IntRange(0, len(bad)-1).Draw(t, "at")] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
		case 1: // cut
			bad = bad[:rapid.IntRange(0, len(bad)-1).Draw(t, "len")]
		case 2: // extend
			bad = append(bad, rapid.SliceOfN(rapid.Byte(), 1, 100).Draw(t, "more")...)
		default: // copy a piece over another
			n := rapid.IntRange(1, 70_000).Draw(t, "n")
			from, to := rapid.IntRange(0, len(bad)-n).Draw(t, "from"), rapid.IntRange(0, len(bad)-n).Draw(t, "to")
			copy(bad[to:to+n], good[from:from+n])
		}
		same := bytes.Equal(bad, good)
		o, err := h.Open(bytes.NewReader(bad), int64(len(bad)), "place")
		if err != nil {
			if same || !errors.Is(err, envelope.ErrCorrupt) {
				t.Fatalf("opening: %v", err)
			}
			return
		}
		if o.Size() != int64(len(plain)) {
			t.Fatalf("opened with size %d", o.Size())
		}
		got, err := readAllByWriterTo(o)
		if !bytes.HasPrefix(plain, got) || (err == nil) != same || err != nil && !errors.Is(err, envelope.ErrCorrupt) {
			t.Fatalf("read %d bytes, %v", len(got), err)
		}
		for off := int64(0); off < o.Size(); off += 30_000 {
			p := make([]byte, 4096)
			n, err := o.ReadAt(p, off)
			if !bytes.Equal(p[:n], plain[off:off+int64(n)]) || !bytes.Equal(p[n:], make([]byte, len(p)-n)) {
				t.Fatalf("ReadAt(%d) gave other bytes, %v", off, err)
			}
		}
	})
}

func TestSizes(t *testing.T) {
	sizes := map[int64]int64{}
	for n := int64(0); n < 3*envelope.SegmentSize; n += 1 + n%97 {
		sizes[envelope.SealedSize(n)] = n
	}
	for s := int64(-1); s < 3*envelope.SealedSegment; s++ {
		n, err := envelope.PlainSize(s)
		if err == nil && envelope.SealedSize(n) != s {
			t.Fatalf("PlainSize(%d) = %d, whose SealedSize is %d", s, n, envelope.SealedSize(n))
		}
		if want, ok := sizes[s]; ok && (err != nil || n != want) {
			t.Fatalf("PlainSize(%d) = %d, %v; want %d", s, n, err, want)
		}
	}
	if _, err := envelope.PlainSize(1<<63 - 1); !errors.Is(err, envelope.ErrCorrupt) {
		t.Fatalf("got %v for a size of more than 2^32 segments", err)
	}
}

func TestUnfinishedNeverOpens(t *testing.T) {
	h := testHandle()
	var out bytes.Buffer
	s, err := h.Seal(&out, "place")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Write(pattern(200_000)); err != nil {
		t.Fatal(err)
	}
	if _, err := openAll(h, "place", out.Bytes()); !errors.Is(err, envelope.ErrCorrupt) {
		t.Fatalf("opened without Close: %v", err)
	}
	if err := errors.Join(s.Close(), s.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Write([]byte("x")); err == nil {
		t.Fatal("wrote after Close")
	}
	if got, err := openAll(h, "place", out.Bytes()); err != nil || len(got) != 200_000 {
		t.Fatal(len(got), err)
	}
}

func TestErrorsBelow(t *testing.T) {
	h := testHandle()
	broken := errors.New("broken pipe")
	s, err := h.Seal(failingWriter{broken}, "place")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Write(pattern(70_000)); !errors.Is(err, broken) {
		t.Errorf("Write: %v", err)
	}
	if err := s.Close(); !errors.Is(err, broken) {
		t.Errorf("Close: %v", err)
	}
	s, _ = h.Seal(io.Discard, "place")
	if _, err := s.ReadFrom(iotest.ErrReader(broken)); !errors.Is(err, broken) {
		t.Errorf("ReadFrom: %v", err)
	}
	sealed := sealAll(t, h, "place", pattern(100))
	_, err = h.Open(failingReaderAt{broken}, int64(len(sealed)), "place")
	if !errors.Is(err, broken) || errors.Is(err, envelope.ErrCorrupt) {
		t.Errorf("Open: %v: a disk error is not a corrupt object", err)
	}
	if _, err := h.Open(bytes.NewReader(sealed[:50]), int64(len(sealed)), "place"); !errors.Is(err, envelope.ErrCorrupt) {
		t.Errorf("Open of less than promised: %v", err)
	}
}

type failingWriter struct{ err error }

func (w failingWriter) Write([]byte) (int, error) { return 0, w.err }

type failingReaderAt struct{ err error }

func (r failingReaderAt) ReadAt([]byte, int64) (int, error) { return 0, r.err }

func TestParallelReads(t *testing.T) {
	h := testHandle()
	plain := pattern(5*envelope.SegmentSize + 77)
	sealed := sealAll(t, h, "place", plain)
	o, err := h.Open(bytes.NewReader(sealed), int64(len(sealed)), "place")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 50 {
				off := (g*7919 + i*31337) % len(plain)
				p := make([]byte, min(100+i*2000, len(plain)-off))
				if _, err := o.ReadAt(p, int64(off)); err != nil || !bytes.Equal(p, plain[off:off+len(p)]) {
					t.Errorf("ReadAt(%d, %d): %v", len(p), off, err)
				}
			}
		})
	}
	wg.Wait()
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := o.ReadAt(make([]byte, 1), 0); err == nil {
		t.Fatal("read after Close")
	}
}

func TestNothingPerSegment(t *testing.T) {
	h := testHandle()
	plain := pattern(envelope.SegmentSize)
	s, err := h.Seal(io.Discard, "place")
	if err != nil {
		t.Fatal(err)
	}
	if n := testing.AllocsPerRun(100, func() { _, _ = s.Write(plain) }); n > 0 {
		t.Errorf("sealing allocates %v times for a segment", n)
	}
	sealed := sealAll(t, h, "place", pattern(200*envelope.SegmentSize))
	o, err := h.Open(bytes.NewReader(sealed), int64(len(sealed)), "place")
	if err != nil {
		t.Fatal(err)
	}
	p, off := make([]byte, 4096), int64(0)
	if n := testing.AllocsPerRun(100, func() {
		_, _ = o.ReadAt(p, off)
		off += envelope.SegmentSize
	}); n > 0.5 { // the pool may be emptied once
		t.Errorf("reading allocates %v times for a segment", n)
	}
}

func TestValues(t *testing.T) {
	h := testHandle()
	for _, n := range []int{0, 1, 1000} {
		sealed, err := h.SealBytes("doc/1", pattern(n))
		if err != nil || len(sealed) != n+envelope.ValueOverhead {
			t.Fatal(len(sealed), err)
		}
		got, err := h.OpenBytes("doc/1", sealed)
		if err != nil || !bytes.Equal(got, pattern(n)) {
			t.Fatal(got, err)
		}
		if _, err := h.OpenBytes("doc/2", sealed); !errors.Is(err, envelope.ErrCorrupt) {
			t.Fatalf("opened elsewhere: %v", err)
		}
	}
}

// TestValueRuns checks that a run ends at its limit and that all runs open.
func TestValueRuns(t *testing.T) {
	h := testHandle()
	var all [][]byte
	salts := map[string]bool{}
	for range envelope.MaxOpenings + 50 {
		sealed, err := h.SealBytes("doc", []byte("value"))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, sealed)
		salts[string(sealed[1:17])] = true
		envelope.EndRun(h)
	}
	if len(salts) != len(all) {
		t.Fatalf("%d salts for %d runs", len(salts), len(all))
	}
	for _, sealed := range all {
		if _, err := h.OpenBytes("doc", sealed); err != nil {
			t.Fatal(err)
		}
	}
	if n := envelope.Openings(h); n > envelope.MaxOpenings {
		t.Fatalf("%d ciphers are kept", n)
	}
	before := envelope.Openings(h)
	garbage := bytes.Clone(all[0])
	garbage[3] ^= 1
	if _, err := h.OpenBytes("doc", garbage); err == nil || envelope.Openings(h) != before {
		t.Fatalf("garbage: %v, %d ciphers kept after %d", err, envelope.Openings(h), before)
	}
}

func TestResourceIDsIgnoreCase(t *testing.T) {
	a := envelope.HandleOf(testResource, [32]byte(pattern(32)))
	b := envelope.HandleOf(strings.ToUpper(testResource), [32]byte(pattern(32)))
	if _, err := openAll(b, "place", sealAll(t, a, "place", []byte("x"))); err != nil {
		t.Fatal(err)
	}
}

func FuzzOpen(f *testing.F) {
	h := testHandle()
	f.Add([]byte{})
	f.Add(sealAll(f, h, "place", nil))
	f.Add(sealAll(f, h, "place", pattern(100)))
	f.Add(sealAll(f, h, "place", pattern(65537)))
	f.Fuzz(func(t *testing.T, sealed []byte) {
		got, err := openAll(h, "place", sealed)
		if !fipsOnly() {
			want, wantErr := testOracle().open("place", sealed)
			if (err == nil) != (wantErr == nil) || err == nil && !bytes.Equal(got, want) {
				t.Fatalf("%d bytes, %v; the oracle: %d bytes, %v", len(got), err, len(want), wantErr)
			}
		}
		if err != nil && !errors.Is(err, envelope.ErrCorrupt) {
			t.Fatal(err)
		}
	})
}

func FuzzOpenBytes(f *testing.F) {
	h := testHandle()
	f.Add([]byte{})
	sealed, err := h.SealBytes("place", []byte("value"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(sealed)
	f.Fuzz(func(t *testing.T, sealed []byte) {
		got, err := h.OpenBytes("place", sealed)
		if !fipsOnly() {
			want, wantErr := testOracle().openValue("place", sealed)
			if (err == nil) != (wantErr == nil) || !bytes.Equal(got, want) {
				t.Fatalf("%x, %v; the oracle: %x, %v", got, err, want, wantErr)
			}
		}
		if err != nil && !errors.Is(err, envelope.ErrCorrupt) {
			t.Fatal(err)
		}
	})
}
