package casemate

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// The layers, lowest first. A package imports only packages of lower layers, of its own folder, and of folders below its
// own. Folders of one layer never import each other: what they need of each other is a small interface at the consumer,
// joined in cmd/casemate.
var layers = [][]string{
	{"internal"},
	{"resource"},
	{"envelope", "store", "control/expr"},
	{"control", "dataplane"},
	{"gateway", "providers"},
	{"client", "images"},
	{"studio"},
	{"cmd"},
}

// Dangerous powers, and who may import them.
var guarded = map[string][]string{
	"casemate.dev/dataplane/network/netns": {"dataplane/network"},
	"unsafe":                               {"dataplane/runtime/volume", "dataplane/runtime/oci", "dataplane/runtime/image", "dataplane/network/netns"},
	"os/exec":                              {"dataplane/runtime", "cmd/casemate"},
}

// folder is what the layer rule speaks of: control/rbac, providers/storage, envelope …
func folder(dir string) (string, int) {
	best, rank := "", -1
	for i, names := range layers {
		for _, n := range names {
			if (dir == n || strings.HasPrefix(dir, n+"/")) && len(n) > len(best) {
				best, rank = n, i
			}
		}
	}
	if best == "control" || best == "dataplane" || best == "providers" || best == "internal" {
		rest := strings.TrimPrefix(strings.TrimPrefix(dir, best), "/")
		first, _, _ := strings.Cut(rest, "/")
		best = strings.TrimSuffix(best+"/"+first, "/")
	}
	return best, rank
}

func goFiles(t *testing.T) map[string]*ast.File {
	t.Helper()
	files := map[string]*ast.File{}
	fset := token.NewFileSet()
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if _, err := os.Stat(filepath.Join(path, "go.mod")); path != "." && (err == nil || strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || d.Name() == "bin") {
				return filepath.SkipDir
			}
			return nil
		}
		if strings.HasSuffix(path, ".go") {
			f, err := parser.ParseFile(fset, path, nil, parser.ParseComments)
			if err != nil {
				return err
			}
			files[filepath.ToSlash(path)] = f
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func TestImportsOnlyGoDown(t *testing.T) {
	for path, f := range goFiles(t) {
		dir := filepath.ToSlash(filepath.Dir(path))
		if dir == "." || strings.HasPrefix(dir, "test/") {
			continue
		}
		own, rank := folder(dir)
		if rank < 0 {
			t.Errorf("%s lies in no layer", path)
			continue
		}
		for _, imp := range f.Imports {
			name := strings.Trim(imp.Path.Value, `"`)
			if allowed, ok := guarded[name]; ok && !strings.HasSuffix(path, "_test.go") && !slices.ContainsFunc(allowed, func(a string) bool { return dir == a || strings.HasPrefix(dir, a+"/") }) {
				t.Errorf("%s imports %s, which only %v may", path, name, allowed)
			}
			to, ok := strings.CutPrefix(name, "casemate.dev/")
			if !ok {
				continue
			}
			target, targetRank := folder(to)
			switch {
			case target == own, targetRank < rank:
			case strings.HasSuffix(path, "_test.go") && strings.HasSuffix(to, "test"): // conformance suites and test helpers
			default:
				t.Errorf("%s (%s) imports %s (%s): imports go down only", path, own, name, target)
			}
		}
	}
}

func TestEveryPackageSaysWhatItIs(t *testing.T) {
	docs := map[string]string{}
	for path, f := range goFiles(t) {
		dir := filepath.ToSlash(filepath.Dir(path))
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		docs[dir] += ""
		if f.Doc != nil {
			docs[dir] += f.Doc.Text()
		}
	}
	for dir, doc := range docs {
		if n := len(strings.Split(strings.TrimSpace(doc), "\n")); dir != "." && (n < 3 || n > 40) {
			t.Errorf("%s: the package comment has %d lines; say in 5 to 20 what it is, for whom, who may lie to it and what it does not do", dir, n)
		}
	}
}
