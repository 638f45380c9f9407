package authorization

import (
	"context"
	"net/http"
	"regexp"
	"sync"
	"time"

	"casemate.dev/control/rbac"
	"casemate.dev/resource"
)

// Type names.
const (
	TypeAssignment = "Microsoft.Authorization/roleAssignments"
	TypeDefinition = "Microsoft.Authorization/roleDefinitions"
	TypeLock       = "Microsoft.Authorization/locks"
)

// Principals is the directory: the type of a principal as role assignments spell it, false when it does not exist.
type Principals interface {
	PrincipalType(objectID string) (string, bool)
}

// Config makes a Provider. All fields are required.
type Config struct {
	Engine     *rbac.Engine
	Principals Principals
	Platform   resource.Caller // acts when assignments of a removed principal are deleted
}

// Provider declares the types and rows of Microsoft.Authorization. Its methods are safe for concurrent use.
type Provider struct {
	cfg       Config
	resources resource.Resources // set by Attach
	locks     lockTable

	mu       sync.Mutex        // guards the fields below
	pairs    map[string]string // principal, role and scope of each assignment → its ID
	keys     map[string]string // lower-case ID of each assignment → its entry in pairs
	owners   map[string]string // GUID of each role definition → lower-case ID of its document; built-in ones have ""
	gathered *[]rbac.Assignment
}

// New makes the provider; Attach completes it.
func New(cfg Config) *Provider {
	p := &Provider{cfg: cfg, pairs: map[string]string{}, keys: map[string]string{}, owners: map[string]string{}}
	for _, r := range cfg.Engine.Roles() {
		p.owners[guidOf(r.ID)] = ""
	}
	return p
}

// Attach joins the engine of control-plane documents, which needs the provider's types first.
func (p *Provider) Attach(r resource.Resources) { p.resources = r }

// Observers are to be registered with that engine before it loads its documents.
func (p *Provider) Observers() map[string]resource.Observer {
	return map[string]resource.Observer{
		TypeAssignment: p.observeAssignment,
		TypeDefinition: p.observeDefinition,
		TypeLock:       p.locks.observe,
	}
}

// Bulk runs load, during which documents are observed, and makes all assignments effective together at its end.
func (p *Provider) Bulk(load func() error) error {
	var list []rbac.Assignment
	p.mu.Lock()
	p.gathered = &list
	p.mu.Unlock()
	err := load()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.gathered = nil
	p.cfg.Engine.SetAssignments(list...)
	return err
}

var guidPattern = regexp.MustCompile(`^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$`)

// Types are the resource types.
func (p *Provider) Types() []resource.Type {
	return []resource.Type{
		{
			Name: TypeAssignment, Level: resource.AtAnyScope, APIVersions: []string{"2022-04-01", "2020-10-01-preview", "2020-04-01-preview", "2018-01-01-preview", "2015-07-01"},
			NamePattern: guidPattern, NameRule: "Use a GUID", Created: http.StatusCreated, NotPatchable: true,
			Validate: p.validateAssignment, View: viewAssignment, Filter: p.filterAssignments,
		},
		{
			Name: TypeDefinition, Level: resource.AtAnyScope, APIVersions: []string{"2022-04-01", "2018-01-01-preview", "2015-07-01"},
			NamePattern: guidPattern, NameRule: "Use a GUID", Created: http.StatusCreated, NotPatchable: true,
			Validate: p.validateDefinition, MayRemove: p.mayRemoveDefinition, Filter: p.filterDefinitions,
		},
		{
			Name: TypeLock, Level: resource.AtAnyScope, APIVersions: []string{"2020-05-01", "2017-04-01", "2016-09-01", "2015-01-01"},
			Created: http.StatusCreated, NotPatchable: true, Validate: validateLock,
		},
	}
}

// Routes are the rows that no type derives. A built-in role is no document: the row that reads it has a condition that all
// requests of its version rule meet, so that it comes before the one derived from the type.
func (p *Provider) Routes() []resource.Route {
	row := func(name, path, action, scope string, h resource.Handler) resource.Route {
		return resource.Route{Name: name, Plane: resource.PlaneManagement, Method: http.MethodGet, Pattern: "/{scope...}/providers/Microsoft.Authorization/" + path,
			Versions: resource.OneOf("2022-04-01", "2018-07-01-preview", "2018-01-01-preview", "2015-07-01"), Action: "Microsoft.Authorization/" + action + "/read", Scope: scope,
			Origin: resource.OriginAnywhere, Body: -1, Timeout: 30 * time.Second, Audit: resource.AuditRead, Handler: h}
	}
	definition := row("RoleDefinitions_GetAny", "roleDefinitions/{roleDefinitionId}", "roleDefinitions", "{scope}/providers/Microsoft.Authorization/roleDefinitions/{roleDefinitionId}", p.getDefinition)
	definition.Query = []string{"api-version"}
	return []resource.Route{
		definition,
		row("Permissions_List", "permissions", "permissions", "{scope}", p.listPermissions),
		row("DenyAssignments_List", "denyAssignments", "denyAssignments", "{scope}", listDenyAssignments),
	}
}

// RemovePrincipal deletes all role assignments of a principal that is going away.
func (p *Provider) RemovePrincipal(ctx context.Context, objectID string) error {
	docs, err := p.resources.List(ctx, TypeAssignment, resource.Tenant)
	if err != nil {
		return err
	}
	for _, d := range docs {
		if !sameGUID(d.String("properties.principalId"), objectID) {
			continue
		}
		if err := p.resources.Delete(ctx, p.cfg.Platform, d.ID); err != nil && resource.StatusOf(err) != http.StatusNotFound {
			return err
		}
	}
	return nil
}

func (p *Provider) listPermissions(w http.ResponseWriter, r *resource.Request) error {
	scope, err := resource.ParseID(r.Scope)
	if err != nil {
		return err
	}
	value := []any{}
	for _, b := range p.cfg.Engine.Permissions(r.Caller, scope) {
		value = append(value, viewPermission(b))
	}
	return writeJSON(w, map[string]any{"value": value})
}

// listDenyAssignments is always empty: customers cannot make any, and the platform makes none.
func listDenyAssignments(w http.ResponseWriter, _ *resource.Request) error {
	return writeJSON(w, map[string]any{"value": []any{}})
}
