// Package managedidentity is the provider Microsoft.ManagedIdentity: user-assigned identities, which live as long as their
// resource and can be given to computes, endpoints and other resources.
//
// It is for ARM clients. A resource shows the principal that control/identity keeps for it; deleting the resource deletes
// the principal, its role assignments and, at once, all its tokens. What clients send for the principal's ids is ignored.
// Who may assign an identity to something is checked where it is assigned (Managed Identity Operator); federated
// credentials are not supported.
package managedidentity

import (
	"context"
	"net/http"
	"regexp"

	"casemate.dev/control/identity"
	"casemate.dev/resource"
)

// Type is the full type name.
const Type = "Microsoft.ManagedIdentity/userAssignedIdentities"

// Identities is the directory's part for managed identities.
type Identities interface {
	EnsureManagedIdentity(ctx context.Context, resourceID resource.ID, name string) (identity.ManagedIdentity, error)
	RemoveManagedIdentity(ctx context.Context, resourceID resource.ID) error
}

// Provider declares the type of user-assigned identities.
type Provider struct{ identities Identities }

// New returns the provider over a directory.
func New(identities Identities) *Provider { return &Provider{identities} }

var namePattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{2,127}$`)

// readOnly are the properties that the platform fills in.
var readOnly = []string{"properties.principalId", "properties.clientId", "properties.tenantId"}

// Types are the resource types.
func (p *Provider) Types() []resource.Type {
	return []resource.Type{{
		Name: Type, Level: resource.AtResourceGroup, Tracked: true, Created: http.StatusCreated,
		APIVersions: []string{"2023-01-31", "2022-01-31-preview", "2021-09-30-preview", "2018-11-30", "2015-08-31-preview"},
		NamePattern: namePattern, NameRule: "Use 3 to 128 letters, digits, hyphens and underscores, beginning with a letter or digit",
		Validate: validate, Reconcile: p.reconcile, Remove: p.remove,
	}}
}

// validate drops what a client claims about the principal, and keeps what is known of it.
func validate(_ context.Context, w *resource.Write) error {
	for _, path := range readOnly {
		w.New.Unset(path)
		if w.Old != nil && w.Old.String(path) != "" {
			w.New.Set(path, w.Old.String(path))
		}
	}
	return nil
}

func (p *Provider) reconcile(ctx context.Context, d *resource.Document) error {
	mi, err := p.identities.EnsureManagedIdentity(ctx, d.ID, d.ID.Name())
	if err != nil {
		return err
	}
	for i, value := range []string{mi.PrincipalID, mi.ClientID, mi.TenantID} {
		d.Set(readOnly[i], value)
	}
	return nil
}

func (p *Provider) remove(ctx context.Context, d *resource.Document) error {
	return p.identities.RemoveManagedIdentity(ctx, d.ID)
}
