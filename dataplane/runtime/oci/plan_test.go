package oci

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"casemate.dev/dataplane/runtime"
)

// What a container is given is decided without root, and checked here as a whole.
func TestConfigGivesNothingOfTheHost(t *testing.T) {
	b := bundle{dir: "/run/casemate/x/node-n1", args: runtime.AgentArgs(), uid: 1 << 20, files: 1024, spec: runtime.NodeSpec{
		ID: "n1", Hostname: "n1", NetNSPath: "/run/netns/n1", Limits: runtime.Limits{MemoryBytes: 1 << 30},
	}}
	text, err := b.config()
	if err != nil {
		t.Fatal(err)
	}
	var got specs.Spec
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	if !got.Root.Readonly || !got.Process.NoNewPrivileges || got.Hooks != nil || got.Annotations != nil || got.Linux.Devices != nil {
		t.Errorf("root %+v, process %+v", got.Root, got.Process)
	}
	var namespaces []string
	for _, n := range got.Linux.Namespaces {
		namespaces = append(namespaces, string(n.Type)+n.Path)
	}
	if diff := cmp.Diff([]string{"user", "pid", "mount", "ipc", "uts", "cgroup", "network/run/netns/n1"}, namespaces); diff != "" {
		t.Error(diff)
	}
	for _, m := range got.Mounts {
		if m.Type != "bind" && m.Source != m.Type {
			t.Errorf("mount of %s", m.Source)
		}
		if m.Type == "bind" && !strings.HasPrefix(m.Source, b.dir+"/") {
			t.Errorf("%s of the host is mounted", m.Source)
		}
		if !slices.Contains(m.Options, "nosuid") || m.Type == "bind" && !slices.Contains(m.Options, "nodev") {
			t.Errorf("%s has options %v", m.Destination, m.Options)
		}
		writable := m.Destination == runtime.WorkDir || m.Destination == runtime.TempDir
		if m.Type == "bind" && slices.Contains(m.Options, "ro") == writable {
			t.Errorf("%s has options %v", m.Destination, m.Options)
		}
		if m.Type == "sysfs" || m.Type == "cgroup" {
			t.Errorf("%s is mounted", m.Type)
		}
	}
	if got.Linux.Seccomp.DefaultAction != specs.ActErrno {
		t.Errorf("default action %s", got.Linux.Seccomp.DefaultAction)
	}
	for _, dangerous := range []string{"mount", "umount2", "unshare", "setns", "bpf", "ptrace", "keyctl", "init_module", "kexec_load", "open_by_handle_at",
		"pivot_root", "io_uring_setup", "userfaultfd", "perf_event_open", "process_vm_readv", "clone", "clone3", "socket", "personality"} {
		for _, s := range got.Linux.Seccomp.Syscalls {
			if s.Action == specs.ActAllow && len(s.Args) == 0 && slices.Contains(s.Names, dangerous) {
				t.Errorf("%s is allowed whatever its arguments", dangerous)
			}
		}
	}
}

func TestParseCgroups(t *testing.T) {
	const (
		v1 = `1 0 0:1 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
2 0 0:2 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
3 0 0:3 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
`
		unified = "4 0 0:4 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
		v2      = "5 0 0:5 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
	)
	for name, tc := range map[string]struct {
		mounts, controllers string
		v2, hybrid          string
		dirs                int
		fails               bool
	}{
		"version 1":           {mounts: v1, dirs: 3},
		"hybrid":              {mounts: v1 + unified, controllers: "hugetlb", hybrid: "/sys/fs/cgroup/unified", dirs: 4},
		"version 2":           {mounts: v2, controllers: "cpuset cpu io memory pids\n", v2: "/sys/fs/cgroup", dirs: 1},
		"version 2 no memory": {mounts: v2, controllers: "cpu pids", fails: true},
		"none":                {mounts: "garbage\n", fails: true},
	} {
		t.Run(name, func(t *testing.T) {
			g, err := parseCgroups("casemate-x", tc.mounts, func(string) string { return tc.controllers })
			if (err != nil) != tc.fails {
				t.Fatal(err)
			}
			if err == nil && (g.v2 != tc.v2 || g.hybrid != tc.hybrid || len(g.dirs()) != tc.dirs) {
				t.Errorf("%+v, directories %v", g, g.dirs())
			}
		})
	}
}
