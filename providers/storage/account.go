package storage

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"casemate.dev/envelope"
	"casemate.dev/resource"
)

const (
	sourcePlatform = "Microsoft.Storage"
	sourceVault    = "Microsoft.Keyvault"
)

var skus = []string{"Standard_LRS", "Standard_ZRS", "Standard_GRS", "Standard_RAGRS", "Standard_GZRS", "Standard_RAGZRS"}

// validate completes an account and refuses what it cannot be.
func (p *Provider) validate(_ context.Context, w *resource.Write) error {
	d := w.New
	if owner, ok := p.ResourceOf(d.ID.Name()); ok && !strings.EqualFold(owner, d.ID.String()) {
		return errTaken(d.ID.Name())
	}
	if err := checkKind(d); err != nil {
		return err
	}
	for _, check := range []func(*resource.Document) error{checkSwitches, checkNetwork, checkEncryption} {
		if err := check(d); err != nil {
			return err
		}
	}
	return nil
}

func checkKind(d *resource.Document) error {
	sku := d.String("sku.name")
	i := slices.IndexFunc(skus, func(s string) bool { return strings.EqualFold(s, sku) })
	switch {
	case sku == "":
		return resource.Invalid("sku.name", "The sku name is required; use one of %s.", strings.Join(skus, ", "))
	case i < 0 && strings.HasPrefix(strings.ToLower(sku), "premium_"):
		return resource.NotSupported("Premium storage accounts are not supported; use Standard_LRS.")
	case i < 0:
		return resource.Invalid("sku.name", "'%s' is not a sku; use one of %s.", sku, strings.Join(skus, ", "))
	}
	d.Set("sku.name", skus[i])
	d.Set("sku.tier", "Standard")
	if d.String("kind") == "" {
		d.Set("kind", "StorageV2")
	}
	if kind := d.String("kind"); kind != "StorageV2" {
		return resource.NotSupported("Storage accounts of kind '%s' are not supported; use StorageV2.", kind)
	}
	return nil
}

// absent are the switches that must not be on: what they switch on does not exist here.
var absent = []struct{ path, what string }{
	{"allowSharedKeyAccess", "Shared keys are not supported: use Microsoft Entra authorization and set allowSharedKeyAccess to false."},
	{"isHnsEnabled", "Hierarchical namespaces are not supported yet."},
	{"isSftpEnabled", "SFTP is not supported."},
	{"isNfsV3Enabled", "NFS 3.0 is not supported."},
	{"isLocalUserEnabled", "Local users are not supported."},
	{"immutableStorageWithVersioning.enabled", "Immutable storage is not supported."},
	{"encryption.requireInfrastructureEncryption", "A second layer of encryption is not supported."},
}

func checkSwitches(d *resource.Document) error {
	for _, a := range absent {
		if d.Bool("properties." + a.path) {
			return resource.NotSupported("%s", a.what).WithTarget("properties." + a.path)
		}
	}
	if d.Bool("properties.allowBlobPublicAccess") {
		return resource.Invalid("properties.allowBlobPublicAccess", "Anonymous access to blobs is not offered; allowBlobPublicAccess must be false.")
	}
	if v, given := d.Get("properties.supportsHttpsTrafficOnly").(bool); given && !v {
		return resource.Invalid("properties.supportsHttpsTrafficOnly", "Only HTTPS is served; supportsHttpsTrafficOnly must be true.")
	}
	if d.Get("properties.customDomain") != nil {
		return resource.NotSupported("Custom domains are not supported.")
	}
	if err := oneOf(d, "properties.minimumTlsVersion", "TLS1_2", "TLS1_3"); err != nil {
		return err
	}
	if err := oneOf(d, "properties.accessTier", "Hot", "Cool", "Cold"); err != nil {
		return err
	}
	for _, path := range []string{"allowSharedKeyAccess", "allowBlobPublicAccess", "isHnsEnabled"} {
		d.Set("properties."+path, false)
	}
	d.Set("properties.supportsHttpsTrafficOnly", true)
	return nil
}

// oneOf sets the first value when there is none, and demands one of them.
func oneOf(d *resource.Document, path string, values ...string) error {
	v := d.String(path)
	if v == "" {
		d.Set(path, values[0])
		return nil
	}
	i := slices.IndexFunc(values, func(s string) bool { return strings.EqualFold(s, v) })
	if i < 0 {
		return resource.Invalid(path, "'%.60s' is not a value of %s; use %s.", v, path, strings.Join(values, " or "))
	}
	d.Set(path, values[i])
	return nil
}

// checkNetwork completes what the gateway's origin stage reads.
func checkNetwork(d *resource.Document) error {
	if err := oneOf(d, "properties.publicNetworkAccess", "Enabled", "Disabled"); err != nil {
		return err
	}
	const acls = "properties.networkAcls"
	if err := oneOf(d, acls+".defaultAction", "Allow", "Deny"); err != nil {
		return err
	}
	if d.String(acls+".bypass") == "" {
		d.Set(acls+".bypass", "AzureServices")
	}
	if rules := listAt(d, acls+".resourceAccessRules"); len(rules) > 0 {
		return resource.NotSupported("Resource access rules are not supported; use private endpoints.").WithTarget(acls + ".resourceAccessRules")
	}
	for i, rule := range listAt(d, acls+".ipRules") {
		target := fmt.Sprintf("%s.ipRules[%d].value", acls, i)
		v, _ := member(rule, "value").(string)
		if _, err := netip.ParseAddr(v); err == nil {
			continue
		}
		if _, err := netip.ParsePrefix(v); err != nil {
			return resource.Invalid(target, "'%.60s' is not an address or a range such as 203.0.113.0/24.", v)
		}
	}
	for i, rule := range listAt(d, acls+".virtualNetworkRules") {
		v, _ := member(rule, "id").(string)
		if id, err := resource.ParseID(v); err != nil || !id.Is("Microsoft.Network/virtualNetworks/subnets") {
			return resource.Invalid(fmt.Sprintf("%s.virtualNetworkRules[%d].id", acls, i), "'%.200s' is not the resource ID of a subnet.", v)
		}
	}
	for _, list := range []string{"ipRules", "virtualNetworkRules"} {
		if d.Get(acls+"."+list) == nil {
			d.Set(acls+"."+list, []any{})
		}
	}
	return nil
}

func listAt(d *resource.Document, path string) []any {
	l, _ := d.Get(path).([]any)
	return l
}

func member(v any, name string) any {
	m, _ := v.(map[string]any)
	return (&resource.Document{Body: m}).Get(name)
}

const encryption = "properties.encryption"

func checkEncryption(d *resource.Document) error {
	if err := oneOf(d, encryption+".keySource", sourcePlatform, sourceVault); err != nil {
		return err
	}
	for _, service := range []string{"blob", "file"} {
		if on, given := d.Get(encryption + ".services." + service + ".enabled").(bool); given && !on {
			return resource.Invalid(encryption+".services."+service+".enabled", "Encryption cannot be switched off.")
		}
	}
	d.Set(encryption+".services.blob.enabled", true)
	d.Set(encryption+".services.blob.keyType", "Account")
	if d.String(encryption+".keySource") == sourcePlatform {
		return nil
	}
	if _, err := keyURL(d); err != nil {
		return err
	}
	named := d.String(encryption + ".identity.userAssignedIdentity")
	if named == "" {
		if !strings.Contains(strings.ToLower(d.String("identity.type")), "systemassigned") {
			return resource.Invalid(encryption+".identity.userAssignedIdentity", "A customer-managed key needs an identity: name a user-assigned identity of the account, or give the account a system-assigned one.")
		}
		return nil
	}
	assigned, _ := d.Get("identity.userAssignedIdentities").(map[string]any)
	for id := range assigned {
		if strings.EqualFold(id, named) {
			return nil
		}
	}
	return resource.Invalid(encryption+".identity.userAssignedIdentity", "The identity '%s' must also be assigned to the account, in identity.userAssignedIdentities.", named)
}

var (
	keyName    = regexp.MustCompile(`^[0-9a-zA-Z-]{1,127}$`)
	keyVersion = regexp.MustCompile(`^[0-9a-fA-F]{32}$`)
)

// keyURL reads the customer's key: with a version it stays at that one, without it follows the newest.
func keyURL(d *resource.Document) (string, error) {
	const path = encryption + ".keyvaultproperties"
	vault, name, version := d.String(path+".keyvaulturi"), d.String(path+".keyname"), d.String(path+".keyversion")
	u, err := url.Parse(vault)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" {
		return "", resource.Invalid(path+".keyvaulturi", "'%.200s' is not the URI of a key vault.", vault)
	}
	if !keyName.MatchString(name) {
		return "", resource.Invalid(path+".keyname", "'%.130s' is not the name of a key.", name)
	}
	key := "https://" + strings.ToLower(u.Host) + "/keys/" + name
	if version == "" {
		return key, nil
	}
	if !keyVersion.MatchString(version) {
		return "", resource.Invalid(path+".keyversion", "'%.60s' is not the version of a key.", version)
	}
	return key + "/" + version, nil
}

// keyRef is what shall wrap the account's resource key; nil: the platform's master key.
func (p *Provider) keyRef(ctx context.Context, d *resource.Document) (*envelope.KeyRef, error) {
	if d.String(encryption+".keySource") != sourceVault {
		return nil, nil
	}
	key, err := keyURL(d)
	if err != nil {
		return nil, err
	}
	principal := d.String("identity.principalId")
	if named := d.String(encryption + ".identity.userAssignedIdentity"); named != "" {
		id, err := resource.ParseID(named)
		if err != nil {
			return nil, resource.Invalid(encryption+".identity.userAssignedIdentity", "'%.200s' is not a resource ID.", named)
		}
		identity, err := p.cfg.Resources.Get(ctx, id)
		if err != nil {
			return nil, err
		}
		principal = identity.String("properties.principalId")
	}
	if principal == "" {
		return nil, resource.Invalid(encryption+".identity", "The identity that shall use the key has no principal.")
	}
	return &envelope.KeyRef{KeyURL: key, Identity: principal}, nil
}

// reconcile gives the account its name, its key and its place in the Blob service.
func (p *Provider) reconcile(ctx context.Context, d *resource.Document) error {
	if err := p.claim(ctx, d.ID); err != nil {
		return err
	}
	ref, err := p.keyRef(ctx, d)
	if err != nil {
		return err
	}
	err = p.cfg.Keys.Create(ctx, d.ID.String(), ref)
	if errors.Is(err, envelope.ErrBound) {
		err = p.cfg.Keys.Rebind(ctx, d.ID.String(), ref)
	}
	if err != nil {
		return keyError(ref, err)
	}
	if err := p.cfg.Plane.CreateAccount(ctx, d.ID); err != nil {
		return err
	}
	d.Set("properties.primaryEndpoints", map[string]any{"blob": p.endpoint(d.ID.Name())})
	d.Set("properties.primaryLocation", d.Location())
	d.Set("properties.statusOfPrimary", "available")
	if !d.System.CreatedAt.IsZero() {
		d.Set("properties.creationTime", d.System.CreatedAt.UTC().Format(time.RFC3339Nano))
	}
	return nil
}

func (p *Provider) endpoint(name string) string {
	return "https://" + p.cfg.Authority(name+".blob.core."+p.cfg.Domain) + "/"
}

// keyError says what is wrong with the customer's key.
func keyError(ref *envelope.KeyRef, err error) error {
	var public *resource.Error
	switch {
	case errors.As(err, &public) || ref == nil:
		return err
	case errors.Is(err, envelope.ErrRevoked):
		return resource.Errorf(http.StatusBadRequest, "KeyVaultEncryptionKeyNotFound",
			"The key %s cannot be used by the account's identity: it must exist, be enabled and not expired, and the identity needs the role Key Vault Crypto Service Encryption User on it. A key that is being replaced must be usable as well.", ref.KeyURL).WithTarget(encryption + ".keyvaultproperties").WithCause(err)
	case errors.Is(err, envelope.ErrUnavailable):
		e := resource.Errorf(http.StatusServiceUnavailable, "ServiceUnavailable", "The key vault of %s does not answer.", ref.KeyURL).WithCause(err)
		e.RetryAfter = time.Second
		return e
	}
	return err
}

// remove makes the data unreachable, destroys the key, and gives the name back, in this order.
func (p *Provider) remove(ctx context.Context, d *resource.Document) error {
	if err := p.cfg.Plane.DestroyAccount(ctx, d.ID); err != nil {
		return err
	}
	if err := p.cfg.Keys.Destroy(ctx, d.ID.String()); err != nil && !errors.Is(err, envelope.ErrNoRecord) {
		return err
	}
	return p.release(ctx, d.ID)
}

func (p *Provider) mayRemove(ctx context.Context, d *resource.Document) error {
	if p.cfg.InUse == nil {
		return nil
	}
	return p.cfg.InUse(ctx, d.ID)
}

// view shows the version of the key that is in use now.
func (p *Provider) view(_ context.Context, d *resource.Document) {
	if d.String(encryption+".keySource") != sourceVault {
		return
	}
	if kid, err := p.cfg.Keys.Version(d.ID.String()); err == nil && kid != "" {
		d.Set(encryption+".keyvaultproperties.currentVersionedKeyIdentifier", kid)
	}
}
