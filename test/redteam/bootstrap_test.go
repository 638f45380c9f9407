package redteam

import (
	"os"
	"path/filepath"
	"testing"

	"casemate.dev/test/harness"
)

// TestR22_bootstrap_happens_once: who could remove a file and restart a server got a fresh administrator (or a default one)
// of several products. Here a restart makes no credential, whatever is missing, and shows none.
func TestR22_bootstrap_happens_once(t *testing.T) {
	s := harness.Start(t, harness.Options{})
	first, admin := s.Env["AZURE_CLIENT_SECRET"], s.Admin
	group := s.NewGroup(t)
	s.Stop(t)
	if err := os.RemoveAll(filepath.Join(s.Dir, "client")); err != nil {
		t.Fatal(err)
	}
	s.Restart(t)
	if secret := s.Env["AZURE_CLIENT_SECRET"]; secret != "" {
		t.Errorf("a restart wrote a credential: %q", secret)
	}
	old := &harness.Principal{Tenant: admin.Tenant, AppID: admin.AppID, ObjectID: admin.ObjectID, Secret: first}
	s.Adopt(old)
	a, err := s.ARMAs(t.Context(), old, "GET", group, harness.VersionGroup, nil)
	if err != nil || a.Status != 200 {
		t.Errorf("the administrator's own secret after the restart: %v %v", a, err)
	}
	principals, err := s.Send(t.Context(), harness.Call{Method: "GET", URL: s.URL("graph", "/v1.0/servicePrincipals"), As: old})
	if err != nil {
		t.Fatal(err)
	}
	if list, _ := principals.JSON()["value"].([]any); len(list) != 1 {
		t.Errorf("%d service principals after the restart, want the administrator alone: %v", len(list), principals)
	}
}
