package vault

import (
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/fips140"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"hash"
	"math/big"
	"strings"

	"casemate.dev/resource"
)

// Algorithms of Key Vault (RFC 7518, sections 3.1, 4.1 and 5.1). RSA1_5, RS1 and ES256K are left out on purpose.
const (
	algRSAOAEP    = "RSA-OAEP"
	algRSAOAEP256 = "RSA-OAEP-256"
)

// sealed is a ciphertext with the parts that authenticated encryption adds.
type sealed struct {
	Value, IV, Tag, AAD []byte
}

// Sizes of GCM's nonce and tag (NIST SP 800-38D, section 8.2.2).
const (
	gcmNonce = 12
	gcmTag   = 16
)

// unsupported refuses an algorithm for a key.
func (k *key) unsupported(alg string) error {
	switch alg {
	case "":
		return badParameter("The property 'alg' is required.")
	case "RSA1_5":
		return badParameter("Algorithm RSA1_5 is not supported because its padding is not safe. Use RSA-OAEP-256.")
	}
	return badParameter("Algorithm '%s' is not supported for keys of type %s%s.", clip(alg, 40), k.Key.Kty, k.sizeWords())
}

func (k *key) sizeWords() string {
	switch {
	case k.ec != nil:
		return " on " + k.ec.Params().Name
	case k.oct != nil:
		return " with " + big.NewInt(int64(len(k.oct)*8)).String() + " bits"
	}
	return ""
}

// outsideFIPS refuses what the validated module does not offer when the process is bound to it.
func outsideFIPS(alg string) error {
	if fips140.Enforced() {
		return resource.NotSupported("Algorithm %s is not available in FIPS 140-only mode. Use RSA-OAEP-256 or A256GCM.", alg)
	}
	return nil
}

// oaepHash is the hash of an RSA-OAEP algorithm. RSA-OAEP is defined with SHA-1 (RFC 7518, section 4.3).
func (k *key) oaepHash(alg string) (hash.Hash, error) {
	switch {
	case k.rsa != nil && alg == algRSAOAEP256:
		return sha256.New(), nil
	case k.rsa != nil && alg == algRSAOAEP:
		if err := outsideFIPS(alg); err != nil {
			return nil, err
		}
		return sha1.New(), nil
	}
	return nil, k.unsupported(alg)
}

// isSized says whether alg is A{bits}{suffix} for this symmetric key.
func (k *key) isSized(alg, suffix string) bool {
	return k.oct != nil && alg == "A"+big.NewInt(int64(len(k.oct)*8)).String()+suffix
}

// encrypt is the encrypt operation. The nonce of AES-GCM is always drawn here: a repeated one would give the key away.
func (k *key) encrypt(alg string, plain, iv, aad []byte) (sealed, error) {
	if k.isSized(alg, "GCM") {
		if len(iv) > 0 {
			return sealed{}, badParameter("The property 'iv' must be absent: the vault draws it for AES-GCM.")
		}
		box, err := k.sealGCM(plain, aad)
		if err != nil {
			return sealed{}, err
		}
		return sealed{Value: box[gcmNonce : len(box)-gcmTag], IV: box[:gcmNonce], Tag: box[len(box)-gcmTag:], AAD: aad}, nil
	}
	value, err := k.encryptOAEP(alg, plain)
	return sealed{Value: value}, err
}

// decrypt is the decrypt operation.
func (k *key) decrypt(alg string, in sealed) ([]byte, error) {
	if k.isSized(alg, "GCM") {
		if len(in.IV) != gcmNonce || len(in.Tag) != gcmTag {
			return nil, badParameter("AES-GCM needs 'iv' with %d and 'tag' with %d octets.", gcmNonce, gcmTag)
		}
		box := append(append(append([]byte(nil), in.IV...), in.Value...), in.Tag...)
		return k.openGCM(box, in.AAD)
	}
	return k.decryptOAEP(alg, in.Value)
}

// wrap is the wrapKey operation.
func (k *key) wrap(alg string, plain []byte) ([]byte, error) {
	if k.isSized(alg, "KW") {
		if err := outsideFIPS(alg); err != nil {
			return nil, err
		}
		out, err := wrapAES(k.oct, plain)
		if err != nil {
			return nil, badParameter("The key cannot be wrapped: %s.", err)
		}
		return out, nil
	}
	return k.encryptOAEP(alg, plain)
}

// unwrap is the unwrapKey operation.
func (k *key) unwrap(alg string, wrapped []byte) ([]byte, error) {
	if k.isSized(alg, "KW") {
		if err := outsideFIPS(alg); err != nil {
			return nil, err
		}
		out, err := unwrapAES(k.oct, wrapped)
		if err != nil {
			return nil, cannotDecrypt(err)
		}
		return out, nil
	}
	return k.decryptOAEP(alg, wrapped)
}

func (k *key) encryptOAEP(alg string, plain []byte) ([]byte, error) {
	h, err := k.oaepHash(alg)
	if err != nil {
		return nil, err
	}
	if most := k.rsa.Size() - 2*h.Size() - 2; len(plain) > most {
		return nil, badParameter("The value has %d octets; %s with this key takes at most %d.", len(plain), alg, most)
	}
	return rsa.EncryptOAEP(h, rand.Reader, &k.rsa.PublicKey, plain, nil)
}

func (k *key) decryptOAEP(alg string, wrapped []byte) ([]byte, error) {
	h, err := k.oaepHash(alg)
	if err != nil {
		return nil, err
	}
	out, err := rsa.DecryptOAEP(h, nil, k.rsa, wrapped, nil)
	if err != nil {
		return nil, cannotDecrypt(err)
	}
	return out, nil
}

func (k *key) gcm() (cipher.AEAD, error) {
	block, err := aes.NewCipher(k.oct)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}

// sealGCM returns nonce ‖ ciphertext ‖ tag.
func (k *key) sealGCM(plain, aad []byte) ([]byte, error) {
	aead, err := k.gcm()
	if err != nil {
		return nil, err
	}
	return aead.Seal(nil, nil, plain, aad), nil
}

func (k *key) openGCM(box, aad []byte) ([]byte, error) {
	aead, err := k.gcm()
	if err != nil {
		return nil, err
	}
	plain, err := aead.Open(nil, nil, box, aad)
	if err != nil {
		return nil, cannotDecrypt(err)
	}
	return plain, nil
}

// cannotDecrypt reads the same whatever went wrong, so that it tells nobody anything about the key.
func cannotDecrypt(cause error) error {
	return badParameter("The value cannot be decrypted with this key and algorithm.").WithCause(cause)
}

// signatureHash gives the hash of a signature algorithm and checks the digest's length.
func (k *key) signatureHash(alg string, digest []byte) (crypto.Hash, error) {
	h := map[string]crypto.Hash{"256": crypto.SHA256, "384": crypto.SHA384, "512": crypto.SHA512}[alg[min(2, len(alg)):]]
	var ok bool
	switch {
	case h == 0:
	case strings.HasPrefix(alg, "RS"), strings.HasPrefix(alg, "PS"):
		ok = k.rsa != nil
	case strings.HasPrefix(alg, "ES") && k.ec != nil:
		ok = map[string]string{"ES256": "P-256", "ES384": "P-384", "ES512": "P-521"}[alg] == k.ec.Params().Name
	}
	if !ok {
		return 0, k.unsupported(alg)
	}
	if len(digest) != h.Size() {
		return 0, badParameter("The digest has %d octets; %s signs %d.", len(digest), alg, h.Size())
	}
	return h, nil
}

// sign is the sign operation over a digest.
func (k *key) sign(alg string, digest []byte) ([]byte, error) {
	h, err := k.signatureHash(alg, digest)
	if err != nil {
		return nil, err
	}
	switch alg[:2] {
	case "RS":
		return rsa.SignPKCS1v15(rand.Reader, k.rsa, h, digest)
	case "PS":
		return rsa.SignPSS(rand.Reader, k.rsa, h, digest, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash})
	}
	r, s, err := ecdsa.Sign(rand.Reader, k.ec, digest)
	if err != nil {
		return nil, err
	}
	size := (k.ec.Params().BitSize + 7) / 8 // r ‖ s (RFC 7518, section 3.4)
	out := make([]byte, 2*size)
	r.FillBytes(out[:size])
	s.FillBytes(out[size:])
	return out, nil
}

// verify is the verify operation.
func (k *key) verify(alg string, digest, signature []byte) (bool, error) {
	h, err := k.signatureHash(alg, digest)
	if err != nil {
		return false, err
	}
	switch alg[:2] {
	case "RS":
		return rsa.VerifyPKCS1v15(&k.rsa.PublicKey, h, digest, signature) == nil, nil
	case "PS":
		return rsa.VerifyPSS(&k.rsa.PublicKey, h, digest, signature, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}) == nil, nil
	}
	size := (k.ec.Params().BitSize + 7) / 8
	if len(signature) != 2*size {
		return false, nil
	}
	r, s := new(big.Int).SetBytes(signature[:size]), new(big.Int).SetBytes(signature[size:])
	return ecdsa.Verify(&k.ec.PublicKey, digest, r, s), nil
}
