package identity

import (
	"errors"
	"slices"
	"strings"
)

// filter is a compiled $filter over an object as the directory API shows it.
type filter func(view map[string]any) bool

// maxFilter bounds the text, and with it the nesting, of a filter.
const maxFilter = 2048

var errFilter = errors.New("use property eq 'value', startswith(property,'value') and collection/any(x:x eq 'value'), joined by and, or and parentheses")

// parseFilter reads the part of OData 4.01 (URL Conventions §5.1.1) that directory clients send:
//
//	expression = conjunction *( "or" conjunction )        conjunction = term *( "and" term )
//	term = "(" expression ")" / property "eq" literal / "startswith(" property "," string ")"
//	     / property "/any(" name ":" name "eq" string ")"
//
// Strings compare without regard to case, as Graph's do.
func parseFilter(s string) (filter, error) {
	if len(s) > maxFilter {
		return nil, errFilter
	}
	p := filterParser{tokens: filterTokens(s)}
	f, err := p.expression()
	if err == nil && len(p.tokens) > 0 {
		err = errFilter
	}
	return f, err
}

// filterTokens cuts a filter into words, strings (with their opening quote) and single punctuation characters.
func filterTokens(s string) []string {
	var out []string
	for s != "" {
		switch c := s[0]; {
		case c == ' ' || c == '\t':
			s = s[1:]
		case c == '\'':
			text, rest, ok := cutString(s[1:])
			if !ok {
				return append(out, "\x00") // matches nothing in the grammar
			}
			out, s = append(out, "'"+text), rest
		case strings.IndexByte("(),:/", c) >= 0:
			out, s = append(out, s[:1]), s[1:]
		default:
			n := strings.IndexAny(s, " \t'(),:/")
			if n < 0 {
				n = len(s)
			}
			out, s = append(out, s[:n]), s[n:]
		}
	}
	return out
}

// cutString ends at a quote; two quotes stand for one.
func cutString(s string) (text, rest string, ok bool) {
	var b strings.Builder
	for {
		i := strings.IndexByte(s, '\'')
		if i < 0 {
			return "", "", false
		}
		b.WriteString(s[:i])
		if s = s[i+1:]; !strings.HasPrefix(s, "'") {
			return b.String(), s, true
		}
		b.WriteByte('\'')
		s = s[1:]
	}
}

type filterParser struct{ tokens []string }

func (p *filterParser) next() string {
	if len(p.tokens) == 0 {
		return ""
	}
	t := p.tokens[0]
	p.tokens = p.tokens[1:]
	return t
}

func (p *filterParser) accept(word string) bool {
	if len(p.tokens) > 0 && strings.EqualFold(p.tokens[0], word) {
		p.tokens = p.tokens[1:]
		return true
	}
	return false
}

// expect reads words in turn.
func (p *filterParser) expect(words ...string) bool {
	for _, w := range words {
		if !p.accept(w) {
			return false
		}
	}
	return true
}

func (p *filterParser) expression() (filter, error) {
	left, err := p.conjunction()
	for err == nil && p.accept("or") {
		l := left
		var right filter
		right, err = p.conjunction()
		left = func(v map[string]any) bool { return l(v) || right(v) }
	}
	return left, err
}

func (p *filterParser) conjunction() (filter, error) {
	left, err := p.term()
	for err == nil && p.accept("and") {
		l := left
		var right filter
		right, err = p.term()
		left = func(v map[string]any) bool { return l(v) && right(v) }
	}
	return left, err
}

func (p *filterParser) term() (filter, error) {
	word := p.next()
	switch {
	case word == "(":
		f, err := p.expression()
		if err == nil && !p.accept(")") {
			err = errFilter
		}
		return f, err
	case strings.EqualFold(word, "startswith"):
		if !p.expect("(") {
			return nil, errFilter
		}
		property := p.next()
		comma := p.accept(",")
		prefix, ok := stringToken(p.next())
		if !comma || !ok || !isName(property) || !p.accept(")") {
			return nil, errFilter
		}
		return func(v map[string]any) bool {
			s, _ := v[property].(string)
			return len(s) >= len(prefix) && strings.EqualFold(s[:len(prefix)], prefix)
		}, nil
	case !isName(word):
		return nil, errFilter
	case p.accept("/"):
		return p.any(word)
	case p.accept("eq"):
		return equals(word, p.next())
	}
	return nil, errFilter
}

func (p *filterParser) any(property string) (filter, error) {
	if !p.expect("any", "(") {
		return nil, errFilter
	}
	name := p.next()
	if !isName(name) || !p.expect(":", name, "eq") {
		return nil, errFilter
	}
	want, ok := stringToken(p.next())
	if !ok || !p.accept(")") {
		return nil, errFilter
	}
	return func(v map[string]any) bool {
		list, _ := v[property].([]string)
		return slices.ContainsFunc(list, func(s string) bool { return strings.EqualFold(s, want) })
	}, nil
}

func equals(property, literal string) (filter, error) {
	if want, ok := stringToken(literal); ok {
		return func(v map[string]any) bool {
			s, ok := v[property].(string)
			return ok && strings.EqualFold(s, want)
		}, nil
	}
	if literal != "true" && literal != "false" {
		return nil, errFilter
	}
	return func(v map[string]any) bool {
		b, ok := v[property].(bool)
		return ok && b == (literal == "true")
	}, nil
}

func stringToken(t string) (string, bool) { return strings.CutPrefix(t, "'") }

func isName(t string) bool {
	return t != "" && !strings.ContainsFunc(t, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '_'
	})
}
