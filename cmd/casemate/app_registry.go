package main

import (
	"casemate.dev/dataplane/registry"
	"casemate.dev/providers/containerregistry"
	"casemate.dev/resource"
)

// openRegistry builds the registry plane.
func (a *App) openRegistry(p *parts, later *joints) (err error) {
	a.registry, err = registry.New(registry.Config{Store: a.store, Depot: a.depot, Keys: a.keys, Principals: a.identity, Inner: &later.inner,
		Audience: a.identity.Audience(resource.PlaneRegistry), SignInAudience: a.addr.url("management") + "/", Domain: a.cfg.Domain, Log: a.log})
	if err != nil {
		return err
	}
	a.runs = append(a.runs, a.registry.Run)
	p.registry, err = containerregistry.New(containerregistry.Config{Store: a.store, Keys: a.keys, Plane: a.registry, Resources: &later.resources,
		Domain: a.cfg.Domain, Authority: a.addr.authority, InUse: later.inUse})
	if err != nil {
		return err
	}
	p.loads = append(p.loads, p.registry.Load)
	p.add(p.registry.Types(), append(p.registry.Routes(), a.registry.Routes()...))
	return nil
}
