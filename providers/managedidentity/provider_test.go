package managedidentity_test

import (
	"context"
	"testing"

	"github.com/google/go-cmp/cmp"

	"casemate.dev/control/identity"
	"casemate.dev/providers/managedidentity"
	"casemate.dev/resource"
)

type directory map[string]identity.ManagedIdentity

func (d directory) EnsureManagedIdentity(_ context.Context, id resource.ID, _ string) (identity.ManagedIdentity, error) {
	if _, ok := d[id.Key()]; !ok {
		d[id.Key()] = identity.ManagedIdentity{PrincipalID: "p", ClientID: "c", TenantID: "t"}
	}
	return d[id.Key()], nil
}

func (d directory) RemoveManagedIdentity(_ context.Context, id resource.ID) error {
	delete(d, id.Key())
	return nil
}

func TestUserAssignedIdentity(t *testing.T) {
	d := directory{}
	typ := managedidentity.New(d).Types()[0]
	if err := typ.Check(); err != nil {
		t.Fatal(err)
	}
	doc := &resource.Document{
		ID:   resource.MustParseID("/subscriptions/s/resourceGroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/train"),
		Body: map[string]any{"location": "local", "properties": map[string]any{"principalId": "mine", "isolationScope": "None"}},
	}
	if err := typ.Validate(t.Context(), &resource.Write{New: doc}); err != nil {
		t.Fatal(err)
	}
	if doc.Get("properties.principalId") != nil {
		t.Error("the client chose a principal")
	}
	for range 2 {
		if err := typ.Reconcile(t.Context(), doc); err != nil {
			t.Fatal(err)
		}
	}
	want := map[string]any{"principalId": "p", "clientId": "c", "tenantId": "t", "isolationScope": "None"}
	if diff := cmp.Diff(want, doc.Get("properties")); diff != "" {
		t.Errorf("properties (-want +got):\n%s", diff)
	}
	next := &resource.Document{ID: doc.ID, Body: map[string]any{"properties": map[string]any{"clientId": "mine"}}}
	if err := typ.Validate(t.Context(), &resource.Write{Old: doc, New: next}); err != nil || next.String("properties.clientId") != "c" {
		t.Errorf("an update chose client id %q (%v)", next.String("properties.clientId"), err)
	}
	if err := typ.Remove(t.Context(), doc); err != nil || len(d) != 0 {
		t.Errorf("after Remove the directory holds %v (%v)", d, err)
	}
	for name, want := range map[string]bool{"abc": true, "a_b-1": true, "ab": false, "-abc": false, "a.bc": false, "a/bc": false} {
		if got := typ.NamePattern.MatchString(name); got != want {
			t.Errorf("name %q: %v", name, got)
		}
	}
}
