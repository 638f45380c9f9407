package blob

import (
	"bytes"
	"encoding/base64"
	"hash/crc64"
	"net/http"
	"strconv"
	"strings"

	"casemate.dev/resource"
)

func contentType(rec *blobRecord) string {
	if rec.ContentType == "" {
		return "application/octet-stream"
	}
	return rec.ContentType
}

// tierOf is the access tier, which block blobs have; inferred means that the blob has none of its own.
func tierOf(rec *blobRecord) (tier string, inferred bool) {
	if rec.kind() != blockBlob {
		return "", false
	}
	if rec.Tier == "" {
		return "Hot", true
	}
	return rec.Tier, false
}

// bodySize demands Content-Length, which says how much to expect and makes a body that was cut short an error.
func (c *call) bodySize(most int64) (int64, error) {
	switch n := c.ContentLength; {
	case n < 0:
		return 0, resource.Errorf(411, "MissingContentLengthHeader", "Content-Length HTTP header is missing.")
	case n > most:
		return 0, resource.Errorf(413, "RequestBodyTooLarge", "The request body has %d bytes; this operation accepts at most %d.", n, most)
	default:
		return n, nil
	}
}

// head reads what Put Blob and Put Block List have in common.
func (c *call) upload(fallback bool) (u upload, err error) {
	u.cond = c.cond
	if u.metadata, err = parseMetadata(c.Header); err != nil {
		return u, err
	}
	if u.props, err = parseProperties(c.Header, fallback); err != nil {
		return u, err
	}
	if u.tags, err = parseTagHeader(c.Header.Get("x-ms-tags")); err != nil {
		return u, err
	}
	u.tier, err = parseTier(c.Header)
	return u, err
}

func putBlob(s *Service, c *call) error {
	switch kind := c.Header.Get("x-ms-blob-type"); kind {
	case "":
		return errMissingHeader("x-ms-blob-type")
	case blockBlob:
	case appendBlob, pageBlob:
		return createBlob(s, c, kind)
	default:
		return errHeader("x-ms-blob-type", "'%.40s' is not a blob type.", kind)
	}
	size, err := c.bodySize(maxPut)
	if err != nil {
		return err
	}
	u, err := c.upload(true)
	if err != nil {
		return err
	}
	u.body, u.size = c.Body, size
	if u.sums, err = newChecksum(c.Header, size, true); err != nil {
		return err
	}
	c.Remember("bytes", strconv.FormatInt(size, 10))
	rec, err := s.put(c.Context(), c.a, c.container, c.blob, u)
	if err != nil {
		return err
	}
	u.sums.answer(c.w.Header())
	return c.changed(http.StatusCreated, rec.stamp)
}

func putBlock(s *Service, c *call) error {
	id := c.URL.Query().Get("blockid")
	if id == "" {
		return resource.Errorf(400, "MissingRequiredQueryParameter", "A required query parameter was not specified for this request: blockid.").WithTarget("blockid")
	}
	if err := checkBlockID(id); err != nil {
		return err
	}
	size, err := c.bodySize(maxBlock)
	if err != nil {
		return err
	}
	if size == 0 {
		return errHeader("Content-Length", "a block may not be empty.")
	}
	sums, err := newChecksum(c.Header, size, false)
	if err != nil {
		return err
	}
	c.Remember("block", id)
	c.Remember("bytes", strconv.FormatInt(size, 10))
	if err := s.stageBlock(c.Context(), c.a, c.container, c.blob, id, c.cond, c.Body, size, sums); err != nil {
		return err
	}
	sums.answer(c.w.Header())
	c.w.Header().Set("x-ms-request-server-encrypted", "true")
	return c.done(http.StatusCreated)
}

func putBlockList(s *Service, c *call) error {
	u, err := c.upload(false)
	if err != nil {
		return err
	}
	// Content-MD5 and x-ms-content-crc64 speak of the list here, x-ms-blob-content-md5 of the blob, unchecked.
	if u.sums, err = newChecksum(c.Header, c.ContentLength, false); err != nil {
		return err
	}
	body, err := c.ReadBody()
	if err != nil {
		return err
	}
	u.sums.write(body)
	if err := u.sums.verify(); err != nil {
		return err
	}
	list, err := parseBlockList(body)
	if err != nil {
		return err
	}
	rec, err := s.commit(c.Context(), c.a, c.container, c.blob, list, u)
	if err != nil {
		return err
	}
	c.Remember("bytes", strconv.FormatInt(rec.Size, 10))
	u.sums.answer(c.w.Header())
	return c.changed(http.StatusCreated, rec.stamp)
}

func getBlockList(s *Service, c *call) error {
	kind := strings.ToLower(c.URL.Query().Get("blocklisttype"))
	switch kind {
	case "":
		kind = "committed"
	case "committed", "uncommitted", "all":
	default:
		return resource.Errorf(400, "InvalidQueryParameterValue", "blocklisttype must be committed, uncommitted or all.").WithTarget("blocklisttype")
	}
	list, err := s.blocks(c.Context(), c.a, c.container, c.blob)
	if err != nil {
		return err
	}
	d := newDocument()
	blocks := func(name, unless string, parts []part) {
		if kind == unless {
			return
		}
		d.open(name)
		for _, p := range parts {
			d.open("Block")
			d.elem("Name", p.Block)
			d.elem("Size", strconv.FormatInt(p.Size, 10))
			d.close("Block")
		}
		d.close(name)
	}
	d.open("BlockList")
	blocks("CommittedBlocks", "uncommitted", list.committed)
	blocks("UncommittedBlocks", "committed", list.loose)
	d.close("BlockList")
	if list.rec != nil {
		c.stamp(list.rec.stamp)
		c.w.Header().Set("x-ms-blob-content-length", strconv.FormatInt(list.rec.Size, 10))
	}
	return d.send(c.w)
}

// describe writes the headers that GET and HEAD share.
func (c *call) describe(s *Service, rec *blobRecord) {
	c.stamp(rec.stamp)
	c.metadata(rec.Metadata)
	h := c.w.Header()
	set := func(name, v string) {
		if v != "" {
			h.Set(name, v)
		}
	}
	h.Set("Content-Type", contentType(rec))
	set("Content-Encoding", rec.ContentEncoding)
	set("Content-Language", rec.ContentLanguage)
	set("Content-Disposition", rec.ContentDisposition)
	set("Cache-Control", rec.CacheControl)
	h.Set("Accept-Ranges", "bytes")
	h.Set("x-ms-creation-time", httpTime(rec.Created))
	c.ofKind(rec)
	c.copiedFrom(rec)
	c.lease(s, rec.Lease)
	h.Set("x-ms-server-encrypted", "true")
}

func headBlob(s *Service, c *call) error {
	rec, err := s.stat(c.Context(), c.a, c.container, c.blob, c.cond)
	if err != nil {
		return c.withStamp(rec, err)
	}
	c.describe(s, rec)
	h := c.w.Header()
	if rec.MD5 != nil {
		h.Set("Content-MD5", base64.StdEncoding.EncodeToString(rec.MD5))
	}
	if tier, inferred := tierOf(rec); tier != "" {
		h.Set("x-ms-access-tier", tier)
		if inferred {
			h.Set("x-ms-access-tier-inferred", "true")
		}
	}
	h.Set("Content-Length", strconv.FormatInt(rec.Size, 10))
	c.w.WriteHeader(http.StatusOK)
	return nil
}

// withStamp lets 304 and 412 carry the ETag of what is there (RFC 9110, section 15.4.5).
func (c *call) withStamp(rec *blobRecord, err error) error {
	if status := resource.StatusOf(err); rec != nil && (status == 304 || status == 412) {
		c.stamp(rec.stamp)
	}
	return err
}

func getBlob(s *Service, c *call) error {
	want, err := parseRange(c.Header)
	if err != nil {
		return err
	}
	rd, err := s.read(c.Context(), c.a, c.container, c.blob, c.cond)
	defer rd.release()
	if err != nil {
		return c.withStamp(rd.rec, err)
	}
	off, n, err := want.resolve(rd.rec.Size)
	if err != nil {
		return err
	}
	sum, err := c.rangeSum(want, n)
	if err != nil {
		return err
	}
	c.Remember("bytes", strconv.FormatInt(n, 10))
	if err := c.a.handle.Check(); err != nil {
		return err
	}
	h := c.w.Header()
	var whole bytes.Buffer
	if sum != nil {
		if err := rd.copyTo(c.Context(), &whole, off, n); err != nil {
			return err
		}
		sum(h, whole.Bytes())
	}
	c.describe(s, rd.rec)
	h.Set("Content-Length", strconv.FormatInt(n, 10))
	status := http.StatusOK
	if want.set {
		status = http.StatusPartialContent
		h.Set("Content-Range", "bytes "+strconv.FormatInt(off, 10)+"-"+strconv.FormatInt(off+n-1, 10)+"/"+strconv.FormatInt(rd.rec.Size, 10))
	}
	if md5 := base64.StdEncoding.EncodeToString(rd.rec.MD5); md5 != "" {
		if want.set {
			h.Set("x-ms-blob-content-md5", md5)
		} else {
			h.Set("Content-MD5", md5)
		}
	}
	c.w.WriteHeader(status)
	if sum != nil {
		_, err := c.w.Write(whole.Bytes())
		return err
	}
	return rd.copyTo(c.Context(), c.w, off, n)
}

// rangeSum is how to sum a range whose checksum the client asked for; nil when it did not.
func (c *call) rangeSum(want byteRange, n int64) (func(http.Header, []byte), error) {
	asked := func(name string) (bool, error) {
		switch v := strings.ToLower(c.Header.Get(name)); v {
		case "", "false":
			return false, nil
		case "true":
		default:
			return false, errHeader(name, "it must be true or false.")
		}
		if !want.set {
			return false, errHeader(name, "it needs a range beside it.")
		}
		if n > maxRangeSum {
			return false, resource.Errorf(400, "OutOfRangeInput", "The range has %d bytes; a checksum can be asked for at most %d.", n, maxRangeSum)
		}
		return true, nil
	}
	useMD5, err := asked("x-ms-range-get-content-md5")
	if err != nil {
		return nil, err
	}
	useCRC, err := asked("x-ms-range-get-content-crc64")
	switch {
	case err != nil:
		return nil, err
	case useMD5 && useCRC:
		return nil, errHeader("x-ms-range-get-content-crc64", "only one checksum can be asked for.")
	case useMD5:
		return func(h http.Header, b []byte) {
			sum := newMD5()
			writeMD5(sum, b)
			h.Set("Content-MD5", base64.StdEncoding.EncodeToString(sumMD5(sum)))
		}, nil
	case useCRC:
		return func(h http.Header, b []byte) {
			h.Set("x-ms-content-crc64", base64.StdEncoding.EncodeToString(encodeCRC(crc64.Checksum(b, crcTable))))
		}, nil
	}
	return nil, nil
}

func getBlobMetadata(s *Service, c *call) error {
	rec, err := s.stat(c.Context(), c.a, c.container, c.blob, c.cond)
	if err != nil {
		return c.withStamp(rec, err)
	}
	c.stamp(rec.stamp)
	c.metadata(rec.Metadata)
	return c.done(http.StatusOK)
}

func setBlobProperties(s *Service, c *call) error {
	props, err := parseProperties(c.Header, false)
	if err != nil {
		return err
	}
	pages, err := parsePageProperties(c.Header)
	if err != nil {
		return err
	}
	if pages.asked() {
		return setPageProperties(s, c, pages, props)
	}
	rec, err := s.amend(c.Context(), c.a, c.container, c.blob, c.cond, func(b *blobRecord) { b.properties = props })
	if err != nil {
		return err
	}
	c.ofKind(rec)
	return c.changed(http.StatusOK, rec.stamp)
}

func setBlobMetadata(s *Service, c *call) error {
	metadata, err := parseMetadata(c.Header)
	if err != nil {
		return err
	}
	rec, err := s.amend(c.Context(), c.a, c.container, c.blob, c.cond, func(b *blobRecord) { b.Metadata = metadata })
	if err != nil {
		return err
	}
	return c.changed(http.StatusOK, rec.stamp)
}

func deleteBlob(s *Service, c *call) error {
	mode := strings.ToLower(c.Header.Get("x-ms-delete-snapshots"))
	switch {
	case mode != "" && mode != withSnapshots && mode != onlySnapshots:
		return errHeader("x-ms-delete-snapshots", "it must be include or only.")
	case mode != "" && c.cond.snapshot != "":
		return errHeader("x-ms-delete-snapshots", "a snapshot has no snapshots.")
	}
	var err error
	if c.cond.snapshot != "" {
		c.Remember("snapshot", c.cond.snapshot)
		err = s.removeSnapshot(c.Context(), c.a, c.container, c.blob, c.cond)
	} else {
		err = s.remove(c.Context(), c.a, c.container, c.blob, mode, c.cond)
	}
	if err != nil {
		return err
	}
	c.w.Header().Set("x-ms-delete-type-permanent", "true")
	return c.done(http.StatusAccepted)
}
