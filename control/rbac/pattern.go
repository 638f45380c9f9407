package rbac

import "strings"

// pattern is one action string of a role definition, lower-case. Three rules (Azure custom roles, "Wildcard
// permissions"; FACTS of the built-in AzureML Data Scientist role for the second):
//
//   - "*" matches any sequence of characters, slashes and the empty sequence included;
//   - a segment that is nothing but "*", with segments on both sides, may also be absent: "a/*/b" matches "a/b";
//   - everything else matches itself, without regard to case.
type pattern struct {
	text           string
	prefix, suffix string // around the only star, when single
	overlap        int    // 1 when prefix ends and suffix begins with the same slash ("/*/")
	stars          int
}

func compilePattern(s string) pattern {
	p := pattern{text: strings.ToLower(s)}
	p.stars = strings.Count(p.text, "*")
	if p.stars == 1 {
		p.prefix, p.suffix, _ = strings.Cut(p.text, "*")
		if strings.HasSuffix(p.prefix, "/") && strings.HasPrefix(p.suffix, "/") {
			p.overlap = 1
		}
	}
	return p
}

// matches expects a lower-case action.
func (p pattern) matches(action string) bool {
	switch p.stars {
	case 0:
		return action == p.text
	case 1:
		return len(action) >= len(p.prefix)+len(p.suffix)-p.overlap &&
			strings.HasPrefix(action, p.prefix) && strings.HasSuffix(action, p.suffix)
	}
	return p.matchesMany(action)
}

// matchesMany runs the pattern as a nondeterministic automaton: live[i] says that text[:i] has matched what was read.
// Its time is len(text) × len(action), whatever the pattern.
func (p pattern) matchesMany(action string) bool {
	live, next := make([]bool, len(p.text)+1), make([]bool, len(p.text)+1)
	live[0] = true
	p.skip(live)
	for i := range len(action) {
		clear(next)
		for j, on := range live[:len(p.text)] {
			if !on {
				continue
			}
			switch {
			case p.text[j] == '*':
				next[j] = true
			case p.text[j] == action[i]:
				next[j+1] = true
			}
		}
		p.skip(next)
		live, next = next, live
	}
	return live[len(p.text)]
}

// skip adds the positions reachable without reading: past a star, and past "/*" where a slash follows it.
func (p pattern) skip(live []bool) {
	for j, on := range live[:len(p.text)] {
		if !on {
			continue
		}
		if p.text[j] == '*' {
			live[j+1] = true
		}
		if strings.HasPrefix(p.text[j:], "/*/") {
			live[j+2] = true
		}
	}
}

// patterns is a set of action strings: literal ones by hash, the others in turn.
type patterns struct {
	literal map[string]struct{}
	wild    []pattern
}

func compilePatterns(list []string) patterns {
	set := patterns{literal: make(map[string]struct{}, len(list))}
	for _, s := range list {
		if p := compilePattern(s); p.stars == 0 {
			set.literal[p.text] = struct{}{}
		} else {
			set.wild = append(set.wild, p)
		}
	}
	return set
}

func (s patterns) match(action string) bool {
	if _, ok := s.literal[action]; ok {
		return true
	}
	for _, p := range s.wild {
		if p.matches(action) {
			return true
		}
	}
	return false
}

// Match says whether an action string of a role definition, wildcards included, covers an action.
func Match(actionString, action string) bool {
	return compilePattern(actionString).matches(strings.ToLower(action))
}
