package network

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"casemate.dev/dataplane/network/plan"
	"casemate.dev/resource"
)

// batch collects the changes of a resource's children while the parent is being reconciled, so that network and subnets
// take effect together.
type batch struct {
	set   []*resource.Document
	unset []resource.ID
}

type batchKey struct{}

func withBatch(ctx context.Context, b *batch) context.Context {
	return context.WithValue(ctx, batchKey{}, b)
}

func batchOf(ctx context.Context) *batch {
	b, _ := ctx.Value(batchKey{}).(*batch)
	return b
}

// adopt takes a document into the state.
func (p *Provider) adopt(ctx context.Context, d *resource.Document) error {
	if b := batchOf(ctx); b != nil {
		b.set = append(b.set, d)
		return nil
	}
	return p.change(ctx, func(s state) error { s.set(d); return nil })
}

// forget takes a document out of the state.
func (p *Provider) forget(ctx context.Context, d *resource.Document) error {
	if b := batchOf(ctx); b != nil {
		b.unset = append(b.unset, d.ID)
		return nil
	}
	return p.change(ctx, func(s state) error { s.unset(d.ID); return nil })
}

// change changes the state and makes the kernel equal to it, before it returns. On an error the state is what it was, and
// the kernel is returned to it.
func (p *Provider) change(ctx context.Context, fn func(state) error) error {
	p.syncing.Lock()
	defer p.syncing.Unlock()
	p.mu.RLock()
	before := p.state
	p.mu.RUnlock()
	next := before.clone()
	if err := fn(next); err != nil {
		return err
	}
	if p.cfg.Unavailable != nil {
		p.replace(next)
		return nil
	}
	if next.equal(before) {
		return nil
	}
	compiled, broken, err := p.compile(ctx, next)
	if err != nil {
		return err
	}
	for key, err := range broken {
		if !p.broken[key] {
			return resource.Errorf(400, "NetworkConfigurationInvalid", "The virtual network would not be valid: %v.", err).WithCause(err)
		}
	}
	p.replace(next)
	err = p.applyLocked(ctx, next, compiled)
	if err == nil {
		p.broken = keysOf(broken)
		return nil
	}
	p.replace(before)
	if back, _, undo := p.compile(ctx, before); undo == nil {
		if undo = p.applyLocked(ctx, before, back); undo != nil {
			p.cfg.Logger.Error("returning to the networks before a failed change", "error", undo)
			p.again()
		}
	}
	return fmt.Errorf("changing networks: %w", err)
}

func (p *Provider) replace(s state) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.state = s
}

func keysOf(m map[string]error) map[string]bool {
	out := map[string]bool{}
	for k := range m {
		out[k] = true
	}
	return out
}

// compile makes the plan of a state. A network that cannot be compiled is left out, and named in broken: it must not
// keep the others from changing.
func (p *Provider) compile(ctx context.Context, s state) (*plan.Plan, map[string]error, error) {
	var all []plan.VirtualNetwork
	broken := map[string]error{}
	for _, d := range s.list(vnetType) {
		v, err := p.declared(s, d, func(target string) []string { return p.endpointNames(ctx, target) })
		if err == nil {
			_, err = p.cfg.Plane.Compile([]plan.VirtualNetwork{v})
		}
		if err != nil {
			broken[d.ID.Key()] = err
			continue
		}
		all = append(all, v)
	}
	compiled, err := p.cfg.Plane.Compile(all)
	if err != nil {
		return nil, nil, fmt.Errorf("compiling networks: %w", err)
	}
	return compiled, broken, nil
}

// applyLocked makes kernel, origins and listeners equal to a state; syncing is held.
func (p *Provider) applyLocked(ctx context.Context, s state, compiled *plan.Plan) error {
	if err := p.cfg.Plane.Apply(ctx, compiled); err != nil {
		return err
	}
	p.origins.Store(originsOf(s))
	return p.listenLocked(ctx, s, compiled)
}

// check says whether the state would be valid after some changes, without making them. Inside a batch, the parent has
// checked the whole.
func (p *Provider) check(ctx context.Context, fn func(state)) error {
	if batchOf(ctx) != nil {
		return nil
	}
	p.mu.RLock()
	before := p.state
	p.mu.RUnlock()
	next := before.clone()
	fn(next)
	_, broken, err := p.compile(ctx, next)
	if err != nil {
		return err
	}
	_, already, err := p.compile(ctx, before)
	if err != nil {
		return err
	}
	for key, err := range broken {
		if _, ok := already[key]; !ok {
			return resource.Errorf(400, "NetworkConfigurationInvalid", "The virtual network would not be valid: %v.", err).WithCause(err)
		}
	}
	return nil
}

// document reads a document of the state; nil when there is none. It must not be changed.
func (p *Provider) document(id resource.ID) *resource.Document {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.state.docs[id.Key()]
}

// view gives the present state for reading.
func (p *Provider) view() state {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.state // replaced, never changed
}

// Load reads the documents and makes the kernel equal to them. Nodes of an earlier process are gone with it; machines
// keep their namespaces. A network that cannot be made now is tried again by Run.
func (p *Provider) Load(ctx context.Context) error {
	s := newState()
	for _, t := range p.Types() {
		docs, err := p.cfg.Resources.List(ctx, t.Name, resource.Tenant)
		if err != nil {
			return fmt.Errorf("loading networks: %w", err)
		}
		for _, d := range docs {
			if d.State != resource.StateDeleting {
				s.set(d)
			}
		}
	}
	p.syncing.Lock()
	defer p.syncing.Unlock()
	p.replace(s)
	if p.cfg.Unavailable != nil {
		return nil
	}
	if err := p.restoreLocked(ctx); err != nil {
		p.cfg.Logger.Error("making networks", "error", err)
		p.again()
	}
	return nil
}

// restoreLocked applies the present state as it is.
func (p *Provider) restoreLocked(ctx context.Context) error {
	s := p.view()
	compiled, broken, err := p.compile(ctx, s)
	if err != nil {
		return err
	}
	for key, err := range broken {
		p.cfg.Logger.Error("leaving out a virtual network", "id", key, "error", err)
	}
	p.broken = keysOf(broken)
	return p.applyLocked(ctx, s, compiled)
}

func (p *Provider) again() {
	select {
	case p.dirty <- struct{}{}:
	default:
	}
}

const repairPause = 2 * time.Second

// Run repairs what could not be applied, until ctx ends; then it ends all that is served and waits for it.
func (p *Provider) Run(ctx context.Context) error {
	defer p.end()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-p.dirty:
		}
		if err := p.repair(ctx); err != nil && ctx.Err() == nil {
			p.cfg.Logger.Error("making networks", "error", err)
			timer := time.NewTimer(repairPause)
			select {
			case <-ctx.Done():
				timer.Stop()
				return nil
			case <-timer.C:
				p.again()
			}
		}
	}
}

// end waits until nothing is served any more. Whoever holds syncing may be about to serve something new; who takes it later
// sees that it is over.
func (p *Provider) end() {
	p.stop()
	p.syncing.Lock()
	//lint:ignore SA2001 a barrier: see above
	p.syncing.Unlock()
	p.serving.Wait()
}

func (p *Provider) repair(ctx context.Context) error {
	p.syncing.Lock()
	defer p.syncing.Unlock()
	return p.restoreLocked(ctx)
}

// Observe hears about resources that private endpoints lead to and about online endpoints. Register it for the types of
// ObservedTypes. A target that is deleted disconnects its endpoints for good: another resource of the same name is not
// the one whose owner approved them.
func (p *Provider) Observe(ctx context.Context, old, d *resource.Document) {
	switch {
	case old != nil && d == nil && targetOf(old.ID.Type()) != nil:
		for _, e := range p.view().list(endpointType) {
			c, err := connectionOf(e)
			if err != nil || !strings.EqualFold(c.target, old.ID.String()) {
				continue
			}
			if err := p.decide(ctx, e.ID, disconnected, "The resource was deleted."); err != nil && !errors.Is(err, context.Canceled) {
				p.cfg.Logger.Error("disconnecting a private endpoint", "id", e.ID.String(), "error", err)
			}
		}
	case (old == nil) != (d == nil) && p.cfg.Unavailable == nil:
		id := old
		if id == nil {
			id = d
		}
		if id.ID.Is(onlineEndpointType) && p.leadsTo(id.ID.Parent()) {
			p.again()
		}
	}
}

func (p *Provider) leadsTo(target resource.ID) bool {
	for _, e := range p.view().list(endpointType) {
		if c, err := connectionOf(e); err == nil && strings.EqualFold(c.target, target.String()) {
			return true
		}
	}
	return false
}

// ObservedTypes are those that Observe wants to hear of.
func ObservedTypes() []string {
	out := []string{onlineEndpointType}
	for _, t := range targets() {
		out = append(out, t.typ)
	}
	return out
}
