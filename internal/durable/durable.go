// Package durable makes changes to files that survive a crash at any point:
// what a function has returned nil for is on the disk, and a reader sees the
// old contents or the new, never a mixture.
//
// It is for the few files that stand outside the metadata store: wrapped keys,
// certificates, configuration and the objects of a depot. It trusts the
// operating system to honour fsync, assumes that one process at a time changes
// a name, and neither encrypts nor locks. A change is durable because the
// file is synced before its rename, and the directory after it
// (rename(2), fsync(2)).
//
// Every operating system call passes a labelled point first, where a test can
// make it fail; see FS.Fault.
package durable

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// Op labels one kind of operating system call.
type Op string

// The labels, in the order in which WriteFile passes them.
const (
	OpCreate  Op = "create"
	OpWrite   Op = "write"
	OpSync    Op = "sync"
	OpClose   Op = "close"
	OpRename  Op = "rename"
	OpSyncDir Op = "syncdir"
	OpRemove  Op = "remove"
	OpMkdir   Op = "mkdir"
)

// FS performs the calls. The zero value is ready to use.
type FS struct {
	// Fault, when not nil, is asked before each call; an error from it is
	// returned in place of making the call. Only tests set it.
	Fault func(op Op, path string) error
}

func (fs FS) at(op Op, path string) error {
	if fs.Fault == nil {
		return nil
	}
	return fs.Fault(op, path)
}

// WriteFile is FS.WriteFile with the zero FS.
func WriteFile(path string, data []byte, perm os.FileMode) error {
	return FS{}.WriteFile(path, data, perm)
}

// WriteFile replaces the file's contents durably and all at once. The file has
// exactly the mode perm, whatever the umask. After an error the old contents
// stand, except that after an error in the very last step (OpSyncDir) the new
// ones may.
func (fs FS) WriteFile(path string, data []byte, perm os.FileMode) (err error) {
	dir := filepath.Dir(path)
	f, err := fs.CreateTemp(dir)
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			f.Discard()
			err = fmt.Errorf("writing %s: %w", path, err)
		}
	}()
	if err := f.f.Chmod(perm); err != nil {
		return err
	}
	if _, err := f.Write(data); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return f.RenameTo(path)
}

// Temp is a new file under a temporary name. It is not safe for concurrent use.
type Temp struct {
	fs   FS
	f    *os.File
	done bool
}

// TempPattern is the pattern (as of os.CreateTemp) of temporary names, so that
// an owner of a directory can tell leftovers of a crash.
const TempPattern = ".tmp-*"

// CreateTemp creates an empty file of mode 0600 in dir, which must be on the
// file system where the file shall go.
func (fs FS) CreateTemp(dir string) (*Temp, error) {
	if err := fs.at(OpCreate, dir); err != nil {
		return nil, err
	}
	f, err := os.CreateTemp(dir, TempPattern)
	if err != nil {
		return nil, err
	}
	return &Temp{fs: fs, f: f}, nil
}

// Write appends to the file.
func (t *Temp) Write(p []byte) (int, error) {
	if err := t.fs.at(OpWrite, t.f.Name()); err != nil {
		return 0, err
	}
	return t.f.Write(p)
}

// Sync makes the contents durable. It must come before RenameTo.
func (t *Temp) Sync() error {
	if err := t.fs.at(OpSync, t.f.Name()); err != nil {
		return err
	}
	return t.f.Sync()
}

// RenameTo closes the file, gives it its final name, replacing what was there,
// and syncs that directory.
func (t *Temp) RenameTo(path string) error {
	return t.place(path, os.Rename)
}

// LinkTo is RenameTo except that it fails with an error wrapping os.ErrExist
// when something has the final name.
func (t *Temp) LinkTo(path string) error {
	return t.place(path, func(from, to string) error {
		if err := os.Link(from, to); err != nil {
			return err
		}
		// A leftover second name is harmless: its owner removes temporary
		// names when it starts.
		_ = os.Remove(from)
		return nil
	})
}

func (t *Temp) place(path string, move func(from, to string) error) error {
	if t.done {
		return os.ErrClosed
	}
	if err := t.fs.at(OpClose, t.f.Name()); err != nil {
		return err
	}
	if err := t.f.Close(); err != nil {
		return err
	}
	if err := t.fs.at(OpRename, path); err != nil {
		return err
	}
	if err := move(t.f.Name(), path); err != nil {
		return err
	}
	t.done = true
	return t.fs.SyncDir(filepath.Dir(path))
}

// Discard closes and removes the file. It does nothing once the file has its
// final name, and may be called more than once.
func (t *Temp) Discard() {
	if t.done {
		return
	}
	t.done = true
	_ = t.f.Close()
	_ = os.Remove(t.f.Name())
}

// SyncDir makes the names in a directory durable.
func (fs FS) SyncDir(dir string) error {
	if err := fs.at(OpSyncDir, dir); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Remove is FS.Remove with the zero FS.
func Remove(path string) error { return FS{}.Remove(path) }

// Remove removes a file or empty directory durably. It is no error when
// nothing is there.
func (fs FS) Remove(path string) error {
	if err := fs.at(OpRemove, path); err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	// Also when nothing was there: an earlier Remove may have failed between
	// its two steps. A directory that is gone needs no sync of its own.
	if err := fs.SyncDir(filepath.Dir(path)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// MkdirAll is FS.MkdirAll with the zero FS.
func MkdirAll(dir string, perm os.FileMode) error { return FS{}.MkdirAll(dir, perm) }

// MkdirAll creates dir and its missing parents durably. Of directories that
// exist it assumes that whoever made them made them durable.
func (fs FS) MkdirAll(dir string, perm os.FileMode) error {
	switch info, err := os.Stat(dir); {
	case err == nil && info.IsDir():
		return nil
	case err == nil:
		return &os.PathError{Op: "mkdir", Path: dir, Err: syscall.ENOTDIR}
	case !errors.Is(err, os.ErrNotExist):
		return err
	}
	parent := filepath.Dir(dir)
	if err := fs.MkdirAll(parent, perm); err != nil {
		return err
	}
	return fs.Mkdir(dir, perm)
}

// Mkdir creates dir, whose parent must exist, and makes it durable. When there
// is a directory already it makes that durable.
func (fs FS) Mkdir(dir string, perm os.FileMode) error {
	if err := fs.at(OpMkdir, dir); err != nil {
		return err
	}
	if err := os.Mkdir(dir, perm); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return fs.SyncDir(filepath.Dir(dir))
}

// IsFull reports whether err says that a disk or a quota has no room left.
func IsFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}
