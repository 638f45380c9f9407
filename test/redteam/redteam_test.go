// Package redteam repeats, against a live server and through its public interface, attacks that similar systems fell to.
// The names R1 … R35 are those of the list of attacks in docs; each test says in its comment what really happened and
// passes only if the attack fails. Rows that visit every route are in cmd/casemate, which can enumerate them.
//
// Nothing here uses a power that an outsider lacks: the world below is made with the administrator's client secret.
package redteam

import (
	"bytes"
	"net/http"
	"strings"
	"testing"

	"casemate.dev/test/harness"
)

// canary is what nobody but the administrator may ever see.
const canary = "canary-7d1f0c52-patient-0042"

// world is a small hospital: a vault and two containers with secrets in them, and people who may see some of it.
type world struct {
	*harness.Server
	group, vault, account string // ARM ids
	vaultHost, blobHost   string
	nobody                *harness.Principal // no role at all
	reader                *harness.Principal // Reader of the subscription: control plane only
	contributor           *harness.Principal // Contributor of the resource group
	student               *harness.Principal // Storage Blob Data Contributor of the container "open" only
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{Server: harness.Start(t, harness.Options{})}
	w.group = w.NewGroup(t)
	w.vault, w.vaultHost = w.NewVault(t, w.group, nil)
	w.account, w.blobHost = w.NewAccount(t, w.group, nil)
	w.Grant(t, w.vault, harness.RoleVaultAdministrator, w.Admin)
	w.Grant(t, w.account, harness.RoleBlobOwner, w.Admin)
	w.NewContainer(t, w.blobHost, "open")
	w.NewContainer(t, w.blobHost, "closed")
	for _, path := range []string{"/closed/secret.csv", "/closed/dir/secret.csv"} {
		a, err := w.PutBlob(t.Context(), w.Admin, w.blobHost, path, []byte(canary))
		if err != nil || a.Status != http.StatusCreated {
			t.Fatalf("uploading the canary: %v %v", a, err)
		}
	}
	w.Must(t, harness.Call{Method: http.MethodPut, URL: w.secretURL("canary"), As: w.Admin, Body: map[string]any{"value": canary}})
	w.nobody = w.NewPrincipal(t, "nobody")
	w.reader = w.NewPrincipal(t, "reader")
	w.Grant(t, w.Subscription(), harness.RoleReader, w.reader)
	w.contributor = w.NewPrincipal(t, "contributor")
	w.Grant(t, w.group, harness.RoleContributor, w.contributor)
	w.student = w.NewPrincipal(t, "student")
	w.Grant(t, w.account+"/blobServices/default/containers/open", harness.RoleBlobContributor, w.student)
	return w
}

func (w *world) secretURL(name string) string {
	return w.URL(w.vaultHost, "/secrets/"+name+"?api-version="+harness.VersionSecret)
}

func (w *world) send(t *testing.T, c harness.Call) harness.Answer {
	t.Helper()
	a, err := w.Send(t.Context(), c)
	if err != nil {
		t.Fatalf("%s %s: %v", c.Method, c.URL, err)
	}
	return a
}

// refused demands one of the statuses, and that nothing secret was told.
func refused(t *testing.T, what string, a harness.Answer, statuses ...int) {
	t.Helper()
	ok := false
	for _, s := range statuses {
		ok = ok || a.Status == s
	}
	if !ok {
		t.Errorf("%s = %v, want one of %v", what, a, statuses)
	}
	silent(t, what, a)
}

func silent(t *testing.T, what string, a harness.Answer) {
	t.Helper()
	if bytes.Contains(a.Body, []byte(canary)) {
		t.Errorf("%s told the canary", what)
	}
	for name, values := range a.Header {
		if strings.Contains(strings.Join(values, " "), canary) {
			t.Errorf("%s told the canary in %s", what, name)
		}
	}
}

// TestRedTeam runs the attacks on one server; the names in THREATS order.
func TestRedTeam(t *testing.T) {
	w := newWorld(t)
	for _, attack := range []struct {
		name string
		run  func(*testing.T, *world)
	}{
		{"R7_target_port_header", targetPort},
		{"R14_reader_lists_names", readerListsNames},
		{"R15_contributor_grants_itself_data", contributorGrantsItself},
		{"R17_other_tenant_and_wrong_claims", otherTenant},
		{"R18_trust_by_source", trustBySource},
		{"R20_path_traversal", pathTraversal},
		{"R21_second_way_in", secondWayIn},
		{"R22_default_credentials", defaultCredentials},
		{"R23_host_header", hostHeader},
		{"R30_path_normalisation", pathNormalisation},
		{"R35_forged_tokens", forgedTokens},
		{"bad_input", badInput},
	} {
		t.Run(attack.name, func(t *testing.T) { attack.run(t, w) })
	}
	if log := w.Log(); strings.Contains(log, "panicked") || strings.Contains(log, canary) || strings.Contains(log, w.Admin.Secret) {
		t.Error("the server's log shows a panic, the canary or the administrator's secret")
	}
}
