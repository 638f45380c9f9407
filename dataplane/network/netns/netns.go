// Package netns creates, finds and enters network namespaces. It is dangerous: code that runs in Do sees another
// network than the rest of the process, and whatever it opens keeps belonging to that network for ever.
//
// It is for package network alone (the layers test keeps the list of importers). Namespaces are persistent: bind
// mounts under /run/netns, where iproute2 shows them and an OCI runtime can join them by path. They survive the
// process, so every operation is idempotent and a namespace half made by a killed process is repaired by the next call.
//
// Nobody but root can lie to it: names come from hashes made by package plan, and Valid refuses any other.
// It configures nothing inside a namespace.
package netns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// Directory is where named namespaces are mounted, as iproute2 expects. [ip-netns(8)]
const Directory = "/run/netns"

// Path returns the path of a named namespace.
func Path(name string) string { return filepath.Join(Directory, name) }

// Valid reports whether a name is made of lower-case letters, digits and hyphens only.
func Valid(name string) bool {
	return name != "" && strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}

// Exists reports whether the name stands for a live namespace; a plain file left behind by a crash does not.
func Exists(name string) bool {
	var st unix.Statfs_t
	return unix.Statfs(Path(name), &st) == nil && st.Type == unix.NSFS_MAGIC
}

// Create makes the named namespace unless it exists. It reports whether it made one.
func Create(name string) (made bool, err error) {
	if !Valid(name) {
		return false, fmt.Errorf("creating network namespace: bad name %q", name)
	}
	if Exists(name) {
		return false, nil
	}
	if err := prepareDirectory(); err != nil {
		return false, fmt.Errorf("creating network namespace %s: %w", name, err)
	}
	f, err := os.OpenFile(Path(name), os.O_CREATE|os.O_RDONLY, 0o444)
	if err != nil {
		return false, fmt.Errorf("creating network namespace: %w", err)
	}
	f.Close()
	err = onOwnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unsharing: %w", err)
		}
		return unix.Mount("/proc/thread-self/ns/net", Path(name), "none", unix.MS_BIND, "")
	})
	if err != nil {
		return false, fmt.Errorf("creating network namespace %s: %w", name, err)
	}
	return true, nil
}

// Remove unmounts the named namespace; the kernel frees it when the last process in it ends. Absent is no error.
func Remove(name string) error {
	if !Valid(name) {
		return fmt.Errorf("removing network namespace: bad name %q", name)
	}
	for Exists(name) { // a crash between two servers' starts may have stacked mounts
		if err := unix.Unmount(Path(name), unix.MNT_DETACH); err != nil {
			return fmt.Errorf("removing network namespace %s: %w", name, err)
		}
	}
	if err := os.Remove(Path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing network namespace: %w", err)
	}
	return nil
}

// List returns the names with the prefix, half-made ones included, in order.
func List(prefix string) ([]string, error) {
	entries, err := os.ReadDir(Directory)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("listing network namespaces: %w", err)
	}
	var names []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), prefix) && Valid(e.Name()) {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// Open returns the named namespace as a file, for netlink sockets and for moving links into it.
func Open(name string) (*os.File, error) {
	if !Exists(name) {
		return nil, fmt.Errorf("opening network namespace %s: %w", name, fs.ErrNotExist)
	}
	f, err := os.Open(Path(name))
	if err != nil {
		return nil, fmt.Errorf("opening network namespace: %w", err)
	}
	return f, nil
}

// Do runs fn on a thread inside the namespace. Only what fn does itself happens there: goroutines that it starts
// run elsewhere. fn must not block for long, and must not change the thread's namespace.
// The thread is thrown away afterwards, so that no other goroutine can ever run in the wrong network.
func Do(namespace *os.File, fn func() error) error {
	return onOwnThread(func() error {
		if err := unix.Setns(int(namespace.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("entering network namespace %s: %w", namespace.Name(), err)
		}
		return fn()
	})
}

// onOwnThread runs fn on a thread that ends with it: a goroutine which exits while locked takes its thread along.
func onOwnThread(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		done <- fn()
	}()
	return <-done
}

// prepareDirectory makes the directory a shared mount, as ip-netns does, so that a namespace mounted or removed here
// is so for processes with a mount namespace of their own too; otherwise their copies would keep it alive.
func prepareDirectory() error {
	if err := os.MkdirAll(Directory, 0o755); err != nil {
		return err
	}
	shared := func() error { return unix.Mount("", Directory, "none", unix.MS_SHARED|unix.MS_REC, "") }
	err := shared()
	if !errors.Is(err, unix.EINVAL) { // EINVAL: not a mount point yet
		return err
	}
	if err := unix.Mount(Directory, Directory, "none", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("mounting %s: %w", Directory, err)
	}
	return shared()
}
