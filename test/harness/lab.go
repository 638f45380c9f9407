package harness

import (
	"context"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"casemate.dev/client/image"
)

// API versions and roles of a Lab.
const (
	VersionNetwork  = "2024-05-01"
	VersionMachine  = "2025-01-01"
	VersionIdentity = "2023-01-31"
	VersionRegistry = "2023-07-01"
	VersionML       = "2024-10-01"
	VersionTrail    = "2026-01-01"

	RoleDataScientist = "f6c7c914-8db3-469d-8ca1-694a8f32e121"
	RoleAcrPull       = "7f951dda-4ed3-4680-a7ca-43fe172d538d"
	RoleAcrPush       = "8311e382-0749-4cb8-b61a-304f252e45ec"
)

// jobTime bounds how long a test waits for a job: far above what jobs take.
const jobTime = 45 * time.Second

// Lab is a workspace with real nodes: networks, private endpoints, an identity, an image. Its storage can be reached publicly
// so that tests can speak to it from here; its nodes reach it through the private endpoint as everywhere.
type Lab struct {
	*Server
	Group, Vault, Account, Workspace, Registry string // ARM ids
	VaultHost, BlobHost                        string
	Identity, IdentityClient                   string // ARM id, client id
	IdentityObject                             string
	Cluster, Environment, VNet                 string // ARM ids
	Store                                      string // name of the workspace's own container
	Kernel                                     string // prefix of the names of this server's network namespaces
}

// NewLab makes one; it skips the test where this machine or this user can have no nodes.
func NewLab(t testing.TB, o Options, nodes int) *Lab {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("not root: nodes need namespaces")
	}
	l := &Lab{Server: Start(t, o)}
	t.Cleanup(func() { l.Remove(t) })
	if log := l.Log(); strings.Contains(log, "\noff: ") || strings.HasPrefix(log, "off: ") {
		t.Skipf("this machine has no nodes: %s", log)
	}
	l.Group = l.NewGroup(t)
	l.makeNetwork(t)
	l.makeIdentity(t)
	l.makeStores(t)
	l.makeWorkspace(t)
	l.makeCluster(t, nodes)
	l.pushImage(t)
	return l
}

// Remove deletes all that NewLab made, unless it is gone or the server is, and wants nothing of the networks to stay on the machine.
func (l *Lab) Remove(t testing.TB) {
	t.Helper()
	if l.exited == nil || l.Kernel == "" || t.Failed() {
		return
	}
	// The test's own context has ended where this is a cleanup.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), jobTime)
	defer cancel()
	if a, err := l.ARM(ctx, http.MethodDelete, l.Group, VersionGroup, nil); err != nil || a.Status >= 300 && a.Status != http.StatusNotFound {
		t.Errorf("deleting the group: %v %v", a, err)
	}
	if left, _ := filepath.Glob("/run/netns/" + l.Kernel + "-*"); len(left) > 0 {
		t.Errorf("network namespaces are left: %v", left)
	}
	l.Kernel = ""
}

func (l *Lab) provider(namespace, rest string) string {
	return l.Group + "/providers/Microsoft." + namespace + "/" + rest
}

// Subnet is the ARM id of one of the network's subnets: endpoints, training, scoring, desks.
func (l *Lab) Subnet(name string) string { return l.VNet + "/subnets/" + name }

func (l *Lab) makeNetwork(t testing.TB) {
	t.Helper()
	rule := func(name string, priority int, direction, access, from, to, port string) map[string]any {
		return map[string]any{"name": name, "properties": map[string]any{"priority": priority, "direction": direction, "access": access, "protocol": "*",
			"sourceAddressPrefix": from, "sourcePortRange": "*", "destinationAddressPrefix": to, "destinationPortRange": port}}
	}
	group := l.provider("Network", "networkSecurityGroups/nodes")
	l.MustARM(t, http.MethodPut, group, VersionNetwork, map[string]any{"location": "local", "properties": map[string]any{"securityRules": []any{
		rule("endpoints", 100, "Outbound", "Allow", "*", "10.30.0.0/24", l.Port), rule("tokens", 110, "Outbound", "Allow", "*", "AzureActiveDirectory", l.Port),
		rule("no-other-out", 4000, "Outbound", "Deny", "*", "*", "*"),
		rule("platform", 100, "Inbound", "Allow", "AzureLoadBalancer", "*", "5001"), rule("no-other-in", 4000, "Inbound", "Deny", "*", "*", "*"),
	}}})
	subnet := func(name, prefix string, closed bool) map[string]any {
		p := map[string]any{"addressPrefix": prefix}
		if closed {
			p["networkSecurityGroup"] = map[string]any{"id": group}
		}
		return map[string]any{"name": name, "properties": p}
	}
	l.VNet = l.provider("Network", "virtualNetworks/lab")
	l.MustARM(t, http.MethodPut, l.VNet, VersionNetwork, map[string]any{"location": "local", "properties": map[string]any{
		"addressSpace": map[string]any{"addressPrefixes": []any{"10.30.0.0/16"}},
		"subnets":      []any{subnet("endpoints", "10.30.0.0/24", false), subnet("training", "10.30.1.0/24", true), subnet("scoring", "10.30.2.0/24", true), subnet("desks", "10.30.3.0/24", false)}}})
	desk := l.MustARM(t, http.MethodPut, l.Group+"/providers/Casemate.Network/attachedMachines/desk", VersionMachine, map[string]any{"location": "local",
		"properties": map[string]any{"subnet": map[string]any{"id": l.Subnet("desks")}}})
	path := desk.Field("properties.namespacePath")
	if path == "" {
		path = l.MustARM(t, http.MethodGet, l.Group+"/providers/Casemate.Network/attachedMachines/desk", VersionMachine, nil).Field("properties.namespacePath")
	}
	name := path[strings.LastIndexByte(path, '/')+1:]
	i := strings.LastIndexByte(name, '-')
	if i < 0 {
		t.Fatalf("the machine's namespace is %q", path)
	}
	l.Kernel = name[:i]
}

func (l *Lab) makeIdentity(t testing.TB) {
	t.Helper()
	l.Identity, l.IdentityClient, l.IdentityObject = l.NewIdentity(t, "jobs")
}

// NewIdentity makes a user-assigned identity without any role.
func (l *Lab) NewIdentity(t testing.TB, name string) (id, clientID, objectID string) {
	t.Helper()
	id = l.provider("ManagedIdentity", "userAssignedIdentities/"+name)
	a := l.MustARM(t, http.MethodPut, id, VersionIdentity, map[string]any{"location": "local"})
	return id, a.Field("properties.clientId"), a.Field("properties.principalId")
}

func (l *Lab) privateEndpoint(t testing.TB, name, target, group string) {
	t.Helper()
	l.MustARM(t, http.MethodPut, l.provider("Network", "privateEndpoints/"+name), VersionNetwork, map[string]any{"location": "local", "properties": map[string]any{
		"subnet":                        map[string]any{"id": l.Subnet("endpoints")},
		"privateLinkServiceConnections": []any{map[string]any{"name": name, "properties": map[string]any{"privateLinkServiceId": target, "groupIds": []any{group}}}}}})
}

func (l *Lab) makeStores(t testing.TB) {
	t.Helper()
	l.Vault, l.VaultHost = l.NewVault(t, l.Group, map[string]any{"enablePurgeProtection": true})
	l.Account, l.BlobHost = l.NewAccount(t, l.Group, nil)
	l.Registry = l.provider("ContainerRegistry", "registries/reg"+Suffix())
	l.MustARM(t, http.MethodPut, l.Registry, VersionRegistry, map[string]any{"location": "local", "sku": map[string]any{"name": "Premium"}, "properties": map[string]any{"adminUserEnabled": false}})
	l.privateEndpoint(t, "vault", l.Vault, "vault")
	l.privateEndpoint(t, "blob", l.Account, "blob")
	l.privateEndpoint(t, "registry", l.Registry, "registry")
	as := &Principal{ObjectID: l.IdentityObject}
	l.Grant(t, l.Vault, RoleVaultAdministrator, l.Admin)
	l.Grant(t, l.Account, RoleBlobOwner, l.Admin)
	l.Grant(t, l.Account, RoleBlobContributor, as)
	l.Grant(t, l.Registry, RoleAcrPush, l.Admin)
	l.Grant(t, l.Registry, RoleAcrPull, as)
}

func (l *Lab) assigned() map[string]any {
	return map[string]any{"type": "UserAssigned", "userAssignedIdentities": map[string]any{l.Identity: map[string]any{}}}
}

func (l *Lab) makeWorkspace(t testing.TB) {
	t.Helper()
	l.Workspace = l.provider("MachineLearningServices", "workspaces/ws-"+Suffix())
	a := l.MustARM(t, http.MethodPut, l.Workspace, VersionML, map[string]any{"location": "local", "identity": l.assigned(), "properties": map[string]any{
		"storageAccount": l.Account, "keyVault": l.Vault, "containerRegistry": l.Registry, "hbiWorkspace": true, "primaryUserAssignedIdentity": l.Identity,
		"serverlessComputeSettings": map[string]any{"serverlessComputeCustomSubnet": l.Subnet("scoring")}}})
	if a.Field("properties.workspaceId") == "" {
		a = l.MustARM(t, http.MethodGet, l.Workspace, VersionML, nil)
	}
	l.Store = "azureml-blobstore-" + a.Field("properties.workspaceId")
	l.privateEndpoint(t, "workspace", l.Workspace, "amlworkspace")
	l.Grant(t, l.Workspace, RoleDataScientist, &Principal{ObjectID: l.IdentityObject})
	l.Grant(t, l.Workspace, RoleDataScientist, l.Admin)
}

func (l *Lab) makeCluster(t testing.TB, nodes int) {
	t.Helper()
	l.Cluster = l.Workspace + "/computes/nodes"
	l.MustARM(t, http.MethodPut, l.Cluster, VersionML, map[string]any{"location": "local", "identity": l.assigned(), "properties": map[string]any{"computeType": "AmlCompute",
		"properties": map[string]any{"vmSize": "Standard_DS3_v2", "enableNodePublicIp": false, "subnet": map[string]any{"id": l.Subnet("training")},
			"scaleSettings": map[string]any{"minNodeCount": 0, "maxNodeCount": nodes}}}})
}

func (l *Lab) pushImage(t testing.TB) {
	t.Helper()
	token, err := l.Admin.Token(t.Context(), "https://containerregistry.azure.net")
	if err != nil {
		t.Fatal(err)
	}
	host := l.Host(l.Registry[strings.LastIndexByte(l.Registry, '/')+1:] + ".azurecr")
	if _, err := image.Push(t.Context(), TinyImage(t), host+"/tiny:1", l.HTTP.Transport, token, nil); err != nil {
		t.Fatal(err)
	}
	l.Environment = l.NewEnvironment(t, "tiny", host+"/tiny:1")
}

// NewEnvironment registers an image.
func (l *Lab) NewEnvironment(t testing.TB, name, ref string) string {
	t.Helper()
	id := l.Workspace + "/environments/" + name + "/versions/1"
	l.MustARM(t, http.MethodPut, id, VersionML, map[string]any{"properties": map[string]any{"image": ref}})
	return id
}

// Upload puts files below a folder of the workspace's container and hands back the folder's address.
func (l *Lab) Upload(t testing.TB, folder string, files map[string]string) string {
	t.Helper()
	for name, text := range files {
		a, err := l.PutBlob(t.Context(), l.Admin, l.BlobHost, "/"+l.Store+"/"+folder+"/"+name, []byte(text))
		if err != nil || a.Status != http.StatusCreated {
			t.Fatalf("uploading %s: %v %v", name, a, err)
		}
	}
	return l.URL(l.BlobHost, "/"+l.Store+"/"+folder)
}

// NewCode uploads files and registers them as code.
func (l *Lab) NewCode(t testing.TB, name string, files map[string]string) string {
	t.Helper()
	id := l.Workspace + "/codes/" + name + "/versions/1"
	l.MustARM(t, http.MethodPut, id, VersionML, map[string]any{"properties": map[string]any{"codeUri": l.Upload(t, "code/"+name, files)}})
	return id
}

// JobBody is the body of a command job; code may be empty.
func (l *Lab) JobBody(command, code string) map[string]any {
	p := map[string]any{"jobType": "Command", "experimentName": "test", "command": command, "environmentId": l.Environment, "computeId": l.Cluster,
		"identity": map[string]any{"identityType": "Managed", "clientId": l.IdentityClient}, "limits": map[string]any{"jobLimitsType": "Command", "timeout": "PT5M"}}
	if code != "" {
		p["codeId"] = code
	}
	return map[string]any{"properties": p}
}

// Submit starts a command job and hands back its ARM id.
func (l *Lab) Submit(t testing.TB, name, command, code string) string {
	t.Helper()
	id := l.Workspace + "/jobs/" + name
	l.MustARM(t, http.MethodPut, id, VersionML, l.JobBody(command, code))
	return id
}

// Ended are the statuses that a job does not leave.
var Ended = []string{"Completed", "Failed", "Canceled"}

// Await waits until a job has one of the statuses, and fails the test when it ends otherwise.
func (l *Lab) Await(t testing.TB, job string, statuses ...string) Answer {
	t.Helper()
	a, is := Answer{}, ""
	l.Until(t, "the job "+job, func() bool {
		a = l.MustARM(t, http.MethodGet, job, VersionML, nil)
		is = a.Field("properties.status")
		return slices.Contains(statuses, is) || slices.Contains(Ended, is)
	})
	if !slices.Contains(statuses, is) {
		t.Fatalf("the job %s is %s, want %v: %s %s\n%s", job, is, statuses, a.Field("properties.error.code"), a.Field("properties.error.message"), l.JobLog(t, job))
	}
	return a
}

// Until polls a condition until it holds.
func (l *Lab) Until(t testing.TB, what string, holds func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), jobTime)
	defer cancel()
	for !holds() {
		select {
		case <-ctx.Done():
			t.Fatalf("waiting for %s: %v", what, ctx.Err())
		case <-time.After(50 * time.Millisecond): // polling is what the protocol offers
		}
	}
}

// JobLog is what a job has printed so far; empty when there is nothing.
func (l *Lab) JobLog(t testing.TB, job string) string {
	t.Helper()
	name := job[strings.LastIndexByte(job, '/')+1:]
	a := l.Must(t, Call{Method: http.MethodGet, URL: l.URL(l.BlobHost, "/azureml/ExperimentRun/dcid."+name+"/user_logs/std_log.txt"), As: l.Admin}, 200, 404)
	if a.Status != http.StatusOK {
		return ""
	}
	return string(a.Body)
}

// AwaitLog waits for a line of a running job's log that begins with mark, and hands back what follows.
func (l *Lab) AwaitLog(t testing.TB, job, mark string) string {
	t.Helper()
	found := ""
	l.Until(t, mark+" in the log of "+job, func() bool {
		for line := range strings.Lines(l.JobLog(t, job)) {
			if rest, ok := strings.CutPrefix(line, mark); ok && strings.HasSuffix(line, "\n") {
				found = strings.TrimSpace(rest)
				return true
			}
		}
		a := l.MustARM(t, http.MethodGet, job, VersionML, nil)
		if s := a.Field("properties.status"); s == "Failed" || s == "Canceled" {
			t.Fatalf("the job is %v\n%s", a, l.JobLog(t, job))
		}
		return false
	})
	return found
}

// Cancel cancels a job and waits for its end.
func (l *Lab) Cancel(t testing.TB, job string) {
	t.Helper()
	l.MustARM(t, http.MethodPost, job+"/cancel", VersionML, map[string]any{})
	l.Await(t, job, "Canceled")
}
