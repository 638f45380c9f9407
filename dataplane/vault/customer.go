package vault

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strings"

	"casemate.dev/envelope"
	"casemate.dev/resource"
)

var _ envelope.Vault = (*Service)(nil)

// WrapKey wraps a resource key for the identity that ref names, with the newest version of the key or the one that ref
// pins, and returns the URL of the version used. Whatever forbids the use of the key is an error marked by
// envelope.Refused: unlike a client, a resource may use a key only while it is enabled, valid and not deleted.
func (s *Service) WrapKey(ctx context.Context, ref envelope.KeyRef, plain []byte) (wrapped []byte, kid string, err error) {
	err = s.use(ctx, ref.KeyURL, ref, "wrapKey", func(k *key, url string) (err error) {
		kid = url
		wrapped, err = k.wrapResource(plain)
		return err
	})
	return wrapped, kid, err
}

// UnwrapKey reverses WrapKey with the version that kid names, a version of ref's key.
func (s *Service) UnwrapKey(ctx context.Context, ref envelope.KeyRef, kid string, wrapped []byte) (plain []byte, err error) {
	err = s.use(ctx, kid, ref, "unwrapKey", func(k *key, _ string) (err error) {
		plain, err = k.unwrapResource(wrapped)
		return err
	})
	return plain, err
}

// use runs do with the key at keyURL after every check: vault, firewall, permission of the identity (which is recorded),
// state of the key.
func (s *Service) use(ctx context.Context, keyURL string, ref envelope.KeyRef, op string, do func(k *key, kid string) error) error {
	t, err := s.locate(keyURL, ref)
	if err != nil {
		return envelope.Refused(keyURL, err)
	}
	caller, err := s.cfg.Principals.CallerOf(ctx, ref.Identity)
	if err != nil {
		return refusedIf(keyURL, err)
	}
	action := actions + map[string]string{"wrapKey": "keys/wrap/action", "unwrapKey": "keys/unwrap/action"}[op]
	done, err := s.cfg.Inner.Enter(ctx, caller, action, true, t.vault.ID.String()+"/keys/"+t.name, resource.AuditSecret)
	if err != nil {
		return refusedIf(keyURL, err)
	}
	err = s.useEntered(ctx, t, op, do)
	done(err)
	return refusedIf(keyURL, err)
}

func (s *Service) useEntered(ctx context.Context, t target, op string, do func(k *key, kid string) error) error {
	o, k, err := s.load(ctx, t.vault, t.name, t.version)
	if err != nil {
		return err
	}
	if err := s.permit(k, op); err != nil {
		return err
	}
	switch now := s.now(); { // stricter than permit: expiry revokes (row E4)
	case k.early(now):
		return forbidden("KeyNotYetValid", "The key is not yet valid.")
	case k.expired(now):
		return forbidden("KeyExpired", "The key is expired.")
	}
	return do(k, s.versionURL(t.vault, keys, o.Name, k.ID))
}

// refusedIf marks the answers that say no. Outages (5xx, no answer, too many requests) stay as they are, and so does a
// plain error: they say nothing about whether the key may be used.
func refusedIf(keyURL string, err error) error {
	var e *resource.Error
	if errors.As(err, &e) && e.Status >= 400 && e.Status < 500 && e.Status != http.StatusTooManyRequests {
		return envelope.Refused(keyURL, err)
	}
	return err
}

// locate finds the vault and the key that keyURL names: ref's key, in a vault of this platform whose firewall lets the
// platform in.
func (s *Service) locate(keyURL string, ref envelope.KeyRef) (target, error) {
	label, t, err := s.parseKeyURL(keyURL)
	if err != nil {
		return t, err
	}
	refLabel, bound, err := s.parseKeyURL(ref.KeyURL)
	if err != nil {
		return t, err
	}
	if label != refLabel || !strings.EqualFold(t.name, bound.name) {
		return t, errors.New("the resource is bound to another key")
	}
	v, ok := s.vaults.Load().byLabel[label]
	if !ok {
		return t, errors.New("the key vault does not exist or is deleted")
	}
	if !v.TrustedServices {
		return t, errors.New("the key vault's firewall does not let trusted services in (networkAcls.bypass is None)")
	}
	t.vault = v
	return t, nil
}

// parseKeyURL reads https://{vault}.vault.{domain}[:port]/keys/{name}[/{version}].
func (s *Service) parseKeyURL(keyURL string) (label string, t target, err error) {
	bad := errors.New("the key identifier must be " + s.URL("{vault}") + "/keys/{name} with or without a version")
	u, err := url.Parse(keyURL)
	if err != nil || u.Scheme != "https" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.RawPath != "" {
		return "", t, bad
	}
	label, _, _ = strings.Cut(strings.ToLower(u.Host), ".")
	if !strings.EqualFold("https://"+u.Host, s.URL(label)) {
		return "", t, bad
	}
	parts := strings.Split(strings.TrimSuffix(strings.TrimPrefix(u.Path, "/"), "/"), "/")
	if len(parts) < 2 || len(parts) > 3 || !strings.EqualFold(parts[0], keys.plural) || !namePattern.MatchString(parts[1]) {
		return "", t, bad
	}
	t.name = parts[1]
	if len(parts) == 3 {
		if t.version = parts[2]; !versionPattern.MatchString(t.version) {
			return "", t, bad
		}
	}
	return label, t, nil
}

// KeyExists says whether a key identifier names a key of this platform that could wrap a resource's key: what a provider
// checks before it accepts a customer-managed key. It tells nothing about permissions.
func (s *Service) KeyExists(ctx context.Context, keyURL string) error {
	label, t, err := s.parseKeyURL(keyURL)
	if err != nil {
		return resource.Errorf(http.StatusBadRequest, "InvalidKeyIdentifier", "%s", err)
	}
	v, ok := s.vaults.Load().byLabel[label]
	if !ok {
		return resource.Errorf(http.StatusBadRequest, "KeyVaultNotFound", "The key vault of '%s' does not exist.", clip(keyURL, 200))
	}
	_, k, err := s.load(ctx, v, t.name, t.version)
	if err != nil {
		return err
	}
	if k.ec != nil {
		return resource.Errorf(http.StatusBadRequest, "KeyTypeNotSupported", "The key '%s' is an EC key, which cannot wrap keys. Use an RSA key.", t.name)
	}
	return nil
}

// resourceKeyLabel binds what wrapResource makes with an oct key to this use.
var resourceKeyLabel = []byte("casemate resource key")

// wrapResource wraps a resource key with RSA-OAEP-256 or, for oct, AES-GCM (nonce ‖ ciphertext ‖ tag).
func (k *key) wrapResource(plain []byte) ([]byte, error) {
	if k.oct != nil {
		return k.sealGCM(plain, resourceKeyLabel)
	}
	return k.wrap(algRSAOAEP256, plain)
}

func (k *key) unwrapResource(wrapped []byte) ([]byte, error) {
	if k.oct != nil {
		return k.openGCM(wrapped, resourceKeyLabel)
	}
	return k.unwrap(algRSAOAEP256, wrapped)
}
