package envelope_test

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"strings"
	"testing"
)

// The oracle is the format of format.go once more, written from its comment,
// slowly and whole: it reads everything or fails. It uses GCM with given
// nonces, so it can make deterministic vectors; FIPS 140-only mode forbids that.

var errOracle = errors.New("the oracle refuses")

type oracleKey struct {
	Resource string
	Key      [32]byte
}

func (k oracleKey) hash() []byte {
	h := sha256.Sum256([]byte(strings.ToLower(k.Resource)))
	return h[:]
}

func (k oracleKey) id() []byte {
	return mustHKDF(k.Key[:], nil, "casemate.dev/envelope/1 key id"+string(k.hash()))[:16]
}

func (k oracleKey) cipher(salt []byte, label string) cipher.AEAD {
	block, err := aes.NewCipher(mustHKDF(k.Key[:], salt, label+string(k.hash())+string(k.id())))
	if err != nil {
		panic(err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic(err)
	}
	return aead
}

func mustHKDF(secret, salt []byte, info string) []byte {
	out, err := hkdf.Key(sha256.New, secret, salt, info, 32)
	if err != nil {
		panic(err)
	}
	return out
}

// nonceAt is the nonce of segment i of a vector: the first bytes of a hash.
func nonceAt(seed []byte, i int) []byte {
	h := sha256.Sum256(binary.BigEndian.AppendUint64(append([]byte("nonce"), seed...), uint64(i)))
	return h[:12]
}

func (k oracleKey) header(salt []byte) []byte {
	h := append([]byte("CSMTSEAL"), 0, 1, 0, 0, 0, 1, 0, 0)
	h = append(h, k.hash()...)
	h = append(h, k.id()...)
	return append(h, salt...)
}

func oracleAD(header []byte, object string, i int, last bool) []byte {
	a, b := sha256.Sum256(header), sha256.Sum256([]byte(object))
	ad := append(a[:], b[:]...)
	ad = binary.BigEndian.AppendUint64(ad, uint64(i))
	if last {
		return append(ad, 1)
	}
	return append(ad, 0)
}

func (k oracleKey) seal(object string, salt, plain []byte) []byte {
	head := k.header(salt)
	aead := k.cipher(salt, "casemate.dev/envelope/1 object")
	out := head
	for i := 0; ; i++ {
		part := plain[:min(65536, len(plain))]
		plain = plain[len(part):]
		nonce := nonceAt(salt, i)
		out = append(out, nonce...)
		out = aead.Seal(out, nonce, part, oracleAD(head, object, i, len(plain) == 0))
		if len(plain) == 0 {
			return out
		}
	}
}

func (k oracleKey) open(object string, sealed []byte) ([]byte, error) {
	if len(sealed) < 96 || string(k.header(sealed[64:96])) != string(sealed[:96]) {
		return nil, errOracle
	}
	head, rest := sealed[:96], sealed[96:]
	aead := k.cipher(head[64:], "casemate.dev/envelope/1 object")
	plain := []byte{}
	for i := 0; ; i++ {
		part := rest[:min(65536+28, len(rest))]
		rest = rest[len(part):]
		if len(part) < 28 || i > 0 && len(part) == 28 {
			return nil, errOracle
		}
		got, err := aead.Open(nil, part[:12], part[12:], oracleAD(head, object, i, len(rest) == 0))
		if err != nil {
			return nil, err
		}
		plain = append(plain, got...)
		if len(rest) == 0 {
			return plain, nil
		}
	}
}

func (k oracleKey) sealValue(object string, salt, plain []byte) []byte {
	aead := k.cipher(salt, "casemate.dev/envelope/1 value")
	nonce := nonceAt(salt, 0)
	out := append([]byte{1}, salt...)
	return aead.Seal(append(out, nonce...), nonce, plain, []byte(object))
}

func (k oracleKey) openValue(object string, sealed []byte) ([]byte, error) {
	if len(sealed) < 45 || sealed[0] != 1 {
		return nil, errOracle
	}
	return k.cipher(sealed[1:17], "casemate.dev/envelope/1 value").Open(nil, sealed[17:29], sealed[29:], []byte(object))
}

// needOracle skips where GCM with given nonces is forbidden.
func needOracle(t testing.TB) {
	t.Helper()
	if fipsOnly() {
		t.Skip("the oracle needs GCM with given nonces, which FIPS 140-only mode forbids")
	}
}
