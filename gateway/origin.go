package gateway

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"

	"casemate.dev/resource"
)

// Documents reads control-plane documents from memory; control/operation's engine.
type Documents interface {
	Get(ctx context.Context, id resource.ID) (*resource.Document, error)
}

type originKey struct{}

// withOrigin attaches what the accepting socket says to the connection's context.
func withOrigin(ctx context.Context, o resource.Origin) context.Context {
	return context.WithValue(ctx, originKey{}, o)
}

func originOf(ctx context.Context) resource.Origin {
	o, _ := ctx.Value(originKey{}).(resource.Origin)
	return o
}

// origin compares where the connection entered with what the resource allows.
//
//   - A private endpoint leads to its own resource and to nothing else; through one with no target (the platform's address in
//     each virtual network) only the resource manager and the token service are reached.
//   - From the public listener, the resource's publicNetworkAccess and networkAcls decide.
//   - A node's own listener leads to the node plane only (the receive stage saw to that).
func (g *Gateway) origin(x *exchange) error {
	r := x.r
	o := r.Origin
	switch {
	case o.Kind == resource.OriginUnknown:
		return resource.Errorf(http.StatusForbidden, "OriginNotAllowed", "The connection's origin is unknown.")
	case (o.Kind == resource.OriginNode) != (r.Route.Origin == resource.OriginNodeOnly):
		return resource.Errorf(http.StatusForbidden, "OriginNotAllowed", "This operation is for nodes only.")
	case r.Route.Origin == resource.OriginNodeOnly:
		return nil
	case o.Kind == resource.OriginPrivate && o.Target != "" && !leadsTo(o.Target, r.Resource):
		return refusedOrigin(r, "This private endpoint leads to another resource.")
	case r.Route.Origin == resource.OriginAnywhere:
		return nil
	case r.Resource == "":
		return fmt.Errorf("route %s has the origin rule of a resource but its host names none", r.Route.Name)
	case o.Kind == resource.OriginPrivate:
		if o.Target == "" {
			return refusedOrigin(r, "Reach this resource through a private endpoint of its own.")
		}
		return nil
	}
	id, err := resource.ParseID(r.Resource)
	if err != nil {
		return fmt.Errorf("reading the resource of host %q: %w", r.Host, err)
	}
	doc, err := g.cfg.Documents.Get(r.Context(), id)
	if err != nil {
		return err
	}
	return publicAccess(r, doc)
}

// leadsTo says whether a private endpoint's target is the resource or holds it: a workspace's endpoint leads to the
// workspace's online endpoints as well.
func leadsTo(target, id string) bool {
	t, err := resource.ParseID(target)
	if err != nil {
		return false
	}
	r, err := resource.ParseID(id)
	return err == nil && !r.IsTenant() && t.Contains(r)
}

func publicAccess(r *resource.Request, doc *resource.Document) error {
	switch lower(doc.String("properties.publicNetworkAccess")) {
	case "disabled", "securedbyperimeter":
		return refusedOrigin(r, "Public network access is disabled and the request did not come through an approved private endpoint.")
	}
	if lower(doc.String("properties.networkAcls.defaultAction")) != "deny" {
		return nil
	}
	rules, _ := doc.Get("properties.networkAcls.ipRules").([]any)
	for _, e := range rules {
		m, _ := e.(map[string]any)
		value, _ := m["value"].(string)
		if ipRuleHolds(value, r.Origin.Remote.Addr()) {
			return nil
		}
	}
	return refusedOrigin(r, fmt.Sprintf("The client address %s is not allowed by the resource's network rules.", r.Origin.Remote.Addr()))
}

func ipRuleHolds(rule string, addr netip.Addr) bool {
	if p, err := netip.ParsePrefix(rule); err == nil {
		return p.Contains(addr.Unmap())
	}
	a, err := netip.ParseAddr(rule)
	return err == nil && a == addr.Unmap()
}

// refusedOrigin is 403 in the words of the plane's service.
func refusedOrigin(r *resource.Request, why string) error {
	code := "Forbidden"
	switch r.Route.Plane {
	case resource.PlaneBlob:
		code = "AuthorizationFailure"
	case resource.PlaneRegistry:
		code = "DENIED"
	case resource.PlaneVault:
		code = "ForbiddenByConnection"
	}
	return resource.Errorf(http.StatusForbidden, code, "%s Connect from a network that has a private endpoint of the resource, or ask its administrator.", why)
}

// remoteOf is the peer's address of an accepted connection.
func remoteOf(c net.Conn) netip.AddrPort {
	ap, _ := netip.ParseAddrPort(c.RemoteAddr().String())
	return ap
}
