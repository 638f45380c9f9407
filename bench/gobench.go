package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// samples are the values that Go benchmarks printed: name → unit → one value for each -count.
type samples map[string]map[string][]float64

func (s samples) median(name, unit string) float64 { return median(s[name][unit]) }

var cpuSuffix = regexp.MustCompile(`-\d+$`)

// goBench runs benchmarks of one of the platform's packages, in rounds, so that those that are compared take turns (-count
// repeats each benchmark before it begins the next). Flags are those of a test binary: -test.benchtime and so on.
func (b *bench) goBench(ctx context.Context, rounds int, pkg, pattern string, flags ...string) (samples, error) {
	binary := filepath.Join(b.tmp, strings.ReplaceAll(pkg, "/", "-")+".test")
	build := exec.CommandContext(ctx, "go", "test", "-c", "-o", binary, pkg)
	build.Dir, build.Env = b.top, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("building the benchmarks of %s: %w\n%s", pkg, err, out)
	}
	s := samples{}
	for range rounds {
		if err := b.round(ctx, s, binary, pkg, pattern, flags); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// round adds the values of one run: the lines that benchmarks print (golang.org/design/14313-benchmark-format).
func (b *bench) round(ctx context.Context, s samples, binary, pkg, pattern string, flags []string) error {
	cmd := exec.CommandContext(ctx, binary, append([]string{"-test.run", "^$", "-test.bench", pattern, "-test.timeout", "5m"}, flags...)...)
	cmd.Dir = filepath.Join(b.top, pkg) // where go test would run it
	var complaints bytes.Buffer
	cmd.Stderr = &complaints
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("running the benchmarks of %s: %w\n%s%s", pkg, err, out, complaints.Bytes())
	}
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		if len(f) < 4 || !strings.HasPrefix(f[0], "Benchmark") {
			continue
		}
		name := strings.TrimPrefix(cpuSuffix.ReplaceAllString(f[0], ""), "Benchmark")
		if s[name] == nil {
			s[name] = map[string][]float64{}
		}
		for i := 2; i+1 < len(f); i += 2 {
			if v, err := strconv.ParseFloat(f[i], 64); err == nil {
				s[name][f[i+1]] = append(s[name][f[i+1]], v)
			}
		}
	}
	if len(s) == 0 {
		return fmt.Errorf("the benchmarks %s of %s printed nothing, perhaps for want of privileges:\n%s", pattern, pkg, out)
	}
	return nil
}
