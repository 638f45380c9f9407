// Package runtime is the contract for nodes: the short-lived machines that run one job or serve one deployment.
//
// A node has its own user, process, mount, IPC and network namespace, a read-only image, an address that the network plane gave it, and an
// encrypted disk whose key exists in kernel or process memory only and dies with the node. Process 1 of a node is the agent (package agent); it speaks to
// the server through a unix socket that exists for that node alone, so holding the socket is the node's identity and no port
// is open to neighbours (THREATS R8).
//
// For whom: the machine-learning provider starts nodes through Runtime; package oci implements it with crun or runc.
//
// Who may lie: the image and everything that runs in a node. Nothing that an image says (labels, users, paths, devices) is interpreted
// on the host. The caller is trusted to have authorized the start and to hand over a network namespace that is already closed.
//
// What it does not do: it decides no placement, knows no job states and keeps no record across a restart; whatever a killed server left behind is
// removed by Cleanup.
package runtime

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"
)

// Places inside every node. The image store creates them in each root file system, so that a read-only image can carry the mounts.
const (
	AgentPath    = "/casemate-agent"          // the casemate binary, read-only
	ControlDir   = "/run/casemate"            // read-only: agent.sock and ca.pem
	AgentSocket  = ControlDir + "/agent.sock" // container root only
	CAFile       = ControlDir + "/ca.pem"     // readable by user code, the value for SSL_CERT_FILE
	WorkDir      = "/work"                    // encrypted scratch: code, inputs, outputs
	TempDir      = "/tmp"                     // encrypted scratch
	UserID       = 1000                       // user code's uid and gid inside the node
	agentCommand = "agent"
)

// AgentArgs is the command line of process 1: the casemate binary's `agent` command.
func AgentArgs() []string { return []string{AgentPath, agentCommand} }

// ProbeArgs is the command line of the start-up self-test: the agent prints a Probe as JSON on its output and ends.
func ProbeArgs() []string { return []string{AgentPath, agentCommand, "--probe"} }

// Limits bounds a node. Zero means the default of the field.
type Limits struct {
	MemoryBytes int64 // default 2 GiB; memory-backed files count
	CPUMillis   int64 // thousandths of one processor; default 1000
	PIDs        int64 // processes and threads; default 1024
}

// NodeSpec says what a node is. It holds nothing secret: environment, identity and job go through the agent's socket
// and never through a file on the host.
type NodeSpec struct {
	ID           string       // required, [a-z0-9][a-z0-9-]{0,39}, unique among living nodes
	Image        string       // required, digest (sha256:…) of an image in the image store
	NetNSPath    string       // required, path of the network namespace to join, such as /run/netns/name
	Hostname     string       // default ID
	Limits       Limits       //
	ScratchBytes int64        // size of the encrypted disk; default 8 GiB (sparse)
	ResolvConf   []byte       // contents of /etc/resolv.conf
	Hosts        []byte       // contents of /etc/hosts; default localhost alone
	CA           []byte       // PEM certificates at CAFile
	Agent        http.Handler // required, answers the agent through this node's socket (agent.Controller)
}

// Exit tells how a node ended. The outcome of the job is not here: the agent reports it as an event before it ends.
type Exit struct {
	OutOfMemory bool   // the kernel killed at least one process of the node at the memory limit
	Output      string // last bytes the agent itself wrote to its error output (a crash), never user output
}

// Evidence names the raw things behind a node for whoever wants to check promises from outside.
type Evidence struct {
	ScratchImage  string // file on the host that holds the encrypted disk's bytes (a directory of sealed files with FUSE)
	ScratchDriver string // fscrypt or fuse
	PID           int    // process 1 as the host numbers it
	HostUID       int    // host uid that the node's root maps to
}

// Node is one started node.
type Node interface {
	ID() string
	// Wait blocks until process 1 of the node has ended (and with it all others), or ctx ends.
	Wait(ctx context.Context) (Exit, error)
	// Kill ends every process of the node at once. Idempotent.
	Kill() error
	// Remove kills the node if it lives, destroys its disk's key, and removes all traces. Idempotent.
	Remove(ctx context.Context) error
	Evidence() Evidence
}

// Runtime starts nodes.
type Runtime interface {
	// SelfTest starts a real node from a minimal root and verifies from inside what the contract promises. Start refuses before it has passed.
	SelfTest(ctx context.Context) error
	// Start returns when process 1 runs. On error nothing is left behind.
	Start(ctx context.Context, spec NodeSpec) (Node, error)
	// Cleanup removes everything that an earlier process of the same instance left: containers, cgroups, mounts, loop devices, disks.
	Cleanup(ctx context.Context) error
}

// ErrUnavailable is wrapped by Start and SelfTest when this machine cannot run nodes; the text says why.
var ErrUnavailable = errors.New("nodes cannot run on this machine")

// ErrNoImage is wrapped by Start when the image is not in the image store.
var ErrNoImage = errors.New("image is not in the image store")

var (
	idPattern     = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,39}$`)
	digestPattern = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)
	hostPattern   = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?$`)
)

// WithDefaults fills defaults in and refuses a spec that cannot be started.
func (s NodeSpec) WithDefaults() (NodeSpec, error) {
	if s.Hostname == "" {
		s.Hostname = s.ID
	}
	for _, d := range []struct {
		field *int64
		value int64
	}{{&s.Limits.MemoryBytes, 2 << 30}, {&s.Limits.CPUMillis, 1000}, {&s.Limits.PIDs, 1024}, {&s.ScratchBytes, 8 << 30}} {
		if *d.field == 0 {
			*d.field = d.value
		}
	}
	if s.Hosts == nil {
		s.Hosts = []byte("127.0.0.1 localhost\n")
	}
	switch {
	case !idPattern.MatchString(s.ID):
		return s, fmt.Errorf("node id %q is not of the form %s", s.ID, idPattern)
	case !digestPattern.MatchString(s.Image):
		return s, fmt.Errorf("node image %q is not a sha256 digest", s.Image)
	case !strings.HasPrefix(s.NetNSPath, "/"):
		return s, errors.New("node has no network namespace: a node without one would be on the host's network")
	case !hostPattern.MatchString(s.Hostname):
		return s, fmt.Errorf("hostname %q is not a DNS label", s.Hostname)
	case s.Limits.MemoryBytes < 16<<20 || s.Limits.CPUMillis < 10 || s.Limits.PIDs < 16 || s.ScratchBytes < 32<<20:
		return s, errors.New("node limits are too small: at least 16 MiB memory, 10 milli-CPU, 16 processes, 32 MiB disk")
	case s.Agent == nil:
		return s, errors.New("node has nobody to answer its agent")
	}
	return s, nil
}
