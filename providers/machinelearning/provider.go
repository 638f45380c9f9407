package machinelearning

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"casemate.dev/providers/machinelearning/fleet"
	"casemate.dev/providers/machinelearning/location"
	"casemate.dev/resource"
)

// The provider's types.
const (
	namespace             = "Microsoft.MachineLearningServices"
	workspaceType         = namespace + "/workspaces"
	computeType           = workspaceType + "/computes"
	datastoreType         = workspaceType + "/datastores"
	jobType               = workspaceType + "/jobs"
	endpointType          = workspaceType + "/onlineEndpoints"
	deploymentType        = endpointType + "/deployments"
	storageType           = "Microsoft.Storage/storageAccounts"
	vaultType             = "Microsoft.KeyVault/vaults"
	registryType          = "Microsoft.ContainerRegistry/registries"
	subnetType            = "Microsoft.Network/virtualNetworks/subnets"
	userAssignedType      = "Microsoft.ManagedIdentity/userAssignedIdentities"
	artifactContainer     = "azureml"
	defaultDatastore      = "workspaceblobstore"
	artifactDatastore     = "workspaceartifactstore"
	defaultRunAudience    = "https://ml.azure.com"
	nodeTokenURL          = "http://169.254.169.254/msi/token" // of the identity plane
	joinSubnetAction      = "Microsoft.Network/virtualNetworks/subnets/join/action"
	maxDocumentTextLength = 32 << 10
)

// versions are the API versions that the provider answers, newest first.
var versions = []string{"2024-10-01", "2024-04-01", "2023-10-01", "2023-04-01", "2022-12-01-preview", "2022-10-01-preview", "2022-10-01", "2022-05-01", "2021-07-01"}

// Provider is the resource provider. It is safe for concurrent use.
type Provider struct {
	cfg      Config
	registry *fleet.Registry
	jobs     *fleet.Scheduler
	serving  *fleet.Serving

	mu       sync.Mutex      // guards reserved; held while an endpoint's keys are replaced
	reserved map[string]bool // folded ids of model versions that are being registered by number
}

// New makes the provider. Types may be used at once; jobs and deployments run while Run does.
func New(cfg Config) (*Provider, error) {
	if cfg.Resources == nil || cfg.Store == nil || cfg.Keys == nil || cfg.Handles == nil || cfg.Principals == nil || cfg.Blobs == nil ||
		cfg.Images == nil || cfg.Runtime == nil || cfg.Network == nil || cfg.Runs == nil || cfg.RunToken == nil || cfg.Dial == nil || cfg.Authorize == nil || cfg.Authority == nil || cfg.Domain == "" {
		return nil, errors.New("machinelearning: a required field of the configuration is missing")
	}
	if cfg.RunAudience == "" {
		cfg.RunAudience = defaultRunAudience
	}
	if cfg.Metadata == (fleet.Metadata{}) {
		cfg.Metadata = fleet.Metadata{IdentityEndpoint: nodeTokenURL, MSIEndpoint: nodeTokenURL}
	}
	if cfg.Clock == nil {
		cfg.Clock = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	p := &Provider{cfg: cfg, registry: fleet.NewRegistry(), reserved: map[string]bool{}}
	fc := fleet.Config{
		Store: cfg.Store, Handles: cfg.Handles, Runtime: cfg.Runtime, Network: cfg.Network, Planner: (*planner)(p), Serve: (*planner)(p),
		Metadata: cfg.Metadata, Token: cfg.RunToken, CA: cfg.CA, Changed: p.jobChanged, Refused: cfg.Refused, Clock: cfg.Clock, Log: cfg.Log,
	}
	p.jobs, p.serving = fleet.NewScheduler(fc, p.registry), fleet.NewServing(fc, p.registry)
	return p, nil
}

// Types are the declared resource types.
func (p *Provider) Types() []resource.Type {
	types := []resource.Type{p.workspaceType(), p.computeType(), p.datastoreType(), p.jobType(), p.endpointType(), p.deploymentType()}
	return append(types, p.assetTypes()...)
}

// Registry says which nodes live and who they are.
func (p *Provider) Registry() *fleet.Registry { return p.registry }

// Run runs jobs and deployments until ctx ends.
func (p *Provider) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return p.jobs.Run(ctx) })
	g.Go(func() error { return p.serving.Run(ctx) })
	return g.Wait()
}

// workspace is the view of a workspace's document that the rest of the provider uses.
type workspace struct {
	id                       resource.ID
	guid                     string
	location                 string
	storage, vault, registry resource.ID // registry may be the zero ID
	subnet                   string      // of instances of endpoints, from serverlessComputeSettings
	principal                string      // object id of the identity that the workspace acts with
}

// workspaceOf reads the workspace in which a child resource lives, or the workspace itself.
func (p *Provider) workspaceOf(ctx context.Context, id resource.ID) (workspace, error) {
	for !id.Is(workspaceType) {
		if id.IsTenant() {
			return workspace{}, errors.New("resource is in no workspace")
		}
		id = id.Parent()
	}
	d, err := p.cfg.Resources.Get(ctx, id)
	if err != nil {
		return workspace{}, err
	}
	return viewWorkspace(d)
}

// leaving says whether a resource or something above it is being deleted.
func (p *Provider) leaving(ctx context.Context, id resource.ID) bool {
	for ; !id.IsTenant(); id = id.Parent() {
		if d, err := p.cfg.Resources.Get(ctx, id); err == nil && d.State == resource.StateDeleting {
			return true
		}
	}
	return false
}

func viewWorkspace(d *resource.Document) (workspace, error) {
	ws := workspace{id: d.ID, guid: d.Recall("workspaceId"), location: d.Location(), principal: actingPrincipal(d),
		subnet: d.String("properties.serverlessComputeSettings.serverlessComputeCustomSubnet")}
	for path, into := range map[string]*resource.ID{"properties.storageAccount": &ws.storage, "properties.keyVault": &ws.vault, "properties.containerRegistry": &ws.registry} {
		if s := d.String(path); s != "" {
			id, err := resource.ParseID(s)
			if err != nil {
				return ws, resource.Invalid(path, "'%s' is not a resource ID.", s)
			}
			*into = id
		}
	}
	return ws, nil
}

// actingPrincipal is the identity that a resource acts with: its primary user-assigned one, its only one, or its system-assigned one.
func actingPrincipal(d *resource.Document) string {
	assigned, _ := d.Get("identity.userAssignedIdentities").(map[string]any)
	primary := d.String("properties.primaryUserAssignedIdentity")
	for id, v := range assigned {
		if strings.EqualFold(id, primary) || primary == "" && len(assigned) == 1 && d.String("identity.principalId") == "" {
			m, _ := v.(map[string]any)
			s, _ := m["principalId"].(string)
			return s
		}
	}
	return d.String("identity.principalId")
}

// acting is the workspace's own caller, for a person.
func (p *Provider) acting(ctx context.Context, ws workspace, person string) (resource.Caller, error) {
	if ws.principal == "" {
		return resource.Caller{}, resource.Errorf(409, "WorkspaceIdentityMissing", "The workspace '%s' has no managed identity, so it cannot reach its storage. Give it one.", ws.id.Name())
	}
	c, err := p.cfg.Principals.CallerOf(ctx, ws.principal)
	if err != nil {
		return resource.Caller{}, err
	}
	c.OnBehalfOf = person
	return c, nil
}

// storageDomain is the domain of storage accounts.
func (p *Provider) storageDomain() string { return "core." + p.cfg.Domain }

// blobURL is the address of a blob or prefix.
func (p *Provider) blobURL(account, container, path string) string {
	return "https://" + p.cfg.Authority(account+".blob."+p.storageDomain()) + "/" + container + "/" + escapePath(path)
}

func (p *Provider) parseURI(target, uri string) (location.Location, error) {
	l, err := location.Parse(uri, p.storageDomain())
	if err != nil {
		return l, resource.Invalid(target, "%s.", strings.TrimSuffix(err.Error(), "."))
	}
	return l, nil
}
