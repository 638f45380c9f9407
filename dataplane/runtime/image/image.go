// Package image keeps unpacked container images for nodes, on an encrypted volume.
//
// For whom: package oci mounts what Rootfs returns, read-only and id-mapped, so that one copy serves all nodes; providers Pull before
// they start a node. Images are kept by digest and verified: the manifest against its digest, each layer against its digest in the manifest and its
// uncompressed bytes against the configuration.
//
// Who may lie: the registry (digests are checked) and above all the image. An image is a list of file operations chosen by a stranger: unpacking resolves
// every path itself inside one os.Root, makes no device and no set-uid file, bounds sizes and counts, and treats labels and configuration as
// text. Nothing of it runs on the host.
//
// What it does not do: it decides neither who may pull (the caller brings transport and credentials) nor what runs. The volume is a cache: with a key from the caller
// it survives restarts, without one or when it cannot be opened it begins empty and images are pulled again.
package image

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/klauspost/compress/zstd"

	"casemate.dev/dataplane/runtime"
	"casemate.dev/dataplane/runtime/volume"
)

// KeySource gives the key of a named volume, at least 32 bytes, always the same ones for the same name.
type KeySource func(ctx context.Context, name string) ([]byte, error)

// Config of a Store.
type Config struct {
	Dir     string          // required: holds the encrypted volume
	Key     KeySource       // default: a random key that nobody keeps
	Bytes   int64           // size of the volume, sparse; default 64 GiB
	Drivers []volume.Driver // default fscrypt, then FUSE, below Dir
	Limits  Limits          // what one image may take
	Log     *slog.Logger    // default discards
}

// Limits bounds one image. Zero means the default.
type Limits struct {
	Bytes   int64 // uncompressed; default 24 GiB
	Entries int   // files, directories and links over all layers; default 2,000,000
	Layers  int   // default 128
}

// Image is an unpacked image.
type Image struct {
	Digest string   `json:"digest"` // of the manifest for this platform; what NodeSpec.Image wants
	Bytes  int64    `json:"bytes"`  // uncompressed
	Env    []string `json:"env"`    // of the image's configuration, for user code; never for the host
}

// Store keeps images.
type Store struct {
	volume volume.Volume
	limits Limits
	log    *slog.Logger

	mu      sync.Mutex // guards the fields below
	pulling map[string]chan struct{}
	inUse   map[string]int
}

// Open mounts the store's volume. Leftovers of a killed process must have been cleaned up: Open does so below Dir.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	if cfg.Bytes == 0 {
		cfg.Bytes = 64 << 30
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Limits.Bytes == 0 {
		cfg.Limits.Bytes = 24 << 30
	}
	if cfg.Limits.Entries == 0 {
		cfg.Limits.Entries = 2_000_000
	}
	if cfg.Limits.Layers == 0 {
		cfg.Limits.Layers = 128
	}
	dirs := []string{filepath.Join(cfg.Dir, "fscrypt"), filepath.Join(cfg.Dir, "fuse")}
	for _, dir := range dirs {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("creating image directory: %w", err)
		}
		if err := volume.Cleanup(dir); err != nil {
			return nil, fmt.Errorf("cleaning up images: %w", err)
		}
	}
	if cfg.Drivers == nil {
		cfg.Drivers = []volume.Driver{volume.Fscrypt{Dir: dirs[0]}, volume.FUSE{Dir: dirs[1]}}
	}
	v, err := openVolume(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("opening image volume: %w", err)
	}
	s := &Store{volume: v, limits: cfg.Limits, log: cfg.Log, pulling: map[string]chan struct{}{}, inUse: map[string]int{}}
	if err := s.layout(); err != nil {
		return nil, errors.Join(err, v.Close())
	}
	return s, nil
}

func openVolume(ctx context.Context, cfg Config) (volume.Volume, error) {
	spec := volume.Spec{ID: "images", Bytes: cfg.Bytes, Mode: 0o711}
	var reasons []error
	if cfg.Key != nil {
		secret, err := cfg.Key(ctx, "images")
		if err != nil {
			return nil, fmt.Errorf("getting image key: %w", err)
		}
		if spec.Key, err = hkdf.Key(sha256.New, secret, nil, "casemate image volume", volume.KeySize); err != nil || len(secret) < 32 {
			return nil, fmt.Errorf("image key has %d bytes, want at least 32 (%v)", len(secret), err)
		}
		defer clear(spec.Key)
	}
	for _, d := range cfg.Drivers {
		v, err := d.Create(ctx, spec)
		if errors.Is(err, volume.ErrPersistent) {
			cfg.Log.Warn("images will not survive a restart", "driver", d.Name())
			ephemeral := spec
			ephemeral.Key = nil
			v, err = d.Create(ctx, ephemeral)
		} else if err != nil && spec.Key != nil {
			// Only a cache is lost, and only what cannot be read.
			cfg.Log.Warn("image volume cannot be opened and begins anew", "driver", d.Name(), "error", err)
			if f, ok := d.(volume.Fscrypt); ok && f.Discard(spec.ID) == nil {
				v, err = d.Create(ctx, spec)
			}
		}
		if err == nil {
			return v, nil
		}
		reasons = append(reasons, fmt.Errorf("%s: %w", d.Name(), err))
	}
	return nil, errors.Join(reasons...)
}

func (s *Store) path(parts ...string) string {
	return filepath.Join(append([]string{s.volume.Path()}, parts...)...)
}

func (s *Store) layout() error {
	if err := os.RemoveAll(s.path("partial")); err != nil {
		return fmt.Errorf("removing half-unpacked images: %w", err)
	}
	for _, dir := range []string{"partial", "images", "aliases"} {
		if err := os.Mkdir(s.path(dir), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("creating image directory: %w", err)
		}
	}
	return nil
}

// Close unmounts the volume; no node may use it any more.
func (s *Store) Close() error { return s.volume.Close() }

// Raw is the file that holds the images' encrypted bytes.
func (s *Store) Raw() string { return s.volume.Raw() }

// Pull is what to pull and how.
type Pull struct {
	Reference string              // required: registry/repository:tag or @sha256:…
	Transport http.RoundTripper   // required: how registries are reached; it alone decides about networks and certificates
	Auth      authn.Authenticator // default anonymous
}

// Pull makes an image available and returns it. When its digest is here already, only the manifest is asked for, and it always is: the
// registry decides whether this caller may have the image, whoever brought it here (THREATS R28). Concurrent pulls of one image unpack once.
func (s *Store) Pull(ctx context.Context, p Pull) (Image, error) {
	ref, err := name.ParseReference(p.Reference, name.StrictValidation)
	if err != nil {
		return Image{}, fmt.Errorf("parsing image reference: %w", err)
	}
	auth := p.Auth
	if auth == nil {
		auth = authn.Anonymous
	}
	desc, err := remote.Get(ref, remote.WithContext(ctx), remote.WithAuth(auth), remote.WithTransport(secure{p.Transport}),
		remote.WithPlatform(v1.Platform{OS: "linux", Architecture: architecture}), remote.WithUserAgent("casemate"))
	if err != nil {
		return Image{}, fmt.Errorf("pulling image %s: %w", ref, refusal(err))
	}
	remoteImage, err := desc.Image()
	if err != nil {
		return Image{}, fmt.Errorf("reading manifest of %s: %w", ref, err)
	}
	digest, err := remoteImage.Digest()
	if err != nil {
		return Image{}, fmt.Errorf("reading digest of %s: %w", ref, err)
	}
	img, err := s.add(ctx, digest.String(), remoteImage)
	if err != nil {
		return Image{}, fmt.Errorf("unpacking image %s: %w", ref, err)
	}
	if desc.Digest != digest {
		if err := os.WriteFile(s.path("aliases", desc.Digest.Hex), []byte(digest.String()), 0o600); err != nil {
			return Image{}, fmt.Errorf("recording image index: %w", err)
		}
	}
	return img, nil
}

// ErrDenied is wrapped by Pull when the registry does not let the caller have the image.
var ErrDenied = errors.New("the registry refuses")

// refusal tells a registry's answers apart (OCI Distribution Specification 1.1, "Error Codes").
func refusal(err error) error {
	var e *transport.Error
	if errors.As(err, &e) {
		switch e.StatusCode {
		case http.StatusNotFound:
			return fmt.Errorf("%w: %w", runtime.ErrNoImage, err)
		case http.StatusUnauthorized, http.StatusForbidden:
			return fmt.Errorf("%w: %w", ErrDenied, err)
		}
	}
	return err
}

// Add unpacks an image that the caller has in hand.
func (s *Store) Add(ctx context.Context, img v1.Image) (Image, error) {
	digest, err := img.Digest()
	if err != nil {
		return Image{}, fmt.Errorf("reading digest: %w", err)
	}
	return s.add(ctx, digest.String(), img)
}

func (s *Store) add(ctx context.Context, digest string, img v1.Image) (Image, error) {
	unlock, err := s.lock(ctx, digest)
	if err != nil {
		return Image{}, err
	}
	defer unlock()
	if have, err := s.Get(digest); err == nil {
		return have, nil
	}
	dir, err := os.MkdirTemp(s.path("partial"), "")
	if err != nil {
		return Image{}, fmt.Errorf("creating image directory: %w", err)
	}
	defer os.RemoveAll(dir)
	made, err := s.unpack(ctx, dir, digest, img)
	if err != nil {
		return Image{}, err
	}
	if err := os.Rename(dir, s.path("images", hexOf(digest))); err != nil {
		return Image{}, fmt.Errorf("naming image: %w", err)
	}
	s.log.Info("image unpacked", "digest", digest, "bytes", made.Bytes)
	return made, nil
}

// unpack fills dir with root/ and, last, image.json.
func (s *Store) unpack(ctx context.Context, dir, digest string, img v1.Image) (Image, error) {
	manifest, err := img.Manifest()
	if err != nil {
		return Image{}, fmt.Errorf("reading manifest: %w", err)
	}
	if manifest.Config.Size > maxConfig { // it is read into memory, up to this size
		return Image{}, fmt.Errorf("configuration has %d bytes, at most %d are taken", manifest.Config.Size, maxConfig)
	}
	config, err := img.ConfigFile()
	if err != nil {
		return Image{}, fmt.Errorf("reading configuration: %w", err)
	}
	layers, err := img.Layers()
	if err != nil {
		return Image{}, fmt.Errorf("reading layers: %w", err)
	}
	if len(layers) > s.limits.Layers || len(layers) != len(config.RootFS.DiffIDs) {
		return Image{}, fmt.Errorf("image has %d layers and %d digests of them, at most %d are taken", len(layers), len(config.RootFS.DiffIDs), s.limits.Layers)
	}
	rootDir := filepath.Join(dir, "root")
	if err := os.Mkdir(rootDir, 0o755); err != nil {
		return Image{}, fmt.Errorf("creating root: %w", err)
	}
	root, err := os.OpenRoot(rootDir)
	if err != nil {
		return Image{}, fmt.Errorf("opening root: %w", err)
	}
	defer root.Close()
	u := &unpacker{root: root, bytesLeft: s.limits.Bytes, entriesLeft: s.limits.Entries}
	for i, layer := range layers {
		if err := applyLayer(ctx, u, layer, config.RootFS.DiffIDs[i]); err != nil {
			return Image{}, fmt.Errorf("layer %d: %w", i, err)
		}
	}
	if err := runtime.PrepareRoot(root); err != nil {
		return Image{}, err
	}
	made := Image{Digest: digest, Bytes: s.limits.Bytes - u.bytesLeft, Env: config.Config.Env}
	text, err := json.Marshal(made)
	if err != nil {
		return Image{}, fmt.Errorf("encoding image: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "image.json"), text, 0o600); err != nil {
		return Image{}, fmt.Errorf("writing image: %w", err)
	}
	return made, volume.Sync(dir)
}

const (
	maxConfig = 8 << 20   // bytes of an image's configuration
	maxWindow = 128 << 20 // bytes of a zstd window; "zstd --ultra --long" needs no more
)

// uncompressed opens a layer by its first bytes (RFC 1952, section 2.3.1; RFC 8878, section 3.1.1). The library would let the layer choose how much
// memory it takes to decompress it.
func uncompressed(compressed io.Reader) (io.ReadCloser, error) {
	in := bufio.NewReaderSize(compressed, 64<<10)
	head, err := in.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		return gzip.NewReader(in)
	case bytes.Equal(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(in, zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	}
	return io.NopCloser(in), nil
}

// applyLayer reads a layer to its end: only there are its digests known to hold.
func applyLayer(ctx context.Context, u *unpacker, layer v1.Layer, want v1.Hash) error {
	compressed, err := layer.Compressed()
	if err != nil {
		return fmt.Errorf("opening layer: %w", err)
	}
	defer compressed.Close()
	stream, err := uncompressed(compressed)
	if err != nil {
		return fmt.Errorf("opening layer: %w", err)
	}
	defer stream.Close()
	sum := sha256.New()
	tee := io.TeeReader(readerFunc(func(p []byte) (int, error) {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		return stream.Read(p)
	}), sum)
	if err := u.apply(tee); err != nil {
		return err
	}
	// What follows the archive's end counts as well, or it would be a way around the size limit.
	n, err := io.Copy(io.Discard, io.LimitReader(tee, u.bytesLeft+1))
	if err != nil {
		return fmt.Errorf("reading layer: %w", err)
	}
	if n > u.bytesLeft {
		return errTooLarge
	}
	if err := drain(compressed); err != nil {
		return err
	}
	if got := fmt.Sprintf("%x", sum.Sum(nil)); want.Algorithm != "sha256" || got != want.Hex {
		return fmt.Errorf("uncompressed bytes have digest sha256:%s, the configuration says %s", got, want)
	}
	return nil
}

// maxTail is what may follow the end of the compressed data in a layer.
const maxTail = 1 << 20

// drain reads to the end of a layer, where its digest is compared.
func drain(compressed io.Reader) error {
	n, err := io.Copy(io.Discard, io.LimitReader(compressed, maxTail+1))
	if err != nil {
		return fmt.Errorf("reading layer: %w", err)
	}
	if n > maxTail {
		return errors.New("layer goes on behind its compressed data")
	}
	return nil
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// secure refuses to speak anything but TLS: the registry library would fall back to plain HTTP for names like *.localhost.
type secure struct{ next http.RoundTripper }

func (s secure) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme != "https" {
		return nil, fmt.Errorf("refusing to speak %s to a registry", r.URL.Scheme)
	}
	return s.next.RoundTrip(r)
}

// lock serialises the work on one digest.
func (s *Store) lock(ctx context.Context, digest string) (unlock func(), err error) {
	s.mu.Lock()
	c, ok := s.pulling[digest]
	if !ok {
		c = make(chan struct{}, 1)
		s.pulling[digest] = c
	}
	s.mu.Unlock()
	select {
	case c <- struct{}{}:
		return func() { <-c }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func hexOf(digest string) string { return strings.TrimPrefix(digest, "sha256:") }

// Get returns an image that is here, by the digest of its manifest or of the index it was pulled by; else runtime.ErrNoImage.
func (s *Store) Get(digest string) (Image, error) {
	if h, err := v1.NewHash(digest); err != nil || h.Algorithm != "sha256" {
		return Image{}, fmt.Errorf("%q is not a sha256 digest", digest)
	}
	if target, err := os.ReadFile(s.path("aliases", hexOf(digest))); err == nil {
		digest = string(target)
	}
	text, err := os.ReadFile(s.path("images", hexOf(digest), "image.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return Image{}, fmt.Errorf("%w: %s", runtime.ErrNoImage, digest)
	}
	if err != nil {
		return Image{}, fmt.Errorf("reading image: %w", err)
	}
	var img Image
	if err := json.Unmarshal(text, &img); err != nil {
		return Image{}, fmt.Errorf("decoding image: %w", err)
	}
	return img, nil
}

// Rootfs implements oci.Images. The image stays until release is called.
func (s *Store) Rootfs(_ context.Context, digest string) (dir string, release func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	img, err := s.Get(digest)
	if err != nil {
		return "", nil, err
	}
	s.inUse[img.Digest]++
	release = sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.inUse[img.Digest]--; s.inUse[img.Digest] == 0 {
			delete(s.inUse, img.Digest)
		}
	})
	return s.path("images", hexOf(img.Digest), "root"), release, nil
}

// Collect removes images that no node uses and keep does not want, and returns how many.
func (s *Store) Collect(ctx context.Context, keep func(digest string) bool) (int, error) {
	entries, err := os.ReadDir(s.path("images"))
	if err != nil {
		return 0, fmt.Errorf("listing images: %w", err)
	}
	removed := 0
	for _, e := range entries {
		digest := "sha256:" + e.Name()
		if keep(digest) {
			continue
		}
		unlock, err := s.lock(ctx, digest)
		if err != nil {
			return removed, err
		}
		ok, err := s.retire(e.Name())
		unlock()
		if err != nil {
			return removed, err
		}
		if ok {
			removed++
		}
	}
	return removed, s.pruneAliases()
}

// retire moves an unused image out of sight under the lock that Rootfs takes, then deletes it at leisure.
func (s *Store) retire(hex string) (bool, error) {
	gone := s.path("partial", "gone-"+hex)
	s.mu.Lock()
	used := s.inUse["sha256:"+hex] > 0
	var err error
	if !used {
		err = os.Rename(s.path("images", hex), gone)
	}
	s.mu.Unlock()
	if used || errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err := errors.Join(err, os.RemoveAll(gone)); err != nil {
		return false, fmt.Errorf("removing image: %w", err)
	}
	return true, nil
}

func (s *Store) pruneAliases() error {
	entries, err := os.ReadDir(s.path("aliases"))
	if err != nil {
		return fmt.Errorf("listing image indexes: %w", err)
	}
	for _, e := range entries {
		if _, err := s.Get("sha256:" + e.Name()); errors.Is(err, runtime.ErrNoImage) {
			if err := os.Remove(s.path("aliases", e.Name())); err != nil {
				return fmt.Errorf("removing image index: %w", err)
			}
		}
	}
	return nil
}
