package resources

import (
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"casemate.dev/resource"
)

// resources lists the top-level resources of a subscription or group that the caller may read.
func (p *Provider) resources(w http.ResponseWriter, r *resource.Request) error {
	below, err := resource.ParseID(r.Scope)
	if err != nil {
		return err
	}
	match, err := parseFilter(r.URL.Query().Get("$filter"))
	if err != nil {
		return err
	}
	value := []any{}
	for _, t := range p.engine.Types() {
		if strings.Count(t.Name, "/") != 1 || t.Level != resource.AtResourceGroup {
			continue
		}
		docs, err := p.engine.List(r.Context(), t.Name, below)
		if err != nil {
			return err
		}
		for _, d := range docs {
			if ok, _ := p.cfg.Authorize.Authorize(r.Caller, d.ID.Type()+"/read", false, d.ID); !ok || !match(d) {
				continue
			}
			value = append(value, summary(d, r.URL.Query().Get("$expand")))
		}
	}
	return writeJSON(w, map[string]any{"value": value})
}

// allResources lists a whole subscription, for whoever holds a role anywhere in it.
func (p *Provider) allResources(w http.ResponseWriter, r *resource.Request) error {
	if r.Caller.Anonymous() {
		return resource.Errorf(http.StatusUnauthorized, "AuthenticationFailed", "Authentication failed. Sign in and send a bearer token.")
	}
	r.Scope = "/subscriptions/" + r.Vars["subscriptionId"]
	return p.resources(w, r)
}

// summary is the short form that lists across types show.
func summary(d *resource.Document, expand string) map[string]any {
	out := map[string]any{"id": d.ID.String(), "name": d.ID.Name(), "type": d.ID.Type()}
	for _, k := range []string{"location", "tags", "kind", "sku", "identity"} {
		if v := d.Get(k); v != nil {
			out[k] = v
		}
	}
	for what := range strings.SplitSeq(expand, ",") {
		switch what {
		case "createdTime":
			out["createdTime"] = d.System.CreatedAt
		case "changedTime":
			out["changedTime"] = d.System.LastModifiedAt
		case "provisioningState":
			out["provisioningState"] = d.State
		}
	}
	return out
}

var clause = regexp.MustCompile(`(?i)^\s*(resourceType|resourceGroup|name|location|tagName|tagValue)\s+(eq|ne)\s+'([^']*)'\s*$`)

// parseFilter reads the $filter of resource lists: clauses "field eq 'value'" joined by "and".
func parseFilter(s string) (func(*resource.Document) bool, error) {
	if strings.TrimSpace(s) == "" {
		return func(*resource.Document) bool { return true }, nil
	}
	var tests []func(*resource.Document) bool
	for _, part := range regexp.MustCompile(`(?i)\s+and\s+`).Split(s, -1) {
		m := clause.FindStringSubmatch(part)
		if m == nil {
			return nil, resource.Errorf(http.StatusBadRequest, "InvalidFilterInQueryString", "The $filter '%s' is not supported. Join clauses such as resourceType eq 'Microsoft.Storage/storageAccounts' with 'and'.", s)
		}
		field, equal, want := strings.ToLower(m[1]), strings.EqualFold(m[2], "eq"), m[3]
		tests = append(tests, func(d *resource.Document) bool { return fieldHolds(d, field, want) == equal })
	}
	return func(d *resource.Document) bool {
		return !slices.ContainsFunc(tests, func(t func(*resource.Document) bool) bool { return !t(d) })
	}, nil
}

func fieldHolds(d *resource.Document, field, want string) bool {
	switch field {
	case "resourcetype":
		return d.ID.Is(want)
	case "resourcegroup":
		return strings.EqualFold(d.ID.ResourceGroup(), want)
	case "name":
		return strings.EqualFold(d.ID.Name(), want)
	case "location":
		return strings.EqualFold(d.Location(), strings.ReplaceAll(want, " ", ""))
	}
	tags, _ := d.Get("tags").(map[string]any)
	for k, v := range tags {
		if field == "tagname" && strings.EqualFold(k, want) || field == "tagvalue" && fmt.Sprint(v) == want {
			return true
		}
	}
	return false
}

func writeJSON(w http.ResponseWriter, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encoding answer: %w", err)
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	_, _ = w.Write(b) // the peer may be gone
	return nil
}
