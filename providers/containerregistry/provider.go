package containerregistry

import (
	"context"
	"errors"
	"net/http"
	"regexp"
	"strings"
	"sync"

	"casemate.dev/envelope"
	"casemate.dev/resource"
	"casemate.dev/store"
)

const registryType = "Microsoft.ContainerRegistry/registries"

// apiVersions are those that clients are known to send, newest first.
func apiVersions() []string {
	return []string{"2025-11-01", "2025-04-01", "2023-07-01", "2023-01-01-preview", "2022-12-01", "2022-02-01-preview", "2021-09-01",
		"2019-12-01-preview", "2019-05-01", "2017-10-01"}
}

// Keys makes, rebinds and destroys the resource keys of registries; *envelope.Keys.
type Keys interface {
	Create(ctx context.Context, resourceID string, ref *envelope.KeyRef) error
	Rebind(ctx context.Context, resourceID string, ref *envelope.KeyRef) error
	Destroy(ctx context.Context, resourceID string) error
	Version(resourceID string) (string, error)
}

// Plane is the registry service; *registry.Service.
type Plane interface {
	CreateRegistry(ctx context.Context, id resource.ID) error
	DestroyRegistry(ctx context.Context, id resource.ID) error
	Usage(ctx context.Context, id resource.ID) (bytes int64, err error)
}

// Config is what New needs.
type Config struct {
	Store     store.Store        // required
	Keys      Keys               // required
	Plane     Plane              // required
	Resources resource.Resources // required: identities that use a customer's key
	Domain    string             // required, such as casemate.localhost
	// Authority appends the public port to a host name where it is not 443; nil: nothing is appended.
	Authority func(host string) string
	// InUse refuses the deletion of a registry that something needs, with *resource.Error 409; optional.
	InUse func(ctx context.Context, id resource.ID) error
}

// Provider is safe for concurrent use.
type Provider struct {
	cfg Config

	mu    sync.RWMutex
	names map[string]string // claimed lower-case name → ARM id; equal to the store's records
}

// New makes a Provider. Call Load before the first request.
func New(cfg Config) (*Provider, error) {
	if cfg.Store == nil || cfg.Keys == nil || cfg.Plane == nil || cfg.Resources == nil || cfg.Domain == "" {
		return nil, errors.New("configuring the container registry provider: Store, Keys, Plane, Resources and Domain are required")
	}
	if cfg.Authority == nil {
		cfg.Authority = func(host string) string { return host }
	}
	return &Provider{cfg: cfg, names: map[string]string{}}, nil
}

const nameRule = "A registry's name has 5 to 50 letters and digits"

var namePattern = regexp.MustCompile(`^[a-zA-Z0-9]{5,50}$`)

// Types declares the registries.
func (p *Provider) Types() []resource.Type {
	refused := func(name string) resource.Action {
		return resource.Action{Name: name, Permission: registryType + "/" + name + "/action", Audit: resource.AuditSecret, Handler: refuseCredentials}
	}
	return []resource.Type{{
		Name: registryType, Level: resource.AtResourceGroup, APIVersions: apiVersions(), Tracked: true, Created: http.StatusCreated,
		NamePattern: namePattern, NameRule: nameRule,
		Validate: p.validate, Reconcile: p.reconcile, Remove: p.remove, MayRemove: p.mayRemove, View: p.view,
		Actions: []resource.Action{
			refused("listCredentials"), refused("regenerateCredential"), refused("generateCredentials"),
			{Name: "listUsages", Method: http.MethodGet, Permission: registryType + "/listUsages/read", Audit: resource.AuditRead, Handler: p.listUsages},
			{Name: "importImage", Permission: registryType + "/importImage/action", Audit: resource.AuditWrite,
				Handler: func(context.Context, *resource.Document, *resource.Request) (any, error) {
					return nil, resource.NotSupported("Importing images is not supported: the registry connects to no other one. Copy the image with skopeo or another client.")
				}},
		},
	}}
}

// refuseCredentials answers everything that would hand out shared passwords.
func refuseCredentials(_ context.Context, d *resource.Document, _ *resource.Request) (any, error) {
	return nil, resource.Errorf(http.StatusBadRequest, "AdminUserDisabled",
		"The registry '%s' has no admin user and no passwords. Use Microsoft Entra authorization with a role such as AcrPull or AcrPush; 'az acr login' and 'docker login' with a service principal work.", d.ID.Name())
}

// listUsages says how much the registry holds.
func (p *Provider) listUsages(ctx context.Context, d *resource.Document, _ *resource.Request) (any, error) {
	size, err := p.cfg.Plane.Usage(ctx, d.ID)
	if err != nil {
		return nil, err
	}
	const noLimit = int64(1) << 50
	return map[string]any{"value": []any{
		map[string]any{"name": "Size", "limit": noLimit, "currentValue": size, "unit": "Bytes"},
		map[string]any{"name": "Webhooks", "limit": 0, "currentValue": 0, "unit": "Count"},
	}}, nil
}

func label(id resource.ID) string { return strings.ToLower(id.Name()) }

// claimKey is the record that makes a name one registry's own: containerregistry/name/{name} → ARM id.
func claimKey(name string) string { return store.Key("containerregistry", "name", name) }

// Load reads the claimed names into memory.
func (p *Provider) Load(ctx context.Context) error {
	return p.cfg.Store.View(ctx, func(r store.Reader) error {
		p.mu.Lock()
		defer p.mu.Unlock()
		for kv, err := range r.Scan(store.Prefix("containerregistry", "name"), store.ScanOptions{}) {
			if err != nil {
				return err
			}
			id, err := resource.ParseID(string(kv.Value))
			if err != nil {
				return err
			}
			p.names[label(id)] = id.String()
		}
		return nil
	})
}

// ResourceOf is the ARM id of the registry that a host label names.
func (p *Provider) ResourceOf(host string) (string, bool) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	id, ok := p.names[strings.ToLower(host)]
	return id, ok
}

func errTaken(name string) *resource.Error {
	return resource.Errorf(http.StatusConflict, "AlreadyInUse", "The registry DNS name %s is already in use. Choose another name.", name)
}

// claim makes the registry's name its own; idempotent.
func (p *Provider) claim(ctx context.Context, id resource.ID) error {
	name := label(id)
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

// release gives the name back, if it is the registry's.
func (p *Provider) release(ctx context.Context, id resource.ID) error {
	name, mine := label(id), false
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
