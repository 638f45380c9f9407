package vault

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"slices"
	"strconv"
	"strings"
	"time"

	"casemate.dev/resource"
)

// Issuers that a certificate policy may name.
const (
	issuerSelf     = "Self"
	issuerUnknown  = "Unknown"  // the client takes the CSR elsewhere and merges what comes back
	issuerCasemate = "Casemate" // the platform's own authority
)

// Content types of a certificate's secret.
const (
	typePKCS12 = "application/x-pkcs12"
	typePEM    = "application/x-pem-file"
)

const (
	actionAutoRenew     = "AutoRenew"
	actionEmailContacts = "EmailContacts"
)

// certificatePolicy is Key Vault's CertificatePolicy, on the wire and in records.
type certificatePolicy struct {
	ID          string      `json:"id,omitempty"`
	KeyProps    *keyProps   `json:"key_props,omitempty"`
	SecretProps *secretProp `json:"secret_props,omitempty"`
	X509        *x509Props  `json:"x509_props,omitempty"`
	Lifetime    []certLife  `json:"lifetime_actions,omitempty"`
	Issuer      *certIssuer `json:"issuer,omitempty"`
	Attributes  *attributes `json:"attributes,omitempty"`
}

type keyProps struct {
	Exportable *bool  `json:"exportable,omitempty"`
	Kty        string `json:"kty,omitempty"`
	Size       int    `json:"key_size,omitempty"`
	Curve      string `json:"crv,omitempty"`
	ReuseKey   bool   `json:"reuse_key"`
}

type secretProp struct {
	ContentType string `json:"contentType"`
}

type x509Props struct {
	Subject          string            `json:"subject"`
	EKUs             []string          `json:"ekus,omitempty"`
	SANs             *altNames         `json:"sans,omitempty"`
	KeyUsage         []string          `json:"key_usage,omitempty"`
	ValidityMonths   int               `json:"validity_months,omitempty"`
	BasicConstraints *basicConstraints `json:"basic_constraints,omitempty"`
}

type altNames struct {
	DNS    []string `json:"dns_names,omitempty"`
	Emails []string `json:"emails,omitempty"`
	UPNs   []string `json:"upns,omitempty"`
}

type basicConstraints struct {
	CA bool `json:"ca"`
}

type certLife struct {
	Trigger struct {
		Percentage int `json:"lifetime_percentage,omitempty"`
		Days       int `json:"days_before_expiry,omitempty"`
	} `json:"trigger"`
	Action struct {
		Type string `json:"action_type"`
	} `json:"action"`
}

type certIssuer struct {
	Name string `json:"name"`
	Type string `json:"cty,omitempty"`
}

// keyUsages are the words of key_usage with their bits (RFC 5280, section 4.2.1.3).
var keyUsages = map[string]x509.KeyUsage{
	"digitalSignature": x509.KeyUsageDigitalSignature, "nonRepudiation": x509.KeyUsageContentCommitment,
	"keyEncipherment": x509.KeyUsageKeyEncipherment, "dataEncipherment": x509.KeyUsageDataEncipherment,
	"keyAgreement": x509.KeyUsageKeyAgreement, "keyCertSign": x509.KeyUsageCertSign, "cRLSign": x509.KeyUsageCRLSign,
	"encipherOnly": x509.KeyUsageEncipherOnly, "decipherOnly": x509.KeyUsageDecipherOnly,
}

const maxValidityMonths = 1200

// complete checks what a client sent and fills in Key Vault's defaults.
func (p *certificatePolicy) complete() error {
	if p.Issuer == nil || p.Issuer.Name == "" {
		return badParameter("The policy's 'issuer' with a 'name' is required.")
	}
	if n := p.Issuer.Name; n != issuerSelf && n != issuerUnknown && n != issuerCasemate {
		return badParameter("The issuer '%s' was not found. Use %s, %s or %s.", clip(n, 80), issuerSelf, issuerUnknown, issuerCasemate)
	}
	if err := p.completeKey(); err != nil {
		return err
	}
	if p.SecretProps == nil || p.SecretProps.ContentType == "" {
		p.SecretProps = &secretProp{ContentType: typePKCS12}
	}
	if t := p.SecretProps.ContentType; t != typePKCS12 && t != typePEM {
		return badParameter("The content type '%s' is not supported. Use %s or %s.", clip(t, 80), typePKCS12, typePEM)
	}
	if err := p.completeX509(); err != nil {
		return err
	}
	return p.completeLife()
}

// with is the policy after a PATCH: the parts that the client leaves out stay.
func (p *certificatePolicy) with(sent certificatePolicy) (*certificatePolicy, error) {
	out := *p
	if sent.KeyProps != nil {
		out.KeyProps = sent.KeyProps
	}
	if sent.SecretProps != nil {
		out.SecretProps = sent.SecretProps
	}
	if sent.X509 != nil {
		out.X509 = sent.X509
	}
	if sent.Lifetime != nil {
		out.Lifetime = sent.Lifetime
	}
	if sent.Issuer != nil {
		out.Issuer = sent.Issuer
	}
	return &out, out.complete()
}

func (p *certificatePolicy) completeKey() error {
	if p.KeyProps == nil {
		p.KeyProps = &keyProps{}
	}
	k := p.KeyProps
	if k.Exportable == nil {
		k.Exportable = new(bool)
		*k.Exportable = true
	}
	if k.Kty == "" {
		k.Kty = ktyRSA
	}
	if err := checkType(k.Kty); err != nil {
		return err
	}
	switch k.Kty {
	case ktyRSA:
		if k.Size == 0 {
			k.Size = 2048
		}
		return checkRSASize(k.Size)
	case ktyEC:
		if k.Curve == "" {
			k.Curve = map[int]string{384: "P-384", 521: "P-521"}[k.Size]
		}
		c, err := curveOf(k.Curve)
		if err == nil {
			k.Curve, k.Size = c.Params().Name, c.Params().BitSize
		}
		return err
	}
	return badParameter("A certificate's key must be of type RSA or EC.")
}

func (p *certificatePolicy) completeX509() error {
	x := p.X509
	if x == nil {
		return badParameter("The policy's 'x509_props' are required.")
	}
	named := x.SANs != nil && len(x.SANs.DNS)+len(x.SANs.Emails) > 0
	if x.Subject == "" && !named {
		return badParameter("The policy must have a 'subject' or subject alternative names.")
	}
	if _, err := parseSubject(x.Subject); err != nil {
		return err
	}
	if x.SANs != nil && len(x.SANs.UPNs) > 0 {
		return resource.NotSupported("User principal names in certificates are not supported.")
	}
	if len(x.EKUs) == 0 {
		x.EKUs = []string{"1.3.6.1.5.5.7.3.1", "1.3.6.1.5.5.7.3.2"} // server and client authentication
	}
	for _, s := range x.EKUs {
		if _, ok := parseOID(s); !ok {
			return badParameter("The extended key usage '%s' is not an object identifier.", clip(s, 80))
		}
	}
	if len(x.KeyUsage) == 0 {
		x.KeyUsage = []string{"digitalSignature", "keyEncipherment"}
	}
	for _, u := range x.KeyUsage {
		if keyUsages[u] == 0 {
			return badParameter("The key usage '%s' is not known.", clip(u, 40))
		}
	}
	if x.ValidityMonths == 0 {
		x.ValidityMonths = 12
	}
	if x.ValidityMonths < 1 || x.ValidityMonths > maxValidityMonths {
		return badParameter("The property 'validity_months' must be a number from 1 to %d.", maxValidityMonths)
	}
	if x.BasicConstraints == nil {
		x.BasicConstraints = &basicConstraints{}
	}
	if x.BasicConstraints.CA && p.Issuer.Name == issuerCasemate {
		return badParameter("The issuer %s issues no certificates of authorities.", issuerCasemate)
	}
	return nil
}

func (p *certificatePolicy) completeLife() error {
	if len(p.Lifetime) == 0 {
		var l certLife
		l.Trigger.Percentage, l.Action.Type = 80, actionAutoRenew
		if p.Issuer.Name == issuerUnknown {
			l.Action.Type = actionEmailContacts
		}
		p.Lifetime = []certLife{l}
	}
	if len(p.Lifetime) > 1 {
		return badParameter("The policy has more than one lifetime action.")
	}
	l := p.Lifetime[0]
	if l.Action.Type != actionAutoRenew && l.Action.Type != actionEmailContacts {
		return badParameter("The lifetime action '%s' is not supported. Use %s or %s.", clip(l.Action.Type, 40), actionAutoRenew, actionEmailContacts)
	}
	if l.Action.Type == actionAutoRenew && p.Issuer.Name == issuerUnknown {
		return badParameter("Certificates of the issuer %s cannot renew themselves. Use %s.", issuerUnknown, actionEmailContacts)
	}
	pct, days := l.Trigger.Percentage, l.Trigger.Days
	if (pct == 0) == (days == 0) || pct < 0 || pct > 99 || days < 0 || days > 27*p.X509.ValidityMonths {
		return badParameter("A trigger must have either 'lifetime_percentage' from 1 to 99 or 'days_before_expiry' from 1 to 27 times the months of validity.")
	}
	return nil
}

// lifeTime is when the lifetime action of a certificate's version falls due.
func (p *certificatePolicy) lifeTime(v *version) (int64, bool) {
	if p == nil || len(p.Lifetime) == 0 || v.NotBefore == nil || v.Expires == nil {
		return 0, false
	}
	t := p.Lifetime[0].Trigger
	if t.Days > 0 {
		return *v.Expires - int64(t.Days)*24*3600, true
	}
	return *v.NotBefore + (*v.Expires-*v.NotBefore)/100*int64(t.Percentage), true
}

// template is the certificate that the policy describes.
func (p *certificatePolicy) template(now time.Time, serial *big.Int) (*x509.Certificate, error) {
	subject, err := parseSubject(p.X509.Subject)
	if err != nil {
		return nil, err
	}
	t := &x509.Certificate{
		SerialNumber: serial, RawSubject: subject, NotBefore: now.UTC().Truncate(time.Second),
		NotAfter:              now.UTC().Truncate(time.Second).AddDate(0, p.X509.ValidityMonths, 0),
		BasicConstraintsValid: true, IsCA: p.X509.BasicConstraints.CA,
	}
	for _, u := range p.X509.KeyUsage {
		t.KeyUsage |= keyUsages[u]
	}
	for _, s := range p.X509.EKUs {
		oid, _ := parseOID(s) // checked by complete
		t.UnknownExtKeyUsage = append(t.UnknownExtKeyUsage, oid)
	}
	if s := p.X509.SANs; s != nil {
		t.DNSNames, t.EmailAddresses = s.DNS, s.Emails
	}
	return t, nil
}

// keyOps are the operations of a certificate's key, from its usages.
func (p *certificatePolicy) keyOps() []string {
	var ops []string
	has := func(u string) bool { return p.X509 != nil && slices.Contains(p.X509.KeyUsage, u) }
	if has("digitalSignature") || has("nonRepudiation") || p.KeyProps.Kty == ktyEC {
		ops = append(ops, "sign", "verify")
	}
	if p.KeyProps.Kty == ktyRSA && has("keyEncipherment") {
		ops = append(ops, "wrapKey", "unwrapKey")
	}
	if p.KeyProps.Kty == ktyRSA && has("dataEncipherment") {
		ops = append(ops, "encrypt", "decrypt")
	}
	return ops
}

func parseOID(s string) (asn1.ObjectIdentifier, bool) {
	var oid asn1.ObjectIdentifier
	for part := range strings.SplitSeq(s, ".") {
		n, err := strconv.Atoi(part)
		if err != nil || n < 0 || len(oid) > 30 {
			return nil, false
		}
		oid = append(oid, n)
	}
	_, err := asn1.Marshal(oid)
	return oid, err == nil && len(oid) > 1
}

// attributeTypes are the names of attribute types in subjects (RFC 4514, section 3, and what Azure writes).
var attributeTypes = map[string]asn1.ObjectIdentifier{
	"CN": {2, 5, 4, 3}, "SERIALNUMBER": {2, 5, 4, 5}, "C": {2, 5, 4, 6}, "L": {2, 5, 4, 7}, "ST": {2, 5, 4, 8}, "S": {2, 5, 4, 8},
	"STREET": {2, 5, 4, 9}, "O": {2, 5, 4, 10}, "OU": {2, 5, 4, 11}, "DC": {0, 9, 2342, 19200300, 100, 1, 25},
	"E": {1, 2, 840, 113549, 1, 9, 1}, "EMAILADDRESS": {1, 2, 840, 113549, 1, 9, 1},
}

// parseSubject encodes a distinguished name from its string, which runs from the last RDN to the first (RFC 4514, section
// 2.1). Values may be in quotation marks or use backslashes.
func parseSubject(s string) ([]byte, error) {
	bad := badParameter("The subject '%s' is not a distinguished name, such as CN=www.contoso.com, O=Contoso.", clip(s, 80))
	var rdns pkix.RDNSequence
	if len(s) > 1024 {
		return nil, bad
	}
	for _, part := range splitOutside(s, ',') {
		if strings.TrimSpace(part) == "" && s == "" {
			break
		}
		name, value, ok := strings.Cut(part, "=")
		oid := attributeTypes[strings.ToUpper(strings.TrimSpace(name))]
		if value = unquote(strings.TrimSpace(value)); !ok || oid == nil || value == "" {
			return nil, bad
		}
		rdns = append(rdns, pkix.RelativeDistinguishedNameSET{{Type: oid, Value: value}})
	}
	slices.Reverse(rdns)
	der, err := asn1.Marshal(rdns)
	if err != nil {
		return nil, bad.WithCause(err)
	}
	return der, nil
}

// splitOutside splits at sep where it is neither quoted nor escaped.
func splitOutside(s string, sep byte) []string {
	var out []string
	start, quoted := 0, false
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '\\':
			i++
		case s[i] == '"':
			quoted = !quoted
		case s[i] == sep && !quoted:
			out, start = append(out, s[start:i]), i+1
		}
	}
	return append(out, s[start:])
}

func unquote(s string) string {
	if len(s) >= 2 && s[0] == '"' && s[len(s)-1] == '"' {
		s = s[1 : len(s)-1]
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+1 < len(s) {
			i++
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
