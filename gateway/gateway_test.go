package gateway

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"casemate.dev/control/audit"
	"casemate.dev/resource"
)

type world struct {
	mu       sync.Mutex      // guards what follows: requests in process are recorded by goroutines of their own
	allowed  map[string]bool // "action scope"
	entries  []audit.Entry
	broken   bool
	docs     map[string]*resource.Document
	served   int
	durables int
}

func (f *world) Authorize(c resource.Caller, action string, _ bool, scope resource.ID) (bool, string) {
	return !c.Anonymous() && f.allowed[action+" "+scope.Key()], "test"
}

func (f *world) Append(_ context.Context, e audit.Entry, durable bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.broken {
		return errors.New("disk on fire")
	}
	if durable {
		f.durables++
	}
	f.entries = append(f.entries, e)
	return nil
}

func (f *world) Get(_ context.Context, id resource.ID) (*resource.Document, error) {
	if d := f.docs[id.Key()]; d != nil {
		return d, nil
	}
	return nil, resource.NotFound(id)
}

const vaultID = "/subscriptions/s/resourceGroups/g/providers/Microsoft.KeyVault/vaults/v1"

func (f *world) rows() []resource.Route {
	ok := func(w http.ResponseWriter, r *resource.Request) error {
		f.served++
		_, err := io.WriteString(w, "served "+r.URL.Path)
		return err
	}
	row := func(name string, p resource.Plane, method, pattern, action, scope string, origin resource.OriginRule, audit resource.Category) resource.Route {
		return resource.Route{Name: name, Plane: p, Method: method, Pattern: pattern, Versions: resource.OneOf("2024-01-01"), Action: action, Scope: scope,
			Origin: origin, Body: 64, Timeout: time.Minute, Audit: audit, Handler: ok}
	}
	group := "/subscriptions/{s}/resourceGroups/{g}"
	rows := []resource.Route{
		row("Get", resource.PlaneManagement, "GET", group, "a/read", group, resource.OriginAnywhere, resource.AuditRead),
		row("Put", resource.PlaneManagement, "PUT", group, "a/write", group, resource.OriginAnywhere, resource.AuditWrite),
		row("Secret", resource.PlaneVault, "GET", "/secrets/{name}", "s/get", "{resource}/secrets/{name}", resource.OriginResource, resource.AuditSecret),
		row("Ext", resource.PlaneManagement, "GET", "/{scope...}/providers/Microsoft.Authorization/locks/{name}", "l/read", "{scope}/providers/Microsoft.Authorization/locks/{name}", resource.OriginAnywhere, resource.AuditRead),
	}
	open := row("Health", resource.PlaneManagement, "GET", "/healthz", "", "", resource.OriginAnywhere, resource.AuditProbe)
	open.Open, open.Versions = "says nothing", resource.Unversioned()
	return append(rows, open)
}

func (f *world) gateway(t *testing.T) *Gateway {
	t.Helper()
	authenticate := func(r *resource.Request) (resource.Caller, error) {
		switch r.Header.Get("Authorization") {
		case "":
			return resource.Caller{}, nil
		case "Bearer good":
			return resource.Caller{Kind: resource.KindUser, Object: "o", Name: "ann"}, nil
		case "Bearer node":
			return resource.Caller{Kind: resource.KindManagedIdentity, Object: "o", Node: "n1"}, nil
		}
		return resource.Caller{}, resource.Errorf(401, "InvalidAuthenticationToken", "no")
	}
	g, err := New(Config{Domain: "casemate.test", Routes: f.rows(), Authorize: f, Record: f, Documents: f, Clock: time.Now, Planes: map[resource.Plane]Plane{
		resource.PlaneManagement: {Hosts: []string{"management"}, Authenticate: authenticate, Challenge: func(*resource.Request) string { return "Bearer x" }},
		resource.PlaneVault: {Hosts: []string{"*.vault"}, Authenticate: authenticate, WriteError: Dialect(resource.PlaneVault),
			Resolve: func(l string) (string, bool) { return vaultID, l == "v1" }},
	}})
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func newWorld() *world {
	return &world{allowed: map[string]bool{"a/read /subscriptions/s/resourcegroups/g": true, "a/write /subscriptions/s/resourcegroups/g": true,
		"s/get " + strings.ToLower(vaultID) + "/secrets/k": true, "l/read /subscriptions/s/providers/microsoft.authorization/locks/x": true},
		docs: map[string]*resource.Document{strings.ToLower(vaultID): {ID: resource.MustParseID(vaultID), Body: map[string]any{}}}}
}

var public = resource.Origin{Kind: resource.OriginPublic, Remote: netip.MustParseAddrPort("192.0.2.7:1234")}

func do(g *Gateway, o resource.Origin, method, target, token, body string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, "https://management.casemate.test/", strings.NewReader(body))
	host, rest, _ := strings.Cut(strings.TrimPrefix(target, "https://"), "/")
	r.Host = host
	u, err := url.ParseRequestURI("/" + rest)
	if err != nil {
		panic(err)
	}
	r.URL = u
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	w := httptest.NewRecorder()
	func() {
		defer func() { _ = recover() }() // http.ErrAbortHandler
		g.ServeHTTP(w, r.WithContext(withOrigin(r.Context(), o)))
	}()
	return w
}

func TestStages(t *testing.T) {
	private := resource.Origin{Kind: resource.OriginPrivate, Network: "n", Target: vaultID}
	elsewhere := resource.Origin{Kind: resource.OriginPrivate, Network: "n", Target: vaultID + "2"}
	platform := resource.Origin{Kind: resource.OriginPrivate, Network: "n"}
	const m, v = "https://management.casemate.test", "https://v1.vault.casemate.test:8443/secrets/k?api-version=2024-01-01"
	const g = m + "/subscriptions/s/resourceGroups/g?api-version=2024-01-01"
	tests := []struct {
		name                string
		origin              resource.Origin
		method, url, token  string
		body                string
		closed              bool // publicNetworkAccess Disabled
		status              int
		code                string
		allowed, durableLog bool
	}{
		{name: "allowed", origin: public, method: "GET", url: g, token: "good", status: 200, allowed: true},
		{name: "any case, double and trailing slashes", origin: public, method: "GET", url: m + "//SUBSCRIPTIONS/s//resourcegroups/G/?api-version=2024-01-01", token: "good", status: 200, allowed: true},
		{name: "newer version", origin: public, method: "GET", url: m + "/subscriptions/s/resourceGroups/g?api-version=2031-01-01", token: "good", status: 200, allowed: true},
		{name: "extension", origin: public, method: "GET", url: m + "/subscriptions/s/providers/Microsoft.Authorization/locks/x?api-version=2024-01-01", token: "good", status: 200, allowed: true},
		{name: "write is durable", origin: public, method: "PUT", url: g, token: "good", body: "{}", status: 200, allowed: true, durableLog: true},
		{name: "health without a token", origin: public, method: "GET", url: m + "/healthz", status: 200},
		{name: "no token", origin: public, method: "GET", url: g, status: 401, code: "AuthenticationFailed"},
		{name: "bad token", origin: public, method: "GET", url: g, token: "bad", status: 401, code: "InvalidAuthenticationToken"},
		{name: "bad token on an open row", origin: public, method: "GET", url: m + "/healthz", token: "bad", status: 401, code: "InvalidAuthenticationToken"},
		{name: "no role", origin: public, method: "GET", url: m + "/subscriptions/s/resourceGroups/other?api-version=2024-01-01", token: "good", status: 403, code: "AuthorizationFailed"},
		{name: "no row, no token", origin: public, method: "GET", url: m + "/nothing", status: 401, code: "AuthenticationFailed"},
		{name: "no row", origin: public, method: "GET", url: m + "/nothing", token: "good", status: 404, code: "NotFound"},
		{name: "no method", origin: public, method: "POST", url: g, token: "good", status: 405, code: "MethodNotAllowed"},
		{name: "no version", origin: public, method: "GET", url: m + "/subscriptions/s/resourceGroups/g", token: "good", status: 400, code: "MissingApiVersionParameter"},
		{name: "old version", origin: public, method: "GET", url: m + "/subscriptions/s/resourceGroups/g?api-version=2001-01-01", token: "good", status: 400, code: "InvalidApiVersionParameter"},
		{name: "malformed version", origin: public, method: "GET", url: m + "/subscriptions/s/resourceGroups/g?api-version=latest", token: "good", status: 400, code: "InvalidApiVersionParameter"},
		{name: "version of another kind", origin: public, method: "GET", url: m + "/subscriptions/s/resourceGroups/g?api-version=7.4", token: "good", status: 400, code: "InvalidApiVersionParameter"},
		{name: "version of another kind without a token", origin: public, method: "GET", url: m + "/subscriptions/s/resourceGroups/g?api-version=7.4", status: 401, code: "AuthenticationFailed"},
		{name: "body too large", origin: public, method: "PUT", url: g, token: "good", body: strings.Repeat("x", 65), status: 413, code: "RequestBodyTooLarge"},
		{name: "unknown host", origin: public, method: "GET", url: "https://evil.example/subscriptions", token: "good", status: 421, code: "InvalidHostName"},
		{name: "unknown vault", origin: public, method: "GET", url: "https://v2.vault.casemate.test/secrets/k?api-version=2024-01-01", token: "good", status: 421, code: "InvalidHostName"},
		{name: "no vault", origin: public, method: "GET", url: "https://.vault.casemate.test/secrets/k?api-version=2024-01-01", token: "good", status: 421, code: "InvalidHostName"},
		{name: "encoded slash", origin: public, method: "GET", url: m + "/subscriptions/s/resourceGroups/a%2Fb?api-version=2024-01-01", token: "good", status: 400, code: "InvalidUri"},
		{name: "double encoding", origin: public, method: "GET", url: m + "/subscriptions/s/resourceGroups/a%252e?api-version=2024-01-01", token: "good", status: 400, code: "InvalidUri"},
		{name: "dots", origin: public, method: "GET", url: m + "/subscriptions/s/resourceGroups/%2e%2e?api-version=2024-01-01", token: "good", status: 400, code: "InvalidUri"},
		{name: "node token elsewhere", origin: public, method: "GET", url: g, token: "node", status: 401, code: "InvalidAuthenticationToken"},
		{name: "origin unknown", method: "GET", url: g, token: "good", status: 403, code: "OriginNotAllowed"},
		{name: "open vault from outside", origin: public, method: "GET", url: v, token: "good", status: 200, allowed: true, durableLog: true},
		{name: "closed vault from outside", origin: public, method: "GET", url: v, token: "good", closed: true, status: 403, code: "Forbidden"},
		{name: "closed vault through its endpoint", origin: private, method: "GET", url: v, token: "good", closed: true, status: 200, allowed: true, durableLog: true},
		{name: "vault through another's endpoint", origin: elsewhere, method: "GET", url: v, token: "good", status: 403, code: "Forbidden"},
		{name: "vault through the platform's address", origin: platform, method: "GET", url: v, token: "good", status: 403, code: "Forbidden"},
		{name: "management through the platform's address", origin: platform, method: "GET", url: g, token: "good", status: 200, allowed: true},
		{name: "management through a vault's endpoint", origin: private, method: "GET", url: g, token: "good", status: 403, code: "Forbidden"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newWorld()
			if tt.closed {
				f.docs[strings.ToLower(vaultID)].Set("properties.publicNetworkAccess", "Disabled")
			}
			w := do(f.gateway(t), tt.origin, tt.method, tt.url, tt.token, tt.body)
			if w.Code != tt.status || tt.code != "" && !strings.Contains(w.Body.String(), `"`+tt.code+`"`) {
				t.Fatalf("got %d %s, want %d %s", w.Code, w.Body, tt.status, tt.code)
			}
			if (tt.status == 200) != (f.served == 1) {
				t.Fatalf("served %d times", f.served)
			}
			if tt.durableLog != (f.durables > 0) {
				t.Fatalf("durable records: %d", f.durables)
			}
			if tt.allowed && (len(f.entries) != 2 || f.entries[0].Phase != audit.PhaseDecision || f.entries[1].Phase != audit.PhaseOutcome || f.entries[1].Status != 200) {
				t.Fatalf("trail: %+v", f.entries)
			}
			if tt.status == 401 && strings.HasPrefix(tt.url, m) && w.Header().Get("WWW-Authenticate") == "" {
				t.Fatal("no challenge")
			}
		})
	}
}

func TestNothingIsServedWithoutARecord(t *testing.T) {
	for _, url := range []string{"https://management.casemate.test/subscriptions/s/resourceGroups/g?api-version=2024-01-01", "https://v1.vault.casemate.test/secrets/k?api-version=2024-01-01"} {
		f := newWorld()
		f.broken = true
		w := do(f.gateway(t), public, "GET", url, "good", "")
		if w.Code != 503 || f.served != 0 || w.Header().Get("Retry-After") == "" {
			t.Fatalf("%s: %d, served %d times", url, w.Code, f.served)
		}
	}
}

func TestMissingColumnsStopTheStart(t *testing.T) {
	f := newWorld()
	whole := f.rows()[0]
	for name, spoil := range map[string]func(*resource.Route){
		"action": func(r *resource.Route) { r.Action = "" }, "scope": func(r *resource.Route) { r.Scope = "" }, "origin": func(r *resource.Route) { r.Origin = 0 },
		"body": func(r *resource.Route) { r.Body = 0 }, "timeout": func(r *resource.Route) { r.Timeout = 0 }, "audit": func(r *resource.Route) { r.Audit = 0 },
		"versions": func(r *resource.Route) { r.Versions = resource.Versions{} }, "handler": func(r *resource.Route) { r.Handler = nil },
		"two actions": func(r *resource.Route) { r.DataAction = "x" }, "plane": func(r *resource.Route) { r.Plane = "nowhere" },
	} {
		bad := whole
		spoil(&bad)
		_, err := New(Config{Domain: "x", Routes: []resource.Route{bad}, Planes: map[resource.Plane]Plane{resource.PlaneManagement: {}}})
		if err == nil {
			t.Errorf("a row without %s starts", name)
		}
	}
	if _, err := New(Config{Domain: "x", Routes: []resource.Route{whole, whole}, Planes: map[resource.Plane]Plane{resource.PlaneManagement: {}}}); err == nil {
		t.Error("two equal rows start")
	}
}

func TestPanicIsAnInternalError(t *testing.T) {
	f := newWorld()
	rows := f.rows()
	rows[0].Handler = func(http.ResponseWriter, *resource.Request) error { panic("secret detail") }
	g := f.gateway(t)
	g2, err := New(Config{Domain: g.cfg.Domain, Planes: g.cfg.Planes, Routes: rows, Authorize: f, Record: f, Documents: f, Clock: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	w := do(g2, public, "GET", "https://management.casemate.test/subscriptions/s/resourceGroups/g?api-version=2024-01-01", "good", "")
	if w.Code != 500 || strings.Contains(w.Body.String(), "secret detail") {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
}

func TestInProcessTransport(t *testing.T) {
	f := newWorld()
	f.docs[strings.ToLower(vaultID)].Set("properties.publicNetworkAccess", "Disabled")
	c := resource.Caller{Kind: resource.KindManagedIdentity, Object: "o"}
	client := &http.Client{Transport: f.gateway(t).Transport(c)}
	for url, want := range map[string]int{
		"https://v1.vault.casemate.test/secrets/k?api-version=2024-01-01":     200,
		"https://v1.vault.casemate.test/secrets/other?api-version=2024-01-01": 403,
		"https://elsewhere.example/":                                          421,
	} {
		res, err := client.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		if res.StatusCode != want {
			t.Errorf("%s: %d, want %d", url, res.StatusCode, want)
		}
		res.Body.Close()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if e := f.entries[0]; e.Caller == "" || e.Origin != "internal" {
		t.Errorf("trail: %+v", e)
	}
	if _, err := (&http.Client{Transport: f.gateway(t).Transport(resource.Caller{})}).Get("https://v1.vault.casemate.test/"); err == nil {
		t.Error("nobody was served in process")
	}
}

func FuzzCanonical(f *testing.F) {
	f.Add("/a//b/%2e%2e/c", false)
	f.Add("/c/a%2Fb", true)
	f.Fuzz(func(t *testing.T, path string, raw bool) {
		segs, err := canonical(path, raw)
		if err != nil || raw {
			return
		}
		for _, s := range segs {
			if s == "" || s == "." || s == ".." || strings.ContainsAny(s, "/\\%") {
				t.Fatalf("%q gave %q", path, segs)
			}
		}
	})
}
