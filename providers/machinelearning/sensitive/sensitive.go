// Package sensitive recognises credentials in places where none may be: environment variables, commands, tags and literal
// inputs of jobs and deployments, which are shown to everybody who may read the job (row E9).
//
// For the machine-learning provider, which refuses what is found here with the name of the place, never the value. The values come
// from people in a hurry, not from people who hide: whoever disguises a credential on purpose gets it through. Finding too
// much costs somebody a rename, finding too little costs a leak, so names that promise a secret count as well.
package sensitive

import (
	"encoding/base64"
	"encoding/json"
	"regexp"
	"strings"
)

// rule is one shape of credential.
type rule struct {
	what string
	re   *regexp.Regexp
}

var rules = []rule{
	{"a private key", regexp.MustCompile(`-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----`)},
	{"a shared access signature", regexp.MustCompile(`(?i)(^|[?&;\s"'])sig=[A-Za-z0-9%+/=]{20,}`)},
	{"a connection string", regexp.MustCompile(`(?i)(accountkey|sharedaccesskey|sharedaccesssignature|sharedsecret)\s*=\s*[^;\s]{8,}`)},
	{"a connection string", regexp.MustCompile(`(?i)(^|;)\s*(password|pwd)\s*=\s*[^;\s]+`)},
	{"a URL with a password", regexp.MustCompile(`(?i)[a-z][a-z0-9+.-]*://[^/\s:@]*:[^/\s@]+@`)},
	{"a client secret", regexp.MustCompile(`(^|[^A-Za-z0-9_~.-])[A-Za-z0-9_~.-]{3}[0-9]Q~[A-Za-z0-9_~.-]{31,34}($|[^A-Za-z0-9_~.-])`)},
	{"an access key", regexp.MustCompile(`(^|[^A-Z0-9])(AKIA|ASIA)[A-Z0-9]{16}($|[^A-Z0-9])`)},
	{"an access token", regexp.MustCompile(`(^|[^A-Za-z0-9_])(gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{50,}|glpat-[A-Za-z0-9_-]{20,}|hf_[A-Za-z0-9]{30,}|xox[abprs]-[A-Za-z0-9-]{10,}|dapi[0-9a-f]{32})`)},
	{"a bearer token", regexp.MustCompile(`(?i)\bbearer\s+[A-Za-z0-9._~+/-]{20,}`)},
}

var (
	jwt = regexp.MustCompile(`(eyJ[A-Za-z0-9_-]{8,})\.[A-Za-z0-9_-]{4,}\.[A-Za-z0-9_-]*`)
	// An account key of Azure Storage, Cosmos DB or Batch: 64 bytes in base64.
	accountKey = regexp.MustCompile(`(^|[^A-Za-z0-9+/])([A-Za-z0-9+/]{86}==)($|[^A-Za-z0-9+/=])`)
	secretName = regexp.MustCompile(`(?i)(^|[_.-])(password|passwd|pwd|secret|secrets|api_?key|access_?key|account_?key|private_?key|credentials?|connection_?string|(auth|access|refresh|bearer|sas|api|hf|github)_?token|sas)$`)
)

// In says what kind of credential is in a value; "" means none was recognised.
func In(value string) string {
	for _, r := range rules {
		if r.re.MatchString(value) {
			return r.what
		}
	}
	for _, m := range jwt.FindAllStringSubmatch(value, 8) {
		if isHeader(m[1]) {
			return "a token"
		}
	}
	for _, m := range accountKey.FindAllStringSubmatch(value, 8) {
		if b, err := base64.StdEncoding.DecodeString(m[2]); err == nil && len(b) == 64 {
			return "an account key"
		}
	}
	return ""
}

// Named is In for a value under a name; a name that promises a secret makes every value one, unless it is empty or only points to where the secret
// is kept (a vault's URL).
func Named(name, value string) string {
	if what := In(value); what != "" {
		return what
	}
	v := strings.TrimSpace(value)
	if v == "" || strings.HasPrefix(v, "https://") || strings.HasPrefix(v, "${{") {
		return ""
	}
	if secretName.MatchString(name) {
		return "a secret, by its name"
	}
	return ""
}

// isHeader says whether s is a JOSE header (RFC 7515, section 4).
func isHeader(s string) bool {
	b, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil {
		return false
	}
	var h struct {
		Alg string `json:"alg"`
	}
	return json.Unmarshal(b, &h) == nil && h.Alg != ""
}
