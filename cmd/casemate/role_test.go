package main

import (
	"context"
	"net/http"
	"strings"
	"testing"

	"casemate.dev/test/harness"
)

// TestRoleInOneGroup plays a client whose only role is in one resource group, as most people's is: it can begin with the lists
// that every client begins with, sees nothing else, and follows the deletion of its group to the end.
func TestRoleInOneGroup(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a platform")
	}
	w := newWalk(t)
	mine := w.NewGroup(t)
	account, _ := w.NewAccount(t, mine, nil)
	p := w.NewPrincipal(t, "group owner")
	lists := map[string]string{"/subscriptions": w.Subscription(), w.Subscription() + "/resourceGroups": mine, w.Subscription() + "/resources": account}
	get := func(path string) string {
		return string(w.Must(t, harness.Call{Method: http.MethodGet, URL: w.URL("management", path+"?api-version=2021-04-01"), As: p}, http.StatusOK).Body)
	}
	for path := range lists {
		if got := get(path); got != `{"value":[]}` {
			t.Errorf("%s without a role: %s", path, got)
		}
	}
	const owner = "8e3af657-a8ff-443c-a75c-2fe8c4bcb635"
	w.Grant(t, mine, owner, p)
	for path, want := range lists {
		if got := get(path); strings.Count(got, `"id":`) != 1 || !strings.Contains(strings.ToLower(got), strings.ToLower(`"id":"`+want+`"`)) {
			t.Errorf("%s with a role in %s: %s", path, mine, got)
		}
	}
	if a, err := w.ARMAs(context.Background(), p, http.MethodDelete, mine, harness.VersionGroup, nil); err != nil || a.Status >= 400 {
		t.Errorf("deleting the own group: %v, %v", a, err)
	}
}
