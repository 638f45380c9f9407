package image

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"
)

// Options describe an image.
type Options struct {
	Tag          string            // name of the image in the layout's index, such as casemate/sklearn:1; required
	Architecture string            // GOARCH; required
	Created      time.Time         // default: the beginning of 1970
	Env          []string          // default: a PATH
	Labels       map[string]string // optional
}

// Pack writes an OCI image layout (OCI Image Format Specification 1.1, "Image Layout") with the tar as its one layer to
// the directory out, which must not exist, and returns the manifest's digest. out appears whole or not at all.
func Pack(rootfs io.Reader, out string, opt Options) (digest v1.Hash, err error) {
	if opt.Tag == "" || opt.Architecture == "" {
		return v1.Hash{}, errors.New("packing an image: tag and architecture are required")
	}
	if _, err := os.Lstat(out); err == nil {
		return v1.Hash{}, fmt.Errorf("packing an image: %s exists", out)
	}
	work, err := os.MkdirTemp(filepath.Dir(out), ".layout-*")
	if err != nil {
		return v1.Hash{}, fmt.Errorf("packing an image: %w", err)
	}
	defer func() { _ = os.RemoveAll(work) }() // gone when all went well
	p := packer{dir: work, opt: opt}
	if digest, err = p.pack(rootfs); err != nil {
		return v1.Hash{}, fmt.Errorf("packing an image: %w", err)
	}
	if err := os.Chmod(work, 0o755); err != nil {
		return v1.Hash{}, fmt.Errorf("packing an image: %w", err)
	}
	if err := os.Rename(work, out); err != nil {
		return v1.Hash{}, fmt.Errorf("packing an image: %w", err)
	}
	return digest, nil
}

type packer struct {
	dir string
	opt Options
}

func (p packer) pack(rootfs io.Reader) (v1.Hash, error) {
	if err := os.MkdirAll(p.blobs(), 0o755); err != nil {
		return v1.Hash{}, err
	}
	layer, diff, err := p.layer(rootfs)
	if err != nil {
		return v1.Hash{}, fmt.Errorf("writing layer: %w", err)
	}
	config, err := p.document(types.OCIConfigJSON, p.config(diff))
	if err != nil {
		return v1.Hash{}, err
	}
	manifest, err := p.document(types.OCIManifestSchema1, v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Config: config, Layers: []v1.Descriptor{layer}})
	if err != nil {
		return v1.Hash{}, err
	}
	manifest.Platform = &v1.Platform{OS: "linux", Architecture: p.opt.Architecture}
	manifest.Annotations = map[string]string{"org.opencontainers.image.ref.name": p.opt.Tag}
	index := v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{manifest}}
	if err := writeJSON(filepath.Join(p.dir, "oci-layout"), map[string]string{"imageLayoutVersion": "1.0.0"}); err != nil {
		return v1.Hash{}, err
	}
	return manifest.Digest, writeJSON(filepath.Join(p.dir, "index.json"), index)
}

func (p packer) blobs() string { return filepath.Join(p.dir, "blobs", "sha256") }

func (p packer) config(diff v1.Hash) v1.ConfigFile {
	created := p.opt.Created
	if created.IsZero() {
		created = time.Unix(0, 0)
	}
	env := p.opt.Env
	if len(env) == 0 {
		env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	}
	at := v1.Time{Time: created.UTC()}
	return v1.ConfigFile{
		Architecture: p.opt.Architecture, OS: "linux", Created: at,
		Config:  v1.Config{Env: env, Cmd: []string{"/bin/sh"}, Labels: p.opt.Labels},
		RootFS:  v1.RootFS{Type: "layers", DiffIDs: []v1.Hash{diff}},
		History: []v1.History{{Created: at, CreatedBy: "casemate image pack"}},
	}
}

// layer compresses the tar into a blob; diff is the digest of what it was.
func (p packer) layer(rootfs io.Reader) (desc v1.Descriptor, diff v1.Hash, err error) {
	f, err := os.CreateTemp(p.dir, "layer-*")
	if err != nil {
		return desc, diff, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	buffered := bufio.NewWriterSize(f, 1<<20)
	packed := &counted{w: buffered, h: sha256.New()}
	z, err := zstd.NewWriter(packed, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedDefault))
	if err != nil {
		return desc, diff, err
	}
	plain := sha256.New()
	if _, err := io.Copy(io.MultiWriter(plain, z), rootfs); err != nil {
		return desc, diff, err
	}
	if err := errors.Join(z.Close(), buffered.Flush(), f.Sync(), f.Chmod(0o644)); err != nil {
		return desc, diff, err
	}
	desc = v1.Descriptor{MediaType: types.OCILayerZStd, Size: packed.n, Digest: sum(packed.h)}
	return desc, sum(plain), os.Rename(f.Name(), filepath.Join(p.blobs(), desc.Digest.Hex))
}

type counted struct {
	w io.Writer
	h hash.Hash
	n int64
}

func (c *counted) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.h.Write(b[:n])
	c.n += int64(n)
	return n, err
}

func sum(h hash.Hash) v1.Hash {
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(h.Sum(nil))}
}

// document writes a JSON blob. encoding/json sorts maps, so that equal values are equal bytes.
func (p packer) document(mediaType types.MediaType, v any) (v1.Descriptor, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return v1.Descriptor{}, fmt.Errorf("encoding %s: %w", mediaType, err)
	}
	digest, size, err := v1.SHA256(bytes.NewReader(b))
	if err != nil {
		return v1.Descriptor{}, err
	}
	return v1.Descriptor{MediaType: mediaType, Size: size, Digest: digest}, os.WriteFile(filepath.Join(p.blobs(), digest.Hex), b, 0o644)
}

func writeJSON(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return os.WriteFile(path, b, 0o644)
}
