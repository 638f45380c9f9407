package oci

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"casemate.dev/dataplane/runtime"
)

// capabilities of process 1, over its own user namespace: to become user code's uid, to own and read what it wrote, and to end it.
// User code itself runs with none.
var capabilities = []struct {
	name string
	bit  uint
}{{"CAP_CHOWN", 0}, {"CAP_DAC_OVERRIDE", 1}, {"CAP_FOWNER", 3}, {"CAP_KILL", 5}, {"CAP_SETGID", 6}, {"CAP_SETUID", 7}}

func capabilityMask() (mask uint64) {
	for _, c := range capabilities {
		mask |= 1 << c.bit
	}
	return mask
}

// masked and readOnly are what /proc shows of the host beyond the namespaces.
var (
	masked = []string{"/proc/acpi", "/proc/asound", "/proc/config.gz", "/proc/interrupts", "/proc/kallsyms", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
		"/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats"}
	readOnly = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

// bundle is everything that a container's configuration depends on.
type bundle struct {
	dir     string // below RunDir: bundle, mounts and control directory of the node
	spec    runtime.NodeSpec
	args    []string
	uid     int    // first host uid of the node
	cgroups string // cgroup path for runtimes that insist on making their own
	files   uint64 // limit of open files; raising it above our own would take a privilege
}

func (b bundle) rootfs() string  { return filepath.Join(b.dir, "rootfs") }
func (b bundle) scratch() string { return filepath.Join(b.dir, "scratch") }
func (b bundle) control() string { return filepath.Join(b.dir, "control") }
func (b bundle) agent() string   { return filepath.Join(b.dir, "agent") }

// config compiles the OCI configuration, purely (runtime-spec 1.0, config.md and config-linux.md). It holds no secret and no environment of the job.
func (b bundle) config() ([]byte, error) {
	var caps []string
	for _, c := range capabilities {
		caps = append(caps, c.name)
	}
	ids := []specs.LinuxIDMapping{{ContainerID: 0, HostID: uint32(b.uid), Size: idsPerNode}}
	spec := specs.Spec{
		Version:  "1.0.2",
		Hostname: b.spec.Hostname,
		Root:     &specs.Root{Path: b.rootfs(), Readonly: true},
		Process: &specs.Process{
			Args: b.args, Cwd: "/", Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
			NoNewPrivileges: true,
			Capabilities:    &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
			// A core file could hold what the process held.
			Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_CORE"}, {Type: "RLIMIT_NOFILE", Soft: b.files, Hard: b.files}},
		},
		Mounts: b.mounts(),
		Linux: &specs.Linux{
			UIDMappings: ids, GIDMappings: ids,
			CgroupsPath: b.cgroups,
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.UserNamespace}, {Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.IPCNamespace},
				{Type: specs.UTSNamespace}, {Type: specs.CgroupNamespace}, {Type: specs.NetworkNamespace, Path: b.spec.NetNSPath},
			},
			Seccomp:     filter(),
			MaskedPaths: masked, ReadonlyPaths: readOnly,
		},
	}
	text, err := json.MarshalIndent(spec, "", " ")
	if err != nil {
		return nil, fmt.Errorf("encoding container configuration: %w", err)
	}
	return text, nil
}

// mounts lists what is put on top of the read-only image. Sources on the host are all below the node's own directory. Times and flags repeat those of the
// source: a user namespace may not clear them.
func (b bundle) mounts() []specs.Mount {
	bind := func(from, to string, options ...string) specs.Mount {
		return specs.Mount{Source: from, Destination: to, Type: "bind", Options: append([]string{"bind", "nosuid", "nodev"}, options...)}
	}
	tmpfs := func(to, mode, size string, options ...string) specs.Mount {
		return specs.Mount{Source: "tmpfs", Destination: to, Type: "tmpfs", Options: append([]string{"nosuid", "mode=" + mode, "size=" + size}, options...)}
	}
	return []specs.Mount{
		{Source: "proc", Destination: "/proc", Type: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		tmpfs("/dev", "0755", "64k", "noexec"),
		{Source: "devpts", Destination: "/dev/pts", Type: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"}},
		tmpfs("/dev/shm", "1777", strconv.FormatInt(b.spec.Limits.MemoryBytes/4, 10), "nodev", "noexec"),
		tmpfs("/run", "0755", "16m", "nodev", "noexec"),
		bind(b.control(), runtime.ControlDir, "ro", "noexec"),
		bind(b.agent(), runtime.AgentPath, "ro"),
		bind(filepath.Join(b.dir, "resolv.conf"), "/etc/resolv.conf", "ro", "noexec"),
		bind(filepath.Join(b.dir, "hosts"), "/etc/hosts", "ro", "noexec"),
		bind(filepath.Join(b.scratch(), "work"), runtime.WorkDir, "noatime"),
		bind(filepath.Join(b.scratch(), "tmp"), runtime.TempDir, "noatime"),
	}
}
