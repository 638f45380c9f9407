package pebble

import (
	"fmt"
	"io"
	"os"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// breaker is the file system that Pebble writes to. It calls broken at the
// first write or sync that fails, and lets nothing change the disk after that
// (or after trip): what Pebble would do in the moments before everything has
// heard of the failure could otherwise harm what is durable already, for
// example a later fsync that reports success for pages which the first one
// lost, or the removal of a log that a torn manifest still needs.
type breaker struct {
	vfs.FS
	broken func(error)
	cause  atomic.Pointer[error]
}

// trip stops all writing, because of err.
func (b *breaker) trip(err error) { b.cause.CompareAndSwap(nil, &err) }

// stopped returns an error when writing has stopped.
func (b *breaker) stopped() error {
	if cause := b.cause.Load(); cause != nil {
		return fmt.Errorf("writing has stopped: %w", *cause)
	}
	return nil
}

// do makes one change to the disk, of which what tells the purpose.
func (b *breaker) do(what, path string, change func() error) error {
	if err := b.stopped(); err != nil {
		return err
	}
	err := change()
	if err != nil {
		b.broken(fmt.Errorf("%s %s: %w", what, b.PathBase(path), err))
	}
	return err
}

func (b *breaker) file(path string, open func() (vfs.File, error)) (vfs.File, error) {
	var f vfs.File
	err := b.do("creating", path, func() (err error) {
		f, err = open()
		return err
	})
	if err != nil {
		return nil, err
	}
	return &breakerFile{File: f, b: b, path: path}, nil
}

// Create creates a file.
func (b *breaker) Create(name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	return b.file(name, func() (vfs.File, error) { return b.FS.Create(name, category) })
}

// OpenReadWrite opens a file for overwriting.
func (b *breaker) OpenReadWrite(name string, category vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	return b.file(name, func() (vfs.File, error) { return b.FS.OpenReadWrite(name, category, opts...) })
}

// ReuseForWrite creates a file in place of another.
func (b *breaker) ReuseForWrite(oldname, newname string, category vfs.DiskWriteCategory) (vfs.File, error) {
	return b.file(newname, func() (vfs.File, error) { return b.FS.ReuseForWrite(oldname, newname, category) })
}

// OpenDir opens a directory for syncing.
func (b *breaker) OpenDir(name string) (vfs.File, error) {
	f, err := b.FS.OpenDir(name)
	if err != nil {
		return nil, err
	}
	return &breakerFile{File: f, b: b, path: name}, nil
}

// Rename renames a file.
func (b *breaker) Rename(oldname, newname string) error {
	return b.do("renaming", newname, func() error { return b.FS.Rename(oldname, newname) })
}

// Link gives a file a second name.
func (b *breaker) Link(oldname, newname string) error {
	return b.do("linking", newname, func() error { return b.FS.Link(oldname, newname) })
}

// MkdirAll creates a directory.
func (b *breaker) MkdirAll(dir string, perm os.FileMode) error {
	return b.do("creating directory", dir, func() error { return b.FS.MkdirAll(dir, perm) })
}

// Remove removes a file. A failure does not stop the store: what Pebble removes
// is garbage, and it tries again when it opens.
func (b *breaker) Remove(name string) error {
	if err := b.stopped(); err != nil {
		return err
	}
	return b.FS.Remove(name)
}

// RemoveAll is Remove for a directory with all in it.
func (b *breaker) RemoveAll(name string) error {
	if err := b.stopped(); err != nil {
		return err
	}
	return b.FS.RemoveAll(name)
}

// Lock takes a lock file.
func (b *breaker) Lock(name string) (io.Closer, error) {
	if err := b.stopped(); err != nil {
		return nil, err
	}
	return b.FS.Lock(name)
}

// Unwrap returns the file system below.
func (b *breaker) Unwrap() vfs.FS { return b.FS }

// breakerFile is a file that was opened for writing, or a directory.
type breakerFile struct {
	vfs.File
	b    *breaker
	path string
}

// Write appends to the file.
func (f *breakerFile) Write(p []byte) (n int, err error) {
	err = f.b.do("writing", f.path, func() (err error) {
		n, err = f.File.Write(p)
		return err
	})
	return n, err
}

// WriteAt overwrites a part of the file.
func (f *breakerFile) WriteAt(p []byte, off int64) (n int, err error) {
	err = f.b.do("writing", f.path, func() (err error) {
		n, err = f.File.WriteAt(p, off)
		return err
	})
	return n, err
}

// Sync makes contents and size durable.
func (f *breakerFile) Sync() error { return f.b.do("syncing", f.path, f.File.Sync) }

// SyncData makes contents durable.
func (f *breakerFile) SyncData() error { return f.b.do("syncing", f.path, f.File.SyncData) }

// SyncTo starts writing out.
func (f *breakerFile) SyncTo(length int64) (full bool, err error) {
	err = f.b.do("syncing", f.path, func() (err error) {
		full, err = f.File.SyncTo(length)
		return err
	})
	return full, err
}
