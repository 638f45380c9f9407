package envelope

import (
	"bytes"
	"context"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
)

const (
	minPassphrase = 12
	// The cost of one guess: OWASP's figure for PBKDF2-HMAC-SHA-256 (2023).
	// PBKDF2 and not scrypt, because FIPS 140 approves it (SP 800-132).
	iterations = 600_000
	// Bounds for what a wrapped blob may ask for.
	minIterations, maxIterations = 100_000, 20_000_000

	kdfPBKDF2     = 1
	passphraseLen = 1 + 4 + 32 // bytes of the prefix
)

// passphraseRoot derives the root key from a passphrase. What it wraps is
//
//	offset  size
//	     0     1  1 = PBKDF2-HMAC-SHA-256
//	     1     4  iterations, big endian
//	     5    32  salt
//	    37     n  AES-256-GCM: nonce (12), ciphertext, tag (16);
//	              additional data: the 37 bytes before it
type passphraseRoot struct {
	source     string
	passphrase []byte
}

func openPassphraseRoot(value string) (Root, error) {
	r := &passphraseRoot{}
	switch {
	case value == "":
		return nil, errors.New("root key \"passphrase:\" names no environment variable and no file")
	case strings.ContainsAny(value, "/."):
		text, err := os.ReadFile(value)
		if err != nil {
			return nil, fmt.Errorf("reading the passphrase: %w", err)
		}
		r.source, r.passphrase = "file "+value, bytes.TrimRight(text, "\r\n")
	default:
		r.source, r.passphrase = "environment variable "+value, []byte(os.Getenv(value))
	}
	if len(r.passphrase) < minPassphrase {
		return nil, fmt.Errorf("the passphrase in %s has %d bytes: at least %d are needed", r.source, len(r.passphrase), minPassphrase)
	}
	return r, nil
}

func (*passphraseRoot) Scheme() string { return "passphrase" }

func (r *passphraseRoot) Wrap(_ context.Context, plain []byte) ([]byte, error) {
	out := make([]byte, passphraseLen, passphraseLen+len(plain)+overhead)
	out[0] = kdfPBKDF2
	binary.BigEndian.PutUint32(out[1:], iterations)
	rand.Read(out[5:])
	k, err := r.derive(out[5:], iterations)
	if err != nil {
		return nil, err
	}
	defer k.zero()
	aead, err := newAEAD(k)
	if err != nil {
		return nil, err
	}
	sealed := aead.Seal(nil, nil, plain, out)
	return append(out, sealed...), nil
}

func (r *passphraseRoot) Unwrap(_ context.Context, wrapped []byte) ([]byte, error) {
	if len(wrapped) < passphraseLen+overhead || wrapped[0] != kdfPBKDF2 {
		return nil, corrupt("these bytes were not wrapped by a passphrase")
	}
	prefix, sealed := wrapped[:passphraseLen], wrapped[passphraseLen:]
	n := binary.BigEndian.Uint32(prefix[1:])
	if n < minIterations || n > maxIterations {
		return nil, corrupt("passphrase iterations %d are outside %d to %d", n, minIterations, maxIterations)
	}
	k, err := r.derive(prefix[5:], int(n))
	if err != nil {
		return nil, err
	}
	defer k.zero()
	aead, err := newAEAD(k)
	if err != nil {
		return nil, err
	}
	plain, err := aead.Open(nil, nil, sealed, prefix)
	if err != nil {
		return nil, fmt.Errorf("%w: the passphrase in %s did not wrap this", ErrWrongRoot, r.source)
	}
	return plain, nil
}

func (r *passphraseRoot) derive(salt []byte, n int) (*key, error) {
	raw, err := pbkdf2.Key(sha256.New, string(r.passphrase), salt, n, keySize)
	if err != nil {
		return nil, fmt.Errorf("deriving the root key: %w", err)
	}
	k, _ := takeKey(raw)
	return k, nil
}
