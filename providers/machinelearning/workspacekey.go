package machinelearning

import (
	"context"
	"net/http"
	"net/url"
	"strings"

	"casemate.dev/resource"
)

// workspaceKey reads the customer's key from a workspace's body; nil means a key of the platform.
func (p *Provider) workspaceKey(ctx context.Context, d *resource.Document) (*KeyRef, error) {
	const path = "properties.encryption"
	if d.Get(path) == nil || !strings.EqualFold(d.String(path+".status"), "Enabled") {
		if s := d.String(path + ".status"); s != "" && !strings.EqualFold(s, "Disabled") {
			return nil, resource.Invalid(path+".status", "The value '%s' is not Enabled or Disabled.", s)
		}
		return nil, nil
	}
	key := d.String(path + ".keyVaultProperties.keyIdentifier")
	if err := p.checkKeyURL(ctx, key, d.String(path+".keyVaultProperties.keyVaultArmId")); err != nil {
		return nil, err
	}
	identity, err := p.keyPrincipal(ctx, d)
	if err != nil {
		return nil, err
	}
	return &KeyRef{KeyURL: key, Identity: identity}, nil
}

func (p *Provider) checkKeyURL(ctx context.Context, key, vault string) error {
	const path = "properties.encryption.keyVaultProperties"
	u, err := url.Parse(key)
	if err != nil || u.Scheme != "https" || u.RawQuery != "" || !strings.HasPrefix(u.Path, "/keys/") {
		return resource.Invalid(path+".keyIdentifier", "'%s' is not a key identifier. It reads https://{vault}.vault.%s/keys/{name}, with /{version} behind it to stay at one version.", key, p.cfg.Domain)
	}
	id, err := resource.ParseID(vault)
	if err != nil || !id.Is(vaultType) {
		return resource.Invalid(path+".keyVaultArmId", "'%s' is not the resource ID of a key vault.", vault)
	}
	if host, _, _ := strings.Cut(u.Hostname(), "."); !strings.EqualFold(host, id.Name()) {
		return resource.Invalid(path+".keyIdentifier", "The key '%s' is not in the key vault '%s' that keyVaultArmId names.", key, id.Name())
	}
	if _, err := p.cfg.Resources.Get(ctx, id); err != nil {
		if resource.StatusOf(err) == http.StatusNotFound {
			return resource.Invalid(path+".keyVaultArmId", "The key vault '%s' does not exist.", vault)
		}
		return err
	}
	return nil
}

// keyPrincipal is the principal that uses the customer's key: the identity named for it, else the workspace's own. It is "" for
// a system-assigned identity that does not exist yet.
func (p *Provider) keyPrincipal(ctx context.Context, d *resource.Document) (string, error) {
	named := d.String("properties.encryption.identity.userAssignedIdentity")
	if named == "" {
		named = d.String("properties.primaryUserAssignedIdentity")
	}
	if named == "" {
		if assigned, _ := d.Get("identity.userAssignedIdentities").(map[string]any); len(assigned) == 1 && !strings.Contains(strings.ToLower(d.String("identity.type")), "system") {
			for named = range assigned {
			}
		}
	}
	if named == "" {
		return d.String("identity.principalId"), nil
	}
	if !assignedTo(d, named) {
		return "", resource.Invalid("properties.encryption.identity.userAssignedIdentity", "The identity '%s' is not among the workspace's userAssignedIdentities.", named)
	}
	return p.principalOf(ctx, named)
}

// principalOf is the object id of a user-assigned identity.
func (p *Provider) principalOf(ctx context.Context, identity string) (string, error) {
	id, err := resource.ParseID(identity)
	if err != nil || !id.Is(userAssignedType) {
		return "", resource.Invalid("identity", "'%s' is not the resource ID of a user-assigned identity.", identity)
	}
	u, err := p.cfg.Resources.Get(ctx, id)
	if err != nil {
		return "", err
	}
	return u.String("properties.principalId"), nil
}

// bindKey gives the workspace its resource key under the platform's or the customer's key, or moves it from one to another; no data
// is rewritten by that (rows W7, E2).
func (p *Provider) bindKey(ctx context.Context, d *resource.Document) error {
	ref, err := p.workspaceKey(ctx, d)
	if err != nil {
		return err
	}
	want := "platform"
	if ref != nil {
		if ref.Identity == "" {
			return resource.Errorf(http.StatusBadRequest, "WorkspaceIdentityMissing", "A customer-managed key needs an identity that may use it. Name a user-assigned one in properties.encryption.identity.")
		}
		want = ref.KeyURL + " " + ref.Identity
	}
	switch d.Recall("keyBinding") {
	case want:
		return nil
	case "":
		err = p.cfg.Keys.Create(ctx, d.ID.Key(), ref)
	default:
		err = p.cfg.Keys.Rebind(ctx, d.ID.Key(), ref)
	}
	if err != nil {
		return err
	}
	d.Remember("keyBinding", want)
	return nil
}
