package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// row is one line of a table and one element of a results file. A ratio above 1 means that ours is better.
type row struct {
	Name      string   `json:"name"`
	Ours      float64  `json:"ours"`
	Unit      string   `json:"unit"`
	Peer      string   `json:"peer,omitempty"`
	PeerValue *float64 `json:"peer_value"`
	Ratio     *float64 `json:"ratio"`
	Target    string   `json:"target,omitempty"`
	Met       *bool    `json:"met"` // nil where there is no target

	exact, exactRatio float64 // not rounded: what targets are compared with
}

// lower tells units of which less is better.
var lower = []string{"ns", "µs", "ms", "s", "MB resident"}

func newRow(name string, ours float64, unit string) row {
	return row{Name: name, Ours: round(ours), Unit: unit, exact: ours}
}

func (r row) beside(peer string, value float64) row {
	ratio := r.exact / value
	if slices.Contains(lower, r.Unit) {
		ratio = value / r.exact
	}
	value = round(value)
	r.Peer, r.PeerValue = peer, &value
	return r.withRatio(ratio)
}

func (r row) withRatio(exact float64) row {
	ratio := math.Round(exact*1000) / 1000
	r.exactRatio, r.Ratio = exact, &ratio
	return r
}

// rounds makes the row of a benchmark and its peer. The ratio is the median of the rounds' ratios, since both sides of a round
// met the same noise.
func (s samples) rounds(name, ours, unit, peer, peers string) row {
	a, b := s[ours][unit], s[peers][unit]
	r := newRow(name, median(a), unit).beside(peer, median(b))
	ratios := make([]float64, min(len(a), len(b)))
	for i := range ratios {
		ratios[i] = newRow(name, a[i], unit).beside(peer, b[i]).exactRatio
	}
	return r.withRatio(median(ratios))
}

// within is a target for the value itself: at most, or at least where more is better.
func (r row) within(limit float64) row {
	met := r.exact >= limit
	r.Target = fmt.Sprintf("≥ %g %s", limit, r.Unit)
	if slices.Contains(lower, r.Unit) {
		met = r.exact <= limit
		r.Target = fmt.Sprintf("≤ %g %s", limit, r.Unit)
	}
	r.Met = &met
	return r
}

// keeping is a target for the ratio to the peer.
func (r row) keeping(ratio float64) row {
	met := r.Ratio != nil && r.exactRatio >= ratio
	r.Target, r.Met = fmt.Sprintf("ratio ≥ %g", ratio), &met
	return r
}

// round keeps three digits: more would be noise.
func round(v float64) float64 {
	if v == 0 || math.IsInf(v, 0) || math.IsNaN(v) {
		return 0
	}
	scale := math.Pow(10, 2-math.Floor(math.Log10(math.Abs(v))))
	return math.Round(v*scale) / scale
}

func median[T int64 | float64 | time.Duration](samples []T) T {
	if len(samples) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(samples))
	return s[len(s)/2]
}

func millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// cells are what both kinds of tables show.
func (r row) cells() []string {
	peer, ratio, met := "–", "–", "–"
	if r.PeerValue != nil {
		peer, ratio = fmt.Sprintf("%g (%s)", *r.PeerValue, r.Peer), fmt.Sprintf("%.2f", *r.Ratio)
	}
	if r.Met != nil {
		met = map[bool]string{true: "yes", false: "NO"}[*r.Met]
	}
	return []string{r.Name, fmt.Sprintf("%g %s", r.Ours, r.Unit), peer, ratio, cmp.Or(r.Target, "–"), met}
}

var heads = []string{"what", "ours", "peer", "ratio", "target", "met"}

func printTable(w io.Writer, rows []row) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "  "+strings.Join(heads, "\t"))
	for _, r := range rows {
		fmt.Fprintln(t, "  "+strings.Join(r.cells(), "\t"))
	}
	_ = t.Flush() // the terminal
}

// markdown prints the results of all areas that were measured, in the order of areas.
func markdown(w io.Writer, dir string) error {
	fmt.Fprintf(w, "| area | %s |\n|%s\n", strings.Join(heads, " | "), strings.Repeat(" --- |", len(heads)+1))
	for _, a := range areas {
		raw, err := os.ReadFile(filepath.Join(dir, a.name+".json"))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		var rows []row
		if err == nil {
			err = json.Unmarshal(raw, &rows)
		}
		if err != nil {
			return fmt.Errorf("reading the results of %s: %w", a.name, err)
		}
		for _, r := range rows {
			fmt.Fprintf(w, "| %s | %s |\n", a.name, strings.Join(r.cells(), " | "))
		}
	}
	return nil
}
