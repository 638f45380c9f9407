package oci

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"casemate.dev/dataplane/runtime"
	"casemate.dev/dataplane/runtime/volume"
)

var noAgent = http.NotFoundHandler()

// start is what one node is made of.
type start struct {
	spec    runtime.NodeSpec
	args    []string
	command *command
	disks   volume.Driver
	rootfs  string
	release func()
}

// node implements runtime.Node.
type node struct {
	r        *Runtime
	start    start
	slot     int
	bundle   bundle
	evidence runtime.Evidence

	disk    volume.Volume
	server  *http.Server
	pidfd   *os.File
	created bool // the OCI runtime knows it

	ended chan struct{} // closed when process 1 has ended and its output is read
	exit  runtime.Exit  // valid when ended is closed

	mu      sync.Mutex // serialises Remove
	removed bool
}

func (n *node) ID() string                 { return n.start.spec.ID }
func (n *node) Evidence() runtime.Evidence { return n.evidence }

// start makes the parts of a node in order; Remove takes whatever exists away again, so that a failure at any step leaves nothing.
func (r *Runtime) start(ctx context.Context, s start) (*node, error) {
	slot, err := r.reserve(s.spec.ID)
	if err != nil {
		s.release()
		return nil, err
	}
	uid := r.cfg.HostIDs + slot*idsPerNode
	n := &node{r: r, start: s, slot: slot, ended: make(chan struct{}), bundle: bundle{
		dir: filepath.Join(r.cfg.RunDir, "node-"+s.spec.ID), spec: s.spec, args: s.args, uid: uid,
		cgroups: "/" + r.groups.name + "/" + s.spec.ID,
	}}
	n.evidence = runtime.Evidence{HostUID: uid, ScratchDriver: s.disks.Name()}
	for _, step := range []func(context.Context) error{n.makeDisk, n.makeBundle, n.listen, n.run} {
		if err := step(ctx); err != nil {
			return nil, errors.Join(err, n.Remove(context.WithoutCancel(ctx)))
		}
	}
	return n, nil
}

func (n *node) makeDisk(ctx context.Context) (err error) {
	uid := n.bundle.uid
	n.disk, err = n.start.disks.Create(ctx, volume.Spec{ID: "node-" + n.ID(), Bytes: n.start.spec.ScratchBytes, UID: uid, GID: uid})
	if err != nil {
		return fmt.Errorf("creating scratch disk: %w", err)
	}
	n.evidence.ScratchImage = n.disk.Raw()
	for name, mode := range map[string]os.FileMode{"work": 0o755, "tmp": 0o777 | os.ModeSticky} {
		dir := filepath.Join(n.disk.Path(), name)
		if err := errors.Join(os.Mkdir(dir, 0o700), os.Chown(dir, uid, uid), os.Chmod(dir, mode)); err != nil {
			return fmt.Errorf("laying out scratch disk: %w", err)
		}
	}
	return nil
}

func (n *node) makeBundle(context.Context) error {
	b := n.bundle
	for _, dir := range []string{b.dir, b.rootfs(), b.scratch(), b.control()} {
		if err := errors.Join(os.Mkdir(dir, 0o755), os.Chmod(dir, 0o755)); err != nil {
			return fmt.Errorf("creating bundle: %w", err)
		}
	}
	var own unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &own); err != nil {
		return fmt.Errorf("reading own limits: %w", err)
	}
	b.files = min(65536, own.Max)
	config, err := b.config()
	if err != nil {
		return err
	}
	for name, text := range map[string][]byte{"config.json": config, "resolv.conf": b.spec.ResolvConf, "hosts": b.spec.Hosts, "control/ca.pem": b.spec.CA} {
		if err := os.WriteFile(filepath.Join(b.dir, name), text, 0o644); err != nil {
			return fmt.Errorf("writing bundle: %w", err)
		}
	}
	if err := bindMount(n.disk.Path(), b.scratch(), false); err != nil {
		return err
	}
	if err := bindMount(n.r.cfg.Agent, b.agent(), true); err != nil {
		return err
	}
	shifted, err := mountRoot(n.start.rootfs, b.rootfs(), b.uid)
	if err == nil && !shifted {
		n.r.cfg.Log.Warn("image owners are not shifted: its file system has no id-mapped mounts", "node", n.ID())
	}
	return err
}

// listen opens the node's own socket, for its root alone.
func (n *node) listen(context.Context) error {
	dir, err := os.Open(n.bundle.control())
	if err != nil {
		return fmt.Errorf("opening control directory: %w", err)
	}
	defer dir.Close()
	// Through the descriptor, as sun_path holds 107 bytes only (unix(7)).
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: fmt.Sprintf("/proc/self/fd/%d/agent.sock", dir.Fd()), Net: "unix"})
	if err != nil {
		return fmt.Errorf("listening for agent: %w", err)
	}
	l.SetUnlinkOnClose(false) // the name was only valid here; Remove deletes the directory
	path := filepath.Join(n.bundle.control(), "agent.sock")
	if err := errors.Join(os.Chown(path, n.bundle.uid, n.bundle.uid), os.Chmod(path, 0o600)); err != nil {
		return errors.Join(fmt.Errorf("giving socket to node: %w", err), l.Close())
	}
	n.server = &http.Server{Handler: n.start.spec.Agent, ReadHeaderTimeout: 10 * time.Second, MaxHeaderBytes: 16 << 10}
	go func() { _ = n.server.Serve(peerListener{l, uint32(n.bundle.uid)}) }() // ends with server.Close in Remove
	return nil
}

// peerListener drops connections of anybody but the node's root, whatever the file mode allowed.
type peerListener struct {
	*net.UnixListener
	uid uint32
}

func (l peerListener) Accept() (net.Conn, error) {
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		if peerUID(c) == int64(l.uid) {
			return c, nil
		}
		c.Close()
	}
}

func peerUID(c *net.UnixConn) int64 {
	raw, err := c.SyscallConn()
	if err != nil {
		return -1
	}
	uid := int64(-1)
	_ = raw.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			uid = int64(cred.Uid)
		}
	})
	return uid
}

// run creates the container, puts its waiting process under the limits, and lets it go.
func (n *node) run(ctx context.Context) error {
	in, out, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("creating output pipe: %w", err)
	}
	defer out.Close()
	pidFile := filepath.Join(n.bundle.dir, "pid")
	n.created = true
	if err := n.start.command.run(ctx, out, "create", "--bundle", n.bundle.dir, "--pid-file", pidFile, n.ID()); err != nil {
		in.Close()
		return err
	}
	if err := n.openProcess(pidFile); err != nil {
		in.Close()
		return err
	}
	go n.watch(in)
	if err := n.r.groups.create(n.ID(), n.start.spec.Limits, n.evidence.PID); err != nil {
		return err
	}
	return n.start.command.run(ctx, nil, "start", n.ID())
}

// openProcess takes a descriptor of process 1, which cannot have ended and been replaced: it waits for start.
func (n *node) openProcess(pidFile string) error {
	text, err := os.ReadFile(pidFile)
	if err != nil {
		return fmt.Errorf("reading process id: %w", err)
	}
	if n.evidence.PID, err = strconv.Atoi(strings.TrimSpace(string(text))); err != nil {
		return fmt.Errorf("reading process id: %w", err)
	}
	fd, err := unix.PidfdOpen(n.evidence.PID, unix.PIDFD_NONBLOCK)
	if err != nil {
		return fmt.Errorf("opening process: %w", err)
	}
	n.pidfd = os.NewFile(uintptr(fd), "pidfd")
	return nil
}

// watch ends when process 1 has ended, which the kernel says by making its descriptor readable (pidfd_open(2)).
func (n *node) watch(output io.ReadCloser) {
	defer close(n.ended)
	tail := make(chan string, 1)
	go func() { tail <- copyTail(output, 4096) }()
	raw, err := n.pidfd.SyscallConn()
	if err == nil {
		err = raw.Read(func(fd uintptr) bool {
			ready, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
			return ready > 0 || err != nil && !errors.Is(err, unix.EINTR)
		})
	}
	if err != nil {
		n.r.cfg.Log.Error("waiting for node", "node", n.ID(), "error", err)
	}
	n.exit.OutOfMemory = n.r.groups.outOfMemory(n.ID())
	// Every process of the node is dead now, so the pipe has ended too, unless the OCI runtime still holds it for a moment.
	n.exit.Output = <-tail
	output.Close()
}

func (n *node) Wait(ctx context.Context) (runtime.Exit, error) {
	select {
	case <-n.ended:
		return n.exit, nil
	case <-ctx.Done():
		return runtime.Exit{}, ctx.Err()
	}
}

func (n *node) Kill() error {
	if n.pidfd == nil {
		return nil
	}
	raw, err := n.pidfd.SyscallConn()
	if err != nil {
		return nil // closed by Remove, which has killed it
	}
	var sent error
	if err := raw.Control(func(fd uintptr) { sent = unix.PidfdSendSignal(int(fd), unix.SIGKILL, nil, 0) }); err != nil {
		return nil
	}
	if sent != nil && !errors.Is(sent, unix.ESRCH) {
		return fmt.Errorf("killing node %s: %w", n.ID(), sent)
	}
	return nil
}

// Remove goes through everything that start made, backwards. A step that fails is reported and can be repeated by calling Remove again.
func (n *node) Remove(ctx context.Context) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.removed {
		return nil
	}
	if err := n.Kill(); err != nil {
		return err
	}
	if n.pidfd != nil {
		if _, err := n.Wait(ctx); err != nil {
			return fmt.Errorf("waiting for node %s to end: %w", n.ID(), err)
		}
	}
	if n.server != nil {
		_ = n.server.Close() // the listener was the only thing that could fail to close
	}
	if n.created {
		if err := n.start.command.run(ctx, nil, "delete", "--force", n.ID()); err != nil && n.pidfd != nil {
			return err
		}
		n.created = false
	}
	if err := n.r.groups.remove(ctx, n.ID()); err != nil {
		return err
	}
	if err := volume.UnmountBelow(n.bundle.dir); err != nil {
		return err
	}
	if n.disk != nil {
		if err := n.disk.Close(); err != nil {
			return fmt.Errorf("destroying scratch disk: %w", err)
		}
	}
	if err := os.RemoveAll(n.bundle.dir); err != nil {
		return fmt.Errorf("removing bundle: %w", err)
	}
	if n.pidfd != nil {
		n.pidfd.Close()
	}
	n.removed = true
	n.start.release()
	n.r.free(n.ID(), n.slot)
	return nil
}
