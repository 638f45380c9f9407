package rbac_test

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"casemate.dev/control/rbac"
)

const ml = "Microsoft.MachineLearningServices/workspaces/"

func TestBuiltInRolesAllow(t *testing.T) {
	const (
		blobs = "Microsoft.Storage/storageAccounts/blobServices/containers/blobs/"
		vault = "Microsoft.KeyVault/vaults/"
	)
	tests := []struct {
		role, action string
		data, want   bool
	}{
		{"Owner", "Microsoft.Authorization/roleAssignments/write", false, true},
		{"Owner", blobs + "read", true, false},
		{"Contributor", "Microsoft.Authorization/roleAssignments/write", false, false},
		{"Contributor", "Microsoft.Authorization/roleAssignments/read", false, true},
		{"Contributor", vault + "write", false, true},
		{"Contributor", vault + "secrets/getSecret/action", true, false},
		{"Reader", ml + "read", false, true},
		{"Reader", ml + "listKeys/action", false, false},
		{"User Access Administrator", "Microsoft.Authorization/roleAssignments/write", false, true},
		{"AzureML Data Scientist", ml + "jobs/write", false, true},
		{"AzureML Data Scientist", ml + "write", false, false},
		{"AzureML Data Scientist", ml + "delete", false, false},
		{"AzureML Data Scientist", ml + "computes/write", false, false},
		{"AzureML Data Scientist", ml + "computes/delete", false, false},
		{"AzureML Data Scientist", ml + "computes/read", false, true},
		{"AzureML Data Scientist", ml + "computes/listKeys/action", false, false},
		{"AzureML Data Scientist", ml + "onlineEndpoints/score/action", false, true},
		{"AzureML Data Scientist", ml + "LISTKEYS/ACTION", false, false},
		{"AzureML Compute Operator", ml + "computes/write", false, true},
		{"AzureML Compute Operator", ml + "jobs/write", false, false},
		{"Storage Blob Data Reader", blobs + "read", true, true},
		{"Storage Blob Data Reader", blobs + "read", false, false},
		{"Storage Blob Data Reader", blobs + "write", true, false},
		{"Storage Blob Data Contributor", blobs + "add/action", true, true},
		{"Storage Blob Data Contributor", blobs + "manageOwnership/action", true, false},
		{"Storage Blob Data Owner", blobs + "manageOwnership/action", true, true},
		{"Key Vault Crypto Service Encryption User", vault + "keys/wrap/action", true, true},
		{"Key Vault Crypto Service Encryption User", vault + "keys/decrypt/action", true, false},
		{"Key Vault Crypto User", vault + "keys/decrypt/action", true, true},
		{"Key Vault Secrets User", vault + "secrets/getSecret/action", true, true},
		{"Key Vault Secrets User", vault + "secrets/setSecret/action", true, false},
		{"Key Vault Reader", vault + "secrets/getSecret/action", true, false},
		{"Key Vault Reader", vault + "secrets/readMetadata/action", true, true},
		{"Key Vault Administrator", vault + "keys/create/action", true, true},
		{"Key Vault Data Access Administrator", "Microsoft.Authorization/roleAssignments/write", false, false},
		{"AcrPull", "Microsoft.ContainerRegistry/registries/pull/read", false, true},
		{"AcrPull", "Microsoft.ContainerRegistry/registries/push/write", false, false},
		{"Managed Identity Operator", "Microsoft.ManagedIdentity/userAssignedIdentities/assign/action", false, true},
		{"Managed Identity Operator", "Microsoft.ManagedIdentity/userAssignedIdentities/a/assign/action", false, true},
	}
	roles := byName(t, builtIn(t))
	for _, tt := range tests {
		role, ok := roles[tt.role]
		if !ok {
			t.Errorf("no built-in role %q", tt.role)
			continue
		}
		if got := role.Allows(tt.action, tt.data); got != tt.want {
			t.Errorf("%s: Allows(%q, data=%v) = %v, want %v", tt.role, tt.action, tt.data, got, tt.want)
		}
	}
}

func TestBuiltInRolesEqualCorpus(t *testing.T) {
	corpus := map[string]rbac.Role{}
	for _, r := range corpusRoles(t) {
		corpus[r.ID] = r
	}
	seen := map[string]bool{}
	for _, got := range builtIn(t) {
		if seen[got.ID] {
			t.Errorf("role %s stands twice", got.ID)
		}
		seen[got.ID] = true
		want := corpus[got.ID]
		want.Description, got.Description = "", ""
		want.BuiltIn = true
		if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%s (-corpus +ours):\n%s", got.Name, diff)
		}
	}
}

func TestCorpusRolesEvaluate(t *testing.T) {
	roles := corpusRoles(t)
	engine := rbac.New(roles...)
	if got := len(engine.Roles()); got != len(roles) {
		t.Fatalf("engine holds %d roles, want %d", got, len(roles))
	}
	for _, r := range roles {
		for _, p := range r.Permissions {
			checkBlock(t, r, p.Actions, p.NotActions, false)
			checkBlock(t, r, p.DataActions, p.NotDataActions, true)
		}
	}
}

// checkBlock: what a block lists literally it grants, unless it subtracts it or has a condition.
func checkBlock(t *testing.T, r rbac.Role, yes, no []string, data bool) {
	t.Helper()
	any := func(list []string, action string) bool {
		for _, p := range list {
			if slowMatch(p, action) {
				return true
			}
		}
		return false
	}
	oracle := func(action string) bool {
		for _, p := range r.Permissions {
			a, n := p.Actions, p.NotActions
			if data {
				a, n = p.DataActions, p.NotDataActions
			}
			if p.Condition == "" && any(a, action) && !any(n, action) {
				return true
			}
		}
		return false
	}
	if len(yes) > 4 {
		yes = yes[:4] // the oracle compiles a regular expression for each comparison
	}
	for _, action := range append(append([]string(nil), yes...), no...) {
		if got, want := r.Allows(action, data), oracle(action); got != want {
			t.Errorf("%s: Allows(%q, data=%v) = %v, oracle says %v", r.Name, action, data, got, want)
		}
	}
}

func builtIn(t testing.TB) []rbac.Role {
	t.Helper()
	roles, err := rbac.BuiltIn()
	if err != nil {
		t.Fatal(err)
	}
	return roles
}

func byName(t *testing.T, roles []rbac.Role) map[string]rbac.Role {
	t.Helper()
	m := map[string]rbac.Role{}
	for _, r := range roles {
		if _, twice := m[r.Name]; twice {
			t.Errorf("role name %q stands twice", r.Name)
		}
		m[r.Name] = r
	}
	return m
}

// corpusRoles reads Azure's own list of built-in roles, which lies beside the repository where tests are to compare.
func corpusRoles(t *testing.T) []rbac.Role {
	t.Helper()
	path := filepath.Join("..", "..", "..", "shared", "corpus", "rbac", "azure", "built-in-roles-raw.json")
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		t.Skipf("corpus of built-in roles is absent (%s)", path)
	}
	if err != nil {
		t.Fatal(err)
	}
	var file []struct {
		Name, RoleName, Description string
		AssignableScopes            []string
		Permissions                 []rbac.Permission
	}
	if err := json.Unmarshal(b, &file); err != nil {
		t.Fatal(err)
	}
	var roles []rbac.Role
	for _, f := range file {
		roles = append(roles, rbac.Role{ID: f.Name, Name: f.RoleName, Description: f.Description,
			AssignableScopes: f.AssignableScopes, Permissions: f.Permissions})
	}
	return roles
}
