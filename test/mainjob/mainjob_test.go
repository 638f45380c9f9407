// Package mainjob carries the main job out as a user does, by the command `casemate demo`, and reads the evidence that it leaves.
//
// It trusts the demonstration's word for nothing but what stands in the evidence: each step of the main job must be there, must
// have tried something, and must say what it saw. It also starts the commands as a user without privileges.
package mainjob

import (
	"context"
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"casemate.dev/test/harness"
)

// limit bounds the whole demonstration, the building of its image included.
const limit = 10 * time.Minute

// fact is one thing tried and what was seen.
type fact struct {
	Tried, Saw string
	OK         bool
}

type evidence struct {
	OK    bool
	Steps []struct {
		Name, Error string
		OK          bool
		Evidence    []fact
	}
}

// wanted are the parts of the main job: the beginning of the step's name, and words that have to occur in its evidence.
var wanted = []struct {
	step  string
	words []string
}{
	{"network", []string{"subnets", "neighbouring network"}},
	{"identity", []string{"user-assigned identity"}},
	{"vault and key", []string{"RSA-3072", "purge protection"}},
	{"storage under", []string{"effective key version https://"}},
	{"registry", []string{"private endpoint"}},
	{"workspace under", []string{"effective key version https://", "private endpoint"}},
	{"cluster", []string{"0 to 2 nodes"}},
	{"locked down", []string{"Disabled"}},
	{"curated image", []string{"sha256:"}},
	{"patients' data", []string{"canary row", "569 patients"}},
	{"training job", []string{"no secret", "Completed"}},
	{"tracking", []string{"epochs", "plot", "model that the job registered"}},
	{"online endpoint", []string{"scoring subnet"}},
	{"scoring held-out", []string{"accuracy", "AUC"}},
	{"drill: no token", []string{"401"}},
	{"drill: a valid token without a role", []string{"403"}},
	{"drill: a token of another tenant", nil},
	{"drill: the right token from outside", []string{"403"}},
	{"drill: the right token from a neighbouring", nil},
	{"drill: a secret", []string{"403"}},
	{"drill: a node tries to leave", []string{"for comparison"}},
	{"drill: canary search", []string{"data directory", "raw disk", "log", "environments", "memory-backed", "nothing found"}},
	{"drill: rotation", nil},
	{"drill: revocation", []string{"ms"}},
	{"drill: restoring", nil},
	{"drill: who touched", []string{"on behalf of"}},
	{"drill: one changed byte", []string{"intact"}},
}

func TestMainJob(t *testing.T) {
	if testing.Short() {
		t.Skip("carries the whole main job out")
	}
	if os.Getuid() != 0 {
		t.Skip("not root: the demonstration needs networks and nodes")
	}
	if _, err := exec.LookPath("mmdebstrap"); err != nil {
		t.Skip("no mmdebstrap: the curated image cannot be built")
	}
	binary, dir := harness.Binary(t), t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	file := filepath.Join(dir, "evidence.json")
	cmd := exec.CommandContext(ctx, binary, "demo", "--data", filepath.Join(dir, "data"), "--json", file)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) } // it removes what it made
	cmd.WaitDelay = 2 * time.Minute
	began := time.Now()
	out, err := cmd.CombinedOutput()
	t.Logf("%v", time.Since(began).Round(time.Second))
	if err != nil {
		t.Errorf("casemate demo: %v\n%s", err, out)
	}
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var e evidence
	if err := json.Unmarshal(raw, &e); err != nil {
		t.Fatalf("reading the evidence: %v", err)
	}
	if !e.OK {
		t.Error("the evidence says that not all is well")
	}
	judge(t, e)
}

// judge wants every part of the main job, with evidence.
func judge(t *testing.T, e evidence) {
	t.Helper()
	texts := map[string]string{}
	for _, s := range e.Steps {
		var text strings.Builder
		for _, f := range s.Evidence {
			if !f.OK || f.Tried == "" || f.Saw == "" {
				t.Errorf("%s: tried %q, saw %q, ok %v", s.Name, f.Tried, f.Saw, f.OK)
			}
			text.WriteString(f.Tried + "\n" + f.Saw + "\n")
		}
		if !s.OK || s.Error != "" || len(s.Evidence) == 0 {
			t.Errorf("%s: ok %v, %d facts, error %q", s.Name, s.OK, len(s.Evidence), s.Error)
		}
		texts[s.Name] = text.String()
	}
	for _, w := range wanted {
		found := false
		for name, text := range texts {
			if !strings.HasPrefix(name, w.step) {
				continue
			}
			found = true
			for _, word := range w.words {
				if !strings.Contains(text, word) {
					t.Errorf("the evidence of %q does not speak of %q:\n%s", name, word, text)
				}
			}
		}
		if !found {
			t.Errorf("there is no step %q", w.step)
		}
	}
}

// nobody is a user without privileges, as most systems have it.
const nobody = 65534

// unprivileged skips where the test cannot become somebody else, and hands back a binary and a directory that nobody may use.
func unprivileged(t *testing.T) (binary, dir string, as *syscall.SysProcAttr) {
	t.Helper()
	binary = harness.Binary(t)
	if os.Getuid() != 0 {
		return binary, t.TempDir(), &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	}
	dir, err := os.MkdirTemp("", "casemate-nobody-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	b, err := os.ReadFile(binary)
	if err != nil {
		t.Fatal(err)
	}
	copied := filepath.Join(dir, "casemate")
	if err := os.WriteFile(copied, b, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{dir, copied} {
		if err := os.Chown(path, nobody, nobody); err != nil {
			t.Fatal(err)
		}
	}
	return copied, dir, &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}, Pdeathsig: syscall.SIGKILL}
}

// TestDemoWithoutPrivileges wants one clear sentence and a status that says no.
func TestDemoWithoutPrivileges(t *testing.T) {
	binary, dir, as := unprivileged(t)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, "demo")
	cmd.Dir, cmd.SysProcAttr, cmd.Env = dir, as, []string{"HOME=" + dir, "PATH=" + os.Getenv("PATH")}
	out, err := cmd.CombinedOutput()
	if err == nil {
		t.Error("the demonstration ended well")
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if len(lines) != 1 || !strings.Contains(lines[0], "root") || strings.Contains(lines[0], "goroutine") {
		t.Errorf("it said %q, want one sentence that names root", out)
	}
}

// TestServeWithoutPrivileges wants a server whose nodes and networks are off, that says so, and works otherwise.
func TestServeWithoutPrivileges(t *testing.T) {
	var o harness.Options
	if os.Getuid() == 0 {
		setpriv, err := exec.LookPath("setpriv")
		if err != nil {
			t.Skip("no setpriv: the server cannot be started as somebody else")
		}
		binary, dir, _ := unprivileged(t)
		t.Setenv("HOME", dir)
		o.Dir = filepath.Join(dir, "data")
		// The harness adds its own binary behind the prefix; env runs ours in its place.
		o.Prefix = []string{setpriv, "--reuid=65534", "--regid=65534", "--clear-groups", "--", "sh", "-c", `shift; exec "$0" "$@"`, binary}
	}
	s := harness.Start(t, o)
	if !strings.Contains(s.Log(), "off: virtual networks and nodes, because ") {
		t.Errorf("it does not say what is off: %s", s.Log())
	}
	a := s.Must(t, harness.Call{Method: http.MethodGet, URL: s.URL("management", "/healthz")})
	if string(a.Body) != "ok\n" {
		t.Errorf("healthz = %q", a.Body)
	}
	group := s.NewGroup(t)
	vault, _ := s.NewVault(t, group, nil)
	s.MustARM(t, http.MethodGet, vault, harness.VersionVault, nil)
	b, err := s.ARM(t.Context(), http.MethodPut, group+"/providers/Casemate.Network/attachedMachines/desk", harness.VersionMachine, map[string]any{"location": "local",
		"properties": map[string]any{"subnet": map[string]any{"id": group + "/providers/Microsoft.Network/virtualNetworks/none/subnets/none"}}})
	if err != nil || b.Status < 400 || b.Status == http.StatusInternalServerError || b.Code() == "" {
		t.Errorf("a machine without networks = %v %v", b, err)
	}
	s.Stop(t)
}
