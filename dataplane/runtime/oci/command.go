package oci

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// command is one OCI runtime binary (crun, runc) and how it must be called on this machine.
type command struct {
	path    string
	args    []string
	wrapper []string // put before path
	private bool     // run in a mount namespace of its own
}

// hideUnified is for crun, which refuses a machine where cgroup v1 controllers and the empty v2 tree are both mounted, even when told to leave cgroups alone.
// It sees the machine without the v2 tree; limits are ours to set (cgroup.go), so nothing is lost.
const hideUnified = `umount -l "$0" && exec "$@"`

func findCommand(name, state string, hybridMount string) (*command, error) {
	path, err := exec.LookPath(name)
	if err != nil {
		// Debian installs runc in /usr/sbin, which a service's PATH may lack.
		if path, err = exec.LookPath(filepath.Join("/usr/sbin", filepath.Base(name))); err != nil {
			return nil, errors.New("not installed")
		}
	}
	c := &command{path: path, args: []string{"--root", filepath.Join(state, filepath.Base(path))}}
	if filepath.Base(path) == "crun" {
		c.args = append(c.args, "--cgroup-manager=disabled")
		if hybridMount != "" {
			c.private = true
			c.wrapper = []string{"/bin/sh", "-c", hideUnified, hybridMount}
		}
	}
	return c, nil
}

// run calls the runtime and waits. output, when not nil, is what the container writes to; the runtime's own complaints are in the error.
func (c *command) run(ctx context.Context, output *os.File, args ...string) error {
	// The container inherits its descriptors from the runtime: only files, never pipes of ours, so that Run does not wait for the node's end.
	complaints, err := os.CreateTemp("", "casemate-oci-*")
	if err != nil {
		return fmt.Errorf("creating error file: %w", err)
	}
	defer complaints.Close()
	defer os.Remove(complaints.Name())
	argv := slices.Concat(c.wrapper, []string{c.path, "--log", complaints.Name()}, c.args, args)
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if c.private {
		cmd.SysProcAttr.Unshareflags = syscall.CLONE_NEWNS
	}
	if output != nil {
		cmd.Stdout, cmd.Stderr = output, output
	}
	if err := cmd.Run(); err != nil {
		text, _ := os.ReadFile(complaints.Name()) // empty when the runtime could not even say why
		return fmt.Errorf("%s %s: %w: %.500s", filepath.Base(c.path), args[0], err, strings.TrimSpace(string(text)))
	}
	return nil
}
