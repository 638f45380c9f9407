package identity

import (
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"casemate.dev/resource"
)

// view is an object as the directory API shows it; single adds the context of an answer that is one object.
func (s *Service) view(o *object, single bool) map[string]any {
	v := map[string]any{"id": o.ID, "displayName": o.Name, "createdDateTime": o.Created.UTC().Format(time.RFC3339)}
	set, typ := "", ""
	switch o.Kind {
	case kindUser:
		set, typ = "users", "user"
		v["userPrincipalName"], v["accountEnabled"] = o.UPN, !o.Disabled
		if v["mail"] = any(nil); o.Mail != "" {
			v["mail"] = o.Mail
		}
	case kindGroup:
		set, typ = "groups", "group"
		v["securityEnabled"], v["mailEnabled"] = true, false
	case kindApplication:
		set, typ = "applications", "application"
		v["appId"], v["identifierUris"], v["signInAudience"] = o.App, notNil(o.URIs), "AzureADMyOrg"
		v["passwordCredentials"], v["keyCredentials"] = viewSecrets(o), []any{}
	case kindServicePrincipal, kindManagedIdentity:
		set, typ = "servicePrincipals", "servicePrincipal"
		names := []string{o.App}
		if app := s.dir.Load().applications[o.App]; app != nil {
			names = append(names, app.URIs...)
		}
		v["appId"], v["servicePrincipalNames"], v["accountEnabled"] = o.App, names, !o.Disabled
		v["servicePrincipalType"], v["appOwnerOrganizationId"] = "Application", o.Tenant
		v["alternativeNames"], v["passwordCredentials"], v["keyCredentials"] = []string{}, viewSecrets(o), []any{}
		if o.Kind == kindManagedIdentity {
			explicit := strings.Contains(strings.ToLower(o.ResourceID), "/microsoft.managedidentity/userassignedidentities/")
			v["servicePrincipalType"] = "ManagedIdentity"
			v["alternativeNames"] = []string{map[bool]string{true: "isExplicit=True", false: "isExplicit=False"}[explicit], o.ResourceID}
		}
	}
	v["@odata.type"] = "#microsoft.graph." + typ
	if single {
		v["@odata.context"] = s.graphURL("$metadata#" + set + "/$entity")
	}
	return v
}

func notNil(list []string) []string {
	if list == nil {
		return []string{}
	}
	return list
}

func viewSecret(s secret) map[string]any {
	return map[string]any{"keyId": s.ID, "displayName": s.Name, "hint": s.Hint, "customKeyIdentifier": nil,
		"startDateTime": s.Created.UTC().Format(time.RFC3339), "endDateTime": s.Expires.UTC().Format(time.RFC3339)}
}

func viewSecrets(o *object) []any {
	out := []any{}
	for _, s := range o.Secrets {
		out = append(out, viewSecret(s))
	}
	return out
}

func groupsCollection() collection { return collection{name: "groups", kinds: []kind{kindGroup}} }

func (s *Service) listMembers(w http.ResponseWriter, r *resource.Request) error {
	g, err := s.find(r, groupsCollection(), r.Vars["id"])
	if err != nil {
		return err
	}
	d := s.dir.Load()
	var members []*object
	for _, id := range g.Members {
		if o := d.objects[id]; o != nil {
			members = append(members, o)
		}
	}
	return s.writeList(w, r, "groups/"+g.ID+"/members", members)
}

// addMember reads a reference, {"@odata.id": "https://graph…/v1.0/directoryObjects/{id}"} (OData JSON Format §14).
func (s *Service) addMember(w http.ResponseWriter, r *resource.Request) error {
	g, err := s.find(r, groupsCollection(), r.Vars["id"])
	if err != nil {
		return err
	}
	b, err := readBody(r)
	if err != nil {
		return err
	}
	text, _ := b["@odata.id"].(string)
	ref, err := url.Parse(text)
	if err != nil || text == "" {
		return badRequest("The body must be a reference with '@odata.id'.")
	}
	member := strings.ToLower(ref.Path[strings.LastIndexByte(ref.Path, '/')+1:])
	err = s.update(r.Context(), g.ID, func(d *directory, g *object) error {
		m := d.objects[member]
		switch {
		case m == nil, m.Tenant != g.Tenant, m.principalType() == "":
			return notInDirectory(member)
		case m.ID == g.ID:
			return badRequest("A group cannot be a member of itself.")
		case slices.Contains(g.Members, m.ID):
			return badRequest("One or more added object references already exist for the following modified properties: 'members'.")
		}
		g.Members = append(g.Members, m.ID)
		return nil
	})
	if err != nil {
		return err
	}
	r.Remember("member", member)
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *Service) removeMember(w http.ResponseWriter, r *resource.Request) error {
	g, err := s.find(r, groupsCollection(), r.Vars["id"])
	if err != nil {
		return err
	}
	member := strings.ToLower(r.Vars["member"])
	err = s.update(r.Context(), g.ID, func(_ *directory, g *object) error {
		n := len(g.Members)
		g.Members = slices.DeleteFunc(g.Members, func(m string) bool { return m == member })
		if len(g.Members) == n {
			return notInDirectory(member)
		}
		return nil
	})
	if err != nil {
		return err
	}
	r.Remember("member", member)
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// getByIDs answers the objects that exist among at most 1,000 ids.
func (s *Service) getByIDs(w http.ResponseWriter, r *resource.Request) error {
	b, err := readBody(r)
	if err != nil {
		return err
	}
	ids, _ := b["ids"].([]any)
	if len(ids) > 1000 {
		return badRequest("At most 1000 ids may be asked for at once.")
	}
	found := []map[string]any{}
	for _, v := range ids {
		id, _ := v.(string)
		if o := s.dir.Load().objects[strings.ToLower(id)]; o != nil && o.Tenant == r.Caller.Tenant {
			found = append(found, s.view(o, false))
		}
	}
	return writeJSON(w, http.StatusOK, map[string]any{"@odata.context": s.graphURL("$metadata#directoryObjects"), "value": found})
}

func (s *Service) listTenants(w http.ResponseWriter, _ *resource.Request) error {
	list := []map[string]any{}
	for _, t := range s.dir.Load().tenants {
		list = append(list, map[string]any{"id": t.ID, "displayName": t.Name, "home": t.Home, "createdDateTime": t.Created.UTC().Format(time.RFC3339)})
	}
	slices.SortFunc(list, func(a, b map[string]any) int { return strings.Compare(a["id"].(string), b["id"].(string)) })
	return writeJSON(w, http.StatusOK, map[string]any{"value": list})
}

func (s *Service) createTenant(w http.ResponseWriter, r *resource.Request) error {
	b, err := readBody(r)
	if err != nil {
		return err
	}
	var named object
	if err := b.name(&named); err != nil {
		return err
	}
	if err := b.rest(); err != nil {
		return err
	}
	admin, err := s.CreateTenant(r.Context(), named.Name)
	if err != nil {
		return err
	}
	r.Remember("tenant", admin.TenantID)
	for k, h := range noStore() {
		w.Header()[k] = h
	}
	return writeJSON(w, http.StatusCreated, map[string]any{"id": admin.TenantID, "displayName": named.Name,
		"administrator": map[string]any{"appId": admin.ClientID, "id": admin.ObjectID, "secretText": admin.Secret}})
}
