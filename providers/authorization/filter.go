package authorization

import (
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"strings"
)

// filter is a $filter of the authorization API: conditions joined by "and".
type filter struct {
	atScope   bool
	principal string // principalId eq, or assignedTo()
	assigned  bool   // groups of the principal count
	roleName  string
	roleType  string
}

var (
	equalTerm    = regexp.MustCompile(`(?i)^(principalId|roleName|type) eq '((?:[^']|'')*)'$`)
	assignedTerm = regexp.MustCompile(`(?i)^assignedTo\('([^']*)'\)$`)
	atScopeTerm  = regexp.MustCompile(`(?i)^atScope(AndBelow)?\(\)$`)
)

func parseFilter(text string) (filter, error) {
	var f filter
	if strings.TrimSpace(text) == "" {
		return f, nil
	}
	for _, term := range splitAnd(text) {
		if m := atScopeTerm.FindStringSubmatch(term); m != nil {
			f.atScope = f.atScope || m[1] == ""
			continue
		}
		if m := assignedTerm.FindStringSubmatch(term); m != nil && f.principal == "" {
			f.principal, f.assigned = m[1], true
			continue
		}
		m := equalTerm.FindStringSubmatch(term)
		if m == nil {
			return f, badRequest("InvalidFilter", "$filter", "The filter '%s' is not supported. Use atScope(), assignedTo('id'), principalId eq 'id', roleName eq 'name' or type eq 'CustomRole', joined by 'and'.", term)
		}
		value := strings.ReplaceAll(m[2], "''", "'")
		switch strings.ToLower(m[1]) {
		case "principalid":
			f.principal = value
		case "rolename":
			f.roleName = value
		default:
			f.roleType = value
		}
	}
	return f, nil
}

// splitAnd cuts at "and" outside of strings.
func splitAnd(text string) []string {
	var out []string
	quoted, start := false, 0
	for i := 0; i < len(text); i++ {
		if text[i] == '\'' {
			quoted = !quoted
		}
		if !quoted && i+5 <= len(text) && strings.EqualFold(text[i:i+5], " and ") {
			out = append(out, strings.TrimSpace(text[start:i]))
			start = i + 5
			i += 4
		}
	}
	return append(out, strings.TrimSpace(text[start:]))
}

func writeJSON(w http.ResponseWriter, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encoding answer: %w", err)
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	_, err = w.Write(b)
	return err
}
