package tracking

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"casemate.dev/resource"
	"casemate.dev/store"
	"casemate.dev/store/storetest"
)

var (
	workspaceA = resource.MustParseID("/subscriptions/s/resourceGroups/g/providers/Microsoft.MachineLearningServices/workspaces/wa")
	workspaceB = resource.MustParseID("/subscriptions/s/resourceGroups/g/providers/Microsoft.MachineLearningServices/workspaces/wb")
)

// fakeHandle marks what it seals with its workspace: what was stored unsealed, or for another one, cannot be read.
type fakeHandle string

func (h fakeHandle) SealBytes(object string, plain []byte) ([]byte, error) {
	b := append([]byte("sealed:"+string(h)+object+":"), plain...)
	for i := range b {
		b[i] ^= 0x5a
	}
	return b, nil
}

func (h fakeHandle) OpenBytes(object string, sealed []byte) ([]byte, error) {
	b := bytes.Clone(sealed)
	for i := range b {
		b[i] ^= 0x5a
	}
	plain, ok := bytes.CutPrefix(b, []byte("sealed:"+string(h)+object+":"))
	if !ok {
		return nil, errors.New("not sealed for " + object)
	}
	return plain, nil
}

type fakeArtifacts struct {
	mu    sync.Mutex
	files map[string][]byte
}

func (f *fakeArtifacts) ListArtifacts(_ context.Context, _ resource.Caller, _ resource.ID, run, dir string) ([]Artifact, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if dir != "" {
		dir += "/"
	}
	var out []Artifact
	for name, b := range f.files {
		rest, ok := strings.CutPrefix(name, run+"/"+dir)
		if !ok {
			continue
		}
		first, _, below := strings.Cut(rest, "/")
		out = append(out, Artifact{Path: dir + first, Dir: below, Size: int64(len(b))})
	}
	slices.SortFunc(out, func(a, b Artifact) int { return strings.Compare(a.Path, b.Path) })
	return slices.CompactFunc(out, func(a, b Artifact) bool { return a.Path == b.Path }), nil
}

func (f *fakeArtifacts) OpenArtifact(_ context.Context, _ resource.Caller, _ resource.ID, run, path string) (io.ReadCloser, int64, string, error) {
	b, ok := f.files[run+"/"+path]
	if !ok {
		return nil, 0, "", resource.Errorf(404, "BlobNotFound", "no")
	}
	return io.NopCloser(bytes.NewReader(b)), int64(len(b)), "text/html", nil
}

func (f *fakeArtifacts) PutArtifact(_ context.Context, _ resource.Caller, _ resource.ID, run, path string, body io.Reader, _ int64, _ string) error {
	b, err := io.ReadAll(body)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.files[run+"/"+path] = b
	return err
}

func (f *fakeArtifacts) DeleteArtifact(_ context.Context, _ resource.Caller, _ resource.ID, run, path string) error {
	delete(f.files, run+"/"+path)
	return nil
}

// fakeModels is a registry in memory.
type fakeModels struct {
	models   []Model
	versions []ModelVersion
}

func (f *fakeModels) CreateModel(_ context.Context, _ resource.Caller, _ resource.ID, m Model) error {
	for _, have := range f.models {
		if have.Name == m.Name {
			return resource.Errorf(409, "X", "exists")
		}
	}
	f.models = append(f.models, m)
	return nil
}
func (f *fakeModels) ListModels(context.Context, resource.ID) ([]Model, error) { return f.models, nil }
func (f *fakeModels) CreateModelVersion(_ context.Context, _ resource.Caller, _ resource.ID, v ModelVersion) (ModelVersion, error) {
	v.Version = fmt.Sprint(len(f.versions) + 1)
	f.versions = append(f.versions, v)
	return v, nil
}
func (f *fakeModels) ListModelVersions(_ context.Context, _ resource.ID, name string) (out []ModelVersion, err error) {
	for _, v := range f.versions {
		if name == "" || v.Name == name {
			out = append(out, v)
		}
	}
	return out, nil
}
func (f *fakeModels) SetModelStage(_ context.Context, _ resource.Caller, _ resource.ID, name, version, stage string) error {
	for i, v := range f.versions {
		if v.Name == name && v.Version == version {
			f.versions[i].Stage = stage
		}
	}
	return nil
}

// client speaks to the rows as the gateway would, of one workspace's host.
type client struct {
	t       *testing.T
	routes  []resource.Route
	host    resource.ID
	service *Service
	store   store.Store
	files   *fakeArtifacts
}

func newClient(t *testing.T) *client {
	t.Helper()
	st, files := storetest.New(t), &fakeArtifacts{files: map[string][]byte{}}
	clock := time.UnixMilli(1_700_000_000_000)
	s, err := New(Config{
		Store: st, Domain: "casemate.localhost", Authority: func(h string) string { return h + ":8443" },
		Handles: func(_ context.Context, ws string) (Handle, error) { return fakeHandle(ws), nil },
		Clock:   func() time.Time { clock = clock.Add(time.Millisecond); return clock },
	})
	if err != nil {
		t.Fatal(err)
	}
	s.Join(files, &fakeModels{})
	c := &client{t: t, routes: s.Routes(), host: workspaceA, service: s, store: st, files: files}
	for _, r := range c.routes {
		if err := r.Validate(); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// do finds the row by its pattern, authorises as the row says, and runs it.
func (c *client) do(method, base, path, query string, body io.Reader) (*httptest.ResponseRecorder, error) {
	full := "/mlflow/v1.0" + base + "/api/2.0/" + path
	req := httptest.NewRequest(method, "/?"+query, body)
	segs := strings.Split(full, "/")
	for _, route := range c.routes {
		vars, ok := match(strings.Split(route.Pattern, "/"), segs)
		if !ok || route.Method != method {
			continue
		}
		r := &resource.Request{Request: req, Vars: vars, Resource: c.host.String(), Caller: resource.Caller{Kind: resource.KindUser, Object: "p", Name: "Ada"}}
		if _, _, scope, err := route.Resolve(r); err != nil || scope != c.host.String() {
			return nil, err
		}
		w := httptest.NewRecorder()
		return w, route.Handler(w, r)
	}
	return nil, fmt.Errorf("no route for %s %s", method, full)
}

func match(pattern, segs []string) (map[string]string, bool) {
	vars := map[string]string{}
	for i, p := range pattern {
		switch {
		case strings.HasSuffix(p, "...}"):
			vars[p[1:len(p)-4]] = strings.Join(segs[i:], "/")
			return vars, true
		case i >= len(segs):
			return nil, false
		case strings.HasPrefix(p, "{"):
			vars[p[1:len(p)-1]] = segs[i]
		case p != segs[i]:
			return nil, false
		}
	}
	return vars, len(pattern) == len(segs)
}

func (c *client) call(method, path, in string) (map[string]any, error) {
	c.t.Helper()
	query, body := "", io.Reader(strings.NewReader(in))
	if method == "GET" {
		query, body = in, nil
	}
	w, err := c.do(method, workspaceA.String(), "mlflow/"+path, query, body)
	if err != nil {
		return nil, err
	}
	var out map[string]any
	if err := json.Unmarshal(w.Body.Bytes(), &out); err != nil {
		c.t.Fatalf("%s answered %q", path, w.Body)
	}
	return out, nil
}

func (c *client) must(method, path, in string) map[string]any {
	c.t.Helper()
	out, err := c.call(method, path, in)
	if err != nil {
		c.t.Fatalf("%s %s: %v", path, in, err)
	}
	return out
}

func (c *client) refused(code, method, path, in string) {
	c.t.Helper()
	_, err := c.call(method, path, in)
	var e *resource.Error
	if !errors.As(err, &e) || e.Code != code {
		c.t.Errorf("%s %.80s: got %v, want %s", path, in, err, code)
	}
}

// at walks a decoded answer.
func at(v any, path ...any) any {
	for _, p := range path {
		switch p := p.(type) {
		case string:
			m, _ := v.(map[string]any)
			v = m[p]
		case int:
			l, _ := v.([]any)
			if p >= len(l) {
				return nil
			}
			v = l[p]
		}
	}
	return v
}

func TestExperiments(t *testing.T) {
	c := newClient(t)
	id := at(c.must("POST", "experiments/create", `{"name":"cancer","tags":[{"key":"team","value":"a"}]}`), "experiment_id").(string)
	c.refused("RESOURCE_ALREADY_EXISTS", "POST", "experiments/create", `{"name":"cancer"}`)
	for _, bad := range []string{`{"name":""}`, `{"name":" x"}`, `{"name":"x","artifact_location":"s3://evil/x"}`, `{"name":"x","artifact_location":"file:///etc"}`} {
		c.refused("INVALID_PARAMETER_VALUE", "POST", "experiments/create", bad)
	}
	c.refused("BAD_REQUEST", "POST", "experiments/create", `{"name":`)
	if got := at(c.must("GET", "experiments/get-by-name", "experiment_name=cancer"), "experiment", "experiment_id"); got != id {
		t.Errorf("by name: %v", got)
	}
	c.refused("RESOURCE_DOES_NOT_EXIST", "GET", "experiments/get-by-name", "experiment_name=none")
	c.must("POST", "experiments/update", `{"experiment_id":"`+id+`","new_name":"renamed"}`)
	c.refused("RESOURCE_DOES_NOT_EXIST", "GET", "experiments/get-by-name", "experiment_name=cancer")
	c.must("POST", "experiments/set-experiment-tag", `{"experiment_id":"`+id+`","key":"k","value":"v"}`)
	c.must("POST", "experiments/create", `{"name":"second"}`)
	search := c.must("POST", "experiments/search", `{"filter":"tags.team = 'a' AND name LIKE 're%'","max_results":"10"}`)
	if n := len(search["experiments"].([]any)); n != 1 || at(search, "experiments", 0, "name") != "renamed" {
		t.Errorf("search: %v", search)
	}
	page := c.must("POST", "experiments/search", `{"max_results":1}`)
	if at(page, "experiments", 0, "name") != "second" || page["next_page_token"] == nil {
		t.Errorf("first page: %v", page)
	}
	page = c.must("POST", "experiments/search", `{"max_results":1,"page_token":"`+page["next_page_token"].(string)+`"}`)
	if at(page, "experiments", 0, "name") != "renamed" || page["next_page_token"] != nil {
		t.Errorf("second page: %v", page)
	}
	c.must("POST", "experiments/delete", `{"experiment_id":"`+id+`"}`)
	c.refused("INVALID_PARAMETER_VALUE", "POST", "runs/create", `{"experiment_id":"`+id+`"}`)
	c.must("POST", "experiments/restore", `{"experiment_id":"`+id+`"}`)
	// The default experiment is there when somebody asks for it.
	if got := at(c.must("GET", "experiments/get", "experiment_id=0"), "experiment", "name"); got != "Default" {
		t.Errorf("default experiment: %v", got)
	}
}

func (c *client) newRun(experiment string) string {
	c.t.Helper()
	return at(c.must("POST", "runs/create", `{"experiment_id":"`+experiment+`","start_time":1,"tags":[{"key":"mlflow.runName","value":"night"}]}`), "run", "info", "run_id").(string)
}

func TestRuns(t *testing.T) {
	c := newClient(t)
	run := c.newRun("0")
	c.must("POST", "runs/log-parameter", `{"run_id":"`+run+`","key":"lr","value":"0.1"}`)
	c.must("POST", "runs/log-parameter", `{"run_id":"`+run+`","key":"lr","value":"0.1"}`) // a retry
	c.refused("INVALID_PARAMETER_VALUE", "POST", "runs/log-parameter", `{"run_id":"`+run+`","key":"lr","value":"0.2"}`)
	for step, v := range []string{"0.5", "0.7", `"NaN"`, "0.9"} {
		c.must("POST", "runs/log-metric", fmt.Sprintf(`{"run_id":"%s","key":"acc","value":%s,"timestamp":"%d","step":%d}`, run, v, 100+step, step))
	}
	c.must("POST", "runs/log-metric", `{"run_id":"`+run+`","key":"acc","value":0.9,"timestamp":103,"step":3}`) // a retry
	c.must("POST", "runs/log-batch", `{"run_id":"`+run+`","metrics":[{"key":"loss","value":2,"timestamp":1,"step":2},{"key":"loss","value":3,"timestamp":1,"step":1}],"params":[{"key":"n","value":"5"}],"tags":[{"key":"t","value":"v"}]}`)
	got := c.must("GET", "runs/get", "run_id="+run)
	if at(got, "run", "data", "metrics", 0, "value") != 0.9 || at(got, "run", "data", "metrics", 1, "value") != 2.0 || at(got, "run", "info", "run_name") != "night" || at(got, "run", "info", "user_id") != "Ada" {
		t.Errorf("run: %v", got)
	}
	history := c.must("GET", "metrics/get-history", "run_id="+run+"&metric_key=acc")
	if n := len(history["metrics"].([]any)); n != 4 || at(history, "metrics", 2, "value") != "NaN" || at(history, "metrics", 3, "step") != 3.0 {
		t.Errorf("history: %v", history)
	}
	c.must("POST", "runs/set-tag", `{"run_id":"`+run+`","key":"t","value":"w"}`)
	c.must("POST", "runs/delete-tag", `{"run_id":"`+run+`","key":"t"}`)
	c.refused("RESOURCE_DOES_NOT_EXIST", "POST", "runs/delete-tag", `{"run_id":"`+run+`","key":"t"}`)
	c.must("POST", "runs/update", `{"run_id":"`+run+`","status":"FINISHED","end_time":5}`)
	c.refused("INVALID_PARAMETER_VALUE", "POST", "runs/update", `{"run_id":"`+run+`","status":"DONE"}`)
	c.refused("RESOURCE_DOES_NOT_EXIST", "GET", "runs/get", "run_id=none")
	for _, key := range []string{"", "../x", "/x", "a//b", "a/../b", "x%y", "x;y", strings.Repeat("k", 251)} {
		c.refused("INVALID_PARAMETER_VALUE", "POST", "runs/log-metric", fmt.Sprintf(`{"run_id":"%s","key":%q,"value":1,"timestamp":1}`, run, key))
	}
	c.refused("INVALID_PARAMETER_VALUE", "POST", "runs/log-batch", `{"run_id":"`+run+`","metrics":[`+strings.Repeat(`{"key":"a","value":1,"timestamp":1},`, 1000)+`{"key":"a","value":1,"timestamp":1}]}`)
	c.refused("BAD_REQUEST", "POST", "runs/log-metric", `{"run_id":"`+run+`","key":"a","value":"x"}`)
	c.must("POST", "runs/delete", `{"run_id":"`+run+`"}`)
	c.refused("INVALID_PARAMETER_VALUE", "POST", "runs/log-metric", `{"run_id":"`+run+`","key":"a","value":1,"timestamp":1}`)
	c.must("POST", "runs/restore", `{"run_id":"`+run+`"}`)
}

func TestSearchRuns(t *testing.T) {
	c := newClient(t)
	exp := at(c.must("POST", "experiments/create", `{"name":"e"}`), "experiment_id").(string)
	var runs []string
	for i := range 5 {
		run := c.newRun(exp)
		runs = append(runs, run)
		c.must("POST", "runs/log-batch", fmt.Sprintf(`{"run_id":"%s","metrics":[{"key":"acc","value":%d,"timestamp":1}],"params":[{"key":"i","value":"%d"}]}`, run, i, i))
	}
	c.newRun("0") // of another experiment
	for in, want := range map[string][]int{
		`"filter":"metrics.acc > 2","order_by":["metrics.acc DESC"]`:   {4, 3},
		`"filter":"params.i IN ('0', '2')"`:                            nil,
		`"filter":"attributes.run_id = '` + runs[1] + `'"`:             {1},
		`"filter":"attributes.status = 'RUNNING' and metrics.acc < 1"`: {0},
		`"order_by":["metrics.acc ASC"],"max_results":2`:               {0, 1},
		`"run_view_type":"DELETED_ONLY"`:                               {},
		`"filter":"tags.mlflow.runName = 'night' AND params.i = '3'"`:  {3},
	} {
		out, err := c.call("POST", "runs/search", `{"experiment_ids":["`+exp+`"],`+in+`}`)
		if err != nil {
			if want != nil {
				t.Errorf("%s: %v", in, err)
			}
			continue
		}
		var got []int
		for i := range out["runs"].([]any) {
			got = append(got, slices.Index(runs, at(out, "runs", i, "info", "run_id").(string)))
		}
		if want != nil && !slices.Equal(got, want) {
			t.Errorf("%s: got %v, want %v", in, got, want)
		}
	}
	c.refused("INVALID_PARAMETER_VALUE", "POST", "runs/search", `{"experiment_ids":["`+exp+`"],"max_results":50001}`)
}

func TestArtifacts(t *testing.T) {
	c := newClient(t)
	run := c.newRun("0")
	uri := at(c.must("GET", "runs/get", "run_id="+run), "run", "info", "artifact_uri").(string)
	root := strings.TrimPrefix(uri, "mlflow-artifacts:/")
	proxy := func(method, path string, body string) (*httptest.ResponseRecorder, error) {
		return c.do(method, workspaceA.String(), "mlflow-artifacts/artifacts"+path, "", strings.NewReader(body))
	}
	if _, err := proxy("PUT", "/"+root+"/plots/roc.html", "<script>"); err != nil {
		t.Fatal(err)
	}
	w, err := proxy("GET", "/"+root+"/plots/roc.html", "")
	if err != nil || w.Body.String() != "<script>" || w.Header().Get("Content-Type") != "application/octet-stream" {
		t.Errorf("download: %v %v", err, w)
	}
	list := c.must("GET", "artifacts/list", "run_id="+run+"&path=plots")
	if at(list, "files", 0, "path") != "plots/roc.html" || at(list, "files", 0, "file_size") != 8.0 {
		t.Errorf("list: %v", list)
	}
	w, err = c.do("GET", workspaceA.String(), "mlflow-artifacts/artifacts", "path="+url.QueryEscape(root), nil)
	if err != nil || !strings.Contains(w.Body.String(), `"path":"plots"`) {
		t.Errorf("proxy list: %v %v", err, w)
	}
	for _, path := range []string{"/none", "/0/none/artifacts/x", "/" + root, strings.Replace("/"+root+"/x", run, "other", 1)} {
		if _, err := proxy("GET", path, ""); resource.StatusOf(err) < 400 || resource.StatusOf(err) == 500 {
			t.Errorf("%s: %v", path, err)
		}
	}
	if _, err := proxy("DELETE", "/"+root+"/plots/roc.html", ""); err != nil || len(c.files.files) != 0 {
		t.Errorf("delete: %v %v", err, c.files.files)
	}
}

// TestTraversal is THREATS R20, in artifact paths: no spelling of "up", absolute or encoded, reaches storage.
func TestTraversal(t *testing.T) {
	c := newClient(t)
	run := c.newRun("0")
	uri := at(c.must("GET", "runs/get", "run_id="+run), "run", "info", "artifact_uri").(string)
	root := strings.TrimPrefix(uri, "mlflow-artifacts:/")
	ups := []string{"..", ".", "...", ". .", " ..", "%2e%2e", "%2E%2E", ".%2e", "%252e%252e", "..;", "..;x=y", "..\\", "\\..\\", "..%5c", "..%00", "\x00", "..\n", "\u2025", "\uff0e\uff0e", "..\u2215", ""}
	count := 0
	for _, up := range ups {
		for _, form := range []string{up, up + "/x", "a/" + up, "a/" + up + "/b", "a/" + up + "/" + up + "/b", up + "/" + up + "/etc/passwd", "C:" + up, "/" + up + "/x"} {
			for _, method := range []string{"GET", "PUT", "DELETE"} {
				count++
				path := root + "/" + form
				if _, err := cleanPath(path); err == nil && !strings.Contains(up, "\u2215") {
					t.Errorf("path %q was accepted", form)
				}
				_, err := c.do(method, workspaceA.String(), "mlflow-artifacts/artifacts/"+path, "", strings.NewReader("x"))
				if err == nil && !strings.Contains(up, "\u2215") {
					t.Errorf("%s %q was served", method, form)
				}
			}
			if _, err := c.call("GET", "artifacts/list", "run_id="+run+"&path="+url.QueryEscape(form)); err == nil && form != "" && !strings.Contains(up, "\u2215") {
				t.Errorf("list of %q was served", form)
			}
		}
	}
	if count < 500 {
		t.Errorf("only %d spellings were tried", count)
	}
}

func TestModels(t *testing.T) {
	c := newClient(t)
	c.must("POST", "registered-models/create", `{"name":"m","tags":[{"key":"a","value":"b"}]}`)
	c.refused("RESOURCE_ALREADY_EXISTS", "POST", "registered-models/create", `{"name":"m"}`)
	c.refused("RESOURCE_DOES_NOT_EXIST", "POST", "model-versions/create", `{"name":"none","source":"runs:/r/m"}`)
	for range 2 {
		c.must("POST", "model-versions/create", `{"name":"m","source":"runs:/r/m","run_id":"r"}`)
	}
	c.must("POST", "model-versions/transition-stage", `{"name":"m","version":"1","stage":"Production"}`)
	c.must("POST", "model-versions/transition-stage", `{"name":"m","version":"2","stage":"Production","archive_existing_versions":true}`)
	if got := at(c.must("GET", "model-versions/get", "name=m&version=1"), "model_version", "current_stage"); got != "Archived" {
		t.Errorf("stage of version 1: %v", got)
	}
	latest := c.must("GET", "registered-models/get-latest-versions", "name=m&stages=Production")
	if n := len(latest["model_versions"].([]any)); n != 1 || at(latest, "model_versions", 0, "version") != "2" {
		t.Errorf("latest: %v", latest)
	}
	found := c.must("GET", "model-versions/search", "filter="+url.QueryEscape("run_id = 'r' AND name = 'm'"))
	if n := len(found["model_versions"].([]any)); n != 2 {
		t.Errorf("search: %v", found)
	}
	if got := at(c.must("GET", "registered-models/search", "filter="+url.QueryEscape("name ILIKE 'M'")), "registered_models", 0, "name"); got != "m" {
		t.Errorf("models: %v", got)
	}
}

// TestWorkspacesAreApart: the host decides, the path must agree, and another workspace's run is not there.
func TestWorkspacesAreApart(t *testing.T) {
	c := newClient(t)
	run := c.newRun("0")
	if _, err := c.do("GET", workspaceB.String(), "mlflow/runs/get", "run_id="+run, nil); resource.StatusOf(err) != 404 {
		t.Errorf("the path of another workspace on this host: %v", err)
	}
	c.host = workspaceB
	if _, err := c.do("GET", workspaceB.String(), "mlflow/runs/get", "run_id="+run, nil); resource.StatusOf(err) != 404 {
		t.Errorf("a run of another workspace: %v", err)
	}
}

// TestJobRuns: a job's status is the job's, whatever its code says; and dropping a workspace leaves nothing.
func TestJobRuns(t *testing.T) {
	c, ctx := newClient(t), context.Background()
	for range 2 {
		if err := c.service.OpenJob(ctx, workspaceA, JobRun{ID: "job-1", Name: "train", Experiment: "cancer", User: "Ada", Tags: map[string]string{"k": "canary-value"}}); err != nil {
			t.Fatal(err)
		}
	}
	mine := c.newRun("0")
	if err := c.service.OpenJob(ctx, workspaceA, JobRun{ID: mine, Name: "train", Experiment: "cancer"}); resource.StatusOf(err) != 409 {
		t.Errorf("a job took over the run %s: %v", mine, err)
	}
	c.must("POST", "runs/update", `{"run_id":"job-1","status":"FINISHED"}`)
	if got := at(c.must("GET", "runs/get", "run_id=job-1"), "run", "info", "status"); got != "SCHEDULED" {
		t.Errorf("the job's code set its status to %v", got)
	}
	end := time.UnixMilli(9)
	if err := c.service.ChangeJob(ctx, workspaceA, "job-1", "FAILED", time.UnixMilli(7), end); err != nil {
		t.Fatal(err)
	}
	info := at(c.must("GET", "runs/get", "run_id=job-1"), "run", "info")
	if at(info, "status") != "FAILED" || at(info, "end_time") != 9.0 || at(info, "start_time") != 7.0 {
		t.Errorf("run: %v", info)
	}
	keys := 0
	err := c.store.View(ctx, func(r store.Reader) error {
		for kv, err := range r.Scan("", store.ScanOptions{}) {
			if err != nil {
				return err
			}
			keys++
			if strings.Contains(kv.Key, "cancer") || bytes.Contains(kv.Value, []byte("canary")) || bytes.Contains(kv.Value, []byte("cancer")) {
				t.Errorf("%s holds a name or a value in the clear", kv.Key)
			}
		}
		return nil
	})
	if err != nil || keys == 0 {
		t.Fatal(err, keys)
	}
	if err := c.service.Drop(ctx, workspaceA); err != nil {
		t.Fatal(err)
	}
	c.refused("RESOURCE_DOES_NOT_EXIST", "GET", "runs/get", "run_id=job-1")
}

func BenchmarkLogBatch(b *testing.B) {
	st := storetest.New(b)
	s, err := New(Config{Store: st, Domain: "d", Authority: func(h string) string { return h },
		Handles: func(_ context.Context, ws string) (Handle, error) { return fakeHandle(ws), nil }})
	if err != nil {
		b.Fatal(err)
	}
	ctx := context.Background()
	if err := s.OpenJob(ctx, workspaceA, JobRun{ID: "r", Name: "r", Experiment: "e"}); err != nil {
		b.Fatal(err)
	}
	bk, err := s.book(ctx, workspaceA)
	if err != nil {
		b.Fatal(err)
	}
	c := &call{book: bk, s: s, id: workspaceA}
	metrics := make([]metric, 1000)
	for i := range metrics {
		metrics[i] = metric{fmt.Sprintf("m%d", i%10), point{float(i), flexible(i), flexible(i)}}
	}
	b.ReportAllocs()
	for b.Loop() {
		if err := c.log(ctx, "r", metrics, nil, nil); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)*1000/b.Elapsed().Seconds(), "metrics/s")
}
