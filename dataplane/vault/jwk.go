package vault

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"math/big"
)

// octets is base64url without padding (RFC 7515, section 2); padding is accepted when reading, as Azure does.
type octets []byte

func (o octets) MarshalJSON() ([]byte, error) {
	return json.Marshal(base64.RawURLEncoding.EncodeToString(o))
}

func (o *octets) UnmarshalJSON(b []byte) error {
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return err
	}
	for len(s) > 0 && s[len(s)-1] == '=' {
		s = s[:len(s)-1]
	}
	raw, err := base64.RawURLEncoding.DecodeString(s)
	*o = raw
	return err
}

// jwk is a JSON Web Key (RFC 7517, 7518) as Key Vault has it. Answers hold public members only.
type jwk struct {
	KID    string   `json:"kid,omitempty"`
	Kty    string   `json:"kty"`
	KeyOps []string `json:"key_ops,omitempty"`
	N      octets   `json:"n,omitempty"`
	E      octets   `json:"e,omitempty"`
	Crv    string   `json:"crv,omitempty"`
	X      octets   `json:"x,omitempty"`
	Y      octets   `json:"y,omitempty"`
	D      octets   `json:"d,omitempty"`
	P      octets   `json:"p,omitempty"`
	Q      octets   `json:"q,omitempty"`
	K      octets   `json:"k,omitempty"`
	T      octets   `json:"key_hsm,omitempty"`
}

// publicJWK is what clients may see of a key.
func (k *key) publicJWK(kid string) jwk {
	out := jwk{KID: kid, Kty: k.Key.Kty, KeyOps: k.Key.Ops}
	switch {
	case k.rsa != nil:
		out.N, out.E = k.rsa.N.Bytes(), big.NewInt(int64(k.rsa.E)).Bytes()
	case k.ec != nil:
		out.Crv = k.ec.Params().Name
		point, err := k.ec.PublicKey.Bytes() // 4 ‖ x ‖ y (SEC 1, section 2.3.3)
		if err == nil {
			half := (len(point) - 1) / 2
			out.X, out.Y = point[1:1+half], point[1+half:]
		}
	}
	return out
}

// importJWK reads a key with its private members.
func importJWK(j jwk) (*material, error) {
	if err := checkType(j.Kty); err != nil {
		return nil, err
	}
	if len(j.T) > 0 {
		return nil, badParameter("The property 'key_hsm' needs a hardware security module, which this vault does not have.")
	}
	var private any
	var err error
	switch j.Kty {
	case ktyRSA:
		private, err = importRSA(j)
	case ktyEC:
		private, err = importEC(j)
	case ktyOct:
		private, err = []byte(j.K), checkOctSize(len(j.K)*8)
	}
	if err != nil {
		return nil, err
	}
	return newMaterial(j.Kty, private, j.KeyOps)
}

func importRSA(j jwk) (*rsa.PrivateKey, error) {
	n, e := new(big.Int).SetBytes(j.N), new(big.Int).SetBytes(j.E)
	if err := checkRSASize(n.BitLen()); err != nil {
		return nil, err
	}
	if !e.IsInt64() || e.Int64() > 1<<31-1 || e.Int64() < 3 {
		return nil, badParameter("The RSA public exponent is not supported.")
	}
	if len(j.D) == 0 || len(j.P) == 0 || len(j.Q) == 0 {
		return nil, badParameter("An RSA key to import needs its private members 'd', 'p' and 'q'.")
	}
	private := &rsa.PrivateKey{
		PublicKey: rsa.PublicKey{N: n, E: int(e.Int64())},
		D:         new(big.Int).SetBytes(j.D),
		Primes:    []*big.Int{new(big.Int).SetBytes(j.P), new(big.Int).SetBytes(j.Q)},
	}
	if err := private.Validate(); err != nil {
		return nil, badParameter("The RSA key is not valid.").WithCause(err)
	}
	private.Precompute()
	return private, nil
}

func importEC(j jwk) (*ecdsa.PrivateKey, error) {
	curve, err := curveOf(j.Crv)
	if err != nil {
		return nil, err
	}
	size := (curve.Params().BitSize + 7) / 8
	private, err := ecdsa.ParseRawPrivateKey(curve, pad(j.D, size))
	if err != nil {
		return nil, badParameter("The EC key is not valid.").WithCause(err)
	}
	point, err := private.PublicKey.Bytes()
	if err != nil {
		return nil, badParameter("The EC key is not valid.").WithCause(err)
	}
	if want := append(append([]byte{4}, pad(j.X, size)...), pad(j.Y, size)...); !bytes.Equal(point, want) {
		return nil, badParameter("The EC key's public members 'x' and 'y' do not belong to its private member 'd'.")
	}
	return private, nil
}

// pad puts zeros before b up to size, for encoders that drop leading zeros.
func pad(b []byte, size int) []byte {
	if len(b) >= size {
		return b
	}
	return append(make([]byte, size-len(b)), b...)
}
