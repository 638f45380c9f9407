package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// measureStart starts `casemate serve` on empty directories, and then on one that exists. The time is from the start of the
// process to the line that says ready, as a waiting person sees it.
func measureStart(ctx context.Context, b *bench) ([]row, error) {
	var empty, existing []time.Duration
	var resident []float64
	for i := range 3 {
		dir := filepath.Join(b.tmp, fmt.Sprintf("start-%d", i))
		d, _, err := b.once(ctx, dir, 0)
		if err != nil {
			return nil, err
		}
		empty = append(empty, d)
	}
	for range 5 {
		d, rss, err := b.once(ctx, filepath.Join(b.tmp, "start-0"), 3*time.Second)
		if err != nil {
			return nil, err
		}
		existing, resident = append(existing, d), append(resident, rss)
	}
	return []row{
		newRow("serve to ready, empty directory", millis(median(empty)), "ms").within(3000),
		newRow("serve to ready, existing directory", millis(median(existing)), "ms").within(500),
		newRow("memory when idle for 3 s", median(resident), "MB resident").within(150),
	}, nil
}

// once starts the server, leaves it idle for a time, and stops it.
func (b *bench) once(ctx context.Context, dir string, idle time.Duration) (ready time.Duration, resident float64, err error) {
	p, err := b.serve(ctx, dir)
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, p.stop()) }()
	select {
	case <-time.After(idle):
	case <-ctx.Done():
		return 0, 0, ctx.Err()
	}
	resident, err = residentSet(p.cmd.Process.Pid)
	return p.ready, resident, err
}

// residentSet is VmRSS of proc_pid_status(5), in MB.
func residentSet(pid int) (float64, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, fmt.Errorf("reading the memory of the server: %w", err)
	}
	for line := range strings.Lines(string(raw)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
			return kib * 1024 / 1e6, err
		}
	}
	return 0, errors.New("the kernel does not tell the server's memory")
}
