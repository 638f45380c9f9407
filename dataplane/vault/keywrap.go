package vault

import (
	"crypto/aes"
	"crypto/subtle"
	"encoding/binary"
	"errors"
)

// AES Key Wrap (RFC 3394; NIST SP 800-38F, KW): the mode that Azure calls A128KW, A192KW and A256KW. It is built here on the
// standard library's block cipher because the standard library has no such mode; RFC 3394's vectors are its test. The
// platform itself never wraps with it.

const wrapBlock = 8

var errUnwrap = errors.New("the wrapped key is damaged or was wrapped by another key")

// wrapIV is the default initial value (RFC 3394, section 2.2.3.1).
const wrapIV = 0xA6A6A6A6A6A6A6A6

// wrapAES wraps plain, a multiple of 8 octets and at least 16, under kek (RFC 3394, section 2.2.1).
func wrapAES(kek, plain []byte) ([]byte, error) {
	if len(plain) < 2*wrapBlock || len(plain)%wrapBlock != 0 {
		return nil, errors.New("the key to wrap must be a multiple of 8 octets and at least 16")
	}
	block, err := aes.NewCipher(kek)
	if err != nil {
		return nil, err
	}
	n := len(plain) / wrapBlock
	out := make([]byte, wrapBlock+len(plain))
	copy(out[wrapBlock:], plain)
	var b [aes.BlockSize]byte
	a := uint64(wrapIV)
	for j := range 6 {
		for i := 1; i <= n; i++ {
			r := out[i*wrapBlock : (i+1)*wrapBlock]
			binary.BigEndian.PutUint64(b[:], a)
			copy(b[wrapBlock:], r)
			block.Encrypt(b[:], b[:])
			a = binary.BigEndian.Uint64(b[:]) ^ uint64(n*j+i)
			copy(r, b[wrapBlock:])
		}
	}
	binary.BigEndian.PutUint64(out, a)
	return out, nil
}

// unwrapAES reverses wrapAES (RFC 3394, section 2.2.2) and refuses what it did not make.
func unwrapAES(kek, wrapped []byte) ([]byte, error) {
	if len(wrapped) < 3*wrapBlock || len(wrapped)%wrapBlock != 0 {
		return nil, errUnwrap
	}
	block, err := aes.NewCipher(kek)
	if err != nil {
		return nil, err
	}
	n := len(wrapped)/wrapBlock - 1
	out := append([]byte(nil), wrapped[wrapBlock:]...)
	var b [aes.BlockSize]byte
	a := binary.BigEndian.Uint64(wrapped)
	for j := 5; j >= 0; j-- {
		for i := n; i >= 1; i-- {
			r := out[(i-1)*wrapBlock : i*wrapBlock]
			binary.BigEndian.PutUint64(b[:], a^uint64(n*j+i))
			copy(b[wrapBlock:], r)
			block.Decrypt(b[:], b[:])
			a = binary.BigEndian.Uint64(b[:])
			copy(r, b[wrapBlock:])
		}
	}
	var got, want [wrapBlock]byte
	binary.BigEndian.PutUint64(got[:], a)
	binary.BigEndian.PutUint64(want[:], wrapIV)
	if subtle.ConstantTimeCompare(got[:], want[:]) != 1 {
		clear(out)
		return nil, errUnwrap
	}
	return out, nil
}
