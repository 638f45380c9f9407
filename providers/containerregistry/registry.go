package containerregistry

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

var skus = []string{"Basic", "Standard", "Premium"}

// validate completes a registry and refuses what it cannot be.
func (p *Provider) validate(_ context.Context, w *resource.Write) error {
	d := w.New
	if owner, ok := p.ResourceOf(label(d.ID)); ok && !strings.EqualFold(owner, d.ID.String()) {
		return errTaken(d.ID.Name())
	}
	for _, check := range []func(*resource.Document) error{checkSKU, checkSwitches, checkPolicies, checkNetwork, checkEncryption} {
		if err := check(d); err != nil {
			return err
		}
	}
	d.Set("properties.loginServer", p.cfg.Authority(label(d.ID)+".azurecr."+p.cfg.Domain))
	return nil
}

func checkSKU(d *resource.Document) error {
	sku := d.String("sku.name")
	i := slices.IndexFunc(skus, func(s string) bool { return strings.EqualFold(s, sku) })
	switch {
	case sku == "":
		return resource.Invalid("sku.name", "The sku name is required; use one of %s.", strings.Join(skus, ", "))
	case i < 0:
		return resource.Invalid("sku.name", "'%.60s' is not a sku; use one of %s.", sku, strings.Join(skus, ", "))
	}
	d.Set("sku.name", skus[i])
	d.Set("sku.tier", skus[i])
	return nil
}

// absent are the switches that must not be on: what they switch on does not exist here.
var absent = []struct{ path, what string }{
	{"adminUserEnabled", "The admin user is not supported and never needed: use Microsoft Entra authorization with roles such as AcrPull and AcrPush, and set adminUserEnabled to false."},
	{"anonymousPullEnabled", "Anonymous pull is not supported."},
	{"dataEndpointEnabled", "Dedicated data endpoints are not supported: layers come from the login server itself."},
	{"metadataSearch", "Metadata search is not supported."},
}

func checkSwitches(d *resource.Document) error {
	for _, a := range absent {
		switch v := d.Get("properties." + a.path).(type) {
		case bool:
			if v {
				return resource.NotSupported("%s", a.what).WithTarget("properties." + a.path)
			}
		case string:
			if strings.EqualFold(v, "Enabled") {
				return resource.NotSupported("%s", a.what).WithTarget("properties." + a.path)
			}
		}
	}
	if mode := d.String("properties.roleAssignmentMode"); mode != "" && !strings.EqualFold(mode, "LegacyRegistryPermissions") {
		return resource.NotSupported("The role assignment mode '%.60s' is not supported; use LegacyRegistryPermissions.", mode).WithTarget("properties.roleAssignmentMode")
	}
	for _, path := range []string{"adminUserEnabled", "anonymousPullEnabled", "dataEndpointEnabled"} {
		d.Set("properties."+path, false)
	}
	return oneOf(d, "properties.zoneRedundancy", "Disabled", "Enabled")
}

// checkPolicies keeps policies that are off, and refuses those that nobody would carry out.
func checkPolicies(d *resource.Document) error {
	for _, name := range []string{"quarantinePolicy", "trustPolicy", "retentionPolicy", "softDeletePolicy"} {
		if strings.EqualFold(d.String("properties.policies."+name+".status"), "enabled") {
			return resource.NotSupported("The policy %s is not supported.", name).WithTarget("properties.policies." + name + ".status")
		}
		d.Set("properties.policies."+name+".status", "disabled")
	}
	if strings.EqualFold(d.String("properties.policies.azureADAuthenticationAsArmPolicy.status"), "disabled") {
		return resource.NotSupported("Tokens of the resource manager are always exchanged; azureADAuthenticationAsArmPolicy must be enabled.").WithTarget("properties.policies.azureADAuthenticationAsArmPolicy.status")
	}
	if strings.EqualFold(d.String("properties.policies.exportPolicy.status"), "disabled") && !strings.EqualFold(d.String("properties.publicNetworkAccess"), "Disabled") {
		return resource.Invalid("properties.policies.exportPolicy.status", "Exports can be disabled only where publicNetworkAccess is Disabled.")
	}
	d.Set("properties.policies.azureADAuthenticationAsArmPolicy.status", "enabled")
	if d.String("properties.policies.exportPolicy.status") == "" {
		d.Set("properties.policies.exportPolicy.status", "enabled")
	}
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

const ruleSet = "properties.networkRuleSet"

// checkNetwork completes the network rules. The gateway's origin stage reads networkAcls, as of accounts and vaults; a
// registry calls them networkRuleSet and allows an address where those have a value, so networkAcls is kept beside it and
// never shown.
func checkNetwork(d *resource.Document) error {
	if err := oneOf(d, "properties.publicNetworkAccess", "Enabled", "Disabled"); err != nil {
		return err
	}
	if err := oneOf(d, "properties.networkRuleBypassOptions", "AzureServices", "None"); err != nil {
		return err
	}
	d.Unset("properties.networkAcls")
	if d.Get(ruleSet) == nil {
		return nil
	}
	if err := oneOf(d, ruleSet+".defaultAction", "Allow", "Deny"); err != nil {
		return err
	}
	rules, _ := d.Get(ruleSet + ".ipRules").([]any)
	allowed := []any{}
	for i, rule := range rules {
		m, _ := rule.(map[string]any)
		v := (&resource.Document{Body: m}).String("value")
		_, addr := netip.ParseAddr(v)
		_, prefix := netip.ParsePrefix(v)
		if addr != nil && prefix != nil {
			return resource.Invalid(fmt.Sprintf("%s.ipRules[%d].value", ruleSet, i), "'%.60s' is not an address or a range such as 203.0.113.0/24.", v)
		}
		allowed = append(allowed, map[string]any{"value": v, "action": "Allow"})
	}
	if list, _ := d.Get(ruleSet + ".virtualNetworkRules").([]any); len(list) > 0 {
		return resource.NotSupported("Virtual network rules of registries are not supported; use private endpoints.").WithTarget(ruleSet + ".virtualNetworkRules")
	}
	d.Set(ruleSet+".ipRules", allowed)
	d.Set("properties.networkAcls", map[string]any{"defaultAction": d.String(ruleSet + ".defaultAction"), "ipRules": allowed})
	return nil
}

const encryption = "properties.encryption"

func customerKeyed(d *resource.Document) bool {
	return strings.EqualFold(d.String(encryption+".status"), "enabled")
}

func checkEncryption(d *resource.Document) error {
	if err := oneOf(d, encryption+".status", "disabled", "enabled"); err != nil {
		return err
	}
	if !customerKeyed(d) {
		d.Unset(encryption + ".keyVaultProperties") // what was shown when there was a key
		return nil
	}
	if !strings.EqualFold(d.String("sku.name"), "Premium") {
		return resource.Invalid("sku.name", "Encryption with a customer's key needs the sku Premium.")
	}
	if _, err := keyURL(d); err != nil {
		return err
	}
	path := encryption + ".keyVaultProperties.identity"
	named := d.String(path)
	if named == "" {
		return resource.Invalid(path, "Name the identity that uses the key: the client id of a user-assigned identity of the registry.")
	}
	return nil
}

var keyPath = regexp.MustCompile(`^/keys/[0-9a-zA-Z-]{1,127}(/[0-9a-fA-F]{32})?$`)

// keyURL reads the customer's key: with a version it stays at that one, without it follows the newest.
func keyURL(d *resource.Document) (string, error) {
	const path = encryption + ".keyVaultProperties.keyIdentifier"
	given := d.String(path)
	u, err := url.Parse(given)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || !keyPath.MatchString(strings.TrimSuffix(u.Path, "/")) {
		return "", resource.Invalid(path, "'%.200s' is not the identifier of a key in a key vault.", given)
	}
	return "https://" + strings.ToLower(u.Host) + strings.TrimSuffix(u.Path, "/"), nil
}

// keyRef is what shall wrap the registry's resource key; nil: the platform's master key.
func (p *Provider) keyRef(ctx context.Context, d *resource.Document) (*envelope.KeyRef, error) {
	if !customerKeyed(d) {
		return nil, nil
	}
	key, err := keyURL(d)
	if err != nil {
		return nil, err
	}
	principal, err := p.principal(ctx, d)
	if err != nil {
		return nil, err
	}
	return &envelope.KeyRef{KeyURL: key, Identity: principal}, nil
}

// principal finds the identity that uses the key. Azure's property holds its client id; its resource ID is understood too,
// and "system" for the registry's own.
func (p *Provider) principal(ctx context.Context, d *resource.Document) (string, error) {
	const path = encryption + ".keyVaultProperties.identity"
	named := d.String(path)
	if strings.EqualFold(named, "system") {
		if own := d.String("identity.principalId"); own != "" {
			return own, nil
		}
		return "", resource.Invalid(path, "The registry has no system-assigned identity.")
	}
	assigned, _ := d.Get("identity.userAssignedIdentities").(map[string]any)
	for key := range assigned {
		id, err := resource.ParseID(key)
		if err != nil {
			return "", resource.Invalid("identity.userAssignedIdentities", "'%.200s' is not a resource ID.", key)
		}
		identity, err := p.cfg.Resources.Get(ctx, id)
		if err != nil {
			return "", err
		}
		if !strings.EqualFold(key, named) && !strings.EqualFold(identity.String("properties.clientId"), named) {
			continue
		}
		if found := identity.String("properties.principalId"); found != "" {
			return found, nil
		}
	}
	return "", resource.Invalid(path, "The identity '%.200s' must also be assigned to the registry, in identity.userAssignedIdentities.", named)
}

// reconcile gives the registry its name, its key and its place in the registry service.
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
	if err := p.cfg.Plane.CreateRegistry(ctx, d.ID); err != nil {
		return err
	}
	if !d.System.CreatedAt.IsZero() {
		d.Set("properties.creationDate", d.System.CreatedAt.UTC().Format(time.RFC3339Nano))
	}
	return nil
}

// keyError says what is wrong with the customer's key.
func keyError(ref *envelope.KeyRef, err error) error {
	var public *resource.Error
	switch {
	case errors.As(err, &public) || ref == nil:
		return err
	case errors.Is(err, envelope.ErrRevoked):
		return resource.Errorf(http.StatusBadRequest, "KeyVaultEncryptionKeyNotFound",
			"The key %s cannot be used by the registry's identity: it must exist, be enabled and not expired, and the identity needs the role Key Vault Crypto Service Encryption User on it. A key that is being replaced must be usable as well.", ref.KeyURL).WithTarget(encryption + ".keyVaultProperties").WithCause(err)
	case errors.Is(err, envelope.ErrUnavailable):
		e := resource.Errorf(http.StatusServiceUnavailable, "ServiceUnavailable", "The key vault of %s does not answer.", ref.KeyURL).WithCause(err)
		e.RetryAfter = time.Second
		return e
	}
	return err
}

// remove makes the data unreachable, destroys the key, and gives the name back, in this order. A document that never got
// the name leaves what belongs to the one that has it.
func (p *Provider) remove(ctx context.Context, d *resource.Document) error {
	if err := p.cfg.Plane.DestroyRegistry(ctx, d.ID); err != nil {
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

// view shows the version of the key that is in use now, and hides what only the gateway reads.
func (p *Provider) view(_ context.Context, d *resource.Document) {
	d.Unset("properties.networkAcls")
	if !customerKeyed(d) {
		return
	}
	if kid, err := p.cfg.Keys.Version(d.ID.String()); err == nil && kid != "" {
		d.Set(encryption+".keyVaultProperties.versionedKeyIdentifier", kid)
		fixed, err := keyURL(d)
		d.Set(encryption+".keyVaultProperties.keyRotationEnabled", err == nil && strings.Count(fixed, "/") == 4)
	}
}
