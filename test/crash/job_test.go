package crash

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"casemate.dev/test/harness"
)

// TestKilledDuringAJob kills the server while one job runs user code and another waits, and then twice more under a third.
// The rule (providers/machinelearning/DESIGN.md): a job whose node is lost is queued again once, and fails with NodeLost after
// the second loss; a job that waits has lost nothing. Nothing of the dead server's nodes stays on the machine.
func TestKilledDuringAJob(t *testing.T) {
	if testing.Short() {
		t.Skip("starts nodes")
	}
	l := harness.NewLab(t, harness.Options{}, 1)
	word := "acknowledged-" + harness.Suffix()
	l.Upload(t, "kept", map[string]string{"word": word})
	idle := leftovers(t, l)

	running := l.Submit(t, "running", "echo begun; sleep 3; echo done", "")
	l.AwaitLog(t, running, "begun")
	waiting := l.Submit(t, "waiting", "echo begun; echo done", "")
	if a := l.MustARM(t, http.MethodGet, waiting, harness.VersionML, nil); a.Field("properties.status") != "Queued" {
		t.Errorf("the second job of a cluster of one node is %v", a)
	}
	l.Kill()
	verifyTrail(t, l.Server)
	l.Restart(t)
	demandAttempts(t, l.Await(t, running, "Completed"), 2)
	demandAttempts(t, l.Await(t, waiting, "Completed"), 1)
	for _, job := range []string{running, waiting} {
		if log := l.JobLog(t, job); !strings.Contains(log, "done\n") {
			t.Errorf("%s has printed %q", job, log)
		}
	}
	if a := l.Must(t, harness.Call{Method: http.MethodGet, URL: l.URL(l.BlobHost, "/"+l.Store+"/kept/word"), As: l.Admin}); string(a.Body) != word {
		t.Errorf("the acknowledged blob is %q", a.Body)
	}
	demandIdle(t, l, idle)

	lost := l.Submit(t, "lost", "echo begun; sleep 120", "")
	for attempt := 1; attempt <= 2; attempt++ {
		l.Until(t, "an attempt", func() bool {
			a := l.MustARM(t, http.MethodGet, lost, harness.VersionML, nil)
			n, _ := field(a, "attempt").(float64)
			if !slices.Contains([]string{"Queued", "Preparing", "Running"}, a.Field("properties.status")) {
				t.Fatalf("attempt %d = %v", attempt, a)
			}
			return int(n) == attempt && a.Field("properties.status") == "Running"
		})
		l.Kill()
		l.Restart(t)
	}
	a := l.Await(t, lost, "Failed")
	demandAttempts(t, a, 2)
	if a.Field("properties.error.code") != "NodeLost" || a.Field("properties.error.message") == "" {
		t.Errorf("a job that lost two nodes = %v", a)
	}
	after := l.Submit(t, "after", "echo done", "")
	demandAttempts(t, l.Await(t, after, "Completed"), 1)
	demandIdle(t, l, idle)

	drained := l.Submit(t, "drained", "echo begun; sleep 3; echo done", "")
	l.AwaitLog(t, drained, "begun")
	l.Stop(t) // asked to end under a running job, it ends well and takes the node with it
	l.Restart(t)
	demandAttempts(t, l.Await(t, drained, "Completed"), 2)
	demandIdle(t, l, idle)
	l.Remove(t)
	l.Stop(t)
	verifyTrail(t, l.Server)
}

func field(a harness.Answer, name string) any {
	p, _ := a.JSON()["properties"].(map[string]any)
	return p[name]
}

func demandAttempts(t *testing.T, job harness.Answer, want int) {
	t.Helper()
	notes, _ := field(job, "notes").([]any)
	if n, _ := field(job, "attempt").(float64); int(n) != want || want > 1 && len(notes) == 0 {
		t.Errorf("attempts %v with notes %v, want %d", n, notes, want)
	}
}

// demandIdle waits until the machine holds nothing of nodes again.
func demandIdle(t *testing.T, l *harness.Lab, idle string) {
	t.Helper()
	last := ""
	defer func() {
		if t.Failed() {
			t.Logf("left on the machine:\n%s\nwithout nodes:\n%s", last, idle)
		}
	}()
	l.Until(t, "the nodes to go", func() bool { last = leftovers(t, l); return last == idle })
}

// leftovers lists what this server has on the machine: mounts, loop devices, network namespaces, control groups with processes.
func leftovers(t *testing.T, l *harness.Lab) string {
	t.Helper()
	nodes := filepath.Join(l.Dir, "nodes")
	sum := sha256.Sum256([]byte(nodes)) // dataplane/runtime/oci names its things so
	instance := hex.EncodeToString(sum[:6])
	var out []string
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 4 && (strings.HasPrefix(f[4], "/run/casemate/"+instance+"/") || strings.HasPrefix(f[4], nodes+"/")) {
			out = append(out, "mount "+f[4])
		}
	}
	loops, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, path := range loops {
		if b, err := os.ReadFile(path); err == nil && strings.HasPrefix(string(b), l.Dir+"/nodes/") {
			out = append(out, "loop "+strings.TrimSpace(string(b)))
		}
	}
	spaces, _ := filepath.Glob("/run/netns/" + l.Kernel + "-*")
	out = append(out, fmt.Sprintf("%d network namespaces", len(spaces)))
	processes, _ := filepath.Glob("/proc/[0-9]*/cgroup")
	for _, path := range processes {
		if b, err := os.ReadFile(path); err == nil && strings.Contains(string(b), "casemate-"+instance) {
			out = append(out, "process "+path)
		}
	}
	for _, dir := range []string{"fscrypt", "fuse"} {
		disks, _ := filepath.Glob(filepath.Join(nodes, dir, "*"))
		for _, d := range disks {
			out = append(out, "disk "+d)
		}
	}
	return strings.Join(out, "\n")
}
