package keyvault

import (
	"encoding/json"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"

	"casemate.dev/resource"
)

// Patterns below a subscription.
const (
	subscriptionPath = "/subscriptions/{subscriptionId}"
	providerPath     = subscriptionPath + "/providers/Microsoft.KeyVault"
	deletedPath      = providerPath + "/locations/{location}/deletedVaults/{vaultName}"
	vaultPath        = subscriptionPath + "/resourceGroups/{resourceGroupName}/providers/Microsoft.KeyVault/vaults/{vaultName}"
)

// Routes are the rows that do not derive from a type: deleted vaults are no resources, and the check of names is not about
// one.
func (p *Provider) Routes() []resource.Route {
	row := func(name, method, pattern, action, scope string, body int64, audit resource.Category, h resource.Handler) resource.Route {
		return resource.Route{
			Name: name, Plane: resource.PlaneManagement, Method: method, Pattern: pattern, Versions: resource.OneOf(apiVersions()...),
			Action: "Microsoft.KeyVault/" + action, Scope: scope, Origin: resource.OriginAnywhere, Body: body, Timeout: time.Minute,
			Audit: audit, Handler: h,
		}
	}
	return []resource.Route{
		row("Vaults_CheckNameAvailability", http.MethodPost, providerPath+"/checkNameAvailability", "checkNameAvailability/read", subscriptionPath, 4<<10, resource.AuditRead, p.checkNameAvailability),
		row("Vaults_ListDeleted", http.MethodGet, providerPath+"/deletedVaults", "deletedVaults/read", subscriptionPath, -1, resource.AuditRead, p.listDeleted),
		row("Vaults_GetDeleted", http.MethodGet, deletedPath, "locations/deletedVaults/read", deletedPath, -1, resource.AuditRead, p.getDeleted),
		row("Vaults_PurgeDeleted", http.MethodPost, deletedPath+"/purge", "locations/deletedVaults/purge/action", deletedPath, 4<<10, resource.AuditWrite, p.purgeDeleted),
		row("Vaults_UpdateAccessPolicy", http.MethodPut, vaultPath+"/accessPolicies/{operationKind}", "vaults/accessPolicies/write", vaultPath, 1<<20, resource.AuditWrite,
			func(http.ResponseWriter, *resource.Request) error { return policiesRefused() }),
	}
}

// deletedVault is Azure's DeletedVault.
type deletedVault struct {
	ID         string            `json:"id"`
	Name       string            `json:"name"`
	Type       string            `json:"type"`
	Properties deletedProperties `json:"properties"`
}

type deletedProperties struct {
	VaultID            string    `json:"vaultId"`
	Location           string    `json:"location"`
	DeletionDate       time.Time `json:"deletionDate"`
	ScheduledPurgeDate time.Time `json:"scheduledPurgeDate"`
	Tags               any       `json:"tags,omitempty"`
	PurgeProtection    bool      `json:"purgeProtectionEnabled,omitempty"`
}

func (r reservation) wire() deletedVault {
	d := r.doc()
	return deletedVault{
		ID:   "/subscriptions/" + d.ID.Subscription() + "/providers/Microsoft.KeyVault/locations/" + d.Location() + "/deletedVaults/" + d.ID.Name(),
		Name: d.ID.Name(), Type: "Microsoft.KeyVault/deletedVaults",
		Properties: deletedProperties{
			VaultID: r.ID, Location: d.Location(), DeletionDate: time.Unix(r.Deleted.At, 0).UTC(),
			ScheduledPurgeDate: time.Unix(r.Deleted.Purge, 0).UTC(), Tags: d.Get("tags"),
			PurgeProtection: d.Bool("properties.enablePurgeProtection"),
		},
	}
}

func (p *Provider) listDeleted(w http.ResponseWriter, r *resource.Request) error {
	list := []deletedVault{}
	for _, rec := range p.deletedVaults(r.Vars["subscriptionId"]) {
		if !rec.Deleted.Purging {
			list = append(list, rec.wire())
		}
	}
	return writeJSON(w, map[string]any{"value": list})
}

// deletedOf finds the deleted vault that a request names.
func (p *Provider) deletedOf(r *resource.Request) (reservation, error) {
	rec, ok := p.lookup(r.Vars["vaultName"])
	if !ok || rec.Deleted == nil || rec.Deleted.Purging {
		return rec, deletedNotFound(r.Vars["vaultName"])
	}
	d := rec.doc()
	if !strings.EqualFold(d.ID.Subscription(), r.Vars["subscriptionId"]) || d.Location() != strings.ToLower(strings.ReplaceAll(r.Vars["location"], " ", "")) {
		return rec, deletedNotFound(r.Vars["vaultName"])
	}
	return rec, nil
}

func (p *Provider) getDeleted(w http.ResponseWriter, r *resource.Request) error {
	rec, err := p.deletedOf(r)
	if err != nil {
		return err
	}
	return writeJSON(w, rec.wire())
}

func (p *Provider) purgeDeleted(w http.ResponseWriter, r *resource.Request) error {
	rec, err := p.deletedOf(r)
	if err != nil {
		return err
	}
	if rec.doc().Bool("properties.enablePurgeProtection") {
		return resource.Errorf(http.StatusMethodNotAllowed, "MethodNotAllowed",
			"Operation 'DeletedVaultPurge' is not allowed. Purge protection keeps the vault until %s.", time.Unix(rec.Deleted.Purge, 0).UTC().Format(time.RFC3339))
	}
	if err := p.purge(r.Context(), rec); err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

func (p *Provider) checkNameAvailability(w http.ResponseWriter, r *resource.Request) error {
	raw, err := r.ReadBody()
	if err != nil {
		return err
	}
	body, err := resource.DecodeBody(raw)
	if err != nil {
		return err
	}
	name, _ := body["name"].(string)
	typ, _ := body["type"].(string)
	if name == "" || !strings.EqualFold(typ, typeName) {
		return badRequest("The body needs a 'name' and the 'type' %s.", typeName)
	}
	t := p.Types()[0]
	if !validName(t.NamePattern, name) {
		return writeJSON(w, map[string]any{"nameAvailable": false, "reason": "AccountNameInvalid", "message": t.NameRule + "."})
	}
	if _, taken := p.lookup(name); taken {
		return writeJSON(w, map[string]any{"nameAvailable": false, "reason": "AlreadyExists", "message": alreadyExists(name).Message})
	}
	return writeJSON(w, map[string]any{"nameAvailable": true})
}

func validName(pattern *regexp.Regexp, name string) bool {
	return pattern.MatchString(name) && !strings.Contains(name, "--")
}

func writeJSON(w http.ResponseWriter, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	w.WriteHeader(http.StatusOK)
	_, err = w.Write(b)
	return err
}
