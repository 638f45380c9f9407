package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"casemate.dev/dataplane/runtime"
	"casemate.dev/dataplane/runtime/volume"
)

// The test binary is also the agent: static, it runs in an empty root.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[0] == runtime.AgentPath {
		os.Exit(insideNode(os.Args[1:]))
	}
	os.Exit(m.Run())
}

const testImage = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"

type oneImage string

func (d oneImage) Rootfs(_ context.Context, digest string) (string, func(), error) {
	if digest != testImage {
		return "", nil, runtime.ErrNoImage
	}
	return string(d), func() {}, nil
}

var staticAgent = sync.OnceValues(func() (string, error) {
	self, err := os.Executable()
	if err != nil || checkStatic(self) == nil {
		return self, err
	}
	// Under the race detector the test binary is dynamic: its static twin is the agent.
	path := filepath.Join(os.TempDir(), "casemate-oci-test-agent")
	cmd := exec.Command("go", "test", "-c", "-o", path, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building a static agent: %w: %s", err, out)
	}
	return path, nil
})

func agentBinary(t testing.TB) string {
	t.Helper()
	path, err := staticAgent()
	if err != nil {
		t.Skip(err)
	}
	return path
}

func newRuntime(t testing.TB, runtimes ...string) *Runtime {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("starting nodes needs root")
	}
	root := filepath.Join(t.TempDir(), "root")
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	opened, err := os.OpenRoot(root)
	if err != nil {
		t.Fatal(err)
	}
	defer opened.Close()
	if err := runtime.PrepareRoot(opened); err != nil {
		t.Fatal(err)
	}
	r, err := New(Config{Dir: t.TempDir(), Images: oneImage(root), Agent: agentBinary(t), Runtimes: runtimes, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Cleanup(context.Background()); err != nil {
			t.Error(err)
		}
	})
	if err := r.SelfTest(t.Context()); err != nil {
		if strings.Contains(err.Error(), "not installed") {
			t.Skip(err)
		}
		t.Fatal(err)
	}
	return r
}

func TestSelfTestPassesWithEachRuntime(t *testing.T) {
	for _, name := range []string{"crun", "runc"} {
		t.Run(name, func(t *testing.T) { newRuntime(t, name) })
	}
}

func TestSelfTestRefusesWithoutRuntime(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("starting nodes needs root")
	}
	r, err := New(Config{Dir: t.TempDir(), Images: oneImage(""), Agent: agentBinary(t), Runtimes: []string{"absent", "/bin/true"}})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Cleanup(context.Background())
	_, err = r.Start(t.Context(), runtime.NodeSpec{ID: "a", Image: testImage, NetNSPath: "/proc/self/ns/net", Agent: noAgent})
	if !errors.Is(err, runtime.ErrUnavailable) {
		t.Errorf("Start without a working runtime: %v", err)
	}
}

// report is what the agent of the tests says of its node.
type report struct {
	Probe    runtime.Probe
	Attempts map[string]string
}

// insideNode is process 1 of the test nodes.
func insideNode(args []string) int {
	if len(args) == 2 && args[1] == "--probe" {
		_ = json.NewEncoder(os.Stdout).Encode(runtime.TakeProbe())
		return 0
	}
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", runtime.AgentSocket)
	}}}
	resp, err := client.Get("http://node/mode")
	if err != nil {
		panic(err)
	}
	switch resp.Header.Get("Mode") {
	case "wait":
		select {}
	case "memory":
		hold := make([][]byte, 0, 1000)
		for range 1000 {
			b := make([]byte, 1<<20)
			for i := 0; i < len(b); i += 4096 {
				b[i] = 1
			}
			hold = append(hold, b)
		}
		_ = hold
	case "canary":
		if err := os.WriteFile(runtime.WorkDir+"/canary", []byte(strings.Repeat(canary, 1000)), 0o644); err != nil {
			panic(err)
		}
		unix.Sync()
	}
	body, _ := json.Marshal(report{Probe: runtime.TakeProbe(), Attempts: attempts()})
	resp, err = client.Post("http://node/report", "application/json", strings.NewReader(string(body)))
	if err != nil {
		panic(err)
	}
	if resp.Header.Get("Then") == "wait" {
		select {}
	}
	return 0
}

const canary = "patient-0815-canary"

// attempts are ways out; each must be answered with an error.
func attempts() map[string]string {
	try := map[string]func() error{
		"unshare user": func() error { return unix.Unshare(unix.CLONE_NEWUSER) },
		"mount proc":   func() error { return unix.Mount("proc", "/tmp", "proc", 0, "") },
		"open handle":  func() error { _, err := unix.OpenByHandleAt(unix.AT_FDCWD, unix.NewFileHandle(1, nil), 0); return err },
		"bpf":          func() error { _, _, e := unix.Syscall(unix.SYS_BPF, 0, 0, 0); return e },
		"keyctl":       func() error { _, err := unix.KeyctlGetKeyringID(unix.KEY_SPEC_SESSION_KEYRING, true); return err },
		"io_uring":     func() error { _, _, e := unix.Syscall(unix.SYS_IO_URING_SETUP, 1, 0, 0); return e },
		"raw socket":   func() error { _, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0); return err },
		"vsock":        func() error { _, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM, 0); return err },
		"mknod disk":   func() error { return unix.Mknod("/work/disk", unix.S_IFBLK|0o600, int(unix.Mkdev(254, 0))) },
		"reboot":       func() error { return unix.Reboot(unix.LINUX_REBOOT_CMD_CAD_OFF) },
		"write sysctl": func() error { return os.WriteFile("/proc/sys/kernel/core_pattern", []byte("|/x"), 0) },
		"read kcore":   func() error { b, err := os.ReadFile("/proc/kallsyms"); return orEmpty(b, err) },
		"write agent":  func() error { return os.WriteFile(runtime.AgentPath, []byte("x"), 0) },
		"write ca":     func() error { return os.WriteFile(runtime.CAFile, []byte("x"), 0) },
		"read sys":     func() error { _, err := os.ReadFile("/sys/kernel/notes"); return err },
		"join host ns": func() error {
			f, err := os.Open("/proc/1/ns/net")
			return errors.Join(err, unix.Setns(int(f.Fd()), unix.CLONE_NEWNET))
		},
		"leaked cwd": func() error {
			for fd := 3; fd < 64; fd++ {
				if l, err := os.Readlink("/proc/self/fd/" + itoa(fd)); err == nil && strings.HasPrefix(l, "/") && !strings.HasPrefix(l, "/proc") {
					return nil
				}
			}
			return errors.New("none")
		},
		"host hostname": func() error { return unix.Sethostname([]byte("x")) },
	}
	results := map[string]string{}
	for name, f := range try {
		if err := f(); err != nil && err != unix.Errno(0) {
			results[name] = err.Error()
		} else {
			results[name] = ""
		}
	}
	return results
}

func itoa(n int) string { b, _ := json.Marshal(n); return string(b) }

// orEmpty treats a file that reads as nothing like one that cannot be read.
func orEmpty(b []byte, err error) error {
	if err == nil && len(b) == 0 {
		return errors.New("empty")
	}
	return err
}

// testAgent answers the test nodes.
type testAgent struct {
	mode, then string
	reports    chan report
}

func newAgent(mode, then string) testAgent { return testAgent{mode, then, make(chan report, 1)} }

func (a testAgent) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Mode", a.mode)
	w.Header().Set("Then", a.then)
	if r.URL.Path == "/report" {
		var got report
		if err := json.NewDecoder(r.Body).Decode(&got); err == nil {
			a.reports <- got
		}
	}
}

func startNode(t testing.TB, r *Runtime, id string, agent http.Handler, limits runtime.Limits) runtime.Node {
	t.Helper()
	netns, closeNS, err := emptyNetNS()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(closeNS)
	n, err := r.Start(t.Context(), runtime.NodeSpec{
		ID: id, Image: testImage, NetNSPath: netns, ScratchBytes: 64 << 20, CA: []byte("pem"), Agent: agent, Limits: limits,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Remove(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return n
}

func receive[T any](t testing.TB, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(20 * time.Second):
		t.Fatal("the node says nothing")
		panic("unreachable")
	}
}

func TestNodeKeepsItsPromises(t *testing.T) {
	for _, name := range []string{"crun", "runc"} {
		t.Run(name, func(t *testing.T) {
			r := newRuntime(t, name)
			a := newAgent("", "")
			n := startNode(t, r, "n1", a, runtime.Limits{})
			got := receive(t, a.reports)
			for attempt, result := range got.Attempts {
				if result == "" {
					t.Errorf("%s succeeded", attempt)
				}
			}
			want := runtime.Want{HostUID: n.Evidence().HostUID, CapBnd: capabilityMask(), Hostname: "n1"}
			if err := got.Probe.Verify(want); err != nil {
				t.Error(err)
			}
			if _, err := n.Wait(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := n.Remove(t.Context()); err != nil {
				t.Fatal(err)
			}
			for _, path := range []string{n.Evidence().ScratchImage, n.(*node).bundle.dir} {
				if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("%s is left: %v", path, err)
				}
			}
			for _, dir := range r.groups.dirs() {
				if _, err := os.Stat(filepath.Join(dir, "n1")); err == nil {
					t.Errorf("cgroup is left in %s", dir)
				}
			}
		})
	}
}

func TestNodesDoNotShare(t *testing.T) {
	r := newRuntime(t)
	a, b := newAgent("", "wait"), newAgent("", "wait")
	one, two := startNode(t, r, "one", a, runtime.Limits{}), startNode(t, r, "two", b, runtime.Limits{})
	pa, pb := receive(t, a.reports).Probe, receive(t, b.reports).Probe
	if one.Evidence().HostUID == two.Evidence().HostUID || one.Evidence().ScratchImage == two.Evidence().ScratchImage {
		t.Errorf("nodes share uid or disk: %+v %+v", one.Evidence(), two.Evidence())
	}
	if pa.Hostname == pb.Hostname || pa.Processes != 1 || pb.Processes != 1 {
		t.Errorf("nodes see each other: %+v %+v", pa, pb)
	}
	if _, err := r.Start(t.Context(), runtime.NodeSpec{ID: "one", Image: testImage, NetNSPath: "/proc/self/ns/net", Agent: a}); err == nil {
		t.Error("a second node of the same id was started")
	}
}

func TestScratchIsUnreadableOutside(t *testing.T) {
	r := newRuntime(t)
	a := newAgent("canary", "wait")
	n := startNode(t, r, "n1", a, runtime.Limits{})
	receive(t, a.reports)
	inside, err := volume.Contains(filepath.Join(n.(*node).disk.Path(), "work"), []byte(canary))
	if err != nil || !inside {
		t.Fatalf("the canary is not even inside: %v", err)
	}
	if found, err := volume.Contains(n.Evidence().ScratchImage, []byte(canary)); err != nil || found {
		t.Errorf("canary legible on the raw disk: %v, %v", found, err)
	}
	if found, err := volume.Contains(r.cfg.Dir, []byte(canary)); err != nil || found && r.disks.Name() == "fuse" {
		t.Errorf("canary legible below the data directory: %v, %v", found, err)
	}
}

// Without file system encryption in the kernel, the sealed FUSE file system is the disk.
func TestNodeOnFUSE(t *testing.T) {
	r := newRuntime(t)
	dir := t.TempDir()
	other, err := New(Config{Dir: t.TempDir(), Images: r.cfg.Images, Agent: r.cfg.Agent, Drivers: []volume.Driver{volume.FUSE{Dir: dir}}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := other.Cleanup(context.Background()); err != nil {
			t.Error(err)
		}
	}()
	a := newAgent("canary", "wait")
	n := startNode(t, other, "n1", a, runtime.Limits{})
	if got := receive(t, a.reports).Probe; !got.WorkWrites || n.Evidence().ScratchDriver != "fuse" {
		t.Errorf("probe %+v, evidence %+v", got, n.Evidence())
	}
	if found, err := volume.Contains(n.Evidence().ScratchImage, []byte(canary)); err != nil || found {
		t.Errorf("canary legible on the raw disk: %v, %v", found, err)
	}
	if err := n.Remove(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestMemoryLimitIsReported(t *testing.T) {
	r := newRuntime(t)
	n := startNode(t, r, "n1", newAgent("memory", ""), runtime.Limits{MemoryBytes: 64 << 20})
	exit, err := n.Wait(t.Context())
	if err != nil || !exit.OutOfMemory {
		t.Errorf("exit %+v, %v", exit, err)
	}
}

func TestKillAndRemoveAreIdempotent(t *testing.T) {
	r := newRuntime(t)
	n := startNode(t, r, "n1", newAgent("wait", ""), runtime.Limits{})
	for range 2 {
		if err := n.Kill(); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if err := n.Remove(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	startNode(t, r, "n1", newAgent("wait", ""), runtime.Limits{}) // the id is free again
}

func TestStartRefusals(t *testing.T) {
	r := newRuntime(t)
	ok := runtime.NodeSpec{ID: "n1", Image: testImage, NetNSPath: "/proc/self/ns/net", Agent: noAgent}
	for name, change := range map[string]func(*runtime.NodeSpec){
		"id":        func(s *runtime.NodeSpec) { s.ID = "../up" },
		"image":     func(s *runtime.NodeSpec) { s.Image = "latest" },
		"no image":  func(s *runtime.NodeSpec) { s.Image = "sha256:" + strings.Repeat("b", 64) },
		"no net":    func(s *runtime.NodeSpec) { s.NetNSPath = "" },
		"wrong net": func(s *runtime.NodeSpec) { s.NetNSPath = "/run/netns/absent" },
		"hostname":  func(s *runtime.NodeSpec) { s.Hostname = "a b" },
		"agent":     func(s *runtime.NodeSpec) { s.Agent = nil },
		"memory":    func(s *runtime.NodeSpec) { s.Limits.MemoryBytes = 1 },
	} {
		spec := ok
		change(&spec)
		if _, err := r.Start(t.Context(), spec); err == nil {
			t.Errorf("%s: started", name)
		} else {
			t.Logf("%s: %v", name, err)
		}
	}
	if len(r.nodes) != 0 || len(r.slots) != 0 {
		t.Errorf("refused nodes hold ids %v and uid ranges %v", r.nodes, r.slots)
	}
	if entries, _ := filepath.Glob(filepath.Join(r.cfg.RunDir, "node-*")); len(entries) != 0 {
		t.Errorf("refused nodes left %v", entries)
	}
}

// A second Runtime over the same directory is the server after kill -9.
func TestCleanupAfterKill(t *testing.T) {
	r := newRuntime(t)
	a := newAgent("", "wait")
	n := startNode(t, r, "n1", a, runtime.Limits{})
	receive(t, a.reports)
	after, err := New(r.cfg)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := after.Cleanup(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := n.Wait(t.Context()); err != nil {
		t.Error(err)
	}
	for _, path := range []string{n.Evidence().ScratchImage, r.cfg.RunDir} {
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left: %v", path, err)
		}
	}
	if err := after.SelfTest(t.Context()); err != nil {
		t.Error(err)
	}
}

func BenchmarkNodeStart(b *testing.B) {
	for _, name := range []string{"crun", "runc"} {
		b.Run(name, func(b *testing.B) {
			r := newRuntime(b, name)
			netns, closeNS, err := emptyNetNS()
			if err != nil {
				b.Fatal(err)
			}
			defer closeNS()
			for b.Loop() {
				a := newAgent("", "")
				n, err := r.Start(b.Context(), runtime.NodeSpec{ID: "n1", Image: testImage, NetNSPath: netns, Agent: a})
				if err != nil {
					b.Fatal(err)
				}
				receive(b, a.reports)
				b.StopTimer()
				if err := n.Remove(b.Context()); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	}
}
