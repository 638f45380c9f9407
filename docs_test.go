package casemate

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	namedTest = regexp.MustCompile("`([a-z][a-z0-9/]*) ((?:Test|Fuzz)[A-Za-z0-9_]+)(?:/([A-Za-z0-9_]+))?`")
	namedStep = regexp.MustCompile(`\*demo: ([^*]+)\*`)
	markLink  = regexp.MustCompile(`\]\(([^)#:]+)\)`)
	routeName = regexp.MustCompile(`(?:^\s*|row)\{"([A-Z][A-Za-z]*_[A-Za-z]+)", `)
)

// documents are what people read first and what promises something.
var documents = []string{
	"README.md", "ARCHITECTURE.md", "SECURITY.md", "docs/conformance/README.md", "docs/conformance/blob.md", "docs/conformance/keyvault.md", "docs/attacks.md",
	"docs/development.md", "docs/adr/README.md",
}

// TestDocumentsNameWhatExists keeps documents from naming tests, steps of the demonstration and pages that are not there.
func TestDocumentsNameWhatExists(t *testing.T) {
	steps, err := os.ReadFile("cmd/casemate/demo/demo.go")
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]string{} // folder → its test files, as text
	for _, doc := range documents {
		raw, err := os.ReadFile(doc)
		if err != nil {
			t.Error(err)
			continue
		}
		for _, m := range namedTest.FindAllStringSubmatch(string(raw), -1) {
			if _, ok := tests[m[1]]; !ok {
				tests[m[1]] = testText(t, m[1])
			}
			if !strings.Contains(tests[m[1]], "func "+m[2]+"(") {
				t.Errorf("%s names %s of %s, which does not exist", doc, m[2], m[1])
			}
			if m[3] != "" && !strings.Contains(tests[m[1]], `"`+m[3]+`"`) {
				t.Errorf("%s names %s of %s %s, which does not exist", doc, m[3], m[1], m[2])
			}
		}
		for _, m := range namedStep.FindAllStringSubmatch(string(raw), -1) {
			if !strings.Contains(string(steps), `{"`+m[1]+`", `) {
				t.Errorf("%s names the step %q, which the demonstration does not have", doc, m[1])
			}
		}
		for _, m := range markLink.FindAllStringSubmatch(string(raw), -1) {
			if _, err := os.Stat(filepath.Join(filepath.Dir(doc), m[1])); err != nil {
				t.Errorf("%s links to %s, which does not exist", doc, m[1])
			}
		}
	}
}

func testText(t *testing.T, dir string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(filepath.FromSlash(dir), "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, f := range files {
		raw, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		b.Write(raw)
	}
	return b.String()
}

// TestOperationsAreListed wants every operation of the two large protocols in its table, and those that only answer "not
// supported" listed as missing.
func TestOperationsAreListed(t *testing.T) {
	for doc, from := range map[string]struct{ files, unsupported string }{
		"docs/conformance/blob.md":     {"dataplane/blob/*routes.go", "var missing ="},
		"docs/conformance/keyvault.md": {"dataplane/vault/*routes.go", "func unsupportedRows()"},
	} {
		raw, err := os.ReadFile(doc)
		if err != nil {
			t.Error(err)
			continue
		}
		files, err := filepath.Glob(from.files)
		if err != nil || len(files) == 0 {
			t.Fatalf("no routes in %s: %v", from.files, err)
		}
		for _, file := range files {
			routes, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			built, not, _ := strings.Cut(string(routes), from.unsupported)
			wantListed(t, doc, string(raw), built, false)
			wantListed(t, doc, string(raw), not, true)
		}
	}
}

func wantListed(t *testing.T, doc, text, routes string, missing bool) {
	t.Helper()
	for row := range strings.Lines(routes) {
		m := routeName.FindStringSubmatch(row)
		if m == nil {
			continue
		}
		_, rest, ok := strings.Cut(text, "`"+m[1]+"`")
		if !ok {
			t.Errorf("%s does not list %s", doc, m[1])
			continue
		}
		want := missing || strings.Contains(row, "notSupported(")
		if line, _, _ := strings.Cut(rest, "\n"); strings.Contains(line, "| missing |") != want {
			t.Errorf("%s: %s is missing: %t", doc, m[1], want)
		}
	}
}

// TestDependenciesAreExplained wants a paragraph in docs/dependencies.md for each module that go.mod requires directly.
func TestDependenciesAreExplained(t *testing.T) {
	mod, err := os.ReadFile("go.mod")
	if err != nil {
		t.Fatal(err)
	}
	doc, err := os.ReadFile("docs/dependencies.md")
	if err != nil {
		t.Fatal(err)
	}
	direct := regexp.MustCompile(`(?m)^(?:\t|require |tool )([a-z0-9.-]+\.[a-z]+/\S+)(?: v\S+)?$`)
	for _, m := range direct.FindAllStringSubmatch(string(mod), -1) {
		if name := strings.TrimSuffix(m[1], "/cmd/staticcheck"); !strings.Contains(string(doc), "**"+name+"**") {
			t.Errorf("docs/dependencies.md does not say what %s is for, what else was weighed, and what it brings", name)
		}
	}
}

// TestArchitectureNamesEveryPackage keeps the map complete.
func TestArchitectureNamesEveryPackage(t *testing.T) {
	raw, err := os.ReadFile("ARCHITECTURE.md")
	if err != nil {
		t.Fatal(err)
	}
	plan, _, _ := strings.Cut(string(raw), "\n## Life of a request")
	for path := range goFiles(t) {
		dir := filepath.ToSlash(filepath.Dir(path))
		name := regexp.MustCompile(`\b` + regexp.QuoteMeta(filepath.Base(dir)) + `\b`)
		if dir != "." && !strings.HasPrefix(dir, "test/harness/") && !name.MatchString(plan) {
			t.Errorf("ARCHITECTURE.md does not show %s", dir)
		}
	}
}
