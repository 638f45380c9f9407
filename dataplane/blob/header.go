package blob

import (
	"cmp"
	"encoding/base64"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"casemate.dev/resource"
)

// byteRange is a requested range; the zero value asks for everything.
type byteRange struct {
	set   bool
	start int64
	end   int64 // last byte, inclusive; -1: to the end
	tail  int64 // > 0: the last so many bytes
}

// parseRange reads x-ms-range, which goes before Range ("Specifying the range header for Blob service operations"). One
// range of bytes is understood; anything else is refused rather than answered with other bytes than were asked for.
func parseRange(h http.Header) (byteRange, error) {
	name := "x-ms-range"
	v := h.Get(name)
	if v == "" {
		name, v = "Range", h.Get("Range")
	}
	if v == "" {
		return byteRange{}, nil
	}
	bad := errHeader(name, "it must have the form bytes=first-last.")
	spec, ok := strings.CutPrefix(v, "bytes=")
	if !ok {
		return byteRange{}, bad
	}
	first, last, ok := strings.Cut(strings.TrimSpace(spec), "-")
	if !ok {
		return byteRange{}, bad
	}
	if first == "" {
		n, ok := parseOffset(last)
		if !ok || n == 0 {
			return byteRange{}, bad
		}
		return byteRange{set: true, tail: n}, nil
	}
	r := byteRange{set: true, end: -1}
	if r.start, ok = parseOffset(first); !ok {
		return byteRange{}, bad
	}
	if last != "" {
		if r.end, ok = parseOffset(last); !ok || r.end < r.start {
			return byteRange{}, bad
		}
	}
	return r, nil
}

// parseOffset takes digits only: ParseInt alone would let a sign pass.
func parseOffset(s string) (int64, bool) {
	if s == "" || strings.Trim(s, "0123456789") != "" {
		return 0, false
	}
	n, err := strconv.ParseInt(s, 10, 64)
	return n, err == nil
}

// resolve gives offset and length within size bytes.
func (r byteRange) resolve(size int64) (off, n int64, err error) {
	switch {
	case !r.set:
		return 0, size, nil
	case r.tail > 0 && size > 0:
		n = min(r.tail, size)
		return size - n, n, nil
	case r.tail > 0 || r.start >= size:
		e := resource.Errorf(416, "InvalidRange", "The range specified is invalid for the current size of the resource, %d bytes.", size)
		e.Header = http.Header{"Content-Range": {"bytes */" + strconv.FormatInt(size, 10)}}
		return 0, 0, e
	case r.end < 0 || r.end >= size:
		return r.start, size - r.start, nil
	}
	return r.start, r.end - r.start + 1, nil
}

const metadataPrefix = "X-Ms-Meta-" // as net/http canonicalises it

// parseMetadata collects x-ms-meta-* under lower-case names: HTTP does not distinguish case.
func parseMetadata(h http.Header) (map[string]string, error) {
	var m map[string]string
	for k, v := range h {
		if name, ok := strings.CutPrefix(http.CanonicalHeaderKey(k), metadataPrefix); ok {
			if m == nil {
				m = map[string]string{}
			}
			m[strings.ToLower(name)] = strings.Join(v, ",")
		}
	}
	return m, checkMetadata(m)
}

// parseProperties reads the x-ms-blob-* headers, each with the standard header as the fallback that Put Blob allows.
func parseProperties(h http.Header, fallback bool) (properties, error) {
	get := func(name, standard string) string {
		if v := h.Get(name); v != "" || !fallback {
			return v
		}
		return h.Get(standard)
	}
	p := properties{
		ContentType:        get("x-ms-blob-content-type", "Content-Type"),
		ContentEncoding:    get("x-ms-blob-content-encoding", "Content-Encoding"),
		ContentLanguage:    get("x-ms-blob-content-language", "Content-Language"),
		ContentDisposition: h.Get("x-ms-blob-content-disposition"),
		CacheControl:       get("x-ms-blob-cache-control", "Cache-Control"),
	}
	for _, v := range []string{p.ContentType, p.ContentEncoding, p.ContentLanguage, p.ContentDisposition, p.CacheControl} {
		if len(v) > 1024 || !utf8.ValidString(v) {
			return p, resource.Errorf(400, "InvalidHeaderValue", "A content header is longer than 1024 bytes or not valid text.")
		}
	}
	var err error
	p.MD5, err = parseSum(h, "x-ms-blob-content-md5", 16, "InvalidMd5")
	return p, err
}

// parseSum decodes a base64 checksum of n bytes; nil when the header is absent.
func parseSum(h http.Header, name string, n int, code string) ([]byte, error) {
	v := h.Get(name)
	if v == "" {
		return nil, nil
	}
	sum, err := base64.StdEncoding.DecodeString(v)
	if err != nil || len(sum) != n {
		return nil, resource.Errorf(400, code, "The value of the header %s must be base64 of %d bytes.", name, n).WithTarget(name)
	}
	return sum, nil
}

func parseTier(h http.Header) (string, error) {
	v := h.Get("x-ms-access-tier")
	switch strings.ToLower(v) {
	case "":
		return "", nil
	case "hot":
		return "Hot", nil
	case "cool":
		return "Cool", nil
	case "cold":
		return "Cold", nil
	case "archive":
		return "", resource.NotSupported("The access tier Archive is not supported.")
	}
	return "", errHeader("x-ms-access-tier", "'%.40s' is not a tier of block blobs.", v)
}

// refusals are headers that ask for what does not exist here. To ignore one of them would do something else than was
// asked for, so each is refused.
var refusals = []struct{ header, what string }{
	{"x-ms-encryption-key", "Customer-provided encryption keys in requests"},
	{"x-ms-encryption-scope", "Encryption scopes"},
	{"x-ms-default-encryption-scope", "Encryption scopes"},
	{"x-ms-immutability-policy-mode", "Immutability policies"},
	{"x-ms-immutability-policy-until-date", "Immutability policies"},
	{"x-ms-legal-hold", "Legal holds"},
	{"x-ms-structured-body", "Structured message bodies"},
	{"x-ms-source-lease-id", "Leases"},
}

// refuseUnsupported looks for requests that mean more than this service does.
func refuseUnsupported(r *http.Request) error {
	for _, f := range refusals {
		if r.Header.Get(f.header) != "" {
			return resource.NotSupported("%s (header %s) are not supported.", f.what, f.header)
		}
	}
	q := r.URL.Query()
	if q.Get("versionid") != "" {
		return resource.NotSupported("Versions of blobs (query parameter versionid) are not supported.")
	}
	return nil
}

// parseInclude checks the include parameter of lists. Values that ask for things which never exist here are fulfilled by
// showing none; metadata is the one that matters.
func parseInclude(v string, harmless ...string) (metadata bool, err error) {
	for item := range strings.SplitSeq(strings.ToLower(v), ",") {
		switch item = strings.TrimSpace(item); {
		case item == "":
		case item == "metadata":
			metadata = true
		case item == "uncommittedblobs":
			return false, resource.NotSupported("Listing uncommitted blobs is not supported; use Get Block List.")
		case !slices.Contains(harmless, item):
			return false, resource.Errorf(400, "InvalidQueryParameterValue", "The value '%.40s' of the query parameter include is not valid.", item).WithTarget("include")
		}
	}
	return metadata, nil
}

func parseMaxResults(v string) (int, error) {
	if v == "" {
		return maxList, nil
	}
	n, ok := parseOffset(v)
	if !ok {
		return 0, resource.Errorf(400, "InvalidQueryParameterValue", "The query parameter maxresults must be a number.").WithTarget("maxresults")
	}
	if n < 1 {
		return 0, resource.Errorf(400, "OutOfRangeQueryParameterValue", "The query parameter maxresults must be 1 to %d.", maxList).WithTarget("maxresults")
	}
	return int(min(n, maxList)), nil
}

const (
	oldestVersion  = "2017-11-09" // the first that knows bearer tokens
	assumedVersion = "2021-12-02" // when the header is missing
)

// checkVersion reads x-ms-version. Versions newer than any known are accepted: SDKs move ahead of servers.
func checkVersion(v string) (string, error) {
	v = cmp.Or(v, assumedVersion)
	if len(v) != 10 || v[4] != '-' || v[7] != '-' || strings.Trim(v, "0123456789-") != "" {
		return "", errHeader("x-ms-version", "'%.20s' is not a service version such as %s.", v, assumedVersion)
	}
	if v < oldestVersion {
		return "", errHeader("x-ms-version", "%s is too old for bearer tokens; use %s or newer.", v, oldestVersion)
	}
	return v, nil
}

// hasItem says whether a comma-separated list holds an item, in any case.
func hasItem(list, item string) bool {
	for v := range strings.SplitSeq(list, ",") {
		if strings.EqualFold(strings.TrimSpace(v), item) {
			return true
		}
	}
	return false
}
