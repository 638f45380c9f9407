package volume

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
)

const (
	blockSize  = 4096
	sealedSize = blockSize + 12 + 16 // nonce, block, tag
	batch      = 256                 // blocks moved by one system call
)

var errNoSpace = errors.New("volume is full")

// quota counts blocks of one volume.
type quota struct {
	limit int64 // blocks
	used  atomic.Int64
}

func (q *quota) take() bool {
	if q.used.Add(1) > q.limit {
		q.used.Add(-1)
		return false
	}
	return true
}

// sealedFile is the contents of one file: blocks of 4 KiB, each sealed by AES-256-GCM with a random nonce under a key of this file alone.
//
//	block i at i*4124:  nonce (12) | ciphertext (4096) | tag (16)      additional data: i (8) | version of the block (4)
//
// Sizes and versions live in memory, so a raw file that is cut, reordered or rolled back on the disk is an error, never old bytes.
type sealedFile struct {
	file  *os.File
	quota *quota
	aead  cipher.AEAD

	mu       sync.RWMutex // guards the fields below and the file's bytes
	size     int64
	versions []uint32 // by block; 0 is a hole
}

func newSealedFile(path string, q *quota) (*sealedFile, error) {
	key := make([]byte, 32)
	rand.Read(key)
	defer clear(key)
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("making file key: %w", err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, fmt.Errorf("making file cipher: %w", err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("creating sealed file: %w", err)
	}
	return &sealedFile{file: f, quota: q, aead: aead}, nil
}

// destroy frees the space. The key goes with the last reference to s.
func (s *sealedFile) destroy() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dropFromLocked(0)
	return errors.Join(s.file.Close(), os.Remove(s.file.Name()))
}

func (s *sealedFile) Size() int64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.size
}

func (s *sealedFile) ReadAt(p []byte, off int64) (int, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if off >= s.size {
		return 0, nil
	}
	p = p[:min(int64(len(p)), s.size-off)]
	done := 0
	for done < len(p) {
		at := off + int64(done)
		first := at / blockSize
		want := min((at%blockSize+int64(len(p)-done)+blockSize-1)/blockSize, batch)
		plain, err := s.loadLocked(first, want)
		if err != nil {
			return done, err
		}
		done += copy(p[done:], plain[at%blockSize:])
	}
	return done, nil
}

// loadLocked opens n blocks from first; holes are zeros.
func (s *sealedFile) loadLocked(first, n int64) ([]byte, error) {
	sealed := make([]byte, n*sealedSize)
	if _, err := s.file.ReadAt(sealed, first*sealedSize); err != nil && !isEOF(err) {
		return nil, fmt.Errorf("reading sealed blocks: %w", err)
	}
	// The plaintext of block i lands before its own ciphertext is needed again: opening in place over the shorter stride is safe front to back
	// only into another buffer, so one is taken.
	plain := make([]byte, 0, n*blockSize)
	for i := first; i < first+n; i++ {
		if i >= int64(len(s.versions)) || s.versions[i] == 0 {
			plain = plain[:len(plain)+blockSize] // fresh memory is zero
			continue
		}
		var err error
		if plain, err = s.aead.Open(plain, nil, sealed[(i-first)*sealedSize:(i-first+1)*sealedSize], blockData(i, s.versions[i])); err != nil {
			return nil, fmt.Errorf("opening block %d: %w", i, err)
		}
	}
	return plain, nil
}

func blockData(i int64, version uint32) []byte {
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint64(make([]byte, 0, 12), uint64(i)), version)
}

func (s *sealedFile) WriteAt(p []byte, off int64) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	done := 0
	for done < len(p) {
		at := off + int64(done)
		first, skip := at/blockSize, at%blockSize
		n := min((skip+int64(len(p)-done)+blockSize-1)/blockSize, batch)
		m := min(int64(len(p)-done), n*blockSize-skip)
		if err := s.storeLocked(first, n, skip, p[done:int64(done)+m]); err != nil {
			return done, err
		}
		done += int(m)
		s.size = max(s.size, at+m)
	}
	return done, nil
}

// storeLocked seals data into n blocks from first, skip bytes into the first of them. Blocks written in part are read first.
func (s *sealedFile) storeLocked(first, n, skip int64, data []byte) error {
	plain := data
	if skip != 0 || int64(len(data)) != n*blockSize {
		plain = make([]byte, n*blockSize)
		for _, edge := range []int64{0, n - 1} {
			old, err := s.loadLocked(first+edge, 1)
			if err != nil {
				return err
			}
			copy(plain[edge*blockSize:], old)
		}
		copy(plain[skip:], data)
	}
	if grow := first + n - int64(len(s.versions)); grow > 0 {
		s.versions = append(s.versions, make([]uint32, grow)...)
	}
	sealed := make([]byte, 0, n*sealedSize)
	for i := first; i < first+n; i++ {
		if s.versions[i] == 0 && !s.quota.take() {
			s.forgetLocked(first, i) // those taken in this call have no bytes yet
			return errNoSpace
		}
		s.versions[i]++
		sealed = s.aead.Seal(sealed, nil, plain[(i-first)*blockSize:(i-first+1)*blockSize], blockData(i, s.versions[i]))
	}
	if _, err := s.file.WriteAt(sealed, first*sealedSize); err != nil {
		return fmt.Errorf("writing sealed blocks: %w", err)
	}
	return nil
}

// forgetLocked undoes the version step of blocks that were not written.
func (s *sealedFile) forgetLocked(from, to int64) {
	for i := from; i < to; i++ {
		if s.versions[i]--; s.versions[i] == 0 {
			s.quota.used.Add(-1)
		}
	}
}

// Truncate sets the size; bytes beyond the old end read as zeros.
func (s *sealedFile) Truncate(size int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if size < s.size {
		// What is cut off must not come back when the file grows again.
		if rest := size % blockSize; rest != 0 && size/blockSize < int64(len(s.versions)) && s.versions[size/blockSize] != 0 {
			if err := s.storeLocked(size/blockSize, 1, rest, make([]byte, blockSize-rest)); err != nil {
				return err
			}
		}
		keep := (size + blockSize - 1) / blockSize
		s.dropFromLocked(keep)
		if err := s.file.Truncate(keep * sealedSize); err != nil {
			return fmt.Errorf("cutting sealed file: %w", err)
		}
	}
	s.size = size
	return nil
}

func (s *sealedFile) dropFromLocked(block int64) {
	if block >= int64(len(s.versions)) {
		return
	}
	for _, v := range s.versions[block:] {
		if v != 0 {
			s.quota.used.Add(-1)
		}
	}
	s.versions = s.versions[:block:block]
}
