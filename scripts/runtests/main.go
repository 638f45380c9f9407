// Command runtests runs all tests of the repository in named stages and ends with one line: N passed, N failed.
//
// It is for people and for the continuous integration, who both want to see what passed, what failed and what was skipped
// and why, without reading thousands of lines. It runs `go test -json` for each stage in turn: engines two packages at a
// time, kernel tests and tests of the whole binary one at a time, then the modules of tools and of outside clients. It
// decides nothing: every failure is a failure of the whole.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// A stage is one call of go test.
type stage struct {
	name     string
	dir      string   // where go test runs, from the top of the repository
	args     []string // of go test
	packages func(all []string) []string
}

// isKernel tells packages whose tests make namespaces, mounts, packet filters and containers. These are the machine's, so
// one package at a time.
func isKernel(pkg string) bool {
	return strings.HasPrefix(pkg, "casemate.dev/dataplane/network") && pkg != "casemate.dev/dataplane/network/plan" ||
		strings.HasPrefix(pkg, "casemate.dev/dataplane/runtime") || pkg == "casemate.dev/providers/network"
}

// isWhole tells packages that run the binary.
func isWhole(pkg string) bool {
	return strings.HasPrefix(pkg, "casemate.dev/cmd/") || strings.HasPrefix(pkg, "casemate.dev/test/")
}

// stages are in the order in which a fault is best understood: structure, engines, kernel, the whole binary,
// tools, outsiders.
func stages(top string) ([]stage, error) {
	list := []stage{
		{name: "structure", dir: ".", packages: func([]string) []string { return []string{"."} }},
		{name: "engines", dir: ".", args: []string{"-p", "2"}, packages: func(all []string) []string {
			return slices.DeleteFunc(all, func(p string) bool { return isKernel(p) || isWhole(p) || p == "casemate.dev" })
		}},
		{name: "kernel", dir: ".", args: []string{"-p", "1"}, packages: func(all []string) []string {
			return slices.DeleteFunc(all, func(p string) bool { return !isKernel(p) })
		}},
		{name: "platform", dir: ".", args: []string{"-p", "1"}, packages: func(all []string) []string {
			return slices.DeleteFunc(all, func(p string) bool { return !isWhole(p) })
		}},
	}
	for _, dir := range []string{"bench", "scripts"} {
		list = append(list, stage{name: dir, dir: dir, packages: func([]string) []string { return []string{"./..."} }})
	}
	nested, err := filepath.Glob(filepath.Join(top, "test", "*", "go.mod"))
	if err != nil {
		return nil, err
	}
	for _, mod := range nested {
		dir, err := filepath.Rel(top, filepath.Dir(mod))
		if err != nil {
			return nil, err
		}
		// Never from the cache: it does not see that the server, which lies outside of the module, has changed.
		list = append(list, stage{name: dir, dir: dir, args: []string{"-p", "1", "-count", "1"}, packages: func([]string) []string { return []string{"./..."} }})
	}
	return list, nil
}

func main() {
	only := flag.String("run", "", "stages to run, separated by commas; all without it")
	limit := flag.Duration("timeout", 20*time.Minute, "time that one stage may take")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	failed, err := run(ctx, *only, *limit)
	if err != nil {
		fmt.Fprintln(os.Stderr, "runtests:", err)
	}
	if err != nil || failed {
		os.Exit(1)
	}
}

func run(ctx context.Context, only string, limit time.Duration) (failed bool, err error) {
	top, err := filepath.Abs("..") // go run -C scripts
	if err != nil {
		return false, err
	}
	list, err := stages(top)
	if err != nil {
		return false, err
	}
	if list, err = choose(list, only); err != nil {
		return false, err
	}
	var total tally
	for _, s := range list {
		if ctx.Err() != nil {
			return true, ctx.Err()
		}
		t, err := s.run(ctx, top, limit)
		if err != nil {
			fmt.Println(err)
			t.failed++
		}
		total.add(t)
	}
	total.report(os.Stdout)
	return total.failed > 0, nil
}

// choose keeps the stages that were named; the name of a nested module may be its last part.
func choose(list []stage, only string) ([]stage, error) {
	if only == "" {
		return list, nil
	}
	var out []stage
	for name := range strings.SplitSeq(only, ",") {
		i := slices.IndexFunc(list, func(s stage) bool { return s.name == name || filepath.Base(s.name) == name })
		if i < 0 {
			var names []string
			for _, s := range list {
				names = append(names, s.name)
			}
			return nil, fmt.Errorf("there is no stage %q; there are %s", name, strings.Join(names, ", "))
		}
		out = append(out, list[i])
	}
	return out, nil
}
