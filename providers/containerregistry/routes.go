package containerregistry

import (
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"casemate.dev/resource"
)

const (
	subscriptionPath = "/subscriptions/{subscriptionId}"
	namePath         = subscriptionPath + "/providers/Microsoft.ContainerRegistry/checkNameAvailability"
)

// Routes are the rows that do not derive from a type.
func (p *Provider) Routes() []resource.Route {
	return []resource.Route{{
		Name: "Registries_CheckNameAvailability", Plane: resource.PlaneManagement, Method: http.MethodPost, Pattern: namePath,
		Versions: resource.OneOf(apiVersions()...), Action: "Microsoft.ContainerRegistry/checkNameAvailability/read", Scope: subscriptionPath,
		Origin: resource.OriginAnywhere, Body: 4 << 10, Timeout: time.Minute, Audit: resource.AuditRead, Handler: p.checkName,
	}}
}

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
	if !namePattern.MatchString(name) {
		answer = map[string]any{"nameAvailable": false, "reason": "Invalid", "message": fmt.Sprintf("'%.60s' is not a valid registry name. %s.", name, nameRule)}
	} else if _, taken := p.ResourceOf(name); taken {
		answer = map[string]any{"nameAvailable": false, "reason": "AlreadyExists", "message": errTaken(name).Message}
	}
	if b, err = json.Marshal(answer); err != nil {
		return fmt.Errorf("encoding answer: %w", err)
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	_, err = w.Write(b)
	return err
}
