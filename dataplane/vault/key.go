package vault

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"

	"casemate.dev/store"
)

// Key types (RFC 7518, section 6.1).
const (
	ktyRSA = "RSA"
	ktyEC  = "EC"
	ktyOct = "oct"
)

// material is a key as its record holds it.
type material struct {
	Kty   string   `json:"kty"`
	Bytes []byte   `json:"bytes"` // PKCS #8 for RSA and EC, the octets for oct
	Ops   []string `json:"ops"`   // key_ops
}

// key is a parsed version, ready for use. It is immutable and shared.
type key struct {
	version
	rsa *rsa.PrivateKey
	ec  *ecdsa.PrivateKey
	oct []byte
}

// generate makes a new key. size is in bits, 0 for the type's default; curve is for EC only.
func generate(kty string, size int, curve string, ops []string) (*material, error) {
	if err := checkType(kty); err != nil {
		return nil, err
	}
	var private any
	var err error
	switch kty {
	case ktyRSA:
		if size == 0 {
			size = 2048
		}
		if err := checkRSASize(size); err != nil {
			return nil, err
		}
		private, err = rsa.GenerateKey(rand.Reader, size)
	case ktyEC:
		c, cerr := curveOf(curve)
		if cerr != nil {
			return nil, cerr
		}
		private, err = ecdsa.GenerateKey(c, rand.Reader)
	case ktyOct:
		if size == 0 {
			size = 256
		}
		if err := checkOctSize(size); err != nil {
			return nil, err
		}
		octets := make([]byte, size/8)
		_, err = rand.Read(octets)
		private = octets
	}
	if err != nil {
		return nil, fmt.Errorf("generating a key: %w", err)
	}
	return newMaterial(kty, private, ops)
}

// newMaterial encodes a private key and settles its operations.
func newMaterial(kty string, private any, ops []string) (*material, error) {
	all := operationsOf(kty)
	if len(ops) == 0 {
		ops = all
	}
	for _, op := range ops {
		if !slices.Contains(all, op) {
			return nil, badParameter("The key operation '%s' is not supported for keys of type %s. Use %s.", clip(op, 40), kty, strings.Join(all, ", "))
		}
	}
	m := &material{Kty: kty, Ops: slices.Clone(ops)}
	if octets, ok := private.([]byte); ok {
		m.Bytes = octets
		return m, nil
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, fmt.Errorf("encoding a key: %w", err)
	}
	m.Bytes = der
	return m, nil
}

// operationsOf lists the key_ops (RFC 7517, section 4.3) that a key type can do.
func operationsOf(kty string) []string {
	switch kty {
	case ktyRSA:
		return []string{"encrypt", "decrypt", "sign", "verify", "wrapKey", "unwrapKey"}
	case ktyEC:
		return []string{"sign", "verify"}
	}
	return []string{"encrypt", "decrypt", "wrapKey", "unwrapKey"}
}

func checkType(kty string) error {
	switch kty {
	case ktyRSA, ktyEC, ktyOct:
		return nil
	case "":
		return badParameter("The property 'kty' is required.")
	case "RSA-HSM", "EC-HSM", "oct-HSM":
		return badParameter("Key type '%s' needs a hardware security module, which this vault does not have. Use %s.", kty, strings.TrimSuffix(kty, "-HSM"))
	}
	return badParameter("Key type '%s' is not supported. Use RSA, EC or oct.", clip(kty, 40))
}

func checkRSASize(bits int) error {
	if bits != 2048 && bits != 3072 && bits != 4096 {
		return badParameter("An RSA key of %d bits is not supported. Use 2048, 3072 or 4096.", bits)
	}
	return nil
}

func checkOctSize(bits int) error {
	if bits != 128 && bits != 192 && bits != 256 {
		return badParameter("A symmetric key of %d bits is not supported. Use 128, 192 or 256.", bits)
	}
	return nil
}

func curveOf(name string) (elliptic.Curve, error) {
	switch name {
	case "", "P-256":
		return elliptic.P256(), nil
	case "P-384":
		return elliptic.P384(), nil
	case "P-521":
		return elliptic.P521(), nil
	}
	return nil, badParameter("Curve '%s' is not supported. Use P-256, P-384 or P-521.", clip(name, 40))
}

// parse makes a version's record ready for use.
func (v version) parse() (*key, error) {
	k := &key{version: v}
	if v.Key == nil {
		return nil, errors.New("parsing a key: the record holds none")
	}
	if v.Key.Kty == ktyOct {
		k.oct = v.Key.Bytes
		return k, nil
	}
	private, err := x509.ParsePKCS8PrivateKey(v.Key.Bytes)
	if err != nil {
		return nil, fmt.Errorf("parsing a key: %w", err)
	}
	switch private := private.(type) {
	case *rsa.PrivateKey:
		private.Precompute()
		k.rsa = private
	case *ecdsa.PrivateKey:
		k.ec = private
	default:
		return nil, fmt.Errorf("parsing a key: it is a %T", private)
	}
	return k, nil
}

// load reads a live version of a key (the current one when id is "") ready for use, from the cache where its record has
// not changed.
func (s *Service) load(ctx context.Context, vault Vault, name, id string) (object, *key, error) {
	var o object
	var k *key
	err := s.view(ctx, vault, func(h shelf) error {
		var err error
		if o, err = h.object(keys, name); err != nil {
			return err
		}
		if o.Deleted != nil {
			return notFound(keys, name, id)
		}
		id := orCurrent(id, o)
		storeKey := versionKey(vault, keys, name, id)
		kv, err := h.Get(storeKey)
		if errors.Is(err, store.ErrNotFound) {
			return notFound(keys, name, id)
		}
		if err != nil {
			return err
		}
		if k = s.cache.get(storeKey, kv.Revision); k != nil {
			return nil
		}
		var v version
		if err := h.decode(kv, &v); err != nil {
			return err
		}
		if k, err = v.parse(); err != nil {
			return err
		}
		s.cache.put(storeKey, kv.Revision, k)
		return nil
	})
	return o, k, err
}
