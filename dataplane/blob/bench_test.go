package blob

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	"casemate.dev/store/depot/file"
)

// The benchmarks compare with the plainest file server that Go can make: TLS, a file, fsync, no encryption at rest, no
// records. The target is 60 % of it. They need a depot on a disk; see BenchmarkPut64MiB.

const benchSize = 64 << 20

func benchBody() []byte {
	body := make([]byte, benchSize)
	rand.Read(body)
	return body
}

// plainServer is the peer.
func plainServer(dir string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		path := filepath.Join(dir, filepath.Base(r.URL.Path))
		if r.Method == http.MethodGet {
			http.ServeFile(w, r, path)
			return
		}
		f, err := os.CreateTemp(dir, "put")
		if err == nil {
			_, err = io.Copy(f, r.Body)
		}
		if err == nil {
			err = f.Sync()
		}
		if err == nil {
			err = f.Close()
		}
		if err == nil {
			err = os.Rename(f.Name(), path)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.WriteHeader(http.StatusCreated)
	})
}

// transfer runs one PUT or GET after the other over TLS.
func transfer(b *testing.B, h http.Handler, method, target string, body []byte) {
	srv := httptest.NewUnstartedServer(h)
	srv.TLS = &tls.Config{MinVersion: tls.VersionTLS13}
	srv.StartTLS()
	defer srv.Close()
	client := srv.Client()
	send := func(method string) {
		var r io.Reader
		if method == "PUT" {
			r = bytes.NewReader(body)
		}
		req, err := http.NewRequest(method, srv.URL+target, r)
		if err != nil {
			b.Fatal(err)
		}
		req.Header.Set("x-ms-blob-type", "BlockBlob")
		resp, err := client.Do(req)
		if err != nil {
			b.Fatal(err)
		}
		n, err := io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode > 299 || method == "GET" && n != benchSize {
			b.Fatalf("%s = %d, %d bytes, %v", method, resp.StatusCode, n, err)
		}
	}
	send("PUT")
	b.SetBytes(benchSize)
	b.ResetTimer()
	for b.Loop() {
		send(method)
	}
}

func benchTransfer(b *testing.B, method string) {
	body := benchBody()
	b.Run("casemate", func(b *testing.B) {
		f := newFixture(b)
		f.useDisk(b)
		f.container("bench")
		transfer(b, f, method, "/bench/b", body)
	})
	b.Run("plain", func(b *testing.B) {
		transfer(b, plainServer(b.TempDir()), method, "/b", body)
	})
}

func BenchmarkPut64MiB(b *testing.B) { benchTransfer(b, "PUT") }
func BenchmarkGet64MiB(b *testing.B) { benchTransfer(b, "GET") }

// useDisk puts the depot and the sweeper's work where production has them.
func (f *fixture) useDisk(b *testing.B) {
	b.Helper()
	d, err := file.Open(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	f.Service.depot = d
}
