package machinelearning

import (
	"context"
	"io"
	"iter"
	"log/slog"
	"net"
	"time"

	"casemate.dev/dataplane/blob"
	"casemate.dev/dataplane/runtime"
	"casemate.dev/dataplane/tracking"
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

// Blobs is the blob plane, acting for a caller with that caller's rights and recorded as such; *blob.Service.
type Blobs interface {
	ListBlobs(ctx context.Context, c resource.Caller, account resource.ID, container, prefix string) iter.Seq2[blob.BlobInfo, error]
	GetBlob(ctx context.Context, c resource.Caller, account resource.ID, container, name string, offset int64) (io.ReadCloser, blob.BlobInfo, error)
	PutBlob(ctx context.Context, c resource.Caller, account resource.ID, container, name string, body io.Reader, size int64, contentType string) error
	EnsureContainer(ctx context.Context, c resource.Caller, account resource.ID, container string) error
	DeleteBlob(ctx context.Context, c resource.Caller, account resource.ID, container, name string) error
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

// Principals makes callers of principals, for acting in process.
type Principals interface {
	CallerOf(ctx context.Context, principalID string) (resource.Caller, error)
}

// Authorizer decides whether a caller holds an action at a scope; control/rbac's engine.
type Authorizer interface {
	Authorize(c resource.Caller, action string, isData bool, scope resource.ID) (allowed bool, reason string)
}

// Runs is the tracking plane's half of a job; *tracking.Service.
type Runs interface {
	// OpenJob makes the run of a job, once; opening it again does nothing.
	OpenJob(ctx context.Context, workspace resource.ID, job tracking.JobRun) error
	// ChangeJob sets a run's status, as MLflow spells it; times may be zero.
	ChangeJob(ctx context.Context, workspace resource.ID, run, status string, started, ended time.Time) error
	// Drop forgets everything of a workspace that is being deleted.
	Drop(ctx context.Context, workspace resource.ID) error
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
	Authorize  Authorizer               // for the linked scopes of a request, such as a subnet
	Authority  func(host string) string // adds the public port to a host name where it is not 443
	Domain     string                   // such as casemate.localhost
	Tenant     string
	Platform   resource.Caller
	CA         []byte         // PEM, for nodes
	Metadata   fleet.Metadata // where nodes ask for tokens; default http://169.254.169.254/msi/token
	// Dial connects from the platform's address inside a network to an address in it; dataplane/network's DialNode.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Foresee refuses when a subnet cannot take n more nodes; optional.
	Foresee func(subnet string, n int) error
	// Connections lists the private endpoint connections of a workspace; optional.
	Connections func(target string) []map[string]any
	// RunToken makes a token of a managed identity (an ARM id) that is good while the node lives.
	RunToken func(ctx context.Context, node, identity, audience string) (string, error)
	// RunAudience is the audience of a run's token at the workspace plane; default https://ml.azure.com.
	RunAudience string
	// Refused hears that a node has refused changed content, before that is acknowledged; optional.
	Refused func(ctx context.Context, r fleet.Refusal) error
	Clock   resource.Clock // optional
	Log     *slog.Logger   // optional
}
