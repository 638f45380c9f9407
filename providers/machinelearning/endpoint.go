package machinelearning

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"regexp"
	"strings"

	"casemate.dev/dataplane/scoring"
	"casemate.dev/resource"
	"casemate.dev/store"
)

func (p *Provider) endpointType() resource.Type {
	return resource.Type{
		Name: endpointType, APIVersions: versions, Owner: workspaceType, Async: true, Tracked: true, Created: http.StatusCreated,
		NamePattern: regexp.MustCompile(`^[a-zA-Z][a-zA-Z0-9-]{1,30}[a-zA-Z0-9]$`),
		NameRule:    "Use 3 to 32 letters, digits and hyphens, begin with a letter and do not end with a hyphen",
		Validate:    p.validateEndpoint, Reconcile: p.reconcileEndpoint, Remove: p.removeEndpoint, View: p.viewEndpoint, Filter: filterAssets,
		Actions: []resource.Action{
			{Name: "listKeys", Permission: endpointType + "/listkeys/action", Audit: resource.AuditSecret, Handler: p.listEndpointKeys},
			{Name: "regenerateKeys", Permission: endpointType + "/regeneratekeys/action", Audit: resource.AuditSecret, Handler: p.regenerateKeys},
			{Name: "token", Permission: endpointType + "/token/action", Audit: resource.AuditSecret, Handler: p.endpointToken},
		},
	}
}

func (p *Provider) validateEndpoint(ctx context.Context, w *resource.Write) error {
	d := w.New
	for _, name := range []string{"scoringUri", "swaggerUri", "keys"} {
		d.Unset("properties." + name)
	}
	ws, err := p.workspaceOf(ctx, d.ID)
	if err != nil {
		return err
	}
	if err := p.checkEndpointName(ctx, w); err != nil {
		return err
	}
	if err := checkAuthMode(w); err != nil {
		return err
	}
	if mirror, _ := d.Get("properties.mirrorTraffic").(map[string]any); len(mirror) > 0 {
		return resource.NotSupported("Mirrored traffic is not supported. Leave mirrorTraffic empty.")
	}
	if c := d.String("properties.compute"); c != "" {
		return resource.NotSupported("Endpoints on attached compute are not supported. Leave 'compute' out for a managed endpoint.")
	}
	if err := checkText(d); err != nil {
		return err
	}
	if err := p.checkTraffic(ctx, d); err != nil {
		return err
	}
	switch v := d.String("properties.publicNetworkAccess"); strings.ToLower(v) {
	case "enabled", "disabled":
	case "": // what nobody has asked for is not opened wider than the workspace
		wsDoc, err := p.cfg.Resources.Get(ctx, ws.id)
		if err != nil {
			return err
		}
		d.Set("properties.publicNetworkAccess", wsDoc.String("properties.publicNetworkAccess"))
	default:
		return resource.Invalid("properties.publicNetworkAccess", "The value '%s' is not Enabled or Disabled.", v)
	}
	if d.Get("identity") == nil {
		d.Set("identity.type", "SystemAssigned")
	}
	if subnet := d.String("properties.properties.subnetId"); subnet != "" && (w.Old == nil || !strings.EqualFold(subnet, w.Old.String("properties.properties.subnetId"))) {
		return p.checkSubnet(ctx, w.Caller, "properties.properties.subnetId", subnet)
	}
	return nil
}

func (p *Provider) checkEndpointName(ctx context.Context, w *resource.Write) error {
	other, taken := p.EndpointOf(ctx, w.New.ID.Name(), w.New.Location())
	if w.Old == nil && taken && !other.Equal(w.New.ID) {
		return resource.Errorf(http.StatusConflict, "EndpointNameTaken", "The endpoint name '%s' is in use in region '%s'. Choose another name.", w.New.ID.Name(), w.New.Location())
	}
	return nil
}

func checkAuthMode(w *resource.Write) error {
	switch mode := w.New.String("properties.authMode"); strings.ToLower(mode) {
	case "key":
		w.New.Set("properties.authMode", scoring.ModeKey)
	case "aadtoken":
		w.New.Set("properties.authMode", scoring.ModeToken)
	case "amltoken":
		return resource.NotSupported("The authMode AMLToken is not supported. Use AADToken, whose tokens can be revoked by role, or Key.")
	default:
		return resource.Invalid("properties.authMode", "The authMode '%s' is not Key or AADToken.", mode)
	}
	if w.Old != nil && !sameValue(w.Old.Get("properties.authMode"), w.New.Get("properties.authMode")) {
		return resource.Errorf(http.StatusBadRequest, "PropertyChangeNotAllowed", "The authMode of an endpoint cannot be changed.").WithTarget("properties.authMode")
	}
	return nil
}

// trafficOf reads the shares of an endpoint.
func trafficOf(d *resource.Document) (map[string]int, error) {
	var v struct {
		Properties struct {
			Traffic map[string]int `json:"traffic"`
		} `json:"properties"`
	}
	if err := d.Into(&v); err != nil {
		return nil, err
	}
	return v.Properties.Traffic, nil
}

func (p *Provider) checkTraffic(ctx context.Context, d *resource.Document) error {
	const target = "properties.traffic"
	traffic, err := trafficOf(d)
	if err != nil {
		return err
	}
	total := 0
	for name, share := range traffic {
		if share < 0 || share > 100 {
			return resource.Invalid(target+"."+name, "A share of traffic is 0 to 100 percent, not %d.", share)
		}
		total += share
		id, err := d.ID.Child("deployments", name)
		if err != nil {
			return resource.Invalid(target, "'%s' is not the name of a deployment.", clip(name))
		}
		if share == 0 {
			continue
		}
		if dep, err := p.cfg.Resources.Get(ctx, id); err != nil || dep.State != resource.StateSucceeded {
			return resource.Invalid(target+"."+name, "The deployment '%s' does not exist or has not succeeded, so it can take no traffic.", clip(name))
		}
	}
	if total != 0 && total != 100 {
		return resource.Invalid(target, "The shares of traffic add up to %d percent. They must add up to 100, or all be 0.", total)
	}
	return nil
}

func (p *Provider) reconcileEndpoint(ctx context.Context, d *resource.Document) error {
	ws, err := p.workspaceOf(ctx, d.ID)
	if err != nil {
		return err
	}
	if err := p.claimEndpointName(ctx, d); err != nil {
		return err
	}
	if system := d.String("identity.principalId"); system != "" {
		grants, err := endpointGrants(ws)
		if err != nil {
			return err
		}
		if err := p.grant(ctx, system, grants); err != nil {
			return err
		}
	}
	if _, err := p.endpointKeys(ctx, ws, d.ID); !errors.Is(err, store.ErrNotFound) {
		return err
	}
	return p.putEndpointKeys(ctx, ws, d.ID, endpointKeys{newEndpointKey(), newEndpointKey()})
}

// claimEndpointName takes the host name; two endpoints that were validated at once are told apart here.
func (p *Provider) claimEndpointName(ctx context.Context, d *resource.Document) error {
	key := endpointIndexKey(d.Location(), d.ID.Name())
	err := p.cfg.Store.Update(ctx, func(t store.Txn) error {
		kv, err := t.Get(key)
		if err == nil && strings.EqualFold(string(kv.Value), d.ID.String()) {
			return nil
		}
		return t.CompareAndSet(key, 0, []byte(d.ID.String()))
	})
	if errors.Is(err, store.ErrConflict) {
		return resource.Errorf(http.StatusConflict, "EndpointNameTaken", "The endpoint name '%s' is in use in region '%s'. Choose another name.", d.ID.Name(), d.Location())
	}
	return err
}

func (p *Provider) removeEndpoint(ctx context.Context, d *resource.Document) error {
	if d.Body != nil { // readable: its key stands
		ws, err := p.workspaceOf(ctx, d.ID)
		if err != nil {
			return err
		}
		if system := d.String("identity.principalId"); system != "" {
			grants, err := endpointGrants(ws)
			if err != nil {
				return err
			}
			if err := p.revoke(ctx, system, grants); err != nil {
				return err
			}
		}
	}
	return p.cfg.Store.Update(ctx, func(t store.Txn) error {
		t.Delete(endpointKeysKey(d.ID))
		for kv, err := range t.Scan(store.Prefix("machinelearning", "endpoint"), store.ScanOptions{}) {
			if err != nil {
				return err
			}
			if strings.EqualFold(string(kv.Value), d.ID.String()) {
				t.Delete(kv.Key)
			}
		}
		return nil
	})
}

func (p *Provider) viewEndpoint(_ context.Context, d *resource.Document) {
	host := p.cfg.Authority(strings.ToLower(d.ID.Name()) + "." + d.Location() + ".inference." + p.cfg.Domain)
	d.Set("properties.scoringUri", "https://"+host+"/score")
	d.Set("properties.keys", nil)
	if d.String("kind") == "" {
		d.Set("kind", "Managed")
	}
	for _, name := range []string{"traffic", "mirrorTraffic", "properties"} {
		if d.Get("properties."+name) == nil {
			d.Set("properties."+name, map[string]any{})
		}
	}
}

// endpointKeys are the two keys of an endpoint, kept sealed under the workspace's key:
//
//	machinelearning/endpointkeys/{endpoint id}   sealed endpointKeys
type endpointKeys struct {
	Primary   string `json:"primaryKey"`
	Secondary string `json:"secondaryKey"`
}

func endpointKeysKey(id resource.ID) string {
	return store.Key("machinelearning", "endpointkeys", id.Key())
}

// newEndpointKey makes a key of 256 bits.
func newEndpointKey() string {
	b := make([]byte, 32)
	_, _ = rand.Read(b) // never fails (crypto/rand)
	return base64.RawURLEncoding.EncodeToString(b)
}

// endpointKeys reads an endpoint's keys; store.ErrNotFound if there are none yet.
func (p *Provider) endpointKeys(ctx context.Context, ws workspace, id resource.ID) (endpointKeys, error) {
	var k endpointKeys
	var kv store.KV
	err := p.cfg.Store.View(ctx, func(r store.Reader) (err error) { kv, err = r.Get(endpointKeysKey(id)); return err })
	if err != nil {
		return k, err
	}
	h, err := p.cfg.Handles(ctx, ws.id.Key())
	if err != nil {
		return k, err
	}
	plain, err := h.OpenBytes(kv.Key, kv.Value)
	if err != nil {
		return k, err
	}
	if err := json.Unmarshal(plain, &k); err != nil {
		return k, fmt.Errorf("decoding keys of %s: %w", id, err)
	}
	return k, nil
}

func (p *Provider) putEndpointKeys(ctx context.Context, ws workspace, id resource.ID, k endpointKeys) error {
	h, err := p.cfg.Handles(ctx, ws.id.Key())
	if err != nil {
		return err
	}
	plain, err := json.Marshal(k)
	if err != nil {
		return err
	}
	sealed, err := h.SealBytes(endpointKeysKey(id), plain)
	if err != nil {
		return err
	}
	return p.cfg.Store.Update(ctx, func(t store.Txn) error { t.Put(endpointKeysKey(id), sealed); return nil })
}

func demandKeyMode(d *resource.Document) error {
	if d.String("properties.authMode") != scoring.ModeKey {
		return resource.Errorf(http.StatusBadRequest, "EndpointHasNoKeys", "The endpoint '%s' takes tokens (AADToken), not keys.", d.ID.Name())
	}
	return nil
}

func (p *Provider) listEndpointKeys(ctx context.Context, d *resource.Document, _ *resource.Request) (any, error) {
	if err := demandKeyMode(d); err != nil {
		return nil, err
	}
	ws, err := p.workspaceOf(ctx, d.ID)
	if err != nil {
		return nil, err
	}
	return p.endpointKeys(ctx, ws, d.ID)
}

func (p *Provider) regenerateKeys(ctx context.Context, d *resource.Document, r *resource.Request) (any, error) {
	if err := demandKeyMode(d); err != nil {
		return nil, err
	}
	raw, err := r.ReadBody()
	if err != nil {
		return nil, err
	}
	body, err := resource.DecodeBody(raw)
	if err != nil {
		return nil, err
	}
	req := resource.Document{Body: body}
	if req.String("keyValue") != "" {
		return nil, resource.NotSupported("Keys are generated here. Leave keyValue out.")
	}
	ws, err := p.workspaceOf(ctx, d.ID)
	if err != nil {
		return nil, err
	}
	p.mu.Lock() // two at once would each bring back the key that the other replaced
	defer p.mu.Unlock()
	k, err := p.endpointKeys(ctx, ws, d.ID)
	if err != nil {
		return nil, err
	}
	switch typ := req.String("keyType"); strings.ToLower(typ) {
	case "primary":
		k.Primary = newEndpointKey()
	case "secondary":
		k.Secondary = newEndpointKey()
	default:
		return nil, resource.Invalid("keyType", "The keyType '%s' is not Primary or Secondary.", typ)
	}
	if err := p.putEndpointKeys(ctx, ws, d.ID, k); err != nil {
		return nil, err
	}
	return &resource.Response{Status: http.StatusOK}, nil
}

func (p *Provider) endpointToken(_ context.Context, d *resource.Document, _ *resource.Request) (any, error) {
	return nil, resource.Errorf(http.StatusBadRequest, "TokenNotAvailable",
		"The endpoint '%s' issues no tokens of its own. With authMode AADToken, get one from the token service for the resource %s; with Key, use listKeys.", d.ID.Name(), defaultRunAudience)
}

// Endpoint implements scoring.Endpoints.
func (p *Provider) Endpoint(ctx context.Context, id resource.ID) (scoring.Endpoint, error) {
	d, err := p.cfg.Resources.Get(ctx, id)
	if err != nil {
		return scoring.Endpoint{}, err
	}
	e := scoring.Endpoint{ID: d.ID, Mode: d.String("properties.authMode"), Traffic: map[string]int{}}
	shares, err := trafficOf(d)
	if err != nil {
		return e, err
	}
	deployments, err := p.cfg.Resources.List(ctx, deploymentType, d.ID)
	if err != nil {
		return e, err
	}
	for _, dep := range deployments {
		e.Traffic[dep.ID.Name()] = 0
		for name, share := range shares {
			if strings.EqualFold(name, dep.ID.Name()) {
				e.Traffic[dep.ID.Name()] = share
			}
		}
	}
	if e.Mode != scoring.ModeKey {
		return e, nil
	}
	ws, err := p.workspaceOf(ctx, d.ID)
	if err != nil {
		return e, err
	}
	k, err := p.endpointKeys(ctx, ws, d.ID)
	if err != nil {
		return e, err
	}
	e.Keys = []string{k.Primary, k.Secondary}
	return e, nil
}

// DialInstance connects to a port of an instance's node.
func (p *Provider) DialInstance(ctx context.Context, node string, port int) (net.Conn, error) {
	subnet, address, ok := p.registry.Place(node)
	if !ok {
		return nil, fmt.Errorf("dialing node %s: it is gone", node)
	}
	id, err := resource.ParseID(subnet)
	if err != nil {
		return nil, fmt.Errorf("dialing node %s: %w", node, err)
	}
	return p.cfg.Dial(ctx, id.Parent().String(), netip.AddrPortFrom(address, uint16(port)).String())
}

// Borrow implements scoring.Endpoints.
func (p *Provider) Borrow(deployment resource.ID) (node string, release func(), ok bool) {
	return p.serving.Borrow(deployment.String())
}
