package network

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"casemate.dev/dataplane/network/plan"
	"casemate.dev/resource"
)

// state is what the kernel shall be equal to: the documents as they were last reconciled, and the nodes that are attached.
// It is not read from the store on each change, because a document under way is already stored before it is decided
// whether it will stand.
type state struct {
	docs  map[string]*resource.Document // by ID key; never changed once in here
	nodes map[string]node               // by lower-case id
}

// node is a compute node's place.
type node struct {
	id     string
	subnet resource.ID
	ip     netip.Addr
}

func newState() state { return state{docs: map[string]*resource.Document{}, nodes: map[string]node{}} }

func (s state) clone() state { return state{docs: maps.Clone(s.docs), nodes: maps.Clone(s.nodes)} }

func (s state) set(d *resource.Document)         { s.docs[d.ID.Key()] = d.Clone() }
func (s state) unset(id resource.ID)             { delete(s.docs, id.Key()) }
func (s state) equal(o state) bool               { return maps.Equal(s.docs, o.docs) && maps.Equal(s.nodes, o.nodes) }
func (s state) get(id string) *resource.Document { return s.docs[strings.ToLower(id)] }

// list returns the documents of a type, in order of ID.
func (s state) list(typ string) []*resource.Document {
	var out []*resource.Document
	for _, d := range s.docs {
		if d.ID.Is(typ) {
			out = append(out, d)
		}
	}
	slices.SortFunc(out, func(a, b *resource.Document) int { return cmp.Compare(a.ID.Key(), b.ID.Key()) })
	return out
}

// children returns the documents of a type directly below a resource, in order of ID.
func (s state) children(parent resource.ID, typ string) []*resource.Document {
	return slices.DeleteFunc(s.list(typ), func(d *resource.Document) bool { return !d.ID.Parent().Equal(parent) })
}

// subnet is a subnet's name and range.
func (s state) subnet(id resource.ID) (plan.Subnet, error) {
	d := s.docs[id.Key()]
	if d == nil || !id.Is(subnetType) {
		return plan.Subnet{}, missingReference(id)
	}
	prefix, err := subnetPrefix(d)
	return plan.Subnet{ID: d.ID.String(), Name: d.ID.Name(), Prefix: prefix}, err
}

// taken are the addresses of a subnet that somebody has.
func (s state) taken(subnet resource.ID) []netip.Addr {
	var out []netip.Addr
	for _, u := range s.users(subnet) {
		out = append(out, u.addresses...)
	}
	return out
}

// user is something that lives in a subnet.
type user struct {
	id        string
	addresses []netip.Addr
}

// users are all that live in a subnet, in order of id.
func (s state) users(subnet resource.ID) []user {
	var out []user
	within := func(d *resource.Document) bool {
		return strings.EqualFold(d.String("properties.subnet.id"), subnet.String())
	}
	for _, d := range s.docs {
		switch {
		case d.ID.Is(endpointType) && within(d):
			u := user{id: d.ID.String()}
			for _, m := range membersOf(d) {
				u.addresses = append(u.addresses, addresses([]string{m.Address})...)
			}
			out = append(out, u)
		case d.ID.Is(machineType) && within(d):
			out = append(out, user{d.ID.String(), addresses([]string{d.Recall("address")})})
		}
	}
	for _, n := range s.nodes {
		if n.subnet.Equal(subnet) {
			out = append(out, user{n.id, []netip.Addr{n.ip}})
		}
	}
	slices.SortFunc(out, func(a, b user) int { return cmp.Compare(a.id, b.id) })
	return out
}

// declared is one virtual network as the data plane wants it. more names what else resolves for a workspace's endpoint.
func (p *Provider) declared(s state, d *resource.Document, more func(target string) []string) (plan.VirtualNetwork, error) {
	v := plan.VirtualNetwork{ID: d.ID.String(), Platform: p.cfg.Port}
	prefixes, err := addressSpace(d)
	if err != nil {
		return v, err
	}
	v.Prefixes = prefixes
	for _, c := range s.children(d.ID, subnetType) {
		subnet, err := s.subnet(c.ID)
		if err != nil {
			return v, err
		}
		if subnet.Group, err = s.securityGroup(c.String("properties.networkSecurityGroup.id")); err != nil {
			return v, err
		}
		v.Subnets = append(v.Subnets, subnet)
	}
	v.Records = s.linkedRecords(d.ID)
	explicit := map[string]bool{}
	for _, r := range v.Records {
		explicit[r.Name] = true
	}
	for _, e := range s.list(endpointType) {
		if in(e, d.ID) && statusOf(e) == approved && len(membersOf(e)) > 0 {
			v.Endpoints = append(v.Endpoints, p.declaredEndpoint(e, explicit, more))
		}
	}
	for _, m := range s.list(machineType) {
		if ip := addresses([]string{m.Recall("address")}); in(m, d.ID) && len(ip) == 1 {
			v.Nodes = append(v.Nodes, plan.Node{ID: m.ID.String(), Subnet: m.String("properties.subnet.id"), IP: ip[0]})
		}
	}
	for _, n := range s.nodes {
		if n.subnet.Parent().Equal(d.ID) {
			v.Nodes = append(v.Nodes, plan.Node{ID: n.id, Subnet: n.subnet.String(), IP: n.ip})
		}
	}
	v.Records = append(p.withoutPlatform(v.Records), p.platformRecords()...)
	return v, nil
}

// in says whether a document's subnet belongs to a network.
func in(d *resource.Document, network resource.ID) bool {
	id, err := resource.ParseID(d.String("properties.subnet.id"))
	return err == nil && id.Parent().Equal(network)
}

// declaredEndpoint leaves out names that a linked zone declares: a declared record goes before the automatic one.
func (p *Provider) declaredEndpoint(d *resource.Document, explicit map[string]bool, more func(string) []string) plan.PrivateEndpoint {
	c, _ := connectionOf(d)
	e := plan.PrivateEndpoint{ID: d.ID.String(), Subnet: d.String("properties.subnet.id"), Target: c.target, Port: p.cfg.Port}
	for _, m := range membersOf(d) {
		names := slices.Clone(m.Names)
		if m.Member == inferenceMember {
			names = append(names, more(c.target)...)
		}
		names = slices.DeleteFunc(names, func(n string) bool { return explicit[strings.ToLower(n)] })
		for _, a := range addresses([]string{m.Address}) {
			e.Addresses = append(e.Addresses, plan.EndpointAddress{IP: a, FQDNs: names})
		}
	}
	return e
}

// platformNames resolve to the platform's address in every network.
func (p *Provider) platformNames() []string {
	return []string{"login." + p.cfg.Domain, "management." + p.cfg.Domain, "graph." + p.cfg.Domain}
}

func (p *Provider) platformRecords() []plan.Record {
	var out []plan.Record
	for _, n := range p.platformNames() {
		out = append(out, plan.Record{Name: n, IP: plan.PlatformAddress})
	}
	return out
}

// withoutPlatform drops declared records that would give the platform's names another address.
func (p *Provider) withoutPlatform(records []plan.Record) []plan.Record {
	return slices.DeleteFunc(records, func(r plan.Record) bool { return slices.Contains(p.platformNames(), r.Name) })
}

// recallInto decodes what was remembered in Internal, whether it comes from the store or from memory.
func recallInto(d *resource.Document, key string, view any) error {
	b, err := json.Marshal(d.Internal[key])
	if err != nil {
		return fmt.Errorf("encoding %s of %s: %w", key, d.ID, err)
	}
	if err := json.Unmarshal(b, view); err != nil {
		return fmt.Errorf("decoding %s of %s: %w", key, d.ID, err)
	}
	return nil
}

// plain turns a value into the maps and lists of JSON.
func plain(v any) any {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // structs of strings only
	}
	var out any
	if err := json.Unmarshal(b, &out); err != nil {
		panic(err)
	}
	return out
}
