package blob

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"casemate.dev/envelope"
	"casemate.dev/resource"
	"casemate.dev/store"
)

// The records, all below "blob". {a} is the account's incarnation and {c} the container's, both random, so that what is
// created again under an old name never meets what its predecessor left behind.
//
//	account/{ARM id}           plain   which incarnation {a} is current
//	service/{a}                sealed  service properties
//	container/{a}/{name}       sealed  containerRecord
//	blob/{a}/{c}/{name}        sealed  blobRecord, what HEAD and lists need
//	snapshot/{a}/{c}/{name}/{time}  sealed  blobRecord of a snapshot, with a content record of its own
//	content/{a}/{c}/{id}       sealed  small contents, or the list of parts
//	upload/{a}/{c}/{hash}      plain   uncommitted blocks of one blob: how many, how old
//	block/{a}/{c}/{hash}/{id}  plain   one uncommitted block
//	object/{a}/{c}/{o}         plain   a depot object, and how many content and block records refer to it
//	trash/{a}/{c}/{o}          plain   a depot object to be removed
//	purge/{a}/{c}              plain   a container ({c} empty: an account) to be removed with all below it
//
// What the sweeper needs is plain, since it must work while the customer's key is revoked. It says nothing about contents.
const plane = "blob"

func accountKey(arm resource.ID) string        { return store.Key(plane, "account", arm.Key()) }
func serviceKey(a string) string               { return store.Key(plane, "service", a) }
func containerKey(a, name string) string       { return store.Key(plane, "container", a, name) }
func blobKey(a, c, name string) string         { return store.Key(plane, "blob", a, c, name) }
func snapshotKey(a, c, name, at string) string { return store.Key(plane, "snapshot", a, c, name, at) }
func snapshotPrefix(a, c, name string) string  { return store.Prefix(plane, "snapshot", a, c, name) }
func contentKey(a, c, id string) string        { return store.Key(plane, "content", a, c, id) }
func uploadKey(a, c, hash string) string       { return store.Key(plane, "upload", a, c, hash) }
func blockKey(a, c, h, id string) string       { return store.Key(plane, "block", a, c, h, id) }
func blockPrefix(a, c, h string) string        { return store.Prefix(plane, "block", a, c, h) }
func objectKey(a, c, o string) string          { return store.Key(plane, "object", a, c, o) }
func trashKey(a, c, o string) string           { return store.Key(plane, "trash", a, c, o) }
func purgeKey(a, c string) string              { return store.Key(plane, "purge", a, c) }
func depotPrefix(a string) string              { return plane + "/" + a + "/" }
func depotKey(a, c, object string) string      { return depotPrefix(a) + c + "/" + object }

// newID is 128 random bits, for incarnations, contents and objects.
func newID() string {
	var b [16]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// newETag has the form of the service's own: 0x8D and thirteen digits, quoted where a header carries it.
func newETag() string {
	var b [8]byte
	rand.Read(b[:])
	return fmt.Sprintf("0x8D%013X", uint64(b[0])|uint64(b[1])<<8|uint64(b[2])<<16|uint64(b[3])<<24|uint64(b[4])<<32|uint64(b[5])<<40|uint64(b[6]&15)<<48)
}

// stamp is what every conditional request compares.
type stamp struct {
	ETag     string    `json:"etag"`
	Modified time.Time `json:"modified"`
}

type containerRecord struct {
	stamp
	ID       string            `json:"id"`
	Created  time.Time         `json:"created"`
	Metadata map[string]string `json:"metadata,omitempty"`
	Lease    *lease            `json:"lease,omitempty"`
}

// properties are the HTTP headers that a blob keeps for its readers.
type properties struct {
	ContentType        string `json:"contentType,omitempty"`
	ContentEncoding    string `json:"contentEncoding,omitempty"`
	ContentLanguage    string `json:"contentLanguage,omitempty"`
	ContentDisposition string `json:"contentDisposition,omitempty"`
	CacheControl       string `json:"cacheControl,omitempty"`
	MD5                []byte `json:"md5,omitempty"`
}

func (p properties) empty() bool {
	return p.ContentType == "" && p.ContentEncoding == "" && p.ContentLanguage == "" && p.ContentDisposition == "" && p.CacheControl == "" && p.MD5 == nil
}

type blobRecord struct {
	stamp
	properties
	Created  time.Time         `json:"created"`
	Size     int64             `json:"size"`
	Tier     string            `json:"tier,omitempty"` // empty: the account's, inferred
	Metadata map[string]string `json:"metadata,omitempty"`
	Lease    *lease            `json:"lease,omitempty"`
	Tags     map[string]string `json:"tags,omitempty"`
	Copied   *copied           `json:"copied,omitempty"`   // nil: not by Copy Blob
	Kind     string            `json:"kind,omitempty"`     // empty: a block blob
	Blocks   int               `json:"blocks,omitempty"`   // of an append blob
	Sealed   bool              `json:"sealed,omitempty"`   // an append blob to which nothing may be added
	Sequence int64             `json:"sequence,omitempty"` // of a page blob
	Content  string            `json:"content"`            // id of the content record
	// Lineage is shared by contents that have parts in common: a reader of one of them holds back the removal of the
	// parts of all (see pins).
	Lineage string `json:"lineage"`
}

// part is a run of plaintext that one depot object holds.
type part struct {
	Block  string `json:"b,omitempty"` // block id, base64 as the client sent it; empty for Put Blob
	Object string `json:"o"`
	Size   int64  `json:"n"`
	// Runs of append and page blobs (see run.go): a piece of an object of Full bytes from Skip, or Data, or (neither) a hole.
	Skip int64  `json:"s,omitempty"`
	Full int64  `json:"f,omitempty"`
	Data []byte `json:"d,omitempty"`
}

// content is a blob's bytes: Inline, or Parts in order.
type content struct {
	Inline []byte
	Parts  []part
}

// uploadRecord counts the uncommitted blocks of one blob.
type uploadRecord struct {
	Count   int       `json:"count"`
	IDSize  int       `json:"idSize"` // all block ids of a blob have one length
	Touched time.Time `json:"touched"`
}

// account is one storage account for the time of one request.
type account struct {
	id     string // incarnation
	arm    resource.ID
	handle *envelope.Handle
}

func (a *account) seal(key string, v any) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encoding record: %w", err)
	}
	return a.handle.SealBytes(key, b)
}

func (a *account) open(key string, sealed []byte, v any) error {
	b, err := a.handle.OpenBytes(key, sealed)
	if err != nil {
		return fmt.Errorf("opening record: %w", err)
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("decoding record: %w", err)
	}
	return nil
}

// load reads a sealed record into v and says whether there is one.
func (a *account) load(r store.Reader, key string, v any) (bool, error) {
	kv, err := r.Get(key)
	if errors.Is(err, store.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("reading record: %w", err)
	}
	return true, a.open(key, kv.Value, v)
}

func (a *account) save(t store.Txn, key string, v any) error {
	sealed, err := a.seal(key, v)
	if err != nil {
		return err
	}
	t.Put(key, sealed)
	return nil
}

// container finds a container or answers ContainerNotFound.
func (a *account) container(r store.Reader, name string) (*containerRecord, error) {
	var c containerRecord
	ok, err := a.load(r, containerKey(a.id, name), &c)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, errContainerNotFound(name)
	}
	return &c, nil
}

// blob finds a blob; nil when there is none.
func (a *account) blob(r store.Reader, c, name string) (*blobRecord, error) {
	var b blobRecord
	ok, err := a.load(r, blobKey(a.id, c, name), &b)
	if err != nil || !ok {
		return nil, err
	}
	return &b, nil
}

// The first byte of a content record.
const (
	contentInline = 0
	contentParts  = 1
	contentRuns   = 2 // parts some of which are no whole objects
)

func (a *account) saveContent(t store.Txn, c, id string, body content) error {
	key := contentKey(a.id, c, id)
	plain := append([]byte{contentInline}, body.Inline...)
	if len(body.Parts) > 0 {
		list, err := json.Marshal(body.Parts)
		if err != nil {
			return fmt.Errorf("encoding parts: %w", err)
		}
		plain = append([]byte{partsFormat(body.Parts)}, list...)
	}
	sealed, err := a.handle.SealBytes(key, plain)
	if err != nil {
		return err
	}
	t.Put(key, sealed)
	return nil
}

func (a *account) content(r store.Reader, c, id string) (content, error) {
	key := contentKey(a.id, c, id)
	kv, err := r.Get(key)
	if err != nil {
		return content{}, fmt.Errorf("reading content record: %w", err)
	}
	plain, err := a.handle.OpenBytes(key, kv.Value)
	if err != nil {
		return content{}, fmt.Errorf("opening content record: %w", err)
	}
	if len(plain) == 0 {
		return content{}, errors.New("content record is empty")
	}
	if plain[0] == contentInline {
		return content{Inline: plain[1:]}, nil
	}
	if plain[0] > contentRuns {
		return content{}, fmt.Errorf("content record has the unknown format %d", plain[0])
	}
	var parts []part
	if err := json.Unmarshal(plain[1:], &parts); err != nil {
		return content{}, fmt.Errorf("decoding content record: %w", err)
	}
	return content{Parts: parts}, nil
}

func partsFormat(parts []part) byte {
	for _, p := range parts {
		if p.Object == "" || p.Full != 0 {
			return contentRuns
		}
	}
	return contentParts
}

// loadPlain and savePlain are for records that the sweeper reads without a key.
func loadPlain(r store.Reader, key string, v any) (bool, error) {
	kv, err := r.Get(key)
	if errors.Is(err, store.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("reading record: %w", err)
	}
	if err := json.Unmarshal(kv.Value, v); err != nil {
		return false, fmt.Errorf("decoding record: %w", err)
	}
	return true, nil
}

func savePlain(t store.Txn, key string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encoding record: %w", err)
	}
	t.Put(key, b)
	return nil
}

// uncommitted reads the uncommitted blocks of a blob by block id.
func (a *account) uncommitted(r store.Reader, c, name string) (map[string]part, error) {
	out := map[string]part{}
	for kv, err := range r.Scan(blockPrefix(a.id, c, hashName(name)), store.ScanOptions{}) {
		if err != nil {
			return nil, fmt.Errorf("reading blocks: %w", err)
		}
		var p part
		if err := json.Unmarshal(kv.Value, &p); err != nil {
			return nil, fmt.Errorf("decoding block: %w", err)
		}
		out[p.Block] = p
	}
	return out, nil
}

// forget removes the uncommitted blocks' records and returns the blocks, whose objects the caller keeps or discards.
func (a *account) forget(t store.Txn, c, name string) (map[string]part, error) {
	blocks, err := a.uncommitted(t, c, name)
	if err != nil {
		return nil, err
	}
	hash := hashName(name)
	for id := range blocks {
		t.Delete(blockKey(a.id, c, hash, id))
	}
	if len(blocks) > 0 {
		t.Delete(uploadKey(a.id, c, hash))
	}
	return blocks, nil
}

// discard takes one reference to an object away, and hands it to the sweeper with the last. lineage may be empty for what nobody can be reading.
func (a *account) discard(t store.Txn, c, object, lineage string) error {
	key := objectKey(a.id, c, object)
	n, err := owners(t, key)
	if err != nil {
		return err
	}
	if n > 1 {
		t.Put(key, []byte(strconv.Itoa(n-1)))
		return nil
	}
	t.Delete(key)
	t.Put(trashKey(a.id, c, object), []byte(lineage))
	return nil
}

// retain notes that a first record refers to the object.
func (a *account) retain(t store.Txn, c, object string) {
	t.Put(objectKey(a.id, c, object), []byte("1"))
}

// replace puts next in the place of old (nil: there was none), with new contents, and discards the objects that neither
// the new contents nor an earlier part of them refer to any more.
func (a *account) replace(t store.Txn, c, name string, old, next *blobRecord, body content, loose map[string]part) error {
	keep := map[string]bool{}
	for _, p := range body.Parts {
		keep[p.Object] = true
	}
	if old != nil {
		if err := a.dropContent(t, c, old, keep); err != nil {
			return err
		}
	}
	for _, id := range slices.Sorted(maps.Keys(loose)) {
		if p := loose[id]; !keep[p.Object] {
			if err := a.discard(t, c, p.Object, ""); err != nil {
				return err
			}
		}
	}
	if err := a.saveContent(t, c, next.Content, body); err != nil {
		return err
	}
	return a.save(t, blobKey(a.id, c, name), next)
}

func (a *account) dropContent(t store.Txn, c string, old *blobRecord, keep map[string]bool) error {
	body, err := a.content(t, c, old.Content)
	if err != nil {
		return err
	}
	for _, p := range body.Parts {
		if p.Object != "" && !keep[p.Object] {
			keep[p.Object] = true // a block may stand in the list twice
			if err := a.discard(t, c, p.Object, old.Lineage); err != nil {
				return err
			}
		}
	}
	t.Delete(contentKey(a.id, c, old.Content))
	return nil
}

// view and update give fn the account's container.
func (s *Service) view(ctx context.Context, a *account, name string, fn func(store.Reader, *containerRecord) error) error {
	return s.store.View(ctx, func(r store.Reader) error {
		c, err := a.container(r, name)
		if err != nil {
			return err
		}
		return fn(r, c)
	})
}

func (s *Service) update(ctx context.Context, a *account, name string, fn func(store.Txn, *containerRecord) error) error {
	return s.store.Update(ctx, func(t store.Txn) error {
		c, err := a.container(t, name)
		if err != nil {
			return err
		}
		return fn(t, c)
	})
}
