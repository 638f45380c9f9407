package vault

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"casemate.dev/resource"
	"casemate.dev/store"
)

// kind is a family of objects with one life cycle.
type kind struct {
	word   string // in messages and store keys
	title  string // in error codes
	plural string // in URLs
}

var (
	keys    = kind{word: "key", title: "Key", plural: "keys"}
	secrets = kind{word: "secret", title: "Secret", plural: "secrets"}

	certificates = kind{word: "certificate", title: "Certificate", plural: "certificates"}
)

// The records of a vault, sealed by the vault's sealer, each bound to its store key:
//
//	vault/key/{vault}/{name}                      object
//	vault/keyversion/{vault}/{name}/{version}     version
//	vault/secret/{vault}/{name}                   object
//	vault/secretversion/{vault}/{name}/{version}  version
//	vault/certificate/…, vault/certificateversion/…  likewise; see certificates.go
//	vault/pending/{vault}/{name}                  pending
//
// {vault} is the vault's resource ID in lower case, {name} the object's name in lower case. due.go has one more family.

// object is what all versions of a key or secret share.
type object struct {
	Name    string    `json:"name"` // as its creator spelled it
	Current string    `json:"current"`
	Deleted *deletion `json:"deleted,omitempty"`

	Managed     bool               `json:"managed,omitempty"`     // a key or secret that belongs to the certificate of its name
	Certificate *certificatePolicy `json:"certificate,omitempty"` // the policy of a certificate

	Policy  *rotationPolicy  `json:"policy,omitempty"`  // of keys
	Tasks   map[string]int64 `json:"tasks,omitempty"`   // what is planned for the current version, and when; see schedule
	Renewed string           `json:"renewed,omitempty"` // the version whose renewal was started
	Told    string           `json:"told,omitempty"`    // the version whose near expiry was announced
}

// deletion says when an object was deleted and when it is purged; Unix seconds.
type deletion struct {
	At    int64 `json:"at"`
	Purge int64 `json:"purge"`
}

// version is one version of a key or secret. Times are Unix seconds; NotBefore and Expires may be absent.
type version struct {
	ID        string            `json:"id"`
	Enabled   bool              `json:"enabled"`
	NotBefore *int64            `json:"nbf,omitempty"`
	Expires   *int64            `json:"exp,omitempty"`
	Created   int64             `json:"created"`
	Updated   int64             `json:"updated"`
	Tags      map[string]string `json:"tags,omitempty"`
	Key       *material         `json:"key,omitempty"`
	Secret    *secretValue      `json:"secret,omitempty"`

	Certificate *certificateValue `json:"certificate,omitempty"`
}

// early and expired say on which side of its validity a version is.
func (v *version) early(now time.Time) bool   { return v.NotBefore != nil && now.Unix() < *v.NotBefore }
func (v *version) expired(now time.Time) bool { return v.Expires != nil && now.Unix() >= *v.Expires }

// usable says that the version may be used for everything it is for.
func (v *version) usable(now time.Time) bool { return v.Enabled && !v.early(now) && !v.expired(now) }

// newVersionID makes a version's identifier: 32 lower-case hex digits.
func newVersionID() string {
	var b [16]byte
	rand.Read(b[:]) //nolint:errcheck // never fails (crypto/rand)
	return hex.EncodeToString(b[:])
}

var (
	namePattern    = regexp.MustCompile(`^[0-9a-zA-Z-]{1,127}$`)
	versionPattern = regexp.MustCompile(`^[0-9a-fA-F]{32}$`)
)

func checkName(k kind, name string) error {
	if !namePattern.MatchString(name) {
		return badParameter("The %s name '%s' is invalid. It must be 1 to 127 letters, digits and dashes.", k.word, clip(name, 127))
	}
	return nil
}

// checkVersion accepts no version (the current one) and well-formed ones.
func checkVersion(k kind, name, id string) error {
	if id != "" && !versionPattern.MatchString(id) {
		return notFound(k, name, clip(id, 40))
	}
	return nil
}

func clip(s string, n int) string {
	if len(s) > n {
		return s[:n] + "…"
	}
	return s
}

func objectKey(v Vault, k kind, name string) string {
	return store.Key("vault", k.word, v.ID.Key(), strings.ToLower(name))
}

func versionKey(v Vault, k kind, name, id string) string {
	return store.Key("vault", k.word+"version", v.ID.Key(), strings.ToLower(name), strings.ToLower(id))
}

// shelf reads the records of one vault in one snapshot.
type shelf struct {
	store.Reader
	vault  Vault
	sealer Sealer
}

// open reads the record at key into to; store.ErrNotFound when there is none.
func (h shelf) open(key string, to any) (store.Revision, error) {
	kv, err := h.Get(key)
	if err != nil {
		return 0, err
	}
	return kv.Revision, h.decode(kv, to)
}

func (h shelf) decode(kv store.KV, to any) error {
	plain, err := h.sealer.OpenBytes(kv.Key, kv.Value)
	if err != nil {
		return fmt.Errorf("opening a record of %s: %w", h.vault.ID, err)
	}
	if err := json.Unmarshal(plain, to); err != nil {
		return fmt.Errorf("decoding a record of %s: %w", h.vault.ID, err)
	}
	return nil
}

// object reads an object, deleted or not.
func (h shelf) object(k kind, name string) (object, error) {
	var o object
	_, err := h.open(objectKey(h.vault, k, name), &o)
	if errors.Is(err, store.ErrNotFound) {
		return o, notFound(k, name, "")
	}
	return o, err
}

// live reads an object that is not deleted, and the version asked for (the current one when id is "").
func (h shelf) live(k kind, name, id string) (object, version, error) {
	o, err := h.object(k, name)
	if err != nil {
		return o, version{}, err
	}
	if o.Deleted != nil {
		return o, version{}, notFound(k, name, id)
	}
	v, err := h.version(k, name, orCurrent(id, o))
	return o, v, err
}

// deleted reads an object that is deleted, and its newest version.
func (h shelf) deleted(k kind, name string) (object, version, error) {
	o, err := h.object(k, name)
	if err != nil {
		return o, version{}, err
	}
	if o.Deleted == nil {
		return o, version{}, notFound(k, name, "")
	}
	v, err := h.version(k, name, o.Current)
	return o, v, err
}

func orCurrent(id string, o object) string {
	if id == "" {
		return o.Current
	}
	return strings.ToLower(id)
}

func (h shelf) version(k kind, name, id string) (version, error) {
	var v version
	_, err := h.open(versionKey(h.vault, k, name, id), &v)
	if errors.Is(err, store.ErrNotFound) {
		return v, notFound(k, name, id)
	}
	return v, err
}

// bench changes the records of one vault in one transaction.
type bench struct {
	shelf
	tx store.Txn
}

func (b bench) put(key string, record any) error {
	plain, err := json.Marshal(record)
	if err != nil {
		return fmt.Errorf("encoding a record of %s: %w", b.vault.ID, err)
	}
	sealed, err := b.sealer.SealBytes(key, plain)
	if err != nil {
		return fmt.Errorf("sealing a record of %s: %w", b.vault.ID, err)
	}
	b.tx.Put(key, sealed)
	return nil
}

func (b bench) putObject(k kind, o object) error { return b.put(objectKey(b.vault, k, o.Name), o) }

// putVersion writes a version and keeps the index of expiries equal to it; old is nil for a new version.
func (b bench) putVersion(k kind, name string, old, v *version) error {
	if old != nil && old.Expires != nil {
		b.tx.Delete(dueKey(*old.Expires, b.vault, k, name, v.ID))
	}
	if v.Expires != nil {
		b.tx.Put(dueKey(*v.Expires, b.vault, k, name, v.ID), dueValue)
	}
	return b.put(versionKey(b.vault, k, name, v.ID), v)
}

// view reads a vault's records in one snapshot.
func (s *Service) view(ctx context.Context, v Vault, fn func(shelf) error) error {
	sealer, err := s.cfg.Handle(ctx, v.ID.String())
	if err != nil {
		return fmt.Errorf("opening the records of %s: %w", v.ID, err)
	}
	return s.cfg.Store.View(ctx, func(r store.Reader) error {
		return fn(shelf{Reader: r, vault: v, sealer: sealer})
	})
}

// update changes a vault's records in one transaction.
func (s *Service) update(ctx context.Context, v Vault, fn func(bench) error) error {
	sealer, err := s.cfg.Handle(ctx, v.ID.String())
	if err != nil {
		return fmt.Errorf("opening the records of %s: %w", v.ID, err)
	}
	return s.cfg.Store.Update(ctx, func(tx store.Txn) error {
		return fn(bench{shelf: shelf{Reader: tx, vault: v, sealer: sealer}, tx: tx})
	})
}

// objectURL and versionURL are the identifiers that clients see (kid, id).
func (s *Service) objectURL(v Vault, k kind, name string) string {
	return s.URL(v.label()) + "/" + k.plural + "/" + name
}

func (s *Service) versionURL(v Vault, k kind, name, id string) string {
	return s.objectURL(v, k, name) + "/" + id
}

// refusal says whether err is an answer to the client, as opposed to a failure whose effect is unknown.
func refusal(err error) bool {
	var e *resource.Error
	return errors.As(err, &e)
}
