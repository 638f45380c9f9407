// Package resources is the provider Microsoft.Resources: subscriptions, resource groups, the list of all resources,
// provider metadata, and the discovery documents that clients read before they sign in.
//
// It is for every ARM client. Subscriptions are made by the platform only; resource groups by whoever may. What a list
// shows is what the caller may read, decided item by item by the authorizer joined in the app. Discovery and health say
// nothing about anybody and need no token. Deleting a group deletes what is in it; the operation engine drives that.
// Moving resources and template deployments are not supported yet.
package resources

import (
	"context"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"

	"casemate.dev/resource"
)

// Engine is what the provider needs of control/operation.
type Engine interface {
	Types() []resource.Type
	List(ctx context.Context, typ string, below resource.ID) ([]*resource.Document, error)
	Get(ctx context.Context, id resource.ID) (*resource.Document, error)
}

// Authorizer says what a caller may see; control/rbac, joined in the app.
type Authorizer interface {
	Authorize(c resource.Caller, action string, isData bool, scope resource.ID) (allowed bool, reason string)
	// Holds says whether the caller has any role at the scope or anywhere below it.
	Holds(c resource.Caller, scope resource.ID) bool
}

// Config makes a Provider. All fields are required.
type Config struct {
	Tenant    string
	Authorize Authorizer
	Hosts     Hosts
}

// Hosts are the addresses that discovery tells.
type Hosts struct {
	Management, Login, Graph, Studio    string // https://management.<domain>[:port], no trailing slash
	Vault, Storage, Registry, Inference string // suffixes with port, such as vault.casemate.localhost:8443
}

// Provider declares the types and rows of Microsoft.Resources.
type Provider struct {
	cfg    Config
	engine Engine // set by Attach
}

// New makes the provider; Attach completes it.
func New(cfg Config) *Provider { return &Provider{cfg: cfg} }

// Attach joins the engine, which needs the provider's types first.
func (p *Provider) Attach(e Engine) { p.engine = e }

var (
	versions  = []string{"2025-04-01", "2024-11-01", "2024-07-01", "2024-03-01", "2023-07-01", "2022-12-01", "2022-09-01", "2021-04-01", "2021-01-01", "2020-10-01", "2020-06-01", "2019-11-01", "2019-10-01", "2019-05-01", "2018-05-01", "2016-06-01", "2015-11-01", "2015-01-01"}
	groupName = regexp.MustCompile(`^[-\w._()]{0,89}[-\w_()]$`)
)

const (
	typeSubscription = "Microsoft.Resources/subscriptions"
	typeGroup        = "Microsoft.Resources/subscriptions/resourceGroups"
	readTime         = 30 * time.Second
)

// Types are subscriptions and resource groups.
func (p *Provider) Types() []resource.Type {
	return []resource.Type{
		{Name: typeSubscription, Level: resource.AtSubscriptionRaw, APIVersions: versions, ReadOnly: true, View: viewSubscription, Filter: p.visible},
		{Name: typeGroup, Level: resource.AtSubscriptionRaw, APIVersions: versions, Created: http.StatusCreated, Tracked: true, Async: true,
			NamePattern: groupName, NameRule: "Use 1 to 90 letters, digits, underscores, hyphens, periods and parentheses, without a period at the end", Filter: p.visible},
	}
}

// visible keeps what the caller may see: what it may read, and the subscriptions in which it holds any role.
func (p *Provider) visible(r *resource.Request, docs []*resource.Document) ([]*resource.Document, error) {
	return slices.DeleteFunc(docs, func(d *resource.Document) bool {
		if d.ID.Is(typeSubscription) {
			return !p.cfg.Authorize.Holds(r.Caller, d.ID)
		}
		ok, _ := p.cfg.Authorize.Authorize(r.Caller, d.ID.Type()+"/read", false, d.ID)
		return !ok
	}), nil
}

func viewSubscription(_ context.Context, d *resource.Document) {
	d.Body["subscriptionId"] = d.ID.Name()
	d.Body["state"] = "Enabled"
	d.Body["managedByTenants"] = []any{}
	d.Body["authorizationSource"] = "RoleBased"
	d.Body["subscriptionPolicies"] = map[string]any{"locationPlacementId": "Internal_2014-09-01", "quotaId": "Internal_2014-09-01", "spendingLimit": "Off"}
	d.State = "" // subscriptions have none
}

// Routes are the rows that are not derived from types.
func (p *Provider) Routes() []resource.Route {
	const sub = "/subscriptions/{subscriptionId}"
	open := func(name, pattern, why string, v resource.Versions, audit resource.Category, h resource.Handler) resource.Route {
		return resource.Route{Name: name, Plane: resource.PlaneManagement, Method: http.MethodGet, Pattern: pattern, Versions: v, Open: why,
			Origin: resource.OriginAnywhere, Body: -1, Timeout: readTime, Audit: audit, Handler: h}
	}
	read := func(name, pattern, action, scope string, h resource.Handler) resource.Route {
		return resource.Route{Name: name, Plane: resource.PlaneManagement, Method: http.MethodGet, Pattern: pattern, Versions: resource.OneOf(versions...), Action: action,
			Scope: scope, Origin: resource.OriginAnywhere, Body: -1, Timeout: readTime, Audit: resource.AuditRead, Handler: h}
	}
	return []resource.Route{
		open("Health_Get", "/healthz", "says only that the process serves", resource.Unversioned(), resource.AuditProbe, health),
		open("Metadata_Endpoints", "/metadata/endpoints", "discovery document, the same for everybody", resource.AnyVersion(), resource.AuditProbe, p.endpoints),
		open("Tenants_List", "/tenants", "shows the caller's own tenant only", resource.OneOf(versions...), resource.AuditRead, p.tenants),
		read("Providers_List", sub+"/providers", "Microsoft.Resources/subscriptions/providers/read", sub, p.providers),
		read("Providers_Get", sub+"/providers/{namespace}", "Microsoft.Resources/subscriptions/providers/read", sub, p.providers),
		read("Locations_List", sub+"/locations", "Microsoft.Resources/subscriptions/locations/read", sub, p.locations),
		open("Resources_List", sub+"/resources", "lists only what the caller may read", resource.OneOf(versions...), resource.AuditRead, p.allResources),
		read("Resources_ListByGroup", sub+"/resourceGroups/{resourceGroupName}/resources", "Microsoft.Resources/subscriptions/resourceGroups/resources/read", sub+"/resourceGroups/{resourceGroupName}", p.resources),
		p.register(sub),
	}
}

func (p *Provider) register(sub string) resource.Route {
	return resource.Route{Name: "Providers_Register", Plane: resource.PlaneManagement, Method: http.MethodPost, Pattern: sub + "/providers/{namespace}/register",
		Versions: resource.OneOf(versions...), Action: "Microsoft.Resources/subscriptions/providers/register/action", Scope: sub, Origin: resource.OriginAnywhere,
		Body: 1 << 10, Timeout: readTime, Audit: resource.AuditRead, Handler: p.providers}
}

func health(w http.ResponseWriter, _ *resource.Request) error {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, err := w.Write([]byte("ok\n"))
	return err
}

func (p *Provider) tenants(w http.ResponseWriter, r *resource.Request) error {
	if r.Caller.Anonymous() {
		return resource.Errorf(http.StatusUnauthorized, "AuthenticationFailed", "Authentication failed. Sign in and send a bearer token.")
	}
	t := r.Caller.Tenant
	return writeJSON(w, map[string]any{"value": []any{map[string]any{"id": "/tenants/" + t, "tenantId": t, "displayName": "Casemate", "tenantCategory": "Home"}}})
}

func (p *Provider) locations(w http.ResponseWriter, r *resource.Request) error {
	sub := "/subscriptions/" + r.Vars["subscriptionId"]
	return writeJSON(w, map[string]any{"value": []any{map[string]any{
		"id": sub + "/locations/local", "name": "local", "type": "Region", "displayName": "Local", "regionalDisplayName": "Local",
		"metadata": map[string]any{"regionType": "Physical", "regionCategory": "Recommended"}}}})
}

// endpoints is the discovery document of the Azure CLI, in the object form of api-version 2015-01-01 and the array form of
// 2019-05-01 and newer (CLIENTS.md, section 1.2).
func (p *Provider) endpoints(w http.ResponseWriter, r *resource.Request) error {
	h := p.cfg.Hosts
	if r.Version < "2018" {
		return writeJSON(w, map[string]any{"galleryEndpoint": h.Management + "/", "graphEndpoint": h.Graph + "/", "portalEndpoint": h.Studio + "/",
			"authentication": map[string]any{"loginEndpoint": h.Login + "/adfs", "audiences": []string{h.Management + "/"}}})
	}
	return writeJSON(w, []any{map[string]any{
		"name": "Casemate", "portal": h.Studio, "gallery": h.Management + "/", "graph": h.Graph + "/", "graphAudience": h.Graph + "/",
		"microsoftGraphResourceId": h.Graph + "/", "resourceManager": h.Management + "/", "batch": h.Management + "/", "sqlManagement": h.Management + "/", "media": h.Management + "/",
		"vmImageAliasDoc": h.Management + "/", "activeDirectoryDataLake": h.Management + "/",
		"authentication": map[string]any{"loginEndpoint": h.Login + "/adfs", "audiences": []string{h.Management + "/", h.Management}, "tenant": "common", "identityProvider": "AAD"},
		"suffixes":       map[string]any{"storage": h.Storage, "keyVaultDns": h.Vault, "acrLoginServer": h.Registry, "mhsmDns": "managedhsm." + h.Vault, "sqlServerHostname": "database." + h.Vault},
	}})
}

// providers serves one provider's metadata or all, from the declared types.
func (p *Provider) providers(w http.ResponseWriter, r *resource.Request) error {
	sub, only := r.Vars["subscriptionId"], r.Vars["namespace"]
	byName := map[string][]any{}
	var order []string
	for _, t := range p.engine.Types() {
		ns, typ, _ := strings.Cut(t.Name, "/")
		if byName[ns] == nil {
			order = append(order, ns)
		}
		byName[ns] = append(byName[ns], map[string]any{"resourceType": typ, "apiVersions": t.APIVersions, "locations": []string{"Local"}, "capabilities": "None"})
	}
	slices.Sort(order)
	value := []any{}
	for _, ns := range order {
		if only != "" && !strings.EqualFold(only, ns) {
			continue
		}
		value = append(value, map[string]any{"id": "/subscriptions/" + sub + "/providers/" + ns, "namespace": ns, "registrationState": "Registered", "registrationPolicy": "RegistrationFree", "resourceTypes": byName[ns]})
	}
	if only == "" {
		return writeJSON(w, map[string]any{"value": value})
	}
	if len(value) == 0 {
		return resource.Errorf(http.StatusNotFound, "InvalidResourceNamespace", "The resource namespace '%s' is not known to Casemate. See docs/conformance for what is supported.", only)
	}
	return writeJSON(w, value[0])
}
