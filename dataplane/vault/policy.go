package vault

import (
	"context"
	"net/http"
	"strings"
	"time"

	"casemate.dev/resource"
)

// rotationPolicy is a key's rotation policy as its object's record holds it. Durations are as the client spelled them.
type rotationPolicy struct {
	Expiry  string   `json:"expiry,omitempty"` // what new versions live
	Rotate  *trigger `json:"rotate,omitempty"`
	Notify  *trigger `json:"notify,omitempty"`
	Created int64    `json:"created"`
	Updated int64    `json:"updated"`
}

// trigger says when something happens in the life of a version: exactly one field is set.
type trigger struct {
	AfterCreate  string `json:"timeAfterCreate,omitempty"`
	BeforeExpiry string `json:"timeBeforeExpiry,omitempty"`
}

// The words of actions, compared without regard to case.
const (
	actionRotate = "Rotate"
	actionNotify = "Notify"
)

// nearExpiry is when the end of a version is announced where no policy says it.
const nearExpiry = "P30D"

// Limits of Key Vault on rotation policies.
const (
	leastExpiry  = 28 * 24 * time.Hour
	leastTrigger = 7 * 24 * time.Hour
)

// at is the time a trigger fires for a version; ok is false where it never does.
func (t *trigger) at(v *version) (at int64, ok bool) {
	switch {
	case t == nil:
	case t.AfterCreate != "":
		if d, err := parseDuration(t.AfterCreate); err == nil { // checked when the policy was set
			return d.after(time.Unix(v.Created, 0)).Unix(), true
		}
	case v.Expires != nil:
		if d, err := parseDuration(t.BeforeExpiry); err == nil {
			return d.before(time.Unix(*v.Expires, 0)).Unix(), true
		}
	}
	return 0, false
}

// policyBody is Key Vault's KeyRotationPolicy.
type policyBody struct {
	ID              string           `json:"id,omitempty"`
	LifetimeActions []lifetimeAction `json:"lifetimeActions"`
	Attributes      policyAttributes `json:"attributes"`
}

type lifetimeAction struct {
	Trigger trigger `json:"trigger"`
	Action  struct {
		Type string `json:"type"`
	} `json:"action"`
}

type policyAttributes struct {
	ExpiryTime *string `json:"expiryTime"`
	Created    *int64  `json:"created,omitempty"`
	Updated    *int64  `json:"updated,omitempty"`
}

// check reads what a client sent.
func (b policyBody) check() (*rotationPolicy, error) {
	p := &rotationPolicy{}
	var life time.Duration // 0: versions do not expire
	if e := b.Attributes.ExpiryTime; e != nil && *e != "" {
		d, err := parseDuration(*e)
		if err != nil {
			return nil, err
		}
		if p.Expiry, life = *e, d.length(); life < leastExpiry {
			return nil, badParameter("The policy's 'expiryTime' must be at least 28 days.")
		}
	}
	for _, a := range b.LifetimeActions {
		into := &p.Rotate
		switch {
		case strings.EqualFold(a.Action.Type, actionRotate):
		case strings.EqualFold(a.Action.Type, actionNotify):
			into = &p.Notify
		default:
			return nil, badParameter("The lifetime action '%s' is not supported. Use Rotate or Notify.", clip(a.Action.Type, 40))
		}
		if *into != nil {
			return nil, badParameter("The policy has more than one lifetime action %s.", a.Action.Type)
		}
		if err := a.Trigger.check(into == &p.Rotate, life); err != nil {
			return nil, err
		}
		*into = &a.Trigger
	}
	return p, nil
}

func (t trigger) check(rotates bool, life time.Duration) error {
	if (t.AfterCreate == "") == (t.BeforeExpiry == "") {
		return badParameter("A lifetime action's trigger must have either 'timeAfterCreate' or 'timeBeforeExpiry'.")
	}
	if !rotates && t.AfterCreate != "" {
		return badParameter("The lifetime action Notify takes 'timeBeforeExpiry' only.")
	}
	if rotates && t.BeforeExpiry != "" && life == 0 {
		return badParameter("The trigger 'timeBeforeExpiry' of Rotate needs the policy's 'expiryTime'.")
	}
	d, err := parseDuration(t.AfterCreate + t.BeforeExpiry) // one is empty
	if err != nil {
		return err
	}
	switch {
	case d.length() < leastTrigger:
		return badParameter("The trigger '%s' must be at least 7 days.", t.AfterCreate+t.BeforeExpiry)
	case life != 0 && d.length() > life-leastTrigger:
		return badParameter("The trigger '%s' must leave at least 7 days of the policy's 'expiryTime'.", t.AfterCreate+t.BeforeExpiry)
	}
	return nil
}

// show is p as clients see it; a key without a policy has the default one, which only notifies.
func (p *rotationPolicy) show(id string) policyBody {
	out := policyBody{ID: id, LifetimeActions: []lifetimeAction{}}
	if p == nil {
		p = &rotationPolicy{Notify: &trigger{BeforeExpiry: nearExpiry}}
	} else {
		out.Attributes.Created, out.Attributes.Updated = &p.Created, &p.Updated
	}
	if p.Expiry != "" {
		out.Attributes.ExpiryTime = &p.Expiry
	}
	if p.Rotate != nil {
		out.LifetimeActions = append(out.LifetimeActions, newLifetimeAction(actionRotate, *p.Rotate))
	}
	if p.Notify != nil {
		out.LifetimeActions = append(out.LifetimeActions, newLifetimeAction(actionNotify, *p.Notify))
	}
	return out
}

func newLifetimeAction(word string, t trigger) lifetimeAction {
	a := lifetimeAction{Trigger: t}
	a.Action.Type = word
	return a
}

func (s *Service) getRotationPolicy(w http.ResponseWriter, r *resource.Request) error {
	t, err := s.targetOf(r, keys)
	if err != nil {
		return err
	}
	var o object
	err = s.view(r.Context(), t.vault, func(h shelf) (err error) {
		o, _, err = h.live(keys, t.name, "")
		return err
	})
	if err != nil {
		return err
	}
	return writeJSON(w, o.Policy.show(s.policyURL(t.vault, o)))
}

func (s *Service) policyURL(vault Vault, o object) string {
	return s.objectURL(vault, keys, o.Name) + "/rotationpolicy"
}

func (s *Service) setRotationPolicy(w http.ResponseWriter, r *resource.Request) error {
	t, err := s.targetOf(r, keys)
	if err != nil {
		return err
	}
	var body policyBody
	if err := readBody(r, &body); err != nil {
		return err
	}
	p, err := body.check()
	if err != nil {
		return err
	}
	var o object
	err = s.update(r.Context(), t.vault, func(b bench) error {
		var v version
		var err error
		if o, v, err = b.live(keys, t.name, ""); err != nil {
			return err
		}
		if err := o.free(keys, "set rotation policy"); err != nil {
			return err
		}
		now := s.now().Unix()
		p.Created, p.Updated = now, now
		if o.Policy != nil {
			p.Created = o.Policy.Created
		}
		o.Policy = p
		b.schedule(keys, &o, &v)
		return b.putObject(keys, o)
	})
	if err != nil {
		return err
	}
	s.stir()
	return writeJSON(w, p.show(s.policyURL(t.vault, o)))
}

// successor makes the next version of a key: of the same type, size and operations, with the life that the policy gives.
func (s *Service) successor(k *key, p *rotationPolicy) (*version, error) {
	size, curve := len(k.oct)*8, ""
	if k.rsa != nil {
		size = k.rsa.N.BitLen()
	}
	if k.ec != nil {
		curve = k.ec.Params().Name
	}
	m, err := generate(k.Key.Kty, size, curve, k.Key.Ops)
	if err != nil {
		return nil, err
	}
	now := s.now()
	v := &version{ID: newVersionID(), Enabled: true, Created: now.Unix(), Updated: now.Unix(), Tags: k.Tags, Key: m}
	if p != nil && p.Expiry != "" {
		d, err := parseDuration(p.Expiry)
		if err != nil {
			return nil, err
		}
		exp := min(d.after(now).Unix(), maxUnix)
		v.Expires = &exp
	}
	return v, nil
}

// rotateDue rotates a key whose policy says so, if the version that the entry was made for is still the current one: one
// rotation for one entry, also when replicas meet.
func (s *Service) rotateDue(ctx context.Context, vault Vault, d due) error {
	o, k, err := s.load(ctx, vault, d.name, "")
	if refusal(err) { // deleted since
		return s.drop(ctx, d)
	}
	if err != nil {
		return err
	}
	if !o.wants(taskRotate, d.at) {
		return s.drop(ctx, d)
	}
	v, err := s.successor(k, o.Policy)
	if err != nil {
		return err
	}
	rotated := false
	err = s.update(ctx, vault, func(b bench) error {
		rotated = false
		b.tx.Delete(d.key)
		now, _, err := b.live(keys, d.name, "")
		switch {
		case refusal(err):
			return nil
		case err != nil:
			return err
		case now.Current != k.ID || !now.wants(taskRotate, d.at):
			return nil
		}
		rotated = true
		now.Current = v.ID
		if err := b.putVersion(keys, now.Name, nil, v); err != nil {
			return err
		}
		b.schedule(keys, &now, v)
		return b.putObject(keys, now)
	})
	if err != nil || !rotated {
		return err
	}
	s.cfg.Rotated(s.objectURL(vault, keys, o.Name))
	s.event(EventNewVersion, vault, keys, o.Name, v)
	return nil
}

// notifyDue tells that a version is about to expire, once.
func (s *Service) notifyDue(ctx context.Context, vault Vault, d due) error {
	var told *version
	var name string
	err := s.view(ctx, vault, func(h shelf) error {
		o, v, err := h.live(d.kind, d.name, "")
		switch {
		case refusal(err):
			return nil
		case err != nil:
			return err
		}
		if o.wants(taskNotify, d.at) {
			told, name = &v, o.Name
		}
		return nil
	})
	if err != nil {
		return err
	}
	if told != nil {
		s.event(EventNearExpiry, vault, d.kind, name, told)
	}
	return s.update(ctx, vault, func(b bench) error {
		b.tx.Delete(d.key)
		o, err := b.object(d.kind, d.name)
		if refusal(err) || err == nil && !o.wants(taskNotify, d.at) {
			return nil
		}
		if err != nil {
			return err
		}
		delete(o.Tasks, taskNotify)
		o.Told = o.Current
		return b.putObject(d.kind, o)
	})
}
