package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Fscrypt is the kernel driver: ext4 in a sparse file behind a loop device, one directory of it under an fscrypt v2 policy
// (Documentation/filesystems/fscrypt.rst). The key goes to the kernel by ioctl and is in no file, keyring or argument.
type Fscrypt struct {
	Dir string // required; exists with mode 0700, for this driver alone
}

// plainDir is the one entry of the ext4 root that volumes live in. Its name is legible; everything below is not.
const plainDir = "volume"

func (Fscrypt) Name() string { return "fscrypt" }

type fscryptVolume struct {
	image, mount string
	keep         bool // has a given key: the image outlives Close
	keyID        [16]byte
	closed       bool
}

func (v *fscryptVolume) Path() string { return filepath.Join(v.mount, plainDir) }
func (v *fscryptVolume) Raw() string  { return v.image }

// Create makes, or with a key opens, a volume.
func (d Fscrypt) Create(ctx context.Context, spec Spec) (_ Volume, err error) {
	if err := spec.validate(); err != nil {
		return nil, err
	}
	v := &fscryptVolume{
		image: filepath.Join(d.Dir, spec.ID+".img"),
		mount: filepath.Join(d.Dir, spec.ID+".mnt"),
		keep:  len(spec.Key) > 0,
	}
	key := spec.Key
	if v.keep {
		v.image += ".keep"
	} else {
		key = randomKey()
		defer clear(key)
	}
	exists := false
	if _, err := os.Stat(v.image); err == nil {
		if !v.keep {
			return nil, fmt.Errorf("volume %s exists", spec.ID)
		}
		exists = true
	}
	// A half-made image is removed whatever its kind; one that had existed stays, whatever fails.
	defer func() {
		if err != nil {
			err = errors.Join(err, v.release(!exists))
		}
	}()
	if !exists {
		if err := format(ctx, v.image, spec.Bytes, v.keep); err != nil {
			return nil, err
		}
	}
	if err := attachAndMount(v.image, v.mount); err != nil {
		return nil, err
	}
	if v.keyID, err = addKey(v.mount, key); err != nil {
		return nil, err
	}
	if err = checkPolicy(v.Path(), v.keyID); errors.Is(err, os.ErrNotExist) {
		err = protect(v.Path(), v.keyID, spec)
	}
	return v, err
}

// format makes the file system. Names of temporary images end differently until they are whole, so that a crash while formatting is not
// taken for a volume.
func format(ctx context.Context, image string, bytes int64, journal bool) error {
	partial := image + ".partial"
	f, err := os.OpenFile(partial, os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("creating volume image: %w", err)
	}
	err = errors.Join(f.Truncate(bytes), f.Close())
	if err != nil {
		return fmt.Errorf("sizing volume image: %w", err)
	}
	features := "encrypt,^has_journal,^resize_inode,sparse_super2"
	if journal {
		features = "encrypt,^resize_inode"
	}
	out, err := exec.CommandContext(ctx, "mkfs.ext4", "-q", "-F", "-O", features, "-b", "4096", "-m", "0", "-I", "256",
		"-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0", partial, strconv.FormatInt(bytes/1024, 10)+"k").CombinedOutput()
	if err != nil {
		return fmt.Errorf("formatting volume: %w: %.300s", err, out)
	}
	if err := os.Rename(partial, image); err != nil {
		return fmt.Errorf("naming volume image: %w", err)
	}
	return nil
}

// attachAndMount mounts the image through a loop device that frees itself with the mount, also when this process is killed.
func attachAndMount(image, mount string) error {
	if err := os.Mkdir(mount, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("creating mount point: %w", err)
	}
	dev, err := attachLoop(image)
	if err != nil {
		return err
	}
	defer dev.Close()
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOATIME
	if err := unix.Mount(dev.Name(), mount, "ext4", flags, ""); err != nil {
		return fmt.Errorf("mounting volume: %w", err)
	}
	// A bind of this mount must not appear elsewhere by propagation.
	if err := unix.Mount("", mount, "", unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making mount private: %w", err)
	}
	return nil
}

// addKeyArg is struct fscrypt_add_key_arg with its flexible raw[] at full length.
type addKeyArg struct {
	unix.FscryptAddKeyArg
	raw [KeySize]byte
}

func addKey(mount string, key []byte) (id [16]byte, err error) {
	arg := addKeyArg{FscryptAddKeyArg: unix.FscryptAddKeyArg{
		Key_spec: unix.FscryptKeySpecifier{Type: unix.FSCRYPT_KEY_SPEC_TYPE_IDENTIFIER},
		Raw_size: KeySize,
	}}
	copy(arg.raw[:], key)
	defer clear(arg.raw[:])
	if err := ioctl(mount, unix.FS_IOC_ADD_ENCRYPTION_KEY, unsafe.Pointer(&arg)); err != nil {
		return id, fmt.Errorf("giving the key to the kernel: %w", err)
	}
	copy(id[:], arg.Key_spec.U[:])
	return id, nil
}

// protect creates the encrypted directory. It gets its name last: a directory of that name without a policy is never our own crash.
func protect(final string, keyID [16]byte, spec Spec) error {
	dir := final + ".partial"
	if err := removeIfThere(dir); err != nil {
		return fmt.Errorf("removing a half-made directory: %w", err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return fmt.Errorf("creating encrypted directory: %w", err)
	}
	policy := unix.FscryptPolicyV2{
		Version:                   unix.FSCRYPT_POLICY_V2,
		Contents_encryption_mode:  unix.FSCRYPT_MODE_AES_256_XTS,
		Filenames_encryption_mode: unix.FSCRYPT_MODE_AES_256_CTS,
		Flags:                     unix.FSCRYPT_POLICY_FLAGS_PAD_32,
		Master_key_identifier:     keyID,
	}
	if err := ioctl(dir, unix.FS_IOC_SET_ENCRYPTION_POLICY, unsafe.Pointer(&policy)); err != nil {
		return fmt.Errorf("setting encryption policy: %w", err)
	}
	if err := errors.Join(os.Chown(dir, spec.UID, spec.GID), os.Chmod(dir, spec.mode())); err != nil {
		return fmt.Errorf("setting owner of volume: %w", err)
	}
	if err := os.Rename(dir, final); err != nil {
		return fmt.Errorf("naming encrypted directory: %w", err)
	}
	return nil
}

// policyArg is struct fscrypt_get_policy_ex_arg with a v2 policy.
type policyArg struct {
	size   uint64
	policy unix.FscryptPolicyV2
}

// checkPolicy refuses an existing volume that is not encrypted under this key: a swapped image must not take plaintext.
func checkPolicy(dir string, keyID [16]byte) error {
	arg := policyArg{size: uint64(unsafe.Sizeof(unix.FscryptPolicyV2{}))}
	if err := ioctl(dir, unix.FS_IOC_GET_ENCRYPTION_POLICY_EX, unsafe.Pointer(&arg)); err != nil {
		return fmt.Errorf("reading encryption policy: %w", err)
	}
	if arg.policy.Version != unix.FSCRYPT_POLICY_V2 || arg.policy.Master_key_identifier != keyID {
		return fmt.Errorf("volume %s is not encrypted under the given key", dir)
	}
	return nil
}

// Close takes the key from the kernel first, so that it is gone even if the unmount has to wait for a straggler.
func (v *fscryptVolume) Close() error {
	if v.closed {
		return nil
	}
	if err := Sync(v.mount); v.keep && err != nil {
		return err
	}
	arg := unix.FscryptRemoveKeyArg{Key_spec: unix.FscryptKeySpecifier{Type: unix.FSCRYPT_KEY_SPEC_TYPE_IDENTIFIER}}
	copy(arg.Key_spec.U[:], v.keyID[:])
	if err := ioctl(v.mount, unix.FS_IOC_REMOVE_ENCRYPTION_KEY, unsafe.Pointer(&arg)); err != nil && !errors.Is(err, unix.ENOKEY) && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("taking the key from the kernel: %w", err)
	}
	if err := v.release(!v.keep); err != nil {
		return err
	}
	v.closed = true
	return nil
}

// Discard deletes the image of a persistent volume that is not open.
func (d Fscrypt) Discard(id string) error {
	if !idPattern.MatchString(id) {
		return fmt.Errorf("volume id %q is not of the form %s", id, idPattern)
	}
	if err := removeIfThere(filepath.Join(d.Dir, id+".img.keep")); err != nil {
		return fmt.Errorf("removing volume: %w", err)
	}
	return nil
}

// release unmounts and, when remove is set, deletes the image. Safe on a half-made volume.
func (v *fscryptVolume) release(remove bool) error {
	if err := unmount(v.mount); err != nil {
		return err
	}
	err := os.Remove(v.mount)
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	if remove {
		err = errors.Join(err, removeIfThere(v.image), removeIfThere(v.image+".partial"))
	}
	if err != nil {
		return fmt.Errorf("removing volume: %w", err)
	}
	return nil
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// unmount waits a moment for the mount namespace of a node that has just died, then detaches.
func unmount(path string) error {
	for range 20 {
		err := unix.Unmount(path, unix.UMOUNT_NOFOLLOW)
		if err == nil || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("unmounting %s: %w", path, err)
		}
		time.Sleep(5 * time.Millisecond)
	}
	if err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
		return fmt.Errorf("detaching %s: %w", path, err)
	}
	return nil
}

func ioctl(path string, request uint, arg unsafe.Pointer) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), uintptr(request), uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}
