package image

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	goruntime "runtime"
	"strings"
)

// architecture of the images that this machine runs, in the words of the OCI image index.
const architecture = goruntime.GOARCH

var errTooLarge = errors.New("image is larger than allowed")

const (
	whiteout     = ".wh."         // OCI image layer, "Whiteouts"
	opaque       = ".wh..wh..opq" // hides all lower siblings
	maxPath      = 4096
	maxLinks     = 40 // like the kernel's limit on symbolic links in one path
	maxContainer = 65535
)

// unpacker applies layers to one root. Every path of an archive is resolved here, link by link inside the root, as it would be in the container;
// os.Root then refuses whatever this got wrong.
type unpacker struct {
	root        *os.Root
	bytesLeft   int64
	entriesLeft int
}

// apply unpacks one layer.
func (u *unpacker) apply(r io.Reader) error {
	archive := tar.NewReader(r)
	seen := map[string]bool{} // resolved paths made by this layer: an opaque whiteout spares them
	for {
		header, err := archive.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading archive: %w", err)
		}
		if u.entriesLeft--; u.entriesLeft < 0 {
			return errTooLarge
		}
		if err := u.entry(header, archive, seen); err != nil {
			return fmt.Errorf("entry %.200q: %w", header.Name, err)
		}
	}
}

func (u *unpacker) entry(h *tar.Header, content io.Reader, seen map[string]bool) error {
	clean, err := cleanName(h.Name)
	if err != nil || clean == "." {
		return err
	}
	dir, base := path.Split(clean)
	parent, err := u.resolve(path.Clean(dir), true)
	if err != nil {
		return err
	}
	if base == opaque {
		return u.clearBelow(parent, seen)
	}
	if hidden, ok := strings.CutPrefix(base, whiteout); ok {
		if hidden == "" || hidden == "." || hidden == ".." {
			return errors.New("whiteout of nothing")
		}
		return ignoreAbsent(u.root.RemoveAll(path.Join(parent, hidden)))
	}
	target := path.Join(parent, base)
	if err := u.make(h, content, target); err != nil {
		return err
	}
	for p := target; p != "." && !seen[p]; p = path.Dir(p) {
		seen[p] = true
	}
	return nil
}

// cleanName turns an archive's name into a relative path, and refuses one that climbs.
func cleanName(name string) (string, error) {
	if len(name) > maxPath || strings.ContainsRune(name, 0) {
		return "", errors.New("name is too long or holds a zero byte")
	}
	for _, part := range strings.Split(name, "/") {
		if part == ".." {
			return "", errors.New("name climbs above its directory")
		}
	}
	return path.Clean("./" + strings.TrimLeft(name, "/")), nil
}

// resolve follows symbolic links of a relative path inside the root; an absolute target starts again at the root, and ".." stops there. With
// make, missing directories are created, and one that is a file is an error.
func (u *unpacker) resolve(name string, create bool) (string, error) {
	rest := strings.Split(name, "/")
	at := "."
	for links := 0; len(rest) > 0; {
		part := rest[0]
		rest = rest[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			at = path.Dir(at)
			continue
		}
		next := path.Join(at, part)
		info, err := u.root.Lstat(next)
		switch {
		case errors.Is(err, fs.ErrNotExist) && create:
			if err := u.root.Mkdir(next, 0o755); err != nil {
				return "", fmt.Errorf("creating parent: %w", err)
			}
		case err != nil:
			return "", fmt.Errorf("resolving path: %w", err)
		case info.Mode()&fs.ModeSymlink != 0:
			if links++; links > maxLinks {
				return "", errors.New("too many symbolic links")
			}
			link, err := u.root.Readlink(next)
			if err != nil {
				return "", fmt.Errorf("reading link: %w", err)
			}
			if path.IsAbs(link) {
				at = "."
			}
			rest = append(strings.Split(link, "/"), rest...)
			continue
		case !info.IsDir():
			return "", errors.New("a parent is not a directory")
		}
		at = next
	}
	return at, nil
}

// make creates one entry at a resolved path, in place of what is there.
func (u *unpacker) make(h *tar.Header, content io.Reader, target string) error {
	info, err := u.root.Lstat(target)
	exists := err == nil
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("looking at path: %w", err)
	}
	if h.Typeflag == tar.TypeDir {
		if !exists || !info.IsDir() {
			if err := ignoreAbsent(u.root.RemoveAll(target)); err != nil {
				return err
			}
			if err := u.root.Mkdir(target, 0o755); err != nil {
				return fmt.Errorf("creating directory: %w", err)
			}
		}
		return u.setOwner(h, target)
	}
	var source string
	if h.Typeflag == tar.TypeLink {
		// Before anything is removed: a file may be linked to its own name.
		if source, err = u.linkSource(h.Linkname); err != nil || source == target {
			return err
		}
	}
	if exists {
		if err := u.root.RemoveAll(target); err != nil {
			return fmt.Errorf("replacing path: %w", err)
		}
	}
	switch h.Typeflag {
	case tar.TypeReg:
		return u.file(h, content, target)
	case tar.TypeSymlink:
		if len(h.Linkname) > maxPath || h.Linkname == "" {
			return errors.New("link target is empty or too long")
		}
		if err := u.root.Symlink(h.Linkname, target); err != nil {
			return fmt.Errorf("creating link: %w", err)
		}
		return nil
	case tar.TypeLink:
		if err := u.root.Link(source, target); err != nil {
			return fmt.Errorf("creating hard link: %w", err)
		}
		return nil
	}
	// Devices, pipes and whatever else: a node has its own /dev, and nothing else of the kind is of use in an image.
	return nil
}

// linkSource resolves a hard link's target to an existing regular file or link of this image.
func (u *unpacker) linkSource(name string) (string, error) {
	clean, err := cleanName(name)
	if err != nil {
		return "", err
	}
	parent, err := u.resolve(path.Dir(clean), false)
	if err != nil {
		return "", err
	}
	source := path.Join(parent, path.Base(clean))
	info, err := u.root.Lstat(source)
	if err != nil {
		return "", fmt.Errorf("finding link target: %w", err)
	}
	if info.IsDir() {
		return "", errors.New("hard link to a directory")
	}
	return source, nil
}

func (u *unpacker) file(h *tar.Header, content io.Reader, target string) error {
	if u.bytesLeft -= h.Size; h.Size < 0 || u.bytesLeft < 0 {
		return errTooLarge
	}
	f, err := u.root.OpenFile(target, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("creating file: %w", err)
	}
	_, err = io.Copy(f, content)
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("writing file: %w", err)
	}
	if err := u.setOwner(h, target); err != nil {
		return err
	}
	// Python trusts a compiled module only when the source's time matches, and cannot write a new one into a read-only image.
	if err := u.root.Chtimes(target, h.ModTime, h.ModTime); err != nil {
		return fmt.Errorf("setting time: %w", err)
	}
	return nil
}

// setOwner sets owner and plain permission bits: no set-uid, set-gid or sticky bit comes out of an image except /tmp-like
// directories' sticky bit. Owners beyond a node's range become nobody.
func (u *unpacker) setOwner(h *tar.Header, target string) error {
	clamp := func(id int) int {
		if id < 0 || id > maxContainer {
			return 65534
		}
		return id
	}
	if err := u.root.Lchown(target, clamp(h.Uid), clamp(h.Gid)); err != nil {
		return fmt.Errorf("setting owner: %w", err)
	}
	mode := fs.FileMode(h.Mode) & fs.ModePerm
	if h.Typeflag == tar.TypeDir && h.Mode&0o1000 != 0 {
		mode |= fs.ModeSticky
	}
	if err := u.root.Chmod(target, mode); err != nil {
		return fmt.Errorf("setting mode: %w", err)
	}
	return nil
}

// clearBelow removes what lower layers put into a directory.
func (u *unpacker) clearBelow(dir string, seen map[string]bool) error {
	f, err := u.root.Open(dir)
	if err != nil {
		return fmt.Errorf("opening directory: %w", err)
	}
	names, err := f.Readdirnames(-1)
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("listing directory: %w", err)
	}
	for _, n := range names {
		child := path.Join(dir, n)
		if !seen[child] {
			if err := ignoreAbsent(u.root.RemoveAll(child)); err != nil {
				return err
			}
			continue
		}
		if info, err := u.root.Lstat(child); err == nil && info.IsDir() {
			if err := u.clearBelow(child, seen); err != nil {
				return err
			}
		}
	}
	return nil
}

func ignoreAbsent(err error) error {
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return fmt.Errorf("removing path: %w", err)
}
