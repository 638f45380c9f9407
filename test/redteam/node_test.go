package redteam

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"casemate.dev/test/harness"
)

// TestNodes attacks nodes, from outside and from each other.
func TestNodes(t *testing.T) {
	if testing.Short() {
		t.Skip("starts nodes")
	}
	l := harness.NewLab(t, harness.Options{}, 2)
	for _, attack := range []struct {
		name string
		run  func(*testing.T, *harness.Lab)
	}{
		{"R1_code_overwritten", codeOverwritten},
		{"R4_model_poisoned", modelPoisoned},
		{"R5_R9_R12_credentials_of_a_node", nodeCredentials},
		{"R8_neighbours_of_a_node", neighbours},
		{"bad_jobs", badJobs},
	} {
		t.Run(attack.name, func(t *testing.T) { attack.run(t, l) })
	}
}

// codeOverwritten: Azure ML ran whatever stood in the storage account when the job started (Orca, 2023). Here a changed blob
// keeps the job from starting.
func codeOverwritten(t *testing.T, l *harness.Lab) {
	code := l.NewCode(t, "pinned", map[string]string{"main.sh": "echo honest\n"})
	honest := l.Submit(t, "honest", "sh main.sh", code)
	l.Await(t, honest, "Completed")
	if log := l.JobLog(t, honest); !strings.Contains(log, "honest") {
		t.Errorf("the honest job printed %q", log)
	}
	l.Upload(t, "code/pinned", map[string]string{"main.sh": "echo stolen\n"})
	attacked := l.Submit(t, "attacked", "sh main.sh", code)
	a := l.Await(t, attacked, "Failed")
	if a.Field("properties.error.code") != "IntegrityError" || !strings.Contains(a.Field("properties.error.message"), "main.sh") {
		t.Errorf("the job over changed code = %v", a)
	}
	if log := l.JobLog(t, attacked); strings.Contains(log, "stolen") || strings.Contains(log, "honest") {
		t.Errorf("changed code has run: %q", log)
	}
	onTrail(t, l, attacked)
}

// onTrail wants the refusal among the entries of the audit trail.
func onTrail(t *testing.T, l *harness.Lab, id string) {
	t.Helper()
	a := l.MustARM(t, http.MethodPost, "/providers/Casemate.Audit/trail/query", harness.VersionTrail, map[string]any{"scope": id})
	if !bytes.Contains(a.Body, []byte("IntegrityError")) {
		t.Errorf("the audit trail of %s does not tell of the refusal: %v", id, a)
	}
}

// modelPoisoned: who could write the bucket replaced model.pkl and waited for its deployment (CVE-2024-37052, CVE-2024-24590).
func modelPoisoned(t *testing.T, l *harness.Lab) {
	endpoint, body := l.Workspace+"/onlineEndpoints/r4-"+harness.Suffix(), map[string]any{"location": "local", "identity": map[string]any{"type": "SystemAssigned"}, "properties": map[string]any{"authMode": "Key"}}
	l.MustARM(t, http.MethodPut, endpoint, harness.VersionML, body)
	model := newModel(t, l, "poisoned")
	l.Upload(t, "models/poisoned", map[string]string{"model.pkl": "cos\nsystem\n"})
	a, err := l.ARM(t.Context(), http.MethodPut, endpoint+"/deployments/blue", harness.VersionML, deployment(t, l, "r4", model))
	if err != nil {
		t.Fatal(err)
	}
	if a.Status < 400 || !bytes.Contains(a.Body, []byte("model.pkl")) {
		t.Errorf("a deployment of changed bytes = %v", a)
	}
	onTrail(t, l, endpoint)
}

func newModel(t *testing.T, l *harness.Lab, name string) string {
	t.Helper()
	id := l.Workspace + "/models/" + name + "/versions/1"
	l.MustARM(t, http.MethodPut, id, harness.VersionML, map[string]any{"properties": map[string]any{"modelType": "custom_model",
		"modelUri": l.Upload(t, "models/"+name, map[string]string{"model.pkl": "weights"})}})
	return id
}

func deployment(t *testing.T, l *harness.Lab, code, model string) map[string]any {
	t.Helper()
	return map[string]any{"location": "local", "sku": map[string]any{"name": "Default", "capacity": 1}, "properties": map[string]any{"endpointComputeType": "Managed", "model": model,
		"environmentId": l.Environment, "instanceType": "Standard_DS3_v2",
		"codeConfiguration": map[string]any{"codeId": l.NewCode(t, "score-"+code, map[string]string{"score.py": "# never interpreted\n"}), "scoringScript": "score.py"}}}
}

// nodeCredentials: credentials of Azure ML's nodes lay in files and logs (CVE-2023-23382), worked anywhere and outlived both node
// and rotation (ZDI-23-1056), and made further ones (2026-06-10). A job here tells all that it has, and nothing of it helps anybody else.
func nodeCredentials(t *testing.T, l *harness.Lab) {
	const storage = "https%3A%2F%2Fstorage.azure.com%2F"
	_, otherClient, _ := l.NewIdentity(t, "other")
	a := l.Submit(t, "talkative", `echo "HEADER $IDENTITY_HEADER"; echo "TRACKING $MLFLOW_TRACKING_TOKEN"
probe get "$IDENTITY_ENDPOINT?api-version=2019-08-01&resource=`+storage+`" "X-IDENTITY-HEADER=$IDENTITY_HEADER"
echo OTHER; probe get "$IDENTITY_ENDPOINT?api-version=2019-08-01&resource=`+storage+`&client_id=`+otherClient+`" "X-IDENTITY-HEADER=$IDENTITY_HEADER"
echo BARE; probe get "$IDENTITY_ENDPOINT?api-version=2019-08-01&resource=`+storage+`"
echo END told; sleep 120`, "")
	l.AwaitLog(t, a, "END")
	log := l.JobLog(t, a)
	header, tracking := l.AwaitLog(t, a, "HEADER"), l.AwaitLog(t, a, "TRACKING")
	var issued struct {
		Token string `json:"access_token"`
	}
	own := l.AwaitLog(t, a, "ANSWER 200")
	if err := json.Unmarshal([]byte(own), &issued); err != nil || issued.Token == "" || header == "" || tracking == "" {
		t.Fatalf("the job has no credentials: %s", log)
	}
	if _, rest, _ := strings.Cut(log, "OTHER"); strings.Contains(rest, "ANSWER 200") || !strings.Contains(rest, "ANSWER 400") || !strings.Contains(rest, "ANSWER 401") {
		t.Errorf("asking for another identity, or without the header: %s", rest)
	}
	claims(t, issued.Token)
	outside(t, l, issued.Token, tracking)
	neighbourNode(t, l, issued.Token, header)
	l.Cancel(t, a)
	outside(t, l, issued.Token, tracking)
	nowhere(t, l, map[string]string{"the node's secret": header, "the node's token": issued.Token, "the run's token": tracking})
}

// claims wants the token to be for what was asked for and short-lived.
func claims(t *testing.T, token string) {
	t.Helper()
	parts := strings.Split(token, ".")
	raw, err := base64.RawURLEncoding.DecodeString(parts[min(1, len(parts)-1)])
	var c struct {
		Audience string `json:"aud"`
		Expires  int64  `json:"exp"`
	}
	if err != nil || json.Unmarshal(raw, &c) != nil {
		t.Fatalf("the node's token has no claims: %v", err)
	}
	if left := time.Until(time.Unix(c.Expires, 0)); strings.TrimSuffix(c.Audience, "/") != "https://storage.azure.com" || left > 24*time.Hour || left <= 0 {
		t.Errorf("the node's token is for %s and good for %v", c.Audience, left)
	}
}

// outside sends a node's tokens from this machine: to where they belong and to where they do not.
func outside(t *testing.T, l *harness.Lab, storage, tracking string) {
	t.Helper()
	for _, token := range []string{storage, tracking} {
		for _, url := range []string{l.URL(l.BlobHost, "/"+l.Store+"/code/pinned/main.sh"), l.URL(l.BlobHost, "/?comp=list"), l.URL(l.VaultHost, "/secrets?api-version=7.4"),
			l.URL("management", l.Workspace+"?api-version="+harness.VersionML), l.URL("graph", "/v1.0/servicePrincipals"), l.URL("management", l.Cluster+"?api-version="+harness.VersionML)} {
			a := l.Must(t, harness.Call{Method: http.MethodGet, URL: url, Token: token}, 401, 403)
			refused(t, "a node's token from outside: "+url, a, 401, 403)
		}
	}
	a := l.Must(t, harness.Call{Method: http.MethodGet, URL: l.URL("login", "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://storage.azure.com"), Header: http.Header{"Metadata": {"true"}}}, 400, 401, 403, 404)
	if strings.Contains(string(a.Body), "access_token") {
		t.Error("instance metadata answers outside of nodes")
	}
}

// neighbourNode uses a node's token and secret on another node of the same cluster and identity.
func neighbourNode(t *testing.T, l *harness.Lab, token, header string) {
	t.Helper()
	code := l.NewCode(t, "thief", map[string]string{"token": token, "header": header})
	thief := l.Submit(t, "thief", `echo STOLEN-SECRET; probe get "$IDENTITY_ENDPOINT?api-version=2019-08-01&resource=https%3A%2F%2Fstorage.azure.com" X-IDENTITY-HEADER=@header
echo STOLEN-TOKEN; probe get `+l.URL(l.BlobHost, "/"+l.Store+"/code/pinned/main.sh")+` "Authorization=Bearer @token" x-ms-version=2021-12-02`, code)
	l.Await(t, thief, "Completed")
	log := l.JobLog(t, thief)
	if strings.Contains(log, "ANSWER 2") || strings.Count(log, "ANSWER 4") != 2 {
		t.Errorf("stolen credentials on a neighbouring node: %s", log)
	}
}

// nowhere searches for what a job was given: in every file of the data directory, the server's log, the places of nodes on this
// machine, and the environments and command lines of all processes. The audit trail is read through its own interface too.
func nowhere(t *testing.T, l *harness.Lab, secrets map[string]string) {
	t.Helper()
	look := func(where string, b []byte) {
		for what, secret := range secrets {
			if bytes.Contains(b, []byte(secret)) {
				t.Errorf("%s stands in %s", what, where)
			}
		}
	}
	files := 0
	for _, dir := range []string{l.Dir, "/run/casemate"} {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return nil // nodes of other tests come and go
			}
			if d.IsDir() && strings.HasSuffix(path, ".mnt") {
				return fs.SkipDir // the node's own view
			}
			info, err := d.Info()
			if err != nil || !d.Type().IsRegular() || info.Size() > 256<<20 { // sparse disks: nodes are gone, the image volume holds no job
				return nil
			}
			if b, err := os.ReadFile(path); err == nil {
				files++
				look(path, b)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if files < 10 {
		t.Errorf("%d files have been searched", files)
	}
	look("the server's log", []byte(l.Log()))
	for _, name := range []string{"environ", "cmdline"} {
		paths, _ := filepath.Glob("/proc/[0-9]*/" + name)
		for _, path := range paths {
			if b, err := os.ReadFile(path); err == nil {
				look(path, b)
			}
		}
	}
	a := l.MustARM(t, http.MethodPost, "/providers/Casemate.Audit/trail/query", harness.VersionTrail, map[string]any{})
	look("the audit trail", a.Body)
}

// neighbours: the agent of Azure ML's nodes listened to the whole network (CVE-2023-28312). Here a node of the same cluster and one
// of another subnet find no port at all, the scoring port included.
func neighbours(t *testing.T, l *harness.Lab) {
	victim := l.Submit(t, "victim", "probe addresses; echo END told; sleep 120", "")
	address := l.AwaitLog(t, victim, "ADDRESS")
	endpoint := l.Workspace + "/onlineEndpoints/r8-" + harness.Suffix()
	body := map[string]any{"location": "local", "identity": map[string]any{"type": "SystemAssigned"}, "properties": map[string]any{"authMode": "Key"}}
	l.MustARM(t, http.MethodPut, endpoint, harness.VersionML, body)
	l.MustARM(t, http.MethodPut, endpoint+"/deployments/blue", harness.VersionML, deployment(t, l, "r8", newModel(t, l, "honest")))

	ports := "1-1024 5001-5001 8443-8443 " + l.Port + "-" + l.Port + " 31311-31319 44224-44224 46800-46810"
	command := "echo SELF; probe scan 800ms 127.0.0.1 " + ports + "; echo SIBLING; probe scan 800ms " + address + " " + ports
	for i := 4; i < 12; i++ { // the scoring node is among the first addresses of its subnet
		command += fmt.Sprintf("; probe scan 800ms 10.30.2.%d 5001-5001 46802-46802", i)
	}
	command += "; echo METADATA; probe dial 1s 169.254.169.254:80 " + address + ":80"
	spy := l.Submit(t, "spy", command, "")
	l.Await(t, spy, "Completed")
	log := l.JobLog(t, spy)
	if _, rest, ok := strings.Cut(log, "SIBLING"); !ok || strings.Contains(rest, "PORT ") || !strings.Contains(rest, "DIAL 169.254.169.254:80 open") || strings.Contains(rest, address+":80 open") {
		t.Errorf("a neighbouring node found: %s", rest)
	}
	if self, _, _ := strings.Cut(log, "SIBLING"); strings.Contains(self, " open") {
		t.Errorf("something listens on the node's own loopback: %s", self)
	}
	l.Cancel(t, victim)
	l.MustARM(t, http.MethodDelete, endpoint, harness.VersionML, nil)
}

// badJobs wants clear errors for jobs that cannot go well (issue: "Bad input and faults").
func badJobs(t *testing.T, l *harness.Lab) {
	failing := l.Await(t, l.Submit(t, "failing", "echo on purpose; exit 7", ""), "Failed")
	if failing.Field("properties.error.code") != "UserError" || !strings.Contains(failing.Field("properties.error.message"), "exit code 7") || !strings.Contains(l.JobLog(t, l.Workspace+"/jobs/failing"), "on purpose") {
		t.Errorf("a failing command = %v", failing)
	}
	absent := l.Await(t, l.Submit(t, "absent-command", "no-such-program", ""), "Failed")
	if absent.Field("properties.error.code") != "UserError" {
		t.Errorf("a command that does not exist = %v", absent)
	}
	host := l.Host(l.Registry[strings.LastIndexByte(l.Registry, '/')+1:] + ".azurecr")
	environment := l.NewEnvironment(t, "absent", host+"/absent:1")
	body := l.JobBody("echo hello", "")
	body["properties"].(map[string]any)["environmentId"] = environment
	id := l.Workspace + "/jobs/absent-image"
	a, err := l.ARM(t.Context(), http.MethodPut, id, harness.VersionML, body)
	if err != nil {
		t.Fatal(err)
	}
	if a.Status < 300 {
		a = l.Await(t, id, "Failed")
	}
	if !bytes.Contains(a.Body, []byte("absent:1")) || !bytes.Contains(a.Body, []byte("ImageNotFound")) {
		t.Errorf("an image that does not exist = %v", a)
	}
	for name, change := range map[string]map[string]any{
		"no environment": {"environmentId": l.Workspace + "/environments/none/versions/1"}, "no cluster": {"computeId": l.Workspace + "/computes/none"}, "no code": {"codeId": l.Workspace + "/codes/none/versions/1"},
		"somebody else's identity": {"identity": map[string]any{"identityType": "Managed", "clientId": "11111111-2222-4333-8444-555555555555"}},
	} {
		body := l.JobBody("echo hello", "")
		for k, v := range change {
			body["properties"].(map[string]any)[k] = v
		}
		a, err := l.ARM(t.Context(), http.MethodPut, l.Workspace+"/jobs/bad-"+harness.Suffix(), harness.VersionML, body)
		if err != nil || a.Status != http.StatusBadRequest && a.Status != http.StatusNotFound || a.Code() == "" {
			t.Errorf("%s = %v %v", name, a, err)
		}
	}
}
