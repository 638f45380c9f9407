package agent

import (
	"encoding/base64"
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"sort"
	"strings"
	"sync"
	"time"
)

// blobs is a small Blob service and identity endpoint, written for these tests.
type blobs struct {
	mu      sync.Mutex
	data    map[string]string            // path → contents
	blocks  map[string]map[string]string // path → block id → contents
	commits map[string]int
	fail    int // answers 503 to so many requests
	tokens  int
	changed chan struct{} // gets a value after each commit
}

func newBlobs() *blobs {
	return &blobs{data: map[string]string{}, blocks: map[string]map[string]string{}, commits: map[string]int{}, changed: make(chan struct{}, 1000)}
}

func (b *blobs) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if r.URL.Path == "/identity" {
		if r.Header.Get("X-IDENTITY-HEADER") != "node-secret" || r.URL.Query().Get("resource") != "https://storage.azure.com/" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		b.tokens++
		fmt.Fprintf(w, `{"access_token":"token-%d","expires_on":"%d"}`, b.tokens, time.Now().Add(time.Hour).Unix())
		return
	}
	if !strings.HasPrefix(r.Header.Get("Authorization"), "Bearer token-") || r.Header.Get("x-ms-version") == "" {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	if b.fail > 0 {
		b.fail--
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	body, _ := io.ReadAll(r.Body)
	q := r.URL.Query()
	switch {
	case q.Get("comp") == "list":
		b.list(w, strings.TrimPrefix(r.URL.Path, "/"), q.Get("prefix"), q.Get("marker"))
	case r.Method == http.MethodGet:
		data, ok := b.data[r.URL.Path]
		if !ok {
			w.Header().Set("x-ms-error-code", "BlobNotFound")
			w.WriteHeader(http.StatusNotFound)
			return
		}
		io.WriteString(w, data)
	case q.Get("comp") == "block" && len(body) == 0: // Put Block: Content-Length must be greater than zero
		w.Header().Set("x-ms-error-code", "InvalidHeaderValue")
		w.WriteHeader(http.StatusBadRequest)
	case q.Get("comp") == "block":
		if b.blocks[r.URL.Path] == nil {
			b.blocks[r.URL.Path] = map[string]string{}
		}
		b.blocks[r.URL.Path][q.Get("blockid")] = string(body)
		w.WriteHeader(http.StatusCreated)
	case q.Get("comp") == "blocklist":
		var list struct{ Latest []string }
		if err := xml.Unmarshal(body, &list); err != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		text := ""
		for _, id := range list.Latest {
			if _, err := base64.StdEncoding.DecodeString(id); err != nil {
				w.WriteHeader(http.StatusBadRequest)
				return
			}
			text += b.blocks[r.URL.Path][id]
		}
		b.data[r.URL.Path] = text
		b.commits[r.URL.Path]++
		w.WriteHeader(http.StatusCreated)
		b.changed <- struct{}{}
	case r.Header.Get("x-ms-blob-type") == "BlockBlob":
		b.data[r.URL.Path] = string(body)
		w.WriteHeader(http.StatusCreated)
	default:
		w.WriteHeader(http.StatusBadRequest)
	}
}

// list gives one blob a page, so that markers are followed.
func (b *blobs) list(w io.Writer, container, prefix, marker string) {
	var names []string
	for p := range b.data {
		if name, ok := strings.CutPrefix(p, "/"+container+"/"); ok && strings.HasPrefix(name, prefix) && name > marker {
			names = append(names, name)
		}
	}
	sort.Strings(names)
	fmt.Fprint(w, "<EnumerationResults><Blobs>")
	next := ""
	if len(names) > 0 {
		fmt.Fprintf(w, "<Blob><Name>%s</Name><Properties><Content-Length>%d</Content-Length></Properties></Blob>", names[0], len(b.data["/"+container+"/"+names[0]]))
		if len(names) > 1 {
			next = names[0]
		}
	}
	fmt.Fprintf(w, "</Blobs><NextMarker>%s</NextMarker></EnumerationResults>", next)
}

func (b *blobs) get(path string) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.data[path]
}
