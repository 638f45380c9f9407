package identity

import (
	"context"
	"net/http"
	"strings"
	"time"

	"casemate.dev/resource"
)

// ManagedIdentity is what an ARM document shows of its identity.
type ManagedIdentity struct {
	PrincipalID, ClientID, TenantID string
}

// EnsureManagedIdentity makes the managed identity of a resource, or finds it: of a userAssignedIdentities resource, or
// the system-assigned one of any other. name is its display name.
func (s *Service) EnsureManagedIdentity(ctx context.Context, resourceID resource.ID, name string) (ManagedIdentity, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.dir.Load()
	o := d.resources[resourceID.Key()]
	if o == nil {
		o = &object{ID: newGUID(), Tenant: d.home, Kind: kindManagedIdentity, Name: name, App: newGUID(),
			ResourceID: resourceID.String(), Created: s.cfg.Clock().UTC()}
		if err := s.changeLocked(ctx, change{put: []*object{o}}); err != nil {
			return ManagedIdentity{}, err
		}
	}
	return ManagedIdentity{o.ID, o.App, o.Tenant}, nil
}

// RemoveManagedIdentity deletes the managed identity of a resource with all its tokens; nothing there is no error.
func (s *Service) RemoveManagedIdentity(ctx context.Context, resourceID resource.ID) error {
	o := s.dir.Load().resources[resourceID.Key()]
	if o == nil {
		return nil
	}
	return s.remove(ctx, o.ID)
}

// FindManagedIdentity returns the managed identity of a resource.
func (s *Service) FindManagedIdentity(resourceID resource.ID) (ManagedIdentity, bool) {
	o := s.dir.Load().resources[resourceID.Key()]
	if o == nil {
		return ManagedIdentity{}, false
	}
	return ManagedIdentity{o.ID, o.App, o.Tenant}, true
}

// CallerOf is the caller for acting as a principal inside the process. It refuses principals of other tenants, disabled
// ones, groups and applications.
func (s *Service) CallerOf(_ context.Context, principalID string) (resource.Caller, error) {
	d := s.dir.Load()
	o := d.objects[strings.ToLower(principalID)]
	switch {
	case o == nil, o.Tenant != d.home, o.Kind == kindGroup, o.Kind == kindApplication:
		return resource.Caller{}, resource.Errorf(http.StatusBadRequest, "PrincipalNotFound", "Principal '%s' does not exist in the directory '%s'.", principalID, d.home)
	case o.Disabled:
		return resource.Caller{}, resource.Errorf(http.StatusForbidden, "PrincipalDisabled", "Principal '%s' is disabled.", principalID)
	}
	return d.caller(o), nil
}

// PrincipalType is the type of a principal of the home tenant as role assignments spell it: User, Group or
// ServicePrincipal. false: it does not exist, or can hold no role.
func (s *Service) PrincipalType(principalID string) (string, bool) {
	d := s.dir.Load()
	o := d.objects[strings.ToLower(principalID)]
	if o == nil || o.Tenant != d.home || o.principalType() == "" {
		return "", false
	}
	return o.principalType(), true
}

// Groups lists the object ids of all groups that a principal is in, nested ones included.
func (s *Service) Groups(principalID string) []string {
	return append([]string(nil), s.dir.Load().groups[strings.ToLower(principalID)]...)
}

// DisplayName is the name of a directory object, "" when there is none.
func (s *Service) DisplayName(objectID string) string {
	if o := s.dir.Load().objects[strings.ToLower(objectID)]; o != nil {
		return o.Name
	}
	return ""
}

// newApplication makes an application and its service principal.
func newApplication(tenant, name string, now time.Time) (app, sp *object) {
	appID := newGUID()
	app = &object{ID: newGUID(), Tenant: tenant, Kind: kindApplication, Name: name, App: appID, Created: now}
	sp = &object{ID: newGUID(), Tenant: tenant, Kind: kindServicePrincipal, Name: name, App: appID, Created: now}
	return app, sp
}

// update changes one object durably; fn gets a copy, and refuses with an error.
func (s *Service) update(ctx context.Context, id string, fn func(d *directory, o *object) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.dir.Load()
	o := d.objects[id]
	if o == nil {
		return notInDirectory(id)
	}
	c := o.clone()
	if err := fn(d, c); err != nil {
		return err
	}
	return s.changeLocked(ctx, change{put: []*object{c}})
}

// EnsureSystemAssigned makes the system-assigned identity of a resource, as the operation engine asks.
func (s *Service) EnsureSystemAssigned(ctx context.Context, id resource.ID) (principalID, tenantID string, err error) {
	mi, err := s.EnsureManagedIdentity(ctx, id, id.Name())
	return mi.PrincipalID, mi.TenantID, err
}

// RemoveSystemAssigned removes the system-assigned identity of a resource.
func (s *Service) RemoveSystemAssigned(ctx context.Context, id resource.ID) error {
	return s.RemoveManagedIdentity(ctx, id)
}
