package volume

import (
	"context"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// The operations of a node, in the order of fuse(4). Permissions are the kernel's to check (default_permissions).
var (
	_ = (fs.NodeStatfser)((*sealedNode)(nil))
	_ = (fs.NodeGetattrer)((*sealedNode)(nil))
	_ = (fs.NodeSetattrer)((*sealedNode)(nil))
	_ = (fs.NodeMkdirer)((*sealedNode)(nil))
	_ = (fs.NodeMknoder)((*sealedNode)(nil))
	_ = (fs.NodeCreater)((*sealedNode)(nil))
	_ = (fs.NodeSymlinker)((*sealedNode)(nil))
	_ = (fs.NodeReadlinker)((*sealedNode)(nil))
	_ = (fs.NodeLinker)((*sealedNode)(nil))
	_ = (fs.NodeUnlinker)((*sealedNode)(nil))
	_ = (fs.NodeRmdirer)((*sealedNode)(nil))
	_ = (fs.NodeRenamer)((*sealedNode)(nil))
	_ = (fs.NodeOpener)((*sealedNode)(nil))
	_ = (fs.NodeReader)((*sealedNode)(nil))
	_ = (fs.NodeWriter)((*sealedNode)(nil))
	_ = (fs.NodeFsyncer)((*sealedNode)(nil))
	_ = (fs.NodeReleaser)((*sealedNode)(nil))
)

func (n *sealedNode) Statfs(_ context.Context, out *fuse.StatfsOut) syscall.Errno {
	q := n.tree.quota
	free := uint64(max(q.limit-q.used.Load(), 0))
	*out = fuse.StatfsOut{Blocks: uint64(q.limit), Bfree: free, Bavail: free, Files: 1 << 20, Ffree: 1 << 20, Bsize: blockSize, Frsize: blockSize, NameLen: 255}
	return 0
}

func (n *sealedNode) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	n.fill(&out.Attr)
	return 0
}

func (n *sealedNode) Setattr(_ context.Context, _ fs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	if size, ok := in.GetSize(); ok {
		if n.data == nil {
			return syscall.EINVAL
		}
		if err := n.data.Truncate(int64(size)); err != nil {
			return errno(err)
		}
		n.touch()
	}
	n.mu.Lock()
	if mode, ok := in.GetMode(); ok {
		n.attr.Mode = n.attr.Mode&syscall.S_IFMT | mode&07777
	}
	if uid, ok := in.GetUID(); ok {
		n.attr.Uid = uid
	}
	if gid, ok := in.GetGID(); ok {
		n.attr.Gid = gid
	}
	if at, ok := in.GetATime(); ok {
		n.attr.SetTimes(&at, nil, nil)
	}
	if mt, ok := in.GetMTime(); ok {
		n.attr.SetTimes(nil, &mt, nil)
	}
	now := time.Now()
	n.attr.SetTimes(nil, nil, &now)
	n.mu.Unlock()
	n.fill(&out.Attr)
	return 0
}

func (n *sealedNode) Mkdir(ctx context.Context, name string, mode uint32, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	return inode(n.add(ctx, name, syscall.S_IFDIR|mode&07777, out))
}

// Mknod makes files, pipes and sockets; a device node is refused whoever asks.
func (n *sealedNode) Mknod(ctx context.Context, name string, mode, _ uint32, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	switch mode & syscall.S_IFMT {
	case syscall.S_IFREG, syscall.S_IFIFO, syscall.S_IFSOCK:
		return inode(n.add(ctx, name, mode, out))
	}
	return nil, syscall.EPERM
}

func (n *sealedNode) Create(ctx context.Context, name string, _, mode uint32, out *fuse.EntryOut) (*fs.Inode, fs.FileHandle, uint32, syscall.Errno) {
	child, e := n.add(ctx, name, syscall.S_IFREG|mode&07777, out)
	if e != 0 {
		return nil, nil, 0, e
	}
	child.opens = 1 // nobody else can see the child yet
	return &child.Inode, openFile{}, fuse.FOPEN_KEEP_CACHE, 0
}

func (n *sealedNode) Symlink(ctx context.Context, target, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	child, e := n.add(ctx, name, syscall.S_IFLNK|0777, out)
	if e != 0 {
		return nil, e
	}
	child.mu.Lock()
	child.target = target
	child.mu.Unlock()
	child.fill(&out.Attr)
	return &child.Inode, 0
}

func inode(n *sealedNode, e syscall.Errno) (*fs.Inode, syscall.Errno) {
	if e != 0 {
		return nil, e
	}
	return &n.Inode, 0
}

func (n *sealedNode) Readlink(context.Context) ([]byte, syscall.Errno) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return []byte(n.target), 0
}

func (n *sealedNode) Link(_ context.Context, target fs.InodeEmbedder, _ string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	t, ok := target.(*sealedNode)
	if !ok {
		return nil, syscall.EXDEV
	}
	t.mu.Lock()
	t.attr.Nlink++
	t.mu.Unlock()
	t.fill(&out.Attr)
	n.touch()
	return &t.Inode, 0
}

func (n *sealedNode) Unlink(_ context.Context, name string) syscall.Errno {
	child := n.child(name)
	if child == nil {
		return syscall.ENOENT
	}
	child.unlinked()
	n.touch()
	return 0
}

func (n *sealedNode) Rmdir(_ context.Context, name string) syscall.Errno {
	child := n.child(name)
	if child == nil {
		return syscall.ENOENT
	}
	if len(child.Children()) > 0 {
		return syscall.ENOTEMPTY
	}
	n.touch()
	return 0
}

// Rename checks what the kernel does not; go-fuse moves the inode when it returns 0.
func (n *sealedNode) Rename(_ context.Context, name string, parent fs.InodeEmbedder, newName string, flags uint32) syscall.Errno {
	to, ok := parent.(*sealedNode)
	if !ok {
		return syscall.EXDEV
	}
	const noReplace, exchange = 1, 2 // renameat2(2)
	old := to.child(newName)
	switch {
	case n.child(name) == nil:
		return syscall.ENOENT
	case flags&^(noReplace|exchange) != 0:
		return syscall.EINVAL
	case old != nil && flags&noReplace != 0:
		return syscall.EEXIST
	case old == nil && flags&exchange != 0:
		return syscall.ENOENT
	case old != nil && flags&exchange == 0:
		if len(old.Children()) > 0 {
			return syscall.ENOTEMPTY
		}
		old.unlinked()
	}
	n.touch()
	to.touch()
	return 0
}

func (n *sealedNode) child(name string) *sealedNode {
	in := n.GetChild(name)
	if in == nil {
		return nil
	}
	child, _ := in.Operations().(*sealedNode)
	return child
}

// unlinked takes one name away.
func (n *sealedNode) unlinked() {
	n.mu.Lock()
	if n.attr.Nlink > 0 {
		n.attr.Nlink--
	}
	last := n.attr.Nlink == 0 && n.opens == 0
	n.mu.Unlock()
	if last {
		n.discard()
	}
}

// openFile is the handle of every open file; all state is the node's.
type openFile struct{}

func (n *sealedNode) Open(_ context.Context, _ uint32) (fs.FileHandle, uint32, syscall.Errno) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.data == nil {
		return nil, 0, syscall.ENXIO
	}
	n.opens++
	return openFile{}, fuse.FOPEN_KEEP_CACHE, 0
}

func (n *sealedNode) Release(context.Context, fs.FileHandle) syscall.Errno {
	n.mu.Lock()
	n.opens--
	last := n.attr.Nlink == 0 && n.opens == 0
	n.mu.Unlock()
	if last {
		n.discard()
	}
	return 0
}

func (n *sealedNode) Read(_ context.Context, _ fs.FileHandle, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	m, err := n.data.ReadAt(dest, off)
	if err != nil {
		return nil, errno(err)
	}
	return fuse.ReadResultData(dest[:m]), 0
}

func (n *sealedNode) Write(_ context.Context, _ fs.FileHandle, data []byte, off int64) (uint32, syscall.Errno) {
	m, err := n.data.WriteAt(data, off)
	n.touch()
	return uint32(m), errno(err)
}

// Fsync promises nothing across a crash: the key is gone then, with every name.
func (n *sealedNode) Fsync(context.Context, fs.FileHandle, uint32) syscall.Errno { return 0 }
