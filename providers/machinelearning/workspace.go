package machinelearning

import (
	"context"
	"fmt"
	"net/http"
	"regexp"
	"strings"

	"github.com/google/uuid"

	"casemate.dev/resource"
)

func (p *Provider) workspaceType() resource.Type {
	return resource.Type{
		Name: workspaceType, Level: resource.AtResourceGroup, APIVersions: versions, Tracked: true, Async: true,
		Created:     http.StatusOK, // clients refuse 201 here (CLIENTS.md, section 2)
		NamePattern: regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_-]{2,32}$`),
		NameRule:    "Use 3 to 33 letters, digits, underscores and hyphens, and begin with a letter or digit",
		Validate:    p.validateWorkspace, Reconcile: p.reconcileWorkspace, MayRemove: p.mayRemoveWorkspace, Remove: p.removeWorkspace, View: p.viewWorkspace,
		Actions: []resource.Action{
			{Name: "listKeys", Permission: workspaceType + "/listKeys/action", Audit: resource.AuditSecret, Handler: listWorkspaceKeys},
			{Name: "privateLinkResources", Method: http.MethodGet, Permission: workspaceType + "/privateLinkResources/read", Audit: resource.AuditRead, Handler: privateLinkResources},
		},
	}
}

// readOnlyWorkspace are properties that only the platform sets; what a client sends is dropped.
var readOnlyWorkspace = []string{"workspaceId", "discoveryUrl", "mlFlowTrackingUri", "tenantId", "notebookInfo", "privateLinkCount",
	"serviceProvisionedResourceGroup", "storageHnsEnabled", "privateEndpointConnections"}

// fixedWorkspace are properties that keep the value they were created with (FACTS section 5 and 10).
var fixedWorkspace = []string{"storageAccount", "keyVault", "hbiWorkspace"}

func (p *Provider) validateWorkspace(ctx context.Context, w *resource.Write) error {
	d := w.New
	if kind := d.String("kind"); kind != "" && !strings.EqualFold(kind, "Default") {
		return resource.NotSupported("A workspace of kind '%s' is not supported. Leave kind out.", kind)
	}
	for _, name := range readOnlyWorkspace {
		d.Unset("properties." + name)
	}
	if w.Old != nil {
		if err := keepFixed(w, fixedWorkspace); err != nil {
			return err
		}
		d.Remember("workspaceId", w.Old.Recall("workspaceId"))
	} else {
		d.Remember("workspaceId", uuid.NewString())
	}
	if d.Get("identity") == nil || strings.EqualFold(d.String("identity.type"), "None") {
		d.Set("identity.type", "SystemAssigned")
	}
	if err := p.checkDependencies(ctx, w); err != nil {
		return err
	}
	if err := checkWorkspaceNetwork(ctx, p, w); err != nil {
		return err
	}
	if primary := d.String("properties.primaryUserAssignedIdentity"); primary != "" && !assignedTo(d, primary) {
		return resource.Invalid("properties.primaryUserAssignedIdentity", "The identity '%s' is not among the workspace's userAssignedIdentities.", primary)
	}
	if _, err := p.workspaceKey(ctx, d); err != nil {
		return err
	}
	p.completeWorkspace(d)
	return nil
}

// keepFixed fills in what the request left out and refuses what it changes.
func keepFixed(w *resource.Write, names []string) error {
	for _, name := range names {
		path := "properties." + name
		was, is := w.Old.Get(path), w.New.Get(path)
		if is == nil && was != nil {
			w.New.Set(path, was)
			continue
		}
		if is != nil && !sameValue(was, is) {
			return resource.Errorf(http.StatusBadRequest, "PropertyChangeNotAllowed", "The property '%s' cannot be changed after creation.", name).WithTarget(path)
		}
	}
	return nil
}

func sameValue(a, b any) bool {
	return strings.EqualFold(fmt.Sprint(a), fmt.Sprint(b)) || (a == nil && fmt.Sprint(b) == "false")
}

func assignedTo(d *resource.Document, identity string) bool {
	assigned, _ := d.Get("identity.userAssignedIdentities").(map[string]any)
	for id := range assigned {
		if strings.EqualFold(id, identity) {
			return true
		}
	}
	return false
}

// checkDependencies demands the services a workspace stands on: they must exist and be of the right kind.
func (p *Provider) checkDependencies(ctx context.Context, w *resource.Write) error {
	d := w.New
	for _, dep := range []struct {
		name, typ string
		required  bool
	}{{"storageAccount", storageType, true}, {"keyVault", vaultType, true}, {"containerRegistry", registryType, false}} {
		path := "properties." + dep.name
		s := d.String(path)
		if s == "" {
			if dep.required {
				return resource.Invalid(path, "A workspace needs the property '%s': the resource ID of a resource of type %s.", dep.name, dep.typ)
			}
			continue
		}
		id, err := resource.ParseID(s)
		if err != nil || !id.Is(dep.typ) {
			return resource.Invalid(path, "'%s' is not the resource ID of a resource of type %s.", s, dep.typ)
		}
		known := w.Old != nil && strings.EqualFold(w.Old.String(path), s) && (w.Old.String("identity.principalId") != "" || !systemAssigned(d))
		if !known && !p.mayGrant(w.Caller, id) {
			return &resource.Error{Status: http.StatusForbidden, Code: "LinkedAuthorizationFailed", Target: path,
				Message: fmt.Sprintf("The client '%s' may not give a workspace access to the linked scope '%s': that takes the right to assign roles there, or the access itself. Ask its owner to create the workspace, or to give you one of them.", w.Caller.DisplayName(), s)}
		}
		if _, err := p.cfg.Resources.Get(ctx, id); err != nil {
			if resource.StatusOf(err) == http.StatusNotFound {
				return resource.Errorf(http.StatusBadRequest, "DependencyNotFound", "The %s '%s' of the workspace does not exist. Create it first.", dep.name, s).WithTarget(path)
			}
			return err
		}
	}
	if hns := d.String("properties.storageAccount"); hns != "" {
		id := resource.MustParseID(hns) // parsed above
		if a, err := p.cfg.Resources.Get(ctx, id); err == nil && a.Bool("properties.isHnsEnabled") {
			return resource.NotSupported("A default storage account with a hierarchical namespace is not supported yet.")
		}
	}
	return nil
}

func checkWorkspaceNetwork(ctx context.Context, p *Provider, w *resource.Write) error {
	switch v := w.New.String("properties.publicNetworkAccess"); strings.ToLower(v) {
	case "":
		w.New.Set("properties.publicNetworkAccess", "Enabled")
	case "enabled", "disabled":
	default:
		return resource.Invalid("properties.publicNetworkAccess", "The value '%s' is not Enabled or Disabled.", v)
	}
	const path = "properties.serverlessComputeSettings.serverlessComputeCustomSubnet"
	if subnet := w.New.String(path); subnet != "" && (w.Old == nil || !strings.EqualFold(subnet, w.Old.String(path))) {
		return p.checkSubnet(ctx, w.Caller, path, subnet)
	}
	return nil
}

// checkSubnet demands a subnet that exists and that the caller may join (a linked scope: whoever may write the workspace may not
// for that reason put nodes into any network).
func (p *Provider) checkSubnet(ctx context.Context, c resource.Caller, target, subnet string) error {
	id, err := resource.ParseID(subnet)
	if err != nil || !id.Is(subnetType) {
		return resource.Invalid(target, "'%s' is not the resource ID of a subnet.", subnet)
	}
	if _, err := p.cfg.Resources.Get(ctx, id); err != nil {
		if resource.StatusOf(err) == http.StatusNotFound {
			return resource.Invalid(target, "The subnet '%s' does not exist.", subnet)
		}
		return err
	}
	if allowed, _ := p.cfg.Authorize.Authorize(c, joinSubnetAction, false, id); !allowed && c.Kind != resource.KindPlatform {
		return &resource.Error{Status: http.StatusForbidden, Code: "LinkedAuthorizationFailed", Target: target,
			Message: fmt.Sprintf("The client '%s' may not perform '%s' on the linked scope '%s'.", c.DisplayName(), joinSubnetAction, subnet)}
	}
	return nil
}

// completeWorkspace sets what follows from the workspace's name and id.
func (p *Provider) completeWorkspace(d *resource.Document) {
	guid := d.Recall("workspaceId")
	host := p.cfg.Authority(guid + ".workspace." + p.cfg.Domain)
	d.Set("properties.workspaceId", guid)
	d.Set("properties.tenantId", p.cfg.Tenant)
	d.Set("properties.discoveryUrl", "https://"+host+"/discovery")
	d.Set("properties.mlFlowTrackingUri", p.trackingURI(guid, d.ID))
	if d.String("properties.friendlyName") == "" {
		d.Set("properties.friendlyName", d.ID.Name())
	}
	if d.Get("properties.hbiWorkspace") == nil {
		d.Set("properties.hbiWorkspace", false)
	}
}

func (p *Provider) trackingURI(guid string, id resource.ID) string {
	return "https://" + p.cfg.Authority(guid+".workspace."+p.cfg.Domain) + "/mlflow/v1.0" + id.String()
}

func (p *Provider) reconcileWorkspace(ctx context.Context, d *resource.Document) error {
	if err := p.bindKey(ctx, d); err != nil {
		return err
	}
	ws, err := viewWorkspace(d)
	if err != nil {
		return err
	}
	if err := p.indexWorkspace(ctx, ws); err != nil {
		return err
	}
	if system := d.String("identity.principalId"); system != "" {
		if err := p.grant(ctx, system, workspaceGrants(ws)); err != nil {
			return err
		}
	}
	return p.defaultStores(ctx, ws, d.Creator)
}

// defaultStores makes the containers and datastores that every workspace has; the containers with the rights of whoever made the
// workspace, for they are in that person's storage account.
func (p *Provider) defaultStores(ctx context.Context, ws workspace, creator resource.Caller) error {
	for store, container := range map[string]string{defaultDatastore: "azureml-blobstore-" + ws.guid, artifactDatastore: artifactContainer} {
		child, err := ws.id.Child("datastores", store)
		if err != nil {
			return err
		}
		if _, err := p.cfg.Resources.Get(ctx, child); err == nil {
			continue
		} else if resource.StatusOf(err) != http.StatusNotFound {
			return err
		}
		// Once: who made the workspace may have left, and it must still be possible to change it.
		if err := p.cfg.Blobs.EnsureContainer(ctx, creator, ws.storage, container); err != nil {
			return fmt.Errorf("making container %s of the workspace: %w", container, err)
		}
		_, err = p.cfg.Resources.Put(ctx, p.cfg.Platform, child, map[string]any{"properties": map[string]any{
			"datastoreType": "AzureBlob", "accountName": ws.storage.Name(), "containerName": container,
			"subscriptionId": ws.storage.Subscription(), "resourceGroup": ws.storage.ResourceGroup(),
			"credentials": map[string]any{"credentialsType": "None"}, "isDefault": store == defaultDatastore,
		}})
		if err != nil {
			return err
		}
	}
	return nil
}

// mayRemoveWorkspace refuses before anything is gone: a job found running on the way down would leave a workspace without its
// assets.
func (p *Provider) mayRemoveWorkspace(_ context.Context, d *resource.Document) error {
	if jobs := p.jobs.ActiveIn(d.ID.String()); len(jobs) > 0 {
		return resource.Errorf(http.StatusConflict, "WorkspaceInUse", "The workspace '%s' has %d jobs that have not ended, such as '%s'. Cancel them first.", d.ID.Name(), len(jobs), nameOf(jobs[0]))
	}
	return nil
}

// removeWorkspace runs after everything below the workspace is gone.
func (p *Provider) removeWorkspace(ctx context.Context, d *resource.Document) error {
	ws, err := viewWorkspace(d)
	if err != nil {
		return err
	}
	if system := d.String("identity.principalId"); system != "" {
		if err := p.revoke(ctx, system, workspaceGrants(ws)); err != nil {
			return err
		}
	}
	if err := p.unindexWorkspace(ctx, ws); err != nil {
		return err
	}
	// The key first: what a request under way would still write could not be read by the next workspace of this name.
	if err := p.cfg.Keys.Destroy(ctx, d.ID.Key()); err != nil {
		return err
	}
	return p.cfg.Runs.Drop(ctx, d.ID)
}

func (p *Provider) viewWorkspace(_ context.Context, d *resource.Document) {
	if p.cfg.Connections != nil {
		d.Set("properties.privateEndpointConnections", p.cfg.Connections(d.ID.String()))
	}
	if d.Get("properties.encryption.keyVaultProperties") != nil {
		if kid, err := p.cfg.Keys.Version(d.ID.Key()); err == nil && kid != "" {
			d.Set("properties.encryption.keyVaultProperties.effectiveKeyIdentifier", kid)
		}
	}
}

// listWorkspaceKeys answers honestly: nothing of a workspace is reached by a key.
func listWorkspaceKeys(_ context.Context, d *resource.Document, _ *resource.Request) (any, error) {
	return map[string]any{
		"userStorageResourceId": d.String("properties.storageAccount"), "userStorageKey": "", "userStorageArmId": d.String("properties.storageAccount"),
		"appInsightsInstrumentationKey": "", "containerRegistryCredentials": nil, "notebookAccessKeys": nil,
	}, nil
}

func privateLinkResources(_ context.Context, d *resource.Document, _ *resource.Request) (any, error) {
	return map[string]any{"value": []any{map[string]any{
		"id": d.ID.String() + "/privateLinkResources/amlworkspace", "name": "amlworkspace", "type": workspaceType + "/privateLinkResources",
		"properties": map[string]any{"groupId": "amlworkspace", "requiredMembers": []string{"default"},
			"requiredZoneNames": []string{"privatelink.api.azureml.ms", "privatelink.notebooks.azure.net"}},
	}}}, nil
}
