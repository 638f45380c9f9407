package envelope

import (
	"crypto/sha256"
	"encoding/binary"
	"math"
	"strings"
)

// A sealed object is a header and at least one segment:
//
//	header, 96 bytes                          segment i
//	offset size                               offset size
//	     0    8  "CSMTSEAL"                        0   12  nonce, random
//	     8    2  version, 1                       12    n  ciphertext, AES-256-GCM
//	    10    2  zero                           12+n   16  tag
//	    12    4  segment size, 65536
//	    16   32  resource hash                n is 65536, in the last segment 1 to
//	    48   16  key id                       65536; an empty object is one
//	    64   32  salt, random                 segment with n = 0
//
// Integers are big endian. With resource hash = SHA-256 of the resource's id in
// lower case (UTF-8) and resource key = 32 random bytes,
//
//	key id   = first 16 bytes of HKDF(resource key, "", "casemate.dev/envelope/1 key id" ‖ resource hash)
//	data key = HKDF(resource key, salt, "casemate.dev/envelope/1 object" ‖ resource hash ‖ key id)
//
// where HKDF is RFC 5869 with SHA-256 and 32 bytes of output, and the
// additional data of segment i is
//
//	SHA-256(header) ‖ SHA-256(object) ‖ i (8 bytes) ‖ 1 if it is the last, else 0
//
// object being the name of the place where the ciphertext belongs, as the
// caller gave it. So a segment opens only in its place, of its object, of its
// resource, and only the true last one opens as the last.
//
// A sealed value (SealBytes) is
//
//	offset size
//	     0    1  version, 1
//	     1   16  salt, one for each run of at most 2^31 values
//	    17   12  nonce, random
//	    29    n  ciphertext, AES-256-GCM under
//	             HKDF(resource key, salt, "casemate.dev/envelope/1 value" ‖ resource hash ‖ key id)
//	  29+n   16  tag; the additional data is object
const (
	formatMagic   = "CSMTSEAL"
	formatVersion = 1

	headerSize  = 96
	segmentSize = 64 << 10
	// sealedSegment is the size of a full segment when sealed.
	sealedSegment = segmentSize + overhead
	// maxSegments is how many messages one key may seal with random nonces.
	maxSegments = math.MaxUint32

	valueSaltSize = 16
	valuePrefix   = 1 + valueSaltSize
	// ValueOverhead is how much longer a sealed value is than the value.
	ValueOverhead = valuePrefix + overhead
)

type (
	resourceHash [sha256.Size]byte
	keyID        [16]byte
)

// canonicalID is the spelling by which a resource is known here: the ids of
// Azure Resource Manager do not distinguish case.
func canonicalID(resourceID string) string { return strings.ToLower(resourceID) }

func hashResource(id string) resourceHash { return sha256.Sum256([]byte(id)) }

// identify gives the id of a resource key. It commits to the key, so a vault
// that unwraps to other bytes is noticed before they are used.
func (k *key) identify(r resourceHash) (keyID, error) {
	d, err := k.derive(nil, labelKeyID+string(r[:]))
	if err != nil {
		return keyID{}, err
	}
	return keyID(d.b[:16]), nil
}

// header is the start of a sealed object.
type header struct {
	resource resourceHash
	key      keyID
	salt     [32]byte
}

func (h *header) encode() []byte {
	b := make([]byte, 0, headerSize)
	b = append(b, formatMagic...)
	b = binary.BigEndian.AppendUint16(b, formatVersion)
	b = binary.BigEndian.AppendUint16(b, 0)
	b = binary.BigEndian.AppendUint32(b, segmentSize)
	b = append(b, h.resource[:]...)
	b = append(b, h.key[:]...)
	return append(b, h.salt[:]...)
}

func parseHeader(b []byte) (header, error) {
	var h header
	switch {
	case len(b) != headerSize || string(b[:8]) != formatMagic:
		return h, corrupt("it is not a sealed object")
	case binary.BigEndian.Uint16(b[8:]) != formatVersion:
		return h, corrupt("its format version is %d, not %d", binary.BigEndian.Uint16(b[8:]), formatVersion)
	case binary.BigEndian.Uint16(b[10:]) != 0 || binary.BigEndian.Uint32(b[12:]) != segmentSize:
		return h, corrupt("its header asks for what version %d does not have", formatVersion)
	}
	copy(h.resource[:], b[16:])
	copy(h.key[:], b[48:])
	copy(h.salt[:], b[64:])
	return h, nil
}

// SealedSize is the size of a sealed object that holds plain bytes.
func SealedSize(plain int64) int64 {
	segments := max(1, (plain+segmentSize-1)/segmentSize)
	return headerSize + plain + segments*overhead
}

// PlainSize inverts SealedSize; no sealed object has another size, so those are
// ErrCorrupt. That the size is the true one only opening the object tells.
func PlainSize(sealed int64) (int64, error) {
	rest := sealed - headerSize
	if rest < overhead {
		return 0, corrupt("%d bytes are too few for a sealed object", sealed)
	}
	segments := (rest + sealedSegment - 1) / sealedSegment
	last := rest - (segments-1)*sealedSegment - overhead
	if segments > maxSegments || last < 0 || last == 0 && segments > 1 {
		return 0, corrupt("no sealed object has %d bytes", sealed)
	}
	return rest - segments*overhead, nil
}

// segmentAD is the additional data of a segment: fixed for the object, but for
// the last nine bytes.
type segmentAD [2*sha256.Size + 9]byte

func newSegmentAD(header []byte, object string) segmentAD {
	var ad segmentAD
	hash, binding := sha256.Sum256(header), sha256.Sum256([]byte(object))
	copy(ad[:], hash[:])
	copy(ad[sha256.Size:], binding[:])
	return ad
}

func (ad *segmentAD) at(index int64, last bool) []byte {
	binary.BigEndian.PutUint64(ad[2*sha256.Size:], uint64(index))
	ad[len(ad)-1] = 0
	if last {
		ad[len(ad)-1] = 1
	}
	return ad[:]
}

// scratch is the working memory of one segment. It is reused, so that sealing
// and opening allocate nothing for a segment. The order of the fields matters:
// plain is page-aligned and a whole number of pages, so what is written to it
// never shares the low twelve address bits with ciphertext about to be read,
// which costs a quarter of the speed (4K aliasing).
type scratch struct {
	plain  [segmentSize]byte
	sealed [headerSize + sealedSegment]byte
	ad     segmentAD
}
