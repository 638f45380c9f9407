package volume

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// FUSE is the driver for kernels without file system encryption: names, modes and links live in this process's memory, contents in sealed
// files named by number. It keeps nothing across a restart, by construction.
type FUSE struct {
	Dir string // required; exists with mode 0700, for this driver alone
}

func (FUSE) Name() string { return "fuse" }

type fuseVolume struct {
	raw, mount string
	server     *fuse.Server
}

func (v *fuseVolume) Path() string { return v.mount }
func (v *fuseVolume) Raw() string  { return v.raw }

// Create mounts an empty volume.
func (d FUSE) Create(_ context.Context, spec Spec) (Volume, error) {
	if err := spec.validate(); err != nil {
		return nil, err
	}
	if len(spec.Key) > 0 {
		return nil, ErrPersistent
	}
	v := &fuseVolume{raw: filepath.Join(d.Dir, spec.ID+".sealed"), mount: filepath.Join(d.Dir, spec.ID+".mnt")}
	for _, dir := range []string{v.raw, v.mount} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			return nil, fmt.Errorf("creating volume directory: %w", err)
		}
	}
	tree := &sealedTree{dir: v.raw, quota: &quota{limit: spec.Bytes / blockSize}}
	root := tree.newNode(syscall.S_IFDIR|uint32(spec.mode().Perm()), uint32(spec.UID), uint32(spec.GID))
	timeout := time.Minute
	server, err := fs.Mount(v.mount, root, &fs.Options{
		AttrTimeout: &timeout, EntryTimeout: &timeout,
		MountOptions: fuse.MountOptions{
			AllowOther: true, DirectMountStrict: true, DirectMountFlags: syscall.MS_NOSUID | syscall.MS_NODEV | syscall.MS_NOATIME,
			FsName: "casemate", Name: "casemate", MaxWrite: 1 << 20, IDMappedMount: true,
			Options: []string{"default_permissions"},
		},
	})
	if err != nil {
		err = fmt.Errorf("mounting sealed file system: %w", err)
		return nil, errors.Join(err, os.RemoveAll(v.raw), os.Remove(v.mount))
	}
	v.server = server
	return v, nil
}

func (v *fuseVolume) Close() error {
	if v.server == nil {
		return nil
	}
	if err := unmount(v.mount); err != nil {
		return err
	}
	v.server.Wait()
	v.server = nil
	if err := errors.Join(os.RemoveAll(v.raw), os.Remove(v.mount)); err != nil {
		return fmt.Errorf("removing sealed files: %w", err)
	}
	return nil
}

func isEOF(err error) bool { return errors.Is(err, io.EOF) }

// sealedTree is what all nodes of one volume share.
type sealedTree struct {
	dir   string
	quota *quota
	next  atomic.Int64
}

// sealedNode is one inode. The tree itself is kept by go-fuse (persistent inodes).
type sealedNode struct {
	fs.Inode
	tree *sealedTree

	mu     sync.Mutex // guards the fields below; never held while another node's is
	attr   fuse.Attr
	target string
	data   *sealedFile // regular files
	opens  int
}

func (t *sealedTree) newNode(mode, uid, gid uint32) *sealedNode {
	n := &sealedNode{tree: t}
	n.attr.Mode, n.attr.Owner, n.attr.Nlink = mode, fuse.Owner{Uid: uid, Gid: gid}, 1
	now := time.Now()
	n.attr.SetTimes(&now, &now, &now)
	return n
}

// add makes a child of n, owned by the caller.
func (n *sealedNode) add(ctx context.Context, name string, mode uint32, out *fuse.EntryOut) (*sealedNode, syscall.Errno) {
	caller, ok := fuse.FromContext(ctx)
	if !ok {
		return nil, syscall.EPERM
	}
	child := n.tree.newNode(mode, caller.Uid, caller.Gid)
	if mode&syscall.S_IFMT == syscall.S_IFREG {
		file, err := newSealedFile(filepath.Join(n.tree.dir, strconv.FormatInt(n.tree.next.Add(1), 10)), n.tree.quota)
		if err != nil {
			return nil, syscall.EIO
		}
		child.data = file
	}
	if n.GetChild(name) != nil {
		child.discard()
		return nil, syscall.EEXIST
	}
	// The server answers what NewPersistentInode returns by adding it to the tree under name.
	n.NewPersistentInode(ctx, child, fs.StableAttr{Mode: mode & syscall.S_IFMT})
	child.fill(&out.Attr)
	n.touch()
	return child, 0
}

func (n *sealedNode) touch() {
	n.mu.Lock()
	defer n.mu.Unlock()
	now := time.Now()
	n.attr.SetTimes(nil, &now, &now)
}

func (n *sealedNode) fill(out *fuse.Attr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	ino := out.Ino
	*out = n.attr
	out.Ino = ino
	out.Blksize = blockSize
	switch {
	case n.data != nil:
		out.Size = uint64(n.data.Size())
		out.Blocks = (out.Size + 511) / 512
	case n.target != "":
		out.Size = uint64(len(n.target))
	}
}

// discard frees the contents when no name and no open file is left.
func (n *sealedNode) discard() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.data != nil {
		_ = n.data.destroy() // the space is given back; a file that cannot be removed goes with the volume
		n.data = nil
	}
}

func errno(err error) syscall.Errno {
	switch {
	case err == nil:
		return 0
	case errors.Is(err, errNoSpace):
		return syscall.ENOSPC
	}
	if e := syscall.Errno(0); errors.As(err, &e) {
		return e
	}
	return syscall.EIO
}
