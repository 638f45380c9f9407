// Package file keeps a depot's objects as files on a local disk.
//
// It serves the data planes of one process, which alone uses the directory.
// The disk is trusted to keep what it has synced, and with no plaintext: what
// comes here is sealed, under keys that say nothing. An object is written
// under a temporary name, synced, linked to its final name, and the directory
// synced: it is there whole or not at all, also after a crash, whose leftovers
// Open removes.
//
// It checks no contents, has no quota of its own, and does not remove
// directories that have become empty.
//
// Layout, for the keys "7f3a9c" and "x/7f3a9c":
//
//	DIR/tmp/.tmp-…              being written
//	DIR/objects/7f/7f3a9c       "7f" so that directories stay small
//	DIR/objects/x.d/7f/7f3a9c   one directory for each segment before the last
package file

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"casemate.dev/internal/durable"
	"casemate.dev/store/depot"
)

// Depot implements depot.Depot.
type Depot struct {
	fs      durable.FS
	tmp     string
	objects string

	// dirs holds the directories below objects (string to struct{}) that are
	// known to be durable. One that merely exists may be another writer's who
	// has not synced it yet.
	dirs sync.Map
}

var _ depot.Depot = (*Depot)(nil)

const dirMode = 0o700

// segmentSuffix marks the directory of a key's segment. Its dot occurs in no
// key, so the name collides with no object and no fan-out directory.
const segmentSuffix = ".d"

// fanOut is how many characters of the last segment name its directory.
const fanOut = 2

// Open opens the depot in dir, which it creates if need be, and removes what
// was being written when the last process ended.
func Open(dir string) (*Depot, error) { return open(dir, durable.FS{}) }

func open(dir string, fs durable.FS) (*Depot, error) {
	d := &Depot{fs: fs, tmp: filepath.Join(dir, "tmp"), objects: filepath.Join(dir, "objects")}
	for _, dir := range []string{d.tmp, d.objects} {
		if err := fs.MkdirAll(dir, dirMode); err != nil {
			return nil, fmt.Errorf("opening depot: %w", full(err))
		}
	}
	leftovers, err := os.ReadDir(d.tmp)
	if err != nil {
		return nil, fmt.Errorf("opening depot: %w", err)
	}
	for _, entry := range leftovers {
		// Need not be durable: what comes back is removed again.
		if err := os.Remove(filepath.Join(d.tmp, entry.Name())); err != nil {
			return nil, fmt.Errorf("removing an unfinished object: %w", err)
		}
	}
	return d, nil
}

// full marks errors which say that the disk is full with depot.ErrFull.
func full(err error) error {
	if durable.IsFull(err) {
		return fmt.Errorf("%w: %w", depot.ErrFull, err)
	}
	return err
}

// path returns where the object of a valid key is.
func (d *Depot) path(key string) (string, error) {
	if err := depot.ValidateKey(key); err != nil {
		return "", err
	}
	segments := strings.Split(key, "/")
	last := segments[len(segments)-1]
	elems := []string{d.objects}
	for _, s := range segments[:len(segments)-1] {
		elems = append(elems, s+segmentSuffix)
	}
	return filepath.Join(append(elems, last[:min(fanOut, len(last))], last)...), nil
}

// Create implements depot.Depot.
func (d *Depot) Create(ctx context.Context) (depot.Writer, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	temp, err := d.fs.CreateTemp(d.tmp)
	if err != nil {
		return nil, fmt.Errorf("creating an object: %w", full(err))
	}
	return &writer{d: d, temp: temp}, nil
}

// Open implements depot.Depot.
func (d *Depot) Open(ctx context.Context, key string) (depot.Object, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	path, err := d.path(key)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("opening object %s: %w", key, depot.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("opening object %s: %w", key, err)
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New("it is not a regular file")
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("opening object %s: %w", key, err), f.Close())
	}
	return &object{File: f, size: info.Size()}, nil
}

// object implements depot.Object.
type object struct {
	*os.File
	size int64
}

// Size is the object's length; objects do not change.
func (o *object) Size() int64 { return o.size }

// Remove implements depot.Depot.
func (d *Depot) Remove(ctx context.Context, key string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	path, err := d.path(key)
	if err != nil {
		return err
	}
	if err := d.fs.Remove(path); err != nil {
		return fmt.Errorf("removing object %s: %w", key, err)
	}
	return nil
}

// writer implements depot.Writer.
type writer struct {
	d    *Depot
	temp *durable.Temp
	err  error // after Commit or Abort, or the first failure
}

var errFinished = errors.New("the writer is finished")

// Write implements io.Writer.
func (w *writer) Write(p []byte) (int, error) {
	if w.err != nil {
		return 0, w.err
	}
	n, err := w.temp.Write(p)
	if err != nil {
		w.err = fmt.Errorf("writing an object: %w", full(err))
	}
	return n, w.err
}

// Commit implements depot.Writer.
func (w *writer) Commit(ctx context.Context, key string) error {
	defer w.Abort()
	if w.err != nil {
		return w.err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	path, err := w.d.path(key)
	if err != nil {
		return err
	}
	if err := w.commit(path); err != nil {
		return fmt.Errorf("committing object %s: %w", key, full(err))
	}
	return nil
}

func (w *writer) commit(path string) error {
	if err := w.temp.Sync(); err != nil {
		return err
	}
	if err := w.d.ensureDir(filepath.Dir(path)); err != nil {
		return err
	}
	err := w.temp.LinkTo(path)
	if errors.Is(err, os.ErrExist) {
		return fmt.Errorf("%w: %w", depot.ErrExists, err)
	}
	return err
}

// ensureDir makes dir, which is objects or below it, exist durably.
func (d *Depot) ensureDir(dir string) error {
	if _, ok := d.dirs.Load(dir); ok || dir == d.objects {
		return nil
	}
	if err := d.ensureDir(filepath.Dir(dir)); err != nil {
		return err
	}
	if err := d.fs.Mkdir(dir, dirMode); err != nil {
		return err
	}
	d.dirs.Store(dir, struct{}{})
	return nil
}

// Abort implements depot.Writer.
func (w *writer) Abort() {
	w.temp.Discard()
	if w.err == nil {
		w.err = errFinished
	}
}
