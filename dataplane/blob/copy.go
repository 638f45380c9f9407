package blob

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"casemate.dev/resource"
	"casemate.dev/store"
)

// copied tells readers of a blob where its contents came from.
type copied struct {
	ID     string    `json:"id"`
	Source string    `json:"source"`
	Done   time.Time `json:"done"`
}

// source is a blob of the same account, the only thing that is ever copied from: this service opens no connections, so
// no URL can make it reach for something else.
type source struct {
	container, blob string
	cond            conditions
}

// parseSource reads x-ms-copy-source and asks whether the caller may read what it names.
func (s *Service) parseSource(c *call) (src source, err error) {
	const header = "x-ms-copy-source"
	u, err := url.Parse(c.Header.Get(header))
	if err != nil || !u.IsAbs() || u.User != nil || u.Fragment != "" || len(c.Header.Get(header)) > 2<<10 {
		return src, errHeader(header, "it must be the URL of a blob.")
	}
	host := c.Request.Request.Host
	if u.Scheme != "https" || !strings.EqualFold(u.Host, host) {
		return src, resource.NotSupported("Copying is supported within one account only: the source must begin with %s.", c.endpoint())
	}
	path := u.EscapedPath()
	if account := c.a.arm.Name(); !strings.HasPrefix(strings.ToLower(host), account+".") {
		// The account stands in the path instead (https://127.0.0.1/account/container/blob).
		var ok bool
		if path, ok = strings.CutPrefix(path, "/"+account+"/"); !ok {
			return src, resource.NotSupported("Copying is supported within one account only: the source must begin with %s%s/.", c.endpoint(), account)
		}
	}
	container, blob, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	if src.container, err = url.PathUnescape(container); err == nil {
		src.blob, err = url.PathUnescape(blob)
	}
	if err != nil || checkContainerName(src.container) != nil || checkBlobName(src.blob) != nil {
		return src, errHeader(header, "it must be the URL of a blob.")
	}
	q, err := url.ParseQuery(u.RawQuery)
	if snapshot := q.Get("snapshot"); err != nil || len(q) > 1 || (len(q) == 1 && checkSnapshot(snapshot) != nil) {
		return src, resource.NotSupported("The source of a copy may have the query parameter snapshot only; signatures and versions are not supported.")
	}
	if auth := c.Header.Get("x-ms-copy-source-authorization"); auth != "" && auth != c.Header.Get("Authorization") {
		return src, resource.NotSupported("The source of a copy is read with the rights of the caller; another authorization is not supported.")
	}
	if src.cond, err = sourceConditions(c.Header); err != nil {
		return src, err
	}
	src.cond.snapshot = q.Get("snapshot")
	c.Remember("source", src.container+"/"+src.blob)
	return src, s.permitIn(c, src.container, dataRead, resource.AuditData)
}

// sourceConditions are the conditional headers that speak of the source.
func sourceConditions(h http.Header) (conditions, error) {
	for _, name := range []string{"x-ms-source-if-tags", "x-ms-source-content-md5", "x-ms-source-content-crc64"} {
		if h.Get(name) != "" {
			return conditions{}, resource.NotSupported("The header %s is not supported.", name)
		}
	}
	if v := h.Get("x-ms-copy-source-tag-option"); v != "" && !strings.EqualFold(v, "REPLACE") {
		return conditions{}, resource.NotSupported("Copying tags is not supported; set them with x-ms-tags.")
	}
	own := http.Header{}
	for _, name := range []string{"If-Match", "If-None-Match", "If-Modified-Since", "If-Unmodified-Since"} {
		if v := h.Values("x-ms-source-" + name); len(v) > 0 {
			own[name] = v
		}
	}
	return parseConditions(own)
}

// openSource opens what is copied. release must be called.
func (s *Service) openSource(ctx context.Context, a *account, src source) (*reading, error) {
	rd, err := s.read(ctx, a, src.container, src.blob, src.cond)
	if status := resource.StatusOf(err); status == 412 || status == 304 {
		err = resource.Errorf(412, "SourceConditionNotMet", "The source condition specified using HTTP conditional header(s) is not met.")
	}
	return rd, err
}

// copyBlob makes a blob of the contents of another one. keepKind copies append and page blobs as such; otherwise the copy
// is a block blob.
func (s *Service) copyBlob(ctx context.Context, a *account, container, name string, src source, u upload, keepKind, headers bool, from *copied) (*blobRecord, error) {
	c, err := s.admit(ctx, a, container, name, u.cond)
	if err != nil {
		return nil, err
	}
	rd, err := s.openSource(ctx, a, src)
	defer rd.release()
	if err != nil {
		return nil, err
	}
	if !keepKind {
		if err := mustBe(blockBlob, rd.rec); err != nil {
			return nil, err
		}
	}
	if u.metadata == nil {
		u.metadata = rd.rec.Metadata
	}
	if headers && u.props.empty() {
		u.props = rd.rec.properties
	}
	rec := s.newRecord(u)
	rec.Size, rec.Kind, rec.Blocks, rec.Sequence, rec.Copied = rd.rec.Size, rd.rec.Kind, rd.rec.Blocks, rd.rec.Sequence, from
	body, objects, err := s.copyContent(ctx, a, c, rd)
	defer func() {
		for _, st := range objects {
			st.settle(err)
		}
		s.sweepSoon()
	}()
	if err != nil {
		return nil, err
	}
	err = s.updateSame(ctx, a, container, c, func(t store.Txn) error {
		old, err := a.blob(t, c, name)
		if err != nil {
			return err
		}
		if err := s.mayWrite(u.cond, old); err != nil {
			return err
		}
		rec.Lease = leaseAfter(old, rec.Modified)
		loose, err := a.forget(t, c, name)
		if err != nil {
			return err
		}
		for _, st := range objects {
			a.retain(t, c, st.part.Object)
		}
		return a.replace(t, c, name, old, rec, body, loose)
	})
	return rec, err
}

// copyContent copies every object into container c; what is returned must be settled, also after an error.
func (s *Service) copyContent(ctx context.Context, a *account, c string, rd *reading) (body content, objects []*staged, err error) {
	body.Inline = rd.content.Inline
	for _, p := range rd.content.Parts {
		if p.Object == "" {
			body.Parts = append(body.Parts, p)
			continue
		}
		r := newPipe(func(w io.Writer) error { return rd.copyPart(ctx, w, p, 0, p.Size) })
		st, err := s.stage(ctx, a, c, r, p.Size, &checksum{}, false)
		_ = r.Close()
		if err != nil {
			return body, objects, err
		}
		st.part.Block = p.Block
		objects = append(objects, st)
		body.Parts = append(body.Parts, st.part)
	}
	return body, objects, nil
}

// newPipe reads what write writes. It must be closed, which ends write.
func newPipe(write func(io.Writer) error) *io.PipeReader {
	pr, pw := io.Pipe()
	go func() { pw.CloseWithError(write(pw)) }()
	return pr
}

// copyFromURL is Copy Blob, and with x-ms-blob-type Put Blob From URL. Both are complete when they answer.
func copyFromURL(s *Service, c *call) error {
	kind := c.Header.Get("x-ms-blob-type")
	if kind != "" && kind != blockBlob {
		return errHeader("x-ms-blob-type", "Put Blob From URL makes block blobs only.")
	}
	u, err := c.upload(false)
	if err != nil {
		return err
	}
	src, err := s.parseSource(c)
	if err != nil {
		return err
	}
	if kind != "" {
		headers := !strings.EqualFold(c.Header.Get("x-ms-copy-source-blob-properties"), "false")
		rec, err := s.copyBlob(c.Context(), c.a, c.container, c.blob, src, u, false, headers, nil)
		if err != nil {
			return err
		}
		return c.changed(http.StatusCreated, rec.stamp)
	}
	from := &copied{ID: newLeaseID(), Source: c.Header.Get("x-ms-copy-source"), Done: s.now().UTC()}
	rec, err := s.copyBlob(c.Context(), c.a, c.container, c.blob, src, u, true, true, from)
	if err != nil {
		return err
	}
	c.w.Header().Set("x-ms-copy-id", from.ID)
	c.w.Header().Set("x-ms-copy-status", "success")
	return c.changed(http.StatusAccepted, rec.stamp)
}

// abortCopy finds nothing to abort: copies are complete when they are answered.
func abortCopy(s *Service, c *call) error {
	if _, err := s.stat(c.Context(), c.a, c.container, c.blob, conditions{lease: c.cond.lease}); err != nil {
		return err
	}
	return resource.Errorf(409, "NoPendingCopyOperation", "There is currently no pending copy operation.")
}

func putBlockFromURL(s *Service, c *call) error {
	id := c.URL.Query().Get("blockid")
	if err := checkBlockID(id); err != nil {
		return err
	}
	want := byteRange{}
	if v := c.Header.Get("x-ms-source-range"); v != "" {
		var err error
		if want, err = parseRange(http.Header{"X-Ms-Range": {v}}); err != nil {
			return err
		}
	}
	src, err := s.parseSource(c)
	if err != nil {
		return err
	}
	rd, err := s.openSource(c.Context(), c.a, src)
	defer rd.release()
	if err != nil {
		return err
	}
	off, n, err := want.resolve(rd.rec.Size)
	if err != nil {
		return err
	}
	if n == 0 || n > maxBlock {
		return errHeader("x-ms-source-range", "a block has 1 to %d bytes.", int64(maxBlock))
	}
	c.Remember("block", id)
	c.Remember("bytes", strconv.FormatInt(n, 10))
	sums := &checksum{useCRC: true}
	body := newPipe(func(w io.Writer) error { return rd.copyTo(c.Context(), w, off, n) })
	defer body.Close()
	if err := s.stageBlock(c.Context(), c.a, c.container, c.blob, id, c.cond, body, n, sums); err != nil {
		return err
	}
	sums.answer(c.w.Header())
	c.w.Header().Set("x-ms-request-server-encrypted", "true")
	return c.done(http.StatusCreated)
}

// setTier changes a block blob's access tier, which is a note only: all contents lie in one place.
func setTier(s *Service, c *call) error {
	if c.Header.Get("x-ms-access-tier") == "" {
		return errMissingHeader("x-ms-access-tier")
	}
	tier, err := parseTier(c.Header)
	if err != nil {
		return err
	}
	err = s.update(c.Context(), c.a, c.container, func(t store.Txn, cr *containerRecord) error {
		rec, err := c.a.blob(t, cr.ID, c.blob)
		if err != nil {
			return err
		}
		if rec == nil {
			return errBlobNotFound(c.blob)
		}
		if err := s.mayChange(c.cond, rec); err != nil {
			return err
		}
		if err := mustBe(blockBlob, rec); err != nil {
			return err
		}
		rec.Tier = tier
		return c.a.save(t, blobKey(c.a.id, cr.ID, c.blob), rec)
	})
	if err != nil {
		return err
	}
	return c.done(http.StatusOK)
}

// copiedFrom writes the headers that tell about a finished copy.
func (c *call) copiedFrom(rec *blobRecord) {
	if rec.Copied == nil {
		return
	}
	h, size := c.w.Header(), strconv.FormatInt(rec.Size, 10)
	h.Set("x-ms-copy-id", rec.Copied.ID)
	h.Set("x-ms-copy-source", rec.Copied.Source)
	h.Set("x-ms-copy-status", "success")
	h.Set("x-ms-copy-progress", size+"/"+size)
	h.Set("x-ms-copy-completion-time", httpTime(rec.Copied.Done))
}

// copiedFrom writes the elements that lists tell about a finished copy.
func (d *document) copiedFrom(rec *blobRecord) {
	if rec.Copied == nil {
		return
	}
	size := strconv.FormatInt(rec.Size, 10)
	d.elem("CopyId", rec.Copied.ID)
	d.elem("CopyStatus", "success")
	d.elem("CopySource", rec.Copied.Source)
	d.elem("CopyProgress", size+"/"+size)
	d.elem("CopyCompletionTime", httpTime(rec.Copied.Done))
}
