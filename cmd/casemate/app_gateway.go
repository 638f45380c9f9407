package main

import (
	"context"
	"errors"
	"io/fs"
	"net/http"
	"strings"

	"casemate.dev/gateway"
	"casemate.dev/resource"
)

// certificateNames are the host names that the main certificate covers.
func certificateNames() []string {
	return []string{"management", "login", "graph", "studio", "api", "monitor", "*.vault", "*.blob.core", "*.dfs.core", "*.file.core", "*.azurecr", "*.workspace", "*.inference"}
}

// openGateway joins all rows.
func (a *App) openGateway(p *parts, later *joints) (err error) {
	bearer := func(plane resource.Plane) func(r *resource.Request) (resource.Caller, error) {
		audience := a.identity.Audience(plane)
		return func(r *resource.Request) (resource.Caller, error) {
			token, ok, err := bearerToken(r.Header)
			if err != nil || !ok {
				return resource.Caller{}, err
			}
			return a.identity.Verify(r.Context(), token, audience)
		}
	}
	challenge := func(audience string) func(*resource.Request) string {
		return func(*resource.Request) string { return a.identity.Challenge(audience) }
	}
	planes := map[resource.Plane]gateway.Plane{
		resource.PlaneManagement: {Hosts: []string{"management"}, Authenticate: bearer(resource.PlaneManagement), Challenge: challenge(a.addr.url("management") + "/")},
		resource.PlaneLogin:      {Hosts: []string{"login"}},
		resource.PlaneGraph:      {Hosts: []string{"graph"}, Authenticate: bearer(resource.PlaneGraph), Challenge: challenge(a.addr.url("graph") + "/")},
		resource.PlaneVault:      {Hosts: []string{"*.vault"}, Resolve: a.vault.ResourceOf, Authenticate: bearer(resource.PlaneVault), Challenge: a.vault.Challenge},
		resource.PlaneBlob: {Hosts: []string{"*.blob.core"}, Resolve: p.storage.ResourceOf, Authenticate: bearer(resource.PlaneBlob),
			Challenge: challenge("https://storage.azure.com"), RawNames: true, VersionHeader: "x-ms-version"},
		resource.PlaneRegistry: {Hosts: []string{"*.azurecr"}, Resolve: p.registry.ResourceOf, Authenticate: a.registry.Authenticate, Challenge: a.registry.Challenge},
		resource.PlaneWorkspace: {Hosts: []string{"*.workspace"}, Authenticate: bearer(resource.PlaneWorkspace), Challenge: challenge("https://ml.azure.com"),
			Resolve: func(label string) (string, bool) {
				id, ok := p.ml.WorkspaceOf(context.Background(), label)
				return id.String(), ok
			}},
		resource.PlaneScoring: {Hosts: []string{"*.*.inference"}, Resolve: func(label string) (string, bool) {
			name, region, _ := strings.Cut(label, ".")
			id, ok := p.ml.EndpointOf(context.Background(), name, region)
			return id.String(), ok
		}},
		resource.PlaneNode: {},
	}
	for name, plane := range planes {
		plane.WriteError = gateway.Dialect(name)
		planes[name] = plane
	}
	a.gateway, err = gateway.New(gateway.Config{Domain: a.cfg.Domain, Planes: planes, Routes: p.routes, Authorize: a.rbac, Record: a.audit,
		Documents: a.operation, Govern: []gateway.Governor{p.authorization.Govern}, Clock: a.clock(), Logger: a.log})
	if err != nil {
		return err
	}
	later.inner.p.Store(a.gateway)
	a.removePrincipal = p.authorization.RemovePrincipal
	return nil
}

// bearerToken reads RFC 6750's header. Tokens in the query are never accepted (they land in logs).
func bearerToken(h http.Header) (token string, ok bool, err error) {
	values := h.Values("Authorization")
	if len(values) == 0 {
		return "", false, nil
	}
	scheme, token, found := strings.Cut(values[0], " ")
	if len(values) != 1 || !found || !strings.EqualFold(scheme, "Bearer") || strings.TrimSpace(token) == "" {
		return "", false, resource.Errorf(http.StatusUnauthorized, "AuthenticationFailed",
			"The Authorization header holds no bearer token. Shared keys and shared access signatures are not supported; sign in and send a bearer token.")
	}
	return strings.TrimSpace(token), true, nil
}

// firstStart makes what an empty platform needs: a subscription, and the administrator's role over everything.
func (a *App) firstStart(ctx context.Context) error {
	env, err := readEnv(a.path("client/env"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // after the first start, whoever keeps the secret elsewhere may remove the file
		return err
	}
	subs, err := a.operation.List(ctx, "Microsoft.Resources/subscriptions", resource.Tenant)
	if err != nil {
		return err
	}
	id := ""
	if len(subs) > 0 {
		id = subs[0].ID.Name()
	} else if id, err = a.makeSubscription(ctx, env["CASEMATE_OBJECT_ID"]); err != nil {
		return err
	}
	return a.writeEnv(map[string]string{"AZURE_SUBSCRIPTION_ID": id})
}
