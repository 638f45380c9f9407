package runtime_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"golang.org/x/sys/unix"

	"casemate.dev/dataplane/runtime"
	"casemate.dev/dataplane/runtime/agent"
	"casemate.dev/dataplane/runtime/image"
	"casemate.dev/dataplane/runtime/oci"
	"casemate.dev/dataplane/runtime/volume"
)

// These tests join all parts: a real image, a real node, the real agent. The test binary is the agent, as casemate is.
func TestMain(m *testing.M) {
	if os.Args[0] == runtime.AgentPath {
		os.Exit(agent.Main(context.Background(), os.Args[2:], os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

// shellImage is an image of this machine's shell and a few programs with their libraries.
func shellImage(t testing.TB) v1.Image {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	added := map[string]bool{}
	add := func(name, source string) {
		if added[name] {
			return
		}
		added[name] = true
		data, err := os.ReadFile(source)
		if err != nil {
			t.Skipf("no shell to make an image of: %v", err)
		}
		if err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(data))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
	}
	for _, program := range []string{"sh", "cat", "id", "ls", "sleep"} {
		path, err := exec.LookPath(program)
		if err != nil {
			t.Skipf("no %s to make an image of", program)
		}
		add("bin/"+program, path)
		out, err := exec.Command("ldd", path).Output()
		if err != nil {
			t.Skipf("cannot list libraries of %s: %v", program, err)
		}
		for _, field := range strings.Fields(string(out)) {
			if strings.HasPrefix(field, "/") {
				add(strings.TrimPrefix(field, "/"), field)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(buf.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// network is a namespace with loopback up and storage listening in it, as a private endpoint would.
type network struct {
	path   string
	server *httptest.Server
	mu     sync.Mutex // guards the fields below
	blobs  map[string]string
	logged chan string // each block of the user log
}

func newNetwork(t testing.TB) *network {
	t.Helper()
	n := &network{blobs: map[string]string{}, logged: make(chan string, 1000)}
	type result struct {
		l    net.Listener
		path string
		err  error
	}
	made, done := make(chan result), make(chan struct{})
	go func() {
		goruntime.LockOSThread() // never unlocked: the thread ends with its namespace
		l, err := listenInNewNamespace()
		made <- result{l, fmt.Sprintf("/proc/%d/task/%d/ns/net", os.Getpid(), unix.Gettid()), err}
		<-done
	}()
	r := <-made
	t.Cleanup(func() { close(done) })
	if r.err != nil {
		t.Skipf("cannot make a network namespace: %v", r.err)
	}
	n.path = r.path
	n.server = httptest.NewUnstartedServer(n)
	n.server.Listener.Close()
	n.server.Listener = r.l
	n.server.StartTLS()
	t.Cleanup(n.server.Close)
	return n
}

func listenInNewNamespace() (net.Listener, error) {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return nil, err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return nil, err
	}
	req.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req); err != nil {
		return nil, err
	}
	return net.Listen("tcp", "127.0.0.1:443")
}

func (n *network) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case r.URL.Path == "/identity":
		fmt.Fprintf(w, `{"access_token":"t","expires_on":"%d"}`, time.Now().Add(time.Hour).Unix())
	case r.Header.Get("Authorization") != "Bearer t":
		w.WriteHeader(http.StatusUnauthorized)
	case r.Method == http.MethodGet:
		io.WriteString(w, n.blobs[r.URL.Path])
	case r.URL.Query().Get("comp") == "block":
		if strings.HasPrefix(r.URL.Path, "/user") {
			n.logged <- string(body)
		}
		w.WriteHeader(http.StatusCreated)
	default:
		n.blobs[r.URL.Path] = string(body)
		w.WriteHeader(http.StatusCreated)
	}
}

type platform struct {
	images  *image.Store
	runtime *oci.Runtime
	image   string
	network *network
}

func newPlatform(t testing.TB) *platform {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("starting nodes needs root")
	}
	store, err := image.Open(t.Context(), image.Config{Dir: t.TempDir(), Bytes: 8 << 30})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	img, err := store.Add(t.Context(), shellImage(t))
	if err != nil {
		t.Fatal(err)
	}
	r, err := oci.New(oci.Config{Dir: t.TempDir(), Images: store, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Cleanup(context.Background()); err != nil {
			t.Error(err)
		}
	})
	if err := r.SelfTest(t.Context()); err != nil {
		t.Skipf("%v (a race-enabled test binary is not static)", err)
	}
	return &platform{store, r, img.Digest, newNetwork(t)}
}

// start runs a command in a node and returns its events.
func (p *platform) start(t testing.TB, id, command string) (runtime.Node, <-chan agent.Event, *agent.Controller) {
	t.Helper()
	url := "https://127.0.0.1"
	events := make(chan agent.Event, 10)
	c := agent.NewController(agent.Spec{
		Kind: agent.KindJob, RunID: id, Command: command, Logs: agent.Logs{User: url + "/user/" + id},
		Env:     map[string]string{"IDENTITY_ENDPOINT": url + "/identity", "IDENTITY_HEADER": "canary-identity-header-" + id, "MARK": "canary-in-environment"},
		Code:    &agent.Tree{Files: []agent.File{{Path: "code.txt", URL: url + "/code"}}},
		Outputs: []agent.Output{{Name: "o", URLPrefix: url + "/out/" + id}},
	}, func(_ context.Context, e agent.Event) error { events <- e; return nil })
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.network.server.Certificate().Raw})
	n, err := p.runtime.Start(t.Context(), runtime.NodeSpec{ID: id, Image: p.image, NetNSPath: p.network.path, ScratchBytes: 64 << 20, CA: ca, Agent: c})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Remove(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return n, events, c
}

func untilFinal(t testing.TB, events <-chan agent.Event) agent.Event {
	t.Helper()
	timeout := time.After(30 * time.Second)
	for {
		select {
		case e := <-events:
			if e.State.Final() {
				return e
			}
		case <-timeout:
			t.Fatal("the node reports no end")
		}
	}
}

func TestJobRunsInANode(t *testing.T) {
	p := newPlatform(t)
	p.network.blobs["/code"] = "the code\n"
	n, events, _ := p.start(t, "job-1", `cat code.txt; id -u; echo out > ${{outputs.o}}/f; echo $$-orphan > /dev/null; (sleep 1000 &)
		! cat /run/casemate/agent.sock 2>/dev/null; ! cat /proc/1/environ 2>/dev/null; ! ls /proc/1/fd 2>/dev/null; ! (echo x > /work/score) 2>/dev/null; ! (echo x > /etc/x) 2>/dev/null; cat /run/casemate/ca.pem > /dev/null && echo ca`)
	final := untilFinal(t, events)
	if final.State != agent.StateCompleted || final.Error != "" {
		t.Errorf("final event %+v", final)
	}
	exit, err := n.Wait(t.Context())
	if err != nil || exit.Output != "" || exit.OutOfMemory {
		t.Errorf("exit %+v, %v", exit, err)
	}
	var log strings.Builder
	for len(p.network.logged) > 0 {
		log.WriteString(<-p.network.logged)
	}
	if want := "the code\n1000\nca\n"; log.String() != want {
		t.Errorf("log %q, want %q", log.String(), want)
	}
	if got := p.network.blobs["/out/job-1/f"]; got != "out\n" {
		t.Errorf("output %q", got)
	}
}

// A larger image by hand: CASEMATE_TEST_IMAGE names a tar file of a root file system with python3 and, better, sklearn.
func TestServeInANode(t *testing.T) {
	rootfs := os.Getenv("CASEMATE_TEST_IMAGE")
	if rootfs == "" {
		t.Skip("CASEMATE_TEST_IMAGE names no root file system with python3")
	}
	p := newPlatform(t)
	layer, err := tarball.LayerFromFile(rootfs)
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		t.Fatal(err)
	}
	started := time.Now()
	unpacked, err := p.images.Add(t.Context(), img)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("unpacked %d MB in %v", unpacked.Bytes>>20, time.Since(started))
	url := "https://127.0.0.1"
	p.network.blobs["/code"] = `
import time
started = time.time()
def init():
    import sklearn.linear_model
    print("imported in", time.time() - started)
def run(d):
    return d
`
	for _, id := range []string{"cold", "warm"} {
		events := make(chan agent.Event, 10)
		c := agent.NewController(agent.Spec{
			Kind: agent.KindServe, RunID: id, Logs: agent.Logs{User: url + "/user/" + id}, Env: map[string]string{"IDENTITY_ENDPOINT": url + "/identity"},
			Code: &agent.Tree{Files: []agent.File{{Path: "score.py", URL: url + "/code"}}}, Serve: &agent.Serve{},
		}, func(_ context.Context, e agent.Event) error { events <- e; return nil })
		ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.network.server.Certificate().Raw})
		started := time.Now()
		n, err := p.runtime.Start(t.Context(), runtime.NodeSpec{ID: id, Image: unpacked.Digest, NetNSPath: p.network.path, CA: ca, Agent: c})
		if err != nil {
			t.Fatal(err)
		}
		for e := range events {
			t.Logf("%s after %v: %+v", e.State, time.Since(started), e)
			if e.State == agent.StateReady {
				c.Cancel()
			}
			if e.State.Final() {
				break
			}
		}
		for len(p.network.logged) > 0 {
			t.Log(<-p.network.logged)
		}
		if last := c.Last(); last.State != agent.StateCanceled {
			t.Errorf("final event %+v", last)
		}
		if err := n.Remove(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

// What a node is told stays off the host's disk: bundle, scratch image, run directory (THREATS R5, row E9).
func TestSecretsReachNoFile(t *testing.T) {
	p := newPlatform(t)
	n, events, c := p.start(t, "job-2", `echo "$MARK $IDENTITY_HEADER" > /tmp/secret; cat /tmp/secret > $AZURE_ML_OUTPUT_o/secret; echo up; sleep 1000`)
	for {
		line := ""
		select {
		case line = <-p.network.logged:
		case <-time.After(30 * time.Second):
			t.Fatal("no log")
		}
		if strings.Contains(line, "up") {
			break
		}
	}
	bundles, err := filepath.Glob("/run/casemate/*/node-job-2/*")
	if err != nil || len(bundles) == 0 {
		t.Fatalf("no bundle: %v", err)
	}
	places := []string{n.Evidence().ScratchImage}
	for _, b := range bundles {
		if info, err := os.Lstat(b); err == nil && info.Mode().IsRegular() && filepath.Base(b) != "agent" { // the agent is this test, canaries and all
			places = append(places, b)
		}
	}
	for _, place := range places {
		for _, canary := range []string{"canary-in-environment", "canary-identity-header"} {
			if found, err := volume.Contains(place, []byte(canary)); err != nil || found {
				t.Errorf("%s holds %s: %v", place, canary, err)
			}
		}
	}
	c.Cancel()
	if final := untilFinal(t, events); final.State != agent.StateCanceled {
		t.Errorf("final event %+v", final)
	}
}

// BenchmarkNodeStart measures from Start to the first line of user code standing in storage, the image being unpacked; podman runs the same root file system.
func BenchmarkNodeStart(b *testing.B) {
	b.Run("casemate", func(b *testing.B) {
		p := newPlatform(b)
		i := 0
		for b.Loop() {
			i++
			n, _, _ := p.start(b, fmt.Sprintf("bench-%d", i), "echo up")
			<-p.network.logged
			b.StopTimer()
			if err := n.Remove(b.Context()); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
		}
	})
	b.Run("podman", func(b *testing.B) {
		podman, err := exec.LookPath("podman")
		if err != nil {
			b.Skip("podman is not installed")
		}
		root := b.TempDir()
		if out, err := untar(b, root); err != nil {
			b.Skipf("unpacking: %v %s", err, out)
		}
		run := podmanHere(podman, root)
		if run == nil {
			b.Skip("podman runs no container here with any of its runtimes")
		}
		for b.Loop() {
			if out, err := run(); err != nil {
				b.Fatalf("%v: %.300s", err, out)
			}
		}
	})
}

// podmanHere finds the way of calling podman that works on this machine: its default first, then with what a machine without CAP_SYS_RESOURCE or with a
// hybrid cgroup tree needs.
func podmanHere(podman, root string) func() ([]byte, error) {
	limits := []string{"--ulimit=nofile=1024:1024", "--ulimit=nproc=1000:1000"}
	for _, options := range [][]string{nil, limits, append([]string{"--runtime=runc"}, limits...)} {
		var global []string
		if len(options) > 0 && strings.HasPrefix(options[0], "--runtime") {
			global, options = options[:1], options[1:]
		}
		args := slices.Concat(global, []string{"run", "--rm", "--network=none"}, options, []string{"--rootfs", root, "/bin/sh", "-c", "echo up"})
		run := func() ([]byte, error) { return exec.Command(podman, args...).CombinedOutput() }
		if out, err := run(); err == nil && strings.Contains(string(out), "up") {
			return run
		}
	}
	return nil
}

func untar(b *testing.B, root string) ([]byte, error) {
	layers, err := shellImage(b).Layers()
	if err != nil {
		return nil, err
	}
	stream, err := layers[0].Uncompressed()
	if err != nil {
		return nil, err
	}
	defer stream.Close()
	cmd := exec.Command("tar", "-x", "-C", root)
	cmd.Stdin = stream
	return cmd.CombinedOutput()
}
