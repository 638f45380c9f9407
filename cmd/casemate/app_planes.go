package main

import (
	"context"
	"fmt"

	"casemate.dev/control/operation"
	"casemate.dev/dataplane/blob"
	"casemate.dev/dataplane/vault"
	"casemate.dev/providers/authorization"
	"casemate.dev/providers/containerregistry"
	"casemate.dev/providers/insights"
	"casemate.dev/providers/keyvault"
	"casemate.dev/providers/machinelearning"
	"casemate.dev/providers/managedidentity"
	networkprovider "casemate.dev/providers/network"
	"casemate.dev/providers/resources"
	"casemate.dev/providers/storage"
	"casemate.dev/resource"
)

// parts are the providers on their way into the engine and the gateway.
type parts struct {
	resources     *resources.Provider
	authorization *authorization.Provider
	keyvault      *keyvault.Provider
	storage       *storage.Provider
	registry      *containerregistry.Provider
	network       *networkprovider.Provider
	ml            *machinelearning.Provider

	types     []resource.Type
	routes    []resource.Route
	observers []observed
	loads     []func(context.Context) error // before the documents are loaded
	readies   []func(context.Context) error // when everything is joined, before anything is served
}

type observed struct {
	typ string
	fn  resource.Observer
}

func (p *parts) add(types []resource.Type, routes []resource.Route) {
	p.types = append(p.types, types...)
	p.routes = append(p.routes, routes...)
}

func (p *parts) watch(typ string, fn resource.Observer) {
	p.observers = append(p.observers, observed{typ, fn})
}

func (p *parts) ready(ctx context.Context) error {
	for _, fn := range p.readies {
		if err := fn(ctx); err != nil {
			return err
		}
	}
	return nil
}

// openPlanes builds data planes and providers; order matters only where one is handed to the next.
func (a *App) openPlanes(ctx context.Context, later *joints) (*parts, error) {
	p := &parts{}
	if err := a.openAccess(p); err != nil {
		return nil, err
	}
	if err := a.openVault(p, later); err != nil {
		return nil, err
	}
	if err := a.openBlob(p, later); err != nil {
		return nil, err
	}
	if err := a.openRegistry(p, later); err != nil {
		return nil, err
	}
	if err := a.openNetwork(p, later); err != nil {
		return nil, err
	}
	if err := a.openNodes(ctx); err != nil {
		return nil, err
	}
	if err := a.openMachineLearning(p, later); err != nil {
		return nil, err
	}
	return p, a.serveDNS(p)
}

func (a *App) openAccess(p *parts) error {
	p.resources = resources.New(resources.Config{Tenant: a.identity.HomeTenant(), Authorize: a.rbac, Hosts: resources.Hosts{
		Management: a.addr.url("management"), Login: a.addr.url("login"), Graph: a.addr.url("graph"), Studio: a.addr.url("studio"),
		Vault: a.addr.authority("vault." + a.cfg.Domain), Storage: a.addr.authority("core." + a.cfg.Domain), Registry: a.addr.authority("azurecr." + a.cfg.Domain),
		Inference: a.addr.authority("inference." + a.cfg.Domain)}})
	p.add(p.resources.Types(), p.resources.Routes())
	p.authorization = authorization.New(authorization.Config{Engine: a.rbac, Principals: a.identity, Platform: a.platform})
	p.add(p.authorization.Types(), p.authorization.Routes())
	for typ, fn := range p.authorization.Observers() {
		p.watch(typ, fn)
	}
	p.add(managedidentity.New(a.identity).Types(), insights.Routes(a.audit))
	p.watch(authorization.TypeAssignment, a.assignmentChanged)
	p.routes = append(p.routes, a.identity.Routes()...)
	return nil
}

func (a *App) openVault(p *parts, later *joints) (err error) {
	a.vault, err = vault.New(vault.Config{Store: a.store,
		Handle:     func(ctx context.Context, id string) (vault.Sealer, error) { return a.keys.Handle(ctx, id) },
		Principals: a.identity, Inner: &later.inner, Domain: a.cfg.Domain, Authority: a.addr.authority, Login: a.addr.url("login"), Tenant: a.identity.HomeTenant(),
		Backups: func(ctx context.Context) (vault.Sealer, error) { return a.platformHandle(ctx, keyBackups) },
		Revoked: a.keys.Revoked, Rotated: a.rotated, Logger: a.log})
	if err != nil {
		return err
	}
	later.vault.p.Store(a.vault)
	a.runs = append(a.runs, a.vault.Run)
	if p.keyvault, err = keyvault.New(keyvault.Config{Store: a.store, Keys: a.keys, Plane: a.vault, Tenant: a.identity.HomeTenant(), InUse: later.inUse, Logger: a.log}); err != nil {
		return err
	}
	a.runs = append(a.runs, p.keyvault.Run)
	p.loads = append(p.loads, p.keyvault.Load)
	p.watch("Microsoft.KeyVault/vaults", p.keyvault.Observe)
	p.add(p.keyvault.Types(), append(p.keyvault.Routes(), a.vault.Routes()...))
	return nil
}

func (a *App) openBlob(p *parts, later *joints) (err error) {
	a.blob, err = blob.New(blob.Config{Store: a.store, Depot: a.depot, Keys: a.keys, Resources: &later.resources, Inner: &later.inner, Log: a.log})
	if err != nil {
		return err
	}
	a.runs = append(a.runs, a.blob.Run)
	p.storage, err = storage.New(storage.Config{Store: a.store, Keys: a.keys, Plane: a.blob, Resources: &later.resources, Domain: a.cfg.Domain, Authority: a.addr.authority, InUse: later.inUse})
	if err != nil {
		return err
	}
	p.loads = append(p.loads, p.storage.Load)
	p.add(p.storage.Types(), append(p.storage.Routes(), a.blob.Routes()...))
	return nil
}

// openEngine joins all types, loads what exists, and makes all role assignments effective at once.
func (a *App) openEngine(ctx context.Context, p *parts, later *joints) (err error) {
	a.operation, err = operation.New(operation.Config{Store: a.store, Types: p.types, Identities: a.identity, Authorize: a.rbac,
		Handle:  func(ctx context.Context, id string) (operation.Handle, error) { return a.keys.Handle(ctx, id) },
		BaseURL: a.addr.url("management"), Clock: a.clock(), Logger: a.log})
	if err != nil {
		return err
	}
	later.resources.p.Store(a.operation)
	p.resources.Attach(a.operation)
	p.authorization.Attach(a.operation)
	for _, o := range p.observers {
		a.operation.Watch(o.typ, o.fn)
	}
	for _, load := range p.loads {
		if err := load(ctx); err != nil {
			return err
		}
	}
	if err := p.authorization.Bulk(func() error { return a.operation.Load(ctx) }); err != nil {
		return fmt.Errorf("loading documents: %w", err)
	}
	a.runs = append(a.runs, a.operation.Run)
	p.routes = append(p.routes, a.operation.Routes()...)
	return nil
}
