package agent

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// rig runs the agent in this process against a real controller over a unix socket.
type rig struct {
	t          *testing.T
	blobs      *blobs
	url        string
	controller *Controller
	events     []Event
	seen       chan Event
	refuse     int // events answered with an error first
	worker     *worker
}

func newRig(t *testing.T, spec func(url string) Spec) *rig {
	t.Helper()
	r := &rig{t: t, blobs: newBlobs(), seen: make(chan Event, 20)}
	storage := httptest.NewUnstartedServer(r.blobs)
	storage.Config.ErrorLog = log.New(io.Discard, "", 0)
	storage.StartTLS()
	t.Cleanup(storage.Close)
	r.url = storage.URL
	s := spec(storage.URL)
	if s.Env == nil {
		s.Env = map[string]string{}
	}
	s.Env["IDENTITY_ENDPOINT"], s.Env["IDENTITY_HEADER"] = storage.URL+"/identity", "node-secret"
	s.Logs = Logs{User: storage.URL + "/logs/user_logs/std_log.txt", System: storage.URL + "/logs/system_logs/agent.log"}
	r.controller = NewController(s, func(_ context.Context, e Event) error {
		if r.refuse > 0 {
			r.refuse--
			return errors.New("disk is full")
		}
		r.events = append(r.events, e)
		r.seen <- e
		return nil
	})
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: r.controller}
	served := make(chan struct{})
	go func() { defer close(served); _ = server.Serve(l) }()
	t.Cleanup(func() { server.Close(); <-served })
	r.worker = &worker{
		work: t.TempDir(), caFile: "/ca.pem", uid: -1, processes: newProcesses(false), retry: time.Millisecond,
		control: &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		}}},
		network: networkClient(&tls.Config{RootCAs: storage.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs}),
	}
	t.Cleanup(r.worker.control.CloseIdleConnections)
	return r
}

func (r *rig) run() Event {
	r.t.Helper()
	if err := r.worker.run(r.t.Context()); err != nil {
		r.t.Fatal(err)
	}
	return r.controller.Last()
}

func (r *rig) states() (s []State) {
	for _, e := range r.events {
		s = append(s, e.State)
	}
	return s
}

func pin(data string) string { s := sha256.Sum256([]byte(data)); return hex.EncodeToString(s[:]) }

func shell(command string) func(string) Spec {
	return func(string) Spec { return Spec{Kind: KindJob, RunID: "run-1", Command: command} }
}

func TestJobFromSpecToOutputs(t *testing.T) {
	r := newRig(t, func(url string) Spec {
		return Spec{
			Kind: KindJob, RunID: "run-1",
			Command: `echo hello; cat train.sh lib/a.txt; cat "${{inputs.data}}"; ls ${{ inputs.folder }}; cat "$AZURE_ML_INPUT_folder/x/y.csv"; echo rate ${{inputs.rate}} $AZUREML_PARAMETER_rate $OWN;
				echo model > ${{outputs.model}}/m.bin; mkdir $AZURE_ML_OUTPUT_model/sub; echo deep > "$AZURE_ML_OUTPUT_model/sub/a b.txt"; ln -s /etc/passwd $AZURE_ML_OUTPUT_model/link; echo plot > outputs/p.png; echo problem >&2`,
			Code:    &Tree{Files: []File{{Path: "train.sh", URL: url + "/code/1", SHA256: pin("train\n"), Size: 6}, {Path: "lib/a.txt", URL: url + "/code/2", SHA256: pin("lib\n")}}},
			Inputs:  []Input{{Name: "data", Single: true, Tree: Tree{Files: []File{{Path: "d.csv", URL: url + "/data/d.csv"}}}}, {Name: "folder", Tree: Tree{Folder: &Folder{ContainerURL: url + "/data", Prefix: "f/"}}}},
			Outputs: []Output{{Name: "model", URLPrefix: url + "/out/run-1/model/"}, {Name: "default", URLPrefix: url + "/out/run-1"}},
			Params:  map[string]string{"rate": "0.1"},
			Env:     map[string]string{"OWN": "value"},
		}
	})
	for path, data := range map[string]string{"/code/1": "train\n", "/code/2": "lib\n", "/data/d.csv": "one row\n", "/data/f/x/y.csv": "deep row\n", "/data/f/z.csv": "z\n", "/data/g/not.csv": "n"} {
		r.blobs.data[path] = data
	}
	r.refuse, r.blobs.fail = 2, 2
	final := r.run()
	if final.State != StateCompleted || final.Error != "" || *final.ExitCode != 0 {
		t.Fatalf("final event %+v\n%s", final, r.blobs.get("/logs/system_logs/agent.log"))
	}
	if diff := cmp.Diff([]State{StatePreparing, StateRunning, StateFinalizing, StateCompleted}, r.states()); diff != "" {
		t.Error(diff)
	}
	want := "hello\ntrain\nlib\none row\nx\nz.csv\ndeep row\nrate 0.1 0.1 value\nproblem\n"
	if diff := cmp.Diff(want, r.blobs.get("/logs/user_logs/std_log.txt")); diff != "" {
		t.Error(diff)
	}
	stored := map[string]string{}
	for p, d := range r.blobs.data {
		if strings.HasPrefix(p, "/out/") {
			stored[p] = d
		}
	}
	if diff := cmp.Diff(map[string]string{"/out/run-1/model/m.bin": "model\n", "/out/run-1/model/sub/a b.txt": "deep\n", "/out/run-1/p.png": "plot\n"}, stored); diff != "" {
		t.Error(diff)
	}
	// Secrets stay out of the agent's own log (THREATS R5).
	for _, secret := range []string{"node-secret", "token-1"} {
		if log := r.blobs.get("/logs/system_logs/agent.log"); strings.Contains(log, secret) || !strings.Contains(log, "fetched code: 2 files") {
			t.Errorf("system log:\n%s", log)
		}
	}
	if r.blobs.tokens != 1 {
		t.Errorf("asked for %d tokens", r.blobs.tokens)
	}
}

// Whoever can write to storage must not get their code run (THREATS R1).
func TestChangedCodeIsNotRun(t *testing.T) {
	mark := filepath.Join(t.TempDir(), "ran")
	for name, file := range map[string]File{"digest": {Path: "train.sh", SHA256: pin("submitted")}, "size": {Path: "train.sh", Size: 9}} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, func(url string) Spec {
				file.URL = url + "/code/1"
				return Spec{Kind: KindJob, RunID: "run-1", Command: "touch " + mark, Code: &Tree{Files: []File{file}}}
			})
			r.blobs.data["/code/1"] = "overwritten"
			final := r.run()
			if final.State != StateFailed || final.Code != CodeIntegrity || !strings.Contains(final.Error, "changed since it was submitted") {
				t.Errorf("final event %+v", final)
			}
			if _, err := os.Stat(mark); err == nil {
				t.Error("the command was run")
			}
		})
	}
}

func TestFailures(t *testing.T) {
	for name, tc := range map[string]struct {
		spec func(url string) Spec
		code string
		exit int
		text string
	}{
		"exit code":   {shell("exit 3"), CodeUserError, 3, "exit code 3"},
		"signal":      {shell("kill -9 $$"), CodeUserError, 137, "137"},
		"placeholder": {shell("echo ${{inputs.absent}}"), CodeUserError, -1, "inputs.absent"},
		"time limit": {func(string) Spec {
			return Spec{Kind: KindJob, Command: "sleep 100", TimeLimitSeconds: 1}
		}, CodeTimeLimit, 143, "time limit"},
		"absent input": {func(url string) Spec {
			return Spec{Kind: KindJob, Command: "true", Inputs: []Input{{Name: "d", Tree: Tree{Files: []File{{Path: "d", URL: url + "/data/absent"}}}}}}
		}, CodeData, -1, "BlobNotFound"},
		"climbing input": {func(url string) Spec {
			return Spec{Kind: KindJob, Command: "true", Inputs: []Input{{Name: "d", Tree: Tree{Files: []File{{Path: "../d", URL: url + "/data/d"}}}}}}
		}, CodeData, -1, "plain relative path"},
		"plain http": {func(url string) Spec {
			return Spec{Kind: KindJob, Command: "true", Inputs: []Input{{Name: "d", Tree: Tree{Files: []File{{Path: "d", URL: "http://127.0.0.1/x?sig=secret"}}}}}}
		}, CodeData, -1, "not https"},
		"input name": {func(string) Spec { return Spec{Kind: KindJob, Command: "true", Inputs: []Input{{Name: "../x"}}} }, CodeAgent, -1, "not a name"},
		"no command": {func(string) Spec { return Spec{Kind: KindJob} }, CodeAgent, -1, "not complete"},
		"no entry":   {func(string) Spec { return Spec{Kind: KindServe, Serve: &Serve{Python: "/bin/sh"}} }, CodeServe, -1, "no entry script"},
		"no python":  {func(string) Spec { return Spec{Kind: KindServe, Serve: &Serve{Python: "python-absent"}} }, CodeImage, -1, "image has no"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, tc.spec)
			final := r.run()
			exit := -1
			if final.ExitCode != nil {
				exit = *final.ExitCode
			}
			if final.State != StateFailed || final.Code != tc.code || exit != tc.exit || !strings.Contains(final.Error, tc.text) || strings.Contains(final.Error, "secret") {
				t.Errorf("final event %+v, exit %d", final, exit)
			}
		})
	}
}

func TestCancelEndsUserCode(t *testing.T) {
	r := newRig(t, shell("trap 'echo stopping; exit 0' TERM; echo up; while :; do sleep 0.05; done"))
	done := make(chan error, 1)
	go func() { done <- r.worker.run(t.Context()) }()
	for { // until its first line is readable while it runs
		<-r.blobs.changed
		if r.blobs.get("/logs/user_logs/std_log.txt") == "up\n" {
			break
		}
	}
	r.controller.Cancel()
	r.controller.Cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if last := r.controller.Last(); last.State != StateCanceled {
		t.Errorf("final event %+v", last)
	}
	if got := r.blobs.get("/logs/user_logs/std_log.txt"); !strings.HasPrefix(got, "up\n") || !strings.HasSuffix(got, "stopping\n") { // a shell may tell of its sleep's end between
		t.Errorf("log %q", got)
	}
}

func TestLogStreamsWhileRunning(t *testing.T) {
	gate := filepath.Join(t.TempDir(), "gate")
	r := newRig(t, shell("echo first; while [ ! -e "+gate+" ]; do sleep 0.02; done; echo second"))
	done := make(chan error, 1)
	go func() { done <- r.worker.run(t.Context()) }()
	for r.blobs.get("/logs/user_logs/std_log.txt") != "first\n" {
		<-r.blobs.changed
	}
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if got := r.blobs.get("/logs/user_logs/std_log.txt"); got != "first\nsecond\n" {
		t.Errorf("log %q", got)
	}
	// Each commit adds one block; what was sent is not sent again.
	if n := len(r.blobs.blocks["/logs/user_logs/std_log.txt"]); n != 2 {
		t.Errorf("%d blocks", n)
	}
}

func TestSilentJobHasAnEmptyLog(t *testing.T) {
	r := newRig(t, shell("true"))
	if err := r.worker.run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if last := r.controller.Last(); last.State != StateCompleted || last.Error != "" {
		t.Errorf("final event %+v", last)
	}
	r.blobs.mu.Lock()
	defer r.blobs.mu.Unlock()
	if text, ok := r.blobs.data["/logs/user_logs/std_log.txt"]; !ok || text != "" {
		t.Errorf("log %q, %v", text, ok)
	}
}

func TestLargeOutputGoesInBlocks(t *testing.T) {
	r := newRig(t, func(url string) Spec {
		return Spec{Kind: KindJob, Command: "head -c 20000000 /dev/zero | tr '\\0' x > ${{outputs.o}}/big; : > ${{outputs.o}}/empty", Outputs: []Output{{Name: "o", URLPrefix: url + "/out/"}}}
	})
	if final := r.run(); final.State != StateCompleted {
		t.Fatalf("final event %+v", final)
	}
	if got := r.blobs.get("/out/big"); len(got) != 20000000 || strings.Trim(got, "x") != "" {
		t.Errorf("stored %d bytes", len(got))
	}
	if got, ok := r.blobs.data["/out/empty"]; !ok || got != "" {
		t.Errorf("empty output %q, %v", got, ok)
	}
}

func TestServeScoresAndHidesErrors(t *testing.T) {
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("python3 is not installed")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	l.Close()
	script := `
import json, os
def init():
    global bias
    bias = int(open(os.path.join(os.environ["AZUREML_MODEL_DIR"], "bias")).read())
    print("loaded")
def run(raw_data):
    return {"result": [x + bias for x in json.loads(raw_data)["data"]]}
`
	r := newRig(t, func(url string) Spec {
		return Spec{Kind: KindServe, RunID: "blue", Code: &Tree{Files: []File{{Path: "src/score.py", URL: url + "/code/s", SHA256: pin(script)}}},
			Serve: &Serve{EntryScript: "src/score.py", Port: port, Python: python, Model: Tree{Files: []File{{Path: "bias", URL: url + "/model/bias"}}}}}
	})
	r.blobs.data["/code/s"], r.blobs.data["/model/bias"] = script, "10"
	done := make(chan error, 1)
	go func() { done <- r.worker.run(t.Context()) }()
	for e := range r.seen {
		if e.State.Final() {
			t.Fatalf("ended: %+v\n%s", e, r.blobs.get("/logs/user_logs/std_log.txt"))
		}
		if e.State == StateReady {
			break
		}
	}
	base := fmt.Sprintf("http://127.0.0.1:%d", port)
	for _, tc := range []struct {
		method, path, body string
		status             int
		want               string
	}{
		{"POST", "/score", `{"data":[1,2]}`, 200, `{"result": [11, 12]}`},
		{"POST", "/score", `nonsense`, 500, "see the deployment's log"},
		{"POST", "/score", "\xff", 400, "UTF-8"},
		{"POST", "/other", `{}`, 404, "not found"},
		{"GET", "/", "", 200, "Healthy"},
		{"GET", "/score", "", 405, "POST"},
	} {
		req, _ := http.NewRequest(tc.method, base+tc.path, strings.NewReader(tc.body))
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != tc.status || !strings.Contains(string(body), tc.want) || strings.Contains(string(body), "Traceback") {
			t.Errorf("%s %s %q: %d %s", tc.method, tc.path, tc.body, resp.StatusCode, body)
		}
	}
	http.DefaultClient.CloseIdleConnections()
	r.controller.Cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if last := r.controller.Last(); last.State != StateCanceled {
		t.Errorf("final event %+v", last)
	}
	if log := r.blobs.get("/logs/user_logs/std_log.txt"); !strings.Contains(log, "loaded") || !strings.Contains(log, "JSONDecodeError") {
		t.Errorf("log:\n%s", log)
	}
}

func TestServeReportsABrokenScript(t *testing.T) {
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("python3 is not installed")
	}
	r := newRig(t, func(url string) Spec {
		return Spec{Kind: KindServe, Code: &Tree{Files: []File{{Path: "score.py", URL: url + "/code/s"}}}, Serve: &Serve{Python: python}}
	})
	r.blobs.data["/code/s"] = "def init(): raise RuntimeError('no model')\ndef run(d): pass\n"
	if final := r.run(); final.State != StateFailed || final.Code != CodeServe || !strings.Contains(r.blobs.get("/logs/user_logs/std_log.txt"), "no model") {
		t.Errorf("final event %+v", final)
	}
}

func TestControllerRefusals(t *testing.T) {
	var recorded []Event
	c := NewController(Spec{Kind: KindJob, RunID: "r"}, func(_ context.Context, e Event) error { recorded = append(recorded, e); return nil })
	ask := func(method, path string, body any) int {
		text, _ := json.Marshal(body)
		if s, ok := body.(string); ok {
			text = []byte(s)
		}
		w := httptest.NewRecorder()
		c.ServeHTTP(w, httptest.NewRequest(method, path, strings.NewReader(string(text))))
		return w.Code
	}
	event := func(n int64, s State) Event { return Event{Sequence: n, State: s} }
	for i, tc := range []struct {
		method, path string
		body         any
		want         int
	}{
		{"GET", "/spec", nil, 200}, {"GET", "/spec", nil, 410}, {"GET", "/other", nil, 404}, {"POST", "/event", "{", 400},
		{"POST", "/event", strings.Repeat(" ", maxEvent+1) + "{}", 400},
		{"POST", "/event", event(2, StateRunning), 503}, {"POST", "/event", event(1, "Bogus"), 503},
		{"POST", "/event", event(1, StatePreparing), 204}, {"POST", "/event", event(1, StatePreparing), 204},
		{"POST", "/event", event(2, StateCompleted), 204}, {"POST", "/event", event(2, StateCompleted), 204},
		{"POST", "/event", event(3, StateRunning), 503}, {"POST", "/event", event(2, StateFailed), 503},
	} {
		if got := ask(tc.method, tc.path, tc.body); got != tc.want {
			t.Errorf("%d: %s %s: %d, want %d", i, tc.method, tc.path, got, tc.want)
		}
	}
	if len(recorded) != 2 {
		t.Errorf("recorded %v", recorded)
	}
}

func FuzzControllerEvent(f *testing.F) {
	f.Add([]byte(`{"sequence":1,"state":"Running"}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		c := NewController(Spec{}, func(context.Context, Event) error { return nil })
		c.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("POST", "/event", strings.NewReader(string(body))))
		if last := c.Last(); last.Sequence != 0 && (last.Sequence != 1 || !last.State.known()) {
			t.Errorf("accepted %+v", last)
		}
	})
}

func TestMainRunsOnlyInNodes(t *testing.T) {
	for _, args := range [][]string{nil, {"--probe"}, {"x"}} {
		var out, errs strings.Builder
		if code := Main(t.Context(), args, &out, &errs); code != 2 || !strings.Contains(errs.String(), "process 1") || out.Len() != 0 {
			t.Errorf("%v: %d %s", args, code, errs.String())
		}
	}
}
