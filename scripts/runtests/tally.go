package main

import (
	"fmt"
	"io"
	"slices"
)

// tally counts tests, not subtests.
type tally struct {
	passed, failed int
	skips          []string // test and reason
	failedIn       string   // package of the last failed test
}

func (t *tally) add(o tally) {
	t.passed += o.passed
	t.failed += o.failed
	t.skips = append(t.skips, o.skips...)
}

// report says what was skipped and why, then the one line that everybody looks for.
func (t *tally) report(w io.Writer) {
	slices.Sort(t.skips)
	for _, s := range slices.Compact(t.skips) {
		fmt.Fprintln(w, "skipped", s)
	}
	if len(t.skips) > 0 {
		fmt.Fprintf(w, "%d skipped\n", len(t.skips))
	}
	fmt.Fprintf(w, "%d passed, %d failed\n", t.passed, t.failed)
}
