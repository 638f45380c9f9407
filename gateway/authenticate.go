package gateway

import (
	"net/http"

	"casemate.dev/resource"
)

// authenticate finds the caller. Nobody is a caller too, but gets only to rows that are Open. A credential that was offered
// and is wrong is always an error. A node's token is good only on connections from that node.
func (g *Gateway) authenticate(x *exchange) error {
	r := x.r
	if x.plane.Authenticate != nil {
		c, err := x.plane.Authenticate(r)
		if err != nil {
			return err
		}
		r.Caller = c
	}
	if n := r.Caller.Node; n != "" && n != r.Origin.Node {
		return resource.Errorf(http.StatusUnauthorized, "InvalidAuthenticationToken", "The access token was issued to a node and is valid on that node only.")
	}
	open := r.Route != nil && r.Route.Open != ""
	if r.Caller.Anonymous() && !open && x.plane.Authenticate != nil {
		return resource.Errorf(http.StatusUnauthorized, "AuthenticationFailed", "Authentication failed. The 'Authorization' header is missing or holds no token. Sign in and send a bearer token.")
	}
	return x.missing
}
