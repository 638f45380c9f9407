package blob

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"casemate.dev/envelope"
	"casemate.dev/store"
	"casemate.dev/store/depot"
)

const (
	// maxInline is up to which size a blob written at once lives in the metadata store: one commit instead of two, and no
	// file of its own.
	maxInline = 64 << 10
	// chunkSize is how much of a body is read, summed and sealed at a time.
	chunkSize = 256 << 10
	// chunksAhead is how far reading the network runs ahead of sealing and writing.
	chunksAhead = 4
)

var chunks = sync.Pool{New: func() any { return new([chunkSize]byte) }}

// staged is a body that has arrived: in memory, or as a depot object that no record refers to yet. Exactly one of keep
// and drop must be called for it.
type staged struct {
	s      *Service
	inline []byte
	part   part
	key    string // depot key; empty: inline
}

func (st *staged) content() content {
	if st.key == "" {
		return content{Inline: st.inline}
	}
	return content{Parts: []part{st.part}}
}

// settle ends the flight after the transaction that should refer to the object: err is its outcome. An object whose fate
// is unknown is left to the sweeper of the next start.
func (st *staged) settle(err error) {
	if st.key == "" {
		return
	}
	if err != nil && !errors.Is(err, store.ErrFailed) {
		if err := st.s.depot.Remove(context.Background(), st.key); err != nil {
			st.s.log.Warn("removing an object that nothing refers to", "error", err)
		}
	}
	st.s.flying.end(st.key)
}

// stage receives a body of size bytes (-1: until it ends), seals it, and makes it durable. inline allows small bodies to
// stay in memory, for the store to make durable.
func (s *Service) stage(ctx context.Context, a *account, c string, body io.Reader, size int64, sums *checksum, inline bool) (*staged, error) {
	if inline && size >= 0 && size <= maxInline {
		buf := make([]byte, size)
		if _, err := io.ReadFull(body, buf); err != nil {
			return nil, bodyError(err)
		}
		sums.write(buf)
		if err := sums.verify(); err != nil {
			return nil, err
		}
		return &staged{s: s, inline: buf}, nil
	}
	object := newID()
	st := &staged{s: s, part: part{Object: object}, key: depotKey(a.id, c, object)}
	w, err := s.depot.Create(ctx)
	if err != nil {
		return nil, fmt.Errorf("creating object: %w", err)
	}
	defer w.Abort()
	if st.part.Size, err = sealBody(a, w, st.key, body, size, sums); err != nil {
		return nil, err
	}
	if err := sums.verify(); err != nil {
		return nil, err
	}
	s.flying.begin(st.key)
	if err := w.Commit(ctx, st.key); err != nil {
		// The object may be there all the same; nobody will refer to it.
		st.settle(err)
		return nil, fmt.Errorf("committing object: %w", err)
	}
	return st, nil
}

// sealBody copies the body into w, sealed. Reading (which decrypts TLS and sums) and sealing (which encrypts and writes)
// run side by side.
func sealBody(a *account, w depot.Writer, key string, body io.Reader, size int64, sums *checksum) (int64, error) {
	sealer, err := a.handle.Seal(w, key)
	if err != nil {
		return 0, err
	}
	full := make(chan chunk, chunksAhead)
	stop := make(chan struct{})
	go readChunks(body, size, sums, full, stop)
	var total int64
	for c := range full {
		if err == nil && c.err == nil {
			total += int64(c.n)
			_, err = sealer.Write(c.buf[:c.n])
		}
		if c.err != nil && err == nil {
			err = c.err
		}
		if err != nil && stop != nil {
			close(stop)
			stop = nil
		}
		if c.buf != nil {
			chunks.Put(c.buf)
		}
	}
	if err != nil {
		_ = sealer.Close()
		return 0, err
	}
	return total, sealer.Close()
}

// chunk is a piece of a body, or the error that ended it.
type chunk struct {
	buf *[chunkSize]byte
	n   int
	err error
}

// readChunks sends the body piece by piece and closes the channel. It returns at the next piece after stop is closed: a
// body that does not move is broken by the connection's deadline, not here.
func readChunks(body io.Reader, size int64, sums *checksum, full chan<- chunk, stop <-chan struct{}) {
	defer close(full)
	for left := size; left != 0; {
		c := chunk{buf: chunks.Get().(*[chunkSize]byte)}
		want := int64(chunkSize)
		if size >= 0 {
			want = min(want, left)
		}
		c.n, c.err = io.ReadFull(body, c.buf[:want])
		last := false
		if size < 0 && (c.err == io.EOF || c.err == io.ErrUnexpectedEOF) {
			c.err, last = nil, true
		}
		if c.err != nil {
			c.err = bodyError(c.err)
			last = true
		} else {
			sums.write(c.buf[:c.n])
		}
		left -= int64(c.n)
		select {
		case full <- c:
		case <-stop:
			return
		}
		if last {
			return
		}
	}
}

// reading is a blob opened for reading: what it was when it was opened, whatever happens to it since.
type reading struct {
	s       *Service
	a       *account
	c       string
	rec     *blobRecord
	content content
	release func()
}

// read opens a blob. release must be called.
func (s *Service) read(ctx context.Context, a *account, container, name string, cond conditions) (*reading, error) {
	rd := &reading{s: s, a: a}
	var err error
	rd.release, err = s.pins.look(func() (string, error) {
		err := s.view(ctx, a, container, func(r store.Reader, c *containerRecord) error {
			rec, err := a.blobAt(r, c.ID, name, cond.snapshot)
			if err != nil {
				return err
			}
			if rec == nil {
				return errBlobNotFound(name)
			}
			rd.c, rd.rec = c.ID, rec
			if err := s.mayRead(cond, rec); err != nil {
				return err
			}
			rd.content, err = a.content(r, c.ID, rec.Content)
			return err
		})
		if err != nil {
			return "", err
		}
		return rd.rec.Lineage, nil
	})
	return rd, err
}

// copyTo writes n bytes from off. Every segment is authenticated, and the key's epoch checked, before its bytes go out.
func (rd *reading) copyTo(ctx context.Context, w io.Writer, off, n int64) error {
	if rd.content.Parts == nil {
		if off+n > int64(len(rd.content.Inline)) {
			return errors.New("content record is shorter than its blob")
		}
		_, err := w.Write(rd.content.Inline[off : off+n])
		return err
	}
	for _, p := range rd.content.Parts {
		if n == 0 {
			break
		}
		if off >= p.Size {
			off -= p.Size
			continue
		}
		m := min(n, p.Size-off)
		if err := rd.copyPart(ctx, w, p, off, m); err != nil {
			return err
		}
		off, n = 0, n-m
	}
	if n != 0 {
		return errors.New("content record is shorter than its blob")
	}
	return nil
}

func (rd *reading) copyPart(ctx context.Context, w io.Writer, p part, off, n int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if p.Data != nil {
		_, err := w.Write(p.Data[off : off+n])
		return err
	}
	if p.isHole() {
		return writeZeros(ctx, w, n)
	}
	key := depotKey(rd.a.id, rd.c, p.Object)
	obj, err := rd.s.depot.Open(ctx, key)
	if err != nil {
		return fmt.Errorf("opening object: %w", err)
	}
	defer obj.Close()
	plain, err := rd.a.handle.Open(obj, obj.Size(), key)
	if err != nil {
		return fmt.Errorf("opening sealed object: %w", err)
	}
	defer plain.Close()
	if plain.Size() != p.full() {
		return fmt.Errorf("object holds %d bytes, its record says %d: %w", plain.Size(), p.full(), envelope.ErrCorrupt)
	}
	if _, err := plain.Seek(p.Skip+off, io.SeekStart); err != nil {
		return err
	}
	if p.Skip+off+n == p.full() {
		_, err = plain.WriteTo(w)
		return err
	}
	_, err = io.CopyN(onlyWriter{w}, plain, n)
	return err
}

// onlyWriter hides ReadFrom of a response writer, which would sniff and use small buffers.
type onlyWriter struct{ io.Writer }
