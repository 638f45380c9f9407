package network

import (
	"context"
	"net/http"
	"slices"
	"strings"

	"github.com/google/uuid"

	"casemate.dev/resource"
)

// Connection states. [Azure private endpoint overview, "Private endpoint connection states"] Only approved carries traffic.
const (
	pending      = "Pending"
	approved     = "Approved"
	rejected     = "Rejected"
	disconnected = "Disconnected"
)

const (
	autoPath   = "properties.privateLinkServiceConnections"
	manualPath = "properties.manualPrivateLinkServiceConnections"
)

// connection is the one private link service connection of an endpoint.
type connection struct {
	name, target, groupID string
	manual                bool
	message               string
	path                  string
}

// connectionOf reads the connection of a body.
func connectionOf(d *resource.Document) (connection, error) {
	auto, _ := d.Get(autoPath).([]any)
	manual, _ := d.Get(manualPath).([]any)
	c := connection{path: autoPath + "[0]"}
	list := auto
	if len(auto) == 0 {
		c.manual, c.path, list = true, manualPath+"[0]", manual
	}
	if len(auto)+len(manual) != 1 {
		return c, bad("InvalidRequestFormat", "A private endpoint needs exactly one connection, in privateLinkServiceConnections or in manualPrivateLinkServiceConnections.").WithTarget(autoPath)
	}
	m, _ := list[0].(map[string]any)
	in := resource.Document{Body: m}
	c.name, c.target, c.message = in.String("name"), in.String("properties.privateLinkServiceId"), in.String("properties.requestMessage")
	groups, err := stringsAt(&in, "properties.groupIds")
	if err != nil {
		return c, err
	}
	if len(groups) != 1 {
		return c, bad("InvalidRequestFormat", "A private endpoint connection needs exactly one group id.").WithTarget(c.path + ".properties.groupIds")
	}
	c.groupID = groups[0]
	return c, nil
}

// decision is what the target's owner decided, as it is remembered in Internal.
type decision struct {
	Status      string `json:"status"`
	Description string `json:"description"`
}

func decisionOf(d *resource.Document) decision {
	var out decision
	if err := recallInto(d, "decision", &out); err != nil || out.Status == "" {
		return decision{Status: pending}
	}
	return out
}

func statusOf(d *resource.Document) string { return decisionOf(d).Status }

func membersOf(d *resource.Document) []member {
	var out []member
	if err := recallInto(d, "members", &out); err != nil {
		return nil
	}
	return out
}

func (p *Provider) validateEndpoint(ctx context.Context, w *resource.Write) error {
	d := w.New
	err := refuseSet(d, map[string]string{
		"properties.applicationSecurityGroups": "Application security groups are not supported.",
		"properties.ipConfigurations":          "Static addresses of private endpoints are not supported: the platform chooses them.",
		"extendedLocation":                     "Extended locations are not supported.",
	})
	if err != nil {
		return err
	}
	for _, readOnly := range []string{"networkInterfaces", "customDnsConfigs"} {
		d.Unset("properties." + readOnly)
	}
	dropStates(d)
	c, err := connectionOf(d)
	if err != nil {
		return err
	}
	if w.Old != nil {
		return keepPlace(w, c)
	}
	subnet, err := p.join(w.Caller, d.String("properties.subnet.id"), "properties.subnet.id")
	if err != nil {
		return err
	}
	d.Set("properties.subnet.id", subnet.String())
	target, g, err := p.target(ctx, c)
	if err != nil {
		return err
	}
	s := p.view()
	if _, err := s.allocate(subnet, len(g.addresses(target, p.cfg.Domain))); err != nil {
		return err
	}
	p.request(w, c, target)
	return nil
}

// target reads the resource that a connection asks for.
func (p *Provider) target(ctx context.Context, c connection) (*resource.Document, group, error) {
	id, err := resource.ParseID(c.target)
	if err != nil {
		return nil, group{}, resource.Invalid(c.path+".properties.privateLinkServiceId", "'%s' is not a resource ID.", c.target)
	}
	g, err := findGroup(id, c.groupID)
	if err != nil {
		return nil, g, err
	}
	d, err := p.cfg.Resources.Get(ctx, id)
	if resource.StatusOf(err) == http.StatusNotFound || err == nil && d.State == resource.StateDeleting {
		return nil, g, missingReference(id).WithTarget(c.path + ".properties.privateLinkServiceId")
	}
	return d, g, err
}

// request asks the target's owner for approval: given at once when the caller is entitled to it and did not ask to wait.
func (p *Provider) request(w *resource.Write, c connection, target *resource.Document) {
	w.New.Remember("connectionId", uuid.NewString())
	out := decision{Status: pending, Description: c.message}
	if !c.manual && p.mayApprove(w.Caller, target.ID) {
		out = decision{Status: approved, Description: "Auto-Approved"}
	}
	w.New.Remember("decision", plain(out))
}

func (p *Provider) mayApprove(c resource.Caller, target resource.ID) bool {
	ok, _ := p.cfg.Authorize.Authorize(c, targetOf(target.Type()).typ+approvalVerb, false, target)
	return ok || c.Kind == resource.KindPlatform
}

// keepPlace refuses another subnet, target or group for an endpoint that exists: its approval is for what it was.
func keepPlace(w *resource.Write, c connection) error {
	old, err := connectionOf(w.Old)
	if err != nil {
		return err
	}
	if !strings.EqualFold(w.Old.String("properties.subnet.id"), w.New.String("properties.subnet.id")) {
		return bad("PrivateEndpointSubnetCannotBeChanged", "The subnet of private endpoint '%s' cannot be changed. Delete it and create it again.", w.New.ID.Name()).WithTarget("properties.subnet.id")
	}
	if !strings.EqualFold(old.target, c.target) || !strings.EqualFold(old.groupID, c.groupID) || old.manual != c.manual {
		return bad("PrivateLinkServiceConnectionCannotBeChanged", "The connection of private endpoint '%s' cannot be changed. Delete the endpoint and create it again.", w.New.ID.Name()).WithTarget(c.path)
	}
	return nil
}

// dropStates removes what only the platform says about connections.
func dropStates(d *resource.Document) {
	for _, path := range []string{autoPath, manualPath} {
		list, _ := d.Get(path).([]any)
		for _, e := range list {
			m, _ := e.(map[string]any)
			in := resource.Document{Body: m}
			for _, readOnly := range []string{"properties.privateLinkServiceConnectionState", "properties.provisioningState", "id", "type", "etag"} {
				in.Unset(readOnly)
			}
		}
	}
}

// reconcileEndpoint gives the endpoint its addresses, once, and opens it when it is approved.
func (p *Provider) reconcileEndpoint(ctx context.Context, d *resource.Document) error {
	c, err := connectionOf(d)
	if err != nil {
		return err
	}
	if len(membersOf(d)) > 0 {
		return p.adopt(ctx, d)
	}
	target, g, err := p.target(ctx, c)
	if err != nil {
		return err
	}
	subnet, err := resource.ParseID(d.String("properties.subnet.id"))
	if err != nil {
		return resource.Invalid("properties.subnet.id", "The subnet's resource ID is malformed.")
	}
	return p.change(ctx, func(s state) error {
		s.unset(d.ID)
		members := g.addresses(target, p.cfg.Domain)
		free, err := s.allocate(subnet, len(members))
		if err != nil {
			return err
		}
		for i := range members {
			members[i].Address = free[i].String()
		}
		d.Remember("members", plain(members))
		s.set(d)
		return nil
	})
}

// viewEndpoint shows the state of the connection and the names that resolve to the endpoint.
func (p *Provider) viewEndpoint(_ context.Context, d *resource.Document) {
	at := decisionOf(d)
	for _, path := range []string{autoPath, manualPath} {
		list, _ := d.Get(path).([]any)
		for _, e := range list {
			m, _ := e.(map[string]any)
			in := resource.Document{Body: m}
			in.Set("properties.privateLinkServiceConnectionState", wireDecision(at))
			in.Set("properties.provisioningState", resource.StateSucceeded)
			in.Set("id", d.ID.String()+strings.Replace(path, "properties.", "/", 1)+"/"+in.String("name"))
		}
	}
	configs := []any{}
	for _, m := range membersOf(d) {
		for _, n := range m.Names {
			configs = append(configs, map[string]any{"fqdn": n, "ipAddresses": []any{m.Address}})
		}
	}
	d.Set("properties.customDnsConfigs", configs)
	for _, path := range []string{"networkInterfaces", "manualPrivateLinkServiceConnections", "privateLinkServiceConnections"} {
		if d.Get("properties."+path) == nil {
			d.Set("properties."+path, []any{})
		}
	}
}

func wireDecision(s decision) map[string]any {
	return map[string]any{"status": s.Status, "description": s.Description, "actionsRequired": "None"}
}

// decide keeps a decision about an endpoint's connection and makes the kernel obey before it returns. A decision against
// traffic stands even when the kernel cannot be changed at once.
func (p *Provider) decide(ctx context.Context, endpoint resource.ID, status, why string) error {
	d, err := p.cfg.Resources.Update(ctx, endpoint, func(d *resource.Document) error {
		if now := statusOf(d); now == disconnected || status != disconnected && !slices.Contains([]string{approved, rejected}, status) {
			return resource.Errorf(http.StatusConflict, "PrivateEndpointConnectionStateInvalid", "The connection is %s and cannot become %s.", now, status)
		}
		d.Remember("decision", plain(decision{status, why}))
		return nil
	})
	if err != nil {
		return err
	}
	return p.force(ctx, func(s state) { s.set(d) })
}
