package registry

import (
	"bytes"
	"regexp"
	"strconv"
	"sync"

	storagedriver "github.com/distribution/distribution/v3/registry/storage/driver"
)

// hashes remember how far the digest of an upload has come, so that its bytes need not be read again when it is completed.
// Distribution would keep that as files; here it stays in memory. A remembered state stands for bytes that this process
// has stored, one request at a time (see sessions). Were it kept, another process that writes to the same upload could make
// the state and the bytes differ, and so give content a digest it does not have. Without a state everything is hashed again.
type hashes struct {
	mu sync.Mutex
	m  map[string]state // by incarnation and path of the upload
}

// state is the newest one of an upload; older ones are of no use.
type state struct {
	offset string
	data   []byte
}

// maxHashes bounds the memory: uploads beyond it are hashed again.
const maxHashes = 10_000

// hashStatePath is where distribution keeps the states: {upload}/hashstates/{algorithm}/{offset}.
var hashStatePath = regexp.MustCompile(`^(.*/_uploads/[^/]+)/hashstates/[^/]+/([0-9]*)$`)

func hashState(path string) (upload, offset string, ok bool) {
	m := hashStatePath.FindStringSubmatch(path)
	if m == nil {
		return "", "", false
	}
	return m[1], m[2], true
}

func (h *hashes) put(upload, offset string, data []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, err := strconv.ParseInt(offset, 10, 64); err != nil || h.m[upload].data == nil && len(h.m) >= maxHashes {
		return
	}
	if h.m == nil {
		h.m = map[string]state{}
	}
	h.m[upload] = state{offset, bytes.Clone(data)}
}

func (h *hashes) get(upload, offset, path string) ([]byte, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if s, ok := h.m[upload]; ok && s.offset == offset {
		return bytes.Clone(s.data), nil
	}
	return nil, storagedriver.PathNotFoundError{Path: path, DriverName: driverName}
}

func (h *hashes) list(upload, dir string) ([]string, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if s, ok := h.m[upload]; ok {
		return []string{dir + "/" + s.offset}, nil
	}
	return nil, storagedriver.PathNotFoundError{Path: dir, DriverName: driverName}
}

func (h *hashes) forget(upload string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.m, upload)
}
