package network

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"

	"casemate.dev/dataplane/network/plan"
	"casemate.dev/resource"
)

// The types that this provider declares.
const (
	vnetType      = "Microsoft.Network/virtualNetworks"
	subnetType    = vnetType + "/subnets"
	groupType     = "Microsoft.Network/networkSecurityGroups"
	ruleType      = groupType + "/securityRules"
	endpointType  = "Microsoft.Network/privateEndpoints"
	zoneGroupType = endpointType + "/privateDnsZoneGroups"
	zoneType      = "Microsoft.Network/privateDnsZones"
	recordType    = zoneType + "/A"
	linkType      = zoneType + "/virtualNetworkLinks"
	machineType   = "Casemate.Network/attachedMachines"
)

// Actions at other resources than the one written (linked scopes).
const (
	joinSubnet   = subnetType + "/join/action"
	joinNetwork  = vnetType + "/join/action"
	joinGroup    = groupType + "/join/action"
	joinZone     = zoneType + "/join/action"
	approvalVerb = "/privateEndpointConnectionsApproval/action"
)

// Plane is the data plane; *network.Network is.
type Plane interface {
	Compile(declared []plan.VirtualNetwork) (*plan.Plan, error)
	Apply(ctx context.Context, p *plan.Plan) error
	Listen(ctx context.Context, networkID, addr string) (net.Listener, error)
	ListenNode(ctx context.Context, nodeID, addr string) (net.Listener, error)
	NodeNamespace(nodeID string) (string, error)
}

// Authorizer decides about linked scopes.
type Authorizer interface {
	Authorize(c resource.Caller, action string, isData bool, scope resource.ID) (allowed bool, reason string)
}

// Serve serves the connections of l, each with the origin that the function tells, until l is closed or ctx ends.
type Serve func(ctx context.Context, l net.Listener, origin func(net.Conn) resource.Origin) error

// Config is what a Provider needs; every field without a default is required.
type Config struct {
	Resources   resource.Resources
	Plane       Plane
	Unavailable error // why networks cannot be built on this machine (network.SelfTest); nil: they can
	Authorize   Authorizer
	Serve       Serve // private endpoints and the platform's address: TLS
	ServeNode   Serve // instance metadata inside nodes: plain HTTP
	Domain      string
	Port        uint16                                          // the platform's public port, as in its URLs
	Platform    resource.Caller                                 // on whose behalf child resources are made
	InUse       func(ctx context.Context, id resource.ID) error // refuses the deletion of what other providers use; default: nothing does
	Logger      *slog.Logger                                    // default: the default logger
}

// Provider is safe for concurrent use.
type Provider struct {
	cfg Config

	// syncing is held while the kernel is made equal to the state; it guards places and broken. Never taken
	// by somebody who holds mu, and never held while a document is written.
	syncing sync.Mutex
	places  map[place]net.Listener
	broken  map[string]bool // keys of networks that cannot be compiled, which are left out

	mu    sync.RWMutex // guards state
	state state

	origins atomic.Pointer[origins]
	serving sync.WaitGroup
	ctx     context.Context // of all that is served; ends with Run
	stop    context.CancelFunc
	dirty   chan struct{} // asks Run to synchronise again
}

// New makes a Provider. Call Load after control/operation has loaded its documents, then Run.
func New(cfg Config) (*Provider, error) {
	if cfg.Resources == nil || cfg.Plane == nil && cfg.Unavailable == nil || cfg.Authorize == nil || cfg.Serve == nil || cfg.ServeNode == nil ||
		cfg.Domain == "" || cfg.Port == 0 || cfg.Platform.Anonymous() {
		return nil, errors.New("configuring the network provider: Resources, Plane, Authorize, Serve, ServeNode, Domain, Port and Platform are required")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.InUse == nil {
		cfg.InUse = func(context.Context, resource.ID) error { return nil }
	}
	p := &Provider{cfg: cfg, places: map[place]net.Listener{}, broken: map[string]bool{}, state: newState(), dirty: make(chan struct{}, 1)}
	p.origins.Store(&origins{})
	p.ctx, p.stop = context.WithCancel(context.Background())
	return p, nil
}

func networkVersions() []string {
	return []string{"2024-05-01", "2024-01-01", "2023-11-01", "2023-09-01", "2023-04-01", "2022-07-01", "2022-01-01", "2021-08-01", "2021-02-01",
		"2020-11-01", "2020-05-01", "2019-11-01", "2019-04-01", "2018-11-01"}
}

func zoneVersions() []string { return []string{"2024-06-01", "2020-06-01", "2020-01-01", "2018-09-01"} }

// Types declares the resource types.
func (p *Provider) Types() []resource.Type {
	types := []resource.Type{
		{Name: vnetType, Level: resource.AtResourceGroup, Tracked: true, Validate: p.validateNetwork, Reconcile: p.reconcileNetwork,
			Remove: p.forget, MayRemove: p.mayRemoveNetwork, View: p.viewNetwork},
		{Name: subnetType, Validate: p.validateSubnet, Reconcile: p.adopt, Remove: p.removeSubnet, MayRemove: p.mayRemoveSubnet},
		{Name: groupType, Level: resource.AtResourceGroup, Tracked: true, Validate: p.validateGroup, Reconcile: p.reconcileGroup,
			Remove: p.removeGroup, MayRemove: p.mayRemoveGroup, View: p.viewGroup},
		{Name: ruleType, Validate: p.validateRule, Reconcile: p.adopt, Remove: p.forget},
		{Name: endpointType, Level: resource.AtResourceGroup, Tracked: true, Validate: p.validateEndpoint, Reconcile: p.reconcileEndpoint,
			Remove: p.forget, View: p.viewEndpoint},
		{Name: zoneGroupType, Validate: p.validateZoneGroup, Reconcile: p.reconcileZoneGroup, Remove: p.removeZoneGroup},
		{Name: zoneType, Level: resource.AtResourceGroup, Tracked: true, APIVersions: zoneVersions(), NamePattern: zonePattern,
			NameRule: "Use a domain name of 2 to 34 labels", Validate: p.validateZone, Reconcile: p.adopt, Remove: p.forget, MayRemove: p.mayRemoveZone},
		{Name: recordType, APIVersions: zoneVersions(), NamePattern: recordPattern, NameRule: "Use @, *, or labels of letters, digits, hyphens and underscores",
			Validate: p.validateRecord, Reconcile: p.adopt, Remove: p.forget},
		{Name: linkType, Tracked: true, APIVersions: zoneVersions(), Validate: p.validateLink, Reconcile: p.adopt, Remove: p.forget},
		{Name: machineType, Level: resource.AtResourceGroup, Tracked: true, APIVersions: []string{"2025-01-01"},
			Validate: p.validateMachine, Reconcile: p.reconcileMachine, Remove: p.forget},
	}
	for i := range types {
		t := &types[i]
		t.Created = http.StatusCreated
		if t.APIVersions == nil {
			t.APIVersions = networkVersions()
		}
		validate := t.Validate
		t.Validate = func(ctx context.Context, w *resource.Write) error {
			if err := p.available(); err != nil {
				return err
			}
			return validate(ctx, w)
		}
	}
	return types
}

// available refuses what this machine's kernel could not be made to do.
func (p *Provider) available() error {
	if p.cfg.Unavailable == nil {
		return nil
	}
	return resource.Errorf(http.StatusServiceUnavailable, "VirtualNetworksUnavailable",
		"Virtual networks need a server that runs as root with CAP_SYS_ADMIN and CAP_NET_ADMIN: %v.", p.cfg.Unavailable).WithCause(p.cfg.Unavailable)
}

// linked checks an action at a resource that the request only refers to.
func (p *Provider) linked(c resource.Caller, action string, scope resource.ID, target string) error {
	if c.Kind == resource.KindPlatform {
		return nil
	}
	if ok, _ := p.cfg.Authorize.Authorize(c, action, false, scope); ok {
		return nil
	}
	return resource.Errorf(http.StatusForbidden, "LinkedAuthorizationFailed",
		"The client '%s' with object id '%s' does not have permission to perform action '%s' on the linked scope '%s'.", c.DisplayName(), c.Object, action, scope).WithTarget(target)
}

// CheckJoin says whether a caller may put something into a subnet: it must exist, and the caller hold the action
// Microsoft.Network/virtualNetworks/subnets/join/action there.
func (p *Provider) CheckJoin(c resource.Caller, subnetID string) error {
	if err := p.available(); err != nil {
		return err
	}
	_, err := p.join(c, subnetID, "properties.subnet.id")
	return err
}

// join is CheckJoin for a property; it returns the subnet in the spelling of its creator.
func (p *Provider) join(c resource.Caller, subnetID, target string) (resource.ID, error) {
	id, err := resource.ParseID(subnetID)
	if err != nil || !id.Is(subnetType) {
		return id, resource.Invalid(target, "'%s' is not the resource ID of a subnet.", subnetID)
	}
	// The right comes first: without it, nothing is said about which subnets exist.
	if err := p.linked(c, joinSubnet, id, target); err != nil {
		return id, err
	}
	d := p.document(id)
	if d == nil {
		return id, missingReference(id).WithTarget(target)
	}
	return d.ID, nil
}

func missingReference(id resource.ID) *resource.Error {
	return resource.Errorf(http.StatusBadRequest, "InvalidResourceReference", "The resource '%s' that the request refers to was not found. Create it first.", id)
}

// Foresee refuses with what is free when a subnet cannot take n more addresses: to be asked before a cluster may grow to n.
func (p *Provider) Foresee(subnetID string, n int) error {
	id, err := resource.ParseID(subnetID)
	if err != nil {
		return resource.Invalid("properties.subnet.id", "'%s' is not the resource ID of a subnet.", subnetID)
	}
	p.mu.RLock()
	defer p.mu.RUnlock()
	s, err := p.state.subnet(id)
	if err != nil {
		return err
	}
	return exhausted(plan.Foresee(s, p.state.taken(id), n))
}

// exhausted makes the public error of a full subnet.
func exhausted(err error) error {
	var full *plan.ExhaustedError
	if errors.As(err, &full) {
		return resource.Errorf(http.StatusBadRequest, "SubnetIsFull", "Subnet '%s' with address prefix '%s' has no room for %d more addresses: of %d, %d are reserved, %d in use and %d free. Use a larger subnet or ask for less.",
			full.Subnet, full.Prefix, full.Wanted, full.Size, full.Reserved, full.Used, full.Free).WithCause(err)
	}
	return err
}

func addresses(list []string) []netip.Addr {
	var out []netip.Addr
	for _, s := range list {
		if a, err := netip.ParseAddr(s); err == nil {
			out = append(out, a)
		}
	}
	return out
}
