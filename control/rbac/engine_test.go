package rbac_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"casemate.dev/control/rbac"
	"casemate.dev/resource"
)

const (
	sub     = "/subscriptions/5f2b0000-0000-4000-8000-000000000001"
	group   = sub + "/resourceGroups/rg1"
	account = group + "/providers/Microsoft.Storage/storageAccounts/acct1"
	data    = account + "/blobServices/default/containers/c1"

	alice, bob, team = "aaaaaaaa-0000-4000-8000-000000000001", "bbbbbbbb-0000-4000-8000-000000000001", "cccccccc-0000-4000-8000-000000000001"
)

func user(object string, groups ...string) resource.Caller {
	return resource.Caller{Kind: resource.KindUser, Object: object, Groups: groups}
}

func id(s string) resource.ID { return resource.MustParseID(s) }

func assign(name, principal, role, scope string) rbac.Assignment {
	return rbac.Assignment{ID: strings.TrimSuffix(scope, "/") + "/providers/Microsoft.Authorization/roleAssignments/" + name,
		Principal: principal, Role: role, Scope: id(scope)}
}

func TestCheck(t *testing.T) {
	roles := []rbac.Role{
		{ID: "r-reader", Name: "Reader", Permissions: []rbac.Permission{{Actions: []string{"*/read"}}}},
		{ID: "r-most", Name: "Most", Permissions: []rbac.Permission{{Actions: []string{"*"}, NotActions: []string{"A.B/c/write"}}}},
		{ID: "r-write", Name: "Write", Permissions: []rbac.Permission{{Actions: []string{"A.B/c/write"}}}},
		{ID: "r-data", Name: "Data", Permissions: []rbac.Permission{{DataActions: []string{"A.B/c/*"}, NotDataActions: []string{"A.B/c/purge"}}}},
		{ID: "r-cond", Name: "Cond", Permissions: []rbac.Permission{{Actions: []string{"*"}, Condition: "x"}, {Actions: []string{"A.B/c/read"}}}},
	}
	conditional := assign("c", alice, "r-most", "/")
	conditional.Condition = "@Resource[x] StringEquals 'y'"
	tests := []struct {
		name        string
		assignments []rbac.Assignment
		caller      resource.Caller
		action      string
		isData      bool
		scope       string
		want        bool
	}{
		{"inherited from the tenant", []rbac.Assignment{assign("1", alice, "r-reader", "/")}, user(alice), "A.B/c/read", false, data, true},
		{"inherited from the group, other case", []rbac.Assignment{assign("1", alice, "r-reader", strings.ToUpper(group))}, user(alice), "a.b/C/READ", false, data, true},
		{"at the scope itself", []rbac.Assignment{assign("1", alice, "r-reader", account)}, user(alice), "A.B/c/read", false, account, true},
		{"not above the scope", []rbac.Assignment{assign("1", alice, "r-reader", account)}, user(alice), "A.B/c/read", false, group, false},
		{"not beside, name is a prefix", []rbac.Assignment{assign("1", alice, "r-reader", account)}, user(alice), "A.B/c/read", false, account + "2", false},
		{"another principal", []rbac.Assignment{assign("1", bob, "r-reader", "/")}, user(alice), "A.B/c/read", false, data, false},
		{"through a group", []rbac.Assignment{assign("1", team, "r-reader", "/")}, user(alice, team), "A.B/c/read", false, data, true},
		{"object id in capitals", []rbac.Assignment{assign("1", strings.ToUpper(alice), "r-reader", "/")}, user(alice), "A.B/c/read", false, data, true},
		{"notActions subtract", []rbac.Assignment{assign("1", alice, "r-most", "/")}, user(alice), "A.B/c/write", false, data, false},
		{"notActions of one role leave another's grant", []rbac.Assignment{assign("1", alice, "r-most", "/"), assign("2", alice, "r-write", group)}, user(alice), "A.B/c/write", false, data, true},
		{"actions grant no data actions", []rbac.Assignment{assign("1", alice, "r-most", "/")}, user(alice), "A.B/c/read", true, data, false},
		{"data actions grant no actions", []rbac.Assignment{assign("1", alice, "r-data", "/")}, user(alice), "A.B/c/read", false, data, false},
		{"data action", []rbac.Assignment{assign("1", alice, "r-data", data)}, user(alice), "A.B/c/read", true, data, true},
		{"notDataAction", []rbac.Assignment{assign("1", alice, "r-data", data)}, user(alice), "A.B/c/purge", true, data, false},
		{"conditional block grants nothing", []rbac.Assignment{assign("1", alice, "r-cond", "/")}, user(alice), "A.B/c/write", false, data, false},
		{"block beside a conditional one grants", []rbac.Assignment{assign("1", alice, "r-cond", "/")}, user(alice), "A.B/c/read", false, data, true},
		{"conditional assignment grants nothing", []rbac.Assignment{conditional}, user(alice), "A.B/c/read", false, data, false},
		{"undefined role grants nothing", []rbac.Assignment{assign("1", alice, "r-none", "/")}, user(alice), "A.B/c/read", false, data, false},
		{"anonymous", []rbac.Assignment{assign("1", "", "r-most", "/")}, resource.Caller{}, "A.B/c/read", false, data, false},
		{"no kind", []rbac.Assignment{assign("1", alice, "r-most", "/")}, resource.Caller{Object: alice}, "A.B/c/read", false, data, false},
		{"empty action", []rbac.Assignment{assign("1", alice, "r-most", "/")}, user(alice), "", false, data, false},
		{"empty group", []rbac.Assignment{assign("1", bob, "r-most", "/")}, user(alice, ""), "A.B/c/read", false, data, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e := rbac.New(roles...)
			e.SetAssignments(tt.assignments...)
			got := e.Check(tt.caller, tt.action, tt.isData, id(tt.scope))
			if got.Allowed != tt.want {
				t.Fatalf("Check = %+v, want allowed = %v", got, tt.want)
			}
			if got.Reason == "" || got.Allowed && (got.Role == "" || got.Assignment == "") {
				t.Errorf("Check = %+v explains nothing", got)
			}
		})
	}
}

func TestHolds(t *testing.T) {
	e := rbac.New(builtIn(t)...)
	a := assign("1", team, ownerRole, account)
	e.SetAssignments(a)
	for scope, want := range map[string]bool{sub: true, group: true, account: true, data: true, group + "2": false, account + "2": false, "/": true} {
		if got := e.Holds(user(alice, team), id(scope)); got != want {
			t.Errorf("Holds(%s) = %v", scope, got)
		}
	}
	if e.Holds(user(bob), id(sub)) || e.Holds(resource.Caller{}, id(sub)) {
		t.Error("somebody without a role holds one")
	}
	if ok, reason := e.Authorize(user(alice, team), "A/b/write", false, id(data)); !ok || reason != "Owner by "+a.ID {
		t.Errorf("Authorize = %v, %q", ok, reason)
	}
	e.RemoveAssignment(a.ID)
	if e.Holds(user(alice, team), id(sub)) {
		t.Error("a removed assignment is still held")
	}
}

func TestDenyAssignments(t *testing.T) {
	all := []rbac.Permission{{Actions: []string{"*"}, NotActions: []string{"*/read"}, Condition: "cannot lift"}}
	tests := []struct {
		name   string
		deny   rbac.Deny
		action string
		scope  string
		want   bool // allowed
	}{
		{"everybody", rbac.Deny{Scope: id(group), Permissions: all}, "A.B/c/write", account, false},
		{"notActions are not denied", rbac.Deny{Scope: id(group), Permissions: all}, "A.B/c/read", account, true},
		{"other scope", rbac.Deny{Scope: id(group + "2"), Permissions: all}, "A.B/c/write", account, true},
		{"only here", rbac.Deny{Scope: id(group), OnlyHere: true, Permissions: all}, "A.B/c/write", account, true},
		{"principal", rbac.Deny{Scope: id(group), Principals: []string{team}, Permissions: all}, "A.B/c/write", account, false},
		{"other principal", rbac.Deny{Scope: id(group), Principals: []string{bob}, Permissions: all}, "A.B/c/write", account, true},
		{"excluded", rbac.Deny{Scope: id(group), Excluded: []string{alice}, Permissions: all}, "A.B/c/write", account, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e := rbac.New(builtIn(t)...)
			e.SetAssignments(assign("1", alice, ownerRole, "/"))
			e.SetDenies(tt.deny)
			if got := e.Check(user(alice, team), tt.action, false, id(tt.scope)); got.Allowed != tt.want {
				t.Errorf("Check = %+v, want allowed = %v", got, tt.want)
			}
		})
	}
}

const ownerRole = "8e3af657-a8ff-443c-a75c-2fe8c4bcb635"

func TestChangesTakeEffectAtOnce(t *testing.T) {
	e := rbac.New()
	check := func(want bool) {
		t.Helper()
		if got := e.Check(user(alice), "A.B/c/read", false, id(data)); got.Allowed != want {
			t.Fatalf("Check = %+v, want allowed = %v", got, want)
		}
	}
	a := assign("1", alice, "/providers/Microsoft.Authorization/roleDefinitions/R1", group)
	e.SetAssignments(a)
	check(false) // role not defined yet
	e.SetRoles(rbac.Role{ID: "r0"}, rbac.Role{ID: "r1", Name: "one", Permissions: []rbac.Permission{{Actions: []string{"*"}}}})
	check(true)
	e.SetRoles(rbac.Role{ID: "r1", Name: "one", Permissions: []rbac.Permission{{Actions: []string{"*/write"}}}})
	check(false)
	e.SetRoles(rbac.Role{ID: "r1", Name: "one", Permissions: []rbac.Permission{{Actions: []string{"*"}}}})
	check(true)
	e.RemoveRole("R1")
	check(false)
	e.SetRoles(rbac.Role{ID: "r1", Name: "one", Permissions: []rbac.Permission{{Actions: []string{"*"}}}})
	check(true)
	e.RemoveAssignment(strings.ToUpper(a.ID))
	check(false)
	e.SetAssignments(a)
	check(true)
	if gone := e.RemoveScope(id(sub)); len(gone) != 1 || gone[0] != a.ID {
		t.Fatalf("RemoveScope = %q", gone)
	}
	check(false)
}

// oracle keeps plain lists and reads them all for each question.
type oracle struct {
	roles       map[string]rbac.Role
	assignments map[string]rbac.Assignment
}

func (o oracle) allowed(c resource.Caller, action string, isData bool, scope resource.ID) bool {
	for _, a := range o.assignments {
		if a.Condition != "" || !slices.Contains(scope.Scopes(), a.Scope.Key()) {
			continue
		}
		if !strings.EqualFold(a.Principal, c.Object) && !slices.Contains(c.Groups, a.Principal) {
			continue
		}
		for _, p := range o.roles[a.Role].Permissions {
			yes, no := p.Actions, p.NotActions
			if isData {
				yes, no = p.DataActions, p.NotDataActions
			}
			match := func(s string) bool { return slowMatch(s, action) }
			if p.Condition == "" && slices.ContainsFunc(yes, match) && !slices.ContainsFunc(no, match) {
				return true
			}
		}
	}
	return false
}

func TestEngineAgreesWithOracle(t *testing.T) {
	scopes := []string{"/", sub, group, sub + "/resourceGroups/Rg10", account, data, group + "/providers/Microsoft.Network/virtualNetworks/v/subnets/s",
		account + "/providers/Microsoft.Authorization/locks/l", sub + "/providers/Microsoft.X/y/z", "/providers/Microsoft.Management/managementGroups/m",
		"/providers/Microsoft.X/y/ümlaut", sub + "/resourceGroups/providers", sub + "/resourceGroups/providers/providers/A.B/c/d"}
	patterns := rapid.SampledFrom([]string{"*", "*/read", "A.B/*", "A.B/c/*/write", "A.B/c/write", "a.b/c/read", "A.B/c/d/write", "A.B/c/*"})
	actions := rapid.SampledFrom([]string{"A.B/c/read", "A.B/c/write", "a.b/C/d/write", "X.Y/read", "A.B/c"})
	principals := rapid.SampledFrom([]string{alice, bob, team})
	roleIDs := rapid.SampledFrom([]string{"r1", "r2", "r3"})
	rapid.Check(t, func(t *rapid.T) {
		o := oracle{map[string]rbac.Role{}, map[string]rbac.Assignment{}}
		e := rbac.New()
		list := func(label string) []string { return rapid.SliceOfN(patterns, 0, 2).Draw(t, label) }
		t.Repeat(map[string]func(*rapid.T){
			"role": func(t *rapid.T) {
				r := rbac.Role{ID: roleIDs.Draw(t, "role"), Name: "n"}
				for range rapid.IntRange(0, 2).Draw(t, "blocks") {
					r.Permissions = append(r.Permissions, rbac.Permission{Actions: list("a"), NotActions: list("n"), DataActions: list("d"),
						NotDataActions: list("m"), Condition: rapid.SampledFrom([]string{"", "", "", "c"}).Draw(t, "c")})
				}
				o.roles[r.ID] = r
				e.SetRoles(r)
			},
			"unrole": func(t *rapid.T) {
				r := roleIDs.Draw(t, "role")
				delete(o.roles, r)
				e.RemoveRole(r)
			},
			"assign": func(t *rapid.T) {
				a := assign(fmt.Sprint(rapid.IntRange(0, 9).Draw(t, "n")), principals.Draw(t, "p"), roleIDs.Draw(t, "r"), rapid.SampledFrom(scopes).Draw(t, "s"))
				a.Condition = rapid.SampledFrom([]string{"", "", "", "c"}).Draw(t, "c")
				o.assignments[strings.ToLower(a.ID)] = a
				e.SetAssignments(a)
			},
			"bulk": func(t *rapid.T) { // forces a merge of the recent index
				var many []rbac.Assignment
				for i := range 520 {
					many = append(many, assign(fmt.Sprint("bulk", i), fmt.Sprint("nobody", i), "r1", group))
				}
				e.SetAssignments(many...)
			},
			"unassign": func(t *rapid.T) {
				for key, a := range o.assignments {
					delete(o.assignments, key)
					e.RemoveAssignment(a.ID)
					break
				}
			},
			"": func(t *rapid.T) {
				c := user(principals.Draw(t, "caller"), rapid.SliceOfN(principals, 0, 2).Draw(t, "groups")...)
				action, isData := actions.Draw(t, "action"), rapid.Bool().Draw(t, "data")
				scope := id(rapid.SampledFrom(scopes).Draw(t, "scope"))
				if got, want := e.Check(c, action, isData, scope), o.allowed(c, action, isData, scope); got.Allowed != want {
					t.Fatalf("Check(%v, %q, %v, %s) = %+v, oracle says %v", c, action, isData, scope, got, want)
				}
			},
		})
	})
}

func TestCheckAllocatesNothing(t *testing.T) {
	e, callers := populated(t, 4000)
	scope, caller := id(data), callers[7]
	const action = "Microsoft.Storage/storageAccounts/blobServices/containers/blobs/read"
	e.Check(caller, action, true, scope)
	if n := testing.AllocsPerRun(100, func() { e.Check(caller, action, true, scope) }); n != 0 {
		t.Errorf("Check allocates %v times", n)
	}
}

// populated has n assignments of varied roles to n/4 principals over many scopes, the benchmark's target among them.
func populated(t testing.TB, n int) (*rbac.Engine, []resource.Caller) {
	t.Helper()
	roles := builtIn(t)
	e := rbac.New(roles...)
	list := make([]rbac.Assignment, 0, n)
	callers := make([]resource.Caller, 0, n/4)
	guid := func(kind, i int) string { return fmt.Sprintf("%08x-%04x-4000-8000-%012x", i, kind, i) }
	for i := range n / 4 {
		callers = append(callers, user(guid(1, i), guid(2, i%10), guid(2, i%97), guid(2, i%31)))
		rg := fmt.Sprintf("%s/resourceGroups/rg%d", sub, i%200)
		for j, scope := range []string{group, rg, rg + fmt.Sprintf("/providers/Microsoft.Storage/storageAccounts/a%d", i), data} {
			role := roles[(i+j*7)%len(roles)].ID
			if j == 3 {
				role = "2a2b9908-6ea1-4ae2-8e65-a410df84e7d1"
			}
			list = append(list, assign(guid(3+j, i), callers[i].Object, role, scope))
		}
	}
	e.SetAssignments(list...)
	return e, callers
}

func BenchmarkCheck(b *testing.B) {
	const action = "Microsoft.Storage/storageAccounts/blobServices/containers/blobs/read"
	for _, n := range []int{4000, 1_000_000} {
		if n > 4000 && testing.Short() {
			continue
		}
		e, callers := populated(b, n)
		for _, bm := range []struct {
			name, action string
			want         bool
		}{{"allow", action, true}, {"refuse", "Microsoft.Nothing/known/none", false}} {
			b.Run(fmt.Sprintf("%s/%d", bm.name, n), func(b *testing.B) {
				scope := id(data)
				b.ReportAllocs()
				for i := 0; b.Loop(); i++ {
					if e.Check(callers[i*31%len(callers)], bm.action, true, scope).Allowed != bm.want {
						b.Fatal("wrong decision")
					}
				}
			})
		}
		b.Run(fmt.Sprintf("assign/%d", n), func(b *testing.B) {
			for i := 0; b.Loop(); i++ {
				e.SetAssignments(assign(fmt.Sprint("x", i%1000), alice, ownerRole, group))
			}
		})
	}
}

func TestChecksRunBesideChanges(t *testing.T) {
	e := rbac.New(builtIn(t)...)
	keep := assign("keep", alice, ownerRole, group)
	e.SetAssignments(keep)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range 600 {
			a := assign(fmt.Sprint("n", i), bob, ownerRole, account)
			e.SetAssignments(a)
			if !e.Check(user(bob), "A.B/c/write", false, id(data)).Allowed {
				t.Error("an assignment is not in force when it was set")
			}
			e.RemoveAssignment(a.ID)
			if e.Check(user(bob), "A.B/c/write", false, id(data)).Allowed {
				t.Error("an assignment is in force when it was removed")
			}
		}
	}()
	for {
		select {
		case <-done:
			return
		default:
			if !e.Check(user(alice), "A.B/c/write", false, id(data)).Allowed {
				t.Fatal("an untouched assignment was not in force for a moment")
			}
		}
	}
}
