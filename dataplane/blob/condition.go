package blob

import (
	"net/http"
	"slices"
	"strings"
	"time"

	"casemate.dev/resource"
)

// conditions are the conditional headers of one request (RFC 9110, section 13; "Specifying conditional headers for Blob
// service operations"). As there, If-Match makes If-Unmodified-Since void and If-None-Match makes If-Modified-Since void.
type conditions struct {
	ifMatch, ifNoneMatch               []string // ETags without quotes, or "*"; nil: no header
	ifModifiedSince, ifUnmodifiedSince time.Time
	tags                               where  // x-ms-if-tags; nil: none
	snapshot                           string // which state of the blob is meant; empty: the present one
	lease                              string // x-ms-lease-id; empty: none
}

func parseConditions(h http.Header) (conditions, error) {
	c := conditions{ifMatch: parseETags(h.Values("If-Match")), ifNoneMatch: parseETags(h.Values("If-None-Match"))}
	if v := h.Get("x-ms-if-tags"); v != "" {
		q, err := parseWhere(v, true)
		if err != nil {
			return c, errHeader("x-ms-if-tags", "%s.", err)
		}
		c.tags = q
	}
	var err error
	if c.lease, err = parseLeaseID(h, leaseIDHeader); err != nil {
		return c, err
	}
	for name, to := range map[string]*time.Time{"If-Modified-Since": &c.ifModifiedSince, "If-Unmodified-Since": &c.ifUnmodifiedSince} {
		v := h.Get(name)
		if v == "" {
			continue
		}
		t, err := http.ParseTime(v)
		if err != nil {
			return c, errHeader(name, "it must be an HTTP date.")
		}
		*to = t
	}
	return c, nil
}

func parseETags(values []string) []string {
	var out []string
	for _, v := range values {
		for tag := range strings.SplitSeq(v, ",") {
			tag = strings.Trim(strings.TrimPrefix(strings.TrimSpace(tag), "W/"), `"`)
			if tag != "" {
				out = append(out, tag)
			}
		}
	}
	return out
}

// errConditionNotMet is the refusal of writes.
func errConditionNotMet() *resource.Error {
	return resource.Errorf(412, "ConditionNotMet", "The condition specified using HTTP conditional header(s) is not met.")
}

// errNotModified is the answer to reads whose copy is current; it has no body.
func errNotModified() *resource.Error {
	return resource.Errorf(304, "ConditionNotMet", "The condition specified using HTTP conditional header(s) is not met.")
}

func matches(tags []string, etag string) bool {
	return slices.Contains(tags, "*") || slices.Contains(tags, etag)
}

// read decides for GET and HEAD of what exists.
func (c conditions) read(cur stamp) error {
	if slices.Contains(c.ifNoneMatch, "*") {
		return resource.Errorf(400, "UnsatisfiableCondition", "The request includes an unsatisfiable condition for this operation: If-None-Match: * on a read.")
	}
	if err := c.unchanged(cur); err != nil {
		return err
	}
	if c.changed(cur) {
		return nil
	}
	return errNotModified()
}

// write decides for changes; cur is nil when there is nothing yet.
func (c conditions) write(cur *stamp) error {
	if cur == nil {
		if c.ifMatch != nil {
			return errConditionNotMet()
		}
		return nil
	}
	if slices.Contains(c.ifNoneMatch, "*") {
		return resource.Errorf(409, "BlobAlreadyExists", "The specified blob already exists.")
	}
	if err := c.unchanged(*cur); err != nil {
		return err
	}
	if c.changed(*cur) {
		return nil
	}
	return errConditionNotMet()
}

// change is write for operations that never create.
func (c conditions) change(cur stamp) error {
	if slices.Contains(c.ifNoneMatch, "*") {
		return errConditionNotMet()
	}
	return c.write(&cur)
}

// unchanged is the pair If-Match and If-Unmodified-Since. Dates on the wire have whole seconds.
func (c conditions) unchanged(cur stamp) error {
	if c.ifMatch != nil {
		if !matches(c.ifMatch, cur.ETag) {
			return errConditionNotMet()
		}
		return nil
	}
	if !c.ifUnmodifiedSince.IsZero() && cur.Modified.Truncate(time.Second).After(c.ifUnmodifiedSince) {
		return errConditionNotMet()
	}
	return nil
}

// changed is the pair If-None-Match and If-Modified-Since.
func (c conditions) changed(cur stamp) bool {
	if c.ifNoneMatch != nil {
		return !matches(c.ifNoneMatch, cur.ETag)
	}
	return c.ifModifiedSince.IsZero() || cur.Modified.Truncate(time.Second).After(c.ifModifiedSince)
}
