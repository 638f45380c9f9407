package vault

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"casemate.dev/resource"
	"casemate.dev/store"
)

// A backup is the record of an object with all its versions, sealed by the platform's own backup key and bound to the
// vault's tenant and to the kind of object. It outlives the vault on purpose. Only this platform can open it, so nobody
// can put material of his own into one; a restore in another tenant does not find the same binding and fails.

// backupMagic begins every backup and tells its version.
var backupMagic = []byte("CMKVB1\x00")

const (
	maxBackupVersions = 500 // Key Vault's own limit
	maxBackup         = 12 << 20
	restoreBody       = maxBackup/3*4 + 1<<10
)

// backup is the sealed content.
type backup struct {
	Parts []backupPart `json:"parts"` // the certificate, its key and its secret; or one key or secret
}

type backupPart struct {
	Kind     string    `json:"kind"`
	Object   object    `json:"object"`
	Versions []version `json:"versions"`
}

// backupSealer gives the sealer of backups and the place that a backup of a kind is bound to.
func (s *Service) backupSealer(ctx context.Context, vault Vault, k kind) (Sealer, string, error) {
	if s.cfg.Backups == nil {
		return nil, "", resource.NotSupported("Backups are not supported by this key vault: it has no key to seal them with.")
	}
	sealer, err := s.cfg.Backups(ctx)
	if err != nil {
		return nil, "", fmt.Errorf("opening the backup key: %w", err)
	}
	tenant := vault.Tenant
	if tenant == "" {
		tenant = s.cfg.Tenant
	}
	return sealer, store.Key("vault", "backup", tenant, k.word), nil
}

// partsOf are the kinds of objects that live and die with an object of kind k.
func partsOf(k kind) []kind {
	if k == certificates {
		return []kind{certificates, keys, secrets}
	}
	return []kind{k}
}

func (s *Service) backupObject(k kind) resource.Handler {
	return func(w http.ResponseWriter, r *resource.Request) error {
		t, err := s.targetOf(r, k)
		if err != nil {
			return err
		}
		sealer, place, err := s.backupSealer(r.Context(), t.vault, k)
		if err != nil {
			return err
		}
		var all backup
		err = s.view(r.Context(), t.vault, func(h shelf) error {
			for _, part := range partsOf(k) {
				p, err := h.part(part, t.name)
				if err != nil {
					return err
				}
				if part == k {
					if err := p.Object.free(k, "backup"); err != nil {
						return err
					}
				}
				all.Parts = append(all.Parts, p)
			}
			return nil
		})
		if err != nil {
			return err
		}
		plain, err := json.Marshal(all)
		if err != nil {
			return fmt.Errorf("encoding a backup: %w", err)
		}
		if len(plain) > maxBackup/2 { // room for the seal, and for what a later version may add
			return badParameter("The %s is too large to be backed up.", k.word)
		}
		sealed, err := sealer.SealBytes(place, plain)
		if err != nil {
			return fmt.Errorf("sealing a backup: %w", err)
		}
		return writeJSON(w, map[string]octets{"value": append(bytes.Clone(backupMagic), sealed...)})
	}
}

// part reads a live object with its versions.
func (h shelf) part(k kind, name string) (backupPart, error) {
	o, _, err := h.live(k, name, "")
	if err != nil {
		return backupPart{}, err
	}
	p := backupPart{Kind: k.word, Object: o}
	for kv, err := range h.Scan(versionKey(h.vault, k, name, ""), store.ScanOptions{Limit: maxBackupVersions + 1}) {
		if err != nil {
			return p, err
		}
		if len(p.Versions) == maxBackupVersions {
			return p, badParameter("The %s has more than %d versions and cannot be backed up.", k.word, maxBackupVersions)
		}
		var v version
		if err := h.decode(kv, &v); err != nil {
			return p, err
		}
		p.Versions = append(p.Versions, v)
	}
	return p, nil
}

// openBackup reads a backup that a client brings.
func (s *Service) openBackup(ctx context.Context, vault Vault, k kind, blob []byte) (backup, error) {
	var b backup
	sealer, place, err := s.backupSealer(ctx, vault, k)
	if err != nil {
		return b, err
	}
	refused := badParameter("The backup blob cannot be restored: it is damaged, is not of a %s, or comes from another tenant or platform.", k.word)
	sealed, ok := bytes.CutPrefix(blob, backupMagic)
	if !ok {
		return b, refused
	}
	plain, err := sealer.OpenBytes(place, sealed)
	if err != nil {
		return b, refused.WithCause(err)
	}
	if err := json.Unmarshal(plain, &b); err != nil {
		return b, fmt.Errorf("decoding a backup: %w", err)
	}
	parts := partsOf(k)
	if len(b.Parts) != len(parts) {
		return b, errors.New("decoding a backup: parts are missing")
	}
	for i, p := range b.Parts {
		if p.Kind != parts[i].word || p.Object.Name == "" || len(p.Versions) == 0 {
			return b, errors.New("decoding a backup: a part is not what it should be")
		}
	}
	return b, nil
}

// restoreObject puts a backup back under its name and versions, and answers with what show writes.
func (s *Service) restoreObject(k kind, show func(w http.ResponseWriter, r *resource.Request, vault Vault, e entry) error) resource.Handler {
	return func(w http.ResponseWriter, r *resource.Request) error {
		vault, err := s.vaultOf(r)
		if err != nil {
			return err
		}
		var body struct {
			Value octets `json:"value"`
		}
		if err := readBody(r, &body); err != nil {
			return err
		}
		all, err := s.openBackup(r.Context(), vault, k, body.Value)
		if err != nil {
			return err
		}
		r.Remember(k.word, all.Parts[0].Object.Name)
		var e entry
		err = s.update(r.Context(), vault, func(b bench) error {
			for i, p := range all.Parts {
				restored, err := b.restore(partsOf(k)[i], p)
				if err != nil {
					return err
				}
				if i == 0 {
					e = restored
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		s.stir()
		for i, part := range partsOf(k) {
			if part == keys {
				s.cfg.Rotated(s.objectURL(vault, keys, all.Parts[i].Object.Name))
			}
		}
		return show(w, r, vault, e)
	}
}

// restore writes one part. Its name must be free.
func (b bench) restore(k kind, p backupPart) (entry, error) {
	o := p.Object
	switch old, err := b.object(k, o.Name); {
	case err == nil && old.Deleted != nil:
		return entry{}, deletedConflict(k, o.Name)
	case err == nil:
		return entry{}, resource.Errorf(http.StatusConflict, "Conflict",
			"There was a conflict restoring the %s '%s': the vault already has a %s of that name.", k.word, o.Name, k.word)
	case !refusal(err):
		return entry{}, err
	}
	o.Deleted, o.Tasks = nil, nil
	e := entry{object: o}
	for i := range p.Versions {
		v := &p.Versions[i]
		if err := b.putVersion(k, o.Name, nil, v); err != nil {
			return e, err
		}
		if v.ID == o.Current {
			e.version = *v
		}
	}
	if e.version.ID == "" {
		return e, errors.New("restoring a backup: its current version is missing")
	}
	b.schedule(k, &e.object, &e.version)
	return e, b.putObject(k, e.object)
}

func (s *Service) showKey(w http.ResponseWriter, r *resource.Request, vault Vault, e entry) error {
	return s.writeKeyVersion(w, r, vault, e.object, e.version)
}

func (s *Service) showSecret(w http.ResponseWriter, r *resource.Request, vault Vault, e entry) error {
	return s.writeSecret(w, r, vault, e, false)
}
