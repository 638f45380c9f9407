package machinelearning

import (
	"crypto/sha256"
	"encoding/hex"
	"net/http/httptest"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"casemate.dev/dataplane/runtime/agent"
	"casemate.dev/dataplane/tracking"
	"casemate.dev/resource"
)

const workspaceBody = `{"location":"local","identity":{"type":"SystemAssigned"},"properties":{"storageAccount":"` + testStorage + `","keyVault":"` + testVault +
	`","containerRegistry":"` + testRegistry + `","publicNetworkAccess":"Disabled","serverlessComputeSettings":{"serverlessComputeCustomSubnet":"` + testSubnet + `"}}}`

const clusterBody = `{"location":"local","identity":{"type":"UserAssigned","userAssignedIdentities":{"` + testIdentity + `":{}}},"properties":{"computeType":"AmlCompute","properties":{
	"vmSize":"Standard_DS2_v2","scaleSettings":{"maxNodeCount":2},"subnet":{"id":"` + testSubnet + `"}}}}`

const jobBody = `{"properties":{"jobType":"Command","command":"python train.py --data ${{inputs.data}} --lr ${{inputs.lr}}","codeId":"azureml:code:1",
	"environmentId":"azureml:env:1","computeId":"` + testWorkspace + `/computes/cpu","experimentName":"cancer",
	"environmentVariables":{"MODE":"fast"},"identity":{"identityType":"Managed","clientId":"client-mi"},"limits":{"jobLimitsType":"Command","timeout":"PT1H"},
	"inputs":{"data":{"jobInputType":"uri_file","uri":"azureml:cancer@latest","mode":"ReadOnlyMount"},"lr":{"jobInputType":"literal","value":"0.1"}},
	"outputs":{"model":{"jobOutputType":"uri_folder"}}}}`

func sum(s string) string {
	h := sha256.Sum256([]byte(s))
	return hex.EncodeToString(h[:])
}

// prepare makes everything that a job needs.
func prepare(t *testing.T) *world {
	w := newWorld(t)
	w.put(engineer, testWorkspace, workspaceBody)
	w.put(engineer, testWorkspace+"/computes/cpu", clusterBody)
	guid := w.view(testWorkspace).String("properties.workspaceId")
	store := "azureml-blobstore-" + guid
	w.blobs.blobs[store+"/LocalUpload/1/train.py"] = "print(1)"
	w.blobs.blobs[store+"/LocalUpload/1/lib/util.py"] = "pass"
	w.blobs.blobs[store+"/LocalUpload/10/other.py"] = "not mine"
	w.blobs.blobs[store+"/data/cancer.csv"] = "1,2"
	base := "https://acct.blob.core.casemate.localhost:8443/" + store
	w.put(scientist, testWorkspace+"/codes/code/versions/1", `{"properties":{"codeUri":"`+base+`/LocalUpload/1"}}`)
	w.put(scientist, testWorkspace+"/data/cancer/versions/1", `{"properties":{"dataType":"uri_file","dataUri":"azureml://datastores/workspaceblobstore/paths/data/cancer.csv"}}`)
	w.put(scientist, testWorkspace+"/environments/env/versions/1", `{"properties":{"image":"reg.azurecr.casemate.localhost:8443/casemate/sklearn:1"}}`)
	return w
}

func TestWorkspace(t *testing.T) {
	w := newWorld(t)
	w.put(engineer, testWorkspace, workspaceBody)
	d := w.view(testWorkspace)
	guid := d.String("properties.workspaceId")
	if len(guid) != 36 || !strings.HasPrefix(d.String("properties.mlFlowTrackingUri"), "https://"+guid+".workspace.casemate.localhost:8443/mlflow/v1.0/subscriptions/") {
		t.Errorf("workspace %v", d.Body)
	}
	if id, ok := w.p.WorkspaceOf(t.Context(), guid); !ok || id.String() != testWorkspace {
		t.Errorf("host name leads to %v %v", id, ok)
	}
	blobs := w.view(testWorkspace + "/datastores/workspaceblobstore")
	if !blobs.Bool("properties.isDefault") || blobs.String("properties.containerName") != "azureml-blobstore-"+guid || blobs.String("properties.credentials.credentialsType") != "None" {
		t.Errorf("default datastore %v", blobs.Body)
	}
	grants, err := w.engine.List(t.Context(), "Microsoft.Authorization/roleAssignments", resource.MustParseID(testGroup))
	if err != nil || len(grants) != 4 || grants[0].String("properties.principalId") != "principal-of-ws1" {
		t.Errorf("grants %v %v", grants, err)
	}
	for _, id := range []string{testStorage, testVault, testRegistry, testSubnet, testNetwork} {
		if err := w.p.InUse(t.Context(), resource.MustParseID(id)); resource.StatusOf(err) != 409 {
			t.Errorf("%s is not in use: %v", id, err)
		}
	}
	// A replayed PUT keeps the id; what is fixed stays fixed.
	w.put(engineer, testWorkspace, workspaceBody)
	if again := w.view(testWorkspace).String("properties.workspaceId"); again != guid {
		t.Errorf("the id changed to %s", again)
	}
	w.refused("PropertyChangeNotAllowed", "hbiWorkspace", engineer, testWorkspace, strings.Replace(workspaceBody, `"properties":{`, `"properties":{"hbiWorkspace":true,`, 1))
	if err := w.engine.Delete(t.Context(), engineer, resource.MustParseID(testWorkspace)); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(w.keys.calls, []string{"create", "destroy"}) {
		t.Errorf("keys: %q", w.keys.calls)
	}
	if err := w.p.InUse(t.Context(), resource.MustParseID(testStorage)); err != nil {
		t.Errorf("still in use: %v", err)
	}
}

func TestWorkspaceKey(t *testing.T) {
	w := newWorld(t)
	with := func(key string) string {
		return strings.Replace(strings.Replace(workspaceBody, `"SystemAssigned"`, `"UserAssigned","userAssignedIdentities":{"`+testIdentity+`":{}}`, 1), `"properties":{`,
			`"properties":{"encryption":{"status":"Enabled","keyVaultProperties":{"keyVaultArmId":"`+testVault+`","keyIdentifier":"`+key+`"},"identity":{"userAssignedIdentity":"`+testIdentity+`"}},`, 1)
	}
	w.put(engineer, testWorkspace, with("https://kv.vault.casemate.localhost/keys/k1"))
	w.put(engineer, testWorkspace, with("https://kv.vault.casemate.localhost/keys/k2"))
	w.put(engineer, testWorkspace, strings.Replace(with(""), `"status":"Enabled"`, `"status":"Disabled"`, 1))
	want := []string{"create https://kv.vault.casemate.localhost/keys/k1 as principal-mi", "rebind https://kv.vault.casemate.localhost/keys/k2 as principal-mi", "rebind"}
	if !slices.Equal(w.keys.calls, want) {
		t.Errorf("got %q", w.keys.calls)
	}
	for _, bad := range []string{"", "k1", "http://kv.vault.casemate.localhost/keys/k1", "https://other.vault.casemate.localhost/keys/k1", "https://kv.vault.casemate.localhost/secrets/k1"} {
		w.refused("InvalidParameter", "", engineer, testWorkspace, with(bad))
	}
}

func TestJob(t *testing.T) {
	w := prepare(t)
	job := testWorkspace + "/jobs/train-1"
	w.put(scientist, job, jobBody)
	n := w.node()
	spec := n.work(t)
	if !w.blobs.readers["scientist"] || w.blobs.readers["platform"] {
		t.Errorf("code was read by %v, not by who registered it", w.blobs.readers)
	}
	if c := <-w.images.caller; c.Object != "principal-mi" || c.OnBehalfOf != "scientist" {
		t.Errorf("image was pulled by %+v", c)
	}
	if len(spec.Code.Files) != 2 || spec.Code.Files[1].Path != "train.py" || spec.Code.Files[1].SHA256 != sum("print(1)") || spec.Code.Files[0].Path != "lib/util.py" {
		t.Errorf("code %+v", spec.Code)
	}
	if in := spec.Inputs[0]; in.Name != "data" || !in.Single || !strings.HasSuffix(in.Tree.Files[0].URL, "/data/cancer.csv") {
		t.Errorf("input %+v", in)
	}
	for name, want := range map[string]string{"AZUREML_RUN_ID": "train-1", "AZUREML_ARM_WORKSPACE_NAME": "ws1", "MODE": "fast", "LANG": "C", "AZUREML_EXPERIMENT_NAME": "cancer",
		"MLFLOW_RUN_ID": "train-1", "MLFLOW_TRACKING_TOKEN": "token of " + testIdentity + " for https://ml.azure.com", "IDENTITY_ENDPOINT": "http://169.254.169.254/msi/token",
		"SSL_CERT_FILE": "/run/casemate/ca.pem"} {
		if spec.Env[name] != want {
			t.Errorf("%s is %q, want %q", name, spec.Env[name], want)
		}
	}
	if spec.Params["lr"] != "0.1" || len(spec.Outputs) != 2 || spec.TimeLimitSeconds != 3600 || !strings.HasSuffix(spec.Logs.User, "/azureml/ExperimentRun/dcid.train-1/user_logs/std_log.txt") {
		t.Errorf("spec %+v", spec)
	}
	id, ok := w.p.Registry().NodeIdentity(n.ID())
	if !ok || id.Default != testIdentity || id.OnBehalfOf != "scientist" || id.Run != "train-1" || spec.ClientID != "client-mi" {
		t.Errorf("identity %+v", id)
	}
	if c := w.view(testWorkspace + "/computes/cpu"); c.Get("properties.properties.currentNodeCount") != 1 || c.String("properties.properties.allocationState") != "Resizing" {
		t.Errorf("cluster %v", c.Body)
	}
	if err := w.engine.Delete(t.Context(), engineer, resource.MustParseID(testWorkspace+"/computes/cpu")); resource.StatusOf(err) != 409 {
		t.Errorf("deleting a busy cluster: %v", err)
	}
	if err := w.engine.Delete(t.Context(), scientist, resource.MustParseID(job)); resource.StatusOf(err) != 409 {
		t.Errorf("deleting a running job: %v", err)
	}
	n.say(t, agent.StatePreparing, agent.StateRunning, agent.StateFinalizing, agent.StateCompleted)
	_ = n.Kill()
	w.awaitStatus(job, "Completed")
	for deadline := time.Now().Add(20 * time.Second); w.runs.of("train-1") != "FINISHED"; { // it is told after the record
		if time.Now().After(deadline) {
			t.Fatalf("run is %s", w.runs.of("train-1"))
		}
	}
	w.put(scientist, job, strings.Replace(jobBody, `"properties":{`, `"properties":{"displayName":"renamed","tags":{"a":"b"},`, 1))
	w.refused("JobPropertyImmutable", "command", scientist, job, strings.Replace(jobBody, "train.py", "evil.py", 1))
	if err := w.engine.Delete(t.Context(), scientist, resource.MustParseID(job)); err != nil {
		t.Errorf("deleting an ended job: %v", err)
	}
}

func (w *world) awaitStatus(id, want string) {
	w.t.Helper()
	deadline := time.After(20 * time.Second)
	for w.view(id).String("properties.status") != want {
		select {
		case <-deadline:
			w.t.Fatalf("%s is %s, not %s", id, w.view(id).String("properties.status"), want)
		case <-time.After(time.Millisecond): // the view is computed, there is nothing to subscribe to
		}
	}
}

func TestJobWithMissingImageFails(t *testing.T) {
	w := prepare(t)
	w.put(scientist, testWorkspace+"/environments/env/versions/2", `{"properties":{"image":"none"}}`)
	job := testWorkspace + "/jobs/j"
	w.put(scientist, job, strings.Replace(jobBody, "azureml:env:1", "azureml:env@latest", 1))
	w.awaitStatus(job, "Failed")
	if d := w.view(job); d.String("properties.error.code") != "ImageNotFound" || len(w.nodes.started) != 0 {
		t.Errorf("job %v", d.Get("properties.error"))
	}
}

func TestRefusals(t *testing.T) {
	w := prepare(t)
	job, compute := testWorkspace+"/jobs/x", testWorkspace+"/computes/new"
	edit := func(body, old, with string) string {
		if !strings.Contains(body, old) {
			t.Fatalf("%q is not in the body", old)
		}
		return strings.Replace(body, old, with, 1)
	}
	props := func(body, more string) string {
		return strings.Replace(body, `"properties":{`, `"properties":{`+more+`,`, 1)
	}
	for _, tt := range []struct {
		code, text, id, body string
	}{
		{"DependencyNotFound", "storageAccount", testWorkspace + "2", edit(workspaceBody, testStorage, testStorage+"x")},
		{"InvalidParameter", "Microsoft.KeyVault", testWorkspace + "2", edit(workspaceBody, testVault, testStorage)},
		{"InvalidParameter", "needs the property", testWorkspace + "2", `{"location":"local","properties":{}}`},
		{"NotSupported", "kind", testWorkspace + "2", edit(workspaceBody, `{"location"`, `{"kind":"Hub","location"`)},
		{"InvalidResourceName", "", testGroup + "/providers/Microsoft.MachineLearningServices/workspaces/-x", workspaceBody},
		{"NotSupported", "ComputeInstance", compute, edit(clusterBody, "AmlCompute", "ComputeInstance")},
		{"InvalidParameter", "Known are", compute, edit(clusterBody, "Standard_DS2_v2", "Standard_NC6")},
		{"NotSupported", "minNodeCount", compute, edit(clusterBody, `"maxNodeCount":2`, `"maxNodeCount":2,"minNodeCount":1`)},
		{"InvalidParameter", "subnet", compute, edit(clusterBody, testSubnet, "")},
		{"NotSupported", "public addresses", compute, edit(clusterBody, `"vmSize"`, `"enableNodePublicIp":true,"vmSize"`)},
		{"NotSupported", "credentials", testWorkspace + "/datastores/d", `{"properties":{"datastoreType":"AzureBlob","accountName":"acct","containerName":"con","credentials":{"credentialsType":"AccountKey","secrets":{"key":"x"}}}}`},
		{"NotSupported", "AzureFile", testWorkspace + "/datastores/d", `{"properties":{"datastoreType":"AzureFile"}}`},
		{"NotSupported", "conda", testWorkspace + "/environments/e/versions/1", `{"properties":{"image":"a","condaFile":"x"}}`},
		{"NotSupported", "registry", testWorkspace + "/environments/e/versions/1", `{"properties":{"image":"mcr.microsoft.com/azureml/x:1"}}`},
		{"AssetContentNotFound", "Upload", testWorkspace + "/models/m/versions/1", `{"properties":{"modelUri":"azureml://datastores/workspaceblobstore/paths/none"}}`},
		{"InvalidParameter", "..", testWorkspace + "/models/m/versions/1", `{"properties":{"modelUri":"azureml://datastores/workspaceblobstore/paths/a/../b"}}`},
		{"InvalidParameter", "not a storage account", testWorkspace + "/models/m/versions/1", `{"properties":{"modelUri":"https://169.254.169.254/x"}}`},
		{"SensitiveValue", "tags", testWorkspace + "/models/m/versions/1", `{"properties":{"modelUri":"runs:/r/m","tags":{"password":"x"}}}`},
		{"NotSupported", "Pipeline", job, edit(jobBody, `"Command","command"`, `"Pipeline","command"`)},
		{"NotSupported", "Distributed", job, props(jobBody, `"distribution":{"distributionType":"PyTorch"}`)},
		{"SensitiveValue", "CONNECTION", job, edit(jobBody, `"MODE":"fast"`, `"CONNECTION":"AccountName=a;AccountKey=abcdefghijkl"`)},
		{"SensitiveValue", "command", job, edit(jobBody, "python train.py", "curl https://u:secret@host/")},
		{"InvalidParameter", "does not exist", job, edit(jobBody, "/computes/cpu", "/computes/none")},
		{"InvalidParameter", "does not exist", job, edit(jobBody, "azureml:code:1", "azureml:code:2")},
		{"InvalidParameter", "does not exist", job, edit(jobBody, "azureml:env:1", "azureml:env:9")},
		{"InvalidParameter", "identity", job, edit(jobBody, "client-mi", "another")},
		{"NotSupported", "submitting user", job, edit(jobBody, `"Managed"`, `"UserIdentity"`)},
		{"InvalidParameter", "duration", job, edit(jobBody, "PT1H", "1h")},
		{"InvalidParameter", "not a storage account", job, edit(jobBody, "azureml:cancer@latest", "https://evil.example/x")},
		{"NotSupported", "mode", job, edit(jobBody, "ReadOnlyMount", "ReadWriteMount")},
		{"InvalidParameter", "input name", job, edit(jobBody, `"data":{`, `"../data":{`)},
		{"InvalidParameter", "uri_file", job, edit(jobBody, `"uri_file"`, `"uri_folder"`)},
	} {
		w.refused(tt.code, tt.text, engineer, tt.id, tt.body)
	}
	w.refused("LinkedAuthorizationFailed", "join", scientist, compute, clusterBody)
	w.refused("AssetVersionImmutable", "codeUri", scientist, testWorkspace+"/codes/code/versions/1", `{"properties":{"codeUri":"runs:/x/y"}}`)
	w.put(scientist, testWorkspace+"/codes/code/versions/1", `{"properties":{"tags":{"reviewed":"yes"}}}`)
}

// TestTamperedCode is THREATS R1: what runs is what was registered, whatever the storage holds by then.
func TestTamperedCode(t *testing.T) {
	w := prepare(t)
	for name := range w.blobs.blobs {
		if strings.HasSuffix(name, "train.py") {
			w.blobs.blobs[name] = "import os; os.system('evil')"
		}
	}
	w.put(scientist, testWorkspace+"/codes/code/versions/1", `{"properties":{"tags":{"a":"b"}}}`) // pins nothing anew
	w.put(scientist, testWorkspace+"/jobs/j", jobBody)
	n := w.node()
	if got := n.work(t).Code.Files[1].SHA256; got != sum("print(1)") {
		t.Errorf("the node would accept %s", got)
	}
	n.say(t, agent.StatePreparing)
	_ = n.Kill()
}

// TestReplacedCode is R1 by way of the registry itself: the version that a waiting job names is deleted and registered anew.
func TestReplacedCode(t *testing.T) {
	w := prepare(t)
	w.put(engineer, testWorkspace+"/computes/cpu", strings.Replace(clusterBody, `"maxNodeCount":2`, `"maxNodeCount":1`, 1))
	w.put(scientist, testWorkspace+"/jobs/first", jobBody)
	n := w.node()
	w.put(scientist, testWorkspace+"/jobs/second", jobBody) // waits
	code := resource.MustParseID(testWorkspace + "/codes/code/versions/1")
	was, err := w.engine.Get(t.Context(), code)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.engine.Delete(t.Context(), scientist, code); err != nil {
		t.Fatal(err)
	}
	for name := range w.blobs.blobs {
		if strings.HasSuffix(name, "train.py") {
			w.blobs.blobs[name] = "import os; os.system('evil')"
		}
	}
	w.put(scientist, code.String(), `{"properties":{"codeUri":"`+was.String("properties.codeUri")+`"}}`)
	n.say(t, agent.StatePreparing, agent.StateRunning, agent.StateFinalizing, agent.StateCompleted)
	_ = n.Kill()
	deadline := time.Now().Add(20 * time.Second)
	for w.runs.of("second") != "FAILED" {
		select {
		case n := <-w.nodes.started:
			t.Fatalf("other code than was submitted runs: %s", n.work(t).Code.Files[1].SHA256)
		default:
			runtime.Gosched()
		}
		if time.Now().After(deadline) {
			t.Fatal("the job with replaced code did not fail")
		}
	}
	if code := w.view(testWorkspace + "/jobs/second").String("properties.error.code"); code != "ContentsChanged" {
		t.Errorf("it failed as %s", code)
	}
}

func TestAssets(t *testing.T) {
	w := prepare(t)
	w.put(scientist, testWorkspace+"/data/cancer/versions/7", `{"properties":{"dataType":"uri_file","dataUri":"azureml://datastores/workspaceblobstore/paths/data/cancer.csv"}}`)
	d := w.view(testWorkspace + "/data/cancer")
	if d.String("properties.latestVersion") != "7" || d.String("properties.nextVersion") != "8" {
		t.Errorf("container %v", d.Body)
	}
	docs, err := w.engine.List(t.Context(), workspaceType+"/data/versions", d.ID)
	if err != nil {
		t.Fatal(err)
	}
	for query, want := range map[string]int{"": 2, "$orderBy=createdtime+desc&$top=1": 1, "listViewType=ArchivedOnly": 0, "tags=none": 0} {
		got, err := filterAssets(&resource.Request{Request: httptest.NewRequest("GET", "/?"+query, nil)}, docs)
		if err != nil || len(got) != want || len(got) == 1 && got[0].ID.Name() != "7" {
			t.Errorf("%q: %d, %v", query, len(got), err)
		}
	}
}

func TestEndpoint(t *testing.T) {
	w := prepare(t)
	w.blobs.blobs["azureml/ExperimentRun/dcid.train-1/model/model.pkl"] = "pickle"
	m, err := w.p.CreateModelVersion(t.Context(), scientist, resource.MustParseID(testWorkspace), tracking.ModelVersion{Name: "m", Source: "runs:/train-1/model", Run: "train-1"})
	if err != nil || m.Version != "1" || m.Run != "train-1" {
		t.Fatal(m, err)
	}
	endpoint, blue := testWorkspace+"/onlineEndpoints/cancer", testWorkspace+"/onlineEndpoints/cancer/deployments/blue"
	w.put(scientist, endpoint, `{"location":"local","properties":{"authMode":"Key"}}`)
	w.refused("NotSupported", "AMLToken", scientist, endpoint+"2", `{"location":"local","properties":{"authMode":"AMLToken"}}`)
	w.refused("InvalidParameter", "does not exist", scientist, endpoint, `{"location":"local","properties":{"authMode":"Key","traffic":{"blue":100}}}`)
	d := w.view(endpoint)
	if d.String("properties.scoringUri") != "https://cancer.local.inference.casemate.localhost:8443/score" || d.String("properties.publicNetworkAccess") != "Disabled" {
		t.Errorf("endpoint %v", d.Body)
	}
	if id, ok := w.p.EndpointOf(t.Context(), "cancer", "local"); !ok || id.String() != endpoint {
		t.Errorf("host name leads to %v %v", id, ok)
	}
	grants, err := w.engine.List(t.Context(), "Microsoft.Authorization/roleAssignments", resource.MustParseID(testStorage))
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range grants {
		if g.String("properties.principalId") == "principal-of-cancer" && strings.HasSuffix(g.String("properties.roleDefinitionId"), roleBlobDataContributor) &&
			!strings.HasSuffix(g.ID.Parent().String(), "/containers/azureml") {
			t.Errorf("the endpoint may write to %s", g.ID.Parent())
		}
	}
	done := make(chan error, 1)
	body := `{"location":"local","sku":{"name":"Default","capacity":1},"properties":{"endpointComputeType":"Managed","model":"azureml:m:1","environmentId":"azureml:env:1",
		"codeConfiguration":{"codeId":"azureml:code:1","scoringScript":"train.py"},"instanceType":"Standard_F2s_v2"}}`
	go func() {
		_, err := w.try(scientist, blue, body)
		done <- err
	}()
	n := w.node()
	spec := n.work(t)
	if spec.Kind != agent.KindServe || spec.Serve.Model.Files[0].SHA256 != sum("pickle") || spec.Serve.EntryScript != "train.py" {
		t.Errorf("spec %+v", spec)
	}
	n.say(t, agent.StatePreparing, agent.StateRunning, agent.StateReady)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	behind := func() string {
		t.Helper()
		plan, err := (*planner)(w.p).PlanServe(t.Context(), blue, "node-next")
		if err != nil {
			t.Fatal(err)
		}
		return plan.Identity.OnBehalfOf
	}
	if got := behind(); got != scientist.Object {
		t.Errorf("instances are for %s", got)
	}
	w.put(resource.Caller{Kind: resource.KindUser, Object: "colleague"}, blue, strings.Replace(body, `{"location"`, `{"tags":{"by":"another"},"location"`, 1))
	if got := behind(); got != "colleague" {
		t.Errorf("after a colleague's change the next instance is for %s", got)
	}
	w.refused("InvalidParameter", "add up", scientist, endpoint, `{"location":"local","properties":{"authMode":"Key","traffic":{"blue":50}}}`)
	w.put(scientist, endpoint, `{"location":"local","properties":{"authMode":"Key","traffic":{"blue":100}}}`)
	e, err := w.p.Endpoint(t.Context(), resource.MustParseID(endpoint))
	if err != nil || e.Traffic["blue"] != 100 || len(e.Keys) != 2 || len(e.Keys[0]) != 43 || e.Keys[0] == e.Keys[1] {
		t.Errorf("scoring sees %+v %v", e, err)
	}
	if node, release, ok := w.p.Borrow(resource.MustParseID(blue)); !ok || node != n.ID() {
		t.Errorf("borrowed %q", node)
	} else {
		release()
	}
	r := &resource.Request{Request: httptest.NewRequest("POST", "/", strings.NewReader(`{"keyType":"Primary"}`))}
	if _, err := w.p.regenerateKeys(t.Context(), w.view(endpoint), r); err != nil {
		t.Fatal(err)
	}
	if again, _ := w.p.Endpoint(t.Context(), resource.MustParseID(endpoint)); again.Keys[0] == e.Keys[0] || again.Keys[1] != e.Keys[1] {
		t.Error("the wrong key was regenerated")
	}
	if err := w.engine.Delete(t.Context(), scientist, resource.MustParseID(blue)); resource.StatusOf(err) != 409 {
		t.Errorf("deleting a deployment with traffic: %v", err)
	}
	if err := w.engine.Delete(t.Context(), scientist, resource.MustParseID(endpoint)); err != nil {
		t.Fatal(err)
	}
	<-n.gone
	if _, ok := w.p.EndpointOf(t.Context(), "cancer", "local"); ok {
		t.Error("the host name is still taken")
	}
}

func TestDurationsAndImages(t *testing.T) {
	for s, want := range map[string]time.Duration{"PT120S": 2 * time.Minute, "PT1H30M": 90 * time.Minute, "P1DT1S": 24*time.Hour + time.Second} {
		if got, err := parseDuration(s); err != nil || got != want {
			t.Errorf("%s: %v %v", s, got, err)
		}
	}
	for _, s := range []string{"", "P", "PT", "P1DT", "1H", "PT-1S", "PT1.5S"} {
		if got, err := parseDuration(s); err == nil {
			t.Errorf("%q was read as %v", s, got)
		}
	}
	p := &Provider{cfg: Config{Domain: "casemate.localhost"}}
	for s, want := range map[string]imageRef{
		"casemate/sklearn": {"", "casemate/sklearn", "latest"}, "a:1": {"", "a", "1"},
		"reg.azurecr.casemate.localhost:8443/a/b:1.0": {"reg", "a/b", "1.0"},
		"a@sha256:" + strings.Repeat("0", 64):         {"", "a", "sha256:" + strings.Repeat("0", 64)},
	} {
		if got, err := p.parseImage("x", s); err != nil || got != want {
			t.Errorf("%s: %+v %v", s, got, err)
		}
	}
	for _, s := range []string{"", "A", "a:", "a@sha256:1", "../a", "a//b", "docker.io/a", "reg.azurecr.casemate.localhost.evil.example/a", "a:1@sha256:" + strings.Repeat("0", 64), "127.0.0.1/a"} {
		if got, err := p.parseImage("x", s); err == nil {
			t.Errorf("%q was read as %+v", s, got)
		}
	}
}

// Who may write workspaces must not get at an account, a vault or a registry by naming it: the workspace's identity gets
// roles there, and its endpoints run anybody's code with them.
func TestWorkspaceGrantsNothingThatItsMakerCannot(t *testing.T) {
	w := newWorld(t)
	w.refused("LinkedAuthorizationFailed", testStorage, visitor, testWorkspace, workspaceBody)
	grants, err := w.engine.List(t.Context(), "Microsoft.Authorization/roleAssignments", resource.MustParseID(testGroup))
	if err != nil || len(grants) != 0 {
		t.Errorf("a refused workspace was given %v %v", grants, err)
	}
	w.put(engineer, testWorkspace, workspaceBody)
	w.put(visitor, testWorkspace, strings.Replace(workspaceBody, `"location"`, `"tags":{"a":"b"},"location"`, 1)) // nothing new is given
	other := testGroup + "/providers/Microsoft.ContainerRegistry/registries/other"
	w.put(engineer, other, `{"location":"local","properties":{}}`)
	w.refused("LinkedAuthorizationFailed", other, visitor, testWorkspace, strings.Replace(workspaceBody, testRegistry, other, 1))
}

// Two workspaces may share a storage account, and a name may be used again: neither gives one run the artifacts of another.
func TestJobTakesNoOtherRunsArtifacts(t *testing.T) {
	w := prepare(t)
	w.blobs.blobs["azureml/ExperimentRun/dcid.secret/outputs/patients.csv"] = "theirs"
	w.refused("JobNameTaken", "another name", scientist, testWorkspace+"/jobs/secret", jobBody)
	if w.runs.of("secret") != "" {
		t.Error("a run of that name was opened")
	}
	w.put(scientist, testWorkspace+"/jobs/secre", jobBody)
	_ = w.node().Kill()
}

// A workspace with work under way stays whole.
func TestWorkspaceWithAJobIsNotGutted(t *testing.T) {
	w := prepare(t)
	w.put(scientist, testWorkspace+"/jobs/j", jobBody)
	n := w.node()
	n.say(t, agent.StatePreparing)
	if err := w.engine.Delete(t.Context(), engineer, resource.MustParseID(testWorkspace)); resource.StatusOf(err) != 409 {
		t.Errorf("deleting a workspace with a running job: %v", err)
	}
	for _, id := range []string{testWorkspace + "/datastores/workspaceblobstore", testWorkspace + "/codes/code/versions/1", testWorkspace + "/computes/cpu"} {
		if !w.engine.Exists(resource.MustParseID(id)) {
			t.Errorf("%s is gone", id)
		}
	}
}

// Two keys replaced at once: neither old one comes back.
func TestKeysAreReplacedTogether(t *testing.T) {
	w := newWorld(t)
	w.put(engineer, testWorkspace, workspaceBody)
	endpoint := testWorkspace + "/onlineEndpoints/cancer"
	w.put(scientist, endpoint, `{"location":"local","properties":{"authMode":"Key"}}`)
	for range 20 {
		before, err := w.p.Endpoint(t.Context(), resource.MustParseID(endpoint))
		if err != nil {
			t.Fatal(err)
		}
		var both sync.WaitGroup
		for _, typ := range []string{"Primary", "Secondary"} {
			both.Go(func() {
				r := &resource.Request{Request: httptest.NewRequest("POST", "/", strings.NewReader(`{"keyType":"`+typ+`"}`))}
				if _, err := w.p.regenerateKeys(t.Context(), w.view(endpoint), r); err != nil {
					t.Error(err)
				}
			})
		}
		both.Wait()
		after, err := w.p.Endpoint(t.Context(), resource.MustParseID(endpoint))
		if err != nil || after.Keys[0] == before.Keys[0] || after.Keys[1] == before.Keys[1] {
			t.Fatalf("a replaced key still works, %v", err)
		}
	}
}
