package identity

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"math/big"
	"slices"
	"time"

	"casemate.dev/store"
)

// signingKey signs with RS256 and nothing else: the algorithm belongs to the key, never to a token (RFC 8725 §3.1).
type signingKey struct {
	id      string
	private *rsa.PrivateKey
	active  time.Time // signs from then on, until a younger key is active
}

type keyRecord struct {
	PKCS8  []byte
	Active time.Time
}

// keySet is immutable; list is ordered by active, oldest first.
type keySet struct{ list []*signingKey }

const keyBits = 2048

// keyOverlap is how long a new key is published before it signs, so that whoever caches the key set knows it by then.
const keyOverlap = 24 * time.Hour

func (k *keySet) find(id string) *signingKey {
	for _, key := range k.list {
		if key.id == id {
			return key
		}
	}
	return nil
}

// signer is the youngest active key.
func (k *keySet) signer(now time.Time) *signingKey {
	for _, key := range slices.Backward(k.list) {
		if !key.active.After(now) {
			return key
		}
	}
	return nil
}

// jwk is the public half (RFC 7517, RFC 7518 §6.3.1).
func (k *signingKey) jwk() map[string]string {
	b64 := base64.RawURLEncoding.EncodeToString
	return map[string]string{
		"kty": "RSA", "use": "sig", "alg": algorithm, "kid": k.id,
		"n": b64(k.private.N.Bytes()), "e": b64(big.NewInt(int64(k.private.E)).Bytes()),
	}
}

func newKeySet(list []*signingKey) *keySet {
	slices.SortFunc(list, func(a, b *signingKey) int {
		return cmp.Or(a.active.Compare(b.active), cmp.Compare(a.id, b.id))
	})
	return &keySet{list}
}

func keyID(k *rsa.PrivateKey) string {
	sum := sha256.Sum256(x509.MarshalPKCS1PublicKey(&k.PublicKey))
	return base64.RawURLEncoding.EncodeToString(sum[:20])
}

func signingKeyKey(id string) string { return store.Key("identity", "key", id) }

func (s *Service) loadKeysLocked(ctx context.Context) error {
	var list []*signingKey
	err := s.cfg.Store.View(ctx, func(r store.Reader) error {
		for kv, err := range r.Scan(store.Prefix("identity", "key"), store.ScanOptions{}) {
			if err != nil {
				return err
			}
			var rec keyRecord
			if err := s.unseal(kv, &rec); err != nil {
				return err
			}
			parsed, err := x509.ParsePKCS8PrivateKey(rec.PKCS8)
			if err != nil {
				return fmt.Errorf("decoding signing key: %w", err)
			}
			private, ok := parsed.(*rsa.PrivateKey)
			if !ok {
				return fmt.Errorf("signing key is a %T", parsed)
			}
			list = append(list, &signingKey{keyID(private), private, rec.Active})
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("reading signing keys: %w", err)
	}
	s.keys.Store(newKeySet(list))
	return nil
}

func (s *Service) addKeyLocked(ctx context.Context, active time.Time) (*signingKey, error) {
	private, err := rsa.GenerateKey(rand.Reader, keyBits)
	if err != nil {
		return nil, fmt.Errorf("generating signing key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, fmt.Errorf("encoding signing key: %w", err)
	}
	key := &signingKey{keyID(private), private, active.UTC()}
	sealed, err := s.seal(signingKeyKey(key.id), keyRecord{der, key.active})
	if err != nil {
		return nil, err
	}
	if err := s.cfg.Store.Update(ctx, func(tx store.Txn) error { tx.Put(signingKeyKey(key.id), sealed); return nil }); err != nil {
		return nil, fmt.Errorf("writing signing key: %w", err)
	}
	s.keys.Store(newKeySet(append(slices.Clone(s.keys.Load().list), key)))
	return key, nil
}

// rotateDue adds a key when the youngest is near its end, and drops keys whose last token has expired.
func (s *Service) rotateDue(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	list, now := s.keys.Load().list, s.cfg.Clock()
	if len(list) == 0 {
		return nil // not bootstrapped
	}
	if youngest := list[len(list)-1]; !now.Before(youngest.active.Add(s.cfg.KeyLifetime - keyOverlap)) {
		if _, err := s.addKeyLocked(ctx, now.Add(keyOverlap)); err != nil {
			return err
		}
	}
	return s.dropKeysLocked(ctx, now.Add(-tokenLifetime-clockSkew))
}

// dropKeysLocked forgets keys that had a younger active one beside them by then.
func (s *Service) dropKeysLocked(ctx context.Context, then time.Time) error {
	keep := slices.Clone(s.keys.Load().list)
	for len(keep) > 1 && !keep[1].active.After(then) {
		keep = keep[1:]
	}
	return s.keepKeysLocked(ctx, keep)
}

func (s *Service) keepKeysLocked(ctx context.Context, keep []*signingKey) error {
	var drop []string
	for _, k := range s.keys.Load().list {
		if !slices.Contains(keep, k) {
			drop = append(drop, k.id)
		}
	}
	if len(drop) == 0 {
		return nil
	}
	err := s.cfg.Store.Update(ctx, func(tx store.Txn) error {
		for _, id := range drop {
			tx.Delete(signingKeyKey(id))
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("removing signing keys: %w", err)
	}
	s.keys.Store(newKeySet(keep))
	return nil
}

// ReplaceKeys makes a new signing key at once and forgets all others, which ends every token: the answer to a leaked key.
func (s *Service) ReplaceKeys(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	key, err := s.addKeyLocked(ctx, s.cfg.Clock())
	if err != nil {
		return err
	}
	return s.keepKeysLocked(ctx, []*signingKey{key})
}
