package runtime

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Probe is what process 1 sees of its own cage: the self-test's evidence.
type Probe struct {
	PID         int    `json:"pid"`
	UID         int    `json:"uid"`
	HostUID     int    `json:"hostUid"`     // what uid 0 maps to on the host, -1 if unmapped
	Seccomp     string `json:"seccomp"`     // 2 is a filter
	NoNewPrivs  string `json:"noNewPrivs"`  // 1 is set
	CapBnd      string `json:"capBnd"`      // hexadecimal mask
	Hostname    string `json:"hostname"`    //
	RootWrites  bool   `json:"rootWrites"`  // could it write to the image?
	WorkWrites  bool   `json:"workWrites"`  // could it write to the scratch disk?
	MountDenied bool   `json:"mountDenied"` // did mount(2) fail?
	Processes   int    `json:"processes"`   // visible in /proc
	Interfaces  int    `json:"interfaces"`  // network interfaces other than loopback
	Devices     string `json:"devices"`     // entries of /dev, for the log
}

// TakeProbe looks at the calling process's surroundings from inside. It tries forbidden things (mount(2) among them), which would succeed on
// a host, so anywhere but in process 1 of a user namespace it tries nothing and returns a probe that verifies as nothing.
func TakeProbe() Probe {
	p := Probe{PID: os.Getpid(), UID: os.Getuid(), HostUID: -1}
	if uids, err := os.ReadFile("/proc/self/uid_map"); err == nil {
		// One line: first id inside, first id on the host, count (user_namespaces(7)).
		if f := strings.Fields(string(uids)); len(f) == 3 && f[0] == "0" {
			if p.HostUID, err = strconv.Atoi(f[1]); err != nil {
				p.HostUID = -1
			}
		}
	}
	if p.PID != 1 || p.HostUID <= 0 {
		return p
	}
	status, _ := os.ReadFile("/proc/self/status") // absent fields stay empty, and empty never passes
	for line := range strings.Lines(string(status)) {
		key, value, _ := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		switch key {
		case "Seccomp":
			p.Seccomp = value
		case "NoNewPrivs":
			p.NoNewPrivs = value
		case "CapBnd":
			p.CapBnd = value
		}
	}
	p.Hostname, _ = os.Hostname()
	p.RootWrites = writable("/")
	p.WorkWrites = writable(WorkDir) && writable(TempDir)
	p.MountDenied = unix.Mount("none", TempDir, "tmpfs", 0, "") != nil
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err == nil {
			p.Processes++
		}
	}
	links, _ := os.ReadFile("/proc/net/dev")
	for line := range strings.Lines(string(links)) {
		if name, _, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) != "lo" {
			p.Interfaces++
		}
	}
	devices, _ := os.ReadDir("/dev")
	for _, d := range devices {
		p.Devices += d.Name() + " "
	}
	return p
}

func writable(dir string) bool {
	path := filepath.Join(dir, ".casemate-probe")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		return false
	}
	return os.Remove(path) == nil
}

// Want is what a probe must equal in all that the contract promises.
type Want struct {
	HostUID    int
	CapBnd     uint64
	Hostname   string
	Interfaces int
}

// Verify joins every broken promise.
func (p Probe) Verify(want Want) error {
	caps, err := strconv.ParseUint(p.CapBnd, 16, 64)
	var broken []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			broken = append(broken, fmt.Errorf(format, args...))
		}
	}
	check(p.PID == 1 && p.Processes == 1, "it is process %d and sees %d processes, want its own process namespace", p.PID, p.Processes)
	check(p.UID == 0 && p.HostUID == want.HostUID && p.HostUID > 0, "its root is host uid %d, want %d", p.HostUID, want.HostUID)
	check(p.Seccomp == "2", "seccomp mode is %q, want a filter", p.Seccomp)
	check(p.NoNewPrivs == "1", "no_new_privs is %q", p.NoNewPrivs)
	check(err == nil && caps == want.CapBnd, "capabilities are %q, want %x", p.CapBnd, want.CapBnd)
	check(p.Hostname == want.Hostname, "hostname is %q, want %q", p.Hostname, want.Hostname)
	check(!p.RootWrites, "it can write to its image")
	check(p.WorkWrites, "it cannot write to its scratch disk")
	check(p.MountDenied, "it can mount file systems")
	check(p.Interfaces == want.Interfaces, "it sees %d network interfaces, want %d", p.Interfaces, want.Interfaces)
	return errors.Join(broken...)
}
