package blob

import (
	"fmt"
	"strings"
	"testing"

	"casemate.dev/resource"
)

const here = "https://" + testHost

func TestCopy(t *testing.T) {
	big := strings.Repeat("0123456789", 20_000)
	f := newFixture(t)
	f.container("cc1")
	f.container("cc2")
	f.upload("/cc1/small", "hello", "Content-Type", "a/b", "x-ms-meta-k", "v", "x-ms-tags", "a=1")
	f.upload("/cc1/dir%2Fb%20ig", big)
	snap := f.must(201, "PUT", "/cc1/small?comp=snapshot", "").Header().Get("x-ms-snapshot")
	f.upload("/cc1/small", "hello, new", "Content-Type", "a/b", "x-ms-meta-k", "v")
	f.create("/cc1/log", "AppendBlob")
	f.must(201, "PUT", "/cc1/log?comp=appendblock", big)
	f.must(201, "PUT", "/cc1/log?comp=appendblock", "tail")
	f.create("/cc1/disk", "PageBlob", "x-ms-blob-content-length", "1048576")
	page := strings.Repeat("p", 512)
	f.must(201, "PUT", "/cc1/disk?comp=page", page, "x-ms-page-write", "update", "x-ms-range", "bytes=512-1023")
	for i, s := range []struct{ from, want, kind string }{
		{"/cc1/small", "hello, new", "BlockBlob"},
		{"/cc1/small?snapshot=" + snap, "hello", "BlockBlob"},
		{"/cc1/dir%2Fb%20ig", big, "BlockBlob"},
		{"/cc1/log", big + "tail", "AppendBlob"},
		{"/cc1/disk", strings.Repeat("\x00", 512) + page + strings.Repeat("\x00", 1<<20-1024), "PageBlob"},
	} {
		for _, c := range []string{"cc1", "cc2"} {
			to := fmt.Sprintf("/%s/copy%d", c, i)
			w := f.must(202, "PUT", to, "", "x-ms-copy-source", here+s.from)
			if w.Header().Get("x-ms-copy-status") != "success" || w.Header().Get("x-ms-copy-id") == "" {
				t.Errorf("copy of %s = %v", s.from, w.Header())
			}
			g := f.must(200, "GET", to, "")
			if g.Body.String() != s.want || g.Header().Get("x-ms-blob-type") != s.kind || g.Header().Get("x-ms-copy-source") != here+s.from {
				t.Errorf("the copy of %s is a %s of %d bytes", s.from, g.Header().Get("x-ms-blob-type"), g.Body.Len())
			}
			if strings.Contains(s.from, "small") && (g.Header().Get("Content-Type") != "a/b" || meta(g.Header(), "k") != "v") {
				t.Errorf("properties of the copy = %v", g.Header())
			}
		}
	}
	f.must(201, "PUT", "/cc2/put", "", "x-ms-copy-source", here+"/cc1/small", "x-ms-blob-type", "BlockBlob", "x-ms-meta-k", "other")
	if w := f.must(200, "GET", "/cc2/put", ""); w.Body.String() != "hello, new" || meta(w.Header(), "k") != "other" || w.Header().Get("x-ms-copy-id") != "" {
		t.Errorf("Put Blob From URL = %q %v", w.Body, w.Header())
	}
	f.must(201, "PUT", blockURL("/cc2/blocks", 0), "", "x-ms-copy-source", here+"/cc1/dir%2Fb%20ig", "x-ms-source-range", "bytes=5-9")
	f.must(201, "PUT", blockURL("/cc2/blocks", 1), "", "x-ms-copy-source", here+"/cc1/small")
	f.must(201, "PUT", "/cc2/blocks?comp=blocklist", listOf("Latest", 0, 1))
	if s := f.must(200, "GET", "/cc2?restype=container&comp=list&include=copy", "").Body.String(); strings.Count(s, "<CopyStatus>success<") != 5 {
		t.Errorf("list with copies = %s", s)
	}
	f.must(202, "DELETE", "/cc1?restype=container", "")
	f.restart()
	f.settled()
	if got := f.must(200, "GET", "/cc2/blocks", "").Body.String(); got != "56789hello, new" {
		t.Errorf("blocks of copies = %q", got)
	}
	if got := f.must(200, "GET", "/cc2/copy2", "").Body.String(); got != big {
		t.Errorf("without its source the copy has %d bytes", len(got))
	}
	f.must(202, "DELETE", "/cc2?restype=container", "")
	if n := f.settled(); n != 0 {
		t.Errorf("%d objects left", n)
	}
}

func TestCopyRefusals(t *testing.T) {
	f := newFixture(t)
	f.container("cc1")
	f.upload("/cc1/b", "x")
	f.create("/cc1/log", "AppendBlob")
	src := func(u string, h ...string) []string { return append([]string{"x-ms-copy-source", u}, h...) }
	tests := []struct {
		target  string
		headers []string
		want    string
	}{
		{"/cc1/c", src("https://elsewhere.example/cc1/b"), "501 NotSupported"},
		{"/cc1/c", src("http://" + testHost + "/cc1/b"), "501 NotSupported"},
		{"/cc1/c", src("https://169.254.169.254/metadata/identity"), "501 NotSupported"},
		{"/cc1/c", src("https://user@" + testHost + "/cc1/b"), "400 InvalidHeaderValue"},
		{"/cc1/c", src("file:///etc/passwd"), "501 NotSupported"},
		{"/cc1/c", src("/cc1/b"), "400 InvalidHeaderValue"},
		{"/cc1/c", src(here + "/cc1"), "400 InvalidHeaderValue"},
		{"/cc1/c", src(here + "/cc1/b?sv=2020&sig=abc"), "501 NotSupported"},
		{"/cc1/c", src(here+"/cc1/b", "x-ms-copy-source-authorization", "Bearer other"), "501 NotSupported"},
		{"/cc1/c", src(here+"/cc1/b", "x-ms-source-if-match", `"0x1"`), "412 SourceConditionNotMet"},
		{"/cc1/c", src(here+"/cc1/b", "x-ms-source-if-tags", "a='1'"), "501 NotSupported"},
		{"/cc1/c", src(here+"/cc1/b", "x-ms-copy-source-tag-option", "COPY"), "501 NotSupported"},
		{"/cc1/c", src(here + "/cc1/none"), "404 BlobNotFound"},
		{"/cc1/c", src(here + "/none/b"), "404 ContainerNotFound"},
		{"/cc1/c", src(here+"/cc1/log", "x-ms-blob-type", "BlockBlob"), "409 InvalidBlobType"},
		{"/cc1/c", src(here+"/cc1/b", "x-ms-blob-type", "PageBlob"), "400 InvalidHeaderValue"},
		{"/cc1/b", src(here+"/cc1/b", "If-None-Match", "*"), "409 BlobAlreadyExists"},
		{"/cc1/b?comp=metadata", src(here + "/cc1/b"), "400 UnsupportedHeader"},
		{blockURL("/cc1/c", 1), src(here+"/cc1/b", "x-ms-source-range", "bytes=5-9"), "416 InvalidRange"},
		{"/cc1/b?comp=copy&copyid=1", nil, "409 NoPendingCopyOperation"},
		{"/cc1/log?comp=appendblock", src(here + "/cc1/b"), "501 NotSupported"},
		{"/cc1/b?comp=tier", []string{"x-ms-access-tier", "Cool"}, "200"},
		{"/cc1/b?comp=tier", []string{"x-ms-access-tier", "Archive"}, "501 NotSupported"},
		{"/cc1/b?comp=tier", nil, "400 MissingRequiredHeader"},
		{"/cc1/log?comp=tier", []string{"x-ms-access-tier", "Cool"}, "409 InvalidBlobType"},
		{"/cc1/none?comp=tier", []string{"x-ms-access-tier", "Cool"}, "404 BlobNotFound"},
	}
	for _, tt := range tests {
		w := f.do("PUT", tt.target, "", tt.headers...)
		if got := outcome(w.Code, w.Header().Get("x-ms-error-code")); got != tt.want {
			t.Errorf("%s %v = %s, want %s", tt.target, tt.headers, got, tt.want)
		}
	}
	if got := f.must(200, "HEAD", "/cc1/b", "").Header().Get("x-ms-access-tier"); got != "Cool" {
		t.Errorf("tier = %s", got)
	}
	// The account may stand in the path; another one is another one.
	f.host = "127.0.0.1:8443"
	f.must(202, "PUT", "/cc1/path-style", "", src("https://127.0.0.1:8443/acct1/cc1/b")...)
	f.must(501, "PUT", "/cc1/c", "", src("https://127.0.0.1:8443/acct1cc1/b")...)
	f.must(501, "PUT", "/cc1/c", "", src("https://127.0.0.1:8443/acct2/cc1/b")...)
	f.host = testHost
	// Whoever may write here may not therefore read there.
	f.container("secret")
	f.upload("/secret/b", "s")
	f.inner.deny = true
	f.must(403, "PUT", "/cc1/c", "", src(here+"/secret/b")...)
	f.must(403, "PUT", blockURL("/cc1/c", 1), "", src(here+"/secret/b")...)
	want := " " + dataRead + " true " + scopeOf(testAccount, "secret") + " " + resource.AuditData.String()
	if got := f.inner.asked[len(f.inner.asked)-1]; got != want {
		t.Errorf("asked %q, want %q", got, want)
	}
	f.must(404, "GET", "/cc1/c", "")
}
