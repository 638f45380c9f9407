package identity

import (
	"crypto/subtle"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"casemate.dev/resource"
)

// NodeIdentity is what the registry of nodes knows of one node at this moment.
type NodeIdentity struct {
	Default    string   // ARM id of the managed identity that acts when a request names none; may be empty
	Identities []string // ARM ids of all managed identities of the node; Default need not be repeated
	Run        string   // the run that the node works for
	OnBehalfOf string   // object id of the person who submitted it
	Secret     string   // value of IDENTITY_HEADER and MSI_SECRET; "" closes those endpoints
}

func (n NodeIdentity) has(resourceID string) bool {
	return resourceID != "" && (strings.EqualFold(n.Default, resourceID) ||
		slices.ContainsFunc(n.Identities, func(id string) bool { return strings.EqualFold(id, resourceID) }))
}

// Nodes is the registry of nodes. NodeIdentity is asked on each use of a node's token: it must be quick, and false as
// soon as the node is gone.
type Nodes interface {
	NodeIdentity(nodeID string) (NodeIdentity, bool)
}

// JoinNodes makes the registry known. Before, nodes get no tokens and their tokens are refused.
func (s *Service) JoinNodes(n Nodes) { s.nodes.Store(&n) }

func (s *Service) node(id string) (NodeIdentity, bool) {
	n := s.nodes.Load()
	if n == nil || id == "" {
		return NodeIdentity{}, false
	}
	return (*n).NodeIdentity(id)
}

func (s *Service) nodeRoutes() []resource.Route {
	row := func(name, pattern, open string, h resource.Handler) resource.Route {
		return resource.Route{Name: name, Plane: resource.PlaneNode, Method: http.MethodGet, Pattern: pattern, Versions: resource.Unversioned(), Open: open,
			Origin: resource.OriginNodeOnly, Body: -1, Timeout: 30 * time.Second, Audit: resource.AuditSecret, Handler: h}
	}
	return []resource.Route{
		row("IMDS_Token", "/metadata/identity/oauth2/token", "the node's own socket says who asks, and the Metadata header that no redirected browser or proxy sends", s.imdsToken),
		row("MSI_Token", "/msi/token", "the node's own socket says who asks, and the secret that only its job was given", s.msiToken),
	}
}

// imdsToken is the endpoint of "How to use managed identities for Azure resources to acquire a token": GET with the header
// Metadata: true. A forwarded request is refused, because it was not made on the node.
func (s *Service) imdsToken(w http.ResponseWriter, r *resource.Request) error {
	q := r.URL.Query()
	switch {
	case !strings.EqualFold(r.Header.Get("Metadata"), "true"):
		return oauth(http.StatusBadRequest, "invalid_request", "Required metadata header not specified")
	case q.Get("api-version") == "":
		return oauth(http.StatusBadRequest, "invalid_request", "Required query variable 'api-version' is missing")
	case q.Get("api-version") < "2018-02-01":
		return oauth(http.StatusBadRequest, "invalid_request", "The api-version '%s' is not supported; use 2018-02-01 or newer", clip(q.Get("api-version")))
	}
	n, err := s.askingNode(r)
	if err != nil {
		return err
	}
	t, err := s.nodeToken(r, n, q.Get("resource"), identityChoice{
		clientID: q.Get("client_id"), objectID: q.Get("object_id"), resourceID: firstOf(q, "msi_res_id", "mi_res_id")})
	if err != nil {
		return err
	}
	seconds := s.secondsLeft(t)
	return s.writeNodeToken(w, t, map[string]any{"expires_in": seconds, "ext_expires_in": seconds})
}

// msiToken is IDENTITY_ENDPOINT with IDENTITY_HEADER (App Service, api-version 2019-08-01) and MSI_ENDPOINT with
// MSI_SECRET (Azure Machine Learning, 2017-09-01).
func (s *Service) msiToken(w http.ResponseWriter, r *resource.Request) error {
	q := r.URL.Query()
	var shown string
	choice := identityChoice{objectID: firstOf(q, "object_id", "principal_id"), resourceID: firstOf(q, "mi_res_id", "msi_res_id")}
	switch v := q.Get("api-version"); v {
	case "2019-08-01", "2025-03-30":
		shown, choice.clientID = r.Header.Get("X-IDENTITY-HEADER"), q.Get("client_id")
	case "2017-09-01":
		shown, choice.clientID = r.Header.Get("secret"), firstOf(q, "clientid", "client_id")
	default:
		return oauth(http.StatusBadRequest, "invalid_request", "The api-version '%s' is not supported; use 2019-08-01 or 2017-09-01", clip(v))
	}
	n, err := s.askingNode(r)
	if err != nil {
		return err
	}
	if n.Secret == "" || subtle.ConstantTimeCompare([]byte(n.Secret), []byte(shown)) != 1 {
		return oauth(http.StatusUnauthorized, "invalid_client", "The header that carries the endpoint's secret is missing or wrong")
	}
	t, err := s.nodeToken(r, n, q.Get("resource"), choice)
	if err != nil {
		return err
	}
	return s.writeNodeToken(w, t, nil)
}

// firstOf returns the first parameter of the names that is given.
func firstOf(q url.Values, names ...string) string {
	for _, n := range names {
		if v := q.Get(n); v != "" {
			return v
		}
	}
	return ""
}

// askingNode finds the node from the socket, and refuses requests that somebody has passed on.
func (s *Service) askingNode(r *resource.Request) (NodeIdentity, error) {
	for _, h := range []string{"X-Forwarded-For", "Forwarded", "X-Forwarded-Host", "Via"} {
		if r.Header.Get(h) != "" {
			return NodeIdentity{}, oauth(http.StatusBadRequest, "invalid_request", "A forwarded request is not answered")
		}
	}
	if r.Origin.Kind != resource.OriginNode {
		return NodeIdentity{}, oauth(http.StatusForbidden, "access_denied", "Only a node may ask for its identity's tokens")
	}
	n, ok := s.node(r.Origin.Node)
	if !ok {
		return NodeIdentity{}, oauth(http.StatusForbidden, "access_denied", "The node is not known or has ended")
	}
	return n, nil
}

// identityChoice names one of a node's identities; all empty is the default one.
type identityChoice struct{ clientID, objectID, resourceID string }

func (s *Service) nodeIdentity(n NodeIdentity, c identityChoice) (*object, error) {
	d := s.dir.Load()
	given := 0
	for _, v := range []string{c.clientID, c.objectID, c.resourceID} {
		if v != "" {
			given++
		}
	}
	var o *object
	switch {
	case given > 1:
		return nil, oauth(http.StatusBadRequest, "invalid_request", "Name the identity by one of client_id, object_id and msi_res_id only")
	case c.clientID != "":
		o = d.principals[strings.ToLower(c.clientID)]
	case c.objectID != "":
		o = d.objects[strings.ToLower(c.objectID)]
	case c.resourceID != "":
		o = d.resources[strings.ToLower(c.resourceID)]
	default:
		o = d.resources[strings.ToLower(n.Default)]
	}
	if o == nil || o.Kind != kindManagedIdentity || o.Disabled || !n.has(o.ResourceID) {
		return nil, oauth(http.StatusBadRequest, "invalid_request", "Identity not found")
	}
	return o, nil
}

func (s *Service) nodeToken(r *resource.Request, n NodeIdentity, audience string, c identityChoice) (Token, error) {
	if audience == "" {
		return Token{}, oauth(http.StatusBadRequest, "invalid_request", "Required query variable 'resource' is missing")
	}
	o, err := s.nodeIdentity(n, c)
	if err != nil {
		return Token{}, err
	}
	if s.urls.planeOf(audience) == "" {
		return Token{}, oauth(http.StatusBadRequest, "invalid_resource", "AADSTS500011: The resource principal named %s was not found in the tenant %s.", clip(audience), o.Tenant)
	}
	r.Remember("principal", o.ID)
	r.Remember("audience", audience)
	r.Remember("node", r.Origin.Node)
	r.Remember("run", n.Run)
	r.Remember("onBehalfOf", n.OnBehalfOf)
	return s.issueToNode(r.Origin.Node, n, o, audience)
}

func (s *Service) secondsLeft(t Token) string {
	return strconv.FormatInt(int64(t.Expires.Sub(s.cfg.Clock())/time.Second), 10)
}

func (s *Service) writeNodeToken(w http.ResponseWriter, t Token, more map[string]any) error {
	body := map[string]any{
		"access_token": t.Raw, "client_id": t.ClientID, "resource": t.Audience, "token_type": "Bearer",
		"expires_on": strconv.FormatInt(t.Expires.Unix(), 10), "not_before": strconv.FormatInt(t.NotBefore.Unix(), 10),
	}
	for k, v := range more {
		body[k] = v
	}
	for k, v := range noStore() {
		w.Header()[k] = v
	}
	return writeJSON(w, http.StatusOK, body)
}
