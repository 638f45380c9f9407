package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// event is a line of `go test -json` (cmd/test2json).
type event struct {
	Action, Package, Test, Output, ImportPath string
	Elapsed                                   float64
}

func (s stage) run(ctx context.Context, top string, limit time.Duration) (t tally, err error) {
	began := time.Now()
	fmt.Printf("=== %s\n", s.name)
	defer func() {
		word := "ok  "
		if err != nil || t.failed > 0 {
			word = "FAIL"
		}
		fmt.Printf("%s stage %s: %d passed, %d failed, %d skipped in %.1f s\n\n", word, s.name, t.passed, t.failed, len(t.skips), time.Since(began).Seconds())
	}()
	dir := filepath.Join(top, s.dir)
	var all []string
	if s.dir == "." {
		if all, err = packages(ctx, dir); err != nil {
			return t, err
		}
	}
	chosen := s.packages(all)
	if len(chosen) == 0 {
		return t, nil
	}
	// The tests that run the binary run the one that was just built.
	env := append(os.Environ(), "CGO_ENABLED=0", "CASEMATE_BIN="+filepath.Join(top, "bin", "casemate"))
	args := append([]string{"test", "-json", "-timeout", limit.String()}, s.args...)
	cmd := command(ctx, dir, env, append(args, chosen...)...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return t, err
	}
	var complaints bytes.Buffer
	cmd.Stderr = &complaints
	if err := cmd.Start(); err != nil {
		return t, fmt.Errorf("starting go test: %w", err)
	}
	failedBefore := t.read(bufio.NewScanner(out))
	// Exit status 1 is what failed tests give; they are counted. Anything else, or 1 without one, is a fault of its own.
	if err := cmd.Wait(); err != nil && (failedBefore == 0 || cmd.ProcessState.ExitCode() != 1) {
		return t, fmt.Errorf("go test in %s: %w\n%s", s.dir, err, complaints.Bytes())
	}
	return t, nil
}

// command is a call of go that ends, with its children, when ctx does.
func command(ctx context.Context, dir string, env []string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir, cmd.Env = dir, env
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 30 * time.Second
	return cmd
}

func packages(ctx context.Context, dir string) ([]string, error) {
	cmd := command(ctx, dir, os.Environ(), "list", "./...")
	var complaints bytes.Buffer
	cmd.Stderr = &complaints
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("listing packages: %w\n%s", err, complaints.Bytes())
	}
	return strings.Fields(string(out)), nil
}

// read follows the events, prints each package and each failed test as it ends, and returns how many failed.
func (t *tally) read(lines *bufio.Scanner) int {
	lines.Buffer(nil, 16<<20)
	output := map[string][]string{} // of tests, and of packages outside of tests
	for lines.Scan() {
		var e event
		if json.Unmarshal(lines.Bytes(), &e) != nil {
			fmt.Println(lines.Text()) // not an event: the go command itself speaks
			continue
		}
		key := e.Package + "\x00" + e.Test
		switch e.Action {
		case "output":
			output[key] = append(output[key], e.Output)
		case "build-output":
			fmt.Print(e.Output)
		case "build-fail":
			t.failed++
		case "pass", "fail", "skip":
			t.end(e, output[key])
			delete(output, key)
		}
	}
	return t.failed
}

func (t *tally) end(e event, output []string) {
	if e.Test == "" {
		t.endPackage(e, output)
		return
	}
	// Subtests are part of their test, which fails with them; what they say is shown.
	top := !strings.Contains(e.Test, "/")
	switch e.Action {
	case "pass":
		if top {
			t.passed++
		}
	case "fail":
		if top {
			t.failed++
		}
		t.failedIn = e.Package
		fmt.Printf("--- FAIL: %s %s (%.1f s)\n%s", e.Package, e.Test, e.Elapsed, said(output))
	case "skip":
		t.skips = append(t.skips, e.Test+": "+strings.Join(strings.Fields(said(output)), " "))
	}
}

func (t *tally) endPackage(e event, output []string) {
	switch e.Action {
	case "pass":
		fmt.Printf("ok   %-50s %6.1f s\n", e.Package, e.Elapsed)
	case "fail":
		fmt.Printf("FAIL %-50s %6.1f s\n", e.Package, e.Elapsed)
		// A package that fails outside of its tests (a panic, a leak, a time limit) has said why itself.
		if t.failedIn != e.Package {
			fmt.Print(said(output))
			t.failed++
		}
	}
}

// said is what a test printed, without the frame that go test puts around it.
func said(output []string) string {
	var b strings.Builder
	for _, line := range output {
		if s := strings.TrimSpace(line); !strings.HasPrefix(s, "=== ") && !strings.HasPrefix(s, "--- ") {
			b.WriteString(line)
		}
	}
	return b.String()
}
