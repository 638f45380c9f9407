// Package insights is the provider Microsoft.Insights as far as it stands: the activity log of a subscription, and, under
// Casemate's own namespace, queries over the whole audit trail and its verification.
//
// It is for the security officer, who asks who did what and whether anybody changed the record, and for "az monitor
// activity-log". What it shows comes from control/audit; rights are checked by the gateway like everywhere: the activity
// log at the subscription, the trail at the tenant. It writes nothing. Metrics, diagnostic settings and Log Analytics are
// not there yet.
package insights

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"

	"casemate.dev/control/audit"
	"casemate.dev/resource"
)

// Trail is the audit log.
type Trail interface {
	Query(ctx context.Context, f audit.Filter, fn func(audit.Entry) bool) error
	Verify(ctx context.Context) (audit.Report, error)
}

const (
	queryTime  = 2 * time.Minute
	maxEntries = 10_000
)

// Routes are the rows.
func Routes(t Trail) []resource.Route {
	return []resource.Route{
		{Name: "ActivityLogs_List", Plane: resource.PlaneManagement, Method: http.MethodGet, Pattern: "/subscriptions/{subscriptionId}/providers/Microsoft.Insights/eventtypes/management/values",
			Versions: resource.OneOf("2017-03-01-preview", "2015-04-01", "2014-04-01"), Action: "Microsoft.Insights/eventtypes/values/Read", Scope: "/subscriptions/{subscriptionId}",
			Origin: resource.OriginAnywhere, Body: -1, Timeout: queryTime, Audit: resource.AuditRead, Handler: activity(t)},
		{Name: "Trail_Query", Plane: resource.PlaneManagement, Method: http.MethodPost, Pattern: "/providers/Casemate.Audit/trail/query",
			Versions: resource.OneOf("2026-01-01"), Action: "Casemate.Audit/trail/query/action", Scope: "/", Origin: resource.OriginAnywhere, Body: 64 << 10,
			Timeout: queryTime, Audit: resource.AuditRead, Handler: query(t)},
		{Name: "Trail_Verify", Plane: resource.PlaneManagement, Method: http.MethodPost, Pattern: "/providers/Casemate.Audit/trail/verify",
			Versions: resource.OneOf("2026-01-01"), Action: "Casemate.Audit/trail/verify/action", Scope: "/", Origin: resource.OriginAnywhere, Body: 64 << 10,
			Timeout: queryTime, Audit: resource.AuditRead, Handler: verify(t)},
	}
}

func verify(t Trail) resource.Handler {
	return func(w http.ResponseWriter, r *resource.Request) error {
		rep, err := t.Verify(r.Context())
		if err != nil {
			return err
		}
		return writeJSON(w, rep)
	}
}

// question is the body of a query; all members are optional.
type question struct {
	Scope         string    `json:"scope"`  // resource id: it and everything below
	Caller        string    `json:"caller"` // object id of who called, or of the person behind
	CorrelationID string    `json:"correlationId"`
	Category      string    `json:"category"` // Read, Write, Secret, Data
	From          time.Time `json:"from"`
	To            time.Time `json:"to"`
	Top           int       `json:"top"` // newest so many; at most 10,000
	OnlyOutcomes  bool      `json:"onlyOutcomes"`
}

func query(t Trail) resource.Handler {
	return func(w http.ResponseWriter, r *resource.Request) error {
		raw, err := r.ReadBody()
		if err != nil {
			return err
		}
		var q question
		dec := json.NewDecoder(strings.NewReader(string(raw)))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&q); err != nil {
			return resource.Errorf(http.StatusBadRequest, "InvalidRequestContent", "The query cannot be read: '%s'.", err)
		}
		top := maxEntries
		if q.Top > 0 {
			top = min(q.Top, maxEntries)
		}
		list, err := collect(r.Context(), t, audit.Filter{From: q.From, To: q.To, ScopePrefix: q.Scope, Correlation: q.CorrelationID, Caller: q.Caller,
			Category: q.Category, Newest: true, OnlyOutcomes: q.OnlyOutcomes}, top)
		if err != nil {
			return err
		}
		return writeJSON(w, map[string]any{"value": list})
	}
}

func collect(ctx context.Context, t Trail, f audit.Filter, top int) ([]audit.Entry, error) {
	list := []audit.Entry{}
	err := t.Query(ctx, f, func(e audit.Entry) bool {
		list = append(list, e)
		return len(list) < top
	})
	return list, err
}

var activityClause = regexp.MustCompile(`(?i)^\s*(eventTimestamp|resourceGroupName|resourceUri|resourceId|correlationId|caller|eventChannels|resourceProvider)\s+(ge|le|eq)\s+'([^']*)'\s*$`)

// activityFilter reads the $filter of the activity log (Azure Monitor REST, "Activity Logs - List").
func activityFilter(subscription, s string) (audit.Filter, error) {
	f := audit.Filter{ScopePrefix: "/subscriptions/" + subscription, Newest: true, OnlyOutcomes: true}
	if strings.TrimSpace(s) == "" {
		return f, nil
	}
	for _, part := range regexp.MustCompile(`(?i)\s+and\s+`).Split(s, -1) {
		m := activityClause.FindStringSubmatch(part)
		if m == nil {
			return f, resource.Errorf(http.StatusBadRequest, "BadRequest", "The $filter clause '%s' is not supported. Use eventTimestamp ge/le, resourceGroupName, resourceUri, correlationId or caller.", part)
		}
		if err := apply(&f, strings.ToLower(m[1]), strings.ToLower(m[2]), m[3], subscription); err != nil {
			return f, err
		}
	}
	return f, nil
}

func apply(f *audit.Filter, field, op, value, subscription string) error {
	switch field {
	case "eventtimestamp":
		at, err := time.Parse(time.RFC3339Nano, value)
		if err != nil {
			return resource.Errorf(http.StatusBadRequest, "BadRequest", "The time '%s' is not of the form 2026-01-31T12:00:00Z.", value)
		}
		if op == "ge" {
			f.From = at
		} else {
			f.To = at
		}
	case "resourcegroupname":
		f.ScopePrefix = "/subscriptions/" + subscription + "/resourceGroups/" + value
	case "resourceuri", "resourceid":
		if !strings.HasPrefix(strings.ToLower(value), "/subscriptions/"+strings.ToLower(subscription)) {
			return resource.Errorf(http.StatusBadRequest, "BadRequest", "The resource '%s' is in another subscription.", value)
		}
		f.ScopePrefix = value
	case "correlationid":
		f.Correlation = value
	case "caller":
		f.Caller = value
	}
	return nil
}

func activity(t Trail) resource.Handler {
	return func(w http.ResponseWriter, r *resource.Request) error {
		f, err := activityFilter(r.Vars["subscriptionId"], r.URL.Query().Get("$filter"))
		if err != nil {
			return err
		}
		f.Category = resource.AuditWrite.String()
		list, err := collect(r.Context(), t, f, maxEntries)
		if err != nil {
			return err
		}
		value := []any{}
		for _, e := range list {
			value = append(value, event(e))
		}
		return writeJSON(w, map[string]any{"value": value})
	}
}

// event is an entry in the activity log's schema.
func event(e audit.Entry) map[string]any {
	status := "Succeeded"
	if e.Status >= 400 {
		status = "Failed"
	}
	word := func(s string) map[string]any { return map[string]any{"value": s, "localizedValue": s} }
	group := ""
	if id, err := resource.ParseID(e.Scope); err == nil {
		group = id.ResourceGroup()
	}
	return map[string]any{
		"id": fmt.Sprintf("%s/events/%d", e.Scope, e.Sequence), "eventDataId": strconv.FormatUint(e.Sequence, 10), "correlationId": e.Correlation,
		"operationId": e.Correlation, "eventTimestamp": e.Time, "submissionTimestamp": e.Time, "level": "Informational", "caller": e.CallerName,
		"resourceId": e.Scope, "resourceGroupName": group, "tenantId": e.Tenant, "operationName": word(e.Action), "status": word(status),
		"subStatus": word(strconv.Itoa(e.Status)), "category": word("Administrative"), "httpRequest": map[string]any{"clientIpAddress": e.Remote},
		"claims":     map[string]any{"http://schemas.microsoft.com/identity/claims/objectidentifier": e.Caller, "appid": e.App},
		"properties": map[string]any{"onBehalfOf": e.Person, "origin": e.Origin},
	}
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
