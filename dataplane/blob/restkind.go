package blob

import (
	"net/http"
	"strconv"
	"strings"

	"casemate.dev/resource"
)

// parseCount reads a header that holds a number from 0; given is false without it.
func parseCount(h http.Header, name string) (n int64, given bool, err error) {
	v := h.Get(name)
	if v == "" {
		return 0, false, nil
	}
	n, ok := parseOffset(v)
	if !ok {
		return 0, true, errHeader(name, "it must be a number from 0.")
	}
	return n, true, nil
}

// createBlob is Put Blob for append and page blobs, which come without a body.
func createBlob(s *Service, c *call, kind string) error {
	if size, err := c.bodySize(maxPut); err != nil {
		return err
	} else if size != 0 {
		return errHeader("Content-Length", "it must be 0 to create a blob of type %s.", kind)
	}
	u, err := c.upload(true)
	if err != nil {
		return err
	}
	if u.tier != "" {
		return errHeader("x-ms-access-tier", "access tiers are for block blobs.")
	}
	var size, sequence int64
	if kind == pageBlob {
		var given bool
		if size, given, err = parseCount(c.Header, "x-ms-blob-content-length"); err != nil {
			return err
		} else if !given {
			return errMissingHeader("x-ms-blob-content-length")
		}
		if err := checkPageSize(size); err != nil {
			return err
		}
		if sequence, _, err = parseCount(c.Header, "x-ms-blob-sequence-number"); err != nil {
			return err
		}
	}
	rec, err := s.create(c.Context(), c.a, c.container, c.blob, kind, size, sequence, u)
	if err != nil {
		return err
	}
	return c.changed(http.StatusCreated, rec.stamp)
}

func checkPageSize(size int64) error {
	if size%pageSize != 0 {
		return errHeader("x-ms-blob-content-length", "it must be a multiple of %d.", pageSize)
	}
	if size > maxPageBlob {
		return errHeader("x-ms-blob-content-length", "a page blob has at most %d bytes.", int64(maxPageBlob))
	}
	return nil
}

func parseAppendConditions(h http.Header) (ac appendConditions, err error) {
	ac = appendConditions{maxSize: -1, position: -1}
	if n, given, err := parseCount(h, "x-ms-blob-condition-maxsize"); err != nil {
		return ac, err
	} else if given {
		ac.maxSize = n
	}
	if n, given, err := parseCount(h, "x-ms-blob-condition-appendpos"); err != nil {
		return ac, err
	} else if given {
		ac.position = n
	}
	return ac, nil
}

func appendBlock(s *Service, c *call) error {
	size, err := c.bodySize(maxAppend)
	if err != nil {
		return err
	}
	if size == 0 {
		return errHeader("Content-Length", "a block may not be empty.")
	}
	ac, err := parseAppendConditions(c.Header)
	if err != nil {
		return err
	}
	u := upload{body: c.Body, size: size}
	if u.sums, err = newChecksum(c.Header, size, false); err != nil {
		return err
	}
	c.Remember("bytes", strconv.FormatInt(size, 10))
	rec, offset, err := s.appendBlock(c.Context(), c.a, c.container, c.blob, c.cond, ac, u)
	if err != nil {
		return err
	}
	u.sums.answer(c.w.Header())
	h := c.w.Header()
	h.Set("x-ms-blob-append-offset", strconv.FormatInt(offset, 10))
	h.Set("x-ms-blob-committed-block-count", strconv.Itoa(rec.Blocks))
	return c.changed(http.StatusCreated, rec.stamp)
}

func sealBlob(s *Service, c *call) error {
	ac, err := parseAppendConditions(c.Header)
	if err != nil {
		return err
	}
	rec, err := s.seal(c.Context(), c.a, c.container, c.blob, c.cond, appendConditions{maxSize: -1, position: ac.position})
	if err != nil {
		return err
	}
	c.stamp(rec.stamp)
	c.w.Header().Set("x-ms-blob-sealed", "true")
	return c.done(http.StatusOK)
}

func parseSequenceConditions(h http.Header) (q sequenceConditions, err error) {
	for name, to := range map[string]**int64{"x-ms-if-sequence-number-le": &q.le, "x-ms-if-sequence-number-lt": &q.lt, "x-ms-if-sequence-number-eq": &q.eq} {
		n, given, err := parseCount(h, name)
		if err != nil {
			return q, err
		}
		if given {
			*to = &n
		}
	}
	return q, nil
}

func putPage(s *Service, c *call) error {
	q := pageWrite{upload: upload{cond: c.cond}}
	want, err := parseRange(c.Header)
	if err != nil {
		return err
	}
	if !want.set || want.tail > 0 || want.end < 0 {
		return errHeader("x-ms-range", "it must name the first and the last byte.")
	}
	q.off, q.n = want.start, want.end-want.start+1
	if q.off%pageSize != 0 || q.n%pageSize != 0 || q.n <= 0 {
		return resource.Errorf(416, "InvalidPageRange", "The page range specified is invalid: pages have %d bytes.", pageSize)
	}
	if q.seq, err = parseSequenceConditions(c.Header); err != nil {
		return err
	}
	size, err := c.bodySize(maxPageWrite)
	if err != nil {
		return err
	}
	switch v := strings.ToLower(c.Header.Get("x-ms-page-write")); v {
	case "":
		return errMissingHeader("x-ms-page-write")
	case "update":
		if size != q.n {
			return errHeader("Content-Length", "it must be the length of the range, %d.", q.n)
		}
	case "clear":
		if q.clear = true; size != 0 {
			return errHeader("Content-Length", "it must be 0 to clear pages.")
		}
	default:
		return errHeader("x-ms-page-write", "it must be update or clear.")
	}
	q.body, q.size = c.Body, size
	if q.sums, err = newChecksum(c.Header, size, false); err != nil {
		return err
	}
	c.Remember("bytes", strconv.FormatInt(q.n, 10))
	rec, err := s.putPages(c.Context(), c.a, c.container, c.blob, q)
	if err != nil {
		return err
	}
	if !q.clear {
		q.sums.answer(c.w.Header())
	}
	c.w.Header().Set("x-ms-blob-sequence-number", strconv.FormatInt(rec.Sequence, 10))
	return c.changed(http.StatusCreated, rec.stamp)
}

func getPageRanges(s *Service, c *call) error {
	if c.URL.Query().Get("prevsnapshot") != "" || c.Header.Get("x-ms-previous-snapshot-url") != "" {
		return resource.NotSupported("Differences between snapshots of page blobs are not supported.")
	}
	if c.URL.Query().Get("maxresults") != "" || c.URL.Query().Get("marker") != "" {
		return resource.NotSupported("Page ranges in several answers (maxresults, marker) are not supported; limit the range instead.")
	}
	want, err := parseRange(c.Header)
	if err != nil {
		return err
	}
	rec, spans, err := s.pages(c.Context(), c.a, c.container, c.blob, c.cond, want)
	if err != nil {
		return c.withStamp(rec, err)
	}
	d := newDocument()
	d.open("PageList")
	for _, sp := range spans {
		d.open("PageRange")
		d.elem("Start", strconv.FormatInt(sp.start, 10))
		d.elem("End", strconv.FormatInt(sp.end-1, 10))
		d.close("PageRange")
	}
	d.elem("NextMarker", "")
	d.close("PageList")
	c.stamp(rec.stamp)
	c.w.Header().Set("x-ms-blob-content-length", strconv.FormatInt(rec.Size, 10))
	return d.send(c.w)
}

// parsePageProperties reads what Set Blob Properties asks of a page blob.
func parsePageProperties(h http.Header) (p pageProperties, err error) {
	p.size = -1
	if n, given, err := parseCount(h, "x-ms-blob-content-length"); err != nil {
		return p, err
	} else if given {
		if p.size = n; checkPageSize(n) != nil {
			return p, checkPageSize(n)
		}
	}
	var given bool
	if p.sequence, given, err = parseCount(h, "x-ms-blob-sequence-number"); err != nil {
		return p, err
	}
	switch p.action = strings.ToLower(h.Get("x-ms-sequence-number-action")); p.action {
	case "":
		if given {
			return p, errMissingHeader("x-ms-sequence-number-action")
		}
	case "max", "update":
		if !given {
			return p, errMissingHeader("x-ms-blob-sequence-number")
		}
	case "increment":
		if given {
			return p, errHeader("x-ms-blob-sequence-number", "an increment takes no number.")
		}
	default:
		return p, errHeader("x-ms-sequence-number-action", "it must be max, update or increment.")
	}
	return p, nil
}

// ofKind writes the headers that depend on the kind of blob.
func (c *call) ofKind(rec *blobRecord) {
	h := c.w.Header()
	h.Set("x-ms-blob-type", rec.kind())
	switch rec.kind() {
	case appendBlob:
		h.Set("x-ms-blob-committed-block-count", strconv.Itoa(rec.Blocks))
		if rec.Sealed {
			h.Set("x-ms-blob-sealed", "true")
		}
	case pageBlob:
		h.Set("x-ms-blob-sequence-number", strconv.FormatInt(rec.Sequence, 10))
	}
}

// ofKind writes the elements that depend on the kind of blob.
func (d *document) ofKind(rec *blobRecord) {
	switch rec.kind() {
	case appendBlob:
		d.optional("Sealed", map[bool]string{true: "true"}[rec.Sealed])
	case pageBlob:
		d.elem("x-ms-blob-sequence-number", strconv.FormatInt(rec.Sequence, 10))
	}
	d.elem("BlobType", rec.kind())
}

// setPageProperties is Set Blob Properties with a size or sequence number: then content headers that are not in the
// request stay as they are.
func setPageProperties(s *Service, c *call, pages pageProperties, props properties) error {
	change := &props
	if props.empty() {
		change = nil
	}
	rec, err := s.setPageProperties(c.Context(), c.a, c.container, c.blob, c.cond, pages, change)
	if err != nil {
		return err
	}
	c.ofKind(rec)
	return c.changed(http.StatusOK, rec.stamp)
}
