package envelope

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base32"
	"encoding/binary"
	"fmt"
)

// FileCipher encrypts the files of the metadata store: contents, random access
// included, and names. It is safe for concurrent use.
//
// A file begins with a header, which holds the file's own key:
//
//	offset  size
//	     0     4  "CSF" 0x01
//	     4    60  AES-256-GCM under the store key: nonce (12), file key (32),
//	              tag (16); additional data: the 4 bytes before it
//	    64        contents, AES-256-CTR under the file key, counter 0 at the
//	              first byte of the contents
//
// The contents are confidential and not authenticated: the store checks its own
// sums against accidents, and whoever needs integrity against an enemy seals
// the values ([Handle.SealBytes]).
//
// A name becomes base32hex, lower case, of IV ‖ AES-256-CTR(IV, padded name),
// where IV is the first half of HMAC-SHA-256 over the name and the padding is
// 0x80 and zeroes up to 16 bytes. It is the shape of SIV (RFC 5297): equal
// names give equal results, which a directory needs, nothing but that and the
// length in 16s is visible, and decoding checks the HMAC.
type FileCipher struct {
	keys    cipher.AEAD // wraps file keys; at most 2^32 files
	nameMAC []byte
	names   cipher.Block
}

// fileHeaderSize is the size of a file's header.
const fileHeaderSize = 4 + overhead + keySize

var nameEncoding = base32.NewEncoding("0123456789abcdefghijklmnopqrstuv").WithPadding(base32.NoPadding)

func newFileCipher(store *key) (*FileCipher, error) {
	keys, err := store.deriveAEAD(nil, labelFileKey)
	if err != nil {
		return nil, err
	}
	mac, err := store.derive(nil, labelNameMAC)
	if err != nil {
		return nil, err
	}
	enc, err := store.derive(nil, labelNameCipher)
	if err != nil {
		return nil, err
	}
	defer enc.zero()
	names, err := aes.NewCipher(enc.b[:])
	if err != nil {
		return nil, fmt.Errorf("making the name cipher: %w", err)
	}
	return &FileCipher{keys: keys, nameMAC: mac.b[:], names: names}, nil
}

func fileMagic() []byte { return []byte{'C', 'S', 'F', 1} }

// HeaderSize is the number of bytes in front of a file's contents.
func (*FileCipher) HeaderSize() int { return fileHeaderSize }

// NewFile draws a file key and gives the header to write in front of the file.
// The stream must encrypt each offset once: bytes written twice under one key
// give their difference away, so a file that is written anew gets a new header.
func (c *FileCipher) NewFile() (header []byte, s interface {
	XORKeyStreamAt(dst, src []byte, off int64)
}, err error) {
	k := newKey()
	defer k.zero()
	stream, err := newFileStream(k)
	if err != nil {
		return nil, nil, err
	}
	header = append(make([]byte, 0, fileHeaderSize), fileMagic()...)
	return c.keys.Seal(header, nil, k.b[:], fileMagic()), stream, nil
}

// OpenFile gives the stream of the file that begins with header, or ErrCorrupt.
func (c *FileCipher) OpenFile(header []byte) (interface {
	XORKeyStreamAt(dst, src []byte, off int64)
}, error) {
	magic := fileMagic()
	if len(header) != fileHeaderSize || string(header[:len(magic)]) != string(magic) {
		return nil, corrupt("this is not the header of an encrypted file")
	}
	raw, err := c.keys.Open(nil, nil, header[len(magic):], magic)
	if err != nil {
		return nil, corrupt("the file's header does not belong to this store key")
	}
	k, ok := takeKey(raw)
	if !ok {
		return nil, corrupt("the file's key has a wrong size")
	}
	defer k.zero()
	return newFileStream(k)
}

// EncryptName gives the name under which a file called name is kept.
func (c *FileCipher) EncryptName(name string) string {
	size := (len(name)/aes.BlockSize + 1) * aes.BlockSize
	out := make([]byte, aes.BlockSize+size)
	iv, body := out[:aes.BlockSize], out[aes.BlockSize:]
	copy(iv, c.nameIV([]byte(name)))
	copy(body, name)
	body[len(name)] = 0x80
	cipher.NewCTR(c.names, iv).XORKeyStream(body, body)
	return nameEncoding.EncodeToString(out)
}

// DecryptName inverts EncryptName; what EncryptName never gave is ErrCorrupt.
func (c *FileCipher) DecryptName(encrypted string) (string, error) {
	raw, err := nameEncoding.DecodeString(encrypted)
	// Encoding again refuses the spellings that differ in unused bits only.
	if err != nil || len(raw) < 2*aes.BlockSize || len(raw)%aes.BlockSize != 0 || nameEncoding.EncodeToString(raw) != encrypted {
		return "", corrupt("%q is not an encrypted file name", encrypted)
	}
	iv, body := raw[:aes.BlockSize], raw[aes.BlockSize:]
	cipher.NewCTR(c.names, iv).XORKeyStream(body, body)
	end := len(body) - 1
	for end > len(body)-aes.BlockSize && body[end] == 0 {
		end--
	}
	if body[end] != 0x80 || subtle.ConstantTimeCompare(iv, c.nameIV(body[:end])) != 1 {
		return "", corrupt("%q is not a file name of this store", encrypted)
	}
	return string(body[:end]), nil
}

func (c *FileCipher) nameIV(name []byte) []byte {
	mac := hmac.New(sha256.New, c.nameMAC)
	mac.Write(name)
	return mac.Sum(nil)[:aes.BlockSize]
}

// fileStream is the key stream of one file.
type fileStream struct{ block cipher.Block }

func newFileStream(k *key) (*fileStream, error) {
	block, err := aes.NewCipher(k.b[:])
	if err != nil {
		return nil, fmt.Errorf("making the file cipher: %w", err)
	}
	return &fileStream{block: block}, nil
}

// XORKeyStreamAt sets dst to src xor the key stream from offset off of the
// contents. Encryption and decryption are the same; dst may be src. It is safe
// for concurrent use. A negative off is a bug in the caller and panics.
func (s *fileStream) XORKeyStreamAt(dst, src []byte, off int64) {
	if off < 0 {
		panic("envelope: negative offset into a file")
	}
	var iv [aes.BlockSize]byte
	binary.BigEndian.PutUint64(iv[8:], uint64(off)/aes.BlockSize)
	stream := cipher.NewCTR(s.block, iv[:])
	if skip := off % aes.BlockSize; skip != 0 {
		var passed [aes.BlockSize]byte
		stream.XORKeyStream(passed[:skip], passed[:skip])
	}
	stream.XORKeyStream(dst[:len(src)], src)
}
