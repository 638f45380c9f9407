package resource

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// Plane names a family of host names that share authentication, error dialect and version rule.
type Plane string

// The planes of INTERFACE.md.
const (
	PlaneManagement Plane = "management" // management.<domain>
	PlaneLogin      Plane = "login"      // login.<domain>
	PlaneGraph      Plane = "graph"      // graph.<domain>
	PlaneVault      Plane = "vault"      // <vault>.vault.<domain>
	PlaneBlob       Plane = "blob"       // <account>.blob.core.<domain>
	PlaneRegistry   Plane = "registry"   // <registry>.azurecr.<domain>
	PlaneWorkspace  Plane = "workspace"  // <workspace-id>.workspace.<domain> and api.<domain>
	PlaneScoring    Plane = "scoring"    // <endpoint>.<region>.inference.<domain>
	PlaneNode       Plane = "node"       // 169.254.169.254 inside a node
)

// OriginRule says how the origin stage treats a route.
type OriginRule int

// The origin rules. The zero value is a missing column.
const (
	originMissing  OriginRule = iota
	OriginAnywhere            // control plane and token service: reachable from the public listener and from inside
	OriginResource            // the resource's publicNetworkAccess, network rules and private endpoint connections decide
	OriginNodeOnly            // only from the node's own namespace
)

// Category is what the record stage keeps of a route, and how durably.
type Category int

// The audit categories. The zero value is a missing column.
const (
	categoryMissing Category = iota
	AuditRead                // control-plane and metadata reads
	AuditWrite               // changes: wait until the record is durable
	AuditSecret              // key, secret and token operations: wait until durable
	AuditData                // data reads: wait until in the log's buffer
	AuditProbe               // liveness and discovery documents that say nothing about anybody: counted, not recorded
)

func (c Category) String() string {
	return [...]string{"", "Read", "Write", "Secret", "Data", "Probe"}[min(max(int(c), 0), 5)]
}

// Durable says whether the decision must be on disk before the handler runs.
func (c Category) Durable() bool { return c == AuditWrite || c == AuditSecret }

// Versions is the API version rule of a route.
type Versions struct {
	rule string
	list []string
}

// AnyVersion accepts any api-version, newer unknown ones included (data planes, whose SDKs move ahead); it must be present
// as query parameter api-version unless the plane carries it in a header.
func AnyVersion() Versions { return Versions{rule: "any"} }

// Unversioned routes take no API version (token service, registry, discovery).
func Unversioned() Versions { return Versions{rule: "none"} }

// OneOf accepts the listed versions only, and any version between the oldest and the newest of them, and newer stable
// ones: clients pin versions that the list cannot know. What is older than the oldest is refused with the list.
func OneOf(list ...string) Versions { return Versions{rule: "list", list: list} }

// List is what provider metadata reports.
func (v Versions) List() []string { return v.list }

// Check says whether version may be used; the error is Azure's.
func (v Versions) Check(version string) error {
	switch v.rule {
	case "none":
		return nil
	case "any":
		if version == "" {
			return Errorf(http.StatusBadRequest, "MissingApiVersionParameter", "The api-version query parameter (?api-version=) is required for all requests.")
		}
		return checkVersionForm(version)
	}
	if version == "" {
		return Errorf(http.StatusBadRequest, "MissingApiVersionParameter", "The api-version query parameter (?api-version=) is required for all requests.")
	}
	if err := checkVersionForm(version); err != nil {
		return err
	}
	oldest := ""
	for _, have := range v.list {
		if have == version {
			return nil
		}
		if oldest == "" || have < oldest {
			oldest = have
		}
	}
	if isDate(version) && isDate(oldest) && version[:10] >= oldest[:10] {
		return nil
	}
	return Errorf(http.StatusBadRequest, "InvalidApiVersionParameter", "The api-version '%s' is too old. Supported are '%s' and newer.", version, strings.Join(v.list, ", "))
}

func checkVersionForm(v string) error {
	bad := Errorf(http.StatusBadRequest, "InvalidApiVersionParameter", "The api-version '%s' is invalid. Use a date such as 2024-04-01, with -preview behind it where needed.", clip(v, 40))
	if len(v) > 32 || strings.ContainsFunc(v, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '.' && r != '-'
	}) {
		return bad
	}
	// Key Vault's older data-plane versions are numbers: 7.4, 7.6-preview.2.
	if isDate(v) || len(v) >= 3 && v[0] >= '0' && v[0] <= '9' && v[1] == '.' {
		return nil
	}
	return bad
}

// isDate says whether a version begins with a date: the others cannot be compared.
func isDate(v string) bool {
	if len(v) < len(time.DateOnly) {
		return false
	}
	_, err := time.Parse(time.DateOnly, v[:len(time.DateOnly)])
	return err == nil
}

func clip(s string, n int) string {
	if len(s) > n {
		return s[:n] + "…"
	}
	return s
}

// Handler does the work of a route. It writes the response, or returns an error before it has written anything; the
// gateway turns the error into the plane's dialect. An error after the first byte aborts the connection.
type Handler func(w http.ResponseWriter, r *Request) error

// Route is one row of the platform's only table of entries. A row with a missing security column stops start-up.
type Route struct {
	Name    string // operation name as the specification has it, such as Vaults_Get; unique within a plane
	Plane   Plane
	Method  string
	Pattern string // "/a/{b}/{rest...}"; literal segments match without regard to case on the management plane
	// Query conditions choose between rows of the same method and pattern: "comp=block" (equal), "comp" (present),
	// "!comp" (absent). "header:name" and "!header:name" test for a request header. The row with the most conditions wins.
	Query    []string
	Versions Versions

	// Exactly one of Action, DataAction and Open says who may. Open gives the reason why no role is asked for (the handler,
	// or the protocol, decides): it is shown in the catalogue.
	Action     string
	DataAction string
	Open       string
	// Scope is the resource ID at which the action is authorised, as a template over the pattern's variables;
	// {resource} is the ARM id of the resource that the host name belongs to.
	Scope string
	// Resolve, when set, computes action and scope of one request instead (they then serve the catalogue only).
	// isData says that action is a data action.
	Resolve func(r *Request) (action string, isData bool, scope string, err error)

	Origin  OriginRule
	Body    int64         // most bytes of body accepted; -1: none at all; 0 is a missing column
	Timeout time.Duration // for the whole request
	Audit   Category
	Handler Handler
}

// Validate reports every missing column.
func (r Route) Validate() error {
	var errs []error
	miss := func(bad bool, what string) {
		if bad {
			errs = append(errs, errors.New(what))
		}
	}
	miss(r.Name == "", "no name")
	miss(r.Plane == "", "no plane")
	miss(r.Method == "", "no method")
	miss(!strings.HasPrefix(r.Pattern, "/"), "no pattern")
	miss(r.Versions.rule == "", "no version rule")
	n := 0
	for _, s := range []string{r.Action, r.DataAction, r.Open} {
		if s != "" {
			n++
		}
	}
	miss(n != 1, "exactly one of action, dataAction and open must be given")
	miss(r.Open == "" && r.Scope == "", "no scope")
	miss(r.Origin == originMissing, "no origin rule")
	miss(r.Body == 0, "no body limit")
	miss(r.Timeout <= 0, "no timeout")
	miss(r.Audit == categoryMissing, "no audit category")
	miss(r.Handler == nil, "no handler")
	if len(errs) > 0 {
		return fmt.Errorf("route %s %s %s (%s): %w", r.Plane, r.Method, r.Pattern, r.Name, errors.Join(errs...))
	}
	return nil
}

// Request is one request on its way through the gateway. Each stage fills in its part; a handler sees all of them.
type Request struct {
	*http.Request                   // URL.Path is canonical; the raw path is in RawPath
	Route         *Route            // receive
	Vars          map[string]string // receive: pattern variables, decoded once
	RawPath       string            // receive: escaped path exactly as sent, for signatures
	Version       string            // receive: API version, may be empty on unversioned routes
	CorrelationID string            // receive
	Host          string            // receive: first label of the host name: vault, account, registry, endpoint
	Resource      string            // receive: ARM id of the resource that Host names; empty on platform planes
	Caller        Caller            // authenticate
	Origin        Origin            // origin
	Action        string            // authorize: the action that was checked
	Scope         string            // authorize: the scope at which it was checked
	Note          map[string]string // for the record stage: what the handler wants remembered; no secrets, no contents
}

// Remember adds a detail to the audit record: names of keys, digests, run ids. Never contents or secrets.
func (r *Request) Remember(key, value string) {
	if r.Note == nil {
		r.Note = map[string]string{}
	}
	r.Note[key] = value
}

// Inner is the in-process way from one plane to another: it passes the same authorize and record stages as a request
// from outside, for the caller it acts for. done must be called with the outcome.
type Inner interface {
	Enter(ctx context.Context, caller Caller, action string, isData bool, scope string, category Category) (done func(error), err error)
}

// ReadBody reads the whole body, which the gateway has bounded.
func (r *Request) ReadBody() ([]byte, error) {
	b, err := io.ReadAll(r.Body)
	if err != nil {
		var tooLarge *http.MaxBytesError
		if errors.As(err, &tooLarge) {
			return nil, Errorf(http.StatusRequestEntityTooLarge, "RequestBodyTooLarge", "The request body is larger than the %d bytes that this operation accepts.", tooLarge.Limit)
		}
		return nil, Errorf(http.StatusBadRequest, "RequestBodyIncomplete", "The request body ended early.").WithCause(err)
	}
	return b, nil
}
