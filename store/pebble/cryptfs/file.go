package cryptfs

import (
	"errors"
	"fmt"
	"io"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// file is one encrypted file. As vfs.File demands, Write, Read and Sync are
// called by one goroutine at a time; ReadAt may run beside them.
type file struct {
	vfs.File          // the ciphertext; its own offset is headerSize+pos
	name       string // logical, for messages
	headerSize int64
	header     []byte // still to be written before the first byte; else nil
	stream     Stream // nil: no header on disk, so the file is empty
	pos        int64  // logical offset of the next Read or Write
	writable   bool
	syncDir    func() error // makes the new file's name durable
	broken     error        // a Write failed: how far it came is unknown
}

// Write encrypts p in place, which vfs.File allows, and appends it.
func (f *file) Write(p []byte) (int, error) {
	switch {
	case f.broken != nil:
		// A second attempt would encrypt other bytes with the same key
		// stream over a part of the first.
		return 0, f.broken
	case !f.writable:
		return 0, fmt.Errorf("writing %s: opened for reading", f.name)
	case len(p) == 0:
		return 0, nil
	}
	if f.header != nil {
		if err := f.writeHeader(); err != nil {
			f.broken = err
			return 0, err
		}
	}
	f.stream.XORKeyStreamAt(p, p, f.pos)
	n, err := f.File.Write(p)
	f.pos += int64(n)
	if err != nil {
		f.broken = err
	}
	return n, err
}

// writeHeader makes header and name durable before anything is behind them.
// The name too, because Pebble syncs a new manifest's name only together with
// that of the marker which points to it, and a disk may keep either alone.
func (f *file) writeHeader() error {
	if _, err := f.File.Write(append([]byte(nil), f.header...)); err != nil {
		return fmt.Errorf("writing header of %s: %w", f.name, err)
	}
	if err := f.File.Sync(); err != nil {
		return fmt.Errorf("syncing header of %s: %w", f.name, err)
	}
	if err := f.syncDir(); err != nil {
		return fmt.Errorf("syncing name of %s: %w", f.name, err)
	}
	f.header = nil
	return nil
}

// Read reads on from the end of the last Read or Write.
func (f *file) Read(p []byte) (int, error) {
	if f.empty() {
		return 0, emptyRead(p)
	}
	n, err := f.File.Read(p)
	f.stream.XORKeyStreamAt(p[:n], p[:n], f.pos)
	f.pos += int64(n)
	return n, err
}

// ReadAt reads at a logical offset.
func (f *file) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("reading %s: negative offset", f.name)
	}
	if f.stream == nil {
		return 0, emptyRead(p)
	}
	// Of a new file without a header yet, the inner file is empty and
	// answers io.EOF.
	n, err := f.File.ReadAt(p, off+f.headerSize)
	f.stream.XORKeyStreamAt(p[:n], p[:n], off)
	return n, err
}

func (f *file) empty() bool { return f.stream == nil || f.header != nil }

func emptyRead(p []byte) error {
	if len(p) == 0 {
		return nil
	}
	return io.EOF
}

// WriteAt is refused, since overwriting would repeat the key stream.
func (f *file) WriteAt([]byte, int64) (int, error) {
	return 0, fmt.Errorf("overwriting %s: %w", f.name, errors.ErrUnsupported)
}

// Preallocate reserves room for the logical range and the header before it.
func (f *file) Preallocate(offset, length int64) error {
	if offset == 0 {
		return f.File.Preallocate(0, length+f.headerSize)
	}
	return f.File.Preallocate(offset+f.headerSize, length)
}

// Prefetch announces reads of the logical range.
func (f *file) Prefetch(offset, length int64) error {
	return f.File.Prefetch(offset+f.headerSize, length)
}

// SyncTo starts writing out the first length logical bytes.
func (f *file) SyncTo(length int64) (fullSync bool, err error) {
	return f.File.SyncTo(length + f.headerSize)
}

// Stat describes the file by its logical name and size.
func (f *file) Stat() (vfs.FileInfo, error) {
	info, err := f.File.Stat()
	if err != nil {
		return nil, err
	}
	return logicalInfo(info, f.name, f.headerSize), nil
}

// info is the inner file's with logical name and size.
type info struct {
	vfs.FileInfo
	name string
	size int64
}

func (i info) Name() string { return i.name }
func (i info) Size() int64  { return i.size }

func logicalInfo(inner vfs.FileInfo, name string, headerSize int64) vfs.FileInfo {
	if inner.IsDir() {
		return info{inner, name, inner.Size()}
	}
	return info{inner, name, max(0, inner.Size()-headerSize)}
}
