package identity

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"casemate.dev/resource"
	"casemate.dev/store"
)

// kind of a directory object, spelled as Graph spells its types.
type kind string

const (
	kindUser             kind = "User"
	kindGroup            kind = "Group"
	kindApplication      kind = "Application"
	kindServicePrincipal kind = "ServicePrincipal"
	kindManagedIdentity  kind = "ManagedIdentity" // a service principal without credentials
)

type tenant struct {
	ID      string
	Name    string
	Home    bool
	Created time.Time
}

// object is one record of the directory. Objects in a directory are immutable: a change puts a copy.
type object struct {
	ID, Tenant string // GUIDs, lower-case
	Kind       kind
	Name       string   // displayName
	UPN        string   `json:",omitempty"` // users: userPrincipalName
	Mail       string   `json:",omitempty"`
	App        string   `json:",omitempty"` // applications, service principals and managed identities: appId
	URIs       []string `json:",omitempty"` // applications: identifierUris
	ResourceID string   `json:",omitempty"` // managed identities: ARM id of the identity or of the resource that it is of
	Members    []string `json:",omitempty"` // groups: object ids
	Secrets    []secret `json:",omitempty"` // applications and service principals
	Disabled   bool     `json:",omitempty"`
	// Epoch moves when every token of the principal must end: on disabling, and when sessions are revoked.
	Epoch   int64
	Created time.Time
}

func (o *object) clone() *object {
	c := *o
	c.URIs, c.Members, c.Secrets = slices.Clone(o.URIs), slices.Clone(o.Members), slices.Clone(o.Secrets)
	return &c
}

// principalType is how role assignments spell the kind; "" for what can hold no role.
func (o *object) principalType() string {
	switch o.Kind {
	case kindUser, kindGroup, kindServicePrincipal:
		return string(o.Kind)
	case kindManagedIdentity:
		return string(kindServicePrincipal)
	}
	return ""
}

// directory is an immutable snapshot of all records with the indexes that requests need.
type directory struct {
	home         string
	tenants      map[string]*tenant
	objects      map[string]*object
	principals   map[string]*object  // by appId: the service principal or managed identity
	applications map[string]*object  // by appId
	resources    map[string]*object  // managed identities by lower-case ARM id
	upns         map[string]*object  // users by lower-case userPrincipalName
	groups       map[string][]string // object id → ids of all groups it is in, nested ones included, sorted
}

func buildDirectory(tenants map[string]*tenant, objects map[string]*object) *directory {
	d := &directory{
		tenants: tenants, objects: objects, principals: map[string]*object{}, applications: map[string]*object{},
		resources: map[string]*object{}, upns: map[string]*object{}, groups: map[string][]string{},
	}
	for _, t := range tenants {
		if t.Home {
			d.home = t.ID
		}
	}
	memberOf := map[string][]string{}
	for _, o := range objects {
		switch o.Kind {
		case kindUser:
			d.upns[strings.ToLower(o.UPN)] = o
		case kindApplication:
			d.applications[o.App] = o
		case kindServicePrincipal:
			d.principals[o.App] = o
		case kindManagedIdentity:
			d.principals[o.App] = o
			d.resources[strings.ToLower(o.ResourceID)] = o
		case kindGroup:
			for _, m := range o.Members {
				memberOf[m] = append(memberOf[m], o.ID)
			}
		}
	}
	for id := range memberOf {
		d.groups[id] = closure(memberOf, id)
	}
	return d
}

// closure follows membership upwards; a group that contains itself, over whatever detour, is met once.
func closure(memberOf map[string][]string, id string) []string {
	seen := map[string]bool{}
	queue := []string{id}
	for len(queue) > 0 {
		for _, g := range memberOf[queue[0]] {
			if !seen[g] {
				seen[g] = true
				queue = append(queue, g)
			}
		}
		queue = queue[1:]
	}
	return slices.Sorted(maps.Keys(seen))
}

// change is what one write does to the directory.
type change struct {
	tenant *tenant
	put    []*object
	remove []string // object ids
}

func objectKey(id string) string { return store.Key("identity", "object", id) }
func tenantKey(id string) string { return store.Key("identity", "tenant", id) }

// changeLocked makes a change durable and then visible. The caller holds mu since it read what it changes.
func (s *Service) changeLocked(ctx context.Context, c change) error {
	type record struct {
		key   string
		value []byte
	}
	var records []record
	seal := func(key string, v any) error {
		b, err := s.seal(key, v)
		records = append(records, record{key, b})
		return err
	}
	if c.tenant != nil {
		if err := seal(tenantKey(c.tenant.ID), c.tenant); err != nil {
			return err
		}
	}
	for _, o := range c.put {
		if err := seal(objectKey(o.ID), o); err != nil {
			return err
		}
	}
	err := s.cfg.Store.Update(ctx, func(tx store.Txn) error {
		for _, r := range records {
			tx.Put(r.key, r.value)
		}
		for _, id := range c.remove {
			tx.Delete(objectKey(id))
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("writing the directory: %w", err)
	}
	old := s.dir.Load()
	tenants, objects := maps.Clone(old.tenants), maps.Clone(old.objects)
	if c.tenant != nil {
		tenants[c.tenant.ID] = c.tenant
	}
	for _, o := range c.put {
		objects[o.ID] = o
	}
	for _, id := range c.remove {
		delete(objects, id)
	}
	s.dir.Store(buildDirectory(tenants, objects))
	return nil
}

func (s *Service) seal(key string, v any) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encoding a directory record: %w", err)
	}
	sealed, err := s.cfg.Sealer.SealBytes(key, b)
	if err != nil {
		return nil, fmt.Errorf("sealing a directory record: %w", err)
	}
	return sealed, nil
}

func (s *Service) unseal(kv store.KV, v any) error {
	plain, err := s.cfg.Sealer.OpenBytes(kv.Key, kv.Value)
	if err != nil {
		return fmt.Errorf("opening directory record: %w", err)
	}
	if err := json.Unmarshal(plain, v); err != nil {
		return fmt.Errorf("decoding directory record: %w", err)
	}
	return nil
}

func (s *Service) loadLocked(ctx context.Context) error {
	tenants, objects := map[string]*tenant{}, map[string]*object{}
	err := s.cfg.Store.View(ctx, func(r store.Reader) error {
		for kv, err := range r.Scan(store.Prefix("identity", "tenant"), store.ScanOptions{}) {
			t := &tenant{}
			if err != nil {
				return err
			}
			if err := s.unseal(kv, t); err != nil {
				return err
			}
			tenants[t.ID] = t
		}
		for kv, err := range r.Scan(store.Prefix("identity", "object"), store.ScanOptions{}) {
			o := &object{}
			if err != nil {
				return err
			}
			if err := s.unseal(kv, o); err != nil {
				return err
			}
			objects[o.ID] = o
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("reading the directory: %w", err)
	}
	s.dir.Store(buildDirectory(tenants, objects))
	return nil
}

// remove deletes objects and takes them out of the groups that list them. What they held elsewhere goes first: should that
// fail, the objects are still there to try again with.
func (s *Service) remove(ctx context.Context, ids ...string) error {
	for _, id := range ids {
		o := s.dir.Load().objects[id]
		if s.cfg.PrincipalRemoved == nil || o == nil || o.principalType() == "" {
			continue
		}
		if err := s.cfg.PrincipalRemoved(ctx, id); err != nil {
			return fmt.Errorf("removing what principal %s held: %w", id, err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	c := change{remove: ids}
	gone := func(m string) bool { return slices.Contains(ids, m) }
	for _, o := range s.dir.Load().objects {
		if o.Kind == kindGroup && !gone(o.ID) && slices.ContainsFunc(o.Members, gone) {
			g := o.clone()
			g.Members = slices.DeleteFunc(g.Members, gone)
			c.put = append(c.put, g)
		}
	}
	return s.changeLocked(ctx, c)
}

// caller is the object as the planes see it.
func (d *directory) caller(o *object) resource.Caller {
	c := resource.Caller{Tenant: o.Tenant, Object: o.ID, App: o.App, Name: o.Name, ResourceID: o.ResourceID, Groups: d.groups[o.ID]}
	switch o.Kind {
	case kindUser:
		c.Kind, c.Name = resource.KindUser, o.UPN
	case kindServicePrincipal:
		c.Kind = resource.KindServicePrincipal
	case kindManagedIdentity:
		c.Kind = resource.KindManagedIdentity
	}
	return c
}
