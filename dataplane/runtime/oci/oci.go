// Package oci runs nodes as OCI containers, by crun or runc.
//
// For whom: whoever starts nodes through runtime.Runtime. Each node is one container in a user namespace of its own (its root is an unprivileged
// host uid that no other node has), with process, mount, IPC, UTS and cgroup namespaces, the network namespace that the caller names, a
// default-deny system call filter, six capabilities over its own namespace, limits, a read-only image and an encrypted scratch disk.
//
// Who may lie: image and processes of the node. The OCI runtime and the kernel are trusted. Start refuses until SelfTest has started a real
// node and that node, looking from inside, found every promise kept.
//
// What it does not do: it interprets nothing of an image's configuration (no user, label, volume, entry point), gives no device but the harmless
// ones, mounts no /sys, and leaves network rules to the network plane. On cgroup v2 alone there is no device filter: the user namespace cannot make
// device nodes and every mount is nodev.
package oci

import (
	"bytes"
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	goruntime "runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"casemate.dev/dataplane/runtime"
	"casemate.dev/dataplane/runtime/volume"
)

// Images gives root file systems by digest.
type Images interface {
	// Rootfs returns the directory of an unpacked image and a function that releases it. runtime.ErrNoImage when absent.
	Rootfs(ctx context.Context, digest string) (dir string, release func(), err error)
}

// Config of a Runtime.
type Config struct {
	Dir      string          // required: encrypted disks of this instance; created with mode 0700
	Images   Images          // required
	Agent    string          // default the running executable; static, as it must run in any image
	RunDir   string          // default /run/casemate/<hash of Dir>: mount points of living nodes
	Runtimes []string        // default crun, runc: names or paths, in order of preference
	Drivers  []volume.Driver // default fscrypt, then FUSE, below Dir
	Log      *slog.Logger    // default discards
	// HostIDs is the first host uid and gid handed to nodes; node n gets 65,536 from HostIDs + n·65,536. Default 1<<20,
	// above what useradd(8) and subuid(5) give out by default.
	HostIDs int
}

const idsPerNode = 1 << 16

// Runtime implements runtime.Runtime.
type Runtime struct {
	cfg      Config
	instance string
	groups   *cgroups

	tested chan struct{} // holds one token: the right to run the self-test

	mu      sync.Mutex // guards the fields below
	passed  bool
	command *command      // the OCI runtime that passed
	disks   volume.Driver // the volume driver that passed
	slots   map[int]bool  // uid ranges in use
	nodes   map[string]bool
}

// New prepares a Runtime; nothing is started. Call Cleanup once, then SelfTest. runtime.ErrUnavailable when this executable
// cannot be the agent.
func New(cfg Config) (*Runtime, error) {
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("resolving runtime directory: %w", err)
	}
	cfg.Dir = dir
	sum := sha256.Sum256([]byte(dir))
	r := &Runtime{instance: hex.EncodeToString(sum[:6]), tested: make(chan struct{}, 1), slots: map[int]bool{}, nodes: map[string]bool{}}
	if cfg.RunDir == "" {
		cfg.RunDir = filepath.Join("/run/casemate", r.instance)
	}
	if cfg.Agent == "" {
		if cfg.Agent, err = os.Executable(); err != nil {
			return nil, fmt.Errorf("finding own executable: %w", err)
		}
		if err := checkStatic(cfg.Agent); err != nil {
			return nil, fmt.Errorf("%w: %w", runtime.ErrUnavailable, err)
		}
	}
	if cfg.Runtimes == nil {
		cfg.Runtimes = []string{"crun", "runc"}
	}
	if cfg.Drivers == nil {
		cfg.Drivers = []volume.Driver{volume.Fscrypt{Dir: filepath.Join(dir, "fscrypt")}, volume.FUSE{Dir: filepath.Join(dir, "fuse")}}
	}
	if cfg.HostIDs == 0 {
		cfg.HostIDs = 1 << 20
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	r.cfg = cfg
	return r, nil
}

// SelfTest finds a volume driver and an OCI runtime that keep every promise on this machine. It runs once; later calls return nil
// after a success and try again after a failure.
func (r *Runtime) SelfTest(ctx context.Context) error {
	select {
	case r.tested <- struct{}{}:
		defer func() { <-r.tested }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if r.ready() {
		return nil
	}
	if err := r.selfTest(ctx); err != nil {
		return fmt.Errorf("%w: %w", runtime.ErrUnavailable, err)
	}
	return nil
}

func (r *Runtime) ready() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.passed
}

func (r *Runtime) selfTest(ctx context.Context) error {
	if os.Getuid() != 0 {
		return errors.New("namespaces and mounts need root")
	}
	if err := checkStatic(r.cfg.Agent); err != nil {
		return err
	}
	if err := r.makeDirs(); err != nil {
		return err
	}
	groups, err := findCgroups("casemate-" + r.instance)
	if err != nil {
		return err
	}
	r.groups = groups
	disks, measured, err := volume.Choose(ctx, r.cfg.Drivers...)
	for _, m := range measured {
		r.cfg.Log.Info("volume driver tested", "driver", m.Driver, "setup", m.Setup, "writeMBps", int(m.WriteMB), "error", m.Err)
	}
	if err != nil {
		return err
	}
	var reasons []error
	for _, name := range r.cfg.Runtimes {
		command, err := findCommand(name, filepath.Join(r.cfg.RunDir, "state"), groups.hybrid)
		if err == nil {
			err = r.tryCommand(ctx, command, disks)
		}
		if err != nil {
			reasons = append(reasons, fmt.Errorf("%s: %w", name, err))
			r.cfg.Log.Warn("OCI runtime refused", "runtime", name, "error", err)
			continue
		}
		r.mu.Lock()
		r.passed, r.command, r.disks = true, command, disks
		r.mu.Unlock()
		r.cfg.Log.Info("node self-test passed", "runtime", name, "disks", disks.Name())
		return nil
	}
	return fmt.Errorf("no OCI runtime passes the self-test: %w", errors.Join(reasons...))
}

// checkStatic refuses an agent that would need an interpreter, which an image need not have or could replace.
func checkStatic(path string) error {
	f, err := elf.Open(path)
	if err != nil {
		return fmt.Errorf("reading agent binary: %w", err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return fmt.Errorf("agent binary %s is not static: build with CGO_ENABLED=0", path)
		}
	}
	return nil
}

// makeDirs creates the places of this instance. RunDir can be traversed by all, and listed by none but root: the OCI runtime walks it as the node's root.
func (r *Runtime) makeDirs() error {
	for _, dir := range []string{r.cfg.Dir, filepath.Join(r.cfg.Dir, "fscrypt"), filepath.Join(r.cfg.Dir, "fuse")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("creating runtime directory: %w", err)
		}
	}
	if err := os.MkdirAll(r.cfg.RunDir, 0o711); err != nil {
		return fmt.Errorf("creating run directory: %w", err)
	}
	if err := os.Chmod(r.cfg.RunDir, 0o711); err != nil {
		return fmt.Errorf("opening run directory: %w", err)
	}
	return nil
}

// tryCommand starts the probe as a node like any other and judges what it says.
func (r *Runtime) tryCommand(ctx context.Context, command *command, disks volume.Driver) error {
	root := filepath.Join(r.cfg.RunDir, "probe-root")
	if err := os.MkdirAll(root, 0o755); err != nil {
		return fmt.Errorf("creating probe root: %w", err)
	}
	defer os.RemoveAll(root)
	opened, err := os.OpenRoot(root)
	if err != nil {
		return fmt.Errorf("opening probe root: %w", err)
	}
	defer opened.Close()
	if err := runtime.PrepareRoot(opened); err != nil {
		return err
	}
	netns, closeNS, err := emptyNetNS()
	if err != nil {
		return err
	}
	defer closeNS()
	spec, err := runtime.NodeSpec{
		ID: "self-test", Image: "sha256:" + hex.EncodeToString(make([]byte, 32)), NetNSPath: netns, ScratchBytes: 64 << 20, Agent: noAgent,
	}.WithDefaults()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	n, err := r.start(ctx, start{spec: spec, args: runtime.ProbeArgs(), command: command, disks: disks, rootfs: root, release: func() {}})
	if err != nil {
		return err
	}
	exit, err := n.Wait(ctx)
	if err := errors.Join(err, n.Remove(context.WithoutCancel(ctx))); err != nil {
		return err
	}
	var probe runtime.Probe
	if err := json.NewDecoder(bytes.NewReader([]byte(exit.Output))).Decode(&probe); err != nil {
		return fmt.Errorf("probe said %.200q: %w", exit.Output, err)
	}
	if err := probe.Verify(runtime.Want{HostUID: n.evidence.HostUID, CapBnd: capabilityMask(), Hostname: "self-test"}); err != nil {
		return fmt.Errorf("promises broken: %w", err)
	}
	return nil
}

// emptyNetNS makes a network namespace with nothing in it, alive until closed. Its thread is never reused.
func emptyNetNS() (path string, closeNS func(), err error) {
	type result struct {
		path string
		err  error
	}
	made, done := make(chan result), make(chan struct{})
	go func() {
		goruntime.LockOSThread() // not unlocked: the thread dies with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		made <- result{fmt.Sprintf("/proc/%d/task/%d/ns/net", os.Getpid(), unix.Gettid()), err}
		<-done
	}()
	r := <-made
	if r.err != nil {
		close(done)
		return "", nil, fmt.Errorf("making a network namespace: %w", r.err)
	}
	return r.path, func() { close(done) }, nil
}

// Start runs a node.
func (r *Runtime) Start(ctx context.Context, spec runtime.NodeSpec) (runtime.Node, error) {
	spec, err := spec.WithDefaults()
	if err != nil {
		return nil, err
	}
	if err := r.SelfTest(ctx); err != nil {
		return nil, err
	}
	rootfs, release, err := r.cfg.Images.Rootfs(ctx, spec.Image)
	if err != nil {
		return nil, fmt.Errorf("finding image %s: %w", spec.Image, err)
	}
	r.mu.Lock()
	s := start{spec: spec, args: runtime.AgentArgs(), command: r.command, disks: r.disks, rootfs: rootfs, release: release}
	r.mu.Unlock()
	n, err := r.start(ctx, s)
	if err != nil {
		return nil, fmt.Errorf("starting node %s: %w", spec.ID, err)
	}
	return n, nil
}

// reserve takes the id and a uid range that no living node has.
func (r *Runtime) reserve(id string) (slot int, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.nodes[id] {
		return 0, fmt.Errorf("node %s exists", id)
	}
	for r.slots[slot] {
		slot++
	}
	if last := int64(r.cfg.HostIDs) + int64(slot+1)*idsPerNode; last > 1<<31 {
		return 0, errors.New("no uid range is free")
	}
	r.slots[slot], r.nodes[id] = true, true
	return slot, nil
}

func (r *Runtime) free(id string, slot int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.slots, slot)
	delete(r.nodes, id)
}

// Cleanup ends and removes what a killed server of this instance left. It must not run while nodes of this process live.
func (r *Runtime) Cleanup(ctx context.Context) error {
	r.mu.Lock()
	living := len(r.nodes)
	r.mu.Unlock()
	if living > 0 {
		return fmt.Errorf("%d nodes live: cleanup is for the leftovers of an earlier process", living)
	}
	var errs []error
	if groups, err := findCgroups("casemate-" + r.instance); err == nil {
		errs = append(errs, groups.killAll(ctx))
	}
	if err := volume.UnmountBelow(r.cfg.RunDir); err != nil {
		errs = append(errs, err)
	} else if err := os.RemoveAll(r.cfg.RunDir); err != nil { // only when nothing is mounted there any more
		errs = append(errs, fmt.Errorf("removing run directory: %w", err))
	}
	for _, dir := range []string{"fscrypt", "fuse"} {
		errs = append(errs, volume.Cleanup(filepath.Join(r.cfg.Dir, dir)))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("cleaning up nodes: %w", err)
	}
	return nil
}

// copyTail keeps the last bytes that r yields.
func copyTail(r io.Reader, keep int) string {
	var tail []byte
	buf := make([]byte, 4096)
	for {
		n, err := r.Read(buf)
		tail = append(tail, buf[:n]...)
		if len(tail) > keep {
			tail = append(tail[:0:0], tail[len(tail)-keep:]...)
		}
		if err != nil {
			return string(tail)
		}
	}
}
