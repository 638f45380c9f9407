package operation

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"casemate.dev/resource"
	"casemate.dev/store"
)

// Handle seals and opens the documents of one owner; an envelope handle.
type Handle interface {
	SealBytes(object string, plain []byte) ([]byte, error)
	OpenBytes(object string, sealed []byte) ([]byte, error)
}

// record is a document as it stands in the store, at Key("res", type, segments of the ID …).
type record struct {
	ID         string              `json:"id"`
	Body       map[string]any      `json:"body"`
	System     resource.SystemData `json:"system"`
	Generation int64               `json:"generation"` // with Created, the etag
	Created    int64               `json:"created"`    // Unix nanoseconds
	State      string              `json:"state"`
	Fault      *fault              `json:"fault,omitempty"`
	Internal   map[string]any      `json:"internal,omitempty"`
	Creator    resource.Caller     `json:"creator"`
	// Previous is what a failed update of a synchronous type returns to.
	Previous *record `json:"previous,omitempty"`
}

type fault struct {
	Status  int    `json:"status"`
	Code    string `json:"code"`
	Message string `json:"message"`
	Target  string `json:"target,omitempty"`
}

func toFault(e *resource.Error) *fault {
	return &fault{Status: e.Status, Code: e.Code, Message: e.Message, Target: e.Target}
}

func (f *fault) asError() *resource.Error {
	if f == nil {
		return nil
	}
	return &resource.Error{Status: f.Status, Code: f.Code, Message: f.Message, Target: f.Target}
}

func (r *record) etag() string { return fmt.Sprintf(`"%x-%x"`, r.Created, r.Generation) }

func (r *record) document() (*resource.Document, error) {
	id, err := resource.ParseID(r.ID)
	if err != nil {
		return nil, fmt.Errorf("reading stored document: %w", err)
	}
	d := &resource.Document{ID: id, Body: r.Body, System: r.System, ETag: r.etag(), State: r.State, Fault: r.Fault.asError(), Internal: r.Internal, Creator: r.Creator}
	return d.Clone(), nil
}

// adopt takes over what a provider may change: body and Internal.
func (r *record) adopt(d *resource.Document) {
	c := d.Clone()
	r.Body, r.Internal = c.Body, c.Internal
}

func storeKey(typ string, id resource.ID) string {
	return store.Key(append([]string{"res", lower(typ)}, idParts(id)...)...)
}

func storePrefix(typ string, below resource.ID) string {
	return store.Prefix(append([]string{"res", lower(typ)}, idParts(below)...)...)
}

func idParts(id resource.ID) []string {
	if id.IsTenant() {
		return nil
	}
	return strings.Split(id.Key()[1:], "/")
}

func lower(s string) string { return strings.ToLower(s) }

// object is the additional data under which a document is sealed: its place.
func object(id resource.ID) string { return "document " + id.Key() }

func (e *Engine) encode(ctx context.Context, t *typeInfo, id resource.ID, r *record) ([]byte, error) {
	b, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("encoding %s: %w", id, err)
	}
	h, err := e.ownerHandle(ctx, t, id)
	if err != nil || h == nil {
		return b, err
	}
	if b, err = h.SealBytes(object(id), b); err != nil {
		return nil, fmt.Errorf("sealing %s: %w", id, err)
	}
	return b, nil
}

func (e *Engine) decode(ctx context.Context, t *typeInfo, id resource.ID, b []byte) (*record, error) {
	h, err := e.ownerHandle(ctx, t, id)
	if err != nil {
		return nil, err
	}
	if h != nil {
		if b, err = h.OpenBytes(object(id), b); err != nil {
			return nil, fmt.Errorf("opening %s: %w", id, err)
		}
	}
	return decodeRecord(b)
}

func decodeRecord(b []byte) (*record, error) {
	dec := json.NewDecoder(strings.NewReader(string(b)))
	dec.UseNumber()
	var r record
	if err := dec.Decode(&r); err != nil {
		return nil, fmt.Errorf("decoding stored document: %w", err)
	}
	return &r, nil
}

// ownerHandle is the handle of the ancestor that owns the type's documents; nil for the platform's own.
func (e *Engine) ownerHandle(ctx context.Context, t *typeInfo, id resource.ID) (Handle, error) {
	if t.Owner == "" {
		return nil, nil
	}
	for p := id.Parent(); !p.IsTenant(); p = p.Parent() {
		if p.Is(t.Owner) {
			return e.cfg.Handle(ctx, p.String())
		}
	}
	return nil, fmt.Errorf("%s has no ancestor of type %s", id, t.Owner)
}

// load reads a document's record; *resource.Error ResourceNotFound when there is none.
func (e *Engine) load(ctx context.Context, t *typeInfo, id resource.ID) (*record, error) {
	if t.Owner == "" {
		if r := e.cached(id); r != nil {
			return r, nil
		}
		return nil, resource.NotFound(id)
	}
	var sealed []byte
	err := e.cfg.Store.View(ctx, func(r store.Reader) error {
		kv, err := r.Get(storeKey(t.Name, id))
		sealed = kv.Value
		return err
	})
	if errors.Is(err, store.ErrNotFound) {
		return nil, resource.NotFound(id)
	}
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", id, err)
	}
	return e.decode(ctx, t, id, sealed)
}

// task is an entry of the queue of unfinished work, at Key("resq", type, id).
type task struct {
	Type      string        `json:"type"`
	ID        string        `json:"id"`
	Delete    bool          `json:"delete,omitempty"`
	Operation string        `json:"operation,omitempty"` // operation that waits for it
	wait      time.Duration // before the last retry; 0 at first
}

func taskKey(id resource.ID) string { return store.Key("resq", id.Key()) }

// save writes a record, and the task that remains to be done for it (nil: none), in one transaction; then memory and the
// observers learn of it.
func (e *Engine) save(ctx context.Context, t *typeInfo, id resource.ID, r *record, left *task) error {
	b, err := e.encode(ctx, t, id, r)
	if err != nil {
		return err
	}
	var q []byte
	if left != nil {
		if q, err = json.Marshal(left); err != nil {
			return fmt.Errorf("encoding task: %w", err)
		}
	}
	err = e.cfg.Store.Update(ctx, func(tx store.Txn) error {
		tx.Put(storeKey(t.Name, id), b)
		if q != nil {
			tx.Put(taskKey(id), q)
		} else {
			tx.Delete(taskKey(id))
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("storing %s: %w", id, err)
	}
	return e.publish(ctx, t, id, r)
}

// drop removes a record and its task.
func (e *Engine) drop(ctx context.Context, t *typeInfo, id resource.ID) error {
	err := e.cfg.Store.Update(ctx, func(tx store.Txn) error {
		tx.Delete(storeKey(t.Name, id))
		tx.Delete(taskKey(id))
		return nil
	})
	if err != nil {
		return fmt.Errorf("removing %s: %w", id, err)
	}
	return e.publish(ctx, t, id, nil)
}

func systemType(c resource.Caller) string {
	switch c.Kind {
	case resource.KindUser:
		return "User"
	case resource.KindManagedIdentity:
		return "ManagedIdentity"
	case resource.KindPlatform:
		return "Key"
	}
	return "Application"
}

func touch(s *resource.SystemData, c resource.Caller, now time.Time) {
	who := c.Object
	if c.Kind == resource.KindUser && c.Name != "" {
		who = c.Name
	}
	if s.CreatedAt.IsZero() {
		s.CreatedAt, s.CreatedBy, s.CreatedByType = now.UTC(), who, systemType(c)
	}
	s.LastModifiedAt, s.LastModifiedBy, s.LastModifiedByType = now.UTC(), who, systemType(c)
}
