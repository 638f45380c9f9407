package registry

import (
	"context"
	"errors"
	"fmt"
	"io"

	storagedriver "github.com/distribution/distribution/v3/registry/storage/driver"

	"casemate.dev/envelope"
	"casemate.dev/store"
	"casemate.dev/store/depot"
)

// content is an open file: its pieces one after the other. It is not safe for concurrent use.
type content struct {
	size   int64
	pos    int64
	at     int // index of the piece that holds pos
	seeked bool
	pieces []piece
}

type piece struct {
	io.ReadSeeker
	start, end int64
	close      func() error
}

// Read implements io.Reader.
func (c *content) Read(p []byte) (int, error) {
	for c.at < len(c.pieces) && c.pos >= c.pieces[c.at].end {
		c.at, c.seeked = c.at+1, false
	}
	if c.at >= len(c.pieces) {
		return 0, io.EOF
	}
	here := c.pieces[c.at]
	if !c.seeked {
		if _, err := here.Seek(c.pos-here.start, io.SeekStart); err != nil {
			return 0, err
		}
		c.seeked = true
	}
	n, err := here.Read(p[:min(int64(len(p)), here.end-c.pos)])
	c.pos += int64(n)
	if errors.Is(err, io.EOF) && c.pos == here.end {
		err = nil
	} else if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// Seek implements io.Seeker.
func (c *content) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += c.pos
	case io.SeekEnd:
		offset += c.size
	}
	if offset < 0 {
		return 0, errors.New("seeking before the beginning")
	}
	c.pos, c.at, c.seeked = offset, 0, false
	return offset, nil
}

// Close releases the objects.
func (c *content) Close() error {
	var errs []error
	for _, p := range c.pieces {
		errs = append(errs, p.close())
	}
	c.pieces = nil
	return errors.Join(errs...)
}

// errOvertaken: another request wrote to the same file meanwhile.
var errOvertaken = errors.New("file was changed by another request")

// errFragments: a file has as many parts as it may have.
var errFragments = fmt.Errorf("upload has more than %d parts", maxParts)

// writer writes one part of a file: a depot object, and at the end the record that refers to it. What was written is
// durable when Close or Commit returns nil. It is not safe for concurrent use.
type writer struct {
	d        *driver
	ctx      context.Context
	path     string
	key      string
	revision store.Revision // of the record that base was read from; 0: there was none
	base     *record        // what the part is added to
	replaced *record        // what was at the path before, when not appending

	out    depot.Writer
	sealer *envelope.Sealer
	object string
	size   int64 // of the part under way
	closed bool
}

var _ storagedriver.FileWriter = (*writer)(nil)

// Size is the length of the file so far.
func (w *writer) Size() int64 { return w.base.size() + w.size }

// Write adds to the part.
func (w *writer) Write(p []byte) (int, error) {
	if w.closed {
		return 0, errors.New("writing to a closed file")
	}
	if w.sealer == nil && len(p) > 0 {
		if w.base != nil && len(w.base.Parts) >= maxParts {
			return 0, errFragments
		}
		if err := w.begin(); err != nil {
			return 0, err
		}
	}
	if len(p) == 0 {
		return 0, nil
	}
	n, err := w.sealer.Write(p)
	w.size += int64(n)
	return n, err
}

func (w *writer) begin() (err error) {
	w.object = newID()
	if w.out, err = w.d.s.cfg.Depot.Create(w.ctx); err != nil {
		return fmt.Errorf("creating object: %w", err)
	}
	if w.sealer, err = w.d.handle.Seal(w.out, depotKey(w.d.incarnation, w.object)); err != nil {
		w.out.Abort()
		w.out = nil
		return fmt.Errorf("sealing object: %w", err)
	}
	return nil
}

// drop forgets the part under way.
func (w *writer) drop() {
	if w.out != nil {
		w.out.Abort()
	}
	w.out, w.sealer, w.size = nil, nil, 0
}

// land commits the part to the depot. landed must be called when its record is in the store, or never will be.
func (w *writer) land() (p part, landed func(), err error) {
	key := depotKey(w.d.incarnation, w.object)
	if err := w.sealer.Close(); err != nil {
		w.drop()
		return part{}, nil, fmt.Errorf("sealing object: %w", err)
	}
	w.d.s.flying.begin(key)
	landed = func() { w.d.s.flying.end(key) }
	if err := w.out.Commit(w.ctx, key); err != nil {
		landed()
		w.drop()
		return part{}, nil, fmt.Errorf("committing object: %w", err)
	}
	p = part{Object: w.object, Size: w.size}
	w.out, w.sealer, w.size = nil, nil, 0
	return p, landed, nil
}

// persist adds the part under way to the file.
func (w *writer) persist(ctx context.Context) error {
	next := &record{Modified: w.d.s.cfg.Clock().UnixNano(), Parts: w.base.Parts[:len(w.base.Parts):len(w.base.Parts)]}
	switch {
	case w.sealer != nil:
		p, landed, err := w.land()
		if err != nil {
			return err
		}
		defer landed()
		next.Parts = append(next.Parts, p)
		if err := w.write(ctx, next); err != nil {
			// The object has no record. The sweeper would find it at the next start; now is better.
			_ = w.d.s.cfg.Depot.Remove(context.WithoutCancel(ctx), depotKey(w.d.incarnation, p.Object))
			return err
		}
		return nil
	case w.replaced != nil:
		return w.write(ctx, next) // nothing was written: the file is empty now
	}
	return nil
}

func (w *writer) write(ctx context.Context, next *record) error {
	var revision store.Revision
	err := w.d.s.cfg.Store.Update(ctx, func(t store.Txn) error {
		if err := w.d.live(t); err != nil {
			return err
		}
		sealed, err := w.d.seal(w.key, next)
		if err != nil {
			return err
		}
		if err := t.CompareAndSet(w.key, w.revision, sealed); err != nil {
			if errors.Is(err, store.ErrConflict) {
				return errOvertaken
			}
			return err
		}
		if w.replaced != nil {
			w.d.discard(t, w.replaced, next)
		}
		for _, p := range next.Parts[len(w.base.Parts):] {
			t.Put(objectKey(w.d.incarnation, p.Object), formatSize(envelope.SealedSize(p.Size)))
		}
		kv, err := t.Get(w.key)
		revision = kv.Revision
		return err
	})
	if err != nil {
		return fmt.Errorf("writing file: %w", err)
	}
	w.base, w.revision, w.replaced = next, revision, nil
	return nil
}

// Close makes durable what was written so far, so that an upload can go on later. It may be called again.
func (w *writer) Close() error {
	if w.closed {
		return nil
	}
	w.closed = true
	return w.persist(context.WithoutCancel(w.ctx))
}

// Commit ends the file.
func (w *writer) Commit(ctx context.Context) error {
	if w.closed {
		return errors.New("committing a closed file")
	}
	if err := w.persist(ctx); err != nil {
		return err
	}
	w.closed = true
	return nil
}

// Cancel removes the file.
func (w *writer) Cancel(ctx context.Context) error {
	w.drop()
	w.closed = true
	err := w.d.Delete(ctx, w.path)
	if errors.As(err, new(storagedriver.PathNotFoundError)) {
		return nil
	}
	return err
}
