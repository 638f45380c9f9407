package envelope_test

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"io"
	"testing"

	"casemate.dev/envelope"
)

// The peers use the same primitive over the same segments with the same memory
// traffic: a source, and a buffer that a segment at a time goes to.

const benchSize = 64 << 20

func bareGCM(b *testing.B) cipher.AEAD {
	b.Helper()
	block, err := aes.NewCipher(pattern(32))
	if err != nil {
		b.Fatal(err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		b.Fatal(err)
	}
	return aead
}

// segmentSink keeps one segment, like the buffer of the peers.
type segmentSink struct{ n int64 }

func (s *segmentSink) Write(p []byte) (int, error) {
	s.n += int64(len(p))
	return len(p), nil
}

func BenchmarkSeal64MiB(b *testing.B) {
	h, plain := testHandle(), pattern(benchSize)
	b.SetBytes(benchSize)
	b.ReportAllocs()
	for b.Loop() {
		s, err := h.Seal(&segmentSink{}, "place")
		if err != nil {
			b.Fatal(err)
		}
		if _, err := s.Write(plain); err != nil {
			b.Fatal(err)
		}
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkBareGCMSeal64MiB(b *testing.B) {
	aead, plain, ad := bareGCM(b), pattern(benchSize), make([]byte, 73)
	out := make([]byte, 0, envelope.SealedSegment)
	b.SetBytes(benchSize)
	b.ReportAllocs()
	for b.Loop() {
		var sink segmentSink
		for off := 0; off < benchSize; off += envelope.SegmentSize {
			_, _ = sink.Write(aead.Seal(out, nil, plain[off:off+envelope.SegmentSize], ad))
		}
	}
}

func BenchmarkOpen64MiB(b *testing.B) {
	h := testHandle()
	sealed := sealAll(b, h, "place", pattern(benchSize))
	b.SetBytes(benchSize)
	b.ReportAllocs()
	for b.Loop() {
		o, err := h.Open(bytes.NewReader(sealed), int64(len(sealed)), "place")
		if err != nil {
			b.Fatal(err)
		}
		if n, err := o.WriteTo(&segmentSink{}); err != nil || n != benchSize {
			b.Fatal(n, err)
		}
	}
}

func BenchmarkBareGCMOpen64MiB(b *testing.B) {
	aead, plain, ad := bareGCM(b), pattern(benchSize), make([]byte, 73)
	var sealed []byte
	for off := 0; off < benchSize; off += envelope.SegmentSize {
		sealed = aead.Seal(sealed, nil, plain[off:off+envelope.SegmentSize], ad)
	}
	r := bytes.NewReader(sealed)
	in, out := make([]byte, envelope.SealedSegment), make([]byte, 0, envelope.SegmentSize)
	b.SetBytes(benchSize)
	b.ReportAllocs()
	for b.Loop() {
		var sink segmentSink
		for off := int64(0); off < r.Size(); off += envelope.SealedSegment {
			if _, err := r.ReadAt(in, off); err != nil {
				b.Fatal(err)
			}
			p, err := aead.Open(out, nil, in, ad)
			if err != nil {
				b.Fatal(err)
			}
			_, _ = sink.Write(p)
		}
	}
}

func BenchmarkRandomRead4KiB(b *testing.B) {
	h := testHandle()
	sealed := sealAll(b, h, "place", pattern(benchSize))
	o, err := h.Open(bytes.NewReader(sealed), int64(len(sealed)), "place")
	if err != nil {
		b.Fatal(err)
	}
	p, off := make([]byte, 4096), int64(0)
	b.ReportAllocs()
	for b.Loop() {
		off = (off*6364136223846793005 + 1442695040888963407) & (benchSize - 1)
		if _, err := o.ReadAt(p, min(off, benchSize-4096)); err != nil && err != io.EOF {
			b.Fatal(err)
		}
	}
}

func BenchmarkSealBytes1KiB(b *testing.B) {
	h, plain := testHandle(), pattern(1024)
	b.SetBytes(1024)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := h.SealBytes("document/1", plain); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkOpenBytes1KiB(b *testing.B) {
	h := testHandle()
	sealed, err := h.SealBytes("document/1", pattern(1024))
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(1024)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := h.OpenBytes("document/1", sealed); err != nil {
			b.Fatal(err)
		}
	}
}
