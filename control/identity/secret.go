package identity

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"time"

	"github.com/google/uuid"
)

// secret is what the directory keeps of a client secret: enough to recognise it, nothing to make it again. The secret
// itself has 256 random bits, so that one keyed hash is as good as a slow one.
type secret struct {
	ID      string // keyId, GUID
	Name    string // displayName
	Hint    string // the first three characters
	Salt    []byte
	Hash    []byte // HMAC-SHA-256 of the secret, keyed by Salt
	Created time.Time
	Expires time.Time
}

const secretBytes = 32

func newSecret(name string, from, until time.Time) (plain string, _ secret, err error) {
	raw, salt := make([]byte, secretBytes), make([]byte, 32)
	for {
		if _, err := rand.Read(raw); err != nil {
			return "", secret{}, fmt.Errorf("generating a client secret: %w", err)
		}
		plain = base64.RawURLEncoding.EncodeToString(raw)
		if plain[0] != '-' && plain[0] != '_' { // command lines would take it for an option
			break
		}
	}
	if _, err := rand.Read(salt); err != nil {
		return "", secret{}, fmt.Errorf("generating a salt: %w", err)
	}
	return plain, secret{ID: newGUID(), Name: name, Hint: plain[:3], Salt: salt, Hash: hashSecret(salt, plain), Created: from, Expires: until}, nil
}

func hashSecret(salt []byte, plain string) []byte {
	h := hmac.New(sha256.New, salt)
	h.Write([]byte(plain))
	return h.Sum(nil)
}

// is compares in constant time.
func (s secret) is(plain string) bool {
	return subtle.ConstantTimeCompare(s.Hash, hashSecret(s.Salt, plain)) == 1
}

func (s secret) expired(now time.Time) bool { return !now.Before(s.Expires) }

func newGUID() string { return uuid.NewString() }
