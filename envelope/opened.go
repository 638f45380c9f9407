package envelope

import (
	"crypto/cipher"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
)

var errOpenedClosed = errors.New("reading from an opened object that is closed")

// Opened is the plaintext of a sealed object. Bytes come out only of segments
// that were authenticated as a whole, while the handle's epoch lasts. ReadAt is
// safe for concurrent use; Read, Seek and WriteTo share one position and are
// not.
type Opened struct {
	handle *Handle
	r      io.ReaderAt
	aead   cipher.AEAD
	ad     segmentAD // template, copied for use
	size   int64
	last   int64 // index of the last segment
	pos    int64 // of Read and Seek
	closed atomic.Bool

	mu     sync.Mutex // guards the cache: one segment, since reads tend to stay near
	cached int64      // its index, -1 for none
	cache  []byte
	memory []byte // backs cache
}

// Open opens the sealed object of size bytes that r holds. It authenticates the
// last segment, and with it the size, before it returns: what was cut or
// extended, even between segments, never opens. r must allow concurrent calls
// if ReadAt is called so.
func (h *Handle) Open(r io.ReaderAt, size int64, object string) (*Opened, error) {
	if err := h.Check(); err != nil {
		return nil, err
	}
	plain, err := PlainSize(size)
	if err != nil {
		return nil, err
	}
	raw := make([]byte, headerSize)
	if err := readFullAt(r, raw, 0); err != nil {
		return nil, err
	}
	head, err := parseHeader(raw)
	if err != nil {
		return nil, err
	}
	if err := h.accepts(head); err != nil {
		return nil, err
	}
	aead, err := h.derive(head.salt[:], labelObject)
	if err != nil {
		return nil, err
	}
	o := &Opened{handle: h, r: r, aead: aead, size: plain, cached: -1}
	o.ad = newSegmentAD(raw, object)
	o.last = max(0, plain-1) / segmentSize
	o.memory = make([]byte, 0, min(plain, segmentSize))
	if err := o.fillLocked(o.last); err != nil { // nobody else has o yet
		return nil, err
	}
	return o, nil
}

// accepts tells whether the header speaks of this handle's key.
func (h *Handle) accepts(head header) error {
	if head.resource != h.resource {
		return corrupt("it belongs to another resource than %s", h.id)
	}
	if head.key != h.key {
		return corrupt("it was sealed by key %x of %s, which has now key %x", head.key, h.id, h.key)
	}
	return nil
}

// Size is the number of plaintext bytes; it is authenticated.
func (o *Opened) Size() int64 { return o.size }

// Close forgets the plaintext held. It does not close the reader below.
func (o *Opened) Close() error {
	o.closed.Store(true)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.cached = -1
	clear(o.memory[:cap(o.memory)])
	return nil
}

// ReadAt implements io.ReaderAt.
func (o *Opened) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("reading an opened object: negative offset %d", off)
	}
	if err := o.check(); err != nil {
		return 0, err
	}
	n := 0
	for n < len(p) {
		if off >= o.size {
			return n, io.EOF
		}
		got, err := o.readSegment(p[n:], off/segmentSize, int(off%segmentSize))
		if err != nil {
			return n, err
		}
		n += got
		off += int64(got)
	}
	return n, nil
}

// Read implements io.Reader.
func (o *Opened) Read(p []byte) (int, error) {
	if o.pos >= o.size && len(p) > 0 {
		if err := o.check(); err != nil {
			return 0, err
		}
		return 0, io.EOF
	}
	n, err := o.ReadAt(p[:min(int64(len(p)), o.size-o.pos)], o.pos)
	o.pos += int64(n)
	return n, err
}

// Seek implements io.Seeker.
func (o *Opened) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekStart:
	case io.SeekCurrent:
		offset += o.pos
	case io.SeekEnd:
		offset += o.size
	default:
		return 0, fmt.Errorf("seeking in an opened object: unknown whence %d", whence)
	}
	if offset < 0 {
		return 0, fmt.Errorf("seeking in an opened object: negative position %d", offset)
	}
	o.pos = offset
	return offset, nil
}

// WriteTo implements io.WriterTo: it hands w one segment at a time, without a
// copy in between.
func (o *Opened) WriteTo(w io.Writer) (int64, error) {
	if err := o.check(); err != nil {
		return 0, err
	}
	s := o.handle.space.scratch.Get().(*scratch)
	defer func() {
		clear(s.plain[:])
		o.handle.space.scratch.Put(s)
	}()
	var total int64
	for o.pos < o.size {
		plain, err := o.open(s, o.pos/segmentSize, s.plain[:0])
		if err != nil {
			return total, err
		}
		n, err := w.Write(plain[o.pos%segmentSize:])
		o.pos += int64(n)
		total += int64(n)
		if err != nil {
			return total, fmt.Errorf("writing an opened object: %w", err)
		}
	}
	return total, nil
}

// readSegment fills p from segment i, starting within bytes into it, as far as
// the segment goes.
func (o *Opened) readSegment(p []byte, i int64, within int) (int, error) {
	whole := within == 0 && len(p) >= o.plainLen(i)
	// When another reader holds the cache, this one works without: parallel
	// readers shall not wait for each other's disk.
	if o.mu.TryLock() {
		defer o.mu.Unlock()
		if o.cached == i || !whole {
			if err := o.fillLocked(i); err != nil {
				return 0, err
			}
			return copy(p, o.cache[within:]), nil
		}
	}
	s := o.handle.space.scratch.Get().(*scratch)
	defer o.handle.space.scratch.Put(s)
	if whole { // straight into p, which GCM touches only once the tag is right
		plain, err := o.open(s, i, p[:0:o.plainLen(i)])
		return len(plain), err
	}
	defer clear(s.plain[:])
	plain, err := o.open(s, i, s.plain[:0])
	if err != nil {
		return 0, err
	}
	return copy(p, plain[within:]), nil
}

// fillLocked makes segment i the cached one.
func (o *Opened) fillLocked(i int64) error {
	if o.cached == i {
		return o.check()
	}
	s := o.handle.space.scratch.Get().(*scratch)
	defer o.handle.space.scratch.Put(s)
	o.cached = -1
	plain, err := o.open(s, i, o.memory)
	if err != nil {
		return err
	}
	o.cached, o.cache = i, plain
	return nil
}

// open reads segment i and decrypts it into dst, which has the room for it.
func (o *Opened) open(s *scratch, i int64, dst []byte) ([]byte, error) {
	sealed := s.sealed[:o.plainLen(i)+overhead]
	if err := readFullAt(o.r, sealed, headerSize+i*sealedSegment); err != nil {
		return nil, err
	}
	// After the read, which may have taken long, and before the plaintext.
	if err := o.check(); err != nil {
		return nil, err
	}
	s.ad = o.ad
	plain, err := o.aead.Open(dst, nil, sealed, s.ad.at(i, i == o.last))
	if err != nil {
		return nil, corrupt("segment %d of %d is not what was sealed here", i, o.last+1)
	}
	return plain, nil
}

func (o *Opened) plainLen(i int64) int {
	return int(min(segmentSize, o.size-i*segmentSize))
}

func (o *Opened) check() error {
	if o.closed.Load() {
		return errOpenedClosed
	}
	return o.handle.Check()
}

// readFullAt fills p. Fewer bytes than promised mean that the object was cut.
func readFullAt(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	switch {
	case n == len(p):
		return nil
	case err == io.EOF || err == nil || errors.Is(err, io.ErrUnexpectedEOF):
		return corrupt("it ends after %d bytes", off+int64(n))
	}
	return fmt.Errorf("reading a sealed object: %w", err)
}
