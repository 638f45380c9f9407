package network

import (
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"time"

	"casemate.dev/resource"
)

const connections = "/privateEndpointConnections"

// ConnectionsOf lists the private endpoint connections of a resource as its own provider shows them, in order of the
// endpoints' IDs.
func (p *Provider) ConnectionsOf(targetID string) []map[string]any {
	out := []map[string]any{}
	for _, d := range p.endpointsOf(targetID) {
		out = append(out, wireConnection(d))
	}
	return out
}

func (p *Provider) endpointsOf(targetID string) []*resource.Document {
	var out []*resource.Document
	for _, d := range p.view().list(endpointType) {
		if c, err := connectionOf(d); err == nil && strings.EqualFold(c.target, targetID) && statusOf(d) != disconnected {
			out = append(out, d)
		}
	}
	return out
}

func connectionName(d *resource.Document) string { return d.ID.Name() + "." + d.Recall("connectionId") }

func wireConnection(d *resource.Document) map[string]any {
	c, err := connectionOf(d)
	if err != nil {
		return nil // endpointsOf has read it
	}
	id, err := resource.ParseID(c.target)
	if err != nil {
		return nil
	}
	return map[string]any{
		"id": id.String() + connections + "/" + connectionName(d), "name": connectionName(d), "type": targetOf(id.Type()).typ + connections,
		"properties": map[string]any{
			"privateEndpoint":                   map[string]any{"id": d.ID.String()},
			"privateLinkServiceConnectionState": wireDecision(decisionOf(d)),
			"groupIds":                          []any{c.groupID},
			"provisioningState":                 resource.StateSucceeded,
		},
	}
}

// Routes are the rows below the resources that endpoints lead to: their connections, and what can be connected to.
func (p *Provider) Routes() []resource.Route {
	var out []resource.Route
	for _, t := range targets() {
		one := "/subscriptions/{subscriptionId}/resourceGroups/{resourceGroupName}/providers/" + t.typ + "/{resourceName}"
		stem := strings.ReplaceAll(strings.ReplaceAll(t.typ, ".", ""), "/", "_")
		row := func(name, method, pattern, action string, audit resource.Category, body int64, h resource.Handler) resource.Route {
			return resource.Route{Name: stem + "_" + name, Plane: resource.PlaneManagement, Method: method, Pattern: one + pattern, Versions: resource.AnyVersion(),
				Action: t.typ + action, Scope: one, Origin: resource.OriginAnywhere, Body: body, Timeout: time.Minute, Audit: audit, Handler: h}
		}
		named := connections + "/{connectionName}"
		out = append(out,
			row("PrivateEndpointConnections_List", http.MethodGet, connections, connections+"/read", resource.AuditRead, -1, p.listConnections),
			row("PrivateEndpointConnections_Get", http.MethodGet, named, connections+"/read", resource.AuditRead, -1, p.getConnection),
			row("PrivateEndpointConnections_Put", http.MethodPut, named, connections+"/write", resource.AuditWrite, 64<<10, p.putConnection),
			row("PrivateEndpointConnections_Delete", http.MethodDelete, named, connections+"/delete", resource.AuditWrite, 64<<10, p.deleteConnection))
		if t.typ != workspaceType { // whose own provider lists them
			out = append(out, row("PrivateLinkResources_List", http.MethodGet, "/privateLinkResources", "/privateLinkResources/read", resource.AuditRead, -1, p.listGroups))
		}
	}
	return out
}

// existing reads the resource that a row is about: what is not there has no connections.
func (p *Provider) existing(r *resource.Request) (resource.ID, error) {
	id, err := resource.ParseID(r.Scope)
	if err != nil {
		return id, err
	}
	d, err := p.cfg.Resources.Get(r.Context(), id)
	if err != nil {
		return id, err
	}
	return d.ID, nil
}

func (p *Provider) listConnections(w http.ResponseWriter, r *resource.Request) error {
	id, err := p.existing(r)
	if err != nil {
		return err
	}
	return writeJSON(w, map[string]any{"value": p.ConnectionsOf(id.String())})
}

func (p *Provider) find(r *resource.Request) (resource.ID, *resource.Document, error) {
	id, err := p.existing(r)
	if err != nil {
		return id, nil, err
	}
	for _, d := range p.endpointsOf(id.String()) {
		if strings.EqualFold(connectionName(d), r.Vars["connectionName"]) {
			return id, d, nil
		}
	}
	return id, nil, resource.Errorf(http.StatusNotFound, "PrivateEndpointConnectionNotFound", "The private endpoint connection '%s' of '%s' was not found.", r.Vars["connectionName"], id)
}

func (p *Provider) getConnection(w http.ResponseWriter, r *resource.Request) error {
	_, d, err := p.find(r)
	if err != nil {
		return err
	}
	return writeJSON(w, wireConnection(d))
}

// putConnection approves or rejects. It asks for the approval right besides the right to write, as creating an approved
// endpoint does.
func (p *Provider) putConnection(w http.ResponseWriter, r *resource.Request) error {
	raw, err := r.ReadBody()
	if err != nil {
		return err
	}
	body, err := resource.DecodeBody(raw)
	if err != nil {
		return err
	}
	if err := p.available(); err != nil {
		return err
	}
	id, d, err := p.find(r)
	if err != nil {
		return err
	}
	if !p.mayApprove(r.Caller, id) {
		return resource.Forbidden(r.Caller, targetOf(id.Type()).typ+approvalVerb, id.String())
	}
	const path = "properties.privateLinkServiceConnectionState"
	in := resource.Document{Body: body}
	status := ""
	for _, s := range []string{approved, rejected} {
		if strings.EqualFold(s, in.String(path+".status")) {
			status = s
		}
	}
	if status == "" {
		return resource.Invalid(path+".status", "The status '%s' is not valid. Use Approved or Rejected.", in.String(path+".status"))
	}
	if err := p.decide(r.Context(), d.ID, status, in.String(path+".description")); err != nil {
		return err
	}
	r.Remember("privateEndpoint", d.ID.String())
	r.Remember("status", status)
	if d = p.document(d.ID); d == nil {
		return resource.NotFound(id)
	}
	return writeJSON(w, wireConnection(d))
}

func (p *Provider) deleteConnection(w http.ResponseWriter, r *resource.Request) error {
	_, d, err := p.find(r)
	if resource.StatusOf(err) == http.StatusNotFound {
		w.WriteHeader(http.StatusNoContent)
		return nil
	}
	if err != nil {
		return err
	}
	r.Remember("privateEndpoint", d.ID.String())
	if err := p.decide(r.Context(), d.ID, disconnected, "The connection was deleted by the owner of the resource."); err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

func (p *Provider) listGroups(w http.ResponseWriter, r *resource.Request) error {
	id, err := p.existing(r)
	if err != nil {
		return err
	}
	list := []any{}
	for _, g := range targetOf(id.Type()).groups {
		if g.later {
			continue
		}
		list = append(list, map[string]any{"id": id.String() + "/privateLinkResources/" + g.id, "name": g.id, "type": targetOf(id.Type()).typ + "/privateLinkResources",
			"properties": map[string]any{"groupId": g.id, "requiredMembers": g.members, "requiredZoneNames": g.zones}})
	}
	return writeJSON(w, map[string]any{"value": list})
}

func writeJSON(w http.ResponseWriter, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	w.WriteHeader(http.StatusOK)
	_, _ = w.Write(b) // the peer may be gone
	return nil
}
