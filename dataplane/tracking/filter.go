package tracking

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"unicode"

	"casemate.dev/resource"
)

// The filter language of MLflow's search operations:
//
//	filter     = [ comparison { "AND" comparison } ]
//	comparison = name ( op literal | [ "NOT" ] "IN" "(" string { "," string } ")" | "IS" [ "NOT" ] "NULL" )
//	name       = [ entity "." ] key         entity: metrics, params, tags, attributes and their aliases
//	key        = bare | "`" any "`" | '"' any '"'
//	op         = "=" | "!=" | "<" | "<=" | ">" | ">=" | "LIKE" | "ILIKE"
//	literal    = number | "'" any "'" | '"' any '"'
//
// Source: MLflow, "Search Runs" and "Search Experiments". A value that is missing compares as false with everything.

// entity is what a name speaks of.
type entity string

const (
	metricEntity    entity = "metric"
	paramEntity     entity = "param"
	tagEntity       entity = "tag"
	attributeEntity entity = "attribute"
)

var entities = map[string]entity{
	"metric": metricEntity, "metrics": metricEntity,
	"param": paramEntity, "params": paramEntity, "parameter": paramEntity, "parameters": paramEntity,
	"tag": tagEntity, "tags": tagEntity,
	"attribute": attributeEntity, "attributes": attributeEntity, "attr": attributeEntity, "run": attributeEntity,
}

// value is what a record has under a name.
type value struct {
	text    string
	number  float64
	numeric bool
	ok      bool // there is one
}

// lookup reads a record's value under a name.
type lookup func(e entity, key string) value

// schema says which attributes records of a kind have, and whether they are numbers; other entities are allowed by flag.
type schema struct {
	attributes map[string]bool // name → numeric
	aliases    map[string]string
	entities   map[entity]bool
}

// name is a parsed name.
type name struct {
	entity  entity
	key     string
	numeric bool
}

type comparison struct {
	name   name
	op     string // upper case; IN, NOT IN, IS NULL, IS NOT NULL too
	text   []string
	number float64
}

// filter is a conjunction; the empty one holds for all.
type filter []comparison

const (
	maxFilterLength = 8 << 10
	maxComparisons  = 100
)

func invalid(format string, args ...any) *resource.Error {
	return resource.Errorf(400, "INVALID_PARAMETER_VALUE", format, args...)
}

func parseFilter(s string, sch schema) (filter, error) {
	if len(s) > maxFilterLength {
		return nil, invalid("The filter is longer than %d bytes.", maxFilterLength)
	}
	p := &parser{in: s, sch: sch}
	var out filter
	for {
		p.space()
		if p.at == len(p.in) && len(out) == 0 {
			return out, nil
		}
		c, err := p.comparison()
		if err != nil {
			return nil, invalid("Invalid filter at position %d: %s.", p.at, err)
		}
		if out = append(out, c); len(out) > maxComparisons {
			return nil, invalid("The filter has more than %d comparisons.", maxComparisons)
		}
		p.space()
		if p.at == len(p.in) {
			return out, nil
		}
		if !p.word("AND") {
			return nil, invalid("Invalid filter at position %d: expected AND.", p.at)
		}
	}
}

type parser struct {
	in  string
	at  int
	sch schema
}

func (p *parser) space() {
	for p.at < len(p.in) && strings.IndexByte(" \t\r\n", p.in[p.at]) >= 0 {
		p.at++
	}
}

// word consumes a keyword that ends where a word ends.
func (p *parser) word(w string) bool {
	p.space()
	end := p.at + len(w)
	if end > len(p.in) || !strings.EqualFold(p.in[p.at:end], w) || end < len(p.in) && isBare(p.in[end]) {
		return false
	}
	p.at = end
	return true
}

func (p *parser) symbol(s string) bool {
	p.space()
	if strings.HasPrefix(p.in[p.at:], s) {
		p.at += len(s)
		return true
	}
	return false
}

func isBare(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c >= 0x80 || strings.IndexByte("_-./:", c) >= 0
}

// bare consumes letters, digits and what else may stand in a name without quotes.
func (p *parser) bare() string {
	start := p.at
	for p.at < len(p.in) && isBare(p.in[p.at]) {
		p.at++
	}
	return p.in[start:p.at]
}

// quoted consumes text between two of one of the quotes; there is no escape, as in MLflow.
func (p *parser) quoted(quotes string) (string, bool, error) {
	if p.at >= len(p.in) || strings.IndexByte(quotes, p.in[p.at]) < 0 {
		return "", false, nil
	}
	end := strings.IndexByte(p.in[p.at+1:], p.in[p.at])
	if end < 0 {
		return "", false, fmt.Errorf("a quote is not closed")
	}
	s := p.in[p.at+1 : p.at+1+end]
	p.at += end + 2
	return s, true, nil
}

func (p *parser) name() (name, error) {
	p.space()
	first := p.bare()
	if first == "" {
		key, ok, err := p.quoted("`\"")
		if err != nil || !ok {
			return name{}, fmt.Errorf("expected a name such as metrics.accuracy (%v)", err)
		}
		return p.sch.attribute(key)
	}
	prefix, key, dotted := strings.Cut(first, ".")
	e, known := entities[strings.ToLower(prefix)]
	if !dotted || !known {
		return p.sch.attribute(first)
	}
	if key == "" {
		var ok bool
		var err error
		if key, ok, err = p.quoted("`\""); err != nil || !ok {
			return name{}, fmt.Errorf("expected a key after %q (%v)", first, err)
		}
	}
	if e == attributeEntity {
		return p.sch.attribute(key)
	}
	if !p.sch.entities[e] {
		return name{}, fmt.Errorf("%ss cannot be searched here", e)
	}
	return name{e, key, e == metricEntity}, nil
}

func (s schema) attribute(key string) (name, error) {
	k := strings.ToLower(key)
	if a, ok := s.aliases[k]; ok {
		k = a
	}
	numeric, ok := s.attributes[k]
	if !ok {
		return name{}, fmt.Errorf("there is no attribute %q", clip(key))
	}
	return name{attributeEntity, k, numeric}, nil
}

func (p *parser) comparison() (comparison, error) {
	n, err := p.name()
	if err != nil {
		return comparison{}, err
	}
	c := comparison{name: n}
	if c.op, err = p.operator(); err != nil {
		return c, err
	}
	switch c.op {
	case "IS NULL", "IS NOT NULL":
		return c, nil
	case "IN", "NOT IN":
		if n.numeric {
			return c, fmt.Errorf("%s is for text, and %q is a number", c.op, n.key)
		}
		c.text, err = p.list()
		return c, err
	case "LIKE", "ILIKE":
		if n.numeric {
			return c, fmt.Errorf("%s is for text, and %q is a number", c.op, n.key)
		}
	case "<", "<=", ">", ">=":
		if !n.numeric {
			return c, fmt.Errorf("%s is for numbers, and %q is text", c.op, n.key)
		}
	}
	return p.literal(c)
}

func (p *parser) operator() (string, error) {
	for _, op := range []string{"<=", ">=", "!=", "=", "<", ">"} {
		if p.symbol(op) {
			return op, nil
		}
	}
	switch {
	case p.word("LIKE"):
		return "LIKE", nil
	case p.word("ILIKE"):
		return "ILIKE", nil
	case p.word("IN"):
		return "IN", nil
	case p.word("NOT"):
		if p.word("IN") {
			return "NOT IN", nil
		}
	case p.word("IS"):
		if p.word("NULL") {
			return "IS NULL", nil
		}
		if p.word("NOT") && p.word("NULL") {
			return "IS NOT NULL", nil
		}
	}
	return "", fmt.Errorf("expected a comparison operator")
}

func (p *parser) literal(c comparison) (comparison, error) {
	p.space()
	if !c.name.numeric {
		s, ok, err := p.quoted(`'"`)
		if err != nil || !ok {
			return c, fmt.Errorf("expected text in quotes (%v)", err)
		}
		c.text = []string{s}
		return c, nil
	}
	start := p.at
	for p.at < len(p.in) && (isBare(p.in[p.at]) || p.in[p.at] == '+') {
		p.at++
	}
	v, err := strconv.ParseFloat(p.in[start:p.at], 64)
	if err != nil || strings.ContainsAny(p.in[start:p.at], "xX_") {
		return c, fmt.Errorf("expected a number")
	}
	c.number = v
	return c, nil
}

func (p *parser) list() ([]string, error) {
	if !p.symbol("(") {
		return nil, fmt.Errorf("expected a list in parentheses")
	}
	var out []string
	for {
		p.space()
		s, ok, err := p.quoted(`'"`)
		if err != nil || !ok {
			return nil, fmt.Errorf("expected text in quotes (%v)", err)
		}
		out = append(out, s)
		if p.symbol(")") {
			return out, nil
		}
		if !p.symbol(",") {
			return nil, fmt.Errorf("expected a comma or a closing parenthesis")
		}
	}
}

// holds evaluates the filter for one record.
func (f filter) holds(get lookup) bool {
	for _, c := range f {
		if !c.holds(get(c.name.entity, c.name.key)) {
			return false
		}
	}
	return true
}

func (c comparison) holds(v value) bool {
	switch c.op {
	case "IS NULL":
		return !v.ok
	case "IS NOT NULL":
		return v.ok
	}
	if !v.ok {
		return false
	}
	if c.name.numeric {
		return compareNumbers(c.op, v.number, c.number)
	}
	switch c.op {
	case "=":
		return v.text == c.text[0]
	case "!=":
		return v.text != c.text[0]
	case "LIKE":
		return like([]rune(v.text), []rune(c.text[0]))
	case "ILIKE":
		return like(foldRunes(v.text), foldRunes(c.text[0]))
	}
	in := false
	for _, t := range c.text {
		in = in || t == v.text
	}
	return in == (c.op == "IN")
}

// compareNumbers follows IEEE 754: NaN is unequal to everything and in no order.
func compareNumbers(op string, a, b float64) bool {
	switch op {
	case "=":
		return a == b
	case "!=":
		return a != b
	case "<":
		return a < b
	case "<=":
		return a <= b
	case ">":
		return a > b
	}
	return a >= b
}

func foldRunes(s string) []rune {
	return []rune(strings.Map(unicode.ToLower, s))
}

// like matches SQL's patterns: % for any text, _ for one character. It goes back to the last % only, so that its time is
// bounded by the product of the lengths.
func like(s, pattern []rune) bool {
	i, j, star, mark := 0, 0, -1, 0
	for i < len(s) {
		switch {
		case j < len(pattern) && pattern[j] == '%':
			star, mark = j, i
			j++
		case j < len(pattern) && (pattern[j] == '_' || pattern[j] == s[i]):
			i++
			j++
		case star >= 0:
			mark++
			i, j = mark, star+1
		default:
			return false
		}
	}
	for j < len(pattern) && pattern[j] == '%' {
		j++
	}
	return j == len(pattern)
}

// term is one element of order_by.
type term struct {
	name name
	desc bool
}

func parseOrder(terms []string, sch schema) ([]term, error) {
	if len(terms) > 20 {
		return nil, invalid("order_by has more than 20 elements.")
	}
	var out []term
	for _, s := range terms {
		if len(s) > 1024 {
			return nil, invalid("An element of order_by is longer than 1024 bytes.")
		}
		p := &parser{in: s, sch: sch}
		n, err := p.name()
		if err != nil {
			return nil, invalid("Invalid order_by '%s': %s.", clip(s), err)
		}
		t := term{name: n}
		switch {
		case p.word("DESC"):
			t.desc = true
		case p.word("ASC"):
		}
		if p.space(); p.at != len(p.in) {
			return nil, invalid("Invalid order_by '%s': expected ASC or DESC.", clip(s))
		}
		out = append(out, t)
	}
	return out, nil
}

// compare orders two records by the terms; numbers come before NaN and NaN before what is missing, in both directions.
func compare(terms []term, a, b lookup) int {
	for _, t := range terms {
		va, vb := a(t.name.entity, t.name.key), b(t.name.entity, t.name.key)
		if ra, rb := rank(va), rank(vb); ra != rb {
			return ra - rb
		} else if ra > 0 {
			continue
		}
		c := 0
		switch {
		case va.numeric && va.number < vb.number, !va.numeric && va.text < vb.text:
			c = -1
		case va.numeric && va.number > vb.number, !va.numeric && va.text > vb.text:
			c = 1
		}
		if t.desc {
			c = -c
		}
		if c != 0 {
			return c
		}
	}
	return 0
}

func rank(v value) int {
	switch {
	case !v.ok:
		return 2
	case v.numeric && math.IsNaN(v.number):
		return 1
	}
	return 0
}

func clip(s string) string {
	if len(s) > 100 {
		return s[:100] + "…"
	}
	return s
}
