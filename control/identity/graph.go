package identity

import (
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"casemate.dev/resource"
)

// collection is one entity set of the directory API.
type collection struct {
	name  string
	kinds []kind
	// create and patch apply a request's body to a new object or to a copy of an old one.
	create func(s *Service, d *directory, o *object, b body) error
	patch  func(o *object, b body) error
}

func collections() []collection {
	return []collection{
		{"users", []kind{kindUser}, createUser, patchUser},
		{"groups", []kind{kindGroup}, createGroup, patchGroup},
		{"applications", []kind{kindApplication}, createApplication, patchApplication},
		{"servicePrincipals", []kind{kindServicePrincipal, kindManagedIdentity}, createServicePrincipal, patchServicePrincipal},
	}
}

// directoryAction names the permission for a part of the directory. It lies in Microsoft.Authorization because whoever
// may add a secret or a group member may become anybody: Contributor, which may not grant access, must not have it.
func directoryAction(what string) string { return "Microsoft.Authorization/directory/" + what }

// graphRoutes are the rows of the directory API, in the shape of Microsoft Graph 1.0. Their scope is the tenant.
func (s *Service) graphRoutes() []resource.Route {
	var rows []resource.Route
	add := func(name, method, pattern, action string, h resource.Handler) {
		row := resource.Route{Name: name, Plane: resource.PlaneGraph, Method: method, Pattern: "/v1.0/" + pattern, Versions: resource.Unversioned(),
			Action: directoryAction(action), Scope: "/", Origin: resource.OriginAnywhere, Body: -1, Timeout: 30 * time.Second, Audit: resource.AuditRead, Handler: h}
		if method != http.MethodGet {
			row.Audit, row.Body = resource.AuditWrite, 1<<20
		}
		if method == http.MethodDelete {
			row.Body = 64 << 10
		}
		rows = append(rows, row)
	}
	const get, post, patch, del = http.MethodGet, http.MethodPost, http.MethodPatch, http.MethodDelete
	for _, c := range collections() {
		add(c.name+"_List", get, c.name, c.name+"/read", s.graphList(c))
		add(c.name+"_Create", post, c.name, c.name+"/write", s.graphCreate(c))
		add(c.name+"_Get", get, c.name+"/{id}", c.name+"/read", s.graphGet(c))
		add(c.name+"_Update", patch, c.name+"/{id}", c.name+"/write", s.graphUpdate(c))
		add(c.name+"_Delete", del, c.name+"/{id}", c.name+"/delete", s.graphDelete(c))
		if c.name == "applications" || c.name == "servicePrincipals" {
			add(c.name+"_AddPassword", post, c.name+"/{id}/addPassword", c.name+"/credentials/write", s.addPassword(c))
			add(c.name+"_RemovePassword", post, c.name+"/{id}/removePassword", c.name+"/credentials/delete", s.removePassword(c))
		}
	}
	add("groups_ListMembers", get, "groups/{id}/members", "groups/read", s.listMembers)
	add("groups_AddMember", post, "groups/{id}/members/$ref", "groups/members/write", s.addMember)
	add("groups_RemoveMember", del, "groups/{id}/members/{member}/$ref", "groups/members/delete", s.removeMember)
	add("directoryObjects_GetByIds", post, "directoryObjects/getByIds", "directoryObjects/read", s.getByIDs) // any kind of object: users/read must not do
	add("tenants_List", get, "tenants", "tenants/read", s.listTenants)
	add("tenants_Create", post, "tenants", "tenants/write", s.createTenant)
	return append(rows, resource.Route{Name: "me_Get", Plane: resource.PlaneGraph, Method: get, Pattern: "/v1.0/me", Versions: resource.Unversioned(),
		Open: "everybody who is authenticated may read who they are", Origin: resource.OriginAnywhere, Body: -1, Timeout: 30 * time.Second,
		Audit: resource.AuditRead, Handler: s.me})
}

func notInDirectory(id string) *resource.Error {
	return resource.Errorf(http.StatusNotFound, "Request_ResourceNotFound", "Resource '%s' does not exist or one of its queried reference-property objects are not present.", clip(id))
}

func badRequest(format string, args ...any) *resource.Error {
	return resource.Errorf(http.StatusBadRequest, "Request_BadRequest", format, args...)
}

// find looks an object up by id, users also by userPrincipalName, within the caller's tenant.
func (s *Service) find(r *resource.Request, c collection, id string) (*object, error) {
	d := s.dir.Load()
	o := d.objects[strings.ToLower(id)]
	if o == nil && c.name == "users" {
		o = d.upns[strings.ToLower(id)]
	}
	if o == nil || o.Tenant != r.Caller.Tenant || !slices.Contains(c.kinds, o.Kind) {
		return nil, notInDirectory(id)
	}
	return o, nil
}

func (s *Service) me(w http.ResponseWriter, r *resource.Request) error {
	o := s.dir.Load().objects[r.Caller.Object]
	if r.Caller.Anonymous() || o == nil {
		return unauthenticated("Access token is empty.")
	}
	return writeJSON(w, http.StatusOK, s.view(o, true))
}

func (s *Service) graphGet(c collection) resource.Handler {
	return func(w http.ResponseWriter, r *resource.Request) error {
		o, err := s.find(r, c, r.Vars["id"])
		if err != nil {
			return err
		}
		return writeJSON(w, http.StatusOK, s.view(o, true))
	}
}

// Page sizes of lists, as Graph has them.
const (
	defaultPage = 100
	maxPage     = 999
)

func (s *Service) graphList(c collection) resource.Handler {
	return func(w http.ResponseWriter, r *resource.Request) error {
		var objects []*object
		for _, o := range s.dir.Load().objects {
			if o.Tenant == r.Caller.Tenant && slices.Contains(c.kinds, o.Kind) {
				objects = append(objects, o)
			}
		}
		return s.writeList(w, r, c.name, objects)
	}
}

// writeList filters, pages in order of id, and writes.
func (s *Service) writeList(w http.ResponseWriter, r *resource.Request, path string, objects []*object) error {
	q := r.URL.Query()
	match := func(map[string]any) bool { return true }
	if text := q.Get("$filter"); text != "" {
		f, err := parseFilter(text)
		if err != nil {
			return resource.Errorf(http.StatusBadRequest, "Request_UnsupportedQuery", "Unsupported query: %s.", err)
		}
		match = f
	}
	top := defaultPage
	if text := q.Get("$top"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > maxPage {
			return badRequest("Invalid page size specified: '%s'. Must be between 1 and %d inclusive.", clip(text), maxPage)
		}
		top = n
	}
	slices.SortFunc(objects, func(a, b *object) int { return strings.Compare(a.ID, b.ID) })
	after, page, more := q.Get("$skiptoken"), []map[string]any{}, false
	for _, o := range objects {
		v := s.view(o, false)
		if o.ID <= after || !match(v) {
			continue
		}
		if more = len(page) == top; more {
			break
		}
		page = append(page, v)
	}
	answer := map[string]any{"@odata.context": s.graphURL("$metadata#" + path), "value": page}
	if more {
		q.Set("$skiptoken", page[len(page)-1]["id"].(string))
		answer["@odata.nextLink"] = s.graphURL(path) + "?" + q.Encode()
	}
	return writeJSON(w, http.StatusOK, answer)
}

func (s *Service) graphURL(path string) string {
	u := url.URL{Scheme: "https", Host: s.cfg.Authority("graph." + s.cfg.Domain), Path: "/v1.0/"}
	return u.String() + path
}

func (s *Service) graphCreate(c collection) resource.Handler {
	return func(w http.ResponseWriter, r *resource.Request) error {
		b, err := readBody(r)
		if err != nil {
			return err
		}
		o := &object{ID: newGUID(), Tenant: r.Caller.Tenant, Created: s.cfg.Clock().UTC(), Kind: c.kinds[0]}
		if err := s.create(r, c, o, b); err != nil {
			return err
		}
		r.Remember("created", o.ID)
		return writeJSON(w, http.StatusCreated, s.view(o, true))
	}
}

func (s *Service) create(r *resource.Request, c collection, o *object, b body) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := c.create(s, s.dir.Load(), o, b); err != nil {
		return err
	}
	if err := b.rest(); err != nil {
		return err
	}
	return s.changeLocked(r.Context(), change{put: []*object{o}})
}

func (s *Service) graphUpdate(c collection) resource.Handler {
	return func(w http.ResponseWriter, r *resource.Request) error {
		o, err := s.find(r, c, r.Vars["id"])
		if err != nil {
			return err
		}
		b, err := readBody(r)
		if err != nil {
			return err
		}
		err = s.update(r.Context(), o.ID, func(_ *directory, o *object) error {
			if o.Kind == kindManagedIdentity {
				return badRequest("A managed identity is changed through the resource that it belongs to: %s.", o.ResourceID)
			}
			if err := c.patch(o, b); err != nil {
				return err
			}
			return b.rest()
		})
		if err != nil {
			return err
		}
		w.WriteHeader(http.StatusNoContent)
		return nil
	}
}

func (s *Service) graphDelete(c collection) resource.Handler {
	return func(w http.ResponseWriter, r *resource.Request) error {
		o, err := s.find(r, c, r.Vars["id"])
		if err != nil {
			return err
		}
		if o.Kind == kindManagedIdentity {
			return badRequest("A managed identity is deleted through the resource that it belongs to: %s.", o.ResourceID)
		}
		ids := []string{o.ID}
		if sp := s.dir.Load().principals[o.App]; o.Kind == kindApplication && sp != nil {
			ids = append(ids, sp.ID)
		}
		if err := s.remove(r.Context(), ids...); err != nil {
			return err
		}
		w.WriteHeader(http.StatusNoContent)
		return nil
	}
}
