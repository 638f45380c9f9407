package vault

import (
	"net/http"

	"casemate.dev/resource"
)

// maxSecret is the most octets of a secret's value.
const maxSecret = 25 << 10

// maxContentType is the most octets of a secret's content type.
const maxContentType = 255

// secretValue is a secret as its record holds it.
type secretValue struct {
	Value       string `json:"value"`
	ContentType string `json:"contentType,omitempty"`
}

// secretBundle is Key Vault's SecretBundle and DeletedSecretBundle; the latter has no value.
type secretBundle struct {
	deletedPart
	Value       *string           `json:"value,omitempty"`
	ID          string            `json:"id"`
	ContentType string            `json:"contentType,omitempty"`
	Attributes  attributes        `json:"attributes"`
	Tags        map[string]string `json:"tags,omitempty"`
	Managed     bool              `json:"managed,omitempty"` // it belongs to a certificate, whose key is KID
	KID         string            `json:"kid,omitempty"`
}

// secretBundle shows a version without its value.
func (s *Service) secretBundle(vault Vault, e entry) secretBundle {
	b := secretBundle{
		deletedPart: s.deletedPart(vault, secrets, e.object),
		ID:          s.versionURL(vault, secrets, e.object.Name, e.version.ID), ContentType: e.version.Secret.ContentType,
		Attributes: e.version.attributesOf(vault), Tags: e.version.Tags, Managed: e.object.Managed,
	}
	if b.Managed {
		b.KID = s.versionURL(vault, keys, e.object.Name, e.version.ID)
	}
	return b
}

// secretItem shows an object in a list, without version.
func (s *Service) secretItem(vault Vault, e entry) secretBundle {
	item := s.secretBundle(vault, e)
	item.ID, item.KID = s.objectURL(vault, secrets, e.object.Name), ""
	return item
}

func (s *Service) setSecret(w http.ResponseWriter, r *resource.Request) error {
	t, err := s.targetOf(r, secrets)
	if err != nil {
		return err
	}
	var body struct {
		Value       *string           `json:"value"`
		ContentType string            `json:"contentType"`
		Attributes  *attributes       `json:"attributes"`
		Tags        map[string]string `json:"tags"`
	}
	if err := readBody(r, &body); err != nil {
		return err
	}
	if body.Value == nil {
		return badParameter("The property 'value' is required.")
	}
	if err := checkSecret(*body.Value, body.ContentType); err != nil {
		return err
	}
	if err := checkTags(body.Tags); err != nil {
		return err
	}
	now := s.now().Unix()
	v := &version{
		ID: newVersionID(), Enabled: true, Created: now, Updated: now, Tags: body.Tags,
		Secret: &secretValue{Value: *body.Value, ContentType: body.ContentType},
	}
	if err := body.Attributes.apply(v); err != nil {
		return err
	}
	o, err := s.add(r.Context(), t.vault, secrets, t.name, v)
	if err != nil {
		return err
	}
	return s.writeSecret(w, r, t.vault, entry{o, *v}, true)
}

func checkSecret(value, contentType string) error {
	if len(value) > maxSecret {
		return badParameter("The secret's value has %d octets; at most %d are allowed.", len(value), maxSecret)
	}
	if len(contentType) > maxContentType {
		return badParameter("The secret's content type has %d octets; at most %d are allowed.", len(contentType), maxContentType)
	}
	return nil
}

func (s *Service) writeSecret(w http.ResponseWriter, r *resource.Request, vault Vault, e entry, withValue bool) error {
	r.Remember("version", e.version.ID)
	bundle := s.secretBundle(vault, e)
	if withValue {
		bundle.Value = &e.version.Secret.Value
	}
	return writeJSON(w, bundle)
}

// getSecret is refused while the secret is disabled. Its nbf and exp only inform (Key Vault, "About secrets").
func (s *Service) getSecret(w http.ResponseWriter, r *resource.Request) error {
	t, err := s.targetOf(r, secrets)
	if err != nil {
		return err
	}
	var e entry
	err = s.view(r.Context(), t.vault, func(h shelf) (err error) {
		e.object, e.version, err = h.live(secrets, t.name, t.version)
		return err
	})
	if err != nil {
		return err
	}
	if !e.version.Enabled {
		return forbidden("SecretDisabled", "Operation get is not allowed on a disabled secret.")
	}
	return s.writeSecret(w, r, t.vault, e, true)
}

func (s *Service) updateSecret(w http.ResponseWriter, r *resource.Request) error {
	t, err := s.targetOf(r, secrets)
	if err != nil {
		return err
	}
	var body updateRequest
	if err := readBody(r, &body); err != nil {
		return err
	}
	o, v, err := s.amend(r.Context(), t.vault, secrets, t.name, t.version, func(v *version) error {
		if body.ContentType != nil {
			if err := checkSecret("", *body.ContentType); err != nil {
				return err
			}
			v.Secret = &secretValue{Value: v.Secret.Value, ContentType: *body.ContentType}
		}
		return body.apply(v)
	})
	if err != nil {
		return err
	}
	return s.writeSecret(w, r, t.vault, entry{o, v}, false)
}

func (s *Service) deleteSecret(w http.ResponseWriter, r *resource.Request) error {
	t, err := s.targetOf(r, secrets)
	if err != nil {
		return err
	}
	o, v, err := s.remove(r.Context(), t.vault, secrets, t.name)
	if err != nil {
		return err
	}
	return s.writeSecret(w, r, t.vault, entry{o, v}, false)
}

func (s *Service) getDeletedSecret(w http.ResponseWriter, r *resource.Request) error {
	t, err := s.targetOf(r, secrets)
	if err != nil {
		return err
	}
	var e entry
	err = s.view(r.Context(), t.vault, func(h shelf) (err error) {
		e.object, e.version, err = h.deleted(secrets, t.name)
		return err
	})
	if err != nil {
		return err
	}
	return s.writeSecret(w, r, t.vault, e, false)
}

func (s *Service) recoverSecret(w http.ResponseWriter, r *resource.Request) error {
	t, err := s.targetOf(r, secrets)
	if err != nil {
		return err
	}
	o, v, err := s.recover(r.Context(), t.vault, secrets, t.name)
	if err != nil {
		return err
	}
	return s.writeSecret(w, r, t.vault, entry{o, v}, false)
}
