package network

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"casemate.dev/control/operation"
	datanet "casemate.dev/dataplane/network"
	"casemate.dev/dataplane/network/plan"
	"casemate.dev/resource"
	"casemate.dev/store"
	"casemate.dev/store/storetest"
)

const (
	subscription = "/subscriptions/00000000-0000-0000-0000-000000000001"
	rg           = subscription + "/resourceGroups/rg"
	net1         = rg + "/providers/Microsoft.Network/virtualNetworks/net1"
	nsg1         = rg + "/providers/Microsoft.Network/networkSecurityGroups/nsg1"
	pe1          = rg + "/providers/Microsoft.Network/privateEndpoints/pe1"
	vault1       = rg + "/providers/Microsoft.KeyVault/vaults/kv1"
	account1     = rg + "/providers/Microsoft.Storage/storageAccounts/acct1"
	workspace1   = rg + "/providers/Microsoft.MachineLearningServices/workspaces/ws1"
	zone1        = rg + "/providers/Microsoft.Network/privateDnsZones/privatelink.vaultcore.azure.net"
	machine1     = rg + "/providers/Casemate.Network/attachedMachines/laptop"
	port         = 8443
)

var (
	admin    = resource.Caller{Kind: resource.KindUser, Object: "admin", Name: "admin"}
	stranger = resource.Caller{Kind: resource.KindUser, Object: "stranger", Name: "stranger"}
	platform = resource.Caller{Kind: resource.KindPlatform, Object: "platform", Name: "Casemate"}
)

// rights allows the administrator everything, and everybody what was granted.
type rights struct {
	mu      sync.Mutex
	granted map[string]bool // object id + action
}

func (r *rights) Authorize(c resource.Caller, action string, _ bool, _ resource.ID) (bool, string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return c.Object == "admin" || r.granted[c.Object+" "+action], ""
}

func (r *rights) grant(c resource.Caller, action string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.granted[c.Object+" "+action] = true
}

// kernel is a data plane without a kernel: it keeps the plan and hands out listeners that the test feeds.
type kernel struct {
	mu        sync.Mutex
	applied   *plan.Plan
	applies   int
	fail      error
	listeners map[string]*listener // network or node, and address
	opened    chan string          // keys of listeners, as they are opened; dropped when nobody reads
}

func newKernel() *kernel {
	return &kernel{applied: &plan.Plan{}, listeners: map[string]*listener{}, opened: make(chan string, 64)}
}

func (k *kernel) Compile(declared []plan.VirtualNetwork) (*plan.Plan, error) {
	return plan.Compile(plan.InstanceName("test"), declared)
}

func (k *kernel) Apply(_ context.Context, p *plan.Plan) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.fail != nil {
		return k.fail
	}
	k.applied = p
	k.applies++
	for _, l := range k.listeners {
		if !l.stands(p) {
			l.Close()
		}
	}
	return nil
}

func (k *kernel) Listen(_ context.Context, networkID, addr string) (net.Listener, error) {
	return k.listen(&listener{network: networkID, at: netip.MustParseAddrPort(addr)})
}

func (k *kernel) ListenNode(_ context.Context, nodeID, addr string) (net.Listener, error) {
	return k.listen(&listener{node: nodeID, at: netip.MustParseAddrPort(addr)})
}

func (k *kernel) listen(l *listener) (net.Listener, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !l.stands(k.applied) {
		return nil, datanet.ErrUnknown
	}
	key := strings.ToLower(l.network+l.node) + " " + l.at.String()
	if old := k.listeners[key]; old != nil && !old.isClosed() {
		return nil, fmt.Errorf("%s is in use", key)
	}
	l.conns, l.closed = make(chan net.Conn), make(chan struct{})
	k.listeners[key] = l
	select {
	case k.opened <- key:
	default:
	}
	return l, nil
}

func (k *kernel) NodeNamespace(nodeID string) (string, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	_, a, ok := k.applied.Node(nodeID)
	if !ok {
		return "", datanet.ErrUnknown
	}
	return "/run/netns/" + a.Namespace, nil
}

func (k *kernel) open() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	var out []string
	for _, key := range slices.Sorted(maps.Keys(k.listeners)) {
		if !k.listeners[key].isClosed() {
			out = append(out, key[strings.LastIndexByte(key, '/')+1:])
		}
	}
	return out
}

type listener struct {
	network, node string
	at            netip.AddrPort
	conns         chan net.Conn
	once          sync.Once
	closed        chan struct{}
}

func (l *listener) stands(p *plan.Plan) bool {
	if l.node != "" {
		_, _, ok := p.Node(l.node)
		return ok
	}
	n, ok := p.Network(l.network)
	if !ok {
		return false
	}
	_, ok = n.Endpoint(l.at)
	return ok || n.IsPlatform(l.at)
}

func (l *listener) isClosed() bool {
	select {
	case <-l.closed:
		return true
	default:
		return false
	}
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *listener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *listener) Addr() net.Addr { return net.TCPAddrFromAddrPort(l.at) }

// connected is a connection with an origin.
type connected struct {
	net.Conn
	o datanet.Origin
}

func (c connected) Origin() datanet.Origin { return c.o }

type harness struct {
	t       testing.TB
	store   store.Store
	plane   Plane
	kernel  *kernel // the plane, unless the test brought its own
	rights  *rights
	p       *Provider
	engine  *operation.Engine
	origins chan resource.Origin
	inUse   map[string]bool
	stop    func()
}

func newHarness(t *testing.T) *harness {
	k := newKernel()
	h := newHarnessOn(t, k)
	h.kernel = k
	return h
}

func newHarnessOn(t testing.TB, plane Plane) *harness {
	h := &harness{t: t, store: storetest.New(t), plane: plane, rights: &rights{granted: map[string]bool{}}, origins: make(chan resource.Origin, 16), inUse: map[string]bool{}}
	h.start(nil)
	for _, id := range []string{subscription, rg} {
		h.put(id, `{"location":"local"}`)
	}
	t.Cleanup(func() { h.stop() })
	return h
}

// serve reports the origin of each connection.
func (h *harness) serve(_ context.Context, l net.Listener, origin func(net.Conn) resource.Origin) error {
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		h.origins <- origin(c)
		c.Close()
	}
}

func (h *harness) start(unavailable error) {
	h.t.Helper()
	late := &lateResources{}
	var err error
	h.p, err = New(Config{Resources: late, Plane: h.plane, Unavailable: unavailable, Authorize: h.rights, Serve: h.until, ServeNode: h.until,
		Domain: "casemate.test", Port: port, Platform: platform,
		InUse: func(_ context.Context, id resource.ID) error {
			if h.inUse[id.Key()] {
				return resource.Errorf(http.StatusConflict, "ResourceInUse", "in use")
			}
			return nil
		}})
	h.check(err)
	h.engine, err = operation.New(operation.Config{Store: h.store, Types: append(others(), h.p.Types()...), Authorize: h.rights, BaseURL: "https://management.casemate.test",
		Clock: time.Now, Handle: func(context.Context, string) (operation.Handle, error) { return nil, errors.New("no handles here") }})
	h.check(err)
	late.Resources = h.engine
	for _, typ := range ObservedTypes() {
		h.engine.Watch(typ, h.p.Observe)
	}
	h.check(h.engine.Load(h.t.Context()))
	h.check(h.p.Load(h.t.Context()))
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { h.engine.Run(ctx) })
	wg.Go(func() { h.p.Run(ctx) })
	h.stop = func() { cancel(); wg.Wait() }
}

// until ends serving with the context, as a server does.
func (h *harness) until(ctx context.Context, l net.Listener, origin func(net.Conn) resource.Origin) error {
	defer context.AfterFunc(ctx, func() { l.Close() })()
	return h.serve(ctx, l, origin)
}

type lateResources struct{ resource.Resources }

// others are types of other providers.
func others() []resource.Type {
	v := []string{"2021-04-01"}
	workspaceID := func(_ context.Context, w *resource.Write) error {
		w.New.Set("properties.workspaceId", "guid-"+w.New.ID.Name())
		return nil
	}
	return []resource.Type{
		{Name: "Microsoft.Resources/subscriptions", Level: resource.AtSubscriptionRaw, APIVersions: v, Created: 200},
		{Name: "Microsoft.Resources/subscriptions/resourceGroups", Level: resource.AtSubscriptionRaw, APIVersions: v, Created: 201},
		{Name: "Microsoft.KeyVault/vaults", Level: resource.AtResourceGroup, APIVersions: v, Created: 201},
		{Name: "Microsoft.Storage/storageAccounts", Level: resource.AtResourceGroup, APIVersions: v, Created: 201},
		{Name: workspaceType, Level: resource.AtResourceGroup, APIVersions: v, Created: 201, Validate: workspaceID},
		{Name: onlineEndpointType, APIVersions: v, Created: 201},
	}
}

func (h *harness) check(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
}

func (h *harness) tryPut(c resource.Caller, id, body string) (*resource.Document, error) {
	h.t.Helper()
	b, err := resource.DecodeBody([]byte(body))
	h.check(err)
	return h.engine.Put(h.t.Context(), c, resource.MustParseID(id), b)
}

func (h *harness) put(id, body string) *resource.Document {
	h.t.Helper()
	d, err := h.tryPut(admin, id, body)
	if err != nil {
		h.t.Fatalf("PUT %s: %v", id, err)
	}
	return d
}

func (h *harness) delete(id string) {
	h.t.Helper()
	h.check(h.engine.Delete(h.t.Context(), admin, resource.MustParseID(id)))
}

// refused checks the code of an error.
func (h *harness) refused(err error, code string) {
	h.t.Helper()
	var e *resource.Error
	if !errors.As(err, &e) || e.Code != code {
		h.t.Errorf("got %v, want %s", err, code)
	}
}

// get is what a client sees.
func (h *harness) get(id string) *resource.Document {
	h.t.Helper()
	d, err := h.engine.Get(h.t.Context(), resource.MustParseID(id))
	h.check(err)
	for _, typ := range h.p.Types() {
		if d.ID.Is(typ.Name) && typ.View != nil {
			typ.View(h.t.Context(), d)
		}
	}
	return d
}

func (h *harness) plan() *plan.Plan {
	h.kernel.mu.Lock()
	defer h.kernel.mu.Unlock()
	return h.kernel.applied
}

func (h *harness) network(id string) *plan.Network {
	h.t.Helper()
	n, ok := h.plan().Network(id)
	if !ok {
		h.t.Fatalf("network %s is not applied", id)
	}
	return n
}

// names resolves inside a network.
func (h *harness) names(network string) map[string]string {
	out := map[string]string{}
	for _, r := range h.network(network).Records {
		out[r.Name] = strings.TrimSpace(out[r.Name] + " " + r.IP.String())
	}
	return out
}

// row runs one of the provider's own rows.
func (h *harness) row(c resource.Caller, method, scope, rest, body string) (int, string) {
	h.t.Helper()
	id := resource.MustParseID(scope)
	for _, rt := range h.p.Routes() {
		h.check(rt.Validate())
		tail := rest
		vars := map[string]string{}
		if strings.HasSuffix(rt.Pattern, "/{connectionName}") {
			i := strings.LastIndexByte(rest, '/')
			vars["connectionName"] = rest[i+1:]
			tail = rest[:i+1] + "{connectionName}"
		}
		if rt.Method != method || !strings.HasSuffix(rt.Pattern, id.Type()+"/{resourceName}"+tail) {
			continue
		}
		req := httptest.NewRequest(method, "https://management.casemate.test"+scope+rest, strings.NewReader(body))
		w := httptest.NewRecorder()
		err := rt.Handler(w, &resource.Request{Request: req, Route: &rt, Vars: vars, Scope: scope, Caller: c})
		if err != nil {
			return resource.StatusOf(err), resource.AsError(err).Code
		}
		return w.Code, w.Body.String()
	}
	h.t.Fatalf("no row for %s %s%s", method, scope, rest)
	return 0, ""
}
