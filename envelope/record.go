package envelope

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"
)

// Records keeps the key records, durably when Save returns. The id is a
// resource id in lower case. Load answers ErrNoRecord for what was never
// saved. A record is sealed and bound to its id: whoever keeps it learns and
// changes nothing.
type Records interface {
	Load(ctx context.Context, id string) ([]byte, error)
	Save(ctx context.Context, id string, record []byte) error
	List(ctx context.Context) ([]string, error)
}

// Vault wraps and unwraps with keys of key vaults, acting as ref.Identity and
// under all the checks that a request of that identity meets. What it refuses
// it wraps with [Refused]; every other error counts as an outage. Both calls
// may be made at any time and concurrently, and must not call Keys for the same
// resource.
type Vault interface {
	// WrapKey uses the version in ref.KeyURL, or the newest one. kid is the
	// full key URL with the version used.
	WrapKey(ctx context.Context, ref KeyRef, plain []byte) (wrapped []byte, kid string, err error)
	UnwrapKey(ctx context.Context, ref KeyRef, kid string, wrapped []byte) ([]byte, error)
}

// KeyRef names a customer's key and the identity that uses it.
type KeyRef struct {
	// KeyURL is https://VAULT/keys/NAME or, pinned, …/NAME/VERSION.
	KeyURL string `json:"keyUrl"`
	// Identity is the object id of the principal that acts.
	Identity string `json:"identity"`
}

func (r *KeyRef) equal(o *KeyRef) bool {
	if r == nil || o == nil {
		return r == o
	}
	return foldURL(r.KeyURL) == foldURL(o.KeyURL) && strings.EqualFold(r.Identity, o.Identity)
}

// foldURL is the spelling by which key URLs are compared: neither host, nor key
// name, nor version distinguish case.
func foldURL(u string) string { return strings.ToLower(strings.TrimRight(u, "/")) }

// splitKeyURL gives the folded URL without version, and the version or "".
func splitKeyURL(keyURL string) (name, version string, err error) {
	u, err := url.Parse(foldURL(keyURL))
	if err != nil {
		return "", "", fmt.Errorf("parsing key URL: %w", err)
	}
	parts := strings.Split(strings.TrimPrefix(u.Path, "/"), "/")
	if u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || len(parts) < 2 || len(parts) > 3 || parts[0] != "keys" || parts[1] == "" {
		return "", "", fmt.Errorf("key URL %q is not https://VAULT/keys/NAME[/VERSION]", keyURL)
	}
	if len(parts) == 3 {
		version = parts[2]
	}
	return u.Scheme + "://" + u.Host + "/keys/" + parts[1], version, nil
}

// record is what is known of a resource's key; JSON, sealed under the master
// key with the resource's id as additional data. After Destroy only the id of
// the key stands.
type record struct {
	KeyID   []byte  `json:"keyId"`
	Ref     *KeyRef `json:"ref,omitempty"` // nil: platform-managed
	Kid     string  `json:"kid,omitempty"`
	Wrapped []byte  `json:"wrapped,omitempty"`
	// Destroyed marks a tombstone.
	Destroyed bool `json:"destroyed,omitempty"`
}

func (r *record) binding() *binding {
	return &binding{ref: r.Ref, kid: r.Kid, wrapped: r.Wrapped}
}

// load reads the record of a resource, tombstones included.
func (k *Keys) load(ctx context.Context, id string) (*record, error) {
	sealed, err := k.records.Load(ctx, id)
	if errors.Is(err, ErrNoRecord) {
		return nil, fmt.Errorf("%w: %s", ErrNoRecord, id)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: reading the key record of %s: %w", ErrUnavailable, id, err)
	}
	text, err := k.hierarchy.records.Open(nil, nil, sealed, []byte(id))
	if err != nil {
		return nil, corrupt("the key record of %s", id)
	}
	rec := new(record)
	if err := json.Unmarshal(text, rec); err != nil {
		return nil, corrupt("the key record of %s: %w", id, err)
	}
	if len(rec.KeyID) != len(keyID{}) {
		return nil, corrupt("the key record of %s has no key id", id)
	}
	return rec, nil
}

// loadLive is load for those who need a key.
func (k *Keys) loadLive(ctx context.Context, id string) (*record, error) {
	rec, err := k.load(ctx, id)
	if err == nil && rec.Destroyed {
		return nil, fmt.Errorf("%w: key %x of %s", ErrDestroyed, rec.KeyID, id)
	}
	return rec, err
}

func (k *Keys) save(ctx context.Context, id string, rec *record) error {
	text, err := json.Marshal(rec)
	if err != nil {
		return fmt.Errorf("encoding the key record of %s: %w", id, err)
	}
	if err := k.records.Save(ctx, id, k.hierarchy.records.Seal(nil, nil, text, []byte(id))); err != nil {
		return fmt.Errorf("%w: saving the key record of %s: %w", ErrUnavailable, id, err)
	}
	return nil
}

// wrap wraps a resource key for ref, asking the vault if there is one.
func (k *Keys) wrap(ctx context.Context, id string, secret *key, ref *KeyRef) (*record, error) {
	r := hashResource(id)
	kid, err := secret.identify(r)
	if err != nil {
		return nil, err
	}
	rec := &record{KeyID: kid[:]}
	if ref == nil {
		rec.Wrapped = k.hierarchy.resources.Seal(nil, nil, secret.b[:], append(r[:], kid[:]...))
		return rec, nil
	}
	name, version, err := splitKeyURL(ref.KeyURL)
	if err != nil {
		return nil, err
	}
	copied := *ref
	rec.Ref = &copied
	plain := append([]byte(nil), secret.b[:]...)
	defer clear(plain)
	rec.Wrapped, rec.Kid, err = k.vault.WrapKey(ctx, copied, plain)
	if err != nil {
		return nil, vaultError(ref.KeyURL, err)
	}
	gotName, gotVersion, err := splitKeyURL(rec.Kid)
	if err != nil || gotName != name || gotVersion == "" || version != "" && version != gotVersion {
		return nil, fmt.Errorf("%w: the key vault wrapped with %q when asked for %s", ErrUnavailable, rec.Kid, ref.KeyURL)
	}
	return rec, nil
}

// unwrap gives the resource key of a record, asking the vault if there is one.
// A key that is not the record's is never given.
func (k *Keys) unwrap(ctx context.Context, id string, rec *record) (*key, error) {
	r := hashResource(id)
	var raw []byte
	var err error
	if rec.Ref == nil {
		if raw, err = k.hierarchy.resources.Open(nil, nil, rec.Wrapped, append(r[:], rec.KeyID...)); err != nil {
			return nil, corrupt("the resource key of %s was wrapped by another master key", id)
		}
	} else if raw, err = k.vault.UnwrapKey(ctx, *rec.Ref, rec.Kid, rec.Wrapped); err != nil {
		return nil, vaultError(rec.Kid, err)
	}
	secret, ok := takeKey(raw)
	if !ok {
		return nil, corrupt("the resource key of %s has a wrong size", id)
	}
	got, err := secret.identify(r)
	if err == nil && string(got[:]) != string(rec.KeyID) {
		err = corrupt("unwrapping gave another key than that of %s", id)
	}
	if err != nil {
		secret.zero()
		return nil, err
	}
	return secret, nil
}
