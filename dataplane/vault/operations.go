package vault

import (
	"net/http"

	"casemate.dev/resource"
)

// operationRequest is the body of the cryptographic operations.
type operationRequest struct {
	Alg    string `json:"alg"`
	Value  octets `json:"value"`
	Digest octets `json:"digest"`
	IV     octets `json:"iv"`
	AAD    octets `json:"aad"`
	Tag    octets `json:"tag"`
}

// operationResult is Key Vault's KeyOperationResult.
type operationResult struct {
	KID   string `json:"kid"`
	Value octets `json:"value"`
	IV    octets `json:"iv,omitempty"`
	AAD   octets `json:"aad,omitempty"`
	Tag   octets `json:"tag,omitempty"`
}

// permit says whether a key may do an operation now. Outside its period of validity a key still reads what it once
// protected (Key Vault, "About keys": decrypt, unwrap and verify), but protects nothing new.
func (s *Service) permit(k *key, op string) error {
	now := s.now()
	reads := op == "decrypt" || op == "unwrapKey" || op == "verify"
	switch {
	case !k.Enabled:
		return forbidden("KeyDisabled", "Operation %s is not allowed on a disabled key.", op)
	case !contains(k.Key.Ops, op):
		return forbidden("KeyOperationForbidden", "Operation %s is not permitted on this key.", op)
	case k.early(now) && !reads:
		return forbidden("KeyNotYetValid", "Operation %s is not allowed on a key that is not yet valid.", op)
	case k.expired(now) && !reads:
		return forbidden("KeyExpired", "Operation %s is not allowed on an expired key.", op)
	}
	return nil
}

func contains(list []string, s string) bool {
	for _, e := range list {
		if e == s {
			return true
		}
	}
	return false
}

// operate answers an operation with what do returns.
func (s *Service) operate(op string, do func(k *key, body operationRequest) (sealed, error)) resource.Handler {
	return func(w http.ResponseWriter, r *resource.Request) error {
		kid, k, body, err := s.prepare(r, op)
		if err != nil {
			return err
		}
		out, err := do(k, body)
		if err != nil {
			return err
		}
		return writeJSON(w, operationResult{KID: kid, Value: out.Value, IV: out.IV, AAD: out.AAD, Tag: out.Tag})
	}
}

func (s *Service) prepare(r *resource.Request, op string) (kid string, k *key, body operationRequest, err error) {
	t, err := s.targetOf(r, keys)
	if err != nil {
		return "", nil, body, err
	}
	if err := readBody(r, &body); err != nil {
		return "", nil, body, err
	}
	o, k, err := s.load(r.Context(), t.vault, t.name, t.version)
	if err != nil {
		return "", nil, body, err
	}
	r.Remember("version", k.ID)
	r.Remember("algorithm", clip(body.Alg, 40))
	return s.versionURL(t.vault, keys, o.Name, k.ID), k, body, s.permit(k, op)
}

func encrypt(k *key, b operationRequest) (sealed, error) {
	return k.encrypt(b.Alg, b.Value, b.IV, b.AAD)
}

func decrypt(k *key, b operationRequest) (sealed, error) {
	plain, err := k.decrypt(b.Alg, sealed{Value: b.Value, IV: b.IV, Tag: b.Tag, AAD: b.AAD})
	return sealed{Value: plain}, err
}

func wrapKey(k *key, b operationRequest) (sealed, error) {
	wrapped, err := k.wrap(b.Alg, b.Value)
	return sealed{Value: wrapped}, err
}

func unwrapKey(k *key, b operationRequest) (sealed, error) {
	plain, err := k.unwrap(b.Alg, b.Value)
	return sealed{Value: plain}, err
}

// signDigest signs what arrives as value: the digest.
func signDigest(k *key, b operationRequest) (sealed, error) {
	signature, err := k.sign(b.Alg, b.Value)
	return sealed{Value: signature}, err
}

// verifyDigest answers whether value is a signature over digest.
func (s *Service) verifyDigest(w http.ResponseWriter, r *resource.Request) error {
	_, k, body, err := s.prepare(r, "verify")
	if err != nil {
		return err
	}
	ok, err := k.verify(body.Alg, body.Digest, body.Value)
	if err != nil {
		return err
	}
	return writeJSON(w, map[string]bool{"value": ok})
}
