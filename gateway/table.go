package gateway

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"casemate.dev/resource"
)

// table finds the row of a request: a tree of path segments, literal before variable, and at its leaves the rows that
// differ by method and by query and header conditions.
//
// Patterns that begin with {scope...} serve extension resources: they are matched from the last "providers" segment on,
// and what stands before becomes the variable "scope".
type table struct {
	fold      bool // literals match without regard to case
	root      *segment
	extension *segment
}

type segment struct {
	literal map[string]*segment
	one     *segment // {name}
	rest    *segment // {name...}
	rows    []*row
}

type row struct {
	route *resource.Route
	vars  []string // names in order; the last may be a rest
	conds []condition
}

type condition struct {
	header bool
	absent bool
	name   string
	value  string // "" with hasValue false: presence
	has    bool
}

func newTable(fold bool) *table {
	return &table{fold: fold, root: &segment{}, extension: &segment{}}
}

func (t *table) add(r *resource.Route) error {
	segs := strings.Split(strings.TrimPrefix(r.Pattern, "/"), "/")
	at := t.root
	if segs[0] == "{scope...}" {
		at, segs = t.extension, segs[1:]
	}
	rw := &row{route: r, conds: parseConditions(r.Query)}
	if len(segs) == 1 && segs[0] == "" {
		segs = nil
	}
	for i, s := range segs {
		switch {
		case strings.HasPrefix(s, "{") && strings.HasSuffix(s, "...}"):
			if i != len(segs)-1 {
				return fmt.Errorf("route %s: %s must be last", r.Name, s)
			}
			rw.vars = append(rw.vars, s[1:len(s)-4])
			at.rest = orNew(at.rest)
			at = at.rest
		case strings.HasPrefix(s, "{") && strings.HasSuffix(s, "}"):
			rw.vars = append(rw.vars, s[1:len(s)-1])
			at.one = orNew(at.one)
			at = at.one
		default:
			if t.fold {
				s = lower(s)
			}
			if at.literal == nil {
				at.literal = map[string]*segment{}
			}
			at.literal[s] = orNew(at.literal[s])
			at = at.literal[s]
		}
	}
	for _, other := range at.rows {
		if other.route.Method == r.Method && slices.Equal(sortedConds(other), sortedConds(rw)) {
			return fmt.Errorf("routes %s and %s of plane %s answer the same request", other.route.Name, r.Name, r.Plane)
		}
	}
	at.rows = append(at.rows, rw)
	return nil
}

func orNew(s *segment) *segment {
	if s == nil {
		return &segment{}
	}
	return s
}

func sortedConds(r *row) []condition {
	c := slices.Clone(r.conds)
	slices.SortFunc(c, func(a, b condition) int {
		return strings.Compare(fmt.Sprint(a), fmt.Sprint(b))
	})
	return c
}

func parseConditions(list []string) []condition {
	var out []condition
	for _, s := range list {
		var c condition
		c.absent = strings.HasPrefix(s, "!")
		s = strings.TrimPrefix(s, "!")
		c.header = strings.HasPrefix(s, "header:")
		s = strings.TrimPrefix(s, "header:")
		c.name, c.value, c.has = strings.Cut(s, "=")
		out = append(out, c)
	}
	return out
}

func (c condition) holds(q url.Values, h http.Header) bool {
	var values []string
	if c.header {
		values = h.Values(c.name)
	} else {
		values = q[c.name]
	}
	ok := len(values) > 0
	if ok && c.has {
		ok = len(values) == 1 && strings.EqualFold(values[0], c.value)
	}
	return ok != c.absent
}

// match finds the row for decoded path segments. When the path exists but not the method, methods lists those that do.
func (t *table) match(method string, segs []string, q url.Values, h http.Header) (*resource.Route, map[string]string, []string) {
	m := matcher{table: t, method: method, query: q, header: h}
	if i := lastProviders(segs); t.fold && i >= 0 {
		if found := m.walk(t.extension, segs[i:], nil); found != nil {
			vars := found.variables(m.values)
			vars["scope"] = "/" + strings.Join(segs[:i], "/")
			return found.route, vars, nil
		}
	}
	if found := m.walk(t.root, segs, nil); found != nil {
		return found.route, found.variables(m.values), nil
	}
	return nil, nil, m.methods
}

func lastProviders(segs []string) int {
	for i := len(segs) - 2; i >= 0; i-- {
		if strings.EqualFold(segs[i], "providers") && strings.Contains(segs[i+1], ".") {
			return i
		}
	}
	return -1
}

type matcher struct {
	table   *table
	method  string
	query   url.Values
	header  http.Header
	values  []string
	methods []string
}

func (m *matcher) walk(at *segment, segs, values []string) *row {
	if len(segs) == 0 {
		if found := m.choose(at.rows, values); found != nil {
			return found
		}
		if at.rest != nil {
			return m.choose(at.rest.rows, append(values, ""))
		}
		return nil
	}
	name := segs[0]
	if m.table.fold {
		name = lower(name)
	}
	if next := at.literal[name]; next != nil {
		if found := m.walk(next, segs[1:], values); found != nil {
			return found
		}
	}
	if at.one != nil && segs[0] != "" {
		if found := m.walk(at.one, segs[1:], append(values, segs[0])); found != nil {
			return found
		}
	}
	if at.rest != nil {
		return m.choose(at.rest.rows, append(values, strings.Join(segs, "/")))
	}
	return nil
}

// choose takes the row of the method whose conditions hold, the one with the most conditions first.
func (m *matcher) choose(rows []*row, values []string) *row {
	var best *row
	for _, rw := range rows {
		if rw.route.Method != m.method {
			if !slices.Contains(m.methods, rw.route.Method) {
				m.methods = append(m.methods, rw.route.Method)
			}
			continue
		}
		if best != nil && len(best.conds) >= len(rw.conds) || !rw.holds(m.query, m.header) {
			continue
		}
		best = rw
	}
	if best != nil {
		m.values = values
	}
	return best
}

func (rw *row) holds(q url.Values, h http.Header) bool {
	for _, c := range rw.conds {
		if !c.holds(q, h) {
			return false
		}
	}
	return true
}

func (rw *row) variables(values []string) map[string]string {
	vars := make(map[string]string, len(rw.vars)+1)
	for i, name := range rw.vars {
		vars[name] = values[i]
	}
	return vars
}
