package vault

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/fips140"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/hex"
	"hash"
	"math/big"
	"testing"

	"pgregory.net/rapid"
)

func sha256New() hash.Hash { return sha256.New() }

// RFC 3394, section 4.
var wrapVectors = []struct{ kek, plain, wrapped string }{
	{"000102030405060708090A0B0C0D0E0F", "00112233445566778899AABBCCDDEEFF", "1FA68B0A8112B447AEF34BD8FB5A7B829D3E862371D2CFE5"},
	{"000102030405060708090A0B0C0D0E0F1011121314151617", "00112233445566778899AABBCCDDEEFF", "96778B25AE6CA435F92B5B97C050AED2468AB8A17AD84E5D"},
	{"000102030405060708090A0B0C0D0E0F101112131415161718191A1B1C1D1E1F", "00112233445566778899AABBCCDDEEFF", "64E8C3F9CE0F5BA263E9777905818A2A93C8191E7D6E8AE7"},
	{"000102030405060708090A0B0C0D0E0F1011121314151617", "00112233445566778899AABBCCDDEEFF0001020304050607", "031D33264E15D33268F24EC260743EDCE1C6C7DDEE725A936BA814915C6762D2"},
	{"000102030405060708090A0B0C0D0E0F101112131415161718191A1B1C1D1E1F", "00112233445566778899AABBCCDDEEFF0001020304050607", "A8F9BC1612C68B3FF6E6F4FBE30E71E4769C8B80A32CB8958CD5D17D6B254DA1"},
	{"000102030405060708090A0B0C0D0E0F101112131415161718191A1B1C1D1E1F", "00112233445566778899AABBCCDDEEFF000102030405060708090A0B0C0D0E0F", "28C9F404C4B810F4CBCCB35CFB87F8263F5786E2D80ED326CBC7F0E71A99F43BFB988B9B7A02DD21"},
}

func fromHex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestKeyWrapVectors(t *testing.T) {
	for _, v := range wrapVectors {
		kek, plain, wrapped := fromHex(t, v.kek), fromHex(t, v.plain), fromHex(t, v.wrapped)
		got, err := wrapAES(kek, plain)
		if err != nil || !bytes.Equal(got, wrapped) {
			t.Errorf("wrapping %s under %s: %X, %v", v.plain, v.kek, got, err)
		}
		back, err := unwrapAES(kek, wrapped)
		if err != nil || !bytes.Equal(back, plain) {
			t.Errorf("unwrapping %s: %X, %v", v.wrapped, back, err)
		}
		for i := range wrapped { // must fail: any bit flipped, another key, anything cut
			bad := bytes.Clone(wrapped)
			bad[i] ^= 1
			if _, err := unwrapAES(kek, bad); err == nil {
				t.Errorf("octet %d changed: accepted", i)
			}
			if _, err := unwrapAES(kek, wrapped[:i]); err == nil {
				t.Errorf("cut to %d octets: accepted", i)
			}
		}
		kek[0] ^= 1
		if _, err := unwrapAES(kek, wrapped); err == nil {
			t.Error("another key: accepted")
		}
	}
	for _, n := range []int{0, 8, 15, 17} {
		if _, err := wrapAES(make([]byte, 32), make([]byte, n)); err == nil {
			t.Errorf("wrapping %d octets: accepted", n)
		}
	}
}

// testKeys has one parsed key of each type.
func testKeys(t testing.TB) map[string]*key {
	t.Helper()
	out := map[string]*key{}
	for name, g := range map[string]struct {
		kty   string
		size  int
		curve string
	}{
		"RSA": {ktyRSA, 2048, ""}, "P-256": {ktyEC, 0, "P-256"}, "P-384": {ktyEC, 0, "P-384"}, "P-521": {ktyEC, 0, "P-521"},
		"oct128": {ktyOct, 128, ""}, "oct256": {ktyOct, 256, ""},
	} {
		m, err := generate(g.kty, g.size, g.curve, nil)
		if err != nil {
			t.Fatal(err)
		}
		k, err := version{Enabled: true, Key: m}.parse()
		if err != nil {
			t.Fatal(err)
		}
		out[name] = k
	}
	return out
}

func TestSignVerify(t *testing.T) {
	ks := testKeys(t)
	hashes := map[string]crypto.Hash{"256": crypto.SHA256, "384": crypto.SHA384, "512": crypto.SHA512}
	fits := map[string]string{"RS256": "RSA", "RS384": "RSA", "RS512": "RSA", "PS256": "RSA", "PS384": "RSA", "PS512": "RSA", "ES256": "P-256", "ES384": "P-384", "ES512": "P-521"}
	names := []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512"}
	rapid.Check(t, func(t *rapid.T) {
		alg := rapid.SampledFrom(names).Draw(t, "alg")
		h := hashes[alg[2:]].New()
		h.Write(rapid.SliceOf(rapid.Byte()).Draw(t, "message"))
		digest := h.Sum(nil)
		k := ks[fits[alg]]
		sig, err := k.sign(alg, digest)
		if err != nil {
			t.Fatal(err)
		}
		if ok, err := k.verify(alg, digest, sig); !ok || err != nil {
			t.Fatalf("verifying: %v, %v", ok, err)
		}
		if !outsideVerify(k, alg, digest, sig) {
			t.Fatal("the standard library does not verify it")
		}
		i := rapid.IntRange(0, len(sig)-1).Draw(t, "i")
		bad := bytes.Clone(sig)
		bad[i] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
		if ok, _ := k.verify(alg, digest, bad); ok {
			t.Fatal("a changed signature verifies")
		}
		if ok, _ := k.verify(alg, digest, sig[:i]); ok {
			t.Fatal("a cut signature verifies")
		}
		digest[0] ^= 1
		if ok, _ := k.verify(alg, digest, sig); ok {
			t.Fatal("another digest verifies")
		}
	})
	for name, k := range ks {
		for _, alg := range append(names, "", "RS1", "HS256", "ES256K", "none", "RS", "R") {
			if fits[alg] == name {
				continue
			}
			if _, err := k.sign(alg, make([]byte, 32)); err == nil {
				t.Errorf("%s signs with %q", name, alg)
			}
		}
	}
	if _, err := ks["RSA"].sign("RS256", make([]byte, 20)); err == nil {
		t.Error("a digest of the wrong length is signed")
	}
}

// outsideVerify is the oracle: the standard library's own verification.
func outsideVerify(k *key, alg string, digest, sig []byte) bool {
	h := map[string]crypto.Hash{"256": crypto.SHA256, "384": crypto.SHA384, "512": crypto.SHA512}[alg[2:]]
	switch alg[:2] {
	case "RS":
		return rsa.VerifyPKCS1v15(&k.rsa.PublicKey, h, digest, sig) == nil
	case "PS":
		return rsa.VerifyPSS(&k.rsa.PublicKey, h, digest, sig, nil) == nil
	}
	half := len(sig) / 2
	return ecdsa.Verify(&k.ec.PublicKey, digest, new(big.Int).SetBytes(sig[:half]), new(big.Int).SetBytes(sig[half:]))
}

func TestCiphers(t *testing.T) {
	ks := testKeys(t)
	type cipherCase struct{ key, alg string }
	for _, c := range []cipherCase{{"RSA", "RSA-OAEP-256"}, {"RSA", "RSA-OAEP"}, {"oct128", "A128GCM"}, {"oct256", "A256GCM"}} {
		if fips140.Enforced() && c.alg == "RSA-OAEP" {
			continue
		}
		k, plain, aad := ks[c.key], []byte("sixteen octets.."), []byte("aad")
		box, err := k.encrypt(c.alg, plain, nil, aad)
		if err != nil {
			t.Fatalf("%v: %v", c, err)
		}
		if got, err := k.decrypt(c.alg, box); err != nil || !bytes.Equal(got, plain) {
			t.Errorf("%v: decrypting: %q, %v", c, got, err)
		}
		box.Value[0] ^= 1
		if _, err := k.decrypt(c.alg, box); err == nil {
			t.Errorf("%v: a changed ciphertext decrypts", c)
		}
	}
	k := ks["oct256"]
	box, err := k.encrypt("A256GCM", []byte("x"), nil, []byte("a"))
	if err != nil || len(box.IV) != 12 || len(box.Tag) != 16 || len(box.Value) != 1 {
		t.Fatalf("AES-GCM: %+v, %v", box, err)
	}
	for name, bad := range map[string]sealed{
		"aad": {box.Value, box.IV, box.Tag, []byte("b")}, "iv": {box.Value, make([]byte, 12), box.Tag, box.AAD},
		"tag": {box.Value, box.IV, make([]byte, 16), box.AAD}, "no tag": {box.Value, box.IV, nil, box.AAD},
	} {
		if _, err := k.decrypt("A256GCM", bad); err == nil {
			t.Errorf("AES-GCM with another %s decrypts", name)
		}
	}
	if _, err := k.encrypt("A256GCM", []byte("x"), make([]byte, 12), nil); err == nil {
		t.Error("a nonce of the client's is accepted")
	}
	for _, c := range []cipherCase{{"oct128", "A256GCM"}, {"oct256", "RSA-OAEP-256"}, {"RSA", "A256GCM"}, {"RSA", "RSA1_5"}, {"P-256", "RSA-OAEP-256"}, {"RSA", ""}, {"oct256", "A256CBC"}} {
		if _, err := ks[c.key].encrypt(c.alg, []byte("x"), nil, nil); err == nil {
			t.Errorf("%v: accepted", c)
		}
	}
	if _, err := ks["RSA"].encrypt("RSA-OAEP-256", make([]byte, 191), nil, nil); err == nil {
		t.Error("more than RSA-OAEP-256 takes: accepted")
	}
}

func TestWrapOct(t *testing.T) {
	k := testKeys(t)["oct256"]
	if fips140.Enforced() {
		if _, err := k.wrap("A256KW", make([]byte, 32)); err == nil {
			t.Error("A256KW in FIPS 140-only mode: accepted")
		}
		return
	}
	wrapped, err := k.wrap("A256KW", make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := k.unwrap("A256KW", wrapped); err != nil || !bytes.Equal(got, make([]byte, 32)) {
		t.Errorf("unwrapping: %x, %v", got, err)
	}
	if _, err := k.wrap("A128KW", make([]byte, 32)); err == nil {
		t.Error("A128KW with 256 bits: accepted")
	}
	if _, err := k.unwrap("A256KW", wrapped[1:]); err == nil {
		t.Error("a cut key unwraps")
	}
}

func FuzzOperationBody(f *testing.F) {
	f.Add(`{"alg":"RSA-OAEP-256","value":"AA"}`)
	f.Add(`{"alg":"A256GCM","value":"AA==","iv":"AAAAAAAAAAAAAAAA","tag":"AAAAAAAAAAAAAAAAAAAAAA"}`)
	f.Add(`{"key":{"kty":"RSA","n":"AQ","e":"AQAB","d":"AQ","p":"AQ","q":"AQ"}}`)
	f.Add(`{"kty":"EC","crv":"P-256","x":"AQ","y":"AQ","d":"AQ"}`)
	ks := testKeys(f)
	f.Fuzz(func(t *testing.T, text string) {
		var body operationRequest
		if unmarshal(text, &body) == nil {
			for _, k := range ks {
				_, _ = decrypt(k, body)
				_, _ = unwrapKey(k, body)
				_, _ = k.verify(body.Alg, body.Digest, body.Value)
			}
		}
		var imported keyRequest
		if unmarshal(text, &imported) == nil {
			if m, err := importJWK(imported.Key); err == nil {
				if _, err := (version{Key: m}).parse(); err != nil {
					t.Fatalf("an imported key does not parse: %v", err)
				}
			}
		}
	})
}
