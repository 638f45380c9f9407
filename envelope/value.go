package envelope

import (
	"crypto/cipher"
	"crypto/rand"
	"sync/atomic"
)

const (
	// maxRun is half of what NIST allows one key with random nonces.
	maxRun = 1 << 31
	// maxOpenings bounds the ciphers kept for opening: one for each run whose
	// values are being read, some 700 bytes each.
	maxOpenings = 1024
)

// valueRun is the cipher for the values that a handle seals. A run has its own
// random salt and so its own key; since nobody else ever uses that salt, the
// count in memory is the whole count. It makes a value cost one GCM call and
// no derivation, however many processes and years share the resource key.
type valueRun struct {
	salt [valueSaltSize]byte
	aead cipher.AEAD
	used atomic.Int64
}

// SealBytes seals a small value that belongs to the place named object.
func (h *Handle) SealBytes(object string, plain []byte) ([]byte, error) {
	if err := h.Check(); err != nil {
		return nil, err
	}
	run := h.sealing.Load()
	if run == nil || run.used.Add(1) > maxRun {
		var err error
		if run, err = h.newRun(run); err != nil {
			return nil, err
		}
	}
	out := make([]byte, valuePrefix, ValueOverhead+len(plain))
	out[0] = formatVersion
	copy(out[1:], run.salt[:])
	return run.aead.Seal(out, nil, plain, []byte(object)), nil
}

// newRun replaces old by a run of one use. When several callers come at once,
// each gets a run of its own and one of them stays.
func (h *Handle) newRun(old *valueRun) (*valueRun, error) {
	run := new(valueRun)
	rand.Read(run.salt[:])
	run.used.Store(1)
	var err error
	if run.aead, err = h.derive(run.salt[:], labelValue); err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ended.Load() == nil && h.sealing.Load() == old {
		h.sealing.Store(run)
	}
	return run, nil
}

// OpenBytes opens what SealBytes sealed for the same object. The result is the
// caller's.
func (h *Handle) OpenBytes(object string, sealed []byte) ([]byte, error) {
	if err := h.Check(); err != nil {
		return nil, err
	}
	if len(sealed) < ValueOverhead || sealed[0] != formatVersion {
		return nil, corrupt("it is not a sealed value")
	}
	salt := [valueSaltSize]byte(sealed[1:])
	aead, known := h.opening(salt)
	if !known {
		var err error
		if aead, err = h.derive(salt[:], labelValue); err != nil {
			return nil, err
		}
	}
	plain, err := aead.Open(nil, nil, sealed[valuePrefix:], []byte(object))
	if err != nil {
		return nil, corrupt("the value is not what %s sealed for this place", h.id)
	}
	if !known { // only true salts, so that garbage does not push them out
		h.keepOpening(salt, aead)
	}
	return plain, nil
}

func (h *Handle) opening(salt [valueSaltSize]byte) (cipher.AEAD, bool) {
	if run := h.sealing.Load(); run != nil && run.salt == salt {
		return run.aead, true
	}
	h.openMu.RLock()
	defer h.openMu.RUnlock()
	aead, ok := h.openings[salt]
	return aead, ok
}

func (h *Handle) keepOpening(salt [valueSaltSize]byte, aead cipher.AEAD) {
	h.openMu.Lock()
	defer h.openMu.Unlock()
	if h.openings == nil {
		return // the epoch has ended
	}
	if len(h.openings) >= maxOpenings {
		for other := range h.openings {
			delete(h.openings, other) // any will do; it can be derived again
			break
		}
	}
	h.openings[salt] = aead
}
