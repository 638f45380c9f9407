package vault

import (
	"encoding/json"
	"net/http"
	"strings"

	"casemate.dev/resource"
)

// keyBundle and deletedKeyBundle are Key Vault's KeyBundle and DeletedKeyBundle.
type keyBundle struct {
	deletedPart
	Key        jwk               `json:"key"`
	Attributes attributes        `json:"attributes"`
	Tags       map[string]string `json:"tags,omitempty"`
	Managed    bool              `json:"managed,omitempty"` // it belongs to a certificate
}

// keyItem is KeyItem and DeletedKeyItem.
type keyItem struct {
	deletedPart
	KID        string            `json:"kid"`
	Attributes attributes        `json:"attributes"`
	Tags       map[string]string `json:"tags,omitempty"`
	Managed    bool              `json:"managed,omitempty"`
}

func (s *Service) writeKey(w http.ResponseWriter, r *resource.Request, vault Vault, o object, k *key) error {
	r.Remember("version", k.ID)
	return writeJSON(w, keyBundle{
		deletedPart: s.deletedPart(vault, keys, o),
		Key:         k.publicJWK(s.versionURL(vault, keys, o.Name, k.ID)),
		Attributes:  k.attributesOf(vault), Tags: k.Tags, Managed: o.Managed,
	})
}

// writeKeyVersion is writeKey for a version that is not parsed yet.
func (s *Service) writeKeyVersion(w http.ResponseWriter, r *resource.Request, vault Vault, o object, v version) error {
	k, err := v.parse()
	if err != nil {
		return err
	}
	return s.writeKey(w, r, vault, o, k)
}

func (s *Service) keyItem(vault Vault, e entry) keyItem {
	return keyItem{
		deletedPart: s.deletedPart(vault, keys, e.object), KID: s.objectURL(vault, keys, e.object.Name),
		Attributes: e.version.attributesOf(vault), Tags: e.version.Tags, Managed: e.object.Managed,
	}
}

func (s *Service) keyVersionItem(vault Vault, e entry) keyItem {
	item := s.keyItem(vault, e)
	item.KID += "/" + e.version.ID
	return item
}

// keyRequest is the body of create and import.
type keyRequest struct {
	Kty            string            `json:"kty"`
	KeySize        int               `json:"key_size"`
	Curve          string            `json:"crv"`
	PublicExponent int               `json:"public_exponent"`
	KeyOps         []string          `json:"key_ops"`
	Key            jwk               `json:"key"`
	HSM            bool              `json:"Hsm"`
	ReleasePolicy  json.RawMessage   `json:"release_policy"`
	Attributes     *keyAttributes    `json:"attributes"`
	Tags           map[string]string `json:"tags"`
}

type keyAttributes struct {
	attributes
	Exportable bool `json:"exportable"`
}

// newVersion makes the version that a body describes around m.
func (s *Service) newVersion(body keyRequest, m *material) (*version, error) {
	now := s.now().Unix()
	v := &version{ID: newVersionID(), Enabled: true, Created: now, Updated: now, Tags: body.Tags, Key: m}
	if err := checkTags(body.Tags); err != nil {
		return nil, err
	}
	if body.Attributes == nil {
		return v, nil
	}
	return v, body.Attributes.apply(v)
}

func (body keyRequest) check() error {
	exportable := body.Attributes != nil && body.Attributes.Exportable
	if exportable || len(body.ReleasePolicy) > 0 && string(body.ReleasePolicy) != "null" {
		return resource.NotSupported("Exportable keys and release policies are not supported: keys never leave the vault.")
	}
	if body.HSM {
		return badParameter("The vault has no hardware security module; leave out 'Hsm'.")
	}
	if body.PublicExponent != 0 && body.PublicExponent != 65537 {
		return badParameter("The public exponent %d is not supported. Use 65537.", body.PublicExponent)
	}
	return nil
}

// storeKey adds the version around what from yields and answers with it.
func (s *Service) storeKey(w http.ResponseWriter, r *resource.Request, from func(body keyRequest) (*material, error)) error {
	t, err := s.targetOf(r, keys)
	if err != nil {
		return err
	}
	var body keyRequest
	if err := readBody(r, &body); err != nil {
		return err
	}
	if err := body.check(); err != nil {
		return err
	}
	m, err := from(body)
	if err != nil {
		return err
	}
	v, err := s.newVersion(body, m)
	if err != nil {
		return err
	}
	o, err := s.add(r.Context(), t.vault, keys, t.name, v)
	if err != nil {
		return err
	}
	return s.writeKeyVersion(w, r, t.vault, o, *v)
}

func (s *Service) createKey(w http.ResponseWriter, r *resource.Request) error {
	return s.storeKey(w, r, func(body keyRequest) (*material, error) {
		return generate(body.Kty, body.KeySize, body.Curve, body.KeyOps)
	})
}

func (s *Service) importKey(w http.ResponseWriter, r *resource.Request) error {
	return s.storeKey(w, r, func(body keyRequest) (*material, error) {
		return importJWK(body.Key)
	})
}

// rotateKey makes a new version like the newest one.
func (s *Service) rotateKey(w http.ResponseWriter, r *resource.Request) error {
	t, err := s.targetOf(r, keys)
	if err != nil {
		return err
	}
	o, k, err := s.load(r.Context(), t.vault, t.name, "")
	if err != nil {
		return err
	}
	if !k.Enabled {
		return forbidden("KeyDisabled", "Operation rotate is not allowed on a disabled key.")
	}
	v, err := s.successor(k, o.Policy)
	if err != nil {
		return err
	}
	o, err = s.add(r.Context(), t.vault, keys, t.name, v)
	if err != nil {
		return err
	}
	return s.writeKeyVersion(w, r, t.vault, o, *v)
}

func (s *Service) getKey(w http.ResponseWriter, r *resource.Request) error {
	t, err := s.targetOf(r, keys)
	if err != nil {
		return err
	}
	o, k, err := s.load(r.Context(), t.vault, t.name, t.version)
	if err != nil {
		return err
	}
	return s.writeKey(w, r, t.vault, o, k)
}

// updateRequest is the body of the updates of keys and secrets.
type updateRequest struct {
	KeyOps      []string          `json:"key_ops"`
	Attributes  *attributes       `json:"attributes"`
	Tags        map[string]string `json:"tags"`
	ContentType *string           `json:"contentType"`
}

// apply puts the parts that keys and secrets share over a version. Tags, when sent, replace all.
func (u updateRequest) apply(v *version) error {
	if u.Tags != nil {
		if err := checkTags(u.Tags); err != nil {
			return err
		}
		v.Tags = u.Tags
	}
	return u.Attributes.apply(v)
}

func (s *Service) updateKey(w http.ResponseWriter, r *resource.Request) error {
	t, err := s.targetOf(r, keys)
	if err != nil {
		return err
	}
	var body updateRequest
	if err := readBody(r, &body); err != nil {
		return err
	}
	o, v, err := s.amend(r.Context(), t.vault, keys, t.name, t.version, func(v *version) error {
		if body.KeyOps != nil {
			if len(body.KeyOps) == 0 {
				return badParameter("The property 'key_ops' must name at least one operation.")
			}
			checked := *v.Key
			for _, op := range body.KeyOps {
				if !contains(operationsOf(v.Key.Kty), op) {
					return badParameter("The key operation '%s' is not supported for keys of type %s. Use %s.", clip(op, 40), v.Key.Kty, strings.Join(operationsOf(v.Key.Kty), ", "))
				}
			}
			checked.Ops = body.KeyOps
			v.Key = &checked
		}
		return body.apply(v)
	})
	if err != nil {
		return err
	}
	return s.writeKeyVersion(w, r, t.vault, o, v)
}

func (s *Service) deleteKey(w http.ResponseWriter, r *resource.Request) error {
	t, err := s.targetOf(r, keys)
	if err != nil {
		return err
	}
	o, v, err := s.remove(r.Context(), t.vault, keys, t.name)
	if err != nil {
		return err
	}
	return s.writeKeyVersion(w, r, t.vault, o, v)
}

func (s *Service) getDeletedKey(w http.ResponseWriter, r *resource.Request) error {
	t, err := s.targetOf(r, keys)
	if err != nil {
		return err
	}
	var o object
	var v version
	err = s.view(r.Context(), t.vault, func(h shelf) (err error) {
		o, v, err = h.deleted(keys, t.name)
		return err
	})
	if err != nil {
		return err
	}
	return s.writeKeyVersion(w, r, t.vault, o, v)
}

func (s *Service) recoverKey(w http.ResponseWriter, r *resource.Request) error {
	t, err := s.targetOf(r, keys)
	if err != nil {
		return err
	}
	o, v, err := s.recover(r.Context(), t.vault, keys, t.name)
	if err != nil {
		return err
	}
	return s.writeKeyVersion(w, r, t.vault, o, v)
}

// purgeObject answers the purge of a key or secret.
func (s *Service) purgeObject(k kind) resource.Handler {
	return func(w http.ResponseWriter, r *resource.Request) error {
		t, err := s.targetOf(r, k)
		if err != nil {
			return err
		}
		if err := s.purge(r.Context(), t.vault, k, t.name); err != nil {
			return err
		}
		w.WriteHeader(http.StatusNoContent)
		return nil
	}
}
