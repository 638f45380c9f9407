package network

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"casemate.dev/dataplane/network/plan"
	"casemate.dev/resource"
)

// Names are those that the plan accepts. [RFC 1035, section 2.3.4]
var (
	zonePattern   = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?)+$`)
	recordPattern = regexp.MustCompile(`^(@|\*|(\*\.)?[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*)$`)
)

const (
	maxAddresses   = 20 // of a record set, as in Azure
	maxNameLength  = 253
	maxLabels      = 34
	maxLabelLength = 63
	maxZoneConfigs = 5
)

func (p *Provider) validateZone(_ context.Context, w *resource.Write) error {
	if w.New.Location() != "global" {
		return bad("LocationNotAvailableForResourceType", "A private DNS zone's location is 'global'.").WithTarget("location")
	}
	name := w.New.ID.Name()
	labels := strings.Split(name, ".")
	if len(name) > maxNameLength || len(labels) > maxLabels || slices.ContainsFunc(labels, func(l string) bool { return len(l) > maxLabelLength }) {
		return bad("InvalidResourceName", "The name of a zone has at most %d characters in at most %d labels of at most %d.", maxNameLength, maxLabels, maxLabelLength)
	}
	return nil
}

func (p *Provider) mayRemoveZone(_ context.Context, d *resource.Document) error {
	if links := p.view().children(d.ID, linkType); len(links) > 0 {
		return resource.Errorf(http.StatusConflict, "CannotDeleteResource",
			"Can not delete resource before nested resources are deleted. Private DNS zone '%s' is linked to virtual networks by '%s'.", d.ID.Name(), links[0].ID.Name())
	}
	return nil
}

// recordAddresses reads the addresses of an A record set, which may be none: clients make a set first and fill it then.
func recordAddresses(d *resource.Document) ([]netip.Addr, error) {
	const path = "properties.aRecords"
	list, ok := d.Get(path).([]any)
	if !ok && d.Get(path) != nil || len(list) > maxAddresses {
		return nil, bad("BadRequest", "An A record set holds a list of at most %d records in %s.", maxAddresses, path).WithTarget(path)
	}
	var out []netip.Addr
	for _, e := range list {
		m, _ := e.(map[string]any)
		in := resource.Document{Body: m}
		a, err := netip.ParseAddr(in.String("ipv4Address"))
		if err != nil || !a.Is4() {
			return nil, bad("BadRequest", "'%s' is not an IPv4 address.", in.String("ipv4Address")).WithTarget(path)
		}
		if !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out, nil
}

// recordName is the fully qualified name of a record set.
func recordName(id resource.ID) string {
	zone := strings.ToLower(id.Parent().Name())
	if id.Name() == "@" {
		return zone
	}
	return strings.ToLower(id.Name()) + "." + zone
}

func (p *Provider) validateRecord(ctx context.Context, w *resource.Write) error {
	if len(recordName(w.New.ID)) > maxNameLength {
		return bad("InvalidResourceName", "The record set's fully qualified name is longer than %d characters.", maxNameLength)
	}
	if _, err := recordAddresses(w.New); err != nil {
		return err
	}
	if w.New.Get("properties.ttl") == nil {
		return bad("BadRequest", "A record set needs a time to live.").WithTarget("properties.ttl")
	}
	w.New.Set("properties.fqdn", recordName(w.New.ID)+".")
	return p.check(ctx, func(s state) { s.set(w.New) })
}

func (p *Provider) validateLink(_ context.Context, w *resource.Write) error {
	const path = "properties.virtualNetwork.id"
	d := w.New
	if d.Bool("properties.registrationEnabled") {
		return resource.NotSupported("Automatic registration of names is not supported: nodes have no names.").WithTarget("properties.registrationEnabled")
	}
	d.Set("properties.registrationEnabled", false)
	id, err := resource.ParseID(d.String(path))
	if err != nil || !id.Is(vnetType) {
		return resource.Invalid(path, "'%s' is not the resource ID of a virtual network.", d.String(path))
	}
	if w.Old != nil {
		if !strings.EqualFold(w.Old.String(path), id.String()) {
			return bad("BadRequest", "The virtual network of a link cannot be changed.").WithTarget(path)
		}
	} else if err := p.linked(w.Caller, joinNetwork, id, path); err != nil {
		return err
	}
	s := p.view()
	if s.docs[id.Key()] == nil {
		return missingReference(id).WithTarget(path)
	}
	for _, l := range s.list(linkType) {
		if !l.ID.Equal(d.ID) && strings.EqualFold(l.String(path), id.String()) && strings.EqualFold(l.ID.Parent().Name(), d.ID.Parent().Name()) {
			return resource.Errorf(http.StatusConflict, "Conflict", "Virtual network '%s' is already linked to a zone named '%s' by '%s'.", id.Name(), d.ID.Parent().Name(), l.ID)
		}
	}
	d.Set("properties.virtualNetworkLinkState", "Completed")
	return nil
}

// linkedRecords are the records of all zones that are linked to a network.
func (s state) linkedRecords(network resource.ID) []plan.Record {
	var out []plan.Record
	for _, l := range s.list(linkType) {
		if !strings.EqualFold(l.String("properties.virtualNetwork.id"), network.String()) {
			continue
		}
		for _, r := range s.children(l.ID.Parent(), recordType) {
			list, err := recordAddresses(r)
			if err != nil {
				continue // a record set that is being made
			}
			for _, a := range list {
				out = append(out, plan.Record{Name: recordName(r.ID), IP: a})
			}
		}
	}
	return out
}

// zoneConfigs reads the zones of a zone group.
func zoneConfigs(d *resource.Document) ([]resource.ID, error) {
	const path = "properties.privateDnsZoneConfigs"
	list, ok := d.Get(path).([]any)
	if !ok || len(list) == 0 || len(list) > maxZoneConfigs {
		return nil, bad("InvalidRequestFormat", "A private DNS zone group needs 1 to %d zones in %s.", maxZoneConfigs, path).WithTarget(path)
	}
	var out []resource.ID
	for _, e := range list {
		m, _ := e.(map[string]any)
		in := resource.Document{Body: m}
		id, err := resource.ParseID(in.String("properties.privateDnsZoneId"))
		if err != nil || !id.Is(zoneType) {
			return nil, resource.Invalid(path, "'%s' is not the resource ID of a private DNS zone.", in.String("properties.privateDnsZoneId"))
		}
		in.Unset("properties.recordSets")
		out = append(out, id)
	}
	return out, nil
}

func (p *Provider) validateZoneGroup(_ context.Context, w *resource.Write) error {
	zones, err := zoneConfigs(w.New)
	if err != nil {
		return err
	}
	var had []resource.ID
	if w.Old != nil {
		if had, err = zoneConfigs(w.Old.Clone()); err != nil {
			return err
		}
	}
	s := p.view()
	for _, id := range zones {
		if !slices.ContainsFunc(had, id.Equal) {
			if err := p.linked(w.Caller, joinZone, id, "properties.privateDnsZoneConfigs"); err != nil {
				return err
			}
		}
		if s.docs[id.Key()] == nil {
			return missingReference(id)
		}
	}
	for _, g := range s.children(w.New.ID.Parent(), zoneGroupType) {
		if !g.ID.Equal(w.New.ID) {
			return resource.Errorf(http.StatusConflict, "PrivateEndpointCanHaveOnlyOnePrivateDnsZoneGroup", "Private endpoint '%s' already has the zone group '%s'.", w.New.ID.Parent().Name(), g.ID.Name())
		}
	}
	return nil
}

// creator marks the record sets of an endpoint, in the words of Azure.
func creator(d *resource.Document) string {
	return fmt.Sprintf("created by private endpoint %s with resource guid %s", d.ID.Name(), d.Recall("connectionId"))
}

// reconcileZoneGroup writes the endpoint's record sets into its zones and removes those of zones that left the group.
func (p *Provider) reconcileZoneGroup(ctx context.Context, d *resource.Document) error {
	endpoint := p.document(d.ID.Parent())
	if endpoint == nil {
		return missingReference(d.ID.Parent())
	}
	zones, err := zoneConfigs(d)
	if err != nil {
		return err
	}
	if err := p.removeRecords(ctx, endpoint, zones); err != nil {
		return err
	}
	list, _ := d.Get("properties.privateDnsZoneConfigs").([]any)
	for i, zone := range zones {
		sets, err := p.writeRecords(ctx, endpoint, zone)
		if err != nil {
			return err
		}
		m, _ := list[i].(map[string]any)
		in := resource.Document{Body: m}
		in.Set("properties.recordSets", sets)
	}
	return p.adopt(ctx, d)
}

func (p *Provider) writeRecords(ctx context.Context, endpoint *resource.Document, zone resource.ID) ([]any, error) {
	var shown []any
	for _, m := range membersOf(endpoint) {
		for _, label := range m.Labels {
			id, err := zone.Child("A", label)
			if err != nil {
				return nil, err
			}
			if have := p.document(id); have != nil && have.String("properties.metadata.creator") != creator(endpoint) {
				return nil, resource.Errorf(http.StatusConflict, "PrivateDnsZoneRecordConflict", "The record set '%s' exists and does not belong to private endpoint '%s'. Delete it first.", id, endpoint.ID.Name())
			}
			body := map[string]any{"properties": map[string]any{"ttl": 10, "aRecords": []any{map[string]any{"ipv4Address": m.Address}},
				"metadata": map[string]any{"creator": creator(endpoint)}}}
			if _, err := p.cfg.Resources.Put(ctx, p.cfg.Platform, id, body); err != nil {
				return nil, fmt.Errorf("writing record set %s: %w", id, err)
			}
			shown = append(shown, map[string]any{"recordType": "A", "recordSetName": label, "fqdn": recordName(id), "ttl": 10,
				"ipAddresses": []any{m.Address}, "provisioningState": resource.StateSucceeded})
		}
	}
	return shown, nil
}

// removeRecords removes an endpoint's record sets from all zones but those that are kept.
func (p *Provider) removeRecords(ctx context.Context, endpoint *resource.Document, keep []resource.ID) error {
	for _, r := range p.view().list(recordType) {
		if r.String("properties.metadata.creator") != creator(endpoint) || slices.ContainsFunc(keep, r.ID.Parent().Equal) {
			continue
		}
		if err := p.cfg.Resources.Delete(ctx, p.cfg.Platform, r.ID); err != nil {
			return fmt.Errorf("removing record set %s: %w", r.ID, err)
		}
	}
	return nil
}

func (p *Provider) removeZoneGroup(ctx context.Context, d *resource.Document) error {
	if endpoint := p.document(d.ID.Parent()); endpoint != nil {
		if err := p.removeRecords(ctx, endpoint, nil); err != nil {
			return err
		}
	}
	return p.forget(ctx, d)
}
