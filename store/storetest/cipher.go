package storetest

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"errors"
	"io"
)

// Cipher is a file cipher for tests, of the shape that cryptfs.Cipher asks
// for. The real one is the envelope's; this one keeps its key in memory, so
// that what it encrypts is lost with it.
type Cipher struct {
	key [32]byte
}

// NewCipher returns a Cipher with a random key.
func NewCipher() *Cipher {
	c := new(Cipher)
	_, _ = rand.Read(c.key[:]) // never fails, see crypto/rand
	return c
}

const (
	saltSize   = 32
	tagSize    = 16
	headerSize = saltSize + tagSize
)

func (c *Cipher) mac(label string, data []byte) []byte {
	h := hmac.New(sha256.New, c.key[:])
	_, _ = io.WriteString(h, label)
	h.Write(data)
	return h.Sum(nil)
}

// HeaderSize is the size of each file's header: a salt and a tag over it.
func (c *Cipher) HeaderSize() int { return headerSize }

// NewFile draws a salt, from which the file's key derives.
func (c *Cipher) NewFile() ([]byte, interface {
	XORKeyStreamAt(dst, src []byte, off int64)
}, error) {
	salt := make([]byte, saltSize)
	if _, err := rand.Read(salt); err != nil {
		return nil, nil, err
	}
	header := append(salt, c.mac("tag", salt)[:tagSize]...)
	s, err := c.OpenFile(header)
	return header, s, err
}

// OpenFile returns the file's stream, or an error if the tag is wrong.
func (c *Cipher) OpenFile(header []byte) (interface {
	XORKeyStreamAt(dst, src []byte, off int64)
}, error) {
	if len(header) != headerSize {
		return nil, errors.New("file header has the wrong size")
	}
	salt := header[:saltSize]
	if !hmac.Equal(header[saltSize:], c.mac("tag", salt)[:tagSize]) {
		return nil, errors.New("file header is not authentic")
	}
	block, err := aes.NewCipher(c.mac("key", salt))
	if err != nil {
		return nil, err
	}
	return stream{block}, nil
}

// encoding gives names that any file system takes.
var encoding = base32.HexEncoding.WithPadding(base32.NoPadding)

// EncryptName encrypts under an initial vector derived from the name.
func (c *Cipher) EncryptName(name string) string {
	iv := c.mac("name", []byte(name))[:aes.BlockSize]
	return encoding.EncodeToString(append(iv, c.nameStream(iv, []byte(name))...))
}

// DecryptName is the inverse of EncryptName.
func (c *Cipher) DecryptName(name string) (string, error) {
	raw, err := encoding.DecodeString(name)
	if err != nil || len(raw) < aes.BlockSize {
		return "", errors.New("file name is malformed")
	}
	iv := raw[:aes.BlockSize]
	plain := c.nameStream(iv, raw[aes.BlockSize:])
	if !hmac.Equal(iv, c.mac("name", plain)[:aes.BlockSize]) {
		return "", errors.New("file name is not authentic")
	}
	return string(plain), nil
}

func (c *Cipher) nameStream(iv, in []byte) []byte {
	block, err := aes.NewCipher(c.mac("names", nil))
	if err != nil {
		panic(err) // the key has 32 bytes
	}
	out := make([]byte, len(in))
	cipher.NewCTR(block, iv).XORKeyStream(out, in)
	return out
}

// stream is AES-CTR whose counter starts at 0.
type stream struct{ block cipher.Block }

func (s stream) XORKeyStreamAt(dst, src []byte, off int64) {
	var iv, skip [aes.BlockSize]byte
	binary.BigEndian.PutUint64(iv[8:], uint64(off)/aes.BlockSize)
	ctr := cipher.NewCTR(s.block, iv[:])
	ctr.XORKeyStream(skip[:off%aes.BlockSize], skip[:off%aes.BlockSize])
	ctr.XORKeyStream(dst, src)
}
