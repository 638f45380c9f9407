package envelope

import (
	"context"
	"time"

	"casemate.dev/internal/durable"
)

const (
	SegmentSize   = segmentSize
	HeaderSize    = headerSize
	SealedSegment = sealedSegment
)

// HandleOf makes a handle of a known key, for vectors and the oracle.
func HandleOf(resourceID string, raw [keySize]byte) *Handle {
	return newHandle(newWorkspace(time.Now, time.Minute), canonicalID(resourceID), &key{b: raw}, &binding{})
}

// OpenHierarchyOn is OpenHierarchy with a disk that can fail.
func OpenHierarchyOn(ctx context.Context, disk durable.FS, dir string, root Root) (*Hierarchy, error) {
	return openHierarchy(ctx, disk, dir, root)
}

// FileRootOn is the file root with a disk that can fail.
func FileRootOn(disk durable.FS, path string) Root { return &fileRoot{path: path, disk: disk} }

// EndRun makes the next SealBytes draw a new salt.
func EndRun(h *Handle) {
	if run := h.sealing.Load(); run != nil {
		run.used.Store(maxRun)
	}
}

// KeyBytes shows whether the secret was zeroed.
func KeyBytes(h *Handle) [keySize]byte {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.secret.b
}

// Openings is the number of ciphers kept for opening values.
func Openings(h *Handle) int {
	h.openMu.RLock()
	defer h.openMu.RUnlock()
	return len(h.openings)
}

const MaxOpenings = maxOpenings
