package blob

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"io"
	"net/url"
	"strings"
	"unicode/utf8"

	"casemate.dev/resource"
)

const (
	maxTags     = 10
	maxTagKey   = 128 // characters
	maxTagValue = 256
	maxTagXML   = 64 << 10
	maxWhere    = 8 << 10 // bytes of an expression
	maxTerms    = 100     // comparisons in one
)

// tagText says whether s may be a tag's key or value: letters, digits, space and + - . / : = _ ("Set Blob Tags").
func tagText(s string) bool {
	for _, r := range s {
		if !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune(" +-./:=_", r)) {
			return false
		}
	}
	return true
}

func errTags(format string, args ...any) *resource.Error {
	return resource.Errorf(400, "InvalidTag", "The tags specified are invalid: %s", fmt.Sprintf(format, args...))
}

// addTag checks one tag and adds it.
func addTag(tags map[string]string, key, value string) error {
	_, twice := tags[key]
	switch {
	case key == "":
		return resource.Errorf(400, "EmptyTagKey", "The key of a tag is empty.")
	case !tagText(key) || utf8.RuneCountInString(key) > maxTagKey:
		return errTags("the key '%.80s' must be 1 to %d letters, digits, spaces and + - . / : = _", key, maxTagKey)
	case !tagText(value) || utf8.RuneCountInString(value) > maxTagValue:
		return errTags("the value of '%.80s' must be up to %d letters, digits, spaces and + - . / : = _", key, maxTagValue)
	case twice:
		return errTags("the key '%.80s' is given twice", key)
	case len(tags) == maxTags:
		return resource.Errorf(400, "TagsTooLarge", "A blob has at most %d tags.", maxTags)
	}
	tags[key] = value
	return nil
}

// parseTagHeader reads x-ms-tags, which has the form of a query string.
func parseTagHeader(v string) (map[string]string, error) {
	if v == "" {
		return nil, nil
	}
	tags := map[string]string{}
	for pair := range strings.SplitSeq(v, "&") {
		rawKey, rawValue, ok := strings.Cut(pair, "=")
		key, err1 := url.QueryUnescape(rawKey)
		value, err2 := url.QueryUnescape(rawValue)
		if !ok || err1 != nil || err2 != nil {
			return nil, errTags("x-ms-tags must have the form of a query string").WithTarget("x-ms-tags")
		}
		if err := addTag(tags, key, value); err != nil {
			return nil, err
		}
	}
	return tags, nil
}

// parseTagXML reads the body of Set Blob Tags. An empty set is allowed: it removes all tags.
func parseTagXML(body []byte) (map[string]string, error) {
	dec := xml.NewDecoder(bytes.NewReader(body))
	for {
		tok, err := dec.Token()
		if err == io.EOF {
			break
		}
		if _, isDoctype := tok.(xml.Directive); err != nil || isDoctype {
			return nil, resource.Errorf(400, "InvalidXmlDocument", "XML specified is not syntactically valid.")
		}
	}
	var doc struct {
		XMLName xml.Name `xml:"Tags"`
		TagSet  *struct {
			Tag []struct{ Key, Value string }
		}
	}
	if err := xml.Unmarshal(body, &doc); err != nil || doc.TagSet == nil {
		return nil, resource.Errorf(400, "InvalidXmlDocument", "XML specified is not syntactically valid: Tags with a TagSet are expected.")
	}
	tags := map[string]string{}
	for _, tag := range doc.TagSet.Tag {
		if err := addTag(tags, tag.Key, tag.Value); err != nil {
			return nil, err
		}
	}
	return tags, nil
}

// where is an expression over tags in disjunctive form: one of the alternatives must hold with all its terms.
type where [][]term

// term compares a tag with a value; texts are compared bytewise, as the service does.
type term struct {
	key, op, value string
}

// containerTerm is the key that stands for the container's name in Find Blobs by Tags.
const containerTerm = "@container"

func (q where) holds(container string, tags map[string]string) bool {
	for _, all := range q {
		ok := true
		for _, t := range all {
			ok = ok && t.holds(container, tags)
		}
		if ok {
			return true
		}
	}
	return false
}

// holds: of a blob without the tag, nothing holds but that the tag is not equal to something.
func (t term) holds(container string, tags map[string]string) bool {
	v, has := tags[t.key]
	if t.key == containerTerm {
		v, has = container, true
	}
	c := strings.Compare(v, t.value)
	switch t.op {
	case "=":
		return has && c == 0
	case "<>":
		return !has || c != 0
	case ">":
		return has && c > 0
	case ">=":
		return has && c >= 0
	case "<":
		return has && c < 0
	}
	return has && c <= 0
}

// whereParser reads
//
//	where = all { OR all }     (OR and <> in conditions only)
//	all   = term { AND term }
//	term  = ( @container | key | "key" ) ( = | <> | > | >= | < | <= ) 'value'
type whereParser struct {
	rest      string
	condition bool
	terms     int
}

// parseWhere reads the expression of Find Blobs by Tags, or (condition) of x-ms-if-tags.
func parseWhere(s string, condition bool) (where, error) {
	if len(s) > maxWhere || !utf8.ValidString(s) {
		return nil, fmt.Errorf("the expression is longer than %d bytes or no text", maxWhere)
	}
	p := &whereParser{rest: s, condition: condition}
	var out where
	for {
		all, err := p.all()
		if err != nil {
			return nil, err
		}
		out = append(out, all)
		switch {
		case p.end():
			return out, nil
		case !p.word("OR"):
			return nil, fmt.Errorf("AND or OR is expected at '%.20s'", p.rest)
		case !condition:
			return nil, fmt.Errorf("OR is not allowed when blobs are searched")
		}
	}
}

func (p *whereParser) end() bool {
	p.rest = strings.TrimLeft(p.rest, " \t")
	return p.rest == ""
}

// word takes an operator made of letters, in any case, that ends before a key.
func (p *whereParser) word(w string) bool {
	p.rest = strings.TrimLeft(p.rest, " \t")
	if len(p.rest) <= len(w) || !strings.EqualFold(p.rest[:len(w)], w) || !strings.ContainsRune(" \t\"@", rune(p.rest[len(w)])) {
		return false
	}
	p.rest = p.rest[len(w):]
	return true
}

func (p *whereParser) all() (out []term, err error) {
	for {
		t, err := p.term()
		if err != nil {
			return nil, err
		}
		if p.terms++; p.terms > maxTerms {
			return nil, fmt.Errorf("the expression has more than %d comparisons", maxTerms)
		}
		if out = append(out, t); !p.word("AND") {
			return out, nil
		}
	}
}

func (p *whereParser) term() (t term, err error) {
	if t.key, err = p.key(); err != nil {
		return t, err
	}
	p.rest = strings.TrimLeft(p.rest, " \t")
	for _, op := range []string{"<>", ">=", "<=", "=", ">", "<"} {
		if strings.HasPrefix(p.rest, op) {
			t.op = op
			break
		}
	}
	switch {
	case t.op == "":
		return t, fmt.Errorf("a comparison is expected at '%.20s'", p.rest)
	case t.op == "<>" && !p.condition:
		return t, fmt.Errorf("<> is not allowed when blobs are searched")
	case t.key == containerTerm && t.op != "=":
		return t, fmt.Errorf("%s can be compared by = only", containerTerm)
	}
	p.rest = strings.TrimLeft(p.rest[len(t.op):], " \t")
	t.value, err = p.quoted('\'')
	if err == nil && t.key != containerTerm && (!tagText(t.value) || len(t.value) > maxTagValue) {
		err = fmt.Errorf("'%.40s' cannot be the value of a tag", t.value)
	}
	return t, err
}

func (p *whereParser) key() (key string, err error) {
	p.rest = strings.TrimLeft(p.rest, " \t")
	switch {
	case strings.HasPrefix(p.rest, `"`):
		key, err = p.quoted('"')
	case strings.HasPrefix(p.rest, "@"):
		if p.condition || len(p.rest) < len(containerTerm) || !strings.EqualFold(p.rest[:len(containerTerm)], containerTerm) {
			return "", fmt.Errorf("a tag is expected at '%.20s'", p.rest)
		}
		p.rest = p.rest[len(containerTerm):]
		return containerTerm, nil
	default:
		n := strings.IndexFunc(p.rest, func(r rune) bool { return r != '_' && !isAlnum(r) })
		if n < 0 {
			n = len(p.rest)
		}
		key, p.rest = p.rest[:n], p.rest[n:]
	}
	if err == nil && (key == "" || !tagText(key) || len(key) > maxTagKey) {
		err = fmt.Errorf("a tag is expected at '%.20s'", p.rest)
	}
	return key, err
}

func isAlnum(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
}

func (p *whereParser) quoted(q byte) (string, error) {
	if p.rest == "" || p.rest[0] != q {
		return "", fmt.Errorf("%c is expected at '%.20s'", q, p.rest)
	}
	body, rest, ok := strings.Cut(p.rest[1:], string(q))
	if !ok {
		return "", fmt.Errorf("%c is not closed", q)
	}
	p.rest = rest
	return body, nil
}
