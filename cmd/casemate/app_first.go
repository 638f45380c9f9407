package main

import (
	"context"
	"fmt"
	"net/http"

	"github.com/google/uuid"

	"casemate.dev/providers/authorization"
	"casemate.dev/resource"
)

const ownerRole = "/providers/Microsoft.Authorization/roleDefinitions/8e3af657-a8ff-443c-a75c-2fe8c4bcb635"

// makeSubscription gives the administrator Owner of the tenant and then makes the subscription: with the subscription
// there, the first start is over, so a crash before leaves nothing to repair but to do it again.
func (a *App) makeSubscription(ctx context.Context, administrator string) (string, error) {
	// One assignment for one administrator, however often the first start is tried.
	name := uuid.NewSHA1(uuid.NameSpaceOID, []byte("owner of the tenant: "+administrator)).String()
	id, err := resource.Tenant.Extension(authorization.TypeAssignment, name)
	if err != nil {
		return "", err
	}
	_, err = a.operation.Put(ctx, a.platform, id, map[string]any{"properties": map[string]any{"roleDefinitionId": ownerRole, "principalId": administrator, "principalType": "ServicePrincipal"}})
	if err != nil && resource.StatusOf(err) != http.StatusConflict {
		return "", fmt.Errorf("making the administrator owner: %w", err)
	}
	sub := uuid.NewString()
	if id, err = resource.ParseID("/subscriptions/" + sub); err != nil {
		return "", err
	}
	body := map[string]any{"displayName": "Casemate", "tenantId": a.identity.HomeTenant()}
	if _, err := a.operation.Put(ctx, a.platform, id, body); err != nil {
		return "", fmt.Errorf("making the subscription: %w", err)
	}
	return sub, nil
}
