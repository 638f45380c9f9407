package envelope

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"casemate.dev/internal/durable"
)

// rootFilePrefix begins a root key file; 64 hexadecimal digits follow.
const rootFilePrefix = "casemate-root-key-1 "

// fileRoot keeps the root key in a file that only its owner can read.
type fileRoot struct {
	path string
	disk durable.FS
}

func (*fileRoot) Scheme() string { return "file" }

func (r *fileRoot) Wrap(_ context.Context, plain []byte) ([]byte, error) {
	k, err := r.read()
	if errors.Is(err, fs.ErrNotExist) {
		k, err = r.create()
	}
	if err != nil {
		return nil, err
	}
	defer k.zero()
	aead, err := k.deriveAEAD(nil, labelRoot)
	if err != nil {
		return nil, err
	}
	return aead.Seal(nil, nil, plain, nil), nil
}

func (r *fileRoot) Unwrap(_ context.Context, wrapped []byte) ([]byte, error) {
	k, err := r.read()
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("root key file %s is missing; restore it, without it nothing can be read: %w", r.path, err)
	}
	if err != nil {
		return nil, err
	}
	defer k.zero()
	aead, err := k.deriveAEAD(nil, labelRoot)
	if err != nil {
		return nil, err
	}
	plain, err := aead.Open(nil, nil, wrapped, nil)
	if err != nil {
		return nil, fmt.Errorf("%w: %s did not wrap this", ErrWrongRoot, r.path)
	}
	return plain, nil
}

func (r *fileRoot) read() (*key, error) {
	info, err := os.Stat(r.path)
	if err != nil {
		return nil, fmt.Errorf("reading the root key: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("root key file %s has mode %04o: others could read or replace it; set it to 0600", r.path, info.Mode().Perm())
	}
	text, err := os.ReadFile(r.path)
	if err != nil {
		return nil, fmt.Errorf("reading the root key: %w", err)
	}
	defer clear(text)
	digits, found := bytes.CutPrefix(bytes.TrimSpace(text), []byte(rootFilePrefix))
	raw := make([]byte, hex.DecodedLen(len(digits)))
	_, err = hex.Decode(raw, digits)
	k, ok := takeKey(raw)
	if !found || err != nil || !ok {
		return nil, fmt.Errorf("root key file %s is not a root key: want %q and 64 hexadecimal digits", r.path, rootFilePrefix)
	}
	return k, nil
}

// create makes the key file. If another process was faster, its key counts.
func (r *fileRoot) create() (*key, error) {
	if err := r.disk.MkdirAll(filepath.Dir(r.path), 0o700); err != nil {
		return nil, fmt.Errorf("creating the root key: %w", err)
	}
	k := newKey()
	text := fmt.Appendf(nil, "%s%x\n", rootFilePrefix, k.b[:])
	defer clear(text)
	err := createFile(r.disk, r.path, text)
	if errors.Is(err, fs.ErrExist) {
		k.zero()
		return r.read()
	}
	if err != nil {
		return nil, fmt.Errorf("creating the root key: %w", err)
	}
	return k, nil
}
