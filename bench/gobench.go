package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
)

// samples are the values that Go benchmarks printed: name → unit → one value for each -count.
type samples map[string]map[string][]float64

func (s samples) median(name, unit string) float64 { return median(s[name][unit]) }

var cpuSuffix = regexp.MustCompile(`-\d+$`)

// goBench runs benchmarks of one of the platform's packages and reads the lines that they print (golang.org/design/14313-benchmark-format).
func (b *bench) goBench(ctx context.Context, pkg, pattern string, args ...string) (samples, error) {
	args = append([]string{"test", "-run", "^$", "-bench", pattern, "-timeout", "5m"}, args...)
	cmd := exec.CommandContext(ctx, "go", append(args, pkg)...)
	cmd.Dir, cmd.Env = b.top, append(os.Environ(), "CGO_ENABLED=0")
	var complaints bytes.Buffer
	cmd.Stderr = &complaints
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("running the benchmarks of %s: %w\n%s%s", pkg, err, out, complaints.Bytes())
	}
	s := samples{}
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
		return nil, fmt.Errorf("the benchmarks %s of %s printed nothing, perhaps for want of privileges:\n%s", pattern, pkg, out)
	}
	return s, nil
}
