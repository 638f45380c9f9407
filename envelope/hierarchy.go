package envelope

import (
	"context"
	"crypto/cipher"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"casemate.dev/internal/durable"
)

const (
	hierarchyFormat = "casemate-hierarchy-1"
	hierarchyIDSize = 16
)

// Hierarchy is the opened top of the key hierarchy: the store key, above the
// files of the metadata store, and the master key, above the resource keys
// that are platform-managed and above the records of all of them.
type Hierarchy struct {
	files     *FileCipher
	resources cipher.AEAD // wraps platform-managed resource keys
	records   cipher.AEAD // seals key records
}

// hierarchyFile is DIR/keys/hierarchy.json. Wrapped is, under the root key, the
// hierarchy's ID (16 bytes), the store key (32) and the master key (32).
type hierarchyFile struct {
	Format  string `json:"format"`
	Root    string `json:"root"` // scheme of the root that wrapped it
	ID      string `json:"id"`
	Wrapped []byte `json:"wrapped"`
}

// OpenHierarchy opens the hierarchy below dir/keys with root, and makes it at
// the first start. Where one stands, it is opened or refused, never replaced:
// another root is ErrWrongRoot. After a crash at any point the next call
// succeeds.
func OpenHierarchy(ctx context.Context, dir string, root Root) (*Hierarchy, error) {
	return openHierarchy(ctx, durable.FS{}, dir, root)
}

func openHierarchy(ctx context.Context, disk durable.FS, dir string, root Root) (*Hierarchy, error) {
	path := filepath.Join(dir, "keys", "hierarchy.json")
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		err = createHierarchy(ctx, disk, path, root)
		if err == nil || errors.Is(err, fs.ErrExist) { // by us, or by a process that was faster
			text, err = os.ReadFile(path)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("opening the key hierarchy: %w", err)
	}
	h, err := unwrapHierarchy(ctx, text, root)
	if err != nil {
		return nil, fmt.Errorf("opening the key hierarchy %s: %w", path, err)
	}
	return h, nil
}

func createHierarchy(ctx context.Context, disk durable.FS, path string, root Root) error {
	plain := make([]byte, hierarchyIDSize+2*keySize)
	defer clear(plain)
	rand.Read(plain)
	wrapped, err := root.Wrap(ctx, plain)
	if err != nil {
		return err
	}
	text, err := json.MarshalIndent(hierarchyFile{
		Format: hierarchyFormat, Root: root.Scheme(),
		ID: hex.EncodeToString(plain[:hierarchyIDSize]), Wrapped: wrapped,
	}, "", "  ")
	if err != nil {
		return err
	}
	if err := disk.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	return createFile(disk, path, append(text, '\n'))
}

// createFile makes path hold data, mode 0600, durably, or not exist at all. It
// never replaces a file and then answers fs.ErrExist. A temporary file that a
// crash leaves holds keys that were never used.
func createFile(disk durable.FS, path string, data []byte) error {
	f, err := disk.CreateTemp(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer f.Discard()
	if _, err := f.Write(data); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return f.LinkTo(path)
}

func unwrapHierarchy(ctx context.Context, text []byte, root Root) (*Hierarchy, error) {
	var file hierarchyFile
	if err := json.Unmarshal(text, &file); err != nil {
		return nil, corrupt("reading it: %w", err)
	}
	if file.Format != hierarchyFormat {
		return nil, corrupt("its format is %q, not %q", file.Format, hierarchyFormat)
	}
	if file.Root != root.Scheme() {
		return nil, fmt.Errorf("%w: it was made with a %s root and is opened with a %s root", ErrWrongRoot, file.Root, root.Scheme())
	}
	plain, err := root.Unwrap(ctx, file.Wrapped)
	if err != nil {
		return nil, err
	}
	defer clear(plain)
	if len(plain) != hierarchyIDSize+2*keySize || hex.EncodeToString(plain[:hierarchyIDSize]) != file.ID {
		return nil, corrupt("the wrapped keys are not those of hierarchy %s", file.ID)
	}
	store, _ := takeKey(plain[hierarchyIDSize : hierarchyIDSize+keySize])
	master, _ := takeKey(plain[hierarchyIDSize+keySize:])
	defer store.zero()
	defer master.zero()
	return newHierarchy(store, master)
}

func newHierarchy(store, master *key) (*Hierarchy, error) {
	files, err := newFileCipher(store)
	if err != nil {
		return nil, err
	}
	resources, err := master.deriveAEAD(nil, labelResourceKey)
	if err != nil {
		return nil, err
	}
	records, err := master.deriveAEAD(nil, labelRecord)
	if err != nil {
		return nil, err
	}
	return &Hierarchy{files: files, resources: resources, records: records}, nil
}

// Files gives the cipher for the files of the metadata store.
func (h *Hierarchy) Files() *FileCipher { return h.files }
