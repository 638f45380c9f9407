package registry

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"

	"casemate.dev/store"
)

// The tests of THREATS.md, R28. The attacker's key stands in token_test.go.

// CVE-2024-39897: knowing a digest, or holding it in another repository, opens no blob.
func TestR28BlobNeedsItsRepository(t *testing.T) {
	f := newFixture(t)
	_, _, blob := f.image("private", "v1", []byte("secret layer"))
	f.refused(404, "BLOB_UNKNOWN", pusher, "GET", "/v2/mine/blobs/"+blob.String(), nil)
	f.refused(404, "BLOB_UNKNOWN", pusher, "HEAD", "/v2/mine/blobs/"+blob.String(), nil)
	f.refused(404, "BLOB_UNKNOWN", deleter, "DELETE", "/v2/mine/blobs/"+blob.String(), nil)
	f.must(403, nobody, "GET", "/v2/private/blobs/"+blob.String(), nil)
	f.must(401, "", "GET", "/v2/private/blobs/"+blob.String(), nil)

	// Mounting asks for the right to read there. Who may only push gets an upload instead, for bytes he does not have.
	f.mu.Lock()
	f.roles["writer"] = actPush
	f.mu.Unlock()
	w := f.must(202, "writer", "POST", "/v2/mine/blobs/uploads/?mount="+blob.String()+"&from=private", nil)
	f.refused(400, "DIGEST_INVALID", "writer", "PUT", w.Header().Get("Location")+"?digest="+blob.String(), []byte("guess"))
	f.must(202, pusher, "POST", "/v2/mine/blobs/uploads/?mount="+blob.String()+"&from=nothere", nil)
	f.refused(404, "BLOB_UNKNOWN", pusher, "GET", "/v2/mine/blobs/"+blob.String(), nil)
	f.must(201, pusher, "POST", "/v2/mine/blobs/uploads/?mount="+blob.String()+"&from=private", nil)
	f.must(200, puller, "GET", "/v2/mine/blobs/"+blob.String(), nil)
}

// CVE-2026-31801: setting a tag that exists, or any, needs the right to push; deleting needs its own.
func TestR28TagOverwriteNeedsPush(t *testing.T) {
	f := newFixture(t)
	m, _, blob := f.image("app", "v1", []byte("layer"))
	for _, who := range []string{puller, deleter, nobody} {
		f.refused(403, "DENIED", who, "PUT", "/v2/app/manifests/v1", m, "Content-Type", typeManifest)
		f.refused(403, "DENIED", who, "POST", "/v2/app/blobs/uploads/", nil)
	}
	for _, who := range []string{puller, pusher, nobody} {
		f.refused(403, "DENIED", who, "DELETE", "/v2/app/manifests/v1", nil)
		f.refused(403, "DENIED", who, "DELETE", "/v2/app/blobs/"+blob.String(), nil)
	}
	// Every row refuses who has no token and who has no role, whatever the path.
	for _, r := range f.routes {
		if r.Open != "" {
			continue
		}
		for _, path := range []string{"/v2/_catalog", "/v2/app/manifests/v1", "/v2/app/blobs/" + blob.String(), "/v2/app/blobs/uploads/", "/v2/app/blobs/uploads/11111111-1111-1111-1111-111111111111", "/v2/app/tags/list"} {
			if w := f.do("", r.Method, path, nil); w.Code != 401 && w.Code != 404 {
				t.Errorf("%s %s without a token: %d", r.Method, path, w.Code)
			}
			if w := f.do(nobody, r.Method, path, nil); w.Code != 403 && w.Code != 404 && w.Code != 405 {
				t.Errorf("%s %s without a role: %d", r.Method, path, w.Code)
			}
		}
	}
	f.must(200, puller, "GET", "/v2/app/manifests/v1", nil)
}

// CVE-2026-35172: what was deleted is served no more, by no path.
func TestR28DeletedIsGone(t *testing.T) {
	f := newFixture(t)
	m, config, blob := f.image("app", "v1", []byte("layer"))
	f.must(200, puller, "GET", "/v2/app/blobs/"+blob.String(), nil) // a cache would have it now
	f.must(202, deleter, "DELETE", "/v2/app/blobs/"+blob.String(), nil)
	for _, method := range []string{"GET", "HEAD"} {
		f.must(404, puller, method, "/v2/app/blobs/"+blob.String(), nil)
	}
	f.refused(404, "BLOB_UNKNOWN", deleter, "DELETE", "/v2/app/blobs/"+blob.String(), nil)
	f.must(202, pusher, "POST", "/v2/other/blobs/uploads/?mount="+blob.String()+"&from=app", nil)
	f.refused(400, "MANIFEST_BLOB_UNKNOWN", pusher, "PUT", "/v2/app/manifests/v2", m, "Content-Type", typeManifest)
	f.must(202, deleter, "DELETE", "/v2/app/manifests/"+digest.FromBytes(m).String(), nil)
	f.must(404, puller, "GET", "/v2/app/manifests/"+digest.FromBytes(m).String(), nil)
	f.must(404, puller, "GET", "/v2/app/manifests/v1", nil)
	f.must(404, puller, "GET", "/v2/app/blobs/"+config.String(), nil)
	if n := f.objects(); n != 0 {
		t.Errorf("the depot still holds %d objects", n)
	}
}

// CVE-2025-24976, CVE-2026-33540: nothing that a client sends makes the registry connect anywhere.
func TestR28NoUpstream(t *testing.T) {
	f := newFixture(t)
	var asked atomic.Int32
	upstream := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Add(1) }))
	defer upstream.Close()
	config, foreign := f.blob("app", []byte("{}")), digest.FromString("foreign")
	for _, typ := range []string{"application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"} {
		m := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":%q,"size":2},"layers":[{"mediaType":%q,"digest":%q,"size":7,"urls":[%q]}]}`,
			typeManifest, config, typ, foreign, upstream.URL+"/layer")
		if w := f.do(pusher, "PUT", "/v2/app/manifests/foreign", m, "Content-Type", typeManifest); w.Code != 400 {
			t.Errorf("a manifest with a foreign layer: %d %s", w.Code, w.Body)
		}
	}
	f.must(404, puller, "GET", "/v2/app/blobs/"+foreign.String(), nil)
	f.must(400, puller, "GET", "/v2/"+upstream.Listener.Addr().String()+"/app/manifests/v1?ns="+upstream.URL, nil)
	if n := asked.Load(); n != 0 {
		t.Errorf("the registry connected %d times", n)
	}
}

// Whatever the disk hands back, a client never gets other bytes than it asked for.
func TestSwappedContentBreaksOff(t *testing.T) {
	f := newFixture(t)
	a, b := f.blob("app", bytes.Repeat([]byte("a"), 200_000)), f.blob("app", bytes.Repeat([]byte("b"), 200_000))
	o, err := f.open(t.Context(), testRegistry.String())
	f.check(err)
	pa, err := split(blobPath(a) + "/data")
	f.check(err)
	pb, err := split(blobPath(b) + "/data")
	f.check(err)
	ka, kb := o.driver.fileKey(pa), o.driver.fileKey(pb)
	var old []byte
	f.check(f.store.Update(t.Context(), func(tx store.Txn) error { // b's record in a's place
		kv, err := tx.Get(ka)
		if err != nil {
			return err
		}
		old = kv.Value
		other, err := tx.Get(kb)
		if err != nil {
			return err
		}
		tx.Put(ka, other.Value)
		return nil
	}))
	if w := f.do(puller, "GET", "/v2/app/blobs/"+a.String(), nil); w.Code == 200 {
		t.Errorf("a record in another's place was served: %d bytes", w.Body.Len())
	}
	// Even sealed for its place by a faulty writer: the digest does not fit, and the last bytes stay back.
	f.check(f.store.Update(t.Context(), func(tx store.Txn) error {
		rec, _, err := o.driver.load(tx, kb, "")
		if err != nil {
			return err
		}
		sealed, err := o.driver.seal(ka, rec)
		tx.Put(ka, sealed)
		return err
	}))
	if w := f.do(puller, "GET", "/v2/app/blobs/"+a.String(), nil); w.Code != 0 || w.Body.Len() >= 200_000 {
		t.Errorf("another blob's content was served whole: %d, %d bytes", w.Code, w.Body.Len())
	}
	f.check(f.store.Update(t.Context(), func(tx store.Txn) error { tx.Put(ka, old); return nil }))
	f.must(200, puller, "GET", "/v2/app/blobs/"+a.String(), nil)
}
