package volume

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// attachLoop binds a free loop device to the image (loop(4)). With LO_FLAGS_AUTOCLEAR the device frees itself when its last user goes: the mount,
// or the returned file if mounting fails.
func attachLoop(image string) (*os.File, error) {
	if dev, err := attachedLoop(image); dev != nil || err != nil {
		return dev, err
	}
	backing, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("opening volume image: %w", err)
	}
	defer backing.Close()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("opening loop control: %w", err)
	}
	defer control.Close()
	// Another process may take the free device between the two calls.
	for range 50 {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("finding a free loop device: %w", err)
		}
		dev, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", n), os.O_RDWR, 0)
		if errors.Is(err, os.ErrNotExist) {
			if err = unix.Mknod(fmt.Sprintf("/dev/loop%d", n), unix.S_IFBLK|0o600, int(unix.Mkdev(7, uint32(n)))); err == nil || errors.Is(err, unix.EEXIST) {
				continue
			}
		}
		if err != nil {
			return nil, fmt.Errorf("opening loop device: %w", err)
		}
		config := unix.LoopConfig{Fd: uint32(backing.Fd()), Size: 4096}
		config.Info.Flags = unix.LO_FLAGS_AUTOCLEAR
		err = unix.IoctlLoopConfigure(int(dev.Fd()), &config)
		if err == nil {
			return dev, nil
		}
		dev.Close()
		if !errors.Is(err, unix.EBUSY) {
			return nil, fmt.Errorf("configuring loop device: %w", err)
		}
	}
	return nil, errors.New("no loop device stays free")
}

// detachLoops frees loop devices whose image lies below dir. One that is in use is freed with its last user: a mount namespace may be on its way
// out after its last process, and one that was copied from ours may stay.
func detachLoops(dir string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return fmt.Errorf("resolving volume directory: %w", err)
	}
	names, err := loopsOf(func(backing string) bool { return strings.HasPrefix(backing, dir+"/") })
	if err != nil {
		return err
	}
	for _, name := range names {
		dev, err := os.OpenFile("/dev/"+name, os.O_RDWR, 0)
		if err != nil {
			return fmt.Errorf("opening stale loop device: %w", err)
		}
		_, err = unix.IoctlRetInt(int(dev.Fd()), unix.LOOP_CLR_FD)
		dev.Close()
		if err != nil && !errors.Is(err, unix.ENXIO) {
			return fmt.Errorf("freeing loop device: %w", err)
		}
	}
	return nil
}

// loopsOf lists loop devices by the image behind them.
func loopsOf(match func(backing string) bool) ([]string, error) {
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return nil, fmt.Errorf("listing loop devices: %w", err)
	}
	var names []string
	for _, file := range files {
		backing, err := os.ReadFile(file)
		if err == nil && match(strings.TrimSuffix(string(backing), "\n")) { // a device that vanished meanwhile has no backing file any more
			names = append(names, filepath.Base(filepath.Dir(filepath.Dir(file))))
		}
	}
	return names, nil
}

// attachedLoop returns the device that the image is bound to already, open, or nil. A file system that is still mounted somewhere must not be mounted
// through a second device: each would overwrite what the other believes. Through the same device it is the same file system.
func attachedLoop(image string) (*os.File, error) {
	image, err := filepath.Abs(image)
	if err != nil {
		return nil, fmt.Errorf("resolving volume image: %w", err)
	}
	names, err := loopsOf(func(backing string) bool { return backing == image })
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		dev, err := os.OpenFile("/dev/"+name, os.O_RDWR, 0)
		if err != nil {
			continue // it has just been freed
		}
		// Open, it can no longer be freed; until then it could, and be somebody else's now.
		if now, err := os.ReadFile("/sys/block/" + name + "/loop/backing_file"); err == nil && strings.TrimSuffix(string(now), "\n") == image {
			return dev, nil
		}
		dev.Close()
	}
	return nil, nil
}
