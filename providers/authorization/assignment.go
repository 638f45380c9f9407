package authorization

import (
	"context"
	"net/http"
	"strings"

	"casemate.dev/control/rbac"
	"casemate.dev/resource"
)

// assignmentView is what the platform reads of a role assignment.
type assignmentView struct {
	Properties struct {
		RoleDefinitionID string  `json:"roleDefinitionId"`
		PrincipalID      string  `json:"principalId"`
		PrincipalType    string  `json:"principalType"`
		Condition        *string `json:"condition"`
		DelegatedID      *string `json:"delegatedManagedIdentityResourceId"`
	} `json:"properties"`
}

// guidOf is the last segment in lower case: how roles are known.
func guidOf(id string) string { return strings.ToLower(id[strings.LastIndexByte(id, '/')+1:]) }

func sameGUID(a, b string) bool { return a != "" && strings.EqualFold(a, b) }

func badRequest(code, target, format string, args ...any) *resource.Error {
	return resource.Errorf(http.StatusBadRequest, code, format, args...).WithTarget(target)
}

func (p *Provider) validateAssignment(_ context.Context, w *resource.Write) error {
	var v assignmentView
	if err := w.New.Into(&v); err != nil {
		return err
	}
	a := v.Properties
	switch {
	case !guidPattern.MatchString(a.PrincipalID):
		return badRequest("InvalidPrincipalId", "properties.principalId", "The principal ID '%s' is not valid. Principal ID must be a GUID.", a.PrincipalID)
	case a.Condition != nil && *a.Condition != "":
		return badRequest("RoleAssignmentConditionNotSupported", "properties.condition", "Conditions on role assignments are not supported yet. Leave 'condition' out.")
	case a.DelegatedID != nil && *a.DelegatedID != "":
		return badRequest("NotSupported", "properties.delegatedManagedIdentityResourceId", "Delegated managed identities are not supported.")
	}
	if err := p.checkRole(a.RoleDefinitionID, w.New.ID.Parent()); err != nil {
		return err
	}
	if err := p.checkPrincipal(w, a.PrincipalID, a.PrincipalType); err != nil {
		return err
	}
	if w.Old != nil {
		return checkUnchanged(w)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if have, ok := p.pairs[pairOf(a.PrincipalID, a.RoleDefinitionID, w.New.ID.Parent())]; ok && !strings.EqualFold(have, w.New.ID.String()) {
		return resource.Errorf(http.StatusConflict, "RoleAssignmentExists", "The role assignment already exists. The ID of the existing role assignment is '%s'.", guidOf(have))
	}
	w.New.Unset("properties.scope") // read-only: it follows from the ID
	return nil
}

// checkRole demands a role that exists and may be assigned at the scope.
func (p *Provider) checkRole(id string, scope resource.ID) error {
	parsed, err := resource.ParseID(id)
	if err != nil || !parsed.Is(TypeDefinition) {
		return badRequest("InvalidRoleDefinitionId", "properties.roleDefinitionId",
			"The role definition ID '%s' is not valid. Use '/providers/Microsoft.Authorization/roleDefinitions/{guid}', with a scope before it or none.", id)
	}
	role, ok := p.cfg.Engine.Role(id)
	if !ok {
		return badRequest("RoleDefinitionDoesNotExist", "properties.roleDefinitionId", "The specified role definition with ID '%s' does not exist.", guidOf(id))
	}
	for _, s := range role.AssignableScopes {
		if at, err := resource.ParseID(s); err == nil && at.Contains(scope) {
			return nil
		}
	}
	return badRequest("RoleDefinitionNotAssignable", "properties.roleDefinitionId", "The role '%s' cannot be assigned at scope '%s': it is not below the role's assignable scopes.", role.Name, scope)
}

// checkPrincipal demands a principal of the directory, and that a type which the client gives is the true one.
func (p *Provider) checkPrincipal(w *resource.Write, id, typ string) error {
	actual, ok := p.cfg.Principals.PrincipalType(id)
	if !ok {
		return badRequest("PrincipalNotFound", "properties.principalId",
			"Principal %s does not exist in the directory. Check that you have the correct principal ID: the object ID, not the application ID.", strings.ReplaceAll(id, "-", ""))
	}
	if typ != "" && !strings.EqualFold(typ, actual) {
		return badRequest("UnmatchedPrincipalType", "properties.principalType", "The PrincipalId '%s' has type '%s', which is different from specified PrincipalType '%s'.", id, actual, typ)
	}
	w.New.Set("properties.principalType", actual)
	return nil
}

// checkUnchanged lets the same assignment be put again, as templates do, and refuses any other.
func checkUnchanged(w *resource.Write) error {
	same := sameGUID(w.Old.String("properties.principalId"), w.New.String("properties.principalId")) &&
		guidOf(w.Old.String("properties.roleDefinitionId")) == guidOf(w.New.String("properties.roleDefinitionId"))
	if !same {
		return resource.Errorf(http.StatusConflict, "RoleAssignmentUpdateNotPermitted", "Tenant ID, application ID, principal ID, role definition ID and scope are not allowed to be updated. Delete the role assignment and make another.")
	}
	w.New.Unset("properties.scope")
	return nil
}

func pairOf(principal, role string, scope resource.ID) string {
	return strings.ToLower(principal) + " " + guidOf(role) + " " + scope.Key()
}

// observeAssignment makes an assignment effective, or no longer so. Documents were validated when they were written, but a
// condition that is found all the same is passed on, because the engine then grants nothing.
func (p *Provider) observeAssignment(_ context.Context, old, now *resource.Document) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if now == nil || now.State == resource.StateDeleting {
		id := old
		if now != nil {
			id = now
		}
		p.cfg.Engine.RemoveAssignment(id.ID.String())
		delete(p.pairs, p.keys[id.ID.Key()])
		delete(p.keys, id.ID.Key())
		return
	}
	a := rbac.Assignment{ID: now.ID.String(), Principal: now.String("properties.principalId"), Role: now.String("properties.roleDefinitionId"),
		Scope: now.ID.Parent(), Condition: now.String("properties.condition")}
	pair := pairOf(a.Principal, a.Role, a.Scope)
	p.pairs[pair], p.keys[now.ID.Key()] = a.ID, pair
	if p.gathered != nil {
		*p.gathered = append(*p.gathered, a)
		return
	}
	p.cfg.Engine.SetAssignments(a)
}

func viewAssignment(_ context.Context, d *resource.Document) {
	d.Set("properties.scope", d.ID.Parent().String())
	for _, name := range []string{"properties.condition", "properties.conditionVersion", "properties.delegatedManagedIdentityResourceId"} {
		if d.Get(name) == nil {
			d.Set(name, nil)
		}
	}
	d.Set("properties.createdOn", d.System.CreatedAt)
	d.Set("properties.updatedOn", d.System.LastModifiedAt)
	d.Set("properties.createdBy", d.Creator.Object)
}

// filterAssignments lists what holds at a scope: the assignments above it too. $filter narrows that: atScope() leaves out
// what lies below, principalId eq and assignedTo() name a principal (the latter with its groups).
func (p *Provider) filterAssignments(r *resource.Request, docs []*resource.Document) ([]*resource.Document, error) {
	scope, err := resource.ParseID(r.Scope)
	if err != nil {
		return nil, err
	}
	f, err := parseFilter(r.URL.Query().Get("$filter"))
	if err != nil {
		return nil, err
	}
	all, err := p.resources.List(r.Context(), TypeAssignment, resource.Tenant)
	if err != nil {
		return nil, err
	}
	holders := map[string]bool{}
	if f.principal != "" {
		holders[strings.ToLower(f.principal)] = true
	}
	if g, ok := p.cfg.Principals.(interface {
		Groups(objectID string) []string
	}); ok && f.assigned {
		for _, id := range g.Groups(f.principal) {
			holders[strings.ToLower(id)] = true
		}
	}
	var out []*resource.Document
	for _, d := range all {
		at := d.ID.Parent()
		here := at.Contains(scope) || (!f.atScope && scope.Contains(at))
		if here && (f.principal == "" || holders[strings.ToLower(d.String("properties.principalId"))]) {
			out = append(out, d)
		}
	}
	return out, nil
}
