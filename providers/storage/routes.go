package storage

import (
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"time"

	"casemate.dev/dataplane/blob"
	"casemate.dev/resource"
)

// Patterns below a subscription.
const (
	subscriptionPath = "/subscriptions/{subscriptionId}"
	namePath         = subscriptionPath + "/providers/Microsoft.Storage/checkNameAvailability"
	accountPath      = subscriptionPath + "/resourceGroups/{resourceGroupName}/providers/Microsoft.Storage/storageAccounts/{accountName}"
	servicesPath     = accountPath + "/blobServices"
	servicePath      = servicesPath + "/default"
	containersPath   = servicePath + "/containers"
	containerPath    = containersPath + "/{containerName}"
)

// Routes are the rows that do not derive from a type. Containers are made on the data plane as often as here, so they have
// no documents: these rows read and change the Blob service itself.
func (p *Provider) Routes() []resource.Route {
	row := func(name, method, pattern, action, scope string, h resource.Handler) resource.Route {
		r := resource.Route{
			Name: name, Plane: resource.PlaneManagement, Method: method, Pattern: pattern, Versions: resource.OneOf(apiVersions()...),
			Action: action, Scope: scope, Origin: resource.OriginAnywhere, Body: 64 << 10, Timeout: rowTimeout, Audit: resource.AuditWrite, Handler: h,
		}
		if method == http.MethodGet || method == http.MethodDelete {
			r.Body = -1
		}
		if method == http.MethodGet || pattern == namePath {
			r.Audit = resource.AuditRead
		}
		return r
	}
	return []resource.Route{
		row("StorageAccounts_CheckNameAvailability", "POST", namePath, "Microsoft.Storage/checknameavailability/read", subscriptionPath, p.checkName),
		row("BlobServices_List", "GET", servicesPath, serviceType+"/read", accountPath, p.listServices),
		row("BlobServices_GetServiceProperties", "GET", servicePath, serviceType+"/read", servicePath, p.getService),
		row("BlobServices_SetServiceProperties", "PUT", servicePath, serviceType+"/write", servicePath, p.putService),
		row("BlobContainers_List", "GET", containersPath, containerType+"/read", servicePath, p.listContainers),
		row("BlobContainers_Get", "GET", containerPath, containerType+"/read", containerPath, p.getContainer),
		row("BlobContainers_Create", "PUT", containerPath, containerType+"/write", containerPath, p.putContainer),
		row("BlobContainers_Update", "PATCH", containerPath, containerType+"/write", containerPath, p.patchContainer),
		row("BlobContainers_Delete", "DELETE", containerPath, containerType+"/delete", containerPath, p.deleteContainer),
	}
}

func sendJSON(w http.ResponseWriter, status int, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encoding answer: %w", err)
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	_, err = w.Write(b)
	return err
}

// account is the account that the request's path names; it must exist.
func (p *Provider) account(r *resource.Request) (resource.ID, error) {
	id, err := resource.ParseID("/subscriptions/" + r.Vars["subscriptionId"] + "/resourceGroups/" + r.Vars["resourceGroupName"] +
		"/providers/Microsoft.Storage/storageAccounts/" + r.Vars["accountName"])
	if err != nil {
		return id, resource.Errorf(http.StatusBadRequest, "InvalidResourceID", "The request path is not a resource ID.").WithCause(err)
	}
	d, err := p.cfg.Resources.Get(r.Context(), id)
	if err != nil {
		return id, err
	}
	return d.ID, nil
}

var accountName = regexp.MustCompile(`^[a-z0-9]{3,24}$`)

func (p *Provider) checkName(w http.ResponseWriter, r *resource.Request) error {
	b, err := r.ReadBody()
	if err != nil {
		return err
	}
	body, err := resource.DecodeBody(b)
	if err != nil {
		return err
	}
	name := (&resource.Document{Body: body}).String("name")
	answer := map[string]any{"nameAvailable": true}
	if !accountName.MatchString(name) {
		answer = map[string]any{"nameAvailable": false, "reason": "AccountNameInvalid",
			"message": fmt.Sprintf("'%.60s' is not a valid storage account name: use 3 to 24 lower-case letters and digits.", name)}
	} else if _, taken := p.ResourceOf(name); taken {
		answer = map[string]any{"nameAvailable": false, "reason": "AlreadyExists", "message": errTaken(name).Message}
	}
	return sendJSON(w, http.StatusOK, answer)
}

func serviceWire(account resource.ID) map[string]any {
	off := map[string]any{"enabled": false}
	return map[string]any{
		"id": account.String() + "/blobServices/default", "name": "default", "type": serviceType,
		"properties": map[string]any{
			"cors": map[string]any{"corsRules": []any{}}, "deleteRetentionPolicy": off, "containerDeleteRetentionPolicy": off,
			"changeFeed": off, "restorePolicy": off, "isVersioningEnabled": false,
		},
	}
}

func (p *Provider) listServices(w http.ResponseWriter, r *resource.Request) error {
	account, err := p.account(r)
	if err != nil {
		return err
	}
	return sendJSON(w, http.StatusOK, map[string]any{"value": []any{serviceWire(account)}})
}

func (p *Provider) getService(w http.ResponseWriter, r *resource.Request) error {
	account, err := p.account(r)
	if err != nil {
		return err
	}
	return sendJSON(w, http.StatusOK, serviceWire(account))
}

// putService accepts what is so already and refuses to pretend the rest.
func (p *Provider) putService(w http.ResponseWriter, r *resource.Request) error {
	account, err := p.account(r)
	if err != nil {
		return err
	}
	d, err := decode(r)
	if err != nil {
		return err
	}
	for _, path := range []string{"deleteRetentionPolicy.enabled", "containerDeleteRetentionPolicy.enabled", "changeFeed.enabled",
		"restorePolicy.enabled", "lastAccessTimeTrackingPolicy.enable", "isVersioningEnabled", "automaticSnapshotPolicyEnabled"} {
		if d.Bool("properties." + path) {
			return resource.NotSupported("The Blob service does not support properties.%s.", path).WithTarget("properties." + path)
		}
	}
	if len(listAt(d, "properties.cors.corsRules")) > 0 {
		return resource.NotSupported("CORS rules are not supported.").WithTarget("properties.cors.corsRules")
	}
	return sendJSON(w, http.StatusOK, serviceWire(account))
}

// decode reads a body; none is an empty one.
func decode(r *resource.Request) (*resource.Document, error) {
	b, err := r.ReadBody()
	if err != nil || len(b) == 0 {
		return &resource.Document{}, err
	}
	body, err := resource.DecodeBody(b)
	return &resource.Document{Body: body}, err
}

func containerWire(account resource.ID, c blob.ContainerInfo) map[string]any {
	props := map[string]any{
		"publicAccess": "None", "leaseStatus": title(c.LeaseStatus), "leaseState": title(c.LeaseState),
		"lastModifiedTime": c.Modified.UTC().Format(time.RFC3339Nano), "hasImmutabilityPolicy": false, "hasLegalHold": false,
		"defaultEncryptionScope": "$account-encryption-key", "denyEncryptionScopeOverride": false,
	}
	if c.LeaseDuration != "" {
		props["leaseDuration"] = title(c.LeaseDuration)
	}
	if len(c.Metadata) > 0 {
		props["metadata"] = c.Metadata
	}
	return map[string]any{"id": account.String() + "/blobServices/default/containers/" + c.Name, "name": c.Name, "type": containerType,
		"etag": `"` + c.ETag + `"`, "properties": props}
}

// title writes a lease's words as the management plane spells them.
func title(s string) string {
	if s == "" {
		return ""
	}
	return strings.ToUpper(s[:1]) + s[1:]
}

func (p *Provider) listContainers(w http.ResponseWriter, r *resource.Request) error {
	account, err := p.account(r)
	if err != nil {
		return err
	}
	value := []any{}
	for c, err := range p.cfg.Plane.Containers(r.Context(), account) {
		if err != nil {
			return err
		}
		value = append(value, containerWire(account, c))
	}
	return sendJSON(w, http.StatusOK, map[string]any{"value": value})
}

func (p *Provider) getContainer(w http.ResponseWriter, r *resource.Request) error {
	account, err := p.account(r)
	if err != nil {
		return err
	}
	c, err := p.cfg.Plane.StatContainer(r.Context(), account, r.Vars["containerName"])
	if err != nil {
		return err
	}
	return sendJSON(w, http.StatusOK, containerWire(account, c))
}

func (p *Provider) putContainer(w http.ResponseWriter, r *resource.Request) error {
	account, err := p.account(r)
	if err != nil {
		return err
	}
	d, err := decode(r)
	if err != nil {
		return err
	}
	metadata, err := containerBody(d)
	if err != nil {
		return err
	}
	c, made, err := p.cfg.Plane.CreateContainer(r.Context(), account, r.Vars["containerName"], metadata)
	if err != nil {
		return err
	}
	status := http.StatusOK
	if made {
		status = http.StatusCreated
	}
	return sendJSON(w, status, containerWire(account, c))
}

// containerBody reads the metadata and refuses what containers do not have.
func containerBody(d *resource.Document) (map[string]string, error) {
	if access := d.String("properties.publicAccess"); access != "" && access != "None" {
		return nil, resource.Invalid("properties.publicAccess", "Anonymous access to blobs is not offered; publicAccess must be None.")
	}
	for _, path := range []string{"immutableStorageWithVersioning.enabled", "enableNfsV3RootSquash", "enableNfsV3AllSquash", "denyEncryptionScopeOverride"} {
		if d.Bool("properties." + path) {
			return nil, resource.NotSupported("Containers do not support properties.%s.", path).WithTarget("properties." + path)
		}
	}
	var metadata map[string]string
	m, _ := d.Get("properties.metadata").(map[string]any)
	for k, v := range m {
		s, ok := v.(string)
		if !ok {
			return nil, resource.Invalid("properties.metadata."+k, "Metadata values are strings.")
		}
		if metadata == nil {
			metadata = map[string]string{}
		}
		metadata[k] = s
	}
	return metadata, nil
}

func (p *Provider) patchContainer(w http.ResponseWriter, r *resource.Request) error {
	account, err := p.account(r)
	if err != nil {
		return err
	}
	if _, err := p.cfg.Plane.StatContainer(r.Context(), account, r.Vars["containerName"]); err != nil {
		return err
	}
	return p.putContainer(w, r)
}

func (p *Provider) deleteContainer(w http.ResponseWriter, r *resource.Request) error {
	account, err := p.account(r)
	if err != nil {
		return err
	}
	err = p.cfg.Plane.DeleteContainer(r.Context(), account, r.Vars["containerName"])
	switch {
	case resource.StatusOf(err) == http.StatusNotFound:
		w.WriteHeader(http.StatusNoContent)
		return nil
	case err != nil:
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}
