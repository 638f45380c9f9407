package main

import (
	"fmt"
	"io"
	"math"
	"slices"
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
}

// lower tells units of which less is better.
var lower = []string{"ns", "µs", "ms", "s", "MB resident"}

func newRow(name string, ours float64, unit string) row {
	return row{Name: name, Ours: round(ours), Unit: unit}
}

func (r row) beside(peer string, value float64) row {
	ratio := r.Ours / value
	if slices.Contains(lower, r.Unit) {
		ratio = value / r.Ours
	}
	value, ratio = round(value), math.Round(ratio*1000)/1000
	r.Peer, r.PeerValue, r.Ratio = peer, &value, &ratio
	return r
}

// within is a target for the value itself: at most, or at least where more is better.
func (r row) within(limit float64) row {
	met := r.Ours >= limit
	r.Target = fmt.Sprintf("≥ %g %s", limit, r.Unit)
	if slices.Contains(lower, r.Unit) {
		met = r.Ours <= limit
		r.Target = fmt.Sprintf("≤ %g %s", limit, r.Unit)
	}
	r.Met = &met
	return r
}

// keeping is a target for the ratio to the peer.
func (r row) keeping(ratio float64) row {
	met := r.Ratio != nil && *r.Ratio >= ratio
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

func printTable(w io.Writer, rows []row) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "  what\tours\tpeer\tratio\ttarget\tmet")
	for _, r := range rows {
		peer, ratio, met := "-", "-", "-"
		if r.PeerValue != nil {
			peer = fmt.Sprintf("%g (%s)", *r.PeerValue, r.Peer)
			ratio = fmt.Sprintf("%.2f", *r.Ratio)
		}
		if r.Met != nil {
			met = map[bool]string{true: "yes", false: "NO"}[*r.Met]
		}
		fmt.Fprintf(t, "  %s\t%g %s\t%s\t%s\t%s\t%s\n", r.Name, r.Ours, r.Unit, peer, ratio, r.Target, met)
	}
	_ = t.Flush() // the terminal
}
