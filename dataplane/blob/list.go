package blob

import (
	"encoding/base64"
	"fmt"
	"strings"
	"unicode/utf8"

	"casemate.dev/resource"
	"casemate.dev/store"
)

// query is one page of List Blobs.
type query struct {
	prefix    string
	delimiter string // "": flat
	marker    marker
	limit     int // results, 1 to maxList
	snapshots bool
}

// entry is a blob, or (rec nil) a prefix that stands for all names which begin with it.
type entry struct {
	name     string
	rec      *blobRecord
	snapshot string // its time; empty: the blob itself
}

// marker says where the next page goes on: after a name, or after all names that begin with one.
type marker struct {
	name     string
	isPrefix bool
}

// String is the opaque form for clients; "" for no marker.
func (m marker) String() string {
	if m.name == "" {
		return ""
	}
	kind := "b"
	if m.isPrefix {
		kind = "p"
	}
	return base64.RawURLEncoding.EncodeToString([]byte(kind + m.name))
}

func parseMarker(s string) (marker, error) {
	if s == "" {
		return marker{}, nil
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(s)
	if err != nil || len(raw) < 2 || (raw[0] != 'b' && raw[0] != 'p') || !utf8.Valid(raw) {
		return marker{}, resource.Errorf(400, "OutOfRangeInput", "The marker is not one that an earlier page gave.").WithTarget("marker")
	}
	return marker{name: string(raw[1:]), isPrefix: raw[0] == 'p'}, nil
}

// pastPrefix sorts after every key whose name begins with p and before all others that follow: names are UTF-8, which has
// no byte 0xff, and store.Key leaves 0xff as it is.
func (a *account) pastPrefix(c, p string) string { return blobKey(a.id, c, p) + "\xff" }

func (a *account) after(c string, m marker) string {
	switch {
	case m.name == "":
		return ""
	case m.isPrefix:
		return a.pastPrefix(c, m.name)
	}
	return blobKey(a.id, c, m.name)
}

// list reads one page. With a delimiter it seeks past each prefix that it reports, so that the cost follows the size of
// the page and not the number of blobs.
func (a *account) list(r store.Reader, c string, q query) (page []entry, next marker, err error) {
	base := store.Prefix(plane, "blob", a.id, c)
	after := a.after(c, q.marker)
	for more := true; more; {
		more = false
		opt := store.ScanOptions{After: after, Limit: q.limit + 1 - len(page)}
		for kv, err := range r.Scan(blobKey(a.id, c, q.prefix), opt) {
			if err != nil {
				return nil, marker{}, fmt.Errorf("listing blobs: %w", err)
			}
			if len(page) == q.limit {
				last := page[q.limit-1]
				return page, marker{name: last.name, isPrefix: last.rec == nil}, nil
			}
			e, err := a.entry(kv, base, q)
			if err != nil {
				return nil, marker{}, err
			}
			page = append(page, e)
			if e.rec == nil {
				after, more = a.pastPrefix(c, e.name), true
				break
			}
		}
	}
	return page, marker{}, nil
}

func (a *account) entry(kv store.KV, base string, q query) (entry, error) {
	parts, err := store.SplitKey(strings.TrimPrefix(kv.Key, base))
	if err != nil || len(parts) != 1 {
		return entry{}, fmt.Errorf("listing blobs: key %q has another form", kv.Key)
	}
	name := parts[0]
	if q.delimiter != "" {
		if i := strings.Index(name[len(q.prefix):], q.delimiter); i >= 0 {
			return entry{name: name[:len(q.prefix)+i+len(q.delimiter)]}, nil
		}
	}
	rec := new(blobRecord)
	return entry{name: name, rec: rec}, a.open(kv.Key, kv.Value, rec)
}
