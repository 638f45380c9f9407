package audit

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// Phase says which half of a request's story an entry tells.
type Phase string

// The phases. A refused request has a decision only.
const (
	PhaseDecision Phase = "decision"
	PhaseOutcome  Phase = "outcome"
)

// Entry is one record of the trail. Times are UTC; IDs are ARM resource ids or GUIDs. Nothing in it is a secret or content.
type Entry struct {
	Sequence    uint64            `json:"sequence"`
	Time        time.Time         `json:"time"`
	Phase       Phase             `json:"phase"`
	Correlation string            `json:"correlationId"`
	Plane       string            `json:"plane"`
	Category    string            `json:"category"` // Read, Write, Secret, Data
	Operation   string            `json:"operationName"`
	Action      string            `json:"action,omitempty"`
	Scope       string            `json:"scope,omitempty"`
	Resource    string            `json:"resourceId,omitempty"`
	Caller      string            `json:"caller,omitempty"`     // object id
	CallerName  string            `json:"callerName,omitempty"` // as shown to people
	CallerKind  string            `json:"callerType,omitempty"`
	App         string            `json:"appId,omitempty"`
	Tenant      string            `json:"tenantId,omitempty"`
	TokenID     string            `json:"uti,omitempty"`
	Person      string            `json:"onBehalfOf,omitempty"` // the person behind a shared identity
	Run         string            `json:"runId,omitempty"`
	Node        string            `json:"nodeId,omitempty"`
	Origin      string            `json:"origin,omitempty"` // public, privateEndpoint, node, internal
	Remote      string            `json:"callerIpAddress,omitempty"`
	Endpoint    string            `json:"privateEndpointId,omitempty"`
	Network     string            `json:"virtualNetworkId,omitempty"`
	Allowed     bool              `json:"allowed"`
	Status      int               `json:"httpStatus,omitempty"`
	Code        string            `json:"code,omitempty"`   // error code of a refusal or failure
	Reason      string            `json:"reason,omitempty"` // assignment or rule that decided
	Millis      int64             `json:"durationMs,omitempty"`
	Note        map[string]string `json:"note,omitempty"`
}

// Filter chooses entries; zero fields choose all. Text compares without regard to case.
type Filter struct {
	From, To     time.Time // To is exclusive
	ScopePrefix  string    // resource or scope at or below
	Correlation  string
	Caller       string // object id of the caller or of the person behind it
	Category     string
	Newest       bool // newest first
	OnlyOutcomes bool
}

func (f Filter) match(e *Entry) bool {
	if !f.From.IsZero() && e.Time.Before(f.From) || !f.To.IsZero() && !e.Time.Before(f.To) {
		return false
	}
	if strings.TrimSuffix(f.ScopePrefix, "/") != "" && !within(e.Scope, f.ScopePrefix) && !within(e.Resource, f.ScopePrefix) {
		return false
	}
	if f.Correlation != "" && !strings.EqualFold(e.Correlation, f.Correlation) {
		return false
	}
	if f.Caller != "" && !strings.EqualFold(e.Caller, f.Caller) && !strings.EqualFold(e.Person, f.Caller) {
		return false
	}
	if f.Category != "" && !strings.EqualFold(e.Category, f.Category) {
		return false
	}
	return !f.OnlyOutcomes || e.Phase == PhaseOutcome
}

func within(id, prefix string) bool {
	id, prefix = strings.ToLower(id), strings.ToLower(strings.TrimSuffix(prefix, "/"))
	return id == prefix || strings.HasPrefix(id, prefix+"/")
}

func (e *Entry) encode() ([]byte, error) {
	b, err := json.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("encoding audit entry: %w", err)
	}
	return b, nil
}
