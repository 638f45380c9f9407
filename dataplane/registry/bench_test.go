package registry

import (
	"bytes"
	"crypto/rand"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/opencontainers/go-digest"
)

// Over TLS, with everything sealed; compare with the figures of package dataplane/blob.
func BenchmarkLayer(b *testing.B) {
	f := newFixture(b)
	server := httptest.NewTLSServer(f)
	defer server.Close()
	client := server.Client()
	layer := make([]byte, 64<<20)
	_, _ = rand.Read(layer) // never fails, see crypto/rand
	send := func(method, target string, body []byte) *http.Response {
		r, err := http.NewRequestWithContext(b.Context(), method, server.URL+target, bytes.NewReader(body))
		f.check(err)
		r.Header.Set("Authorization", "Bearer "+f.people.token(pusher))
		resp, err := client.Do(r)
		f.check(err)
		return resp
	}
	d := digest.FromBytes(layer)
	b.Run("push", func(b *testing.B) {
		b.SetBytes(int64(len(layer)))
		for b.Loop() {
			loc := send("POST", "/v2/app/blobs/uploads/", nil).Header.Get("Location")
			loc = send("PATCH", loc, layer).Header.Get("Location")
			if resp := send("PUT", loc+"?digest="+d.String(), nil); resp.StatusCode != 201 {
				b.Fatal(resp.Status)
			}
			b.StopTimer()
			layer[0]++ // another blob each time
			d = digest.FromBytes(layer)
			b.StartTimer()
		}
	})
	d = f.blob("app", layer)
	b.Run("pull", func(b *testing.B) {
		b.SetBytes(int64(len(layer)))
		for b.Loop() {
			resp := send("GET", "/v2/app/blobs/"+d.String(), nil)
			if n, err := io.Copy(io.Discard, resp.Body); err != nil || n != int64(len(layer)) {
				b.Fatal(n, err)
			}
			f.check(resp.Body.Close())
		}
	})
}
