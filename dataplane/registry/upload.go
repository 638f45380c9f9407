package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strconv"

	"github.com/distribution/distribution/v3"
	"github.com/distribution/distribution/v3/registry/storage"
	"github.com/distribution/reference"
	"github.com/google/uuid"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"casemate.dev/resource"
)

// errBody: the client's bytes ended before they should.
var errBody = errors.New("reading request body")

// startUpload begins an upload, mounts a blob of another repository, or takes a whole blob at once (OCI Distribution
// Specification, "Pushing blobs").
func startUpload(c *call) error {
	query := c.r.URL.Query()
	ctx := c.r.Context()
	repo, err := c.one.repository(ctx, c.target.name)
	if err != nil {
		return err
	}
	if query.Get("mount") != "" && query.Get("from") != "" {
		done, err := c.mount(repo, query.Get("mount"), query.Get("from"))
		if done || err != nil {
			return err
		}
	}
	upload, err := repo.Blobs(ctx).Create(ctx)
	if err != nil {
		return err
	}
	if query.Has("digest") {
		return c.complete(upload, query.Get("digest"))
	}
	return c.accepted(upload)
}

// mount links a blob of another repository, for which its caller needs the right to pull: that it may push here says
// nothing about what it may read there. Where that fails an upload begins instead, and says nothing.
func (c *call) mount(repo distribution.Repository, mount, from string) (done bool, err error) {
	dgst, err := digest.Parse(mount)
	if err != nil {
		return false, errDigest("'%.140s' is not a digest.", mount)
	}
	source, err := parseName(from)
	if err != nil {
		return false, err
	}
	ref, err := reference.WithDigest(source, dgst)
	if err != nil {
		return false, errName(from)
	}
	ctx := c.r.Context()
	finish, err := c.s.cfg.Inner.Enter(ctx, c.r.Caller, actPull, false, c.r.Resource, resource.AuditData)
	if err != nil {
		if resource.StatusOf(err) == http.StatusForbidden {
			return false, nil
		}
		return false, err
	}
	c.one.gate.RLock()
	defer c.one.gate.RUnlock()
	upload, err := repo.Blobs(ctx).Create(ctx, storage.WithMountFrom(ref))
	var mounted distribution.ErrBlobMounted
	if errors.As(err, &mounted) {
		finish(nil)
		c.r.Remember("mountedFrom", clip(from))
		return true, c.created(mounted.Descriptor)
	}
	finish(err)
	if err != nil {
		return false, err
	}
	return true, c.accepted(upload)
}

// resume opens the upload that the path names, alone.
func (c *call) resume() (distribution.BlobWriter, func(), error) {
	if _, err := uuid.Parse(c.target.ref); err != nil {
		return nil, nil, errNoUpload(c.target.ref)
	}
	leave, ok := c.s.busy.enter(c.one.driver.incarnation + "/" + c.target.ref)
	if !ok {
		return nil, nil, retry(errUpload(http.StatusConflict, "Another request is working on this upload. Try again when it has ended."))
	}
	ctx := c.r.Context()
	repo, err := c.one.repository(ctx, c.target.name)
	if err != nil {
		leave()
		return nil, nil, err
	}
	upload, err := repo.Blobs(ctx).Resume(ctx, c.target.ref)
	if err != nil {
		leave()
		if errors.Is(err, distribution.ErrBlobUploadUnknown) {
			err = errNoUpload(c.target.ref)
		}
		return nil, nil, err
	}
	return upload, leave, nil
}

// getUpload says how far an upload has come.
func getUpload(c *call) error {
	upload, leave, err := c.resume()
	if err != nil {
		return err
	}
	defer leave()
	c.position(upload)
	c.w.WriteHeader(http.StatusNoContent)
	return upload.Close()
}

// patchUpload adds a chunk. What arrived before the connection broke stays: the client asks and goes on.
func patchUpload(c *call) error {
	upload, leave, err := c.resume()
	if err != nil {
		return err
	}
	defer leave()
	if err := c.receive(upload); err != nil {
		return errors.Join(err, upload.Close())
	}
	return c.accepted(upload)
}

// finishUpload adds the last chunk, if there is one, and makes a blob of it all.
func finishUpload(c *call) error {
	upload, leave, err := c.resume()
	if err != nil {
		return err
	}
	defer leave()
	return c.complete(upload, c.r.URL.Query().Get("digest"))
}

// cancelUpload forgets an upload.
func cancelUpload(c *call) error {
	upload, leave, err := c.resume()
	if err != nil {
		return err
	}
	defer leave()
	if err := upload.Cancel(c.r.Context()); err != nil {
		return err
	}
	c.w.WriteHeader(http.StatusNoContent)
	return nil
}

var contentRange = regexp.MustCompile(`^([0-9]{1,18})-([0-9]{1,18})$`)

// receive copies the request's body to the upload; Content-Range, if given, must continue it.
func (c *call) receive(upload distribution.BlobWriter) error {
	if cr := c.r.Header.Get("Content-Range"); cr != "" {
		m := contentRange.FindStringSubmatch(cr)
		if m == nil {
			return errUpload(http.StatusBadRequest, "The Content-Range of a chunk reads first-last, as in 0-1023.")
		}
		first, _ := strconv.ParseInt(m[1], 10, 64) // the pattern bounds it
		last, _ := strconv.ParseInt(m[2], 10, 64)
		if first != upload.Size() || last < first {
			c.position(upload)
			return errUpload(http.StatusRequestedRangeNotSatisfiable, "The upload has %d bytes; the next chunk must begin there.", upload.Size())
		}
		if n := c.r.ContentLength; n >= 0 && n != last-first+1 {
			return resource.Errorf(http.StatusBadRequest, "SIZE_INVALID", "The Content-Range covers %d bytes and the Content-Length is %d.", last-first+1, n)
		}
	}
	n, err := io.Copy(upload, bodyReader{c.r.Body})
	if err == nil && c.r.ContentLength >= 0 && n != c.r.ContentLength {
		err = errBody
	}
	return err
}

// bodyReader marks the errors of a request body, to tell them from those of the disk.
type bodyReader struct{ io.Reader }

func (b bodyReader) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = fmt.Errorf("%w: %w", errBody, err)
	}
	return n, err
}

// complete receives the last bytes, compares the digest and links the blob. An upload with wrong bytes ends.
func (c *call) complete(upload distribution.BlobWriter, want string) error {
	dgst, err := digest.Parse(want)
	if err != nil {
		return errors.Join(errDigest("The query parameter digest is missing or is not a digest."), upload.Close())
	}
	if err := c.receive(upload); err != nil {
		return errors.Join(err, upload.Close())
	}
	ctx := c.r.Context()
	c.one.gate.RLock()
	defer c.one.gate.RUnlock()
	desc, err := upload.Commit(ctx, v1.Descriptor{Digest: dgst})
	if err == nil {
		return c.created(v1.Descriptor{Digest: dgst, Size: desc.Size})
	}
	// A failed commit leaves nothing that could be trusted. The request's own time may be over by now.
	if cancel := upload.Cancel(context.WithoutCancel(ctx)); cancel != nil {
		c.s.cfg.Log.Warn("cancelling an upload", "error", cancel)
	}
	switch {
	case errors.As(err, new(distribution.ErrBlobInvalidDigest)):
		return errDigest("What was uploaded does not have the digest %s.", dgst)
	case errors.Is(err, distribution.ErrBlobInvalidLength):
		return errUpload(http.StatusBadRequest, "The length of the upload is not the one that was stored.")
	case errors.Is(err, distribution.ErrBlobDigestUnsupported):
		return errDigest("The algorithm of the digest %s is not supported.", dgst)
	}
	return err
}

// accepted stores what has arrived and says where to go on.
func (c *call) accepted(upload distribution.BlobWriter) error {
	if err := upload.Close(); err != nil {
		return err
	}
	c.position(upload)
	c.w.Header().Set("Content-Length", "0")
	c.w.WriteHeader(http.StatusAccepted)
	return nil
}

// position sets the headers that describe an upload. Range is "0-0" also for an upload without bytes, as docker wants it.
func (c *call) position(upload distribution.BlobWriter) {
	h := c.w.Header()
	h.Set("Location", "/v2/"+c.target.name+"/blobs/uploads/"+upload.ID())
	h.Set("Range", fmt.Sprintf("0-%d", max(upload.Size()-1, 0)))
	h.Set("Docker-Upload-UUID", upload.ID())
}

func (c *call) created(desc v1.Descriptor) error {
	h := c.w.Header()
	h.Set("Location", "/v2/"+c.target.name+"/blobs/"+desc.Digest.String())
	h.Set("Docker-Content-Digest", desc.Digest.String())
	h.Set("Content-Length", "0")
	c.w.WriteHeader(http.StatusCreated)
	return nil
}
