package pebble

import (
	"fmt"
	"io"
	"os"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// breaker is the file system that Pebble writes to. At the first write or sync
// that fails it calls broken, and from then on (or after trip) no change to the
// disk is made and no call that would make one returns, the failed one
// included: for Pebble, the process has stopped there.
//
// Nothing else is safe. What Pebble does after a failure could harm what is
// durable already, for example by a later fsync that reports success for pages
// which the first one lost; and some of its answers to failures are panics
// that release locks which are not held, which ends the whole process before
// it could say why. The price is that goroutines stay parked, with the locks
// that they hold, until the process exits.
type breaker struct {
	vfs.FS
	broken  func(error)
	tripped atomic.Bool
}

// trip stops all writing.
func (b *breaker) trip() { b.tripped.Store(true) }

// pass returns unless writing has stopped.
func (b *breaker) pass() {
	if b.tripped.Load() {
		park()
	}
}

// park never returns.
func park() { select {} }

// do makes one change to the disk, of which what tells the purpose. It returns
// only if change succeeds.
func (b *breaker) do(what, path string, change func() error) {
	b.pass()
	if err := change(); err != nil {
		b.broken(fmt.Errorf("%s %s: %w", what, b.PathBase(path), err))
		park()
	}
}

func (b *breaker) file(path string, open func() (vfs.File, error)) (vfs.File, error) {
	var f vfs.File
	b.do("creating", path, func() (err error) {
		f, err = open()
		return err
	})
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
	b.do("renaming", newname, func() error { return b.FS.Rename(oldname, newname) })
	return nil
}

// Link gives a file a second name.
func (b *breaker) Link(oldname, newname string) error {
	b.do("linking", newname, func() error { return b.FS.Link(oldname, newname) })
	return nil
}

// MkdirAll creates a directory.
func (b *breaker) MkdirAll(dir string, perm os.FileMode) error {
	b.do("creating directory", dir, func() error { return b.FS.MkdirAll(dir, perm) })
	return nil
}

// Remove removes a file. A failure does not stop the store: what Pebble removes
// is garbage, and it tries again when it opens.
func (b *breaker) Remove(name string) error {
	b.pass()
	return b.FS.Remove(name)
}

// RemoveAll is Remove for a directory with all in it.
func (b *breaker) RemoveAll(name string) error {
	b.pass()
	return b.FS.RemoveAll(name)
}

// Lock takes a lock file.
func (b *breaker) Lock(name string) (io.Closer, error) {
	b.pass()
	return b.FS.Lock(name)
}

// GetDiskUsage tells the room on the disk. That it cannot tell is no reason to
// stop: Pebble reports every other error than this one as a failure.
func (b *breaker) GetDiskUsage(path string) (vfs.DiskUsage, error) {
	usage, err := b.FS.GetDiskUsage(path)
	if err != nil {
		return vfs.DiskUsage{}, vfs.ErrUnsupported
	}
	return usage, nil
}

// Unwrap returns the file system below.
func (b *breaker) Unwrap() vfs.FS { return b.FS }

// breakerFile is a file that was opened for writing, or a directory. Stat
// and Close are watched too, although they change nothing, because a new log's
// failure to do either panics in Pebble.
type breakerFile struct {
	vfs.File
	b    *breaker
	path string
}

// Write appends to the file.
func (f *breakerFile) Write(p []byte) (n int, err error) {
	f.b.do("writing", f.path, func() (err error) {
		n, err = f.File.Write(p)
		return err
	})
	return n, nil
}

// WriteAt overwrites a part of the file.
func (f *breakerFile) WriteAt(p []byte, off int64) (n int, err error) {
	f.b.do("writing", f.path, func() (err error) {
		n, err = f.File.WriteAt(p, off)
		return err
	})
	return n, nil
}

// Sync makes contents and size durable.
func (f *breakerFile) Sync() error {
	f.b.do("syncing", f.path, f.File.Sync)
	return nil
}

// SyncData makes contents durable.
func (f *breakerFile) SyncData() error {
	f.b.do("syncing", f.path, f.File.SyncData)
	return nil
}

// SyncTo starts writing out.
func (f *breakerFile) SyncTo(length int64) (full bool, err error) {
	f.b.do("syncing", f.path, func() (err error) {
		full, err = f.File.SyncTo(length)
		return err
	})
	return full, nil
}

// Stat describes the file.
func (f *breakerFile) Stat() (info vfs.FileInfo, err error) {
	f.b.do("describing", f.path, func() (err error) {
		info, err = f.File.Stat()
		return err
	})
	return info, nil
}

// Close closes the file.
func (f *breakerFile) Close() error {
	f.b.do("closing", f.path, f.File.Close)
	return nil
}
