package envelope

import (
	"cmp"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
)

// errSealed answers a Write after Close.
var errSealed = errors.New("writing to a sealed object that is closed")

// Sealer encrypts what is written to it. The object is whole only when Close
// has returned nil; without it the ciphertext never opens. After an error
// every call answers that error. A Sealer is not safe for concurrent use.
type Sealer struct {
	handle  *Handle
	w       io.Writer
	aead    cipher.AEAD
	header  []byte // not yet written; nil once it is
	index   int64
	space   *scratch // nil once closed
	pending int      // bytes in space.plain
	err     error
	closed  bool
}

// Seal begins a sealed object in w. object names the place where the ciphertext
// belongs; Open must be given the same. The first bytes reach w with the first
// segment.
func (h *Handle) Seal(w io.Writer, object string) (*Sealer, error) {
	if err := h.Check(); err != nil {
		return nil, err
	}
	head := header{resource: h.resource, key: h.key}
	rand.Read(head.salt[:])
	aead, err := h.derive(head.salt[:], labelObject)
	if err != nil {
		return nil, err
	}
	s := &Sealer{handle: h, w: w, aead: aead, header: head.encode()}
	s.space = h.space.scratch.Get().(*scratch)
	s.space.ad = newSegmentAD(s.header, object)
	return s, nil
}

// Write implements io.Writer. It keeps up to one segment back, for only Close
// knows which is the last.
func (s *Sealer) Write(p []byte) (int, error) {
	if s.closed {
		return 0, cmp.Or(s.err, errSealed)
	}
	total := len(p)
	for len(p) > 0 && s.err == nil {
		switch {
		case s.pending == 0 && len(p) > segmentSize: // no need to copy it
			s.flush(p[:segmentSize], false)
			p = p[segmentSize:]
		case s.pending == segmentSize:
			s.flush(s.space.plain[:], false)
			s.pending = 0
		default:
			n := copy(s.space.plain[s.pending:], p)
			s.pending += n
			p = p[n:]
		}
	}
	if s.err != nil {
		return total - len(p), s.err
	}
	return total, nil
}

// ReadFrom implements io.ReaderFrom: it seals all that r has, without a copy in
// between, and does not close.
func (s *Sealer) ReadFrom(r io.Reader) (int64, error) {
	if s.closed {
		return 0, cmp.Or(s.err, errSealed)
	}
	var total int64
	idle := 0
	for s.err == nil {
		if s.pending == segmentSize {
			// The segment is full; it may go once there is another byte.
			var next [1]byte
			n, err := io.ReadFull(r, next[:])
			if err != nil {
				return total, ignoreEOF(err)
			}
			s.flush(s.space.plain[:], false)
			s.pending = copy(s.space.plain[:], next[:n])
			total++
			continue
		}
		n, err := r.Read(s.space.plain[s.pending:])
		s.pending += n
		total += int64(n)
		if err != nil {
			return total, ignoreEOF(err)
		}
		if idle++; n > 0 {
			idle = 0
		} else if idle > 100 {
			return total, ignoreEOF(io.ErrNoProgress)
		}
	}
	return total, s.err
}

func ignoreEOF(err error) error {
	if err == io.EOF {
		return nil
	}
	return fmt.Errorf("reading what is to be sealed: %w", err)
}

// Close seals the last segment. It does not close the writer below.
func (s *Sealer) Close() error {
	if s.closed {
		return s.err
	}
	s.closed = true
	if s.err == nil {
		s.flush(s.space.plain[:s.pending], true)
	}
	clear(s.space.plain[:])
	s.handle.space.scratch.Put(s.space)
	s.space = nil
	return s.err
}

// flush seals one segment and sets err.
func (s *Sealer) flush(plain []byte, last bool) {
	if s.index >= maxSegments {
		s.err = fmt.Errorf("sealing an object: more than %d segments", int64(maxSegments))
		return
	}
	if s.err = s.handle.Check(); s.err != nil {
		return
	}
	out := append(s.space.sealed[:0], s.header...)
	s.header = nil
	out = s.aead.Seal(out, nil, plain, s.space.ad.at(s.index, last))
	s.index++
	if _, err := s.w.Write(out); err != nil {
		s.err = fmt.Errorf("writing a sealed segment: %w", err)
	}
}
