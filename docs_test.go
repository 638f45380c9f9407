package casemate

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	namedTest = regexp.MustCompile("`([a-z][a-z0-9/]*) ((?:Test|Fuzz)[A-Za-z0-9_]+)`")
	markLink  = regexp.MustCompile(`\]\(([^)#:]+)\)`)
)

// documents are what people read first and what promises something.
var documents = []string{
	"README.md", "ARCHITECTURE.md", "SECURITY.md", "docs/conformance/README.md", "docs/attacks.md", "docs/development.md", "docs/adr/README.md",
}

// TestDocumentsNameWhatExists keeps documents from naming tests and pages that are not there.
func TestDocumentsNameWhatExists(t *testing.T) {
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
