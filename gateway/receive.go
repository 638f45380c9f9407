package gateway

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"

	"github.com/google/uuid"

	"casemate.dev/resource"
)

const maxPath = 8 << 10

// receive finds the plane by host and the row by path, and bounds the request: canonical path, body limit, time limit,
// correlation id, API version. Forwarding headers are dropped: nobody downstream may believe them.
func (g *Gateway) receive(x *exchange) error {
	r := x.r
	r.CorrelationID = correlationID(r.Header)
	h := x.w.Header()
	h["x-ms-request-id"] = []string{r.CorrelationID}
	h["x-ms-correlation-request-id"] = []string{r.CorrelationID}
	if id := r.Header.Get("x-ms-client-request-id"); id != "" && len(id) <= 128 && printable(id) {
		h["x-ms-client-request-id"] = []string{id}
	}
	h.Set("Strict-Transport-Security", "max-age=31536000; includeSubDomains")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	for _, name := range []string{"X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded-Uri", "X-Original-Url", "X-Rewrite-Url", "Forwarded", "X-Ms-Target-Port"} {
		if x.r.Origin.Kind != resource.OriginNode { // the metadata rows refuse requests that were forwarded
			r.Header.Del(name)
		}
	}
	plane, name, escaped, err := g.findPlane(r)
	if err != nil {
		return err
	}
	x.plane = plane
	segs, err := canonical(escaped, plane.RawNames)
	if err != nil {
		return err
	}
	r.RawPath = r.URL.EscapedPath()
	r.URL.Path, r.URL.RawPath = "/"+strings.Join(segs, "/"), ""
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return resource.Errorf(http.StatusBadRequest, "InvalidQueryParameterValue", "The query string of the request cannot be read.").WithCause(err)
	}
	g.findRow(x, name, segs, query)
	g.bound(x)
	return nil
}

// findRow looks the row up; that there is none is told only after authentication.
func (g *Gateway) findRow(x *exchange, name resource.Plane, segs []string, query url.Values) {
	r := x.r
	route, vars, methods := g.tables[name].match(r.Method, segs, query, r.Header)
	if route == nil {
		if len(methods) > 0 {
			slices.Sort(methods)
			e := resource.Errorf(http.StatusMethodNotAllowed, "MethodNotAllowed", "The method %s is not allowed here. Allowed are %s.", r.Method, strings.Join(methods, ", "))
			e.Header = http.Header{"Allow": {strings.Join(methods, ", ")}}
			x.missing = e
		} else {
			x.missing = resource.Errorf(http.StatusNotFound, "NotFound", "There is no operation %s %s here, or Casemate does not support it.", r.Method, r.URL.Path)
		}
		return
	}
	r.Route, r.Vars = route, vars
	r.Version = query.Get("api-version")
	if v := x.plane.VersionHeader; v != "" {
		r.Version = r.Header.Get(v)
		if r.Version != "" && len(r.Version) <= 32 && printable(r.Version) {
			x.w.Header()[lower(v)] = []string{r.Version}
		}
	}
	if err := route.Versions.Check(r.Version); err != nil {
		x.missing = err
	}
}

// bound sets the body and time limits of the row, or small ones when there is no row.
func (g *Gateway) bound(x *exchange) {
	r := x.r
	limit := int64(0)
	if r.Route != nil {
		limit = max(r.Route.Body, 0)
		var ctx context.Context
		ctx, x.cancel = context.WithTimeout(r.Context(), r.Route.Timeout)
		r.Request = r.Request.WithContext(ctx)
		x.until(r.Route.Timeout)
	}
	if r.ContentLength > limit {
		if x.missing == nil {
			x.missing = resource.Errorf(http.StatusRequestEntityTooLarge, "RequestBodyTooLarge", "The request body of %d bytes is larger than the %d bytes that this operation accepts.", r.ContentLength, limit)
		}
	}
	r.Body = http.MaxBytesReader(x.w.ResponseWriter, r.Body, limit)
}

// findPlane maps the Host header to a plane. A private endpoint's address, too, is only reached by its proper name. On
// loopback addresses the storage plane also answers path style, /{account}/….
func (g *Gateway) findPlane(r *resource.Request) (*Plane, resource.Plane, string, error) {
	host := lower(r.Request.Host)
	if h, port, err := net.SplitHostPort(host); err == nil {
		if _, err := strconv.ParseUint(port, 10, 16); err == nil {
			host = h // with anything else behind the colon it is no name of ours
		}
	}
	host = strings.TrimSuffix(host, ".")
	escaped := r.URL.EscapedPath()
	if len(escaped) > maxPath {
		return nil, "", "", resource.Errorf(http.StatusRequestURITooLong, "RequestUriTooLong", "The request path is longer than %d characters.", maxPath)
	}
	unknown := resource.Errorf(http.StatusMisdirectedRequest, "InvalidHostName", "No service of this platform has the name '%s'. Use a host name below %s.", clip(host, 100), g.cfg.Domain)
	if r.Origin.Kind == resource.OriginNode {
		p, ok := g.cfg.Planes[resource.PlaneNode]
		if !ok || host != "169.254.169.254" {
			return nil, "", "", unknown
		}
		return &p, resource.PlaneNode, escaped, nil
	}
	if addr, err := netip.ParseAddr(host); err == nil && addr.IsLoopback() {
		name, p, rest, ok := g.pathStyle(r, escaped)
		if !ok {
			return nil, "", "", unknown
		}
		return p, name, rest, nil
	}
	name, label, ok := g.hosts.find(host)
	if !ok {
		return nil, "", "", unknown
	}
	p := g.cfg.Planes[name]
	r.Host = label
	if p.Resolve != nil { // a host without its first label names nothing either
		if r.Resource, ok = p.Resolve(label); !ok {
			return nil, "", "", unknown
		}
	}
	return &p, name, escaped, nil
}

// pathStyle serves https://127.0.0.1:port/ as resource manager, token service (/adfs, /{tenant}/oauth2) and storage account,
// for clients that only know an address (CLIENTS.md, section 1.2).
func (g *Gateway) pathStyle(r *resource.Request, escaped string) (resource.Plane, *Plane, string, bool) {
	first, rest, _ := strings.Cut(strings.TrimPrefix(escaped, "/"), "/")
	switch lower(first) {
	case "subscriptions", "providers", "metadata", "tenants", "healthz":
		p := g.cfg.Planes[resource.PlaneManagement]
		return resource.PlaneManagement, &p, escaped, true
	case "adfs", "common":
		p := g.cfg.Planes[resource.PlaneLogin]
		return resource.PlaneLogin, &p, escaped, true
	}
	if p, ok := g.cfg.Planes[resource.PlaneLogin]; ok {
		if _, err := uuid.Parse(first); err == nil {
			return resource.PlaneLogin, &p, escaped, true
		}
	}
	p, ok := g.cfg.Planes[resource.PlaneBlob]
	if !ok || p.Resolve == nil {
		return "", nil, "", false
	}
	id, ok := p.Resolve(lower(first))
	if !ok {
		return "", nil, "", false
	}
	r.Host, r.Resource = lower(first), id
	return resource.PlaneBlob, &p, "/" + rest, true
}

// canonical decodes a path once, segment by segment. ARM paths lose empty segments and a trailing slash, and refuse what
// could mean two things: encoded slashes, backslashes, dots, percent signs. Object names (raw) keep everything but control
// characters below the first two segments' worth of structure: they are names, never paths.
func canonical(escaped string, raw bool) ([]string, error) {
	bad := resource.Errorf(http.StatusBadRequest, "InvalidUri", "The request path is malformed. Send each name percent-encoded once.")
	parts := strings.Split(strings.TrimPrefix(escaped, "/"), "/")
	segs := make([]string, 0, len(parts))
	for _, p := range parts {
		s, err := url.PathUnescape(p)
		if err != nil {
			return nil, bad
		}
		if raw {
			if strings.ContainsRune(s, 0) {
				return nil, bad
			}
			segs = append(segs, s)
			continue
		}
		if s == "" {
			continue
		}
		if s == "." || s == ".." || strings.ContainsAny(s, `/\%?#;`) || !printable(s) {
			return nil, bad
		}
		segs = append(segs, s)
	}
	if raw {
		return rawSegments(segs), nil
	}
	return segs, nil
}

// rawSegments drops the one empty segment of "/" and of a trailing slash behind a container ("/container/").
func rawSegments(segs []string) []string {
	if len(segs) == 1 && segs[0] == "" {
		return nil
	}
	if len(segs) == 2 && segs[1] == "" {
		return segs[:1]
	}
	return segs
}

func printable(s string) bool {
	for _, r := range s {
		if r < 0x20 || r == 0x7f || r == 0xfffd {
			return false
		}
	}
	return true
}

func correlationID(h http.Header) string {
	if id, err := uuid.Parse(h.Get("x-ms-correlation-request-id")); err == nil {
		return id.String()
	}
	return uuid.NewString()
}

func clip(s string, n int) string {
	if len(s) > n {
		return s[:n] + "…"
	}
	return s
}

func stack() string { return string(debug.Stack()) }

// hostTable maps host names below the domain to planes.
type hostTable struct {
	exact    map[string]resource.Plane
	wildcard map[string]resource.Plane // suffix behind the first label
}

func newHostTable(domain string, planes map[resource.Plane]Plane) (hostTable, error) {
	t := hostTable{exact: map[string]resource.Plane{}, wildcard: map[string]resource.Plane{}}
	for name, p := range planes {
		for _, h := range p.Hosts {
			m, key := t.exact, h+"."+lower(domain)
			if rest, ok := strings.CutPrefix(h, "*."); ok {
				m, key = t.wildcard, rest+"."+lower(domain)
			}
			if other, ok := m[key]; ok {
				return t, fmt.Errorf("planes %s and %s both answer for %s", other, name, h)
			}
			m[key] = name
		}
	}
	return t, nil
}

func (t hostTable) find(host string) (resource.Plane, string, bool) {
	if p, ok := t.exact[host]; ok {
		return p, "", true
	}
	label, rest, _ := strings.Cut(host, ".")
	p, ok := t.wildcard[rest]
	if ok {
		return p, label, true
	}
	// <endpoint>.<region>.inference.<domain>: two labels before the plane's own, resolved together.
	region, rest, _ := strings.Cut(rest, ".")
	if p, ok := t.wildcard["*."+rest]; ok && region != "" {
		return p, label + "." + region, true
	}
	return "", "", false
}
