package blob

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"casemate.dev/resource"
	"casemate.dev/store"
)

// snapshotForm is how snapshots are named: their time, in steps of 100 ns.
const snapshotForm = "2006-01-02T15:04:05.0000000Z"

func checkSnapshot(v string) error {
	if _, err := time.Parse(snapshotForm, v); err != nil || len(v) != len(snapshotForm) {
		return resource.Errorf(400, "InvalidQueryParameterValue", "The query parameter snapshot must be a time such as %s.", snapshotForm).WithTarget("snapshot")
	}
	return nil
}

// takesSnapshot are the operations that can be asked of a snapshot. A snapshot never changes.
var takesSnapshot = map[string]bool{
	"Blob_Download": true, "Blob_GetProperties": true, "Blob_GetMetadata": true, "Blob_GetMetadataWithHead": true,
	"Blob_GetTags": true, "PageBlob_GetPageRanges": true, "Blob_Delete": true,
}

// parseSnapshot reads which state of the blob a request means; "" is the blob itself.
func (c *call) parseSnapshot() (string, error) {
	v := c.URL.Query().Get("snapshot")
	if v == "" {
		return "", nil
	}
	if !takesSnapshot[c.Route.Name] {
		return "", resource.Errorf(400, "InvalidQueryParameterValue", "This operation cannot be asked of a snapshot.").WithTarget("snapshot")
	}
	return v, checkSnapshot(v)
}

// blobAt finds a blob, or a snapshot of it; nil when there is none.
func (a *account) blobAt(r store.Reader, c, name, snapshot string) (*blobRecord, error) {
	if snapshot == "" {
		return a.blob(r, c, name)
	}
	var b blobRecord
	ok, err := a.load(r, snapshotKey(a.id, c, name, snapshot), &b)
	if err != nil || !ok {
		return nil, err
	}
	return &b, nil
}

// named is one snapshot of a blob.
type named struct {
	at  string
	rec *blobRecord
}

// snapshots reads the snapshots of a blob, oldest first.
func (a *account) snapshots(r store.Reader, c, name string) (out []named, err error) {
	prefix := snapshotPrefix(a.id, c, name)
	for kv, err := range r.Scan(prefix, store.ScanOptions{}) {
		if err != nil {
			return nil, fmt.Errorf("reading snapshots: %w", err)
		}
		parts, err := store.SplitKey(strings.TrimPrefix(kv.Key, prefix))
		if err != nil || len(parts) != 1 {
			return nil, fmt.Errorf("reading snapshots: key %q has another form", kv.Key)
		}
		s := named{at: parts[0], rec: new(blobRecord)}
		if err := a.open(kv.Key, kv.Value, s.rec); err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	return out, nil
}

// owners reads how many content and block records refer to an object.
func owners(r store.Reader, key string) (int, error) {
	kv, err := r.Get(key)
	if errors.Is(err, store.ErrNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("reading object record: %w", err)
	}
	n, err := strconv.Atoi(string(kv.Value))
	if err != nil || n < 1 {
		return 0, fmt.Errorf("object record %q is damaged", key)
	}
	return n, nil
}

// share notes that one more content record has these parts.
func (a *account) share(t store.Txn, c string, parts []part) error {
	seen := map[string]bool{"": true}
	for _, p := range parts {
		if seen[p.Object] {
			continue
		}
		seen[p.Object] = true
		key := objectKey(a.id, c, p.Object)
		n, err := owners(t, key)
		if err != nil {
			return err
		}
		t.Put(key, []byte(strconv.Itoa(n+1)))
	}
	return nil
}

// snapshot keeps the present state of a blob under a new name for the time. metadata nil keeps the blob's.
func (s *Service) snapshot(ctx context.Context, a *account, container, name string, cond conditions, metadata map[string]string) (at string, rec *blobRecord, err error) {
	err = s.update(ctx, a, container, func(t store.Txn, c *containerRecord) error {
		base, err := a.blob(t, c.ID, name)
		if err != nil {
			return err
		}
		if base == nil {
			return errBlobNotFound(name)
		}
		if err := s.mayRefer(cond, base); err != nil {
			return err
		}
		if at, err = s.nextSnapshot(t, a, c.ID, name); err != nil {
			return err
		}
		body, err := a.content(t, c.ID, base.Content)
		if err != nil {
			return err
		}
		if err := a.share(t, c.ID, body.Parts); err != nil {
			return err
		}
		r := *base
		r.Content, r.Lease = newID(), nil
		if metadata != nil {
			r.Metadata, r.stamp = metadata, s.stampNow()
		}
		rec = &r
		if err := a.saveContent(t, c.ID, r.Content, body); err != nil {
			return err
		}
		return a.save(t, snapshotKey(a.id, c.ID, name, at), rec)
	})
	return at, rec, err
}

// nextSnapshot is now, or the first time after the last snapshot.
func (s *Service) nextSnapshot(r store.Reader, a *account, c, name string) (string, error) {
	at := s.now().UTC().Format(snapshotForm)
	prefix := snapshotPrefix(a.id, c, name)
	for kv, err := range r.Scan(prefix, store.ScanOptions{Reverse: true, Limit: 1, KeysOnly: true}) {
		if err != nil {
			return "", fmt.Errorf("reading snapshots: %w", err)
		}
		parts, err := store.SplitKey(strings.TrimPrefix(kv.Key, prefix))
		if err != nil || len(parts) != 1 {
			return "", fmt.Errorf("reading snapshots: key %q has another form", kv.Key)
		}
		if last := parts[0]; at <= last {
			t, err := time.Parse(snapshotForm, last)
			if err != nil {
				return "", fmt.Errorf("reading snapshots: %w", err)
			}
			at = t.Add(100 * time.Nanosecond).Format(snapshotForm)
		}
	}
	return at, nil
}

// What Delete Blob does with snapshots, as x-ms-delete-snapshots spells it. Empty: a blob that has some is not deleted.
const (
	withSnapshots = "include"
	onlySnapshots = "only"
)

// dropSnapshots removes all snapshots of a blob, or answers SnapshotsPresent when that was not asked for.
func (a *account) dropSnapshots(t store.Txn, c, name, mode string) error {
	list, err := a.snapshots(t, c, name)
	if err != nil {
		return err
	}
	if len(list) > 0 && mode == "" {
		return resource.Errorf(409, "SnapshotsPresent", "This operation is not permitted because the blob has snapshots.")
	}
	for _, snap := range list {
		t.Delete(snapshotKey(a.id, c, name, snap.at))
		if err := a.dropContent(t, c, snap.rec, map[string]bool{}); err != nil {
			return err
		}
	}
	return nil
}

// removeSnapshot deletes one snapshot.
func (s *Service) removeSnapshot(ctx context.Context, a *account, container, name string, cond conditions) error {
	err := s.update(ctx, a, container, func(t store.Txn, c *containerRecord) error {
		rec, err := a.blobAt(t, c.ID, name, cond.snapshot)
		if err != nil {
			return err
		}
		if rec == nil {
			return errBlobNotFound(name)
		}
		if err := s.mayChange(cond, rec); err != nil {
			return err
		}
		t.Delete(snapshotKey(a.id, c.ID, name, cond.snapshot))
		return a.dropContent(t, c.ID, rec, map[string]bool{})
	})
	s.sweepSoon()
	return err
}

// expand puts each blob's snapshots before it. A page ends with a whole blob, and holds at least one.
func (a *account) expand(r store.Reader, c string, page []entry, next marker, limit int) ([]entry, marker, error) {
	var out []entry
	for i, e := range page {
		var list []named
		if e.rec != nil {
			var err error
			if list, err = a.snapshots(r, c, e.name); err != nil {
				return nil, marker{}, err
			}
		}
		if i > 0 && len(out)+len(list)+1 > limit {
			return out, marker{name: page[i-1].name, isPrefix: page[i-1].rec == nil}, nil
		}
		for _, snap := range list {
			out = append(out, entry{name: e.name, rec: snap.rec, snapshot: snap.at})
		}
		out = append(out, e)
	}
	return out, next, nil
}

func createSnapshot(s *Service, c *call) error {
	metadata, err := parseMetadata(c.Header)
	if err != nil {
		return err
	}
	at, rec, err := s.snapshot(c.Context(), c.a, c.container, c.blob, c.cond, metadata)
	if err != nil {
		return err
	}
	c.Remember("snapshot", at)
	c.w.Header().Set("x-ms-snapshot", at)
	return c.changed(http.StatusCreated, rec.stamp)
}
