package vault

import (
	"context"
	"crypto"
	"crypto/fips140"
	"crypto/sha1"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"casemate.dev/resource"
	"casemate.dev/store"
)

// A certificate lives in three objects of one name and one version identifier: the certificate, its key and its secret
// (key and certificate together, as clients of the secrets API expect it). They are written, deleted, recovered and purged
// in one transaction; key and secret say that they are managed and change only with their certificate.

// certificateValue is a certificate as its record holds it.
type certificateValue struct {
	Chain       [][]byte `json:"chain"` // DER, leaf first
	ContentType string   `json:"contentType"`
}

// certificateBundle is Key Vault's CertificateBundle and DeletedCertificateBundle.
type certificateBundle struct {
	deletedPart
	ID          string             `json:"id"`
	KID         string             `json:"kid,omitempty"`
	SID         string             `json:"sid,omitempty"`
	X5T         octets             `json:"x5t,omitempty"`
	CER         []byte             `json:"cer,omitempty"` // base64 with padding, unlike the rest
	ContentType string             `json:"contentType,omitempty"`
	Attributes  attributes         `json:"attributes"`
	Tags        map[string]string  `json:"tags,omitempty"`
	Policy      *certificatePolicy `json:"policy,omitempty"`
}

func (s *Service) certificateBundle(vault Vault, e entry) certificateBundle {
	b := s.certificateItem(vault, e)
	b.ID = s.versionURL(vault, certificates, e.object.Name, e.version.ID)
	b.KID = s.versionURL(vault, keys, e.object.Name, e.version.ID)
	b.SID = s.versionURL(vault, secrets, e.object.Name, e.version.ID)
	b.CER, b.ContentType = e.version.Certificate.Chain[0], e.version.Certificate.ContentType
	b.Policy = s.showCertificatePolicy(vault, e.object)
	return b
}

// certificateItem shows an object in a list, without version.
func (s *Service) certificateItem(vault Vault, e entry) certificateBundle {
	b := certificateBundle{
		deletedPart: s.deletedPart(vault, certificates, e.object), ID: s.objectURL(vault, certificates, e.object.Name),
		Attributes: e.version.attributesOf(vault), Tags: e.version.Tags,
	}
	if !fips140.Enforced() { // the thumbprint is a SHA-1 hash by definition (RFC 7515, section 4.1.7)
		sum := sha1.Sum(e.version.Certificate.Chain[0])
		b.X5T = sum[:]
	}
	return b
}

func (s *Service) certificateVersionItem(vault Vault, e entry) certificateBundle {
	b := s.certificateItem(vault, e)
	b.ID += "/" + e.version.ID
	return b
}

func (s *Service) showCertificatePolicy(vault Vault, o object) *certificatePolicy {
	if o.Certificate == nil {
		return nil
	}
	p := *o.Certificate
	p.ID = s.objectURL(vault, certificates, o.Name) + "/policy"
	return &p
}

func (s *Service) showCertificate(w http.ResponseWriter, r *resource.Request, vault Vault, e entry) error {
	r.Remember("version", e.version.ID)
	return writeJSON(w, s.certificateBundle(vault, e))
}

// issued is what becomes a certificate's next version.
type issued struct {
	id      identity
	policy  *certificatePolicy
	tags    map[string]string
	enabled bool
}

// recordsOf makes the three records of the next version, in the order of partsOf.
func (s *Service) recordsOf(in issued) ([]*version, error) {
	private := any(in.id.key)
	m, err := newMaterial(in.policy.KeyProps.Kty, private, in.policy.keyOps())
	if err != nil {
		return nil, err
	}
	contentType := in.policy.SecretProps.ContentType
	value, err := in.id.secretOf(contentType, *in.policy.KeyProps.Exportable)
	if err != nil {
		return nil, err
	}
	var chain [][]byte
	for _, c := range in.id.chain {
		chain = append(chain, c.Raw)
	}
	now, leaf := s.now().Unix(), in.id.chain[0]
	nbf, exp := leaf.NotBefore.Unix(), leaf.NotAfter.Unix()
	base := version{ID: newVersionID(), Enabled: in.enabled, NotBefore: &nbf, Expires: &exp, Created: now, Updated: now, Tags: in.tags}
	cert, key, secret := base, base, base
	cert.Certificate = &certificateValue{Chain: chain, ContentType: contentType}
	key.Key = m
	secret.Secret = &secretValue{Value: value, ContentType: contentType}
	return []*version{&cert, &key, &secret}, nil
}

// putIssued writes the next version of a certificate in a transaction.
func (b bench) putIssued(name string, policy *certificatePolicy, versions []*version) (entry, error) {
	var e entry
	for i, part := range partsOf(certificates) {
		o := object{Name: name, Managed: part != certificates}
		_, err := b.open(objectKey(b.vault, part, name), &o)
		switch {
		case err != nil && !errors.Is(err, store.ErrNotFound):
			return e, err
		case o.Deleted != nil:
			return e, deletedConflict(part, name)
		case err == nil && part != certificates && !o.Managed:
			return e, resource.Errorf(http.StatusConflict, "Conflict", "The vault already has a %s with the name '%s' that belongs to no certificate.", part.word, name)
		}
		if o.Current = versions[i].ID; part == certificates {
			o.Certificate = policy
		}
		if err := b.putVersion(part, o.Name, nil, versions[i]); err != nil {
			return e, err
		}
		b.schedule(part, &o, versions[i])
		if err := b.putObject(part, o); err != nil {
			return e, err
		}
		if part == certificates {
			e = entry{o, *versions[i]}
		}
	}
	return e, nil
}

// announceIssued tells the envelope and the events of a new version.
func (s *Service) announceIssued(vault Vault, e entry) {
	s.stir()
	if e.version.usable(s.now()) {
		s.cfg.Rotated(s.objectURL(vault, keys, e.object.Name))
	}
	s.event(EventNewVersion, vault, certificates, e.object.Name, &e.version)
}

func (s *Service) getCertificate(w http.ResponseWriter, r *resource.Request) error {
	t, err := s.targetOf(r, certificates)
	if err != nil {
		return err
	}
	var e entry
	err = s.view(r.Context(), t.vault, func(h shelf) (err error) {
		e.object, e.version, err = h.live(certificates, t.name, t.version)
		return err
	})
	if err != nil {
		return err
	}
	return s.showCertificate(w, r, t.vault, e)
}

// updateCertificate changes what the three records of a version share.
func (s *Service) updateCertificate(w http.ResponseWriter, r *resource.Request) error {
	t, err := s.targetOf(r, certificates)
	if err != nil {
		return err
	}
	var body struct {
		updateRequest
		Policy *certificatePolicy `json:"policy"`
	}
	if err := readBody(r, &body); err != nil {
		return err
	}
	if a := body.Attributes; a != nil && (a.NotBefore != nil || a.Expires != nil) {
		return badParameter("A certificate's 'nbf' and 'exp' are its own and cannot be changed.")
	}
	var e entry
	err = s.update(r.Context(), t.vault, func(b bench) error {
		for _, part := range partsOf(certificates) {
			o, v, err := b.live(part, t.name, t.version)
			if err != nil {
				return err
			}
			old := v
			if err := body.apply(&v); err != nil {
				return err
			}
			v.Updated = s.now().Unix()
			if err := b.putVersion(part, o.Name, &old, &v); err != nil {
				return err
			}
			if part == certificates && body.Policy != nil {
				if o.Certificate, err = o.Certificate.with(*body.Policy); err != nil {
					return err
				}
			}
			if v.ID == o.Current {
				b.schedule(part, &o, &v)
			}
			if err := b.putObject(part, o); err != nil {
				return err
			}
			if part == certificates {
				e = entry{o, v}
			}
		}
		return nil
	})
	if err == nil || !refusal(err) { // enabled may have changed: whoever uses the key asks again
		s.cfg.Revoked(s.objectURL(t.vault, keys, t.name))
	}
	if err != nil {
		return err
	}
	s.stir()
	return s.showCertificate(w, r, t.vault, e)
}

func (s *Service) getCertificatePolicy(w http.ResponseWriter, r *resource.Request) error {
	t, err := s.targetOf(r, certificates)
	if err != nil {
		return err
	}
	var o object
	err = s.view(r.Context(), t.vault, func(h shelf) (err error) {
		o, _, err = h.live(certificates, t.name, "")
		return err
	})
	if err != nil {
		return err
	}
	return writeJSON(w, s.showCertificatePolicy(t.vault, o))
}

func (s *Service) setCertificatePolicy(w http.ResponseWriter, r *resource.Request) error {
	t, err := s.targetOf(r, certificates)
	if err != nil {
		return err
	}
	var sent certificatePolicy
	if err := readBody(r, &sent); err != nil {
		return err
	}
	var o object
	err = s.update(r.Context(), t.vault, func(b bench) error {
		var v version
		var err error
		if o, v, err = b.live(certificates, t.name, ""); err != nil {
			return err
		}
		if o.Certificate, err = o.Certificate.with(sent); err != nil {
			return err
		}
		b.schedule(certificates, &o, &v)
		return b.putObject(certificates, o)
	})
	if err != nil {
		return err
	}
	s.stir()
	return writeJSON(w, s.showCertificatePolicy(t.vault, o))
}

func (s *Service) importCertificate(w http.ResponseWriter, r *resource.Request) error {
	t, err := s.targetOf(r, certificates)
	if err != nil {
		return err
	}
	var body struct {
		Value      string             `json:"value"`
		Password   string             `json:"pwd"`
		Policy     *certificatePolicy `json:"policy"`
		Attributes *attributes        `json:"attributes"`
		Tags       map[string]string  `json:"tags"`
	}
	if err := readBody(r, &body); err != nil {
		return err
	}
	if err := checkTags(body.Tags); err != nil {
		return err
	}
	id, contentType, err := s.readIdentity(r.Context(), body.Value, body.Password)
	if err != nil {
		return err
	}
	p := importedPolicy(id, contentType, body.Policy)
	in := issued{id: id, policy: p, tags: body.Tags, enabled: body.Attributes == nil || body.Attributes.Enabled == nil || *body.Attributes.Enabled}
	versions, err := s.recordsOf(in)
	if err != nil {
		return err
	}
	var e entry
	err = s.update(r.Context(), t.vault, func(b bench) (err error) {
		e, err = b.putIssued(t.name, p, versions)
		return err
	})
	if err != nil {
		return err
	}
	s.announceIssued(t.vault, e)
	return s.showCertificate(w, r, t.vault, e)
}

// pkcs12Time bounds how long a client waits for a password's derivation.
const pkcs12Time = 10 * time.Second

// readIdentity parses what a client imports. Iteration counts inside encrypted content cannot be seen before, so that one
// parse runs at a time and is given up by its client after a while; until it has ended, others are told to come again.
func (s *Service) readIdentity(ctx context.Context, value, password string) (identity, string, error) {
	ctx, cancel := context.WithTimeout(ctx, pkcs12Time)
	defer cancel()
	select {
	case s.parsing <- struct{}{}:
	case <-ctx.Done():
		return identity{}, "", resource.Errorf(http.StatusTooManyRequests, "Throttled", "Other certificates are being imported. Try again.")
	}
	type result struct {
		id   identity
		kind string
		err  error
	}
	done := make(chan result, 1)
	go func() {
		var out result
		out.id, out.kind, out.err = parseIdentity(value, password)
		<-s.parsing
		done <- out
	}()
	select {
	case out := <-done:
		return out.id, out.kind, out.err
	case <-ctx.Done():
		return identity{}, "", badParameter("The content takes too long to read: its key derivation has too many iterations.")
	}
}

// importedPolicy describes an imported certificate; what the client says of content type, exportability, lifetime and
// issuer goes first.
func importedPolicy(id identity, contentType string, sent *certificatePolicy) *certificatePolicy {
	leaf := id.chain[0]
	exportable := true
	p := &certificatePolicy{
		KeyProps: &keyProps{Exportable: &exportable}, SecretProps: &secretProp{ContentType: contentType}, Issuer: &certIssuer{Name: issuerUnknown},
		X509: &x509Props{Subject: leaf.Subject.String(), BasicConstraints: &basicConstraints{CA: leaf.IsCA}},
	}
	k := p.KeyProps
	k.Kty, k.Size, k.Curve = describe(id.key.Public())
	for name, bit := range keyUsages {
		if leaf.KeyUsage&bit != 0 {
			p.X509.KeyUsage = append(p.X509.KeyUsage, name)
		}
	}
	slices.Sort(p.X509.KeyUsage)
	if len(leaf.DNSNames)+len(leaf.EmailAddresses) > 0 {
		p.X509.SANs = &altNames{DNS: leaf.DNSNames, Emails: leaf.EmailAddresses}
	}
	months := int(leaf.NotAfter.Sub(leaf.NotBefore).Hours() / 24 / 30)
	p.X509.ValidityMonths = max(1, min(months, maxValidityMonths))
	if sent == nil {
		return p
	}
	if sent.SecretProps != nil && (sent.SecretProps.ContentType == typePEM || sent.SecretProps.ContentType == typePKCS12) {
		p.SecretProps = sent.SecretProps
	}
	if sent.KeyProps != nil && sent.KeyProps.Exportable != nil {
		k.Exportable = sent.KeyProps.Exportable
	}
	return p
}

// selfSigned makes a certificate by the policy, signed by its own key.
func selfSigned(p *certificatePolicy, key crypto.Signer, now time.Time) (*x509.Certificate, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	t, err := p.template(now, serial)
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(nil, t, t, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("signing a certificate: %w", err)
	}
	return x509.ParseCertificate(der)
}
