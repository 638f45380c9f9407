// Command bench measures the platform beside its peers and writes bench/results/AREA.json.
//
// It is for whoever wants to know what security costs here, and for the continuous integration. Ours and the peer run in the
// same run, in turns, so that a noisy machine disturbs both; rows are medians. Areas that measure an engine run that engine's Go benchmarks;
// areas that measure the whole start `casemate serve` on an empty directory and speak to it over TLS as a client would. The
// peer of those is a process as plain as Go can make it (see peer.go). It proves nothing about correctness: tests do.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// An area is one of AREA=…; each takes about a minute at most.
type area struct {
	name    string
	what    string
	measure func(ctx context.Context, b *bench) ([]row, error)
}

var areas = []area{
	{"envelope", "sealing and opening, against the bare primitive", measureEnvelope},
	{"blob", "64 MiB over TLS, against a plain TLS file server; both fsync each PUT", measureBlob},
	{"vault", "unwrapKey, against the bare primitive", measureVault},
	{"gateway", "GET of a resource group over TLS keep-alive, against a plain TLS server of the same bytes", measureGateway},
	{"rbac", "decisions", measureRBAC},
	{"node", "start to first line of user code standing in storage, against podman run", measureNode},
	{"start", "serve to ready, and memory when idle", measureStart},
	{"network", "making the kernel equal to the plan", measureNetwork},
}

// bench is what every area needs.
type bench struct {
	top    string // of the repository
	binary string
	tmp    string // on a disk, removed at the end
}

func main() {
	only := flag.String("area", "", "area to measure; all without it")
	peer := flag.String("peer", "", "be the plain peer, keeping files in this directory (used by this command itself)")
	pages := flag.Bool("markdown", false, "measure nothing; print the last results as tables for docs/benchmarks.md")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := error(nil)
	switch {
	case *peer != "":
		err = servePeer(ctx, *peer)
	case *pages:
		err = markdown(os.Stdout, "results")
	default:
		err = run(ctx, *only)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, only string) (err error) {
	top, err := filepath.Abs("..") // go run -C bench
	if err != nil {
		return err
	}
	b := &bench{top: top, binary: filepath.Join(top, "bin", "casemate")}
	if b.tmp, err = os.MkdirTemp("", "casemate-bench-"); err != nil {
		return fmt.Errorf("making a directory: %w", err)
	}
	defer os.RemoveAll(b.tmp)
	found := false
	for _, a := range areas {
		if only != "" && a.name != only {
			continue
		}
		found = true
		began := time.Now()
		fmt.Printf("%s: %s\n", a.name, a.what)
		rows, err := a.measure(ctx, b)
		if err != nil {
			return fmt.Errorf("measuring %s: %w", a.name, err)
		}
		printTable(os.Stdout, rows)
		fmt.Printf("%s took %.0f s\n\n", a.name, time.Since(began).Seconds())
		if err := save(filepath.Join(top, "bench", "results", a.name+".json"), rows); err != nil {
			return err
		}
	}
	if !found {
		var names []string
		for _, a := range areas {
			names = append(names, a.name)
		}
		return fmt.Errorf("there is nothing to measure in an area %q; there are %s", only, strings.Join(names, ", "))
	}
	return nil
}

func save(path string, rows []row) error {
	raw, err := json.MarshalIndent(rows, "", "  ")
	if err == nil {
		err = os.MkdirAll(filepath.Dir(path), 0o755)
	}
	if err == nil {
		err = os.WriteFile(path, append(raw, '\n'), 0o644)
	}
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return nil
}
