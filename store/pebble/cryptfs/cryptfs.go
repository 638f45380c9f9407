// Package cryptfs is a vfs.FS that encrypts: every file under its root is
// AES-256-CTR ciphertext under its own key, and the name of every file and
// directory below the root is encrypted. Pebble runs on it unchanged, seeing
// logical names, offsets and sizes.
//
// Whoever reads the disk learns the number, sizes and times of files, and
// nothing else. Whoever writes to it can corrupt, roll back or delete: counter
// mode hides but does not authenticate, so what must not be forged is sealed
// by its owner above the store. The keys, and how a file's header wraps its
// key, are the Cipher's business.
//
// A file is written once, front to back: overwriting in place would use the
// same key stream twice and is refused (OpenReadWrite, WriteAt), as is reusing
// an old file's blocks (ReuseForWrite makes a new file instead).
//
// File format:
//
//	offset 0            header, HeaderSize bytes, made and read by the Cipher
//	offset HeaderSize   ciphertext of logical byte 0, 1, …
//
// A file to which nothing was written is empty on disk too. The header goes to
// the disk, synced (as does the file's name), before the first byte of
// ciphertext, so that a crash leaves either no more than a header's length,
// which reads as an empty file, or a whole header.
package cryptfs

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// Stream encrypts and decrypts (the same operation in counter mode) one file's
// bytes: dst[i] = src[i] XOR key stream at offset off+i. dst and src are the
// same slice or do not overlap. It must be safe for concurrent use. Stream is
// an alias of a literal so that a Cipher need not import this package.
type Stream = interface {
	XORKeyStreamAt(dst, src []byte, off int64)
}

// Cipher makes and opens files' keys. It must be safe for concurrent use.
type Cipher interface {
	// HeaderSize is the length of every header, in bytes, a constant > 0.
	HeaderSize() int

	// NewFile returns a fresh key's stream and the header that reopens it.
	NewFile() (header []byte, s Stream, err error)

	// OpenFile is the inverse of NewFile. It returns an error unless the
	// header is authentic.
	OpenFile(header []byte) (Stream, error)

	// EncryptName encrypts one path element deterministically to a valid,
	// different path element of at most 255 bytes.
	EncryptName(name string) string

	// DecryptName is the inverse of EncryptName. It returns an error unless
	// the name is authentic.
	DecryptName(name string) (string, error)
}

// FS implements vfs.FS. Paths at or above the root, and beside it, pass
// through with their names in the clear; only directories are found there.
type FS struct {
	inner  vfs.FS
	root   string
	cipher Cipher
}

var _ vfs.FS = (*FS)(nil)

// New returns the encrypted view of inner's directory root, where nothing but
// this file system may put files.
func New(inner vfs.FS, root string, cipher Cipher) *FS {
	return &FS{inner: inner, root: filepath.Clean(root), cipher: cipher}
}

// path translates a logical path to that on the inner file system.
func (fs *FS) path(name string) string {
	name = filepath.Clean(name)
	rel, err := filepath.Rel(fs.root, name)
	if err != nil || rel == "." || rel == ".." || strings.HasPrefix(rel, ".."+string(filepath.Separator)) {
		return name
	}
	elems := strings.Split(rel, string(filepath.Separator))
	for i, elem := range elems {
		elems[i] = fs.cipher.EncryptName(elem)
	}
	return filepath.Join(fs.root, filepath.Join(elems...))
}

// inside reports whether the directory's entries have encrypted names.
func (fs *FS) inside(dir string) bool {
	dir = filepath.Clean(dir)
	return dir == fs.root || fs.path(dir) != dir
}

// Create creates the file under a fresh key, in place of any other.
func (fs *FS) Create(name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	if !fs.inside(filepath.Dir(filepath.Clean(name))) {
		return nil, fmt.Errorf("creating %s: outside the encrypted directory", name)
	}
	header, stream, err := fs.cipher.NewFile()
	if err != nil {
		return nil, fmt.Errorf("creating key of %s: %w", fs.inner.PathBase(name), err)
	}
	f, err := fs.inner.Create(fs.path(name), category)
	if err != nil {
		return nil, err
	}
	return &file{
		File:       f,
		name:       fs.inner.PathBase(name),
		headerSize: int64(len(header)),
		header:     header,
		stream:     stream,
		writable:   true,
		syncDir:    func() error { return fs.syncDir(filepath.Dir(fs.path(name))) },
	}, nil
}

func (fs *FS) syncDir(inner string) error {
	dir, err := fs.inner.OpenDir(inner)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// Open opens the file for reading.
func (fs *FS) Open(name string, opts ...vfs.OpenOption) (vfs.File, error) {
	f, err := fs.inner.Open(fs.path(name), opts...)
	if err != nil {
		return nil, err
	}
	// Pebble opens directories with OpenDir alone, but vfs allows this too.
	info, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if info.IsDir() {
		return f, nil
	}
	opened, err := fs.open(f, name, info.Size())
	if err != nil {
		return nil, errors.Join(fmt.Errorf("opening %s: %w", fs.inner.PathBase(name), err), f.Close())
	}
	return opened, nil
}

func (fs *FS) open(f vfs.File, name string, size int64) (*file, error) {
	opened := &file{File: f, name: fs.inner.PathBase(name), headerSize: int64(fs.cipher.HeaderSize())}
	if size <= opened.headerSize {
		// A crash came before the header's sync, so nothing was ever
		// written behind it: an empty file, whose bytes are never read.
		return opened, nil
	}
	header := make([]byte, opened.headerSize)
	if _, err := io.ReadFull(f, header); err != nil {
		return nil, fmt.Errorf("reading header: %w", err)
	}
	stream, err := fs.cipher.OpenFile(header)
	if err != nil {
		return nil, fmt.Errorf("opening header: %w", err)
	}
	opened.stream = stream
	return opened, nil
}

// OpenReadWrite is refused, since overwriting would repeat the key stream.
// Pebble uses it only for the cache of shared storage, which is off.
func (fs *FS) OpenReadWrite(name string, _ vfs.DiskWriteCategory, _ ...vfs.OpenOption) (vfs.File, error) {
	return nil, fmt.Errorf("opening %s for overwriting: %w", fs.inner.PathBase(name), errors.ErrUnsupported)
}

// OpenDir opens a directory for syncing.
func (fs *FS) OpenDir(name string) (vfs.File, error) { return fs.inner.OpenDir(fs.path(name)) }

// Link gives a file a second name. Both share key and contents.
func (fs *FS) Link(oldname, newname string) error {
	return fs.inner.Link(fs.path(oldname), fs.path(newname))
}

// Remove removes a file or an empty directory.
func (fs *FS) Remove(name string) error { return fs.inner.Remove(fs.path(name)) }

// RemoveAll removes a file or directory with all in it.
func (fs *FS) RemoveAll(name string) error { return fs.inner.RemoveAll(fs.path(name)) }

// Rename renames a file, which keeps its key.
func (fs *FS) Rename(oldname, newname string) error {
	return fs.inner.Rename(fs.path(oldname), fs.path(newname))
}

// ReuseForWrite removes oldname and creates newname under a fresh key.
func (fs *FS) ReuseForWrite(oldname, newname string, category vfs.DiskWriteCategory) (vfs.File, error) {
	if err := fs.Remove(oldname); err != nil {
		return nil, err
	}
	return fs.Create(newname, category)
}

// MkdirAll creates a directory and its parents.
func (fs *FS) MkdirAll(dir string, perm os.FileMode) error {
	return fs.inner.MkdirAll(fs.path(dir), perm)
}

// Lock takes the lock file, which is empty.
func (fs *FS) Lock(name string) (io.Closer, error) { return fs.inner.Lock(fs.path(name)) }

// List returns the logical names in a directory. A name that the key does not
// open is an error and not skipped: with the wrong key every directory would
// otherwise look empty, and Pebble would start anew in it.
func (fs *FS) List(dir string) ([]string, error) {
	names, err := fs.inner.List(fs.path(dir))
	if err != nil || !fs.inside(dir) {
		return names, err
	}
	for i, encrypted := range names {
		name, err := fs.cipher.DecryptName(encrypted)
		if err != nil {
			return nil, fmt.Errorf("listing %s: name %q: %w", dir, encrypted, err)
		}
		names[i] = name
	}
	return names, nil
}

// Stat describes a file by its logical name and size.
func (fs *FS) Stat(name string) (vfs.FileInfo, error) {
	info, err := fs.inner.Stat(fs.path(name))
	if err != nil {
		return nil, err
	}
	return logicalInfo(info, fs.inner.PathBase(name), int64(fs.cipher.HeaderSize())), nil
}

// PathBase, PathJoin and PathDir work on logical paths.
func (fs *FS) PathBase(path string) string { return fs.inner.PathBase(path) }

// PathJoin joins logical path elements.
func (fs *FS) PathJoin(elem ...string) string { return fs.inner.PathJoin(elem...) }

// PathDir returns the logical directory of a path.
func (fs *FS) PathDir(path string) string { return fs.inner.PathDir(path) }

// GetDiskUsage tells the room on the disk below.
func (fs *FS) GetDiskUsage(path string) (vfs.DiskUsage, error) {
	return fs.inner.GetDiskUsage(fs.path(path))
}

// Unwrap returns the inner file system.
func (fs *FS) Unwrap() vfs.FS { return fs.inner }
