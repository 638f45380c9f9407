package registry

import (
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strconv"

	"github.com/distribution/distribution/v3"
	storagedriver "github.com/distribution/distribution/v3/registry/storage/driver"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"casemate.dev/resource"
)

// open gives the repository and its manifests.
func (c *call) open() (distribution.Repository, distribution.ManifestService, error) {
	repo, err := c.one.repository(c.r.Context(), c.target.name)
	if err != nil {
		return nil, nil, err
	}
	m, err := repo.Manifests(c.r.Context())
	return repo, m, err
}

// manifestRef reads the reference of a manifest: a digest, or a tag.
func (c *call) manifestRef() (tag string, dgst digest.Digest, err error) {
	ref := c.target.ref
	if d, err := digest.Parse(ref); err == nil {
		return "", d, nil
	}
	if len(ref) > 128 || reference.TagRegexp.FindString(ref) != ref || ref == "" {
		return "", "", resource.Errorf(http.StatusBadRequest, "MANIFEST_INVALID", "'%.140s' is neither a tag nor a digest.", ref)
	}
	return ref, "", nil
}

// getManifest answers GET and HEAD of a manifest.
func getManifest(c *call) error {
	tag, dgst, err := c.manifestRef()
	if err != nil {
		return err
	}
	repo, manifests, err := c.open()
	if err != nil {
		return err
	}
	ctx := c.r.Context()
	if tag != "" {
		desc, err := repo.Tags(ctx).Get(ctx, tag)
		if errors.As(err, new(distribution.ErrTagUnknown)) {
			return errNoManifest(c.target.name, tag)
		}
		if err != nil {
			return err
		}
		dgst = desc.Digest
	}
	m, err := manifests.Get(ctx, dgst)
	if errors.As(err, new(distribution.ErrManifestUnknownRevision)) || errors.Is(err, distribution.ErrBlobUnknown) {
		return errNoManifest(c.target.name, c.target.ref)
	}
	if err != nil {
		return err
	}
	mediaType, payload, err := m.Payload()
	if err != nil {
		return err
	}
	if dgst.Algorithm().FromBytes(payload) != dgst {
		return fmt.Errorf("reading manifest %s: %w", dgst, errMismatch)
	}
	c.r.Remember("digest", dgst.String())
	h := c.w.Header()
	h.Set("Docker-Content-Digest", dgst.String())
	h.Set("ETag", `"`+dgst.String()+`"`)
	if c.r.Header.Get("If-None-Match") == `"`+dgst.String()+`"` {
		c.w.WriteHeader(http.StatusNotModified)
		return nil
	}
	h.Set("Content-Type", mediaType)
	h.Set("Content-Length", strconv.Itoa(len(payload)))
	c.w.WriteHeader(http.StatusOK)
	if c.r.Method == http.MethodHead {
		return nil
	}
	_, err = c.w.Write(payload)
	return err
}

// putManifest stores a manifest whose references its repository holds, and sets a tag to it.
func putManifest(c *call) error {
	tag, want, err := c.manifestRef()
	if err != nil {
		return err
	}
	repo, manifests, err := c.open()
	if err != nil {
		return err
	}
	payload, err := io.ReadAll(io.LimitReader(c.r.Body, maxManifest+1))
	switch {
	case err != nil:
		return fmt.Errorf("%w: %w", errBody, err)
	case len(payload) > maxManifest:
		return resource.Errorf(http.StatusRequestEntityTooLarge, "SIZE_INVALID", "The manifest is larger than %d bytes.", maxManifest)
	}
	mediaType, _, err := mime.ParseMediaType(c.r.Header.Get("Content-Type"))
	if err != nil {
		return errManifest("The Content-Type of the manifest is missing or malformed.")
	}
	m, desc, err := distribution.UnmarshalManifest(mediaType, payload)
	if err != nil {
		return errManifest("The manifest cannot be read as %s, or its type is not supported.", mediaType).WithCause(err)
	}
	if want != "" && want.Algorithm().FromBytes(payload) != want {
		return errDigest("The manifest does not have the digest %s.", want)
	}
	if want != "" && want != desc.Digest {
		return errDigest("Manifests are kept by their sha256 digest, which is %s.", desc.Digest)
	}
	ctx := c.r.Context()
	c.one.gate.RLock()
	defer c.one.gate.RUnlock()
	if _, err := manifests.Put(ctx, m); err != nil {
		return manifestError(err)
	}
	if tag != "" {
		if err := repo.Tags(ctx).Tag(ctx, tag, desc); err != nil {
			return err
		}
	}
	c.r.Remember("digest", desc.Digest.String())
	c.w.Header().Set("Location", "/v2/"+c.target.name+"/manifests/"+desc.Digest.String())
	c.w.Header().Set("Docker-Content-Digest", desc.Digest.String())
	c.w.WriteHeader(http.StatusCreated)
	return nil
}

// manifestError says why a manifest was not taken.
func manifestError(err error) error {
	var list distribution.ErrManifestVerification
	if !errors.As(err, &list) {
		return err
	}
	for _, one := range list {
		var unknown distribution.ErrManifestBlobUnknown
		if errors.As(one, &unknown) {
			return resource.Errorf(http.StatusBadRequest, "MANIFEST_BLOB_UNKNOWN", "The manifest refers to '%s', which the repository does not hold. Push it first.", unknown.Digest)
		}
	}
	for _, one := range list {
		if !isVerification(one) {
			return flatten(err) // not the manifest's fault
		}
	}
	return errManifest("The manifest is not valid: %s", list.Error())
}

// isVerification says whether an error in distribution's list is about the manifest.
func isVerification(err error) bool {
	var unverified distribution.ErrManifestUnverified
	var name distribution.ErrManifestNameInvalid
	return errors.As(err, &unverified) || errors.As(err, &name) || err.Error() == "invalid URL on layer" || errors.Is(err, digest.ErrDigestInvalidFormat)
}

// deleteManifest removes a tag, or a manifest with all tags that point to it and all layers that only it refers to.
func deleteManifest(c *call) error {
	tag, dgst, err := c.manifestRef()
	if err != nil {
		return err
	}
	repo, manifests, err := c.open()
	if err != nil {
		return err
	}
	ctx := c.r.Context()
	if tag != "" {
		err := repo.Tags(ctx).Untag(ctx, tag)
		if errors.As(err, new(storagedriver.PathNotFoundError)) || errors.As(err, new(distribution.ErrTagUnknown)) {
			return errNoManifest(c.target.name, tag)
		}
		if err != nil {
			return err
		}
		c.w.WriteHeader(http.StatusAccepted)
		return nil
	}
	c.one.gate.Lock()
	defer c.one.gate.Unlock()
	m, err := manifests.Get(ctx, dgst)
	if errors.As(err, new(distribution.ErrManifestUnknownRevision)) || errors.Is(err, distribution.ErrBlobUnknown) {
		return errNoManifest(c.target.name, dgst.String())
	}
	if err != nil {
		return err
	}
	if err := manifests.Delete(ctx, dgst); err != nil {
		return err
	}
	tags, err := repo.Tags(ctx).Lookup(ctx, v1.Descriptor{Digest: dgst})
	if err != nil {
		return err
	}
	for _, t := range tags {
		if err := repo.Tags(ctx).Untag(ctx, t); err != nil && !errors.As(err, new(storagedriver.PathNotFoundError)) {
			return err
		}
	}
	if err := c.releaseReferences(repo, manifests, m, dgst); err != nil {
		return err
	}
	c.w.WriteHeader(http.StatusAccepted)
	return nil
}
