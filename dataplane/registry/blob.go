package registry

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/distribution/distribution/v3"
	storagedriver "github.com/distribution/distribution/v3/registry/storage/driver"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"casemate.dev/store"
)

// blobPath is where distribution keeps the content of a digest, for all repositories of a registry.
func blobPath(d digest.Digest) string {
	return "/docker/registry/v2/blobs/" + d.Algorithm().String() + "/" + d.Encoded()[:2] + "/" + d.Encoded()
}

// blobRef finds a blob that the repository holds. That another repository of the registry holds it does not count.
func (c *call) blobRef() (distribution.Repository, digest.Digest, v1.Descriptor, error) {
	var desc v1.Descriptor
	dgst, err := digest.Parse(c.target.ref)
	if err != nil {
		return nil, "", desc, errDigest("'%.140s' is not a digest.", c.target.ref)
	}
	ctx := c.r.Context()
	repo, err := c.one.repository(ctx, c.target.name)
	if err != nil {
		return nil, "", desc, err
	}
	desc, err = repo.Blobs(ctx).Stat(ctx, dgst)
	if errors.Is(err, distribution.ErrBlobUnknown) {
		err = errNoBlob(c.target.name, c.target.ref)
	}
	return repo, dgst, desc, err
}

// getBlob answers GET and HEAD of a blob, ranges included (OCI Distribution Specification, "Pulling blobs").
func getBlob(c *call) error {
	_, dgst, desc, err := c.blobRef()
	if err != nil {
		return err
	}
	h := c.w.Header()
	h.Set("Docker-Content-Digest", dgst.String())
	h.Set("ETag", `"`+dgst.String()+`"`)
	h.Set("Content-Type", "application/octet-stream")
	if c.r.Method == http.MethodHead {
		h.Set("Accept-Ranges", "bytes")
		h.Set("Content-Length", strconv.FormatInt(desc.Size, 10))
		c.w.WriteHeader(http.StatusOK)
		return nil
	}
	open, err := c.one.driver.content(c.r.Context(), blobPath(desc.Digest)+"/data")
	if err != nil {
		return err
	}
	defer func() { _ = open.Close() }() // read only
	body := &verified{content: open, want: desc.Digest, hash: desc.Digest.Algorithm().Hash()}
	http.ServeContent(c.w, c.r.Request, "", time.Time{}, body)
	return body.failed
}

// verified is a content that is hashed while it is read from beginning to end, and whose last bytes are given only when the
// digest is right. Reading ranges is not verified beyond the seal.
type verified struct {
	*content
	want   digest.Digest
	hash   hash.Hash
	hashed int64 // how far the hash has come
	failed error // what ended reading, but for io.EOF; net/http does not tell
}

func (v *verified) Read(p []byte) (int, error) {
	from := v.pos
	n, err := v.content.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		v.failed = err
	}
	if v.hashed != from {
		return n, err
	}
	v.hash.Write(p[:n])
	v.hashed += int64(n)
	if v.hashed == v.size && n > 0 && digest.NewDigest(v.want.Algorithm(), v.hash) != v.want {
		v.failed = fmt.Errorf("reading blob %s: %w", v.want, errMismatch)
		return 0, v.failed
	}
	return n, err
}

// deleteBlob takes a blob out of its repository, and from the disk when no other one holds it.
func deleteBlob(c *call) error {
	repo, dgst, desc, err := c.blobRef()
	if err != nil {
		return err
	}
	ctx := c.r.Context()
	c.one.gate.Lock()
	defer c.one.gate.Unlock()
	if err := repo.Blobs(ctx).Delete(ctx, dgst); err != nil {
		if errors.As(err, new(storagedriver.PathNotFoundError)) || errors.Is(err, distribution.ErrBlobUnknown) {
			return errNoBlob(c.target.name, c.target.ref)
		}
		return err
	}
	if err := c.one.collect(ctx, desc.Digest); err != nil {
		return err
	}
	c.w.WriteHeader(http.StatusAccepted)
	return nil
}

// releaseReferences takes the layers of a manifest that was deleted out of the repository, unless another of its manifests
// refers to them. The gate is locked.
func (c *call) releaseReferences(repo distribution.Repository, manifests distribution.ManifestService, gone distribution.Manifest, dgst digest.Digest) error {
	ctx := c.r.Context()
	free := map[digest.Digest]bool{}
	for _, ref := range gone.References() {
		free[ref.Digest] = true
	}
	all, ok := manifests.(distribution.ManifestEnumerator)
	if !ok {
		return errors.New("manifests cannot be enumerated")
	}
	err := all.Enumerate(ctx, func(other digest.Digest) error {
		m, err := manifests.Get(ctx, other)
		if err != nil {
			return err
		}
		for _, ref := range m.References() {
			delete(free, ref.Digest)
		}
		return nil
	})
	if err != nil && !errors.As(err, new(storagedriver.PathNotFoundError)) {
		return err
	}
	for ref := range free {
		err := repo.Blobs(ctx).Delete(ctx, ref)
		if errors.As(err, new(storagedriver.PathNotFoundError)) || errors.Is(err, distribution.ErrBlobUnknown) {
			continue // a manifest of an index, or not there any more
		}
		if err != nil {
			return err
		}
		if err := c.one.collect(ctx, ref); err != nil {
			return err
		}
	}
	return c.one.collect(ctx, dgst)
}

// collect removes the content of a digest to which no repository links any more. The gate is locked: nobody is between
// finding the content and linking to it.
func (o *one) collect(ctx context.Context, d digest.Digest) error {
	linked := false
	repositories := []string{"docker", "registry", "v2", "repositories"}
	err := o.driver.s.cfg.Store.View(ctx, func(r store.Reader) error {
		linked = false
		for kv, err := range r.Scan(o.driver.below(repositories), store.ScanOptions{KeysOnly: true}) {
			if err != nil {
				return err
			}
			parts, err := store.SplitKey(kv.Key)
			if err != nil {
				return err
			}
			if isLink(parts, d) {
				linked = true
				return nil
			}
		}
		return nil
	})
	if err != nil || linked {
		return err
	}
	err = o.driver.Delete(ctx, blobPath(d))
	if errors.As(err, new(storagedriver.PathNotFoundError)) {
		return nil
	}
	return err
}

// isLink says whether a file makes a repository hold a digest: …/_layers/{algorithm}/{hex}/link or
// …/_manifests/revisions/{algorithm}/{hex}/link.
func isLink(parts []string, d digest.Digest) bool {
	n := len(parts)
	if n < 5 || parts[n-1] != "link" || parts[n-2] != d.Encoded() || parts[n-3] != d.Algorithm().String() {
		return false
	}
	return parts[n-4] == "_layers" || parts[n-4] == "revisions" && parts[n-5] == "_manifests"
}
