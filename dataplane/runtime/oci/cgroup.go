package oci

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"casemate.dev/dataplane/runtime"
)

// cgroups sets the limits of nodes itself, the same way for every OCI runtime and for version 1, hybrid and version 2 trees: a process is moved
// into its groups between create and start, when it has not yet run anything of the node.
type cgroups struct {
	name   string            // directory of this instance in each tree
	v1     map[string]string // controller → mount point of its version 1 tree
	v2     string            // mount point of the version 2 tree when it has the controllers
	hybrid string            // mount point of a version 2 tree beside version 1 ones
}

var needed = []string{"memory", "pids", "cpu"}

func findCgroups(name string) (*cgroups, error) {
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("reading mounts: %w", err)
	}
	return parseCgroups(name, string(info), func(v2 string) string {
		b, _ := os.ReadFile(filepath.Join(v2, "cgroup.controllers")) // absent: no controllers
		return string(b)
	})
}

// parseCgroups reads proc_pid_mountinfo(5): … mount point (5th) … - type source super-options.
func parseCgroups(name, mountinfo string, controllers func(v2 string) string) (*cgroups, error) {
	g := &cgroups{name: name, v1: map[string]string{}}
	unified := ""
	for line := range strings.Lines(mountinfo) {
		before, after, ok := strings.Cut(line, " - ")
		head, tail := strings.Fields(before), strings.Fields(after)
		if !ok || len(head) < 5 || len(tail) < 3 {
			continue
		}
		switch tail[0] {
		case "cgroup":
			for _, option := range strings.Split(tail[2], ",") {
				if option != "rw" && option != "ro" {
					g.v1[option] = head[4]
				}
			}
		case "cgroup2":
			unified = head[4]
		}
	}
	missing := func(has func(string) bool) (list []string) {
		for _, c := range needed {
			if !has(c) {
				list = append(list, c)
			}
		}
		return list
	}
	lackV1 := missing(func(c string) bool { return g.v1[c] != "" })
	if len(lackV1) == 0 {
		g.hybrid = unified
		return g, nil
	}
	have := " " + strings.Join(strings.Fields(controllers(unified)), " ") + " "
	lackV2 := missing(func(c string) bool { return unified != "" && strings.Contains(have, " "+c+" ") })
	if len(lackV2) == 0 {
		g.v2 = unified
		return g, nil
	}
	return nil, fmt.Errorf("no cgroup tree offers all of %v (version 1 lacks %v, version 2 lacks %v): limits could not be kept", needed, lackV1, lackV2)
}

// harmless are the devices of a node, in the syntax of the devices controller.
var harmless = []string{"c 1:3 rwm", "c 1:5 rwm", "c 1:7 rwm", "c 1:8 rwm", "c 1:9 rwm", "c 5:0 rwm", "c 5:2 rwm", "c 136:* rwm"}

// create makes a node's groups with its limits and moves the process into them.
func (g *cgroups) create(id string, limits runtime.Limits, pid int) error {
	const period = 100_000 // µs
	quota := max(limits.CPUMillis*period/1000, 1000)
	memory := strconv.FormatInt(limits.MemoryBytes, 10)
	pids := strconv.FormatInt(limits.PIDs, 10)
	if g.v2 != "" {
		if err := g.delegate(); err != nil {
			return err
		}
		return fill(filepath.Join(g.v2, g.name, id), pid, [][2]string{
			{"memory.max", memory}, {"?memory.swap.max", "0"}, {"pids.max", pids}, {"cpu.max", fmt.Sprintf("%d %d", quota, period)},
		})
	}
	devices := [][2]string{{"devices.deny", "a"}}
	for _, d := range harmless {
		devices = append(devices, [2]string{"devices.allow", d})
	}
	for controller, values := range map[string][][2]string{
		"memory":  {{"memory.limit_in_bytes", memory}, {"?memory.memsw.limit_in_bytes", memory}},
		"pids":    {{"pids.max", pids}},
		"cpu":     {{"cpu.cfs_period_us", strconv.Itoa(period)}, {"cpu.cfs_quota_us", strconv.FormatInt(quota, 10)}},
		"devices": devices,
	} {
		tree := g.v1[controller]
		if tree == "" {
			continue // devices alone may be absent, see the package comment
		}
		if err := fill(filepath.Join(tree, g.name, id), pid, values); err != nil {
			return err
		}
	}
	return nil
}

// delegate lets children of the instance's group have the controllers.
func (g *cgroups) delegate() error {
	parent := filepath.Join(g.v2, g.name)
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return fmt.Errorf("creating cgroup: %w", err)
	}
	for _, dir := range []string{g.v2, parent} {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+memory +pids +cpu"), 0); err != nil {
			return fmt.Errorf("delegating cgroup controllers: %w", err)
		}
	}
	return nil
}

// fill writes limits, then moves the process in. A name with ? may be absent in the kernel (swap accounting).
func fill(dir string, pid int, values [][2]string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("creating cgroup: %w", err)
	}
	for _, v := range append(values, [2]string{"cgroup.procs", strconv.Itoa(pid)}) {
		name, optional := strings.CutPrefix(v[0], "?")
		if err := os.WriteFile(filepath.Join(dir, name), []byte(v[1]), 0); err != nil && !(optional && errors.Is(err, os.ErrNotExist)) {
			return fmt.Errorf("setting limit %s: %w", name, err)
		}
	}
	return nil
}

// outOfMemory tells whether the kernel has killed something in the node at its limit.
func (g *cgroups) outOfMemory(id string) bool {
	path := filepath.Join(g.v1["memory"], g.name, id, "memory.oom_control")
	if g.v2 != "" {
		path = filepath.Join(g.v2, g.name, id, "memory.events")
	}
	text, _ := os.ReadFile(path) // a vanished group says nothing
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) == 2 && f[0] == "oom_kill" && f[1] != "0" {
			return true
		}
	}
	return false
}

// dirs lists this instance's directory in every tree: runc makes groups in all of them.
func (g *cgroups) dirs() []string {
	var dirs []string
	for _, tree := range append(slices.Collect(maps.Values(g.v1)), g.v2, g.hybrid) {
		if dir := filepath.Join(tree, g.name); tree != "" && !slices.Contains(dirs, dir) {
			dirs = append(dirs, dir)
		}
	}
	return dirs
}

// remove deletes a node's groups. They empty a moment after their last process has ended.
func (g *cgroups) remove(ctx context.Context, id string) error {
	for _, dir := range g.dirs() {
		if err := removeGroup(ctx, filepath.Join(dir, id)); err != nil {
			return err
		}
	}
	return nil
}

func removeGroup(ctx context.Context, dir string) error {
	for range 400 {
		err := unix.Rmdir(dir)
		if err == nil || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("removing cgroup: %w", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
	return fmt.Errorf("removing cgroup %s: processes do not end", dir)
}

// killAll ends every process in this instance's groups and removes the groups: the leftovers of a killed server.
func (g *cgroups) killAll(ctx context.Context) error {
	var errs []error
	for _, dir := range g.dirs() {
		nodes, err := os.ReadDir(dir)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("listing cgroups: %w", err))
			continue
		}
		for _, n := range nodes {
			if !n.IsDir() {
				continue
			}
			procs, _ := os.ReadFile(filepath.Join(dir, n.Name(), "cgroup.procs"))
			for _, field := range strings.Fields(string(procs)) {
				if pid, err := strconv.Atoi(field); err == nil && pid > 1 {
					_ = unix.Kill(pid, unix.SIGKILL) // it may have ended; removal below shows if it has not
				}
			}
			errs = append(errs, removeGroup(ctx, filepath.Join(dir, n.Name())))
		}
		errs = append(errs, removeGroup(ctx, dir))
	}
	return errors.Join(errs...)
}
