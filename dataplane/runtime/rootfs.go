package runtime

import (
	"errors"
	"fmt"
	"os"
	"strings"
)

// mountPoints must exist in every root file system, as directories or as files: it is mounted read-only, so nothing can be added later.
var mountPoints = []struct {
	path string
	dir  bool
}{
	{"proc", true}, {"dev", true}, {"sys", true}, {"run", true}, {"tmp", true}, {"work", true}, {"etc", true},
	{"etc/resolv.conf", false}, {"etc/hosts", false}, {"etc/hostname", false}, {"casemate-agent", false},
}

// PrepareRoot makes the mount points of a node in an unpacked image. What the image put there instead (a symbolic link above all: the
// runtime must never follow one out of the root, CVE-2025-31133) is removed first. /dev, /proc, /sys and /run are emptied: a node gets its own.
func PrepareRoot(root *os.Root) error {
	for _, p := range mountPoints {
		info, err := root.Lstat(p.path)
		switch {
		case err == nil && p.dir && info.IsDir() && !emptied(p.path), err == nil && !p.dir && info.Mode().IsRegular():
			continue
		case err == nil:
			if err := root.RemoveAll(p.path); err != nil {
				return fmt.Errorf("removing image's own %s: %w", p.path, err)
			}
		case !errors.Is(err, os.ErrNotExist):
			return fmt.Errorf("looking for %s in image: %w", p.path, err)
		}
		if p.dir {
			err = root.Mkdir(p.path, 0o755)
		} else {
			var f *os.File
			if f, err = root.OpenFile(p.path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644); err == nil {
				err = f.Close()
			}
		}
		if err != nil {
			return fmt.Errorf("making mount point %s: %w", p.path, err)
		}
	}
	return nil
}

func emptied(path string) bool { return strings.Contains(" proc dev sys run ", " "+path+" ") }
