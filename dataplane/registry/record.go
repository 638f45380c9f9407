package registry

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	storagedriver "github.com/distribution/distribution/v3/registry/storage/driver"

	"casemate.dev/envelope"
	"casemate.dev/store"
)

// record is one file of the storage driver:
//
//	registry/file/{incarnation}/{path part}/…   sealed JSON of this
//	registry/object/{incarnation}/{object}      sealed size of the depot object, decimal; exists as long as a record refers to it
//	registry/trash/{incarnation}/{object}       to be removed from the depot
//
// A record is sealed for its place: one that was put at another path does not open. So is an object for its key.
type record struct {
	Modified int64  `json:"modified"`        // Unix nanoseconds
	Data     []byte `json:"data,omitempty"`  // the content of a small file; then Parts is empty
	Parts    []part `json:"parts,omitempty"` // the content of a large one, in order
}

// part is one depot object of a file: what one request of an upload brought.
type part struct {
	Object string `json:"object"`
	Size   int64  `json:"size"` // of the plaintext
}

const (
	maxInline = 64 << 10 // larger contents go to the depot
	maxParts  = 4096     // of one file: bounds the record, which each part writes again
)

func (r *record) size() int64 {
	n := int64(len(r.Data))
	for _, p := range r.Parts {
		n += p.Size
	}
	return n
}

func (r *record) modified() time.Time { return time.Unix(0, r.Modified).UTC() }

// split checks a path as the storage driver contract demands and returns its parts. "/" is the root.
func split(path string) ([]string, error) {
	if path == "/" {
		return nil, nil
	}
	if !storagedriver.PathRegexp.MatchString(path) {
		return nil, storagedriver.InvalidPathError{Path: path, DriverName: driverName}
	}
	parts := strings.Split(path[1:], "/")
	for _, p := range parts {
		if p == "." || p == ".." {
			return nil, storagedriver.InvalidPathError{Path: path, DriverName: driverName}
		}
	}
	return parts, nil
}

func (d *driver) fileKey(parts []string) string {
	return store.Key(append([]string{plane, "file", d.incarnation}, parts...)...)
}

// below is the prefix of all files below a directory.
func (d *driver) below(parts []string) string {
	return store.Prefix(append([]string{plane, "file", d.incarnation}, parts...)...)
}

func objectKey(incarnation, object string) string {
	return store.Key(plane, "object", incarnation, object)
}
func trashKey(incarnation, object string) string {
	return store.Key(plane, "trash", incarnation, object)
}
func depotKey(incarnation, object string) string { return plane + "/" + incarnation + "/" + object }

// place names a record for the handle.
func (d *driver) place(key string) string { return "registry file " + key }

func (d *driver) seal(key string, r *record) ([]byte, error) {
	b, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("encoding record: %w", err)
	}
	return d.handle.SealBytes(d.place(key), b)
}

func (d *driver) unseal(kv store.KV) (*record, error) {
	b, err := d.handle.OpenBytes(d.place(kv.Key), kv.Value)
	if err != nil {
		return nil, fmt.Errorf("opening record: %w", err)
	}
	var r record
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, fmt.Errorf("decoding record: %w", err)
	}
	return &r, nil
}

// load reads the file at key; a PathNotFoundError when there is none.
func (d *driver) load(r store.Reader, key, path string) (*record, store.Revision, error) {
	kv, err := r.Get(key)
	if errors.Is(err, store.ErrNotFound) {
		return nil, 0, storagedriver.PathNotFoundError{Path: path, DriverName: driverName}
	}
	if err != nil {
		return nil, 0, err
	}
	rec, err := d.unseal(kv)
	return rec, kv.Revision, err
}

// put writes a file over whatever was there.
func (d *driver) put(t store.Txn, key, path string, r *record) error {
	old, _, err := d.load(t, key, path)
	switch {
	case err == nil:
		d.discard(t, old, r)
	case !errors.As(err, new(storagedriver.PathNotFoundError)):
		return err
	}
	for _, p := range r.Parts {
		t.Put(objectKey(d.incarnation, p.Object), formatSize(envelope.SealedSize(p.Size)))
	}
	sealed, err := d.seal(key, r)
	if err != nil {
		return err
	}
	t.Put(key, sealed)
	return nil
}

// discard gives the objects of a record that goes to the trash, except those that next still has.
func (d *driver) discard(t store.Txn, old, next *record) {
	kept := map[string]bool{}
	if next != nil {
		for _, p := range next.Parts {
			kept[p.Object] = true
		}
	}
	for _, p := range old.Parts {
		if !kept[p.Object] {
			t.Delete(objectKey(d.incarnation, p.Object))
			t.Put(trashKey(d.incarnation, p.Object), []byte("1"))
		}
	}
}

// live says inside a transaction whether the registry is still the one that the request was for.
func (d *driver) live(r store.Reader) error {
	kv, err := r.Get(liveKey(d.arm))
	if err == nil && string(kv.Value) == d.incarnation {
		return nil
	}
	if err == nil || errors.Is(err, store.ErrNotFound) {
		return errNoRegistry(d.arm.Name())
	}
	return err
}

func formatSize(n int64) []byte { return strconv.AppendInt(nil, n, 10) }

func sizeOf(b []byte) int64 {
	n, _ := strconv.ParseInt(string(b), 10, 64) // written by formatSize
	return n
}
