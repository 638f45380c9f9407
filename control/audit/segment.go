package audit

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// A segment file is
//
//	magic "CMAUDIT1" | previous chain value (32 bytes) | frames …
//	frame: length of payload (4 bytes, big endian) | kind (1 byte) | payload
//	chain(n) = SHA-256( chain(n-1) | length | kind | payload )
//
// A record's payload is a sealed Entry. A checkpoint's payload is JSON: the sequence number and chain value it vouches for
// and an ECDSA P-256 signature over them.
const (
	magic           = "CMAUDIT1"
	headerSize      = len(magic) + sha256.Size
	frameHeaderSize = 5
	maxFrame        = 1 << 20
	defaultSegment  = 64 << 20

	kindRecord     byte = 1
	kindCheckpoint byte = 2
)

var errTorn = errors.New("the last frame is incomplete")

type chain [sha256.Size]byte

func (c chain) next(frame []byte) chain {
	h := sha256.New()
	h.Write(c[:])
	h.Write(frame)
	var out chain
	h.Sum(out[:0])
	return out
}

func appendFrame(dst []byte, kind byte, payload []byte) []byte {
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(payload)))
	dst = append(dst, kind)
	return append(dst, payload...)
}

// checkpoint vouches for all records up to Sequence.
type checkpoint struct {
	Sequence  uint64    `json:"sequence"`
	Chain     []byte    `json:"chain"`
	Time      time.Time `json:"time"`
	Signature []byte    `json:"signature"`
}

func (c *checkpoint) digest() []byte {
	h := sha256.New()
	h.Write([]byte("casemate audit checkpoint v1\x00"))
	var n [8]byte
	binary.BigEndian.PutUint64(n[:], c.Sequence)
	h.Write(n[:])
	h.Write(c.Chain)
	h.Write([]byte(c.Time.UTC().Format(time.RFC3339Nano)))
	return h.Sum(nil)
}

func signCheckpoint(key *ecdsa.PrivateKey, seq uint64, c chain, now time.Time) ([]byte, error) {
	cp := checkpoint{Sequence: seq, Chain: c[:], Time: now.UTC()}
	sig, err := ecdsa.SignASN1(rand.Reader, key, cp.digest())
	if err != nil {
		return nil, fmt.Errorf("signing audit checkpoint: %w", err)
	}
	cp.Signature = sig
	return json.Marshal(cp)
}

// segmentReader walks one segment's frames and keeps the chain.
type segmentReader struct {
	f     *os.File
	r     *bufio.Reader
	name  string
	chain chain
	off   int64 // offset behind the last whole frame
}

func openSegment(path string) (*segmentReader, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("opening audit segment: %w", err)
	}
	s := &segmentReader{f: f, r: bufio.NewReaderSize(f, 256<<10), name: filepath.Base(path)}
	head := make([]byte, headerSize)
	if _, err := io.ReadFull(s.r, head); err != nil || string(head[:len(magic)]) != magic {
		f.Close()
		return nil, fmt.Errorf("audit segment %s has no valid header", s.name)
	}
	copy(s.chain[:], head[len(magic):])
	s.off = int64(headerSize)
	return s, nil
}

// next returns the next frame's kind and payload; io.EOF at a clean end, errTorn when the file ends inside a frame.
func (s *segmentReader) next() (byte, []byte, error) {
	var head [frameHeaderSize]byte
	n, err := io.ReadFull(s.r, head[:])
	if err == io.EOF && n == 0 {
		return 0, nil, io.EOF
	}
	if err != nil {
		return 0, nil, errTorn
	}
	size := binary.BigEndian.Uint32(head[:4])
	if size > maxFrame || head[4] != kindRecord && head[4] != kindCheckpoint {
		return 0, nil, fmt.Errorf("audit segment %s holds an impossible frame at offset %d", s.name, s.off)
	}
	frame := make([]byte, frameHeaderSize+int(size))
	copy(frame, head[:])
	if _, err := io.ReadFull(s.r, frame[frameHeaderSize:]); err != nil {
		return 0, nil, errTorn
	}
	s.chain = s.chain.next(frame)
	s.off += int64(len(frame))
	return head[4], frame[frameHeaderSize:], nil
}

func (s *segmentReader) Close() error { return s.f.Close() }

func listSegments(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("listing audit segments: %w", err)
	}
	var out []string
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".log") {
			out = append(out, filepath.Join(dir, e.Name()))
		}
	}
	slices.Sort(out)
	return out, nil
}
