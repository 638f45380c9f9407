package blob

import (
	"encoding/base64"
	"encoding/xml"
	"hash/crc64"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func b64(b []byte) string { return base64.StdEncoding.EncodeToString(b) }

func md5Of(s string) string {
	h := newMD5()
	writeMD5(h, []byte(s))
	return b64(sumMD5(h))
}

// meta reads a metadata header under its exact lower-case key.
func meta(h http.Header, name string) string { return strings.Join(h["x-ms-meta-"+name], "|") }

func crcOf(s string) string { return b64(encodeCRC(crc64.Checksum([]byte(s), crcTable))) }

func TestCRCIsThatOfTheProtocol(t *testing.T) {
	// The check value of CRC-64/NVME over "123456789".
	if got := crc64.Checksum([]byte("123456789"), crcTable); got != 0xAE8B14860A799888 {
		t.Fatalf("crc = %#x", got)
	}
}

func TestRefusals(t *testing.T) {
	f := newFixture(t)
	f.container("cc1")
	f.upload("/cc1/b1", "hello")
	etag := f.must(200, "HEAD", "/cc1/b1", "").Header().Get("ETag")
	put := []string{"x-ms-blob-type", "BlockBlob"}
	with := func(h ...string) []string { return append(append([]string{}, put...), h...) }
	longName := strings.Repeat("é", 1025)
	tests := []struct {
		method, target, body string
		headers              []string
		status               int
		code                 string
	}{
		{"PUT", "/cc1?restype=container", "", nil, 409, "ContainerAlreadyExists"},
		{"PUT", "/CC1?restype=container", "", nil, 400, "InvalidResourceName"},
		{"PUT", "/a--b?restype=container", "", nil, 400, "InvalidResourceName"},
		{"PUT", "/ab?restype=container", "", nil, 400, "InvalidResourceName"},
		{"PUT", "/c2?restype=container", "", nil, 400, "InvalidResourceName"},
		{"PUT", "/cc3?restype=container", "", []string{"x-ms-blob-public-access", "blob"}, 409, "PublicAccessNotPermitted"},
		{"PUT", "/cc3?restype=container", "", []string{"x-ms-meta-a-b", "1"}, 400, "InvalidMetadata"},
		{"PUT", "/cc3?restype=container", "", []string{"x-ms-meta-a", strings.Repeat("x", 8200)}, 400, "MetadataTooLarge"},
		{"GET", "/nope?restype=container&comp=list", "", nil, 404, "ContainerNotFound"},
		{"GET", "/cc1?restype=container&comp=list&maxresults=0", "", nil, 400, "OutOfRangeQueryParameterValue"},
		{"GET", "/cc1?restype=container&comp=list&maxresults=x", "", nil, 400, "InvalidQueryParameterValue"},
		{"GET", "/cc1?restype=container&comp=list&include=bogus", "", nil, 400, "InvalidQueryParameterValue"},
		{"GET", "/cc1?restype=container&comp=list&marker=%25", "", nil, 400, "OutOfRangeInput"},
		{"GET", "/cc1/nope", "", nil, 404, "BlobNotFound"},
		{"HEAD", "/cc1/nope", "", nil, 404, "BlobNotFound"},
		{"DELETE", "/cc1/nope", "", nil, 404, "BlobNotFound"},
		{"PUT", "/cc1/nope?comp=metadata", "", nil, 404, "BlobNotFound"},
		{"PUT", "/nope/b", "x", put, 404, "ContainerNotFound"},
		{"GET", "/cc1/%ff", "", nil, 400, "InvalidUri"},
		{"PUT", "/cc1/%C3%A9%00", "", put, 400, "InvalidUri"},
		{"PUT", "/cc1/" + longName, "", put, 400, "OutOfRangeInput"},
		{"PUT", "/cc1/b2", "x", nil, 400, "MissingRequiredHeader"},
		{"PUT", "/cc1/b2", "x", []string{"x-ms-blob-type", "AppendBlob"}, 400, "InvalidHeaderValue"},
		{"PUT", "/cc1/b2", "x", []string{"x-ms-blob-type", "PageBlob"}, 400, "InvalidHeaderValue"},
		{"PUT", "/cc1/b2", "x", []string{"x-ms-blob-type", "Bogus"}, 400, "InvalidHeaderValue"},
		{"PUT", "/cc1/b2", "x", with("x-ms-version", "2015-01-01"), 400, "InvalidHeaderValue"},
		{"PUT", "/cc1/b2", "x", with("x-ms-version", "newest"), 400, "InvalidHeaderValue"},
		{"PUT", "/cc1/b2", "x", with("Content-MD5", md5Of("y")), 400, "Md5Mismatch"},
		{"PUT", "/cc1/b2", "x", with("x-ms-blob-content-md5", md5Of("y")), 400, "Md5Mismatch"},
		{"PUT", "/cc1/b2", "x", with("Content-MD5", "zz"), 400, "InvalidMd5"},
		{"PUT", "/cc1/b2", "x", with("x-ms-content-crc64", crcOf("y")), 400, "Crc64Mismatch"},
		{"PUT", "/cc1/b2", "x", with("x-ms-content-crc64", "zz"), 400, "InvalidHeaderValue"},
		{"PUT", "/cc1/b2", "x", with("x-ms-copy-source", "https://elsewhere/x"), 501, "NotSupported"},
		{"PUT", "/cc1/b2", "x", with("x-ms-lease-id", "l"), 400, "InvalidHeaderValue"},
		{"PUT", "/cc1/b2", "x", with("x-ms-lease-id", leaseA), 412, "LeaseNotPresentWithBlobOperation"},
		{"PUT", "/cc1/b2", "x", with("x-ms-encryption-key", "k"), 501, "NotSupported"},
		{"PUT", "/cc1/b2", "x", with("x-ms-tags", "a=b,c"), 400, "InvalidTag"},
		{"PUT", "/cc1/b2", "x", with("x-ms-access-tier", "Archive"), 501, "NotSupported"},
		{"PUT", "/cc1/b2", "x", with("x-ms-access-tier", "Lukewarm"), 400, "InvalidHeaderValue"},
		{"PUT", "/cc1/b2", "x", with("If-Modified-Since", "yesterday"), 400, "InvalidHeaderValue"},
		{"PUT", "/cc1/b1", "x", with("If-None-Match", "*"), 409, "BlobAlreadyExists"},
		{"PUT", "/cc1/b1", "x", with("If-None-Match", etag), 412, "ConditionNotMet"},
		{"PUT", "/cc1/b1", "x", with("If-Match", `"0x1"`), 412, "ConditionNotMet"},
		{"PUT", "/cc1/b2", "x", with("If-Match", "*"), 412, "ConditionNotMet"},
		{"PUT", "/cc1/b1?comp=properties", "", []string{"If-None-Match", "*"}, 412, "ConditionNotMet"},
		{"DELETE", "/cc1/b1", "", []string{"If-Match", `"0x1"`}, 412, "ConditionNotMet"},
		{"DELETE", "/cc1/b1", "", []string{"If-Unmodified-Since", "Mon, 01 Jan 2001 00:00:00 GMT"}, 412, "ConditionNotMet"},
		{"DELETE", "/cc1/b1", "", []string{"x-ms-delete-snapshots", "none"}, 400, "InvalidHeaderValue"},
		{"GET", "/cc1/b1", "", []string{"If-None-Match", etag}, 304, "ConditionNotMet"},
		{"HEAD", "/cc1/b1", "", []string{"If-None-Match", etag}, 304, "ConditionNotMet"},
		{"GET", "/cc1/b1", "", []string{"If-None-Match", "*"}, 400, "UnsatisfiableCondition"},
		{"GET", "/cc1/b1", "", []string{"If-Modified-Since", "Fri, 01 Jan 2100 00:00:00 GMT"}, 304, "ConditionNotMet"},
		{"GET", "/cc1/b1", "", []string{"x-ms-range", "bytes=5-"}, 416, "InvalidRange"},
		{"GET", "/cc1/b1", "", []string{"x-ms-range", "bytes=3-1"}, 400, "InvalidHeaderValue"},
		{"GET", "/cc1/b1", "", []string{"Range", "bytes=0-1,3-4"}, 400, "InvalidHeaderValue"},
		{"GET", "/cc1/b1", "", []string{"x-ms-range-get-content-md5", "true"}, 400, "InvalidHeaderValue"},
		{"GET", "/cc1/b1?snapshot=2020-01-01T00:00:00Z", "", nil, 400, "InvalidQueryParameterValue"},
		{"GET", "/cc1/b1?versionid=2020-01-01T00:00:00.0000000Z", "", nil, 501, "NotSupported"},
		{"PUT", "/cc1/b1?comp=block", "x", nil, 400, "MissingRequiredQueryParameter"},
		{"PUT", "/cc1/b1?comp=block&blockid=%21", "x", nil, 400, "InvalidBlockId"},
		{"PUT", "/cc1/b1?comp=block&blockid=" + b64(make([]byte, 65)), "x", nil, 400, "OutOfRangeInput"},
		{"PUT", "/cc1/b1?comp=block&blockid=AAAA", "", nil, 400, "InvalidHeaderValue"},
		{"PUT", "/cc1/b1?comp=blocklist", "<BlockList><Latest>AAAA</Latest></BlockList>", nil, 400, "InvalidBlockList"},
		{"PUT", "/cc1/b1?comp=blocklist", "<BlockList><Other>AAAA</Other></BlockList>", nil, 400, "InvalidXmlNodeValue"},
		{"PUT", "/cc1/b1?comp=blocklist", "<BlockList>", nil, 400, "InvalidXmlDocument"},
		{"PUT", "/cc1/b1?comp=blocklist", "<!DOCTYPE x><BlockList/>", nil, 400, "InvalidXmlDocument"},
		{"GET", "/cc1/b1?comp=blocklist&blocklisttype=some", "", nil, 400, "InvalidQueryParameterValue"},
		{"PUT", "/cc1/b1?comp=lease", "", nil, 400, "MissingRequiredHeader"},
		{"POST", "/?restype=service&comp=userdelegationkey", "", nil, 501, "NotSupported"},
		{"PUT", "/?restype=service&comp=properties", "<StorageServiceProperties><StaticWebsite><Enabled>true</Enabled></StaticWebsite></StorageServiceProperties>", nil, 501, "NotSupported"},
		{"PUT", "/?restype=service&comp=properties", "<x", nil, 400, "InvalidXmlDocument"},
	}
	for _, tt := range tests {
		w := f.do(tt.method, tt.target, tt.body, tt.headers...)
		if w.Code != tt.status || w.Header().Get("x-ms-error-code") != tt.code {
			t.Errorf("%s %.60s %v = %d %s, want %d %s", tt.method, tt.target, tt.headers, w.Code, w.Header().Get("x-ms-error-code"), tt.status, tt.code)
		}
	}
	if got := f.must(200, "GET", "/cc1/b1", "").Body.String(); got != "hello" {
		t.Errorf("after all refusals the blob holds %q", got)
	}
}

func TestBlobRoundTrip(t *testing.T) {
	for name, body := range map[string]string{"empty": "", "inline": "hello", "object": strings.Repeat("0123456789", 20_000)} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			f.container("cc1")
			w := f.upload("/cc1/dir%2F..%2Fa%252Fb", body, "Content-Type", "text/csv", "x-ms-meta-Owner", "ward 7",
				"x-ms-blob-cache-control", "no-store", "x-ms-access-tier", "cool", "x-ms-client-request-id", "req1")
			for k, want := range map[string]string{"Content-Md5": md5Of(body), "X-Ms-Content-Crc64": crcOf(body),
				"X-Ms-Request-Server-Encrypted": "true", "X-Ms-Version": "2026-12-06", "X-Ms-Client-Request-Id": "req1"} {
				if got := w.Header().Get(k); got != want {
					t.Errorf("PUT %s = %q, want %q", k, got, want)
				}
			}
			g := f.must(200, "GET", "/cc1/dir/../a%252Fb", "")
			if got := g.Body.String(); got != body {
				t.Fatalf("GET returned %d bytes, want %d", len(got), len(body))
			}
			if diff := cmp.Diff("ward 7", meta(g.Header(), "owner")); diff != "" {
				t.Errorf("metadata header: %s", diff)
			}
			for k, want := range map[string]string{"Content-Type": "text/csv", "Cache-Control": "no-store", "Content-Md5": md5Of(body),
				"X-Ms-Blob-Type": "BlockBlob", "X-Ms-Server-Encrypted": "true", "Etag": w.Header().Get("ETag")} {
				if got := g.Header().Get(k); got != want {
					t.Errorf("GET %s = %q, want %q", k, got, want)
				}
			}
			h := f.must(200, "HEAD", "/cc1/dir/../a%252Fb", "")
			if got := h.Header().Get("x-ms-access-tier"); got != "Cool" {
				t.Errorf("tier = %q", got)
			}
			f.must(202, "DELETE", "/cc1/dir/../a%252Fb", "")
			f.must(404, "GET", "/cc1/dir/../a%252Fb", "")
			if n := f.settled(); n != 0 {
				t.Errorf("%d objects left", n)
			}
		})
	}
}

func TestRangeChecksums(t *testing.T) {
	f := newFixture(t)
	f.container("cc1")
	f.upload("/cc1/b", "0123456789")
	w := f.must(206, "GET", "/cc1/b", "", "Range", "bytes=0-1", "x-ms-range", "bytes=2-4", "x-ms-range-get-content-md5", "true")
	got := []string{w.Body.String(), w.Header().Get("Content-Range"), w.Header().Get("Content-MD5"), w.Header().Get("x-ms-blob-content-md5")}
	if diff := cmp.Diff([]string{"234", "bytes 2-4/10", md5Of("234"), md5Of("0123456789")}, got); diff != "" {
		t.Error(diff)
	}
	w = f.must(206, "GET", "/cc1/b", "", "x-ms-range", "bytes=-3", "x-ms-range-get-content-crc64", "true")
	if w.Body.String() != "789" || w.Header().Get("x-ms-content-crc64") != crcOf("789") {
		t.Errorf("tail = %q %s", w.Body, w.Header().Get("x-ms-content-crc64"))
	}
}

func TestPropertiesAndMetadata(t *testing.T) {
	f := newFixture(t)
	f.container("cc1")
	f.upload("/cc1/b", "x", "x-ms-blob-content-type", "a/b", "x-ms-meta-k", "v")
	first := f.must(200, "HEAD", "/cc1/b", "").Header().Get("ETag")
	f.must(200, "PUT", "/cc1/b?comp=properties", "", "x-ms-blob-content-language", "de", "If-Match", first)
	f.must(412, "PUT", "/cc1/b?comp=metadata", "", "x-ms-meta-k2", "v2", "If-Match", first)
	f.must(200, "PUT", "/cc1/b?comp=metadata", "", "x-ms-meta-k2", "v2")
	w := f.must(200, "HEAD", "/cc1/b", "")
	h := w.Header()
	got := []string{h.Get("Content-Type"), h.Get("Content-Language"), meta(h, "k"), meta(h, "k2")}
	if diff := cmp.Diff([]string{"application/octet-stream", "de", "", "v2"}, got); diff != "" {
		t.Error(diff)
	}
	f.must(200, "PUT", "/cc1?restype=container&comp=metadata", "", "x-ms-meta-team", "red")
	if got := meta(f.must(200, "HEAD", "/cc1?restype=container", "").Header(), "team"); got != "red" {
		t.Errorf("container metadata = %q", got)
	}
	f.must(202, "PUT", "/?restype=service&comp=properties", "<StorageServiceProperties><DefaultServiceVersion>2021-08-06</DefaultServiceVersion></StorageServiceProperties>")
	if got := f.must(200, "GET", "/?restype=service&comp=properties", "").Body.String(); !strings.Contains(got, "<DefaultServiceVersion>2021-08-06<") {
		t.Errorf("service properties = %s", got)
	}
	if got := f.must(200, "GET", "/?restype=account&comp=properties", "").Header().Get("x-ms-account-kind"); got != "StorageV2" {
		t.Errorf("account kind = %q", got)
	}
}

// listXML is the list as a client decodes it.
type listXML struct {
	Blobs struct {
		Blob []struct {
			Name struct {
				Encoded bool   `xml:"Encoded,attr"`
				Text    string `xml:",chardata"`
			}
			Properties struct {
				Size int64 `xml:"Content-Length"`
			}
			Metadata struct {
				Inner string `xml:",innerxml"`
			}
		}
		BlobPrefix []struct{ Name string }
	}
	NextMarker string
}

func TestListXML(t *testing.T) {
	f := newFixture(t)
	f.container("cc1")
	f.upload("/cc1/a%01%3Cb", "1", "x-ms-meta-k", "<v>")
	f.upload("/cc1/d/x", "22")
	f.upload("/cc1/d/y", "333")
	var l listXML
	w := f.must(200, "GET", "/cc1?restype=container&comp=list&delimiter=/&include=metadata&maxresults=1", "")
	if err := xml.Unmarshal(w.Body.Bytes(), &l); err != nil {
		t.Fatal(err)
	}
	if len(l.Blobs.Blob) != 1 || !l.Blobs.Blob[0].Name.Encoded || l.Blobs.Blob[0].Name.Text != "a%01%3Cb" || l.Blobs.Blob[0].Metadata.Inner != "<k>&lt;v&gt;</k>" {
		t.Errorf("first page = %s", w.Body)
	}
	w = f.must(200, "GET", "/cc1?restype=container&comp=list&delimiter=/&marker="+l.NextMarker, "")
	l = listXML{}
	if err := xml.Unmarshal(w.Body.Bytes(), &l); err != nil {
		t.Fatal(err)
	}
	if len(l.Blobs.BlobPrefix) != 1 || l.Blobs.BlobPrefix[0].Name != "d/" || l.NextMarker != "" {
		t.Errorf("second page = %s", w.Body)
	}
	f.container("cc2")
	w = f.must(200, "GET", "/?comp=list&maxresults=1", "")
	if s := w.Body.String(); !strings.Contains(s, "<Name>cc1<") || strings.Contains(s, "<NextMarker></NextMarker>") {
		t.Errorf("containers = %s", s)
	}
}

func TestRoutesAreComplete(t *testing.T) {
	f := newFixture(t)
	seen := map[string]bool{}
	for _, r := range f.routes {
		if seen[r.Name] {
			t.Errorf("two rows are named %s", r.Name)
		}
		seen[r.Name] = true
		if r.Method != "GET" && r.Method != "HEAD" && !r.Audit.Durable() {
			t.Errorf("%s changes data and is not recorded durably", r.Name)
		}
		if isData := strings.Contains(r.DataAction, "/blobs/"); isData != (r.DataAction != "") {
			t.Errorf("%s has the data action %s", r.Name, r.DataAction)
		}
	}
	// Two rows must never answer to the same request with the same number of conditions.
	for _, a := range f.routes {
		for _, b := range f.routes {
			if a.Name < b.Name && a.Method == b.Method && a.Pattern == b.Pattern && cmp.Equal(a.Query, b.Query) {
				t.Errorf("%s and %s have the same conditions", a.Name, b.Name)
			}
		}
	}
}
