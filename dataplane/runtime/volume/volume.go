// Package volume makes encrypted file systems: each node's disk, and the platform's image volume.
//
// For whom: package oci (a scratch volume per node, its key random and never stored) and package image (one persistent volume, its key supplied by
// the caller from the envelope). Two drivers stand behind one contract: fscrypt (a sparse file, ext4, the kernel's file system encryption, AES-256-XTS for
// contents and AES-256-CTS for names) and FUSE (contents sealed block by block with AES-256-GCM in this process, names in memory only).
// Choose tries them on the real machine, including a search of the raw file for a canary, and takes the first that holds.
//
// Who may lie: nobody on the host is assumed to; the volume protects against who reads the disk, a backup or a discarded device later. A node's processes see
// their volume in clear, that is its purpose.
//
// What it does not do: fscrypt leaves sizes, times, owners and modes of files legible in the image; it encrypts contents, names and link targets. dm-crypt
// is not supported: fscrypt gives the same protection without a device-mapper table. Nothing here survives a restart except a volume opened with a given key.
package volume

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"sort"
	"strings"

	"golang.org/x/sys/unix"
)

// Spec says what to create.
type Spec struct {
	ID    string      // required, [a-z0-9][a-z0-9-]*; names the image file and the mount point
	Bytes int64       // required; the file is sparse
	UID   int         // owner of the root directory
	GID   int         //
	Mode  os.FileMode // of the root directory, default 0755

	// Key makes the volume persistent: it is opened when it exists. KeySize bytes. Empty means a random key that is forgotten
	// with the volume.
	Key []byte
}

// KeySize is the length of a volume key in bytes.
const KeySize = 64

// ErrPersistent is returned by a driver that has no persistent volumes when a key is given.
var ErrPersistent = errors.New("this volume driver keeps nothing across a restart")

// Driver creates volumes in a directory of its own.
type Driver interface {
	Name() string
	Create(ctx context.Context, spec Spec) (Volume, error)
}

// Volume is a mounted encrypted file system.
type Volume interface {
	Path() string // where it is mounted
	Raw() string  // the file or directory on the host's disk that holds its bytes
	// Close unmounts and removes the key from memory. A volume with a random key is unreadable from then on, and removed.
	Close() error
}

var idPattern = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,63}$`)

func (s Spec) validate() error {
	switch {
	case !idPattern.MatchString(s.ID):
		return fmt.Errorf("volume id %q is not of the form %s", s.ID, idPattern)
	case s.Bytes < 16<<20:
		return fmt.Errorf("volume of %d bytes is too small, at least 16 MiB", s.Bytes)
	case len(s.Key) != 0 && len(s.Key) != KeySize:
		return fmt.Errorf("volume key has %d bytes, want %d", len(s.Key), KeySize)
	}
	return nil
}

func (s Spec) mode() os.FileMode {
	if s.Mode == 0 {
		return 0o755
	}
	return s.Mode
}

// randomKey returns a key that exists nowhere else.
func randomKey() []byte {
	key := make([]byte, KeySize)
	rand.Read(key)
	return key
}

// Cleanup removes what a killed process left below dir: mounts, their loop devices, and the files of volumes with a random key. Files of persistent
// volumes (named *.keep) stay. Call it before Choose. Idempotent.
func Cleanup(dir string) error {
	if err := UnmountBelow(dir); err != nil {
		return err
	}
	if err := detachLoops(dir); err != nil {
		return err
	}
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("listing volumes: %w", err)
	}
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".keep") {
			continue
		}
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return fmt.Errorf("removing stale volume: %w", err)
		}
	}
	return nil
}

// UnmountBelow unmounts everything at or below dir in this mount namespace, newest first. Mounts are detached, so a straggler that
// still holds a file cannot keep the tree.
func UnmountBelow(dir string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return fmt.Errorf("resolving mount directory: %w", err)
	}
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("reading mounts: %w", err)
	}
	var points []string
	for line := range strings.Lines(string(info)) {
		fields := strings.Fields(line)
		if len(fields) < 5 {
			continue
		}
		point := unescapeMount(fields[4])
		if point == dir || strings.HasPrefix(point, dir+"/") {
			points = append(points, point)
		}
	}
	sort.SliceStable(points, func(i, j int) bool { return len(points[i]) > len(points[j]) })
	for _, point := range points {
		if err := unix.Unmount(point, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("unmounting %s: %w", point, err)
		}
	}
	return nil
}

// unescapeMount undoes the octal escapes of proc_pid_mountinfo(5).
func unescapeMount(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// Contains tells whether needle occurs in the raw bytes below path, a file or a directory of files; holes of sparse files are skipped. It is how
// tests and the start-up self-test look at a volume from outside.
func Contains(path string, needle []byte) (bool, error) {
	found := false
	err := filepath.WalkDir(path, func(p string, d os.DirEntry, err error) error {
		if err != nil || found || !d.Type().IsRegular() {
			return err
		}
		f, err := os.Open(p)
		if err != nil {
			return err
		}
		defer f.Close()
		found, err = fileContains(f, needle)
		return err
	})
	return found, err
}

func fileContains(f *os.File, needle []byte) (bool, error) {
	const window = 1 << 20
	buf := make([]byte, window+len(needle))
	var end int64
	for pos := int64(0); ; {
		data, err := unix.Seek(int(f.Fd()), pos, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return false, nil
		}
		if err != nil {
			return false, fmt.Errorf("seeking data: %w", err)
		}
		if end, err = unix.Seek(int(f.Fd()), data, unix.SEEK_HOLE); err != nil {
			return false, fmt.Errorf("seeking hole: %w", err)
		}
		for pos = data; pos < end; pos += window {
			n, err := f.ReadAt(buf[:min(int64(len(buf)), end-pos)], pos)
			if strings.Contains(string(buf[:n]), string(needle)) {
				return true, nil
			}
			if err != nil && err != io.EOF {
				return false, err
			}
		}
		pos = end
	}
}
