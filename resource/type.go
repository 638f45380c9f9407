package resource

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"
)

// Level says below what a type's resources live.
type Level int

// The levels. Child types (two type segments or more) take their level from their parent.
const (
	levelMissing      Level = iota
	AtResourceGroup         // /subscriptions/{s}/resourceGroups/{g}/providers/…
	AtSubscription          // /subscriptions/{s}/providers/…
	AtTenant                // /providers/…
	AtAnyScope              // extension resources: any scope, its own provider behind it
	AtSubscriptionRaw       // /subscriptions/{s}/resourceGroups/{g}: the group itself
)

// Type declares a control-plane resource type. Rows for PUT, PATCH, GET, HEAD, DELETE, lists and actions, etags, tags,
// systemData, provisioning states and long-running operations are derived from it once, for all types.
type Type struct {
	Name        string // full type, such as Microsoft.Storage/storageAccounts
	Level       Level
	APIVersions []string       // newest first; newer ones are accepted too
	NamePattern *regexp.Regexp // nil: ARM's general rule
	NameRule    string         // NamePattern in words, for the message
	Tracked     bool           // needs a location, may have tags
	// Created is the status of a PUT that makes a resource: 200 or 201 (some clients refuse one of them, CLIENTS.md).
	Created int
	// Async makes PUT and DELETE long-running: 201/200/202 with Azure-AsyncOperation, polled. Otherwise Reconcile runs before
	// the answer.
	Async bool
	// ReadOnly types have no PUT, PATCH or DELETE rows: the platform makes their resources.
	ReadOnly bool
	// NotDeletable and NotPatchable drop the row.
	NotDeletable, NotPatchable bool
	// MakesParent creates a missing parent with an empty body first, for the same caller: the container of an asset's versions.
	MakesParent bool
	// Owner, when set, is the type name of the ancestor whose key seals the documents (row W7): with that key revoked
	// they cannot be read.
	Owner string
	// DeletedStatus of a DELETE that is done at once: 200 where clients refuse 204. 0 means 200. A DELETE of nothing is 204.
	DeletedStatus int

	// Validate checks and completes w.New before anything is stored: defaults, immutable properties (compare with w.Old),
	// references. It must not have effects. Refuse with *Error.
	Validate func(ctx context.Context, w *Write) error
	// Reconcile makes the world equal to d; idempotent, driven until it returns nil or a final *Error, and again after a crash.
	// It may set read-only properties and Internal on d; they are stored when it returns nil. An error that is not an *Error is
	// retried with back-off (transient); an *Error with RetryAfter too.
	Reconcile func(ctx context.Context, d *Document) error
	// Remove makes the world as if d had never been; idempotent. An *Error with status 409 refuses the deletion and leaves all.
	Remove func(ctx context.Context, d *Document) error
	// MayRemove refuses a deletion before it starts (resource in use). Optional.
	MayRemove func(ctx context.Context, d *Document) error
	// View changes the copy that is about to be shown: hides write-only properties, adds live read-only ones. Optional.
	View func(ctx context.Context, d *Document)
	// Filter narrows a list by the request's own query parameters. Optional.
	Filter func(r *Request, docs []*Document) ([]*Document, error)
	// Actions become POST rows below the resource (or its collection).
	Actions []Action
}

// Action is an operation beside create, read, update and delete: POST {resource}/{Name}.
type Action struct {
	Name       string // last path segment, such as listKeys
	Method     string // empty: POST
	Permission string // full action, such as Microsoft.Storage/storageAccounts/listKeys/action
	Audit      Category
	Versions   []string // empty: the type's
	// Collection puts the action on the type's collection below the parent instead of on one resource; d is then the parent
	// (nil at a subscription or group).
	Collection bool
	// Handler returns what is sent as JSON with 200; nil is sent as 204. A *Response chooses another status.
	Handler func(ctx context.Context, d *Document, r *Request) (any, error)
}

// Response is an action's answer with its own status or headers.
type Response struct {
	Status int
	Header map[string]string
	Body   any
}

// Write is one PUT or PATCH on its way in. For PATCH, New is the merged document (RFC 7396).
type Write struct {
	Caller  Caller
	Old     *Document // nil when the resource does not exist yet
	New     *Document // may be changed: defaults, generated names
	Version string
	Method  string
}

// Check reports a declaration that cannot work.
func (t Type) Check() error {
	var errs []error
	if strings.Count(t.Name, "/") < 1 {
		errs = append(errs, errors.New("no type name"))
	}
	if t.Level == levelMissing && strings.Count(t.Name, "/") == 1 {
		errs = append(errs, errors.New("no level"))
	}
	if len(t.APIVersions) == 0 {
		errs = append(errs, errors.New("no API versions"))
	}
	if !t.ReadOnly && (t.Created != 200 && t.Created != 201) {
		errs = append(errs, errors.New("created status must be 200 or 201"))
	}
	for _, a := range t.Actions {
		if a.Name == "" || a.Permission == "" || a.Audit == categoryMissing || a.Handler == nil {
			errs = append(errs, fmt.Errorf("action %q lacks a column", a.Name))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("type %s: %w", t.Name, err)
	}
	return nil
}

// Resources is how providers and planes reach control-plane documents inside the process. It checks nothing about callers:
// whoever uses it acts for the platform, or has had its caller checked at the gateway.
type Resources interface {
	// Get returns the receiver's own copy; *Error ResourceNotFound when absent. Documents being deleted are returned (State).
	Get(ctx context.Context, id ID) (*Document, error)
	// List returns all documents of a type at or below a scope, in order of ID.
	List(ctx context.Context, typ string, below ID) ([]*Document, error)
	// Put creates or replaces as a client's PUT would (validation, reconciling, LRO), for a caller, and waits until it is done.
	Put(ctx context.Context, c Caller, id ID, body map[string]any) (*Document, error)
	// Update changes body or Internal of an existing document without running Reconcile; fn may run again.
	Update(ctx context.Context, id ID, fn func(*Document) error) (*Document, error)
	// Delete removes as a client's DELETE would, and waits until it is done.
	Delete(ctx context.Context, c Caller, id ID) error
	// Again schedules Reconcile for a document because something it depends on has changed.
	Again(ctx context.Context, id ID) error
}

// Observer hears about every change of a document of the types it watches, after it is durable and before the client
// hears of it. old is nil for a new document, new is nil for a deleted one.
type Observer func(ctx context.Context, old, new *Document)

// Clock is the source of time; tests inject one.
type Clock func() time.Time
