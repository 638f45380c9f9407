package rbac_test

import (
	"regexp"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"casemate.dev/control/rbac"
)

func TestMatch(t *testing.T) {
	tests := []struct {
		pattern, action string
		want            bool
	}{
		{"*", "Microsoft.Storage/storageAccounts/read", true},
		{"*/read", "Microsoft.Storage/storageAccounts/read", true},
		{"*/read", "Microsoft.Storage/storageAccounts/write", false},
		{"*/read", "read", false},
		{"Microsoft.X/workspaces/*/read", "microsoft.x/WORKSPACES/a/b/read", true},
		{"Microsoft.X/workspaces/computes/*/write", "Microsoft.X/workspaces/computes/write", true},
		{"Microsoft.X/workspaces/computes/*/write", "Microsoft.X/workspaces/computes/a/b/write", true},
		{"Microsoft.X/workspaces/computes/*/write", "Microsoft.X/workspaces/computeswrite", false},
		{"Microsoft.X/workspaces/computes/*/write", "Microsoft.X/workspaces/computesandmore/write", false},
		{"Microsoft.X/workspaces/computes/*", "Microsoft.X/workspaces/computes/read", true},
		{"Microsoft.X/workspaces/computes/*", "Microsoft.X/workspaces/computes", false},
		{"Microsoft.X/workspaces/computes/*", "Microsoft.X/workspaces/computesOther/read", false},
		{"Microsoft.X/*/query/*", "Microsoft.X/query/read", true},
		{"Microsoft.X/*/query/*", "Microsoft.X/a/b/query/read", true},
		{"Microsoft.X/*/query/*", "Microsoft.X/a/query", false},
		{"a/*/*/b", "a/b", true},
		{"a/*/b", "a/b/b", true},
		{"a.b", "axb", false},
		{"", "", true},
		{"a", "", false},
	}
	for _, tt := range tests {
		if got := rbac.Match(tt.pattern, tt.action); got != tt.want {
			t.Errorf("Match(%q, %q) = %v, want %v", tt.pattern, tt.action, got, tt.want)
		}
	}
}

// slowMatch says the same with a regular expression: "/*/" is an optional run of segments, "*" anything.
func slowMatch(pattern, action string) bool {
	var b strings.Builder
	b.WriteString(`(?s)\A`)
	for s := strings.ToLower(pattern); s != ""; {
		switch {
		case strings.HasPrefix(s, "/*/"):
			b.WriteString(`(?:/.*)?`)
			s = s[2:]
		case s[0] == '*':
			b.WriteString(`.*`)
			s = s[1:]
		default:
			b.WriteString(regexp.QuoteMeta(s[:1]))
			s = s[1:]
		}
	}
	b.WriteString(`\z`)
	return regexp.MustCompile(b.String()).MatchString(strings.ToLower(action))
}

func TestMatchAgreesWithOracle(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pattern := rapid.StringMatching(`[ab/*A]{0,10}`).Draw(t, "pattern")
		action := rapid.StringMatching(`[abA/]{0,10}`).Draw(t, "action")
		if got, want := rbac.Match(pattern, action), slowMatch(pattern, action); got != want {
			t.Fatalf("Match(%q, %q) = %v, oracle says %v", pattern, action, got, want)
		}
	})
}

func FuzzMatch(f *testing.F) {
	f.Add("a/*/b", "a/b")
	f.Add("*/*/x*", "//x")
	f.Fuzz(func(t *testing.T, pattern, action string) {
		for _, s := range []string{pattern, action} {
			if len(s) > 60 || strings.ContainsFunc(s, func(r rune) bool { return r < 0x20 || r > 0x7e }) {
				t.Skip("action strings are short and ASCII")
			}
		}
		if got, want := rbac.Match(pattern, action), slowMatch(pattern, action); got != want {
			t.Fatalf("Match(%q, %q) = %v, oracle says %v", pattern, action, got, want)
		}
	})
}
