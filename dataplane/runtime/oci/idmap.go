package oci

import (
	"errors"
	"fmt"
	"os"
	goruntime "runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// mountRoot puts the image read-only at target, with its owners shifted into the node's uid range by an id-mapped mount (mount_setattr(2)), so that
// one unpacked copy serves every node. Where the file system cannot shift, files appear owned by nobody: nothing is writable anyway,
// only files closed to others cannot be read then.
func mountRoot(source, target string, uid int) (shifted bool, err error) {
	tree, err := unix.OpenTree(unix.AT_FDCWD, source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return false, fmt.Errorf("cloning image mount: %w", err)
	}
	defer unix.Close(tree)
	userNS, err := newUserNS(uid)
	if err != nil {
		return false, err
	}
	defer userNS.Close()
	const guard = unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV
	attr := unix.MountAttr{Attr_set: guard | unix.MOUNT_ATTR_IDMAP, Propagation: unix.MS_PRIVATE, Userns_fd: uint64(userNS.Fd())}
	err = unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &attr)
	shifted = err == nil
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EPERM) {
		attr = unix.MountAttr{Attr_set: guard, Propagation: unix.MS_PRIVATE}
		err = unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &attr)
	}
	if err != nil {
		return false, fmt.Errorf("protecting image mount: %w", err)
	}
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return false, fmt.Errorf("mounting image: %w", err)
	}
	return shifted, nil
}

// newUserNS returns a user namespace that maps 0… to uid…. A namespace needs a process to be born with; it is stopped before it runs
// an instruction (ptrace(2)) and killed when its namespace is open.
func newUserNS(uid int) (*os.File, error) {
	goruntime.LockOSThread() // ptrace relations belong to the thread
	defer goruntime.UnlockOSThread()
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: uid, Size: idsPerNode}}
	p, err := os.StartProcess("/proc/self/exe", []string{"casemate-idmap"}, &os.ProcAttr{
		Env: []string{}, Sys: &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER, UidMappings: ids, GidMappings: ids, Ptrace: true, Pdeathsig: syscall.SIGKILL},
	})
	if err != nil {
		return nil, fmt.Errorf("creating user namespace: %w", err)
	}
	f, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", p.Pid))
	killErr := p.Kill()
	_, waitErr := p.Wait()
	if err := errors.Join(err, killErr, waitErr); err != nil {
		return nil, fmt.Errorf("opening user namespace: %w", err)
	}
	return f, nil
}

// bindMount mounts source on target; a file target is created.
func bindMount(source, target string, file bool) error {
	if file {
		if err := os.WriteFile(target, nil, 0o644); err != nil {
			return fmt.Errorf("creating mount point: %w", err)
		}
	}
	if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("binding %s: %w", source, err)
	}
	if err := unix.Mount("", target, "", unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making mount private: %w", err)
	}
	return nil
}
