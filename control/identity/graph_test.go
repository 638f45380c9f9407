package identity_test

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"casemate.dev/control/identity"
	"casemate.dev/resource"
)

func TestGraphObjects(t *testing.T) {
	w := newWorld(t)
	user := w.mustGraph(http.MethodPost, "users", map[string]any{"displayName": "Ada", "userPrincipalName": "Ada@Example.org", "mailNickname": "ada", "accountEnabled": true})
	w.mustGraph(http.MethodPatch, "users/ada@example.org", map[string]any{"displayName": "Ada L.", "mail": "ada@example.org"})
	got := w.mustGraph(http.MethodGet, "users/"+user["id"].(string), nil)
	if got["displayName"] != "Ada L." || got["userPrincipalName"] != "Ada@Example.org" || got["accountEnabled"] != true {
		t.Errorf("user = %v", got)
	}
	a, app, _ := w.application("trainer")
	shown := w.mustGraph(http.MethodGet, "applications/"+app, nil)
	pw := shown["passwordCredentials"].([]any)[0].(map[string]any)
	if pw["hint"] != a.Secret[:3] || pw["secretText"] != nil {
		t.Errorf("credential = %v", pw)
	}
	me, err := w.CallerOf(t.Context(), a.ObjectID)
	w.must(err)
	_, self, err := w.do(resource.PlaneGraph, request{method: http.MethodGet, url: "/v1.0/me", caller: me})
	if err != nil || self["id"] != a.ObjectID {
		t.Errorf("me = %v, %v", self, err)
	}
	if _, _, err := w.do(resource.PlaneGraph, request{method: http.MethodGet, url: "/v1.0/me"}); resource.StatusOf(err) != http.StatusUnauthorized {
		t.Errorf("me of nobody: %v", err)
	}
	found := w.mustGraph(http.MethodPost, "directoryObjects/getByIds", map[string]any{"ids": []string{user["id"].(string), a.ObjectID, "nothing"}})
	if n := len(found["value"].([]any)); n != 2 {
		t.Errorf("getByIds found %d", n)
	}
	w.mustGraph(http.MethodDelete, "users/"+user["id"].(string), nil)
	if _, _, err := w.graph(http.MethodGet, "users/"+user["id"].(string), nil); codeOf(err) != "Request_ResourceNotFound" {
		t.Errorf("deleted user: %v", err)
	}
}

func TestGraphRefuses(t *testing.T) {
	w := newWorld(t)
	w.mustGraph(http.MethodPost, "users", map[string]any{"displayName": "Ada", "userPrincipalName": "ada@example.org"})
	_, app, _ := w.application("app")
	appID := w.mustGraph(http.MethodGet, "applications/"+app, nil)["appId"]
	other, err := w.CreateTenant(t.Context(), "Other")
	w.must(err)
	group := w.mustGraph(http.MethodPost, "groups", map[string]any{"displayName": "g"})["id"].(string)
	tests := []struct {
		method, path string
		body         any
		code         string
	}{
		{"POST", "users", map[string]any{"displayName": "x", "userPrincipalName": "ADA@example.org"}, "Request_MultipleObjectsWithSameKeyValue"},
		{"POST", "users", map[string]any{"displayName": "x", "userPrincipalName": "nodomain"}, "Request_BadRequest"},
		{"POST", "users", map[string]any{"userPrincipalName": "x@y"}, "Request_BadRequest"},
		{"POST", "users", map[string]any{"displayName": "x", "userPrincipalName": "x@y", "passwordProfile": map[string]any{}}, "NotSupported"},
		{"POST", "groups", map[string]any{"displayName": 7}, "Request_BadRequest"},
		{"POST", "groups", map[string]any{"displayName": "x", "mailEnabled": true}, "Request_BadRequest"},
		{"POST", "groups", map[string]any{"displayName": "x", "surprise": true}, "NotSupported"},
		{"POST", "groups", []string{}, "InvalidRequestContent"},
		{"POST", "applications", map[string]any{"displayName": "x", "keyCredentials": []any{}}, "NotSupported"},
		{"POST", "servicePrincipals", map[string]any{"appId": appID}, "Request_MultipleObjectsWithSameKeyValue"},
		{"POST", "servicePrincipals", map[string]any{"appId": other.ClientID}, "Request_BadRequest"},
		{"GET", "servicePrincipals/" + other.ObjectID, nil, "Request_ResourceNotFound"},
		{"GET", "users/" + app, nil, "Request_ResourceNotFound"},
		{"POST", "servicePrincipals/" + other.ObjectID + "/addPassword", map[string]any{}, "Request_ResourceNotFound"},
		{"POST", "applications/" + app + "/removePassword", map[string]any{"keyId": "none"}, "Request_BadRequest"},
		{"POST", "applications/" + app + "/addPassword", map[string]any{"passwordCredential": map[string]any{"endDateTime": "2020-01-01T00:00:00Z"}}, "Request_BadRequest"},
		{"POST", "groups/" + group + "/members/$ref", map[string]any{"@odata.id": "https://x/directoryObjects/" + group}, "Request_BadRequest"},
		{"POST", "groups/" + group + "/members/$ref", map[string]any{"@odata.id": "https://x/directoryObjects/" + other.ObjectID}, "Request_ResourceNotFound"},
		{"POST", "groups/" + group + "/members/$ref", map[string]any{"@odata.id": "https://x/directoryObjects/" + app}, "Request_ResourceNotFound"},
		{"DELETE", "groups/" + group + "/members/" + app + "/$ref", nil, "Request_ResourceNotFound"},
		{"GET", "users?$top=0", nil, "Request_BadRequest"},
		{"GET", "users?$filter=" + url.QueryEscape("not displayName"), nil, "Request_UnsupportedQuery"},
		{"POST", "tenants", map[string]any{}, "Request_BadRequest"},
	}
	for _, tt := range tests {
		if _, _, err := w.graph(tt.method, tt.path, tt.body); codeOf(err) != tt.code {
			t.Errorf("%s %s %v: %v, want %s", tt.method, tt.path, tt.body, err, tt.code)
		}
	}
}

func TestGraphListsByPage(t *testing.T) {
	w := newWorld(t)
	for i := range 5 {
		w.mustGraph(http.MethodPost, "groups", map[string]any{"displayName": fmt.Sprint("team ", i)})
	}
	path, seen := "groups?$top=2&$filter="+url.QueryEscape("startswith(displayName,'team') and not_a eq true or startswith(displayName,'TEAM')"), map[any]bool{}
	for range 3 {
		out := w.mustGraph(http.MethodGet, path, nil)
		for _, v := range out["value"].([]any) {
			seen[v.(map[string]any)["id"]] = true
		}
		next, _ := out["@odata.nextLink"].(string)
		path = strings.TrimPrefix(next, "https://graph.casemate.localhost:8443/v1.0/")
	}
	if len(seen) != 5 || path != "" {
		t.Errorf("saw %d groups, next %q", len(seen), path)
	}
}

func TestFindByServicePrincipalName(t *testing.T) {
	w := newWorld(t)
	out := w.mustGraph(http.MethodGet, "servicePrincipals?$filter="+url.QueryEscape("servicePrincipalNames/any(c:c eq '"+w.admin.ClientID+"')"), nil)
	list := out["value"].([]any)
	if len(list) != 1 || list[0].(map[string]any)["id"] != w.admin.ObjectID {
		t.Errorf("found %v", list)
	}
}

func TestFilter(t *testing.T) {
	view := map[string]any{"displayName": "O'Neil", "accountEnabled": true, "names": []string{"a", "B"}, "mail": nil}
	tests := map[string]string{
		"displayName eq 'o''neil'":                                      "yes",
		"displayName eq 'x'":                                            "no",
		"accountEnabled eq true":                                        "yes",
		"accountEnabled eq false":                                       "no",
		"names/any(x:x eq 'b')":                                         "yes",
		"names/any(x: x eq 'c')":                                        "no",
		"names/any(x:y eq 'b')":                                         "error",
		"startswith(displayName, 'o')":                                  "yes",
		"startswith(mail,'o')":                                          "no",
		"displayName eq 'x' or accountEnabled eq true":                  "yes",
		"displayName eq 'x' and accountEnabled eq true":                 "no",
		"accountEnabled eq true or displayName eq 'x' and mail eq 'x'":  "yes",
		"(accountEnabled eq true or displayName eq 'x') and mail eq ''": "no",
		"":                               "error",
		"displayName":                    "error",
		"displayName eq":                 "error",
		"displayName eq 'x":              "error",
		"displayName eq 'x' displayName": "error",
		"(displayName eq 'x'":            "error",
		"displayName ne 'x'":             "error",
		"'x' eq 'x'":                     "error",
		"accountEnabled eq TRUE":         "error",
		strings.Repeat("(", 3000):        "error",
		"startswith(displayName 'o')":    "error",
		"contains(displayName,'o')":      "error",
	}
	for text, want := range tests {
		got := "no"
		f, err := identity.ParseFilter(text)
		if err != nil {
			got = "error"
		} else if f(view) {
			got = "yes"
		}
		if got != want {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
	}
}

func FuzzFilter(f *testing.F) {
	f.Add("a eq 'b' and (startswith(c,'d') or e/any(x:x eq 'f'))")
	f.Fuzz(func(t *testing.T, text string) {
		if match, err := identity.ParseFilter(text); err == nil {
			match(map[string]any{"a": "b", "e": []string{"f"}})
		}
	})
}

// Objects of any kind are read by their ids: the right to read users alone must not be enough.
func TestReadingByIDsIsARightOfItsOwn(t *testing.T) {
	for _, r := range newWorld(t).Routes() {
		if r.Name == "directoryObjects_GetByIds" && r.Action != "Microsoft.Authorization/directory/directoryObjects/read" {
			t.Errorf("%s asks for %s", r.Name, r.Action)
		}
	}
}
