package operation

import (
	"context"
	"net/http"
	"strings"

	"casemate.dev/resource"
)

const assignAction = "Microsoft.ManagedIdentity/userAssignedIdentities/assign/action"

// checkIdentity checks the identity member: its type, that user-assigned identities exist, and that the caller may assign
// those that are new here.
func (e *Engine) checkIdentity(c resource.Caller, d, before *resource.Document) error {
	raw := d.Get("identity")
	if raw == nil {
		return nil
	}
	if _, ok := raw.(map[string]any); !ok {
		return resource.Invalid("identity", "The member 'identity' must be an object.")
	}
	system, user, err := identityKinds(d)
	if err != nil {
		return err
	}
	if system && e.cfg.Identities == nil {
		return resource.NotSupported("System-assigned identities are not available.")
	}
	assigned := userAssigned(d)
	if user && len(assigned) == 0 {
		return resource.Invalid("identity.userAssignedIdentities", "The identity type names UserAssigned but no identity is given.")
	}
	had := map[string]bool{}
	if before != nil {
		for _, id := range userAssigned(before) {
			had[lower(id)] = true
		}
	}
	for _, s := range assigned {
		id, err := resource.ParseID(s)
		if err != nil || !id.Is("Microsoft.ManagedIdentity/userAssignedIdentities") || !e.Exists(id) {
			return resource.Errorf(http.StatusBadRequest, "FailedIdentityOperation", "The user-assigned identity '%s' does not exist.", s).WithTarget("identity.userAssignedIdentities")
		}
		if had[lower(s)] || c.Kind == resource.KindPlatform {
			continue
		}
		if ok, _ := e.cfg.Authorize.Authorize(c, assignAction, false, id); !ok {
			return &resource.Error{Status: http.StatusForbidden, Code: "LinkedAuthorizationFailed", Target: "identity.userAssignedIdentities",
				Message: "The client '" + c.DisplayName() + "' may not perform '" + assignAction + "' on the linked scope '" + s + "'. Ask for the role Managed Identity Operator there."}
		}
	}
	return nil
}

// keepPrincipals drops the principals that a client names: they are shown, and set by reconcileIdentity alone. What was
// there before stays, since Validate reads it.
func keepPrincipals(d, before *resource.Document) {
	m, ok := d.Get("identity").(map[string]any)
	if !ok {
		return
	}
	for _, member := range []string{"principalId", "tenantId"} {
		d.Unset("identity." + member)
		if before == nil {
			continue
		}
		if had, _ := before.Internal["systemAssigned"].(bool); had && before.String("identity."+member) != "" {
			m[member] = before.Get("identity." + member)
		}
	}
	assigned, _ := d.Get("identity.userAssignedIdentities").(map[string]any)
	for id := range assigned {
		assigned[id] = map[string]any{}
	}
}

func identityKinds(d *resource.Document) (system, user bool, err error) {
	kind := d.String("identity.type")
	for part := range strings.SplitSeq(kind, ",") {
		switch lower(strings.TrimSpace(part)) {
		case "systemassigned":
			system = true
		case "userassigned":
			user = true
		case "none", "":
		default:
			return false, false, resource.Invalid("identity.type", "The identity type '%s' is not valid. Use None, SystemAssigned, UserAssigned, or 'SystemAssigned, UserAssigned'.", kind)
		}
	}
	return system, user, nil
}

func userAssigned(d *resource.Document) []string {
	m, _ := d.Get("identity.userAssignedIdentities").(map[string]any)
	var out []string
	for id := range m {
		out = append(out, id)
	}
	return out
}

// reconcileIdentity makes the system-assigned principal, or removes it, and shows principal and client ids.
func (e *Engine) reconcileIdentity(ctx context.Context, d *resource.Document) error {
	system, _, err := identityKinds(d)
	if err != nil || e.cfg.Identities == nil {
		return err
	}
	if !system {
		return e.removeIdentity(ctx, d)
	}
	principal, tenant, err := e.cfg.Identities.EnsureSystemAssigned(ctx, d.ID)
	if err != nil {
		return err
	}
	d.Remember("systemAssigned", true)
	d.Set("identity.principalId", principal)
	d.Set("identity.tenantId", tenant)
	return e.showAssigned(d)
}

func (e *Engine) showAssigned(d *resource.Document) error {
	m, _ := d.Get("identity.userAssignedIdentities").(map[string]any)
	for s := range m {
		id, err := resource.ParseID(s)
		if err != nil {
			return err
		}
		m[s] = map[string]any{}
		if r := e.cached(id); r != nil {
			u, err := r.document()
			if err != nil {
				return err
			}
			m[s] = map[string]any{"principalId": u.String("properties.principalId"), "clientId": u.String("properties.clientId")}
		}
	}
	return nil
}

func (e *Engine) removeIdentity(ctx context.Context, d *resource.Document) error {
	if had, _ := d.Internal["systemAssigned"].(bool); had && e.cfg.Identities != nil {
		if err := e.cfg.Identities.RemoveSystemAssigned(ctx, d.ID); err != nil {
			return err
		}
		delete(d.Internal, "systemAssigned")
		d.Unset("identity.principalId")
		d.Unset("identity.tenantId")
	}
	return e.showAssigned(d)
}
