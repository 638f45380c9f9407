package machinelearning

import (
	"context"
	"io"
	"log/slog"
	"time"

	"casemate.dev/dataplane/runtime"
	"casemate.dev/providers/machinelearning/fleet"
	"casemate.dev/resource"
	"casemate.dev/store"
)

// KeyRef names the customer's key of a workspace and the principal that uses it; it has the fields of envelope.KeyRef.
type KeyRef struct {
	KeyURL   string // with or without a version; without: always the newest
	Identity string // object id of the principal
}

// Keys binds workspaces to their keys (row W7); envelope.Keys.
type Keys interface {
	Create(ctx context.Context, resourceID string, ref *KeyRef) error
	Rebind(ctx context.Context, resourceID string, ref *KeyRef) error
	Destroy(ctx context.Context, resourceID string) error
	Version(resourceID string) (string, error)
}

// BlobItem is one blob of a listing.
type BlobItem struct {
	Name        string
	Size        int64
	ContentType string
}

// Blobs is the blob plane, acting for a caller with that caller's rights and recorded as such.
type Blobs interface {
	List(ctx context.Context, c resource.Caller, account resource.ID, container, prefix, after string, limit int) ([]BlobItem, error)
	Open(ctx context.Context, c resource.Caller, account resource.ID, container, name string) (io.ReadCloser, BlobItem, error)
	Put(ctx context.Context, c resource.Caller, account resource.ID, container, name, contentType string, body io.Reader, size int64) error
	Delete(ctx context.Context, c resource.Caller, account resource.ID, container, name string) error
}

// Image is an image that is ready to be started.
type Image struct {
	Digest string
	Env    []string // of its configuration
}

// Images brings an image of one of the platform's registries into the image store, pulling it for a caller.
type Images interface {
	Ensure(ctx context.Context, c resource.Caller, registry resource.ID, repository, reference string) (Image, error)
}

// Principals makes callers of principals, for acting in process, and tokens for runs.
type Principals interface {
	CallerOf(ctx context.Context, principalID string) (resource.Caller, error)
	// IssueRunToken makes a short-lived token of a principal that is good only for a run, and only while its node lives.
	IssueRunToken(ctx context.Context, principalID, onBehalfOf, run, node, audience string) (token string, expires time.Time, err error)
}

// Runs is the tracking plane's half of a job.
type Runs interface {
	// Open makes the run of a job, once; opening it again does nothing.
	Open(ctx context.Context, workspace resource.ID, run Run) error
	// Change sets a run's status, RUNNING, FINISHED, FAILED or KILLED as MLflow spells them; times may be zero.
	Change(ctx context.Context, workspace resource.ID, run, status string, started, ended time.Time) error
	// Drop forgets everything of a workspace that is being deleted.
	Drop(ctx context.Context, workspace resource.ID) error
}

// Run is a job as the tracking plane sees it.
type Run struct {
	ID, Name, Experiment, User string
	Tags                       map[string]string
}

// Config is what the provider needs. Fields are required unless they say otherwise.
type Config struct {
	Resources  resource.Resources
	Store      store.Store
	Keys       Keys
	Handles    func(ctx context.Context, resourceID string) (fleet.Handle, error)
	Principals Principals
	Blobs      Blobs
	Images     Images
	Runtime    runtime.Runtime
	Network    fleet.Network
	Runs       Runs
	// Allowed says whether a caller holds an action (not a data action) at a scope: for the linked scopes of a request.
	Allowed   func(c resource.Caller, action string, scope resource.ID) bool
	Authority func(host string) string // adds the public port to a host name where it is not 443
	Domain    string                   // such as casemate.localhost
	Tenant    string
	Platform  resource.Caller
	CA        []byte         // PEM, for nodes
	Metadata  fleet.Metadata // where nodes ask for tokens
	// RunAudience is the audience of a run's token at the workspace plane; default https://ml.azure.com.
	RunAudience string
	Clock       resource.Clock // optional
	Log         *slog.Logger   // optional
}
