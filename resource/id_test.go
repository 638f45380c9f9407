package resource

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseID(t *testing.T) {
	const g = "/subscriptions/S1/resourceGroups/rg"
	tests := []struct {
		in, typ, parent, name, sub, group string
		names                             []string
	}{
		{"/", "", "/", "", "", "", nil},
		{"/subscriptions/S1", "Microsoft.Resources/subscriptions", "/", "S1", "S1", "", nil},
		{g, "Microsoft.Resources/subscriptions/resourceGroups", "/subscriptions/S1", "rg", "S1", "rg", nil},
		{g + "/providers/Microsoft.KeyVault/vaults/v", "Microsoft.KeyVault/vaults", g, "v", "S1", "rg", []string{"v"}},
		{g + "/providers/Microsoft.A/b/n/c/m", "Microsoft.A/b/c", g + "/providers/Microsoft.A/b/n", "m", "S1", "rg", []string{"n", "m"}},
		{g + "/providers/Microsoft.A/b/n/providers/Microsoft.Authorization/roleAssignments/x", "Microsoft.Authorization/roleAssignments", g + "/providers/Microsoft.A/b/n", "x", "S1", "rg", []string{"x"}},
		{"/providers/Microsoft.Management/managementGroups/mg", "Microsoft.Management/managementGroups", "/", "mg", "", "", []string{"mg"}},
	}
	for _, tt := range tests {
		id, err := ParseID(tt.in)
		if err != nil {
			t.Errorf("ParseID(%q): %v", tt.in, err)
			continue
		}
		got := []any{id.Type(), id.Parent().String(), id.Name(), id.Subscription(), id.ResourceGroup(), id.Names()}
		want := []any{tt.typ, tt.parent, tt.name, tt.sub, tt.group, tt.names}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", tt.in, d)
		}
	}
}

func TestParseIDRefuses(t *testing.T) {
	for _, s := range []string{
		"", "subscriptions/x", "/subscriptions/", "/subscriptions//x", "/subscriptions/x/../y", "/subscriptions/.", "/a/b%2fc",
		"/a/b\\c", "/a/b?c", "/a/b#c", "/a/b\x00c", "/subscriptions", "/subscriptions/s/providers/Microsoft.A", "/subscriptions/s/providers/Microsoft.A/b",
	} {
		if id, err := ParseID(s); err == nil {
			t.Errorf("ParseID(%q) = %v, want an error", s, id)
		}
	}
}

func TestScopesAndContains(t *testing.T) {
	id := MustParseID("/subscriptions/S/resourceGroups/G/providers/Microsoft.A/b/n/c/m")
	want := []string{"/", "/subscriptions/s", "/subscriptions/s/resourcegroups/g", "/subscriptions/s/resourcegroups/g/providers/microsoft.a/b/n", "/subscriptions/s/resourcegroups/g/providers/microsoft.a/b/n/c/m"}
	if d := cmp.Diff(want, id.Scopes()); d != "" {
		t.Errorf("Scopes (-want +got):\n%s", d)
	}
	if !MustParseID("/subscriptions/s").Contains(id) || MustParseID("/subscriptions/s2").Contains(id) {
		t.Error("Contains disagrees")
	}
	if MustParseID("/subscriptions/S/resourceGroups/G2").Contains(MustParseID("/subscriptions/S/resourceGroups/G22")) {
		t.Error("a group contains another whose name it begins")
	}
}

func FuzzParseID(f *testing.F) {
	f.Add("/subscriptions/s/resourceGroups/g/providers/Microsoft.A/b/n")
	f.Add("/providers/Microsoft.A/b/n/providers/Microsoft.C/d/e")
	f.Fuzz(func(t *testing.T, s string) {
		id, err := ParseID(s)
		if err != nil {
			return
		}
		if again, err := ParseID(id.String()); err != nil || again != id {
			t.Fatalf("%q does not parse again: %v", s, err)
		}
		if p := id.Parent(); !p.Contains(id) {
			t.Fatalf("%q is outside its parent %q", s, p)
		}
		id.Names()
		id.Type()
		id.Scopes()
	})
}
