package keyvault

import (
	"context"
	"net/http"
	"net/netip"
	"strings"

	"github.com/google/uuid"

	"casemate.dev/dataplane/vault"
	"casemate.dev/resource"
)

// properties is the view of a vault's body that this provider uses.
type properties struct {
	TenantID string `json:"tenantId"`
	SKU      *struct {
		Name   string `json:"name"`
		Family string `json:"family"`
	} `json:"sku"`
	AccessPolicies      []any        `json:"accessPolicies"`
	RBAC                *bool        `json:"enableRbacAuthorization"`
	SoftDelete          *bool        `json:"enableSoftDelete"`
	RetentionDays       *int         `json:"softDeleteRetentionInDays"`
	PurgeProtection     *bool        `json:"enablePurgeProtection"`
	PublicNetworkAccess string       `json:"publicNetworkAccess"`
	NetworkACLs         *networkACLs `json:"networkAcls"`
	CreateMode          string       `json:"createMode"`
}

type networkACLs struct {
	Bypass        string `json:"bypass"`
	DefaultAction string `json:"defaultAction"`
	IPRules       []struct {
		Value string `json:"value"`
	} `json:"ipRules"`
	VirtualNetworkRules []struct {
		ID string `json:"id"`
	} `json:"virtualNetworkRules"`
}

// Limits of softDeleteRetentionInDays.
const (
	minRetention     = 7
	defaultRetention = 90
)

func badRequest(format string, args ...any) *resource.Error {
	return resource.Errorf(http.StatusBadRequest, "BadRequest", format, args...)
}

func read(d *resource.Document) (properties, error) {
	var body struct {
		Properties properties `json:"properties"`
	}
	err := d.Into(&body)
	return body.Properties, err
}

// planeView is what the data plane is told of a valid vault.
func planeView(d *resource.Document) vault.Vault {
	v := vault.Vault{ID: d.ID, Tenant: d.String("properties.tenantId"), PurgeProtection: d.Bool("properties.enablePurgeProtection"), RetentionDays: defaultRetention}
	p, err := read(d)
	if err != nil {
		return v // cannot be: validate read it; the zero rest denies
	}
	if p.RetentionDays != nil {
		v.RetentionDays = *p.RetentionDays
	}
	v.TrustedServices = p.trustsPlatform()
	return v
}

// trustsPlatform says whether services of the platform get past the vault's firewall: it is open, or it bypasses them.
func (p properties) trustsPlatform() bool {
	acls := networkACLs{Bypass: "AzureServices", DefaultAction: "Allow"}
	if p.NetworkACLs != nil {
		acls = *p.NetworkACLs
	}
	open := !strings.EqualFold(p.PublicNetworkAccess, "Disabled") && !strings.EqualFold(acls.DefaultAction, "Deny")
	return open || !strings.EqualFold(acls.Bypass, "None")
}

// validate checks a body, fills in defaults and keeps what cannot change.
func (p *Provider) validate(_ context.Context, w *resource.Write) error {
	mode := w.New.String("properties.createMode")
	w.New.Unset("properties.createMode")
	switch {
	case w.Old == nil && strings.EqualFold(mode, "recover"):
		if err := p.bringBack(w); err != nil {
			return err
		}
	case mode != "" && !strings.EqualFold(mode, "default") && !strings.EqualFold(mode, "recover"):
		return badRequest("The property 'createMode' must be 'default' or 'recover'.").WithTarget("properties.createMode")
	case w.Old == nil:
		if err := p.checkName(w.New.ID); err != nil {
			return err
		}
	}
	dropNulls(w.New)
	props, err := read(w.New)
	if err != nil {
		return err
	}
	for _, check := range []func(*resource.Write, properties) error{p.checkOwner, checkAccess, checkDeletion, checkNetwork} {
		if err := check(w, props); err != nil {
			return err
		}
	}
	w.New.Set("properties.vaultUri", p.cfg.Plane.URL(w.New.ID.Name())+"/")
	return nil
}

// dropNulls takes null for absent, as Azure does and as its templates rely on.
func dropNulls(d *resource.Document) {
	props, _ := d.Get("properties").(map[string]any)
	for name, v := range props {
		if v == nil {
			delete(props, name)
		}
	}
}

// checkName refuses a name that is taken, by a live vault or a deleted one.
func (p *Provider) checkName(id resource.ID) error {
	if strings.Contains(id.Name(), "--") {
		return resource.Errorf(http.StatusBadRequest, "VaultNameNotValid", "The vault name '%s' is not valid: it must not hold two dashes in a row.", id.Name())
	}
	rec, taken := p.lookup(id.Name())
	switch {
	case !taken:
		return nil
	case rec.Deleted != nil && strings.EqualFold(rec.doc().ID.Subscription(), id.Subscription()):
		return resource.Errorf(http.StatusConflict, "ConflictError",
			"A vault with the same name already exists in deleted state. You need to either recover or purge existing key vault '%s'.", id.Name())
	case rec.isOf(id) && !rec.Ready:
		return nil // an attempt of its own that a crash cut short
	}
	return alreadyExists(id.Name())
}

// bringBack replaces the body of a recovering PUT by that of the deleted vault.
func (p *Provider) bringBack(w *resource.Write) error {
	rec, ok := p.lookup(w.New.ID.Name())
	if !ok || rec.Deleted == nil || rec.Deleted.Purging || !rec.isOf(w.New.ID) {
		return deletedNotFound(w.New.ID.Name())
	}
	old := rec.doc().Clone()
	if loc := w.New.Location(); loc != "" && loc != old.Location() {
		return badRequest("The deleted vault '%s' is in location '%s'. Recover it there.", w.New.ID.Name(), old.Location()).WithTarget("location")
	}
	w.New.Body = old.Body
	return nil
}

func (p *Provider) checkOwner(w *resource.Write, props properties) error {
	if props.TenantID == "" {
		w.New.Set("properties.tenantId", p.cfg.Tenant)
	} else if _, err := uuid.Parse(props.TenantID); err != nil || !strings.EqualFold(props.TenantID, p.cfg.Tenant) {
		return badRequest("The property 'tenantId' must be the tenant of the subscription, '%s'.", p.cfg.Tenant).WithTarget("properties.tenantId")
	}
	if props.SKU == nil {
		w.New.Set("properties.sku", map[string]any{"family": "A", "name": "standard"})
		return nil
	}
	if name := strings.ToLower(props.SKU.Name); name != "standard" && name != "premium" {
		return badRequest("The property 'sku.name' must be 'standard' or 'premium'.").WithTarget("properties.sku.name")
	}
	if !strings.EqualFold(props.SKU.Family, "A") && props.SKU.Family != "" {
		return badRequest("The property 'sku.family' must be 'A'.").WithTarget("properties.sku.family")
	}
	return nil
}

// checkAccess refuses the access-policy model, in which whoever may write the vault can grant himself its contents.
func checkAccess(w *resource.Write, props properties) error {
	if props.RBAC != nil && !*props.RBAC {
		return badRequest("The property 'enableRbacAuthorization' must be true: access to keys and secrets is granted by role assignments only. Assign a role such as 'Key Vault Crypto Officer' or 'Key Vault Secrets User' at the vault.").WithTarget("properties.enableRbacAuthorization")
	}
	if len(props.AccessPolicies) > 0 {
		return policiesRefused()
	}
	w.New.Set("properties.enableRbacAuthorization", true)
	w.New.Set("properties.accessPolicies", []any{})
	return nil
}

func policiesRefused() *resource.Error {
	return badRequest("Access policies are not supported: a write to the vault resource must never grant access to its keys and secrets. Leave 'accessPolicies' empty and assign roles such as 'Key Vault Crypto Officer' or 'Key Vault Secrets User' at the vault.").WithTarget("properties.accessPolicies")
}

// checkDeletion keeps what protects from deletion: none of it can be weakened later.
func checkDeletion(w *resource.Write, props properties) error {
	if props.SoftDelete != nil && !*props.SoftDelete {
		return badRequest("The property 'enableSoftDelete' cannot be set to false. Deleted vaults, keys and secrets can always be recovered for a while.").WithTarget("properties.enableSoftDelete")
	}
	w.New.Set("properties.enableSoftDelete", true)
	if props.PurgeProtection != nil && !*props.PurgeProtection {
		return badRequest("The property 'enablePurgeProtection' cannot be set to false. Enabling the purge protection for a vault is an irreversible action. Leave it out where it is not wanted.").WithTarget("properties.enablePurgeProtection")
	}
	if w.Old != nil && w.Old.Bool("properties.enablePurgeProtection") {
		w.New.Set("properties.enablePurgeProtection", true)
	}
	days := defaultRetention
	if w.Old != nil {
		days = planeView(w.Old).RetentionDays
	}
	if props.RetentionDays != nil {
		if *props.RetentionDays < minRetention || *props.RetentionDays > defaultRetention {
			return badRequest("The property 'softDeleteRetentionInDays' must be from %d to %d.", minRetention, defaultRetention).WithTarget("properties.softDeleteRetentionInDays")
		}
		if w.Old != nil && *props.RetentionDays != days {
			return badRequest("The property 'softDeleteRetentionInDays' has been set already and it can't be modified.").WithTarget("properties.softDeleteRetentionInDays")
		}
		days = *props.RetentionDays
	}
	w.New.Set("properties.softDeleteRetentionInDays", days)
	return nil
}

func checkNetwork(w *resource.Write, props properties) error {
	if err := oneOf(w.New, "properties.publicNetworkAccess", "Enabled", "Enabled", "Disabled"); err != nil {
		return err
	}
	acls := props.NetworkACLs
	if acls == nil {
		return nil
	}
	if err := oneOf(w.New, "properties.networkAcls.bypass", "AzureServices", "AzureServices", "None"); err != nil {
		return err
	}
	if err := oneOf(w.New, "properties.networkAcls.defaultAction", "Allow", "Allow", "Deny"); err != nil {
		return err
	}
	for _, rule := range acls.IPRules {
		_, err := netip.ParsePrefix(rule.Value)
		if _, aerr := netip.ParseAddr(rule.Value); err != nil && aerr != nil {
			return badRequest("The IP rule '%s' is neither an address nor a CIDR range.", rule.Value).WithTarget("properties.networkAcls.ipRules")
		}
	}
	for _, rule := range acls.VirtualNetworkRules {
		id, err := resource.ParseID(rule.ID)
		if err != nil || !id.Is("Microsoft.Network/virtualNetworks/subnets") {
			return badRequest("The virtual network rule '%s' is not the resource ID of a subnet.", rule.ID).WithTarget("properties.networkAcls.virtualNetworkRules")
		}
	}
	return nil
}

// oneOf checks a choice without regard to case, stores it as Azure spells it, and fills in the default.
func oneOf(d *resource.Document, path, otherwise string, choices ...string) error {
	v := d.Get(path)
	if v == nil {
		d.Set(path, otherwise)
		return nil
	}
	s, _ := v.(string)
	for _, c := range choices {
		if strings.EqualFold(s, c) {
			d.Set(path, c)
			return nil
		}
	}
	return badRequest("The property '%s' must be '%s'.", strings.TrimPrefix(path, "properties."), strings.Join(choices, "' or '")).WithTarget(path)
}
