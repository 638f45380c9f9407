package volume

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// attachLoop binds a free loop device to the image (loop(4)). With LO_FLAGS_AUTOCLEAR the device frees itself when its last user goes: the mount,
// or the returned file if mounting fails.
func attachLoop(image string) (*os.File, error) {
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

// Freeing a device ends with its last user: a mount namespace may be on its way out for a moment after its last process.
const (
	freeTime  = 15 * time.Second
	freePause = 10 * time.Millisecond
)

// detachLoops frees loop devices whose image lies below dir and waits until they are free: a file system that is still mounted somewhere must not be
// mounted a second time through another device, since each would overwrite what the other believes.
func detachLoops(dir string) error {
	for end := time.Now().Add(freeTime); ; time.Sleep(freePause) {
		busy, err := freeLoops(dir)
		if err != nil || len(busy) == 0 {
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("volumes below %s are still in use through %s: a process of an earlier server or a copied mount namespace holds them", dir, strings.Join(busy, ", "))
		}
	}
}

// freeLoops asks for the devices to be freed and returns those that it saw.
func freeLoops(dir string) (busy []string, _ error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("resolving volume directory: %w", err)
	}
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return nil, fmt.Errorf("listing loop devices: %w", err)
	}
	for _, file := range files {
		backing, err := os.ReadFile(file)
		if err != nil || !strings.HasPrefix(string(backing), dir+"/") {
			continue // a device that vanished meanwhile has no backing file any more
		}
		name := filepath.Base(filepath.Dir(filepath.Dir(file)))
		dev, err := os.OpenFile("/dev/"+name, os.O_RDONLY, 0)
		if err != nil {
			return nil, fmt.Errorf("opening stale loop device: %w", err)
		}
		_, err = unix.IoctlRetInt(int(dev.Fd()), unix.LOOP_CLR_FD)
		dev.Close()
		if err != nil && !errors.Is(err, unix.ENXIO) {
			return nil, fmt.Errorf("freeing loop device: %w", err)
		}
		busy = append(busy, name)
	}
	return busy, nil
}
