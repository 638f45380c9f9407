package registry

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
)

// The basics of the OCI conformance suite: pull, push, content discovery, content management.
func TestPushAndPull(t *testing.T) {
	f := newFixture(t)
	layer := bytes.Repeat([]byte("layer bytes "), 40_000)
	m, config, blob := f.image("team/app", "v1", layer)
	d := digest.FromBytes(m)
	for _, ref := range []string{"v1", d.String()} {
		w := f.must(200, puller, "GET", "/v2/team/app/manifests/"+ref, nil)
		if !bytes.Equal(w.Body.Bytes(), m) || w.Header().Get("Docker-Content-Digest") != d.String() || w.Header().Get("Content-Type") != typeManifest {
			t.Errorf("manifest %s: %v %s", ref, w.Header(), w.Body)
		}
		if w := f.must(200, puller, "HEAD", "/v2/team/app/manifests/"+ref, nil); w.Body.Len() != 0 || w.Header().Get("Content-Length") != fmt.Sprint(len(m)) {
			t.Errorf("HEAD manifest: %v", w.Header())
		}
	}
	w := f.must(200, puller, "GET", "/v2/team/app/blobs/"+blob.String(), nil)
	if !bytes.Equal(w.Body.Bytes(), layer) {
		t.Error("another layer came back")
	}
	w = f.must(206, puller, "GET", "/v2/team/app/blobs/"+blob.String(), nil, "Range", "bytes=70000-70011")
	if got := w.Body.String(); got != string(layer[70000:70012]) {
		t.Errorf("range = %q", got)
	}
	f.must(416, puller, "GET", "/v2/team/app/blobs/"+blob.String(), nil, "Range", "bytes=9999999-")
	if w := f.must(200, puller, "HEAD", "/v2/team/app/blobs/"+config.String(), nil); w.Header().Get("Content-Length") == "" {
		t.Error("HEAD blob without a length")
	}
	f.image("team/app", "v2", layer)
	f.image("other", "latest", layer)
	var tags struct {
		Name string
		Tags []string
	}
	w = f.must(200, puller, "GET", "/v2/team/app/tags/list?n=1", nil)
	f.check(json.Unmarshal(w.Body.Bytes(), &tags))
	if diff := cmp.Diff([]string{"v1"}, tags.Tags); diff != "" || !strings.Contains(w.Header().Get("Link"), "last=v1&n=1") {
		t.Error(diff, w.Header())
	}
	f.check(json.Unmarshal(f.must(200, puller, "GET", "/v2/team/app/tags/list?last=v1", nil).Body.Bytes(), &tags))
	if diff := cmp.Diff([]string{"v2"}, tags.Tags); diff != "" {
		t.Error(diff)
	}
	if got := f.must(200, pusher, "GET", "/v2/_catalog", nil).Body.String(); got != `{"repositories":["other","team/app"]}` {
		t.Error(got)
	}
	if got := f.must(200, pusher, "GET", "/v2/_catalog?n=1&last=other", nil).Body.String(); got != `{"repositories":["team/app"]}` {
		t.Error(got)
	}
}

func TestRefusals(t *testing.T) {
	f := newFixture(t)
	m, config, blob := f.image("app", "v1", []byte("layer"))
	absent := digest.FromString("absent").String()
	index := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{"mediaType":%q,"digest":%q,"size":10,"platform":{"os":"linux","architecture":"amd64"}}]}`, typeManifest, absent)
	for name, tt := range map[string]struct {
		status       int
		code         string
		method, path string
		body         []byte
		header       []string
	}{
		"unknown tag":           {404, "MANIFEST_UNKNOWN", "GET", "/v2/app/manifests/v9", nil, nil},
		"unknown digest":        {404, "MANIFEST_UNKNOWN", "GET", "/v2/app/manifests/" + absent, nil, nil},
		"unknown repository":    {404, "NAME_UNKNOWN", "GET", "/v2/none/tags/list", nil, nil},
		"bad repository":        {400, "NAME_INVALID", "GET", "/v2/App/manifests/v1", nil, nil},
		"dots in repository":    {400, "NAME_INVALID", "GET", "/v2/app/../app/manifests/v1", nil, nil},
		"private repository":    {400, "NAME_INVALID", "GET", "/v2/app/_uploads/manifests/v1", nil, nil},
		"bad tag":               {400, "MANIFEST_INVALID", "GET", "/v2/app/manifests/a%20b", nil, nil},
		"unknown blob":          {404, "BLOB_UNKNOWN", "GET", "/v2/app/blobs/" + absent, nil, nil},
		"bad digest":            {400, "DIGEST_INVALID", "GET", "/v2/app/blobs/sha256:abc", nil, nil},
		"other path":            {404, "UNSUPPORTED", "GET", "/v2/app/secrets", nil, nil},
		"referrers":             {404, "UNSUPPORTED", "GET", "/v2/app/referrers/" + absent, nil, nil},
		"wrong method":          {405, "UNSUPPORTED", "PUT", "/v2/app/tags/list", nil, nil},
		"manifest, no type":     {400, "MANIFEST_INVALID", "PUT", "/v2/app/manifests/v2", m, nil},
		"manifest, other type":  {400, "MANIFEST_INVALID", "PUT", "/v2/app/manifests/v2", m, []string{"Content-Type", "text/html"}},
		"manifest, no JSON":     {400, "MANIFEST_INVALID", "PUT", "/v2/app/manifests/v2", []byte("{"), []string{"Content-Type", typeManifest}},
		"manifest, too large":   {413, "SIZE_INVALID", "PUT", "/v2/app/manifests/v2", make([]byte, maxManifest+1), []string{"Content-Type", typeManifest}},
		"manifest, other bytes": {400, "DIGEST_INVALID", "PUT", "/v2/app/manifests/" + absent, m, []string{"Content-Type", typeManifest}},
		"manifest, no layer": {400, "MANIFEST_BLOB_UNKNOWN", "PUT", "/v2/app/manifests/v2", manifest(config, digest.Digest(absent), 1, 1),
			[]string{"Content-Type", typeManifest}},
		"manifest, layer of another repository": {400, "MANIFEST_BLOB_UNKNOWN", "PUT", "/v2/another/manifests/v2", m, []string{"Content-Type", typeManifest}},
		"index, no image":                       {400, "MANIFEST_BLOB_UNKNOWN", "PUT", "/v2/app/manifests/v2", index, []string{"Content-Type", "application/vnd.oci.image.index.v1+json"}},
		"upload, no such":                       {404, "BLOB_UPLOAD_UNKNOWN", "PATCH", "/v2/app/blobs/uploads/11111111-1111-1111-1111-111111111111", []byte("x"), nil},
		"upload, no id":                         {404, "BLOB_UPLOAD_UNKNOWN", "PATCH", "/v2/app/blobs/uploads/xyz", []byte("x"), nil},
		"page":                                  {400, "PAGINATION_NUMBER_INVALID", "GET", "/v2/app/tags/list?n=-1", nil, nil},
		"mount, bad digest":                     {400, "DIGEST_INVALID", "POST", "/v2/app/blobs/uploads/?mount=x&from=y", nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			f.t = t
			f.refused(tt.status, tt.code, pusher, tt.method, tt.path, tt.body, tt.header...)
		})
	}
	f.t = t
	f.must(200, puller, "GET", "/v2/app/blobs/"+blob.String(), nil)
}

func TestUploads(t *testing.T) {
	f := newFixture(t)
	content := bytes.Repeat([]byte("0123456789abcdef"), 20_000)
	d := digest.FromBytes(content)
	begin := func() string {
		return f.must(202, pusher, "POST", "/v2/app/blobs/uploads/", nil).Header().Get("Location")
	}
	t.Run("chunks", func(t *testing.T) {
		f.t = t
		loc := begin()
		for at := 0; at < len(content); at += 100_000 {
			end := min(at+100_000, len(content))
			w := f.must(202, pusher, "PATCH", loc, content[at:end], "Content-Range", fmt.Sprintf("%d-%d", at, end-1))
			if got := w.Header().Get("Range"); got != fmt.Sprintf("0-%d", end-1) {
				t.Errorf("Range = %q", got)
			}
			loc = w.Header().Get("Location")
		}
		f.refused(416, "BLOB_UPLOAD_INVALID", pusher, "PATCH", loc, []byte("x"), "Content-Range", "5-5")
		f.must(204, pusher, "GET", loc, nil)
		f.must(201, pusher, "PUT", loc+"?digest="+d.String(), nil)
		if got := f.must(200, puller, "GET", "/v2/app/blobs/"+d.String(), nil).Body.Bytes(); !bytes.Equal(got, content) {
			t.Error("chunks come back as something else")
		}
		if got := f.must(206, puller, "GET", "/v2/app/blobs/"+d.String(), nil, "Range", "bytes=99990-100009").Body.String(); got != string(content[99990:100010]) {
			t.Errorf("a range over two chunks = %q", got)
		}
		f.refused(404, "BLOB_UPLOAD_UNKNOWN", pusher, "GET", loc, nil)
	})
	t.Run("at once", func(t *testing.T) {
		f.t = t
		f.must(201, pusher, "POST", "/v2/once/blobs/uploads/?digest="+d.String(), content)
		f.must(200, puller, "GET", "/v2/once/blobs/"+d.String(), nil)
	})
	t.Run("empty", func(t *testing.T) {
		f.t = t
		f.must(201, pusher, "PUT", begin()+"?digest="+digest.FromString("").String(), nil)
		f.must(200, puller, "GET", "/v2/app/blobs/"+digest.FromString("").String(), nil)
	})
	t.Run("wrong digest", func(t *testing.T) {
		f.t = t
		loc := begin()
		f.must(202, pusher, "PATCH", loc, content)
		f.refused(400, "DIGEST_INVALID", pusher, "PUT", loc+"?digest="+digest.FromString("other").String(), nil)
		f.refused(404, "BLOB_UPLOAD_UNKNOWN", pusher, "GET", loc, nil)
		f.refused(404, "BLOB_UNKNOWN", puller, "GET", "/v2/app/blobs/"+digest.FromString("other").String(), nil)
	})
	t.Run("no digest", func(t *testing.T) {
		f.t = t
		f.refused(400, "DIGEST_INVALID", pusher, "PUT", begin(), content)
	})
	t.Run("cancelled", func(t *testing.T) {
		f.t = t
		before := f.objects()
		loc := begin()
		f.must(202, pusher, "PATCH", loc, content)
		f.must(204, pusher, "DELETE", loc, nil)
		f.refused(404, "BLOB_UPLOAD_UNKNOWN", pusher, "PUT", loc+"?digest="+d.String(), nil)
		if got := f.objects(); got != before {
			t.Errorf("the depot holds %d objects, want %d", got, before)
		}
	})
	t.Run("over a restart", func(t *testing.T) {
		f.t = t
		loc := begin()
		f.must(202, pusher, "PATCH", loc, content[:150_000])
		f.restart()
		f.check(f.sweepOrphans(t.Context()))
		if got := f.must(204, pusher, "GET", loc, nil).Header().Get("Range"); got != "0-149999" {
			t.Fatalf("Range = %q", got)
		}
		f.must(202, pusher, "PATCH", loc, content[150_000:])
		f.must(201, pusher, "PUT", loc+"?digest="+d.String(), nil)
	})
	t.Run("one request at a time", func(t *testing.T) {
		f.t = t
		loc := begin()
		id := loc[strings.LastIndexByte(loc, '/')+1:]
		o, err := f.open(t.Context(), testRegistry.String())
		f.check(err)
		leave, _ := f.busy.enter(o.driver.incarnation + "/" + id)
		f.refused(409, "BLOB_UPLOAD_INVALID", pusher, "PATCH", loc, content)
		leave()
		f.must(202, pusher, "PATCH", loc, content)
	})
	t.Run("abandoned", func(t *testing.T) {
		f.t = t
		old, young := begin(), begin()
		before := f.objects()
		f.must(202, pusher, "PATCH", old, content)
		f.advance(uploadLife - time.Minute)
		f.must(202, pusher, "PATCH", young, content)
		f.advance(2 * time.Minute)
		f.check(f.SweepUploads(t.Context()))
		f.refused(404, "BLOB_UPLOAD_UNKNOWN", pusher, "GET", old, nil)
		f.must(204, pusher, "GET", young, nil)
		if got := f.objects(); got > before+1 {
			t.Errorf("the depot holds %d objects, want at most %d", got, before+1)
		}
	})
}

// A body that ends early leaves what had arrived, and the client goes on there.
func TestBrokenUploadGoesOn(t *testing.T) {
	f := newFixture(t)
	content := bytes.Repeat([]byte("x"), 200_000)
	loc := f.must(202, pusher, "POST", "/v2/app/blobs/uploads/", nil).Header().Get("Location")
	r := httptest.NewRequest("PATCH", loc, bytes.NewReader(content[:120_000]))
	r.ContentLength = int64(len(content))
	r.Header.Set("Authorization", "Bearer "+f.people.token(pusher))
	w := httptest.NewRecorder()
	f.ServeHTTP(w, r)
	if w.Code != 400 {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	if got := f.must(204, pusher, "GET", loc, nil).Header().Get("Range"); got != "0-119999" {
		t.Fatalf("Range = %q", got)
	}
	f.must(202, pusher, "PATCH", loc, content[120_000:])
	f.must(201, pusher, "PUT", loc+"?digest="+digest.FromBytes(content).String(), nil)
}

func TestDelete(t *testing.T) {
	f := newFixture(t)
	shared, own := bytes.Repeat([]byte("shared"), 30_000), bytes.Repeat([]byte("own"), 60_000)
	m1, _, sharedBlob := f.image("app", "v1", shared)
	_, _, ownBlob := f.image("app", "v2", own)
	f.image("other", "v1", shared)
	f.must(201, pusher, "PUT", "/v2/app/manifests/again", m1, "Content-Type", typeManifest)
	f.must(202, deleter, "DELETE", "/v2/app/manifests/again", nil)
	f.refused(404, "MANIFEST_UNKNOWN", puller, "GET", "/v2/app/manifests/again", nil)
	f.refused(404, "MANIFEST_UNKNOWN", deleter, "DELETE", "/v2/app/manifests/again", nil)
	f.must(200, puller, "GET", "/v2/app/manifests/v1", nil)

	f.must(202, deleter, "DELETE", "/v2/app/manifests/"+digest.FromBytes(m1).String(), nil)
	f.refused(404, "MANIFEST_UNKNOWN", puller, "GET", "/v2/app/manifests/v1", nil)
	f.refused(404, "MANIFEST_UNKNOWN", puller, "GET", "/v2/app/manifests/"+digest.FromBytes(m1).String(), nil)
	f.refused(404, "BLOB_UNKNOWN", puller, "GET", "/v2/app/blobs/"+sharedBlob.String(), nil)
	f.must(200, puller, "GET", "/v2/other/blobs/"+sharedBlob.String(), nil) // the other repository keeps it
	f.must(200, puller, "GET", "/v2/app/blobs/"+ownBlob.String(), nil)
	f.must(200, puller, "GET", "/v2/app/manifests/v2", nil)

	f.must(202, deleter, "DELETE", "/v2/other/blobs/"+sharedBlob.String(), nil)
	if got := f.objects(); got != 2 {
		t.Errorf("the depot holds %d objects, want the layer and the configuration that are left", got)
	}
}

func TestDestroyRegistry(t *testing.T) {
	f := newFixture(t)
	f.image("app", "v1", bytes.Repeat([]byte("layer"), 50_000))
	f.check(f.DestroyRegistry(t.Context(), testRegistry))
	f.check(f.DestroyRegistry(t.Context(), testRegistry))
	f.refused(404, "NAME_UNKNOWN", puller, "GET", "/v2/app/manifests/v1", nil)
	if got := f.objects(); got != 0 {
		t.Errorf("the depot holds %d objects", got)
	}
	f.check(f.CreateRegistry(t.Context(), testRegistry))
	f.refused(404, "MANIFEST_UNKNOWN", puller, "GET", "/v2/app/manifests/v1", nil)
}

func TestNothingInPlaintext(t *testing.T) {
	f := newFixture(t)
	layer := append(bytes.Repeat([]byte{0}, 100_000), "canary-in-layer"...)
	f.image("canary/repository", "canary-tag", layer)
	loc := f.must(202, pusher, "POST", "/v2/canary/upload/blobs/uploads/", nil).Header().Get("Location")
	f.must(202, pusher, "PATCH", loc, []byte("canary-in-upload"))
	f.plaintext("canary", "repositories", "layers")
	// The values of records are sealed too, whatever the metadata store does.
	o, err := f.open(t.Context(), testRegistry.String())
	f.check(err)
	keys, err := f.scanKeys(t.Context(), o.driver.below(nil))
	f.check(err)
	if len(keys) < 5 {
		t.Fatalf("%d records", len(keys))
	}
}

func TestRevocation(t *testing.T) {
	f := newFixture(t)
	layer := bytes.Repeat([]byte("layer bytes "), 400_000)
	_, _, blob := f.image("app", "v1", layer)
	loc := f.must(202, pusher, "POST", "/v2/app/blobs/uploads/", nil).Header().Get("Location")

	server := httptest.NewServer(f)
	defer server.Close()
	get, err := http.NewRequestWithContext(t.Context(), "GET", server.URL+"/v2/app/blobs/"+blob.String(), nil)
	f.check(err)
	get.Header.Set("Authorization", "Bearer "+f.people.token(puller))
	resp, err := http.DefaultClient.Do(get)
	f.check(err)
	defer func() { _ = resp.Body.Close() }() // read below
	begun := make([]byte, 100_000)
	if _, err := resp.Body.Read(begun); err != nil {
		t.Fatal(err)
	}
	f.revoke()
	rest := new(bytes.Buffer)
	if _, err := rest.ReadFrom(resp.Body); err == nil {
		t.Errorf("a download went on to its end after the key was revoked")
	}

	for _, req := range [][2]string{{"GET", "/v2/app/blobs/" + blob.String()}, {"GET", "/v2/app/manifests/v1"}, {"GET", "/v2/_catalog"}, {"PATCH", loc}, {"POST", "/v2/app/blobs/uploads/"}} {
		if msg := f.refused(403, "DENIED", pusher, req[0], req[1], []byte("x")); !strings.Contains(msg, testKeyURL) {
			t.Errorf("%v: %q does not name the key", req, msg)
		}
	}
	f.check(f.SweepUploads(t.Context())) // passes over it
	f.vault.set(false)
	f.keys.Revoked(testKeyURL) // told of the change back
	f.must(200, puller, "GET", "/v2/app/blobs/"+blob.String(), nil)
	f.must(202, pusher, "PATCH", loc, []byte("x"))
}
