package authorization_test

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"

	"casemate.dev/control/rbac"
	"casemate.dev/providers/authorization"
	"casemate.dev/resource"
)

const (
	sub    = "/subscriptions/5f2b0000-0000-4000-8000-000000000001"
	group  = sub + "/resourceGroups/rg1"
	vault  = group + "/providers/Microsoft.KeyVault/vaults/v1"
	admin  = "aaaaaaaa-0000-4000-8000-000000000000"
	alice  = "aaaaaaaa-0000-4000-8000-000000000001"
	team   = "cccccccc-0000-4000-8000-000000000001"
	owner  = "8e3af657-a8ff-443c-a75c-2fe8c4bcb635"
	reader = "acdd72a7-3385-48ef-bd42-f606fba81ae7"
)

func guid(n int) string { return fmt.Sprintf("00000000-0000-4000-8000-%012d", n) }

func definitionID(guid string) string {
	return "/providers/Microsoft.Authorization/roleDefinitions/" + guid
}

// principals is a directory; alice is in team.
type principals map[string]string

func (p principals) PrincipalType(id string) (string, bool) {
	t, ok := p[strings.ToLower(id)]
	return t, ok
}

func (p principals) Groups(id string) []string {
	if id == alice {
		return []string{team}
	}
	return nil
}

// platform keeps documents in a map, and does with a type what the operation engine does.
type platform struct {
	testing.TB
	*authorization.Provider
	engine *rbac.Engine
	docs   map[string]*resource.Document
}

func newPlatform(t *testing.T) *platform {
	t.Helper()
	roles, err := rbac.BuiltIn()
	if err != nil {
		t.Fatal(err)
	}
	p := &platform{TB: t, engine: rbac.New(roles...), docs: map[string]*resource.Document{}}
	p.Provider = authorization.New(authorization.Config{Engine: p.engine, Platform: resource.Caller{Kind: resource.KindPlatform, Object: guid(0)},
		Principals: principals{admin: "ServicePrincipal", alice: "User", team: "Group"}})
	p.Attach(p)
	p.put(resource.Caller{Kind: resource.KindPlatform}, "/providers/Microsoft.Authorization/roleAssignments/"+guid(9999), assignment(owner, admin))
	return p
}

func (p *platform) Get(_ context.Context, id resource.ID) (*resource.Document, error) {
	if d := p.docs[id.Key()]; d != nil {
		return d.Clone(), nil
	}
	return nil, resource.NotFound(id)
}

func (p *platform) List(_ context.Context, typ string, below resource.ID) ([]*resource.Document, error) {
	var out []*resource.Document
	for _, key := range slices.Sorted(maps.Keys(p.docs)) {
		if d := p.docs[key]; d.ID.Is(typ) && below.Contains(d.ID) {
			out = append(out, d.Clone())
		}
	}
	return out, nil
}

func (p *platform) typeOf(id resource.ID) resource.Type {
	for _, t := range p.Types() {
		if id.Is(t.Name) {
			return t
		}
	}
	p.Fatalf("no type for %s", id)
	return resource.Type{}
}

func (p *platform) Put(ctx context.Context, c resource.Caller, id resource.ID, body map[string]any) (*resource.Document, error) {
	t, old := p.typeOf(id), p.docs[id.Key()]
	d := &resource.Document{ID: id, Body: body, State: resource.StateSucceeded, Creator: c}
	w := &resource.Write{Caller: c, New: d, Method: http.MethodPut}
	if old != nil {
		w.Old = old.Clone()
	}
	if err := t.Validate(ctx, w); err != nil {
		return nil, err
	}
	p.docs[id.Key()] = d
	p.Observers()[t.Name](ctx, old, d.Clone())
	return d, nil
}

func (p *platform) Update(context.Context, resource.ID, func(*resource.Document) error) (*resource.Document, error) {
	return nil, resource.NotSupported("unused")
}
func (p *platform) Again(context.Context, resource.ID) error { return nil }

func (p *platform) Delete(ctx context.Context, _ resource.Caller, id resource.ID) error {
	t, old := p.typeOf(id), p.docs[id.Key()]
	if old == nil {
		return resource.NotFound(id)
	}
	if t.MayRemove != nil {
		if err := t.MayRemove(ctx, old); err != nil {
			return err
		}
	}
	delete(p.docs, id.Key())
	p.Observers()[t.Name](ctx, old, nil)
	return nil
}

func (p *platform) put(c resource.Caller, id string, properties map[string]any) error {
	_, err := p.Put(p.Context(), c, resource.MustParseID(id), map[string]any{"properties": properties})
	return err
}

func (p *platform) must(err error) {
	p.Helper()
	if err != nil {
		p.Fatal(err)
	}
}

func assignment(role, principal string) map[string]any {
	return map[string]any{"roleDefinitionId": sub + definitionID(role), "principalId": principal}
}

func assignmentID(scope string, n int) string {
	return strings.TrimSuffix(scope, "/") + "/providers/Microsoft.Authorization/roleAssignments/" + guid(n)
}

func caller(object string, groups ...string) resource.Caller {
	return resource.Caller{Kind: resource.KindServicePrincipal, Object: object, Groups: groups}
}

func codeOf(err error) string {
	if err == nil {
		return ""
	}
	return resource.AsError(err).Code
}

func TestDeclarations(t *testing.T) {
	p := newPlatform(t)
	for _, typ := range p.Types() {
		if err := typ.Check(); err != nil {
			t.Error(err)
		}
	}
	for _, row := range p.Routes() {
		if err := row.Validate(); err != nil {
			t.Error(err)
		}
	}
}

func TestAssignmentTakesEffectBeforePutReturns(t *testing.T) {
	p := newPlatform(t)
	scope := resource.MustParseID(vault)
	allowed := func(c resource.Caller) bool {
		return p.engine.Check(c, "Microsoft.KeyVault/vaults/read", false, scope).Allowed
	}
	if allowed(caller(alice, team)) {
		t.Fatal("allowed before any assignment")
	}
	p.must(p.put(caller(admin), assignmentID(group, 1), assignment(reader, strings.ToUpper(team))))
	if !allowed(caller(alice, team)) || allowed(caller(alice)) {
		t.Fatal("assignment to the group is not in force")
	}
	p.must(p.Delete(t.Context(), caller(admin), resource.MustParseID(assignmentID(group, 1))))
	if allowed(caller(alice, team)) {
		t.Fatal("deleted assignment is in force")
	}
	p.must(p.Bulk(func() error { return p.put(caller(admin), assignmentID(group, 1), assignment(reader, alice)) }))
	if !allowed(caller(alice)) {
		t.Fatal("assignment loaded in bulk is not in force")
	}
	p.must(p.RemovePrincipal(t.Context(), alice))
	if allowed(caller(alice)) || len(p.docs) != 1 {
		t.Fatal("a removed principal keeps its assignments")
	}
}

func TestAssignmentRefused(t *testing.T) {
	with := func(m map[string]any, k string, v any) map[string]any { m[k] = v; return m }
	tests := []struct {
		name string
		id   string
		body map[string]any
		code string
	}{
		{"good", assignmentID(vault, 2), assignment(reader, alice), ""},
		{"good with type", assignmentID(vault, 2), with(assignment(reader, team), "principalType", "Group"), ""},
		{"same again", assignmentID(group, 1), assignment(reader, alice), ""},
		{"null condition", assignmentID(vault, 2), with(assignment(reader, alice), "condition", nil), ""},
		{"duplicate", assignmentID(strings.ToUpper(group), 2), assignment(reader, alice), "RoleAssignmentExists"},
		{"other principal", assignmentID(group, 1), assignment(reader, team), "RoleAssignmentUpdateNotPermitted"},
		{"other role", assignmentID(group, 1), assignment(owner, alice), "RoleAssignmentUpdateNotPermitted"},
		{"unknown role", assignmentID(vault, 2), assignment(guid(77), alice), "RoleDefinitionDoesNotExist"},
		{"role is not an ID", assignmentID(vault, 2), with(assignment(reader, alice), "roleDefinitionId", reader), "InvalidRoleDefinitionId"},
		{"role is another type", assignmentID(vault, 2), with(assignment(reader, alice), "roleDefinitionId", vault), "InvalidRoleDefinitionId"},
		{"unknown principal", assignmentID(vault, 2), assignment(reader, guid(5)), "PrincipalNotFound"},
		{"unknown principal with type", assignmentID(vault, 2), with(assignment(reader, guid(5)), "principalType", "User"), "PrincipalNotFound"},
		{"principal is no GUID", assignmentID(vault, 2), assignment(reader, "everyone"), "InvalidPrincipalId"},
		{"no principal", assignmentID(vault, 2), assignment(reader, ""), "InvalidPrincipalId"},
		{"wrong type", assignmentID(vault, 2), with(assignment(reader, alice), "principalType", "Group"), "UnmatchedPrincipalType"},
		{"condition", assignmentID(vault, 2), with(assignment(reader, alice), "condition", "true"), "RoleAssignmentConditionNotSupported"},
		{"delegated", assignmentID(vault, 2), with(assignment(reader, alice), "delegatedManagedIdentityResourceId", vault), "NotSupported"},
		{"not an object", assignmentID(vault, 2), map[string]any{"principalId": 7}, "InvalidRequestContent"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := newPlatform(t)
			p.must(p.put(caller(admin), assignmentID(group, 1), assignment(reader, alice)))
			if err := p.put(caller(admin), tt.id, tt.body); codeOf(err) != tt.code {
				t.Errorf("got %v, want %q", err, tt.code)
			}
		})
	}
}

func role(name string, scopes []string, actions ...string) map[string]any {
	return map[string]any{"roleName": name, "assignableScopes": scopes, "permissions": []any{map[string]any{"actions": actions}}}
}

func TestCustomRoles(t *testing.T) {
	p := newPlatform(t)
	at := resource.MustParseID(vault)
	id := group + definitionID(guid(50))
	can := func(action string) bool { return p.engine.Check(caller(alice), action, false, at).Allowed }
	p.must(p.put(caller(admin), id, role("Vault reader", []string{group}, "Microsoft.KeyVault/vaults/read")))
	p.must(p.put(caller(admin), assignmentID(vault, 1), assignment(guid(50), alice)))
	if !can("Microsoft.KeyVault/vaults/read") || can("Microsoft.KeyVault/vaults/write") {
		t.Fatal("custom role does not grant what it says")
	}
	p.must(p.put(caller(admin), id, role("Vault reader", []string{group}, "Microsoft.KeyVault/vaults/write")))
	if can("Microsoft.KeyVault/vaults/read") || !can("Microsoft.KeyVault/vaults/write") {
		t.Fatal("a changed role is not in force")
	}
	if err := p.put(caller(admin), assignmentID(sub, 2), assignment(guid(50), alice)); codeOf(err) != "RoleDefinitionNotAssignable" {
		t.Errorf("assigned above its assignable scopes: %v", err)
	}
	if err := p.Delete(t.Context(), caller(admin), resource.MustParseID(id)); codeOf(err) != "RoleDefinitionHasAssignments" {
		t.Errorf("deleted while assigned: %v", err)
	}
	p.must(p.Delete(t.Context(), caller(admin), resource.MustParseID(assignmentID(vault, 1))))
	p.must(p.Delete(t.Context(), caller(admin), resource.MustParseID(id)))
	if err := p.put(caller(admin), assignmentID(vault, 1), assignment(guid(50), alice)); codeOf(err) != "RoleDefinitionDoesNotExist" {
		t.Errorf("a deleted role was assigned: %v", err)
	}
}

func TestCustomRoleRefused(t *testing.T) {
	p := newPlatform(t)
	p.must(p.put(caller(admin), group+definitionID(guid(50)), role("One", []string{group}, "*/read")))
	p.must(p.put(caller(admin), assignmentID(vault, 1), assignment(owner, alice)))
	conditional := role("C", []string{vault}, "*")
	conditional["permissions"].([]any)[0].(map[string]any)["condition"] = "true"
	builtIn := role("B", []string{vault}, "*")
	builtIn["type"] = "BuiltInRole"
	tests := []struct {
		name string
		id   string
		body map[string]any
		code string
	}{
		{"good", vault + definitionID(guid(51)), role("Two", []string{vault}, "*"), ""},
		{"GUID of a built-in role", vault + definitionID(strings.ToUpper(reader)), role("Three", []string{vault}, "*"), "RoleDefinitionWithSameIdExists"},
		{"GUID of a role elsewhere", vault + definitionID(guid(50)), role("Three", []string{vault}, "*"), "RoleDefinitionWithSameIdExists"},
		{"name of a built-in role", vault + definitionID(guid(52)), role("reader", []string{vault}, "*"), "RoleDefinitionWithSameNameExists"},
		{"assignable where the author may not write roles", vault + definitionID(guid(52)), role("Three", []string{vault, group}, "*"), "AuthorizationFailed"},
		{"changed by one who may not everywhere", group + definitionID(guid(50)), role("One", []string{vault}, "*"), "AuthorizationFailed"},
		{"assignable nowhere", vault + definitionID(guid(52)), role("Three", nil, "*"), "MissingAssignableScopes"},
		{"malformed scope", vault + definitionID(guid(52)), role("Three", []string{"rg1"}, "*"), "InvalidAssignableScope"},
		{"no name", vault + definitionID(guid(52)), role(" ", []string{vault}, "*"), "RoleDefinitionNameInvalid"},
		{"malformed action", vault + definitionID(guid(52)), role("Three", []string{vault}, "read"), "InvalidActionOrNotAction"},
		{"condition", vault + definitionID(guid(52)), conditional, "RoleDefinitionConditionNotSupported"},
		{"says it is built in", vault + definitionID(guid(52)), builtIn, "RoleDefinitionTypeInvalid"},
	}
	for _, tt := range tests {
		if err := p.put(caller(alice), tt.id, tt.body); codeOf(err) != tt.code {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.code)
		}
	}
	if p.engine.Check(caller(alice), "A.B/c/write", false, resource.MustParseID(group)).Allowed {
		t.Error("a refused definition is in force")
	}
}

func TestLists(t *testing.T) {
	p := newPlatform(t)
	p.must(p.put(caller(admin), assignmentID(sub, 1), assignment(reader, team)))
	p.must(p.put(caller(admin), assignmentID(vault, 2), assignment(owner, alice)))
	p.must(p.put(caller(admin), group+definitionID(guid(50)), role("One", []string{group}, "*/read")))
	tests := []struct {
		typ    int
		scope  string
		filter string
		want   int // -1: refused
	}{
		{0, group, "", 3},
		{0, group, "atScope()", 2},
		{0, group, "principalId eq '" + alice + "'", 1},
		{0, group, "atScope() and principalId eq '" + alice + "'", 0},
		{0, group, "assignedTo('" + alice + "')", 2},
		{0, group, "atScope() AND assignedTo('" + alice + "')", 1},
		{0, group, "principalId ne 'x'", -1},
		{1, group, "roleName eq 'Reader'", 1},
		{1, group, "roleName eq 'One'", 1},
		{1, sub, "roleName eq 'One' and atScope()", 0},
		{1, group, "type eq 'CustomRole'", 1},
		{1, sub + "/resourceGroups/rg2", "type eq 'CustomRole'", 0},
		{1, group, "roleName eq 'Rock and Roll'", 0},
	}
	for _, tt := range tests {
		r := &resource.Request{Request: httptest.NewRequest("GET", "/?%24filter="+url.QueryEscape(tt.filter), nil), Scope: tt.scope}
		docs, err := p.Types()[tt.typ].Filter(r, nil)
		got := len(docs)
		if err != nil {
			got = -1
		}
		if got != tt.want {
			t.Errorf("list %d at %s with %q: %d (%v), want %d", tt.typ, tt.scope, tt.filter, got, err, tt.want)
		}
	}
}

func (p *platform) get(row, scope string, c resource.Caller) (map[string]any, error) {
	p.Helper()
	for _, r := range p.Routes() {
		if r.Name != row {
			continue
		}
		rec := httptest.NewRecorder()
		if err := r.Handler(rec, &resource.Request{Request: httptest.NewRequest("GET", "/", nil), Scope: scope, Caller: c}); err != nil {
			return nil, err
		}
		var out map[string]any
		p.must(json.Unmarshal(rec.Body.Bytes(), &out))
		return out, nil
	}
	p.Fatalf("no row %s", row)
	return nil, nil
}

func TestGetDefinition(t *testing.T) {
	p := newPlatform(t)
	p.must(p.put(caller(admin), group+definitionID(guid(50)), role("One", []string{group}, "*/read")))
	out, err := p.get("RoleDefinitions_GetAny", sub+definitionID(reader), caller(admin))
	p.must(err)
	props := out["properties"].(map[string]any)
	if out["id"] != sub+definitionID(reader) || props["roleName"] != "Reader" || props["type"] != "BuiltInRole" || out["type"] != authorization.TypeDefinition {
		t.Errorf("built-in role = %v", out)
	}
	out, err = p.get("RoleDefinitions_GetAny", definitionID(guid(50)), caller(admin))
	p.must(err)
	if out["id"] != group+definitionID(guid(50)) {
		t.Errorf("custom role = %v", out)
	}
	if _, err = p.get("RoleDefinitions_GetAny", definitionID(guid(1)), caller(admin)); codeOf(err) != "RoleDefinitionDoesNotExist" {
		t.Errorf("unknown role: %v", err)
	}
	out, err = p.get("Permissions_List", vault, caller(admin))
	p.must(err)
	if n := len(out["value"].([]any)); n != 1 {
		t.Errorf("%d permissions", n)
	}
}

func TestLocks(t *testing.T) {
	lockID := func(scope, name string) string { return scope + "/providers/Microsoft.Authorization/locks/" + name }
	level := func(l string) map[string]any { return map[string]any{"level": l} }
	p := newPlatform(t)
	govern := func(method, scope string) string {
		return codeOf(p.Govern(&resource.Request{Request: httptest.NewRequest(method, "/", nil), Scope: scope, Route: &resource.Route{Plane: resource.PlaneManagement}}))
	}
	if got := govern("DELETE", vault); got != "" {
		t.Fatalf("refused without a lock: %s", got)
	}
	if err := p.put(caller(admin), lockID(vault, "x"), level("NotSpecified")); codeOf(err) != "InvalidLockLevel" {
		t.Errorf("level: %v", err)
	}
	p.must(p.put(caller(admin), lockID(group, "keep"), level("cannotdelete")))
	tests := []struct{ method, scope, want string }{
		{"DELETE", vault, "ScopeLocked"}, {"PUT", vault, ""}, {"GET", vault, ""}, {"DELETE", group, "ScopeLocked"}, {"DELETE", sub, "ScopeLocked"},
		{"DELETE", sub + "/resourceGroups/rg10", ""}, {"DELETE", lockID(group, "keep"), ""},
	}
	for _, tt := range tests {
		if got := govern(tt.method, tt.scope); got != tt.want {
			t.Errorf("CanNotDelete: %s %s: %q, want %q", tt.method, tt.scope, got, tt.want)
		}
	}
	p.must(p.put(caller(admin), lockID(vault, "freeze"), level("ReadOnly")))
	for _, tt := range []struct{ method, scope, want string }{
		{"PUT", vault, "ScopeLocked"}, {"POST", vault, "ScopeLocked"}, {"PUT", group, ""}, {"GET", vault, ""}, {"PUT", assignmentID(vault, 3), "ScopeLocked"},
	} {
		if got := govern(tt.method, tt.scope); got != tt.want {
			t.Errorf("ReadOnly: %s %s: %q, want %q", tt.method, tt.scope, got, tt.want)
		}
	}
	if l, id := p.LockOf(resource.MustParseID(vault)); l != "ReadOnly" || id != lockID(vault, "freeze") {
		t.Errorf("LockOf = %s, %s", l, id)
	}
	p.must(p.Delete(t.Context(), caller(admin), resource.MustParseID(lockID(vault, "freeze"))))
	if l, _ := p.LockOf(resource.MustParseID(vault)); l != "CanNotDelete" {
		t.Errorf("after unlocking: %q", l)
	}
}
