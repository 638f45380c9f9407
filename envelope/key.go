package envelope

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"io"
)

const (
	keySize   = 32 // AES-256 everywhere
	nonceSize = 12
	tagSize   = 16
	// overhead is what NewGCMWithRandomNonce adds: the nonce in front, the tag behind.
	overhead = nonceSize + tagSize
)

// Labels of the derivations, one for each use of a key, so that no two uses
// ever share a derived key. They are part of the published formats.
const (
	labelObject      = "casemate.dev/envelope/1 object"
	labelValue       = "casemate.dev/envelope/1 value"
	labelKeyID       = "casemate.dev/envelope/1 key id"
	labelResourceKey = "casemate.dev/envelope/1 resource key"
	labelRecord      = "casemate.dev/envelope/1 key record"
	labelFileKey     = "casemate.dev/envelope/1 file key"
	labelNameMAC     = "casemate.dev/envelope/1 name mac"
	labelNameCipher  = "casemate.dev/envelope/1 name cipher"
	labelRoot        = "casemate.dev/envelope/1 root"
)

// key is 256 bits of key material. It prints as nothing.
type key struct{ b [keySize]byte }

func newKey() *key {
	k := new(key)
	rand.Read(k.b[:]) // never fails: the runtime stops the process instead
	return k
}

// takeKey moves raw into a key and zeroes raw; false if the size is wrong.
func takeKey(raw []byte) (*key, bool) {
	defer clear(raw)
	if len(raw) != keySize {
		return nil, false
	}
	return &key{b: [keySize]byte(raw)}, true
}

func (k *key) zero() { clear(k.b[:]) }

// Format hides the key from every verb.
func (key) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "key(hidden)") }

// derive is HKDF-SHA-256 (RFC 5869) with k as input keying material.
func (k *key) derive(salt []byte, info string) (*key, error) {
	raw, err := hkdf.Key(sha256.New, k.b[:], salt, info, keySize)
	if err != nil {
		return nil, fmt.Errorf("deriving a key: %w", err)
	}
	out, _ := takeKey(raw)
	return out, nil
}

// deriveAEAD derives a key and gives its AES-256-GCM with random nonces, which
// may seal 2^32 messages (NIST SP 800-38D, section 8.3).
func (k *key) deriveAEAD(salt []byte, info string) (cipher.AEAD, error) {
	d, err := k.derive(salt, info)
	if err != nil {
		return nil, err
	}
	defer d.zero()
	return newAEAD(d)
}

func newAEAD(k *key) (cipher.AEAD, error) {
	block, err := aes.NewCipher(k.b[:])
	if err != nil {
		return nil, fmt.Errorf("making the cipher: %w", err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, fmt.Errorf("making the cipher: %w", err)
	}
	return aead, nil
}
