package storage

import (
	"context"
	"errors"
	"iter"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"time"

	"casemate.dev/dataplane/blob"
	"casemate.dev/envelope"
	"casemate.dev/resource"
	"casemate.dev/store"
)

const (
	accountType   = "Microsoft.Storage/storageAccounts"
	serviceType   = accountType + "/blobServices"
	containerType = serviceType + "/containers"
)

// apiVersions are those that clients are known to send, newest first.
func apiVersions() []string {
	return []string{"2025-06-01", "2024-01-01", "2023-05-01", "2023-01-01", "2022-09-01", "2021-09-01", "2019-06-01"}
}

// Keys makes, rebinds and destroys the resource keys of accounts; *envelope.Keys.
type Keys interface {
	Create(ctx context.Context, resourceID string, ref *envelope.KeyRef) error
	Rebind(ctx context.Context, resourceID string, ref *envelope.KeyRef) error
	Destroy(ctx context.Context, resourceID string) error
	Version(resourceID string) (string, error)
}

// Plane is the Blob service; *blob.Service.
type Plane interface {
	CreateAccount(ctx context.Context, id resource.ID) error
	DestroyAccount(ctx context.Context, id resource.ID) error
	CreateContainer(ctx context.Context, account resource.ID, name string, metadata map[string]string) (blob.ContainerInfo, bool, error)
	StatContainer(ctx context.Context, account resource.ID, name string) (blob.ContainerInfo, error)
	DeleteContainer(ctx context.Context, account resource.ID, name string) error
	Containers(ctx context.Context, account resource.ID) iter.Seq2[blob.ContainerInfo, error]
}

// Config is what New needs.
type Config struct {
	Store     store.Store        // required
	Keys      Keys               // required
	Plane     Plane              // required
	Resources resource.Resources // required: identities that use a customer's key, and accounts above containers
	Domain    string             // required, such as casemate.localhost
	// Authority appends the public port to a host name where it is not 443; nil: nothing is appended.
	Authority func(host string) string
	// InUse refuses the deletion of an account that something needs, with *resource.Error 409; optional.
	InUse func(ctx context.Context, id resource.ID) error
}

// Provider is safe for concurrent use.
type Provider struct {
	cfg Config

	mu    sync.RWMutex
	names map[string]string // claimed account name → ARM id; equal to the store's records
}

// New makes a Provider. Call Load before the first request.
func New(cfg Config) (*Provider, error) {
	if cfg.Store == nil || cfg.Keys == nil || cfg.Plane == nil || cfg.Resources == nil || cfg.Domain == "" {
		return nil, errors.New("configuring the storage provider: Store, Keys, Plane, Resources and Domain are required")
	}
	if cfg.Authority == nil {
		cfg.Authority = func(host string) string { return host }
	}
	return &Provider{cfg: cfg, names: map[string]string{}}, nil
}

// Types declares the accounts.
func (p *Provider) Types() []resource.Type {
	refused := func(name string) resource.Action {
		return resource.Action{Name: name, Permission: accountType + "/" + name + "/action", Audit: resource.AuditSecret, Handler: refuseKeys}
	}
	return []resource.Type{{
		Name: accountType, Level: resource.AtResourceGroup, APIVersions: apiVersions(), Tracked: true, Created: http.StatusOK,
		NamePattern: regexp.MustCompile(`^[a-z0-9]{3,24}$`),
		NameRule:    "A storage account's name has 3 to 24 lower-case letters and digits",
		Validate:    p.validate, Reconcile: p.reconcile, Remove: p.remove, MayRemove: p.mayRemove, View: p.view,
		Actions: []resource.Action{refused("listKeys"), refused("regenerateKey"), refused("listAccountSas"), refused("listServiceSas")},
	}}
}

// refuseKeys answers everything that would hand out an account's shared keys or what is signed with them.
func refuseKeys(_ context.Context, d *resource.Document, _ *resource.Request) (any, error) {
	return nil, resource.Errorf(http.StatusForbidden, "KeyBasedAuthenticationNotPermitted",
		"Key based authentication is not permitted on the storage account '%s': it has no shared keys. Use Microsoft Entra authorization with a data role such as Storage Blob Data Contributor.", d.ID.Name())
}

// claimKey is the record that makes a name one account's own: storage/name/{name} → ARM id.
func claimKey(name string) string { return store.Key("storage", "name", name) }

// Load reads the claimed names into memory.
func (p *Provider) Load(ctx context.Context) error {
	return p.cfg.Store.View(ctx, func(r store.Reader) error {
		p.mu.Lock()
		defer p.mu.Unlock()
		for kv, err := range r.Scan(store.Prefix("storage", "name"), store.ScanOptions{}) {
			if err != nil {
				return err
			}
			id, err := resource.ParseID(string(kv.Value))
			if err != nil {
				return err
			}
			p.names[id.Name()] = id.String()
		}
		return nil
	})
}

// ResourceOf is the ARM id of the account that a host label names.
func (p *Provider) ResourceOf(label string) (string, bool) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	id, ok := p.names[strings.ToLower(label)]
	return id, ok
}

func errTaken(name string) *resource.Error {
	return resource.Errorf(http.StatusConflict, "StorageAccountAlreadyTaken", "The storage account named %s is already taken.", name)
}

// claim makes the account's name its own; idempotent.
func (p *Provider) claim(ctx context.Context, id resource.ID) error {
	name := id.Name()
	err := p.cfg.Store.Update(ctx, func(t store.Txn) error {
		kv, err := t.Get(claimKey(name))
		if errors.Is(err, store.ErrNotFound) {
			t.Put(claimKey(name), []byte(id.String()))
			return nil
		}
		if err == nil && !strings.EqualFold(string(kv.Value), id.String()) {
			return errTaken(name)
		}
		return err
	})
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.names[name] = id.String()
	return nil
}

// release gives the name back, if it is the account's.
func (p *Provider) release(ctx context.Context, id resource.ID) error {
	name := id.Name()
	mine := false
	err := p.cfg.Store.Update(ctx, func(t store.Txn) error {
		mine = false
		kv, err := t.Get(claimKey(name))
		if errors.Is(err, store.ErrNotFound) {
			return nil
		}
		if mine = err == nil && strings.EqualFold(string(kv.Value), id.String()); mine {
			t.Delete(claimKey(name))
		}
		return err
	})
	if err != nil || !mine {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if strings.EqualFold(p.names[name], id.String()) {
		delete(p.names, name)
	}
	return nil
}

// rowTimeout bounds the rows for containers.
const rowTimeout = time.Minute
