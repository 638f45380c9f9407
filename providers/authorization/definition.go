package authorization

import (
	"context"
	"net/http"
	"slices"
	"strings"

	"casemate.dev/control/rbac"
	"casemate.dev/resource"
)

// definitionView is what the platform reads of a custom role.
type definitionView struct {
	Properties struct {
		RoleName         string            `json:"roleName"`
		Description      string            `json:"description"`
		Type             string            `json:"type"`
		AssignableScopes []string          `json:"assignableScopes"`
		Permissions      []rbac.Permission `json:"permissions"`
	} `json:"properties"`
}

func roleOf(d *resource.Document) (rbac.Role, error) {
	var v definitionView
	if err := d.Into(&v); err != nil {
		return rbac.Role{}, err
	}
	r := v.Properties
	return rbac.Role{ID: guidOf(d.ID.String()), Name: r.RoleName, Description: r.Description, AssignableScopes: r.AssignableScopes, Permissions: r.Permissions}, nil
}

const (
	maxActions          = 2048
	maxAssignableScopes = 2000
)

func (p *Provider) validateDefinition(_ context.Context, w *resource.Write) error {
	role, err := roleOf(w.New)
	if err != nil {
		return err
	}
	if t := w.New.String("properties.type"); t != "" && !strings.EqualFold(t, "CustomRole") {
		return badRequest("RoleDefinitionTypeInvalid", "properties.type", "Only custom roles can be written: the type must be CustomRole.")
	}
	w.New.Set("properties.type", "CustomRole")
	switch {
	case strings.TrimSpace(role.Name) == "" || len(role.Name) > 128:
		return badRequest("RoleDefinitionNameInvalid", "properties.roleName", "A custom role needs a roleName of at most 128 characters.")
	case len(role.Permissions) == 0:
		return badRequest("MissingActions", "properties.permissions", "A custom role needs at least one permission.")
	case len(role.AssignableScopes) == 0 || len(role.AssignableScopes) > maxAssignableScopes:
		return badRequest("MissingAssignableScopes", "properties.assignableScopes", "A custom role needs 1 to %d assignable scopes.", maxAssignableScopes)
	}
	for _, b := range role.Permissions {
		if err := checkPermission(b); err != nil {
			return err
		}
	}
	scopes := role.AssignableScopes
	if w.Old != nil {
		before, err := roleOf(w.Old)
		if err != nil {
			return err
		}
		scopes = append(slices.Clone(scopes), before.AssignableScopes...)
	}
	if err := p.checkAuthor(w.Caller, scopes); err != nil {
		return err
	}
	return p.reserve(w.New.ID, role.Name)
}

func checkPermission(b rbac.Permission) error {
	if b.Condition != "" {
		return badRequest("RoleDefinitionConditionNotSupported", "properties.permissions", "Conditions in role definitions are not supported yet. Leave 'condition' out.")
	}
	n := 0
	for _, list := range [][]string{b.Actions, b.NotActions, b.DataActions, b.NotDataActions} {
		n += len(list)
		for _, a := range list {
			if a == "" || len(a) > 512 || strings.ContainsFunc(a, func(r rune) bool { return r <= ' ' || r > '~' }) || (a != "*" && !strings.Contains(a, "/")) {
				return badRequest("InvalidActionOrNotAction", "properties.permissions", "'%s' does not match any of the actions supported by the providers.", a)
			}
		}
	}
	if n > maxActions {
		return badRequest("RoleDefinitionTooLarge", "properties.permissions", "A permission may name %d actions at most.", maxActions)
	}
	return nil
}

// checkAuthor demands that the caller may write roles at every assignable scope, the ones that the role has so far
// included: whoever changes a role changes what it grants at all of them.
func (p *Provider) checkAuthor(c resource.Caller, scopes []string) error {
	for _, s := range scopes {
		scope, err := resource.ParseID(s)
		if err != nil {
			return badRequest("InvalidAssignableScope", "properties.assignableScopes", "The assignable scope '%s' is not a scope.", s)
		}
		if c.Kind == resource.KindPlatform {
			continue
		}
		if d := p.cfg.Engine.Check(c, TypeDefinition+"/write", false, scope); !d.Allowed {
			return resource.Forbidden(c, TypeDefinition+"/write", scope.String())
		}
	}
	return nil
}

// reserve gives the GUID of a role to one document for as long as the process runs or the document exists: a second
// definition under the same GUID, at a scope where somebody may write roles, would change what the first one grants.
func (p *Provider) reserve(id resource.ID, name string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if owner, ok := p.owners[guidOf(id.String())]; ok && owner != id.Key() {
		return resource.Errorf(http.StatusConflict, "RoleDefinitionWithSameIdExists", "A role definition with the ID '%s' exists already at another scope, or is built in.", id.Name())
	}
	for _, r := range p.cfg.Engine.Roles() {
		if strings.EqualFold(r.Name, name) && guidOf(r.ID) != guidOf(id.String()) {
			return resource.Errorf(http.StatusConflict, "RoleDefinitionWithSameNameExists", "A role definition with the name '%s' exists already.", name)
		}
	}
	p.owners[guidOf(id.String())] = id.Key()
	return nil
}

func (p *Provider) mayRemoveDefinition(ctx context.Context, d *resource.Document) error {
	docs, err := p.resources.List(ctx, TypeAssignment, resource.Tenant)
	if err != nil {
		return err
	}
	for _, a := range docs {
		if guidOf(a.String("properties.roleDefinitionId")) == guidOf(d.ID.String()) {
			return badRequest("RoleDefinitionHasAssignments", "", "There are existing role assignments referencing the role '%s', such as '%s'. Delete them first.", d.String("properties.roleName"), a.ID)
		}
	}
	return nil
}

// observeDefinition defines a custom role, or no longer. A document whose GUID belongs to another is passed over.
func (p *Provider) observeDefinition(_ context.Context, old, now *resource.Document) {
	d := now
	gone := now == nil || now.State == resource.StateDeleting
	if now == nil {
		d = old
	}
	guid := guidOf(d.ID.String())
	p.mu.Lock()
	defer p.mu.Unlock()
	if owner, ok := p.owners[guid]; ok && owner != d.ID.Key() {
		return
	}
	role, err := roleOf(d)
	if gone || err != nil {
		p.cfg.Engine.RemoveRole(guid)
		if now == nil {
			delete(p.owners, guid)
		}
		return
	}
	p.owners[guid] = d.ID.Key()
	p.cfg.Engine.SetRoles(role)
}

// definitionDocument is a role as a document of a list at a scope; built-in roles have no other.
func definitionDocument(r rbac.Role, scope resource.ID) *resource.Document {
	at := resource.Tenant
	if sub := scope.Subscription(); sub != "" {
		at, _ = resource.ParseID("/subscriptions/" + sub)
	}
	id, _ := at.Extension(TypeDefinition, r.ID)
	typ := "CustomRole"
	if r.BuiltIn {
		typ = "BuiltInRole"
	}
	permissions := []any{}
	for _, b := range r.Permissions {
		permissions = append(permissions, viewPermission(b))
	}
	scopes := []any{}
	for _, s := range r.AssignableScopes {
		scopes = append(scopes, s)
	}
	return &resource.Document{ID: id, Body: map[string]any{"properties": map[string]any{
		"roleName": r.Name, "type": typ, "description": r.Description, "assignableScopes": scopes, "permissions": permissions}}}
}

func viewPermission(b rbac.Permission) map[string]any {
	list := func(s []string) []any {
		out := []any{}
		for _, a := range s {
			out = append(out, a)
		}
		return out
	}
	v := map[string]any{"actions": list(b.Actions), "notActions": list(b.NotActions), "dataActions": list(b.DataActions), "notDataActions": list(b.NotDataActions)}
	if b.Condition != "" {
		v["condition"], v["conditionVersion"] = b.Condition, "2.0"
	}
	return v
}

// getDefinition reads a built-in or custom role below any scope: roles belong to the tenant, and clients write any scope
// before them.
func (p *Provider) getDefinition(w http.ResponseWriter, r *resource.Request) error {
	id, err := resource.ParseID(r.Scope)
	if err != nil {
		return err
	}
	role, ok := p.cfg.Engine.Role(id.Name())
	if !ok {
		return resource.Errorf(http.StatusNotFound, "RoleDefinitionDoesNotExist", "The specified role definition with ID '%s' does not exist.", id.Name())
	}
	d, err := p.document(r.Context(), role, id.Parent())
	if err != nil {
		return err
	}
	return writeJSON(w, d.Wire())
}

func (p *Provider) document(ctx context.Context, role rbac.Role, scope resource.ID) (*resource.Document, error) {
	p.mu.Lock()
	owner := p.owners[guidOf(role.ID)]
	p.mu.Unlock()
	if owner == "" {
		return definitionDocument(role, scope), nil
	}
	id, err := resource.ParseID(owner)
	if err != nil {
		return nil, err
	}
	return p.resources.Get(ctx, id)
}

// filterDefinitions lists the roles that can be assigned at a scope or below it, built-in ones first.
func (p *Provider) filterDefinitions(r *resource.Request, _ []*resource.Document) ([]*resource.Document, error) {
	scope, err := resource.ParseID(r.Scope)
	if err != nil {
		return nil, err
	}
	f, err := parseFilter(r.URL.Query().Get("$filter"))
	if err != nil {
		return nil, err
	}
	out := []*resource.Document{}
	for _, role := range p.cfg.Engine.Roles() {
		typ := map[bool]string{true: "BuiltInRole", false: "CustomRole"}[role.BuiltIn]
		if (f.roleName != "" && !strings.EqualFold(f.roleName, role.Name)) || (f.roleType != "" && !strings.EqualFold(f.roleType, typ)) || !assignable(role, scope, f.atScope) {
			continue
		}
		d, err := p.document(r.Context(), role, scope)
		if resource.StatusOf(err) == http.StatusNotFound {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, err
		}
		out = append(out, d)
	}
	return out, nil
}

func assignable(role rbac.Role, scope resource.ID, onlyHere bool) bool {
	return slices.ContainsFunc(role.AssignableScopes, func(s string) bool {
		at, err := resource.ParseID(s)
		return err == nil && (at.Contains(scope) || (!onlyHere && scope.Contains(at)))
	})
}
