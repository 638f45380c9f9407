package machinelearning

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/google/uuid"

	"casemate.dev/resource"
	"casemate.dev/store"
)

// Built-in roles that the platform gives to system-assigned identities, by id (FACTS section 1).
const (
	roleBlobDataReader      = "2a2b9908-6ea1-4ae2-8e65-a410df84e7d1"
	roleBlobDataContributor = "ba92f5b4-2d11-453d-a403-e96b0029c9fe"
	roleSecretsOfficer      = "b86a8fe4-44ce-4948-aee5-eccb2c155cd7"
	roleAcrPull             = "7f951dda-4ed3-4680-a7ca-43fe172d538d"
	roleAcrPush             = "8311e382-0749-4cb8-b61a-304f252e45ec"
)

// grant names a role at a scope.
type grant struct {
	scope resource.ID
	role  string
}

// workspaceGrants are what a workspace's own identity needs. A user-assigned identity gets its roles from whoever assigns it.
func workspaceGrants(ws workspace) []grant {
	out := []grant{{ws.storage, roleBlobDataContributor}, {ws.vault, roleSecretsOfficer}}
	if !ws.registry.IsTenant() {
		out = append(out, grant{ws.registry, roleAcrPull}, grant{ws.registry, roleAcrPush})
	}
	return out
}

// endpointGrants let an endpoint's own identity read models and code, write its logs, and pull its image. It writes to the container of
// artifacts only, for whoever may make an endpoint runs any code with it. What it could overwrite there is found by digest before any of
// it is used again.
func endpointGrants(ws workspace) ([]grant, error) {
	logs, err := resource.ParseID(ws.storage.String() + "/blobServices/default/containers/" + artifactContainer)
	if err != nil {
		return nil, fmt.Errorf("naming the container of artifacts: %w", err)
	}
	out := []grant{{ws.storage, roleBlobDataReader}, {logs, roleBlobDataContributor}}
	if !ws.registry.IsTenant() {
		out = append(out, grant{ws.registry, roleAcrPull})
	}
	return out, nil
}

// given are the rights that a workspace and its endpoints get at what the workspace stands on.
var given = map[string]struct {
	data    bool
	actions []string
}{
	storageType: {true, []string{storageType + "/blobServices/containers/blobs/read", storageType + "/blobServices/containers/blobs/write",
		storageType + "/blobServices/containers/blobs/delete"}},
	vaultType:    {true, []string{vaultType + "/secrets/getSecret/action", vaultType + "/secrets/setSecret/action", vaultType + "/secrets/delete"}},
	registryType: {false, []string{registryType + "/pull/read", registryType + "/push/write"}},
}

// mayGrant says whether a caller may have the platform give those rights: who may assign roles there, or holds them. To
// write a workspace, or the resource itself, is not enough (THREATS R15).
func (p *Provider) mayGrant(c resource.Caller, scope resource.ID) bool {
	if c.Kind == resource.KindPlatform {
		return true
	}
	if ok, _ := p.cfg.Authorize.Authorize(c, "Microsoft.Authorization/roleAssignments/write", false, scope); ok {
		return true
	}
	for typ, g := range given {
		if !scope.Is(typ) {
			continue
		}
		for _, action := range g.actions {
			if ok, _ := p.cfg.Authorize.Authorize(c, action, g.data, scope); !ok {
				return false
			}
		}
		return true
	}
	return false
}

func systemAssigned(d *resource.Document) bool {
	return strings.Contains(strings.ToLower(d.String("identity.type")), "systemassigned")
}

// assignment is the role assignment of a grant; its name follows from its content, so that granting twice is granting once.
func (g grant) assignment(principal string) (resource.ID, error) {
	name := uuid.NewSHA1(uuid.NameSpaceURL, []byte(g.scope.Key()+"\x00"+g.role+"\x00"+principal)).String()
	return g.scope.Extension("Microsoft.Authorization/roleAssignments", name)
}

func (p *Provider) grant(ctx context.Context, principal string, grants []grant) error {
	for _, g := range grants {
		id, err := g.assignment(principal)
		if err != nil {
			return err
		}
		if _, err := p.cfg.Resources.Get(ctx, id); err == nil {
			continue
		}
		_, err = p.cfg.Resources.Put(ctx, p.cfg.Platform, id, map[string]any{"properties": map[string]any{
			"roleDefinitionId": fmt.Sprintf("/subscriptions/%s/providers/Microsoft.Authorization/roleDefinitions/%s", g.scope.Subscription(), g.role),
			"principalId":      principal, "principalType": "ServicePrincipal",
		}})
		if err != nil {
			return fmt.Errorf("granting role %s on %s: %w", g.role, g.scope, err)
		}
	}
	return nil
}

func (p *Provider) revoke(ctx context.Context, principal string, grants []grant) error {
	for _, g := range grants {
		id, err := g.assignment(principal)
		if err != nil {
			return err
		}
		if err := p.cfg.Resources.Delete(ctx, p.cfg.Platform, id); err != nil && resource.StatusOf(err) != http.StatusNotFound {
			return fmt.Errorf("revoking role %s on %s: %w", g.role, g.scope, err)
		}
	}
	return nil
}

// InUse refuses the deletion of what a workspace, a cluster or an endpoint stands on: other providers ask it in MayRemove.
func (p *Provider) InUse(ctx context.Context, id resource.ID) error {
	used := func(by resource.ID) error {
		return resource.Errorf(http.StatusConflict, "ResourceInUse", "'%s' is in use by '%s'. Delete that first.", id.Name(), by)
	}
	workspaces, err := p.cfg.Resources.List(ctx, workspaceType, resource.Tenant)
	if err != nil {
		return err
	}
	for _, d := range workspaces {
		if id.Contains(d.ID) {
			continue // the whole group goes
		}
		for _, path := range []string{"storageAccount", "keyVault", "containerRegistry", "primaryUserAssignedIdentity", "encryption.keyVaultProperties.keyVaultArmId",
			"encryption.identity.userAssignedIdentity", "serverlessComputeSettings.serverlessComputeCustomSubnet"} {
			if s := d.String("properties." + path); s != "" && within(id, s) {
				return used(d.ID)
			}
		}
		if assignedTo(d, id.String()) {
			return used(d.ID)
		}
		if !id.Is(userAssignedType) && !strings.HasPrefix(strings.ToLower(id.Type()), "microsoft.network/") {
			continue
		}
		// With the workspace's key revoked nothing can be said about its clusters, so nothing that they could use goes away.
		computes, err := p.cfg.Resources.List(ctx, computeType, d.ID)
		if err != nil {
			return err
		}
		for _, c := range computes {
			if within(id, c.String("properties.properties.subnet.id")) || assignedTo(c, id.String()) {
				return used(c.ID)
			}
		}
	}
	return nil
}

func within(id resource.ID, s string) bool {
	o, err := resource.ParseID(s)
	return err == nil && s != "" && id.Contains(o)
}

// The host names of workspaces and endpoints lead to ARM ids by these entries:
//
//	machinelearning/workspaceid/{guid}            ARM id
//	machinelearning/endpoint/{region}/{name}      ARM id
func workspaceIndexKey(guid string) string { return store.Key("machinelearning", "workspaceid", guid) }
func endpointIndexKey(region, name string) string {
	return store.Key("machinelearning", "endpoint", strings.ToLower(region), strings.ToLower(name))
}

func (p *Provider) indexWorkspace(ctx context.Context, ws workspace) error {
	return p.cfg.Store.Update(ctx, func(t store.Txn) error {
		t.Put(workspaceIndexKey(ws.guid), []byte(ws.id.String()))
		return nil
	})
}

func (p *Provider) unindexWorkspace(ctx context.Context, ws workspace) error {
	return p.cfg.Store.Update(ctx, func(t store.Txn) error { t.Delete(workspaceIndexKey(ws.guid)); return nil })
}

// WorkspaceOf is the ARM id of the workspace that the first label of a host name of the workspace plane names.
func (p *Provider) WorkspaceOf(ctx context.Context, label string) (resource.ID, bool) {
	return p.lookup(ctx, workspaceIndexKey(strings.ToLower(label)))
}

// EndpointOf is the ARM id of the endpoint of a host name {name}.{region}.inference.{domain}.
func (p *Provider) EndpointOf(ctx context.Context, name, region string) (resource.ID, bool) {
	return p.lookup(ctx, endpointIndexKey(region, name))
}

func (p *Provider) lookup(ctx context.Context, key string) (resource.ID, bool) {
	var kv store.KV
	err := p.cfg.Store.View(ctx, func(r store.Reader) (err error) { kv, err = r.Get(key); return err })
	if err != nil {
		if !errors.Is(err, store.ErrNotFound) {
			p.cfg.Log.Warn("resolving host name", "error", err)
		}
		return resource.ID{}, false
	}
	id, err := resource.ParseID(string(kv.Value))
	return id, err == nil
}
