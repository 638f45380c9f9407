package operation

import (
	"context"
	"errors"
	"strings"
	"testing"

	"casemate.dev/resource"
	"casemate.dev/store/storetest"
)

const assigned = group + "/providers/Microsoft.ManagedIdentity/userAssignedIdentities/mine"

type directory struct{ removed map[string]bool }

func (directory) EnsureSystemAssigned(context.Context, resource.ID) (string, string, error) {
	return "own", "home", nil
}

func (d directory) RemoveSystemAssigned(_ context.Context, id resource.ID) error {
	d.removed[id.Key()] = true
	return nil
}

// A principal is the platform's to name: a client that could name one would act as anybody.
func TestClientsNameNoPrincipal(t *testing.T) {
	uami := resource.Type{Name: "Microsoft.ManagedIdentity/userAssignedIdentities", Level: resource.AtResourceGroup, APIVersions: []string{"2024-01-01"}, Created: 201,
		Reconcile: func(_ context.Context, d *resource.Document) error {
			d.Set("properties.principalId", "mine")
			return nil
		}}
	acting := plainType()
	var seen []any
	acting.Validate = func(_ context.Context, w *resource.Write) error {
		seen = append(seen, w.New.Get("identity.principalId"))
		return nil
	}
	acting.Reconcile = func(_ context.Context, d *resource.Document) error {
		seen = append(seen, d.Get("identity.principalId"))
		return nil
	}
	plain := plainType()
	plain.Name = "Microsoft.Test/others"
	h := open(t, storetest.New(t), uami, acting, plain)
	defer h.stop()
	h.engine.cfg.Identities = directory{removed: map[string]bool{}}
	h.put(assigned, `{}`)
	const forged = `{"location":"local","identity":{"type":"UserAssigned","principalId":"victim","tenantId":"theirs",
		"userAssignedIdentities":{"` + assigned + `":{"principalId":"victim","clientId":"victim"}}}}`
	for _, id := range []string{thing, group + "/providers/Microsoft.Test/others/a"} {
		d := h.put(id, forged)
		if p := d.Get("identity.principalId"); p != nil {
			t.Errorf("%s acts as %v", id, p)
		}
		m, _ := d.Get("identity.userAssignedIdentities").(map[string]any)
		shown, _ := m[assigned].(map[string]any)
		if p := shown["principalId"]; p != nil && p != "mine" {
			t.Errorf("%s has %v for its user-assigned identity", id, p)
		}
	}
	for _, p := range seen {
		if p != nil {
			t.Errorf("the provider was told to act as %v", p)
		}
	}
	h.put(thing, `{"location":"local","identity":{"type":"SystemAssigned"}}`)
	seen = nil
	if d := h.put(thing, `{"location":"local","identity":{"type":"SystemAssigned","principalId":"victim"}}`); d.Get("identity.principalId") != "own" {
		t.Errorf("a system-assigned identity became %v", d.Get("identity.principalId"))
	}
	for _, p := range seen {
		if p != "own" {
			t.Errorf("the provider was told to act as %v, want its own principal", p)
		}
	}
	if d := h.put(thing, `{"location":"local","identity":{"type":"None","principalId":"victim"}}`); d.Get("identity.principalId") != nil {
		t.Errorf("without an identity it acts as %v", d.Get("identity.principalId"))
	}
}

type handle struct{ lost *bool }

func (handle) SealBytes(_ string, plain []byte) ([]byte, error) { return plain, nil }
func (h handle) OpenBytes(_ string, sealed []byte) ([]byte, error) {
	if *h.lost {
		return nil, errors.New("the key is revoked")
	}
	return sealed, nil
}

// A principal that outlived its resource would be inherited, roles and all, by the next one of the name.
func TestUnreadableResourceLeavesNoPrincipal(t *testing.T) {
	child := plainType()
	child.Name, child.Level, child.Owner, child.Tracked = "Microsoft.Test/things/parts", 0, "Microsoft.Test/things", false
	child.Reconcile = func(context.Context, *resource.Document) error { return nil }
	h := open(t, storetest.New(t), plainType(), child)
	defer h.stop()
	lost, d := false, directory{removed: map[string]bool{}}
	h.engine.cfg.Identities = d
	h.engine.cfg.Handle = func(context.Context, string) (Handle, error) { return handle{&lost}, nil }
	h.put(thing, `{"location":"local"}`)
	h.put(thing+"/parts/p", `{"identity":{"type":"SystemAssigned"}}`)
	lost = true
	if err := h.engine.Delete(t.Context(), admin, resource.MustParseID(thing)); err != nil {
		t.Fatal(err)
	}
	if !d.removed[strings.ToLower(thing)+"/parts/p"] {
		t.Error("the principal is still there")
	}
}

// Two spellings of one property could be read as two values: the one that is checked and the one that is used.
func TestSpellingsOfOnePropertyAreRefused(t *testing.T) {
	for body, ok := range map[string]bool{
		`{"identity":{},"Identity":{}}`:                                                         false,
		`{"properties":{"subnet":1,"\u017fubnet":2}}`:                                           false,
		`{"properties":{"list":[{"a":1,"A":2}]}}`:                                               false,
		`{"properties":{"a":1,"a":2}}`:                                                          true, // the last one, for everybody
		`{"properties":{"environmentVariables":{"http_proxy":"","HTTP_PROXY":""}}}`:             true,
		`{"properties":{"environmentVariables":{"a":{"b":1,"B":2}}}}`:                           false,
		`{"properties":{"environmentVariables":{},"EnvironmentVariables":{}}}`:                  false,
		`{"identity":{"userAssignedIdentities":{"/subscriptions/s":{},"/SUBSCRIPTIONS/s":{}}}}`: false,
	} {
		if _, err := resource.DecodeBody([]byte(body)); (err == nil) != ok {
			t.Errorf("%s: %v", body, err)
		}
	}
}
