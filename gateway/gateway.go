package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"casemate.dev/control/audit"
	"casemate.dev/resource"
)

// Authorizer decides over roles. control/rbac's engine, joined in the app.
type Authorizer interface {
	// Authorize says whether the caller may, and by which assignment or for lack of what.
	Authorize(c resource.Caller, action string, isData bool, scope resource.ID) (allowed bool, reason string)
}

// Recorder keeps the trail. control/audit's log.
type Recorder interface {
	Append(ctx context.Context, e audit.Entry, durable bool) error
}

// Governor refuses or changes a control-plane request for a lock or a policy.
type Governor func(r *resource.Request) error

// Plane is what the gateway must know of one family of hosts.
type Plane struct {
	// Hosts matches the host name without port, lower-case: "management" exactly, or "*.vault" for one label before.
	Hosts []string
	// Resolve finds the ARM id behind the first label; nil for platform planes. Not found: the host does not exist.
	Resolve func(label string) (id string, ok bool)
	// Authenticate finds the caller; a zero Caller and nil mean that no credential was offered. nil: the plane has no bearer
	// credentials (its rows are Open and check their own).
	Authenticate func(r *resource.Request) (resource.Caller, error)
	// Challenge is the WWW-Authenticate value of a 401; nil: none.
	Challenge func(r *resource.Request) string
	// WriteError writes an error in the plane's dialect.
	WriteError func(w http.ResponseWriter, r *resource.Request, e *resource.Error)
	// RawNames keeps duplicate slashes and case in paths (object names); otherwise paths are ARM's: "//" is "/".
	RawNames bool
	// VersionHeader carries the API version instead of the query parameter; responses echo it.
	VersionHeader string
}

// Config makes a Gateway. All fields are required but Govern and Logger.
type Config struct {
	Domain    string // such as casemate.localhost; hosts are below it
	Planes    map[resource.Plane]Plane
	Routes    []resource.Route
	Authorize Authorizer
	Record    Recorder
	Documents Documents // for the origin stage
	Govern    []Governor
	Clock     resource.Clock
	Logger    *slog.Logger
}

// Gateway runs requests. It holds no state between requests.
type Gateway struct {
	cfg    Config
	hosts  hostTable
	tables map[resource.Plane]*table
	stages []stage
	inner  []stage // of requests in process, whose caller is known: see inner.go
}

// stage judges one exchange or adds to it. An error ends the request.
type stage struct {
	name string
	run  func(*exchange) error
}

// New checks every row and compiles the tables.
func New(cfg Config) (*Gateway, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	g := &Gateway{cfg: cfg, tables: map[resource.Plane]*table{}}
	if err := g.addRoutes(); err != nil {
		return nil, err
	}
	var err error
	if g.hosts, err = newHostTable(cfg.Domain, cfg.Planes); err != nil {
		return nil, err
	}
	g.stages = []stage{
		{"receive", g.receive},           // first: all others work on the canonical request and its row
		{"authenticate", g.authenticate}, // before origin: what a stranger hears must not depend on network rules
		{"origin", g.origin},             // before authorize: a right does not help from a place that is closed
		{"authorize", g.authorize},       // before govern: policies and locks are not told to those without a role
		{"govern", g.govern},             // before record: the record holds what was finally allowed
		{"record", g.record},             // before any effect, durable where the row says so
		{"dispatch", g.dispatch},         // the effect
	}
	g.inner = []stage{g.stages[0], {"receive", g.told}, g.stages[3], g.stages[4], g.stages[5], g.stages[6]}
	return g, nil
}

func (g *Gateway) addRoutes() error {
	var errs []error
	names := map[string]bool{}
	for i := range g.cfg.Routes {
		r := g.cfg.Routes[i]
		if err := r.Validate(); err != nil {
			errs = append(errs, err)
			continue
		}
		if _, ok := g.cfg.Planes[r.Plane]; !ok {
			errs = append(errs, fmt.Errorf("route %s: plane %q is not configured", r.Name, r.Plane))
			continue
		}
		if key := string(r.Plane) + " " + r.Name; names[key] {
			errs = append(errs, fmt.Errorf("two routes of plane %s are called %s", r.Plane, r.Name))
		} else {
			names[key] = true
		}
		t := g.tables[r.Plane]
		if t == nil {
			t = newTable(!g.cfg.Planes[r.Plane].RawNames)
			g.tables[r.Plane] = t
		}
		if err := t.add(&r); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Routes are all rows, for the catalogue and for the tests that visit each of them.
func (g *Gateway) Routes() []resource.Route { return g.cfg.Routes }

// exchange is one request on its way.
type exchange struct {
	w *response
	r *resource.Request
	// connection ends with the connection, or when a plane breaks it under a stream; net/http keeps it for all later requests.
	connection context.Context
	plane      *Plane
	cancel     context.CancelFunc
	began      time.Time
	missing    error // why no row matched; told only after authentication
	entry      audit.Entry
	opened     bool // a decision was recorded: an outcome must follow
}

// ServeHTTP is the request path.
func (g *Gateway) ServeHTTP(w http.ResponseWriter, hr *http.Request) {
	g.run(w, hr, func(*exchange) []stage { return g.stages })
}

func (g *Gateway) run(w http.ResponseWriter, hr *http.Request, stagesOf func(*exchange) []stage) {
	x := &exchange{w: &response{ResponseWriter: w}, began: g.cfg.Clock()}
	x.r = &resource.Request{Request: hr, Origin: originOf(hr.Context())}
	x.connection = hr.Context()
	defer g.finish(x)
	if x.connection.Err() != nil {
		x.w.broken = true // the connection was broken under the request before; nothing works on it any more
		return
	}
	x.until(unroutedTime)
	for _, s := range stagesOf(x) {
		if err := s.run(x); err != nil {
			g.refuse(x, s.name, err)
			return
		}
	}
}

// unroutedTime is for a request whose row is not known yet, and writeGrace for the answer that its time is up.
const (
	unroutedTime = 30 * time.Second
	writeGrace   = 10 * time.Second
)

// until bounds what the peer can hold the connection for: a context ends no read of a body that never comes, and no write to a
// peer that does not read. In process there is no connection.
func (x *exchange) until(d time.Duration) {
	c := http.NewResponseController(x.w.ResponseWriter)
	now := time.Now() // the kernel's deadlines know no other clock
	_ = c.SetReadDeadline(now.Add(d))
	_ = c.SetWriteDeadline(now.Add(d + writeGrace))
}

// refuse answers with err, or breaks the connection when the answer has begun.
func (g *Gateway) refuse(x *exchange, stage string, err error) {
	e := resource.AsError(err)
	x.entry.Code, x.entry.Status = e.Code, e.Status
	if e.Status >= 500 && e.Status != http.StatusNotImplemented || errors.Is(err, context.Canceled) {
		g.cfg.Logger.Error("request failed", "stage", stage, "correlationId", x.r.CorrelationID, "status", e.Status, "code", e.Code, "cause", causeText(e))
	}
	if stage != "record" && stage != "dispatch" {
		g.recordRefusal(x, e)
	}
	if x.w.wrote {
		x.w.broken = true
		return
	}
	g.writeError(x, e)
}

func causeText(e *resource.Error) string {
	if e.Cause == nil {
		return ""
	}
	return e.Cause.Error()
}

func (g *Gateway) writeError(x *exchange, e *resource.Error) {
	h := x.w.Header()
	h.Del("Content-Length")
	h.Del("Content-Range")
	h.Del("ETag")
	// A plane that broke the connection under a stream may still say why. Reads stay as they are: nobody waits for a body now.
	_ = http.NewResponseController(x.w.ResponseWriter).SetWriteDeadline(time.Now().Add(writeGrace))
	if x.connection.Err() != nil {
		h.Set("Connection", "close") // this answer is its last
	}
	for k, vs := range e.Header {
		h[k] = vs
	}
	if e.RetryAfter > 0 {
		h.Set("Retry-After", fmt.Sprint(max(1, int(e.RetryAfter.Seconds()))))
	}
	if e.Status == http.StatusUnauthorized && x.plane != nil && x.plane.Challenge != nil && h.Get("WWW-Authenticate") == "" {
		if c := x.plane.Challenge(x.r); c != "" {
			h.Set("WWW-Authenticate", c)
		}
	}
	write := writeARMError
	if x.plane != nil && x.plane.WriteError != nil {
		write = x.plane.WriteError
	}
	write(x.w, x.r, e)
}

// finish completes the record, releases the request's time limit and turns a panic into an internal error: the only
// recover of the platform beside that of the operation engine's workers.
func (g *Gateway) finish(x *exchange) {
	p := recover()
	if p != nil && p != http.ErrAbortHandler {
		g.cfg.Logger.Error("handler panicked", "correlationId", x.r.CorrelationID, "panic", fmt.Sprint(p), "stack", stack())
		x.entry.Code, x.entry.Status = "InternalServerError", http.StatusInternalServerError
		if x.w.wrote {
			x.w.broken = true
		} else {
			g.writeError(x, resource.Internal(fmt.Errorf("panic: %v", p)))
		}
	}
	g.recordOutcome(x)
	if x.connection.Err() != nil && x.w.Header().Get("Connection") != "close" {
		x.w.broken = true // net/http would go on with a connection whose context has ended
	}
	if x.cancel != nil {
		x.cancel()
	}
	if x.w.broken || p == http.ErrAbortHandler {
		panic(http.ErrAbortHandler) // net/http closes the connection: a cut-off answer must not look whole
	}
}

// response remembers what was sent.
type response struct {
	http.ResponseWriter
	status int
	wrote  bool
	broken bool
}

func (w *response) WriteHeader(status int) {
	if status >= 200 {
		w.status, w.wrote = status, true
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *response) Write(b []byte) (int, error) {
	if !w.wrote {
		w.status, w.wrote = http.StatusOK, true
	}
	return w.ResponseWriter.Write(b)
}

// Unwrap lets http.ResponseController reach the connection.
func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// Flush passes on to the connection, for handlers that stream.
func (w *response) Flush() {
	if f, ok := w.ResponseWriter.(http.Flusher); ok {
		f.Flush()
	}
}

func lower(s string) string { return strings.ToLower(s) }
