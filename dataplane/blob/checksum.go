package blob

import (
	"bytes"
	"crypto/fips140"
	"crypto/md5"
	"encoding/base64"
	"encoding/binary"
	"hash"
	"hash/crc64"
	"net/http"

	"casemate.dev/resource"
)

// crcTable is the polynomial of x-ms-content-crc64 (CRC-64/NVME, reflected), values little endian.
var crcTable = crc64.MakeTable(0x9A6C9329AC4BC9B5)

// eagerMD5 is up to which size a body without checksum gets an MD5, which readers then see as Content-MD5, as they do of
// the service itself. MD5 is slower than everything else that happens to a body, so larger ones get a CRC-64 only. Both
// find accidents; against attackers stands the sealing.
const eagerMD5 = 4 << 20

// checksum sums up a body on its way and compares it with what the client had announced.
type checksum struct {
	wantMD5, wantCRC []byte // from the headers; nil: not announced
	blobMD5          []byte // x-ms-blob-content-md5
	md5              hash.Hash
	crc              uint64
	useCRC           bool
}

// newChecksum reads the headers. single says that the body is the whole blob, so that it may get an MD5 to keep.
func newChecksum(h http.Header, size int64, single bool) (*checksum, error) {
	c := &checksum{}
	var err error
	if c.wantMD5, err = parseSum(h, "Content-MD5", md5.Size, "InvalidMd5"); err != nil {
		return nil, err
	}
	if c.wantCRC, err = parseSum(h, "x-ms-content-crc64", crc64.Size, "InvalidHeaderValue"); err != nil {
		return nil, err
	}
	if c.wantMD5 != nil && c.wantCRC != nil {
		return nil, resource.Errorf(400, "InvalidHeaderValue", "Only one of Content-MD5 and x-ms-content-crc64 may be given.")
	}
	if single {
		if c.blobMD5, err = parseSum(h, "x-ms-blob-content-md5", md5.Size, "InvalidMd5"); err != nil {
			return nil, err
		}
	}
	if c.wantMD5 != nil || c.blobMD5 != nil || (single && size >= 0 && size <= eagerMD5) {
		c.md5 = newMD5()
	}
	c.useCRC = c.wantMD5 == nil
	return c, nil
}

// newMD5 is for checksums which the protocol fixes; nothing rests on their strength, so FIPS 140-only mode is told to let
// them pass.
func newMD5() hash.Hash {
	var h hash.Hash
	fips140.WithoutEnforcement(func() { h = md5.New() })
	return h
}

func writeMD5(h hash.Hash, p []byte) {
	fips140.WithoutEnforcement(func() { h.Write(p) })
}

func sumMD5(h hash.Hash) []byte {
	var sum []byte
	fips140.WithoutEnforcement(func() { sum = h.Sum(nil) })
	return sum
}

func (c *checksum) write(p []byte) {
	if c.md5 != nil {
		writeMD5(c.md5, p)
	}
	if c.useCRC {
		c.crc = crc64.Update(c.crc, crcTable, p)
	}
}

func encodeCRC(crc uint64) []byte { return binary.LittleEndian.AppendUint64(nil, crc) }

// verify compares once the body is complete.
func (c *checksum) verify() error {
	if c.md5 != nil {
		sum := sumMD5(c.md5)
		for _, want := range [][]byte{c.wantMD5, c.blobMD5} {
			if want != nil && !bytes.Equal(want, sum) {
				return resource.Errorf(400, "Md5Mismatch", "The MD5 value specified in the request did not match with the MD5 value calculated by the server.")
			}
		}
	}
	if c.wantCRC != nil && !bytes.Equal(c.wantCRC, encodeCRC(c.crc)) {
		return resource.Errorf(400, "Crc64Mismatch", "The CRC64 value specified in the request did not match with the CRC64 value calculated by the server.")
	}
	return nil
}

// keep is the MD5 to store with a blob; nil for none.
func (c *checksum) keep() []byte {
	if c.md5 == nil {
		return nil
	}
	return sumMD5(c.md5)
}

// answer tells the client what arrived.
func (c *checksum) answer(h http.Header) {
	if c.md5 != nil {
		h.Set("Content-MD5", base64.StdEncoding.EncodeToString(sumMD5(c.md5)))
	}
	if c.useCRC {
		h.Set("x-ms-content-crc64", base64.StdEncoding.EncodeToString(encodeCRC(c.crc)))
	}
}
