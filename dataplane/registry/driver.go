package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	storagedriver "github.com/distribution/distribution/v3/registry/storage/driver"

	"casemate.dev/envelope"
	"casemate.dev/resource"
	"casemate.dev/store"
	"casemate.dev/store/depot"
)

const driverName = "casemate"

// driver is the storage driver of one incarnation of a registry, for one request: files by path, in the metadata store and
// the depot, sealed with the registry's handle. Directories exist as long as there is a file below them.
type driver struct {
	s           *Service
	arm         resource.ID
	incarnation string
	handle      *envelope.Handle
}

var _ storagedriver.StorageDriver = (*driver)(nil)

func (d *driver) Name() string { return driverName }

// GetContent reads a whole file.
func (d *driver) GetContent(ctx context.Context, path string) ([]byte, error) {
	if upload, offset, ok := hashState(path); ok {
		return d.s.hashes.get(d.incarnation+upload, offset, path)
	}
	c, err := d.content(ctx, path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.Close() }() // read only
	b := make([]byte, c.size)
	_, err = io.ReadFull(c, b)
	return b, err
}

// PutContent writes a whole file; durable when it returns.
func (d *driver) PutContent(ctx context.Context, path string, content []byte) error {
	parts, err := split(path)
	if err != nil || len(parts) == 0 {
		return storagedriver.InvalidPathError{Path: path, DriverName: driverName}
	}
	if upload, offset, ok := hashState(path); ok {
		d.s.hashes.put(d.incarnation+upload, offset, content)
		return nil
	}
	r := &record{Modified: d.s.cfg.Clock().UnixNano(), Data: content}
	if len(content) > maxInline {
		w := &writer{d: d, ctx: ctx}
		if _, err := w.Write(content); err != nil {
			w.drop()
			return err
		}
		p, landed, err := w.land()
		if err != nil {
			return err
		}
		defer landed()
		r.Data, r.Parts = nil, []part{p}
	}
	key := d.fileKey(parts)
	err = d.s.cfg.Store.Update(ctx, func(t store.Txn) error {
		if err := d.live(t); err != nil {
			return err
		}
		return d.put(t, key, path, r)
	})
	if err != nil {
		return fmt.Errorf("writing file: %w", err)
	}
	return nil
}

// Reader reads a file from an offset on.
func (d *driver) Reader(ctx context.Context, path string, offset int64) (io.ReadCloser, error) {
	if offset < 0 {
		return nil, storagedriver.InvalidOffsetError{Path: path, Offset: offset, DriverName: driverName}
	}
	c, err := d.content(ctx, path)
	if err != nil {
		return nil, err
	}
	if _, err := c.Seek(offset, io.SeekStart); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// content opens a file. A file that is replaced between reading its record and opening its objects is looked up again.
func (d *driver) content(ctx context.Context, path string) (*content, error) {
	parts, err := split(path)
	if err != nil || len(parts) == 0 {
		return nil, storagedriver.InvalidPathError{Path: path, DriverName: driverName}
	}
	for try := 0; ; try++ {
		var r *record
		err := d.s.cfg.Store.View(ctx, func(t store.Reader) (err error) {
			r, _, err = d.load(t, d.fileKey(parts), path)
			return err
		})
		if err != nil {
			return nil, err
		}
		c, err := d.openRecord(ctx, r)
		if errors.Is(err, depot.ErrNotFound) && try < 3 {
			continue
		}
		return c, err
	}
}

func (d *driver) openRecord(ctx context.Context, r *record) (*content, error) {
	c := &content{size: r.size()}
	if len(r.Parts) == 0 {
		c.pieces = []piece{{end: c.size, ReadSeeker: bytes.NewReader(r.Data), close: func() error { return nil }}}
		return c, nil
	}
	end := int64(0)
	for _, p := range r.Parts {
		key := depotKey(d.incarnation, p.Object)
		o, err := d.s.cfg.Depot.Open(ctx, key)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("opening object: %w", err), c.Close())
		}
		plain, err := d.handle.Open(o, o.Size(), key)
		if err == nil && plain.Size() != p.Size {
			err = fmt.Errorf("object has %d bytes, its record says %d: %w", plain.Size(), p.Size, envelope.ErrCorrupt)
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("opening object: %w", err), o.Close(), c.Close())
		}
		c.pieces = append(c.pieces, piece{start: end, end: end + p.Size, ReadSeeker: plain, close: o.Close})
		end += p.Size
	}
	return c, nil
}

// Writer begins a file, or goes on with it.
func (d *driver) Writer(ctx context.Context, path string, appending bool) (storagedriver.FileWriter, error) {
	parts, err := split(path)
	if err != nil || len(parts) == 0 {
		return nil, storagedriver.InvalidPathError{Path: path, DriverName: driverName}
	}
	w := &writer{d: d, ctx: ctx, path: path, key: d.fileKey(parts), base: &record{}}
	err = d.s.cfg.Store.View(ctx, func(r store.Reader) error {
		rec, rev, err := d.load(r, w.key, path)
		if errors.As(err, new(storagedriver.PathNotFoundError)) {
			return nil
		}
		if err != nil {
			return err
		}
		w.revision = rev
		if appending {
			w.base = rec
		} else {
			w.replaced = rec
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if len(w.base.Data) > 0 {
		return nil, fmt.Errorf("appending to a file that was written at once: %w", storagedriver.ErrUnsupportedMethod{DriverName: driverName})
	}
	return w, nil
}

// Stat describes a file or a directory.
func (d *driver) Stat(ctx context.Context, path string) (storagedriver.FileInfo, error) {
	parts, err := split(path)
	if err != nil {
		return nil, err
	}
	info := storagedriver.FileInfoFields{Path: path}
	err = d.s.cfg.Store.View(ctx, func(r store.Reader) error {
		if len(parts) > 0 {
			rec, _, err := d.load(r, d.fileKey(parts), path)
			if err == nil {
				info.Size, info.ModTime = rec.size(), rec.modified()
				return nil
			}
			if !errors.As(err, new(storagedriver.PathNotFoundError)) {
				return err
			}
		}
		for _, err := range r.Scan(d.below(parts), store.ScanOptions{Limit: 1, KeysOnly: true}) {
			info.IsDir = true
			return err
		}
		if len(parts) == 0 {
			info.IsDir = true
			return nil
		}
		return storagedriver.PathNotFoundError{Path: path, DriverName: driverName}
	})
	if err != nil {
		return nil, err
	}
	return storagedriver.FileInfoInternal{FileInfoFields: info}, nil
}

// List names what is directly below a directory.
func (d *driver) List(ctx context.Context, path string) ([]string, error) {
	parts, err := split(path)
	if err != nil {
		return nil, err
	}
	if upload, _, ok := hashState(path + "/"); ok {
		return d.s.hashes.list(d.incarnation+upload, path)
	}
	prefix := d.below(parts)
	base := strings.TrimSuffix(path, "/") + "/"
	var out []string
	err = d.s.cfg.Store.View(ctx, func(r store.Reader) error {
		out = out[:0]
		for after := ""; ; {
			child, key, err := nextChild(r, prefix, after, len(parts))
			if err != nil {
				return err
			}
			if child == "" {
				return nil
			}
			out = append(out, base+child)
			after = key
		}
	})
	if err != nil {
		return nil, err
	}
	if len(out) == 0 && len(parts) > 0 {
		return nil, storagedriver.PathNotFoundError{Path: path, DriverName: driverName}
	}
	return out, nil
}

// nextChild finds the first child of a directory behind after, and the key behind which the next one begins: all that is
// below a child stands between its key and that key followed by the separator and 0xff.
func nextChild(r store.Reader, prefix, after string, depth int) (child, skip string, err error) {
	for kv, err := range r.Scan(prefix, store.ScanOptions{After: after, Limit: 1, KeysOnly: true}) {
		if err != nil {
			return "", "", err
		}
		parts, err := store.SplitKey(kv.Key)
		if err != nil || len(parts) < depth+4 {
			return "", "", fmt.Errorf("file key %q has another form", kv.Key)
		}
		return parts[depth+3], store.Prefix(parts[:depth+4]...) + "\xff", nil
	}
	return "", "", nil
}

// Move renames a file over whatever is there, at once.
func (d *driver) Move(ctx context.Context, source, dest string) error {
	from, err := split(source)
	if err != nil || len(from) == 0 {
		return storagedriver.InvalidPathError{Path: source, DriverName: driverName}
	}
	to, err := split(dest)
	if err != nil || len(to) == 0 {
		return storagedriver.InvalidPathError{Path: dest, DriverName: driverName}
	}
	if source == dest {
		return nil
	}
	err = d.s.cfg.Store.Update(ctx, func(t store.Txn) error {
		if err := d.live(t); err != nil {
			return err
		}
		rec, _, err := d.load(t, d.fileKey(from), source)
		if err != nil {
			return err
		}
		t.Delete(d.fileKey(from))
		return d.put(t, d.fileKey(to), dest, rec)
	})
	d.s.sweepSoon()
	return err
}

// Delete removes a file, or everything below a directory.
func (d *driver) Delete(ctx context.Context, path string) error {
	parts, err := split(path)
	if err != nil || len(parts) == 0 {
		return storagedriver.InvalidPathError{Path: path, DriverName: driverName}
	}
	key := d.fileKey(parts)
	err = d.s.cfg.Store.Update(ctx, func(t store.Txn) error {
		var keys []string
		if _, err := t.Get(key); err == nil {
			keys = append(keys, key)
		} else if !errors.Is(err, store.ErrNotFound) {
			return err
		}
		for kv, err := range t.Scan(d.below(parts), store.ScanOptions{KeysOnly: true}) {
			if err != nil {
				return err
			}
			keys = append(keys, kv.Key)
		}
		if len(keys) == 0 {
			return storagedriver.PathNotFoundError{Path: path, DriverName: driverName}
		}
		for _, k := range keys {
			rec, _, err := d.load(t, k, path)
			if err != nil {
				return err
			}
			d.discard(t, rec, nil)
			t.Delete(k)
		}
		return nil
	})
	if err != nil {
		return err
	}
	d.s.hashes.forget(d.incarnation + path)
	d.s.sweepSoon()
	return nil
}

// RedirectURL never sends a client elsewhere.
func (d *driver) RedirectURL(*http.Request, string) (string, error) { return "", nil }

// Walk visits everything below a directory, in order.
func (d *driver) Walk(ctx context.Context, path string, f storagedriver.WalkFn, options ...func(*storagedriver.WalkOptions)) error {
	return storagedriver.WalkFallback(ctx, d, path, f, options...)
}
