package resource

import "net/netip"

// PrincipalKind says what a caller is.
type PrincipalKind string

// The kinds of principals, spelled as role assignments spell principalType, and two that hold no assignment.
const (
	KindAnonymous        PrincipalKind = ""
	KindUser             PrincipalKind = "User"
	KindServicePrincipal PrincipalKind = "ServicePrincipal"
	KindManagedIdentity  PrincipalKind = "ManagedIdentity" // a ServicePrincipal to RBAC
	KindPlatform         PrincipalKind = "Platform"        // the platform acting for a Caller in OnBehalfOf
)

// Caller is who makes a request, as the authenticate stage found it. The zero Caller is nobody: it holds no role.
type Caller struct {
	Kind       PrincipalKind
	Tenant     string   // tid, GUID
	Object     string   // oid, GUID; what role assignments name
	App        string   // appid, GUID; empty for users of no application
	Name       string   // display name or user principal name
	Groups     []string // object ids of the groups the principal is in, nested ones included, as of now
	Audience   string   // the aud of its token
	TokenID    string   // uti/jti of its token, for the audit trail
	ResourceID string   // ARM id of a managed identity (xms_mirid); else empty
	// Node and Run say which node the token was handed to and which job ran there; empty outside nodes.
	Node, Run string
	// OnBehalfOf is the object id of the person behind a shared identity (row I8): who submitted the job that acts.
	OnBehalfOf string
}

// Anonymous says whether nobody was authenticated.
func (c Caller) Anonymous() bool { return c.Kind == KindAnonymous || c.Object == "" }

// DisplayName is what messages call the caller.
func (c Caller) DisplayName() string {
	switch {
	case c.Name != "":
		return c.Name
	case c.App != "":
		return c.App
	case c.Object != "":
		return c.Object
	}
	return "anonymous"
}

// Person is the object id that an audit question "who was it" wants: the person behind, else the caller.
func (c Caller) Person() string {
	if c.OnBehalfOf != "" {
		return c.OnBehalfOf
	}
	return c.Object
}

// OriginKind says by which kind of socket a connection entered.
type OriginKind int

// The kinds of origin; the zero value is unknown and is refused everywhere.
const (
	OriginUnknown  OriginKind = iota
	OriginPublic              // the public listener
	OriginPrivate             // a private endpoint's listener inside a virtual network
	OriginNode                // a listener inside one node's namespace (instance metadata)
	OriginInternal            // in process, one plane acting for a caller on another
)

func (k OriginKind) String() string {
	return [...]string{"unknown", "public", "privateEndpoint", "node", "internal"}[min(max(int(k), 0), 4)]
}

// Origin is where a connection entered, taken from the socket that accepted it and from nothing else.
type Origin struct {
	Kind            OriginKind
	Network         string // ARM id of the virtual network, for private and node origins
	Subnet          string // ARM id of the subnet the peer is attached to, when known
	PrivateEndpoint string // ARM id of the private endpoint, for private origins
	Target          string // ARM id of the resource the private endpoint leads to: the only one reachable through it
	GroupID         string // the private endpoint's sub-resource: blob, vault, registry, amlworkspace …
	Node            string // node (or attached machine) at the other end, when known
	Remote          netip.AddrPort
}
