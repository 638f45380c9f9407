package main

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"casemate.dev/resource"
	"casemate.dev/test/harness"
)

// TestMain lets the node runtime start this binary as an agent, as it starts casemate itself.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "agent" {
		main()
		return
	}
	os.Exit(m.Run())
}

// walk is the App that main starts, served on a free port, and the world in which every row is visited.
type walk struct {
	*harness.Platform
	t     *testing.T
	app   *App
	dir   string
	group string // ARM id
	// open and closed are the host names of each plane: of a resource that may be reached from everywhere, and of one whose
	// public access is disabled.
	open, closed map[resource.Plane]string
	values       map[string]string // of pattern variables
	nobody       *harness.Principal
	stranger     *harness.Principal
}

func newWalk(t *testing.T) *walk {
	t.Helper()
	w := &walk{t: t, dir: t.TempDir()}
	cfg := defaults()
	cfg.Data, cfg.Listen, cfg.DNS = w.dir, "127.0.0.1:0", ""
	ctx, stop := context.WithCancel(context.Background())
	app, err := New(ctx, cfg, slog.New(slog.NewTextHandler(io.Discard, nil)))
	if err != nil {
		t.Fatal(err)
	}
	ready, done := make(chan bool), make(chan error, 1)
	go func() { done <- app.Run(ctx, func() { close(ready) }) }()
	<-ready
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil && !w.broken() {
			t.Errorf("ending the platform: %v", err)
		}
	})
	w.app = app
	if w.Platform, err = harness.Connect(w.dir); err != nil {
		t.Fatal(err)
	}
	w.furnish()
	return w
}

// broken says whether the audit log was made to fail.
func (w *walk) broken() bool { return w.app.audit.Healthy() != nil }

// furnish makes one resource of each kind that has a host, twice: reachable and not.
func (w *walk) furnish() {
	t := w.t
	w.group = w.NewGroup(t)
	off := map[string]any{"publicNetworkAccess": "Disabled"}
	vault, vaultHost := w.NewVault(t, w.group, nil)
	_, closedVault := w.NewVault(t, w.group, off)
	account, accountHost := w.NewAccount(t, w.group, nil)
	_, closedAccount := w.NewAccount(t, w.group, off)
	workspace := func(props map[string]any) (name, host string) {
		name = "ws-" + harness.Suffix()
		all := map[string]any{"keyVault": vault, "storageAccount": account, "friendlyName": name}
		maps.Copy(all, props)
		id := w.group + "/providers/Microsoft.MachineLearningServices/workspaces/" + name
		w.MustARM(t, http.MethodPut, id, "2024-04-01", map[string]any{"location": "local", "identity": map[string]any{"type": "SystemAssigned"}, "properties": all})
		return name, w.MustARM(t, http.MethodGet, id, "2024-04-01", nil).Field("properties.workspaceId") + ".workspace"
	}
	name, workspaceHost := workspace(nil)
	_, closedWorkspace := workspace(off)
	w.open = map[resource.Plane]string{resource.PlaneManagement: "management", resource.PlaneLogin: "login", resource.PlaneGraph: "graph",
		resource.PlaneVault: vaultHost, resource.PlaneBlob: accountHost, resource.PlaneWorkspace: workspaceHost,
		resource.PlaneScoring: w.endpoint(name)}
	w.closed = map[resource.Plane]string{resource.PlaneVault: closedVault, resource.PlaneBlob: closedAccount, resource.PlaneWorkspace: closedWorkspace}
	if w.app.hosts(resource.PlaneRegistry) {
		w.open[resource.PlaneRegistry], w.closed[resource.PlaneRegistry] = w.registry("Enabled"), w.registry("Disabled")
	}
	last := func(id string) string { return id[strings.LastIndexByte(id, '/')+1:] }
	w.values = map[string]string{
		"subscriptionId": last(w.Subscription()), "subscription": last(w.Subscription()), "resourceGroupName": last(w.group), "group": last(w.group), "groups": "resourceGroups",
		"providers": "providers", "namespace": "Microsoft.MachineLearningServices", "workspaces": "workspaces", "workspace": name, "workspacesName0": name, "protocol": "v2.0",
		"vaultsName0": last(vault), "vaultName": last(vault), "storageAccountsName0": last(account), "accountName": last(account), "tenant": w.Admin.Tenant,
		"scope": strings.TrimPrefix(w.group, "/"), "id": w.Admin.ObjectID, "member": w.Admin.ObjectID, "operationId": w.operationID(), "location": "local", "container": "data", "containerName": "data",
		"roleAssignmentsName0": w.Admin.ObjectID, "roleDefinitionsName0": harness.RoleReader, "roleDefinitionId": harness.RoleReader, "version": "1",
	}
	w.nobody = w.NewPrincipal(t, "nobody")
	w.stranger = w.NewTenant(t, "Another hospital")
	for scope, role := range map[string]string{vault: harness.RoleVaultAdministrator, account: harness.RoleBlobOwner} {
		w.Grant(t, scope, role, w.Admin)
	}
}

// operationID is that of a real long-running operation.
func (w *walk) operationID() string {
	id := w.NewGroup(w.t)
	a := w.Must(w.t, harness.Call{Method: http.MethodDelete, URL: w.URL("management", id+"?api-version="+harness.VersionGroup), As: w.Admin}, http.StatusAccepted)
	u, err := url.Parse(a.Header.Get("Location"))
	if err != nil {
		w.t.Fatal(err)
	}
	return path.Base(u.Path)
}

// hosts says whether any row is on the plane.
func (a *App) hosts(p resource.Plane) bool {
	return slices.ContainsFunc(a.gateway.Routes(), func(r resource.Route) bool { return r.Plane == p })
}

func (w *walk) endpoint(workspace string) string {
	name := "ep-" + harness.Suffix()
	id := w.group + "/providers/Microsoft.MachineLearningServices/workspaces/" + workspace + "/onlineEndpoints/" + name
	w.MustARM(w.t, http.MethodPut, id, "2024-04-01", map[string]any{"location": "local", "identity": map[string]any{"type": "SystemAssigned"}, "properties": map[string]any{"authMode": "Key"}})
	uri := w.MustARM(w.t, http.MethodGet, id, "2024-04-01", nil).Field("properties.scoringUri")
	host, _, _ := strings.Cut(strings.TrimPrefix(uri, "https://"), ":")
	return strings.TrimSuffix(host, "."+w.Domain)
}

func (w *walk) registry(access string) string {
	name := "cr" + harness.Suffix()
	w.MustARM(w.t, http.MethodPut, w.group+"/providers/Microsoft.ContainerRegistry/registries/"+name, "2023-07-01",
		map[string]any{"location": "local", "sku": map[string]any{"name": "Premium"}, "properties": map[string]any{"publicNetworkAccess": access}})
	return name + ".azurecr"
}

// registryPaths are what the registry's rows, one for each method, are asked for; "app/manifests/latest" for the others.
var registryPaths = map[string]string{
	http.MethodPost:  "app/blobs/uploads/",
	http.MethodPatch: "app/blobs/uploads/5b0c6d5e-54b5-4f0e-9d7c-3a9d0c7f3c11",
}

// signInForm hands a token over in the body, as registry clients do at the token rows.
func signInForm(c harness.Call, token string) harness.Call {
	c.Header = http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}
	form := url.Values{"grant_type": {"refresh_token"}, "refresh_token": {token}, "access_token": {token}, "scope": {"repository:app:pull"}}
	u, _ := url.Parse(c.URL) // made by this test
	form.Set("service", u.Host)
	switch {
	case c.Method == http.MethodGet:
		basic := base64.StdEncoding.EncodeToString([]byte("00000000-0000-0000-0000-000000000000:" + token))
		c.Header = http.Header{"Authorization": {"Basic " + basic}}
		c.URL += "&service=" + u.Host
		return c
	case strings.HasSuffix(u.Path, "/exchange"):
		form.Set("grant_type", "access_token")
	}
	c.Body = form.Encode()
	return c
}

// call is a plausible request for a row.
func (w *walk) call(r resource.Route, host string) harness.Call {
	var segs []string
	for seg := range strings.SplitSeq(strings.TrimPrefix(r.Pattern, "/"), "/") {
		if name, ok := strings.CutPrefix(seg, "{"); ok {
			name = strings.TrimSuffix(strings.TrimSuffix(name, "}"), "...")
			seg = cmp.Or(w.values[name], "x1")
			if r.Plane == resource.PlaneRegistry {
				seg = cmp.Or(registryPaths[r.Method], "app/manifests/latest")
			}
		}
		segs = append(segs, seg)
	}
	var query []string
	header := http.Header{}
	for _, c := range r.Query {
		if strings.HasPrefix(c, "!") {
			continue
		}
		if name, ok := strings.CutPrefix(c, "header:"); ok {
			header.Set(name, "https://127.0.0.1/x")
			continue
		}
		if c == "api-version" {
			continue // stands below
		}
		if !strings.Contains(c, "=") {
			c += "=x"
		}
		query = append(query, c)
	}
	version := "2099-01-01"
	if list := r.Versions.List(); len(list) > 0 {
		version = slices.Max(list)
	}
	query = append(query, "api-version="+version)
	if r.Plane == resource.PlaneLogin {
		query = append(query, "authorization_endpoint="+w.URL("login", "/common/oauth2/v2.0/authorize"))
	}
	c := harness.Call{Method: r.Method, URL: w.URL(host, "/"+strings.Join(segs, "/")+"?"+strings.Join(query, "&")), Header: header}
	if r.Body > 2 && r.Method != http.MethodGet && r.Method != http.MethodHead {
		c.Body = map[string]any{}
	}
	return c
}

// TestRouteWalk visits every row of the running platform and demands its refusals (R21, R17, R35: a second way in, another
// tenant's token, forged tokens).
func TestRouteWalk(t *testing.T) {
	if testing.Short() {
		t.Skip("visits every row a dozen times")
	}
	w := newWalk(t)
	tokens := w.wrongTokens()
	rows := 0
	for _, r := range w.app.gateway.Routes() {
		if r.Plane == resource.PlaneNode {
			w.nodeRow(r)
			continue
		}
		host, ok := w.open[r.Plane]
		if !ok {
			t.Errorf("plane %s has no host in this test", r.Plane)
			continue
		}
		rows++
		if r.Open != "" {
			w.openRow(r, host, tokens)
			continue
		}
		w.expect(r, "no token", w.call(r, host), http.StatusUnauthorized)
		for what, token := range tokens {
			c := w.call(r, host)
			c.Token = token
			w.expect(r, what, c, http.StatusUnauthorized)
		}
		for who, p := range map[string]*harness.Principal{"no role": w.nobody, "another tenant": w.stranger} {
			c := w.call(r, host)
			c.As = p
			w.expect(r, who, c, map[string]int{"no role": http.StatusForbidden, "another tenant": http.StatusUnauthorized}[who])
		}
		w.blocked(r)
	}
	t.Logf("%d rows", rows)
	w.auditBroken()
}

func (w *walk) send(r resource.Route, what string, c harness.Call) (harness.Answer, bool) {
	a, err := w.Send(context.Background(), c)
	if err != nil {
		w.t.Errorf("%s %s, %s: %v", r.Plane, r.Name, what, err)
	}
	return a, err == nil
}

func (w *walk) expect(r resource.Route, what string, c harness.Call, want ...int) {
	w.t.Helper()
	if a, ok := w.send(r, what, c); ok && !slices.Contains(want, a.Status) {
		w.t.Errorf("%s %s, %s: %s %s = %v, want %v", r.Plane, r.Name, what, c.Method, c.URL, a, want)
	}
}

// anonymous are the rows from which a stranger may get an answer that is no refusal. Adding one is a decision.
var anonymous = []string{"Health_Get", "Metadata_Endpoints", "Discovery_V2", "Discovery_V1", "Discovery_ADFS", "Keys_V2", "Keys_V1", "Keys_ADFS", "Instance_Discovery", "Workspace_Discovery"}

// openRow visits a row that asks for no role: it has a reason, and who brings nothing gets nothing but discovery.
func (w *walk) openRow(r resource.Route, host string, tokens map[string]string) {
	a, ok := w.send(r, "no token", w.call(r, host))
	switch {
	case !ok:
	case slices.Contains(anonymous, r.Name) && (r.Audit == resource.AuditProbe):
		if a.Status != http.StatusOK {
			w.t.Errorf("%s %s, no token = %v, want 200", r.Plane, r.Name, a)
		}
	case a.Status < 400 || a.Status >= 500:
		w.t.Errorf("%s %s is open and answers a stranger: %v", r.Plane, r.Name, a)
	}
	if r.Plane == resource.PlaneLogin { // has no bearer tokens
		return
	}
	for what, token := range tokens {
		c := w.call(r, host)
		c.Token = token
		if r.Plane == resource.PlaneRegistry && strings.HasPrefix(r.Name, "Token_") {
			c = signInForm(w.call(r, host), token)
		}
		w.expect(r, what, c, http.StatusUnauthorized)
	}
}

// nodeRow wants the rows of instance metadata out of reach of everybody outside a node.
func (w *walk) nodeRow(r resource.Route) {
	for _, host := range w.open {
		c := w.call(r, host)
		c.Header.Set("Metadata", "true")
		c.As = w.Admin
		if a, ok := w.send(r, "from outside", c); ok && (a.Status < 400 || a.Status >= 500) {
			w.t.Errorf("%s %s answers outside of nodes at %s: %v", r.Plane, r.Name, host, a)
		}
	}
}

// blocked sends the administrator's good token to a resource whose public access is off.
func (w *walk) blocked(r resource.Route) {
	if r.Origin != resource.OriginResource {
		return
	}
	host, ok := w.closed[r.Plane]
	if !ok {
		w.t.Errorf("plane %s has no closed host in this test", r.Plane)
		return
	}
	c := w.call(r, host)
	w.expect(r, "no token at a closed host", c, http.StatusUnauthorized)
	c.As = w.Admin
	w.expect(r, "blocked origin", c, http.StatusForbidden)
}

// wrongTokens are bearer tokens that nobody may believe; test/redteam tries many more at one row.
func (w *walk) wrongTokens() map[string]string {
	w.t.Helper()
	good, err := w.Admin.Token(context.Background(), "https://management.azure.com")
	if err != nil {
		w.t.Fatal(err)
	}
	parts := strings.Split(good, ".")
	edit := func(part string, set map[string]any) string {
		raw, err := base64.RawURLEncoding.DecodeString(part)
		if err != nil {
			w.t.Fatal(err)
		}
		m := map[string]any{}
		if err := json.Unmarshal(raw, &m); err != nil {
			w.t.Fatal(err)
		}
		maps.Copy(m, set)
		raw, _ = json.Marshal(m) // came from JSON
		return base64.RawURLEncoding.EncodeToString(raw)
	}
	return map[string]string{
		"alg none":     edit(parts[0], map[string]any{"alg": "none"}) + "." + parts[1] + ".",
		"alg HS256":    edit(parts[0], map[string]any{"alg": "HS256"}) + "." + parts[1] + "." + parts[2],
		"unknown kid":  edit(parts[0], map[string]any{"kid": "x"}) + "." + parts[1] + "." + parts[2],
		"expired":      parts[0] + "." + edit(parts[1], map[string]any{"exp": 1}) + "." + parts[2],
		"any audience": parts[0] + "." + edit(parts[1], map[string]any{"aud": "*"}) + "." + parts[2],
		"zero object":  parts[0] + "." + edit(parts[1], map[string]any{"oid": "00000000-0000-0000-0000-000000000000"}) + "." + parts[2],
		"garbage":      "x",
	}
}

// auditBroken puts a full disk under the open audit log and visits every row again: what cannot be recorded is refused.
func (w *walk) auditBroken() {
	w.fillAuditDisk()
	sign := harness.Call{Method: http.MethodPut, URL: w.URL("management", w.Subscription()+"/resourceGroups/unrecorded?api-version=2021-04-01"), As: w.Admin, Body: map[string]any{"location": "local"}}
	w.expect(resource.Route{Name: "the first write"}, "audit sink broken", sign, http.StatusServiceUnavailable)
	for _, r := range w.app.gateway.Routes() {
		host, ok := w.open[r.Plane]
		if !ok || r.Plane == resource.PlaneNode || r.Audit == resource.AuditProbe {
			continue
		}
		c := w.call(r, host)
		c.As = w.Admin
		a, ok := w.send(r, "audit sink broken", c)
		if !ok || a.Status == http.StatusServiceUnavailable {
			continue
		}
		// What a row refuses before it would record stays refused; nothing is served.
		if a.Status < 400 || a.Status >= 500 {
			w.t.Errorf("%s %s, audit sink broken: %s %s = %v, want 503", r.Plane, r.Name, c.Method, c.URL, a)
			continue
		}
		w.t.Logf("%s %s, audit sink broken: refused before the record stage: %d %s", r.Plane, r.Name, a.Status, a.Code())
	}
	health, _ := w.send(resource.Route{Name: "Health_Get"}, "audit sink broken", harness.Call{Method: http.MethodGet, URL: w.URL("management", "/healthz")})
	if health.Status != http.StatusOK {
		w.t.Logf("health with a broken audit sink: %v", health)
	}
}

// fillAuditDisk replaces the file behind the audit log's open descriptor by /dev/full, on which every write fails as on a
// disk without room.
func (w *walk) fillAuditDisk() {
	w.t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		w.t.Skipf("descriptors cannot be listed: %v", err)
	}
	full, err := unix.Open("/dev/full", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	defer unix.Close(full)
	n := 0
	for _, fd := range fds {
		target, err := os.Readlink(filepath.Join("/proc/self/fd", fd.Name()))
		if err != nil || filepath.Dir(target) != filepath.Join(w.dir, "audit") {
			continue
		}
		var to int
		if _, err := fmt.Sscan(fd.Name(), &to); err != nil {
			w.t.Fatal(err)
		}
		if err := unix.Dup3(full, to, unix.O_CLOEXEC); err != nil {
			w.t.Fatal(err)
		}
		n++
	}
	if n == 0 {
		w.t.Fatal("the audit log has no open file")
	}
}
