package vault

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"strings"

	"casemate.dev/resource"
	"casemate.dev/store"
)

// Issuer is the platform's certificate authority, for certificates of the issuer Casemate. It decides whether it signs for
// these names: a refusal is a *resource.Error. The template has subject, names, usages and validity; serial number, issuer
// and anything else are the authority's. The chain is DER, leaf first, without the root.
type Issuer interface {
	Issue(ctx context.Context, vaultID string, template *x509.Certificate, public crypto.PublicKey) (chain [][]byte, err error)
}

// States of an operation.
const (
	statusInProgress = "inProgress"
	statusCompleted  = "completed"
	statusCancelled  = "cancelled"
	statusFailed     = "failed"
)

// pending is the operation that makes a certificate's next version; there is one for each name, the latest. Its record,
// vault/pending/{vault}/{name}, holds the new key until the certificate is there.
type pending struct {
	Name      string             `json:"name"`
	Request   string             `json:"request"`
	Status    string             `json:"status"`
	Cancelled bool               `json:"cancelled,omitempty"`
	Code      string             `json:"code,omitempty"` // of the failure
	Message   string             `json:"message,omitempty"`
	CSR       []byte             `json:"csr"`
	Key       []byte             `json:"key,omitempty"` // PKCS #8
	Policy    *certificatePolicy `json:"policy"`
	Tags      map[string]string  `json:"tags,omitempty"`
	Enabled   bool               `json:"enabled"`
}

func pendingKey(v Vault, name string) string {
	return store.Key("vault", "pending", v.ID.Key(), strings.ToLower(name))
}

// certificateOperation is Key Vault's CertificateOperation.
type certificateOperation struct {
	ID        string            `json:"id"`
	Issuer    certIssuer        `json:"issuer"`
	CSR       []byte            `json:"csr"` // base64 with padding
	Cancelled bool              `json:"cancellation_requested"`
	Status    string            `json:"status"`
	Details   string            `json:"status_details,omitempty"`
	Error     map[string]string `json:"error,omitempty"`
	Target    string            `json:"target,omitempty"`
	Request   string            `json:"request_id"`
}

func (s *Service) writeOperation(w http.ResponseWriter, vault Vault, p pending, status int) error {
	url := s.objectURL(vault, certificates, p.Name)
	op := certificateOperation{
		ID: url + "/pending", Issuer: *p.Policy.Issuer, CSR: p.CSR, Cancelled: p.Cancelled, Status: p.Status, Request: p.Request,
	}
	switch p.Status {
	case statusCompleted:
		op.Target = url
	case statusInProgress:
		op.Details = "Pending certificate created. Certificate request is in progress. This may take some time based on the issuer provider. Please check again later."
		if p.Policy.Issuer.Name == issuerUnknown {
			op.Details = "Pending certificate created. Please Perform Merge to complete the request."
		}
	case statusFailed:
		op.Error = map[string]string{"code": p.Code, "message": p.Message}
	}
	return writeJSONStatus(w, status, op)
}

func (s *Service) createCertificate(w http.ResponseWriter, r *resource.Request) error {
	t, err := s.targetOf(r, certificates)
	if err != nil {
		return err
	}
	var body struct {
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
	if body.Policy == nil {
		return badParameter("The property 'policy' is required.")
	}
	if err := body.Policy.complete(); err != nil {
		return err
	}
	if body.Policy.Issuer.Name == issuerCasemate && s.cfg.Issuer == nil {
		return resource.NotSupported("The issuer %s is not available on this platform. Use %s or %s.", issuerCasemate, issuerSelf, issuerUnknown)
	}
	enabled := body.Attributes == nil || body.Attributes.Enabled == nil || *body.Attributes.Enabled
	p, err := s.begin(r.Context(), t.vault, t.name, body.Policy, body.Tags, enabled)
	if err != nil {
		return err
	}
	return s.writeOperation(w, t.vault, p, http.StatusAccepted)
}

// begin makes key and request and writes the operation, which issueDue completes unless the issuer is Unknown.
func (s *Service) begin(ctx context.Context, vault Vault, name string, policy *certificatePolicy, tags map[string]string, enabled bool) (pending, error) {
	key, err := s.certificateKey(ctx, vault, name, policy)
	if err != nil {
		return pending{}, err
	}
	t, err := policy.template(s.now(), big.NewInt(1))
	if err != nil {
		return pending{}, err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{RawSubject: t.RawSubject, DNSNames: t.DNSNames, EmailAddresses: t.EmailAddresses}, key)
	if err != nil {
		return pending{}, badParameter("The policy's subject or names cannot be put into a certificate.").WithCause(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return pending{}, fmt.Errorf("encoding a key: %w", err)
	}
	p := pending{Name: name, Request: newVersionID(), Status: statusInProgress, CSR: csr, Key: der, Policy: policy, Tags: tags, Enabled: enabled}
	err = s.update(ctx, vault, func(b bench) error {
		if old, err := b.pending(name); err == nil && old.Status == statusInProgress {
			return resource.Errorf(http.StatusConflict, "Conflict", "The certificate '%s' has an operation in progress. Complete, cancel or delete it first.", name)
		} else if err != nil && !refusal(err) {
			return err
		}
		for _, part := range partsOf(certificates) {
			o, err := b.object(part, name)
			switch {
			case refusal(err): // free
			case err != nil:
				return err
			case o.Deleted != nil:
				return deletedConflict(part, name)
			case part != certificates && !o.Managed:
				return resource.Errorf(http.StatusConflict, "Conflict", "The vault already has a %s with the name '%s' that belongs to no certificate.", part.word, name)
			}
		}
		if policy.Issuer.Name != issuerUnknown {
			b.tx.Put(taskKey(s.now().Unix(), vault, certificates, name, taskIssue), dueValue)
		}
		return b.put(pendingKey(vault, name), p)
	})
	if err == nil {
		s.stir()
	}
	return p, err
}

// certificateKey is a new key by the policy, or the current one where the policy reuses it.
func (s *Service) certificateKey(ctx context.Context, vault Vault, name string, p *certificatePolicy) (crypto.Signer, error) {
	if p.KeyProps.ReuseKey {
		_, k, err := s.load(ctx, vault, name, "")
		if err != nil && !refusal(err) {
			return nil, err
		}
		if err == nil && k.Key.Kty == p.KeyProps.Kty {
			if k.rsa != nil {
				return k.rsa, nil
			}
			return k.ec, nil
		}
	}
	m, err := generate(p.KeyProps.Kty, p.KeyProps.Size, p.KeyProps.Curve, nil)
	if err != nil {
		return nil, err
	}
	return parsePrivate(m.Bytes)
}

func describe(public crypto.PublicKey) (kty string, size int, curve string) {
	switch k := public.(type) {
	case *rsa.PublicKey:
		return ktyRSA, k.N.BitLen(), ""
	case *ecdsa.PublicKey:
		return ktyEC, k.Params().BitSize, k.Params().Name
	}
	return "", 0, ""
}

func (h shelf) pending(name string) (pending, error) {
	var p pending
	_, err := h.open(pendingKey(h.vault, name), &p)
	if errors.Is(err, store.ErrNotFound) {
		return p, resource.Errorf(http.StatusNotFound, "PendingCertificateNotFound", "The certificate '%s' has no pending operation.", name)
	}
	return p, err
}

// issueDue completes the operation of a certificate that this platform signs. Refusals end it as failed; when the
// authority or the store does not answer, the entry stays and it is tried again.
func (s *Service) issueDue(ctx context.Context, vault Vault, d due) error {
	var p pending
	err := s.view(ctx, vault, func(h shelf) (err error) {
		p, err = h.pending(d.name)
		return err
	})
	if refusal(err) || err == nil && p.Status != statusInProgress {
		return s.drop(ctx, d)
	}
	if err != nil {
		return err
	}
	in, err := s.sign(ctx, vault, p)
	if err != nil {
		return s.failed(ctx, vault, d, p, err)
	}
	return s.failed(ctx, vault, d, p, s.finish(ctx, vault, p, in, &d, nil))
}

// failed ends an operation that was refused; other errors, and none, it gives back.
func (s *Service) failed(ctx context.Context, vault Vault, d due, p pending, err error) error {
	var e *resource.Error
	if !errors.As(err, &e) || e.Status >= http.StatusInternalServerError && e.Status != http.StatusNotImplemented {
		return err
	}
	return s.update(ctx, vault, func(b bench) error {
		b.tx.Delete(d.key)
		now, err := b.pending(d.name)
		if refusal(err) || err == nil && now.Request != p.Request {
			return nil
		}
		if err != nil {
			return err
		}
		now.Status, now.Code, now.Message, now.Key = statusFailed, e.Code, e.Message, nil
		return b.put(pendingKey(vault, d.name), now)
	})
}

// sign has the certificate of an operation made.
func (s *Service) sign(ctx context.Context, vault Vault, p pending) (issued, error) {
	key, err := parsePrivate(p.Key)
	if err != nil {
		return issued{}, err
	}
	in := issued{id: identity{key: key}, policy: p.Policy, tags: p.Tags, enabled: p.Enabled}
	if p.Policy.Issuer.Name == issuerSelf {
		leaf, err := selfSigned(p.Policy, key, s.now())
		if err != nil {
			return in, badParameter("The certificate cannot be made as its policy says.").WithCause(err)
		}
		in.id.chain = []*x509.Certificate{leaf}
		return in, nil
	}
	if s.cfg.Issuer == nil {
		return in, resource.NotSupported("The issuer %s is not available on this platform.", issuerCasemate)
	}
	template, err := p.Policy.template(s.now(), nil)
	if err != nil {
		return in, err
	}
	ders, err := s.cfg.Issuer.Issue(ctx, vault.ID.String(), template, key.Public())
	if err != nil {
		return in, err
	}
	if in.id.chain, err = parseChain(ders); err != nil {
		return in, fmt.Errorf("reading an issued certificate: %w", err)
	}
	return in, in.id.arrange()
}

// finish writes the version of an operation and marks the operation completed, in one transaction. d is the entry that
// led here, if any; answer gets the result.
func (s *Service) finish(ctx context.Context, vault Vault, p pending, in issued, d *due, answer *entry) error {
	versions, err := s.recordsOf(in)
	if err != nil {
		return err
	}
	var e entry
	done := false
	err = s.update(ctx, vault, func(b bench) error {
		done = false
		if d != nil {
			b.tx.Delete(d.key)
		}
		now, err := b.pending(p.Name)
		if err != nil && !refusal(err) {
			return err
		}
		if err != nil || now.Request != p.Request || now.Status != statusInProgress {
			if d != nil {
				return nil // deleted, cancelled or completed since
			}
			return resource.Errorf(http.StatusConflict, "Conflict", "The operation of the certificate '%s' has changed. Try again.", p.Name)
		}
		if e, err = b.putIssued(p.Name, p.Policy, versions); err != nil {
			return err
		}
		now.Status, now.Key, done = statusCompleted, nil, true
		return b.put(pendingKey(vault, p.Name), now)
	})
	if err != nil || !done {
		return err
	}
	if answer != nil {
		*answer = e
	}
	s.announceIssued(vault, e)
	return nil
}

// renewDue starts the next version of a certificate whose policy says so.
func (s *Service) renewDue(ctx context.Context, vault Vault, d due) error {
	var o object
	var v version
	err := s.view(ctx, vault, func(h shelf) (err error) {
		o, v, err = h.live(certificates, d.name, "")
		return err
	})
	if refusal(err) || err == nil && !o.wants(taskRenew, d.at) {
		return s.drop(ctx, d)
	}
	if err != nil {
		return err
	}
	if _, err := s.begin(ctx, vault, o.Name, o.Certificate, v.Tags, true); err != nil && !refusal(err) {
		return err
	} // a refusal: an operation is in progress already
	return s.update(ctx, vault, func(b bench) error {
		b.tx.Delete(d.key)
		now, err := b.object(certificates, d.name)
		if refusal(err) || err == nil && !now.wants(taskRenew, d.at) {
			return nil
		}
		if err != nil {
			return err
		}
		delete(now.Tasks, taskRenew)
		now.Renewed = now.Current
		return b.putObject(certificates, now)
	})
}

func newSerial() (*big.Int, error) {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 126))
	if err != nil {
		return nil, fmt.Errorf("drawing a serial number: %w", err)
	}
	return n.Add(n, big.NewInt(1)), nil
}

func (s *Service) getPending(w http.ResponseWriter, r *resource.Request) error {
	return s.changePending(w, r, nil)
}

// changePending answers with the operation after change, which may be nil.
func (s *Service) changePending(w http.ResponseWriter, r *resource.Request, change func(b bench, p *pending) error) error {
	t, err := s.targetOf(r, certificates)
	if err != nil {
		return err
	}
	var p pending
	if change == nil {
		err = s.view(r.Context(), t.vault, func(h shelf) (err error) {
			p, err = h.pending(t.name)
			return err
		})
	} else {
		err = s.update(r.Context(), t.vault, func(b bench) (err error) {
			if p, err = b.pending(t.name); err != nil {
				return err
			}
			return change(b, &p)
		})
	}
	if err != nil {
		return err
	}
	return s.writeOperation(w, t.vault, p, http.StatusOK)
}

func (s *Service) deletePending(w http.ResponseWriter, r *resource.Request) error {
	return s.changePending(w, r, func(b bench, p *pending) error {
		b.tx.Delete(pendingKey(b.vault, p.Name))
		return nil
	})
}

func (s *Service) updatePending(w http.ResponseWriter, r *resource.Request) error {
	var body struct {
		Cancel bool `json:"cancellation_requested"`
	}
	if err := readBody(r, &body); err != nil {
		return err
	}
	return s.changePending(w, r, func(b bench, p *pending) error {
		if !body.Cancel || p.Status != statusInProgress {
			return nil
		}
		p.Cancelled, p.Status, p.Key = true, statusCancelled, nil
		return b.put(pendingKey(b.vault, p.Name), *p)
	})
}

// mergeCertificate completes an operation with what another authority issued for its request.
func (s *Service) mergeCertificate(w http.ResponseWriter, r *resource.Request) error {
	t, err := s.targetOf(r, certificates)
	if err != nil {
		return err
	}
	var body struct {
		X5C        [][]byte          `json:"x5c"`
		Attributes *attributes       `json:"attributes"`
		Tags       map[string]string `json:"tags"`
	}
	if err := readBody(r, &body); err != nil {
		return err
	}
	if err := checkTags(body.Tags); err != nil {
		return err
	}
	var p pending
	err = s.view(r.Context(), t.vault, func(h shelf) (err error) {
		p, err = h.pending(t.name)
		return err
	})
	if err != nil {
		return err
	}
	if p.Status != statusInProgress || p.Policy.Issuer.Name != issuerUnknown {
		return badParameter("The certificate '%s' has no pending request that a certificate could be merged with.", t.name)
	}
	chain, err := parseChain(body.X5C)
	if err != nil {
		return badParameter("The property 'x5c' must hold 1 to %d certificates.", maxCertificates).WithCause(err)
	}
	key, err := parsePrivate(p.Key)
	if err != nil {
		return err
	}
	in := issued{id: identity{key: key, chain: chain}, policy: p.Policy, tags: p.Tags, enabled: p.Enabled}
	if body.Tags != nil {
		in.tags = body.Tags
	}
	if a := body.Attributes; a != nil && a.Enabled != nil {
		in.enabled = *a.Enabled
	}
	if err := in.id.arrange(); err != nil {
		return err
	}
	var e entry
	if err := s.finish(r.Context(), t.vault, p, in, nil, &e); err != nil {
		return err
	}
	return writeJSONStatus(w, http.StatusCreated, s.certificateBundle(t.vault, e))
}
