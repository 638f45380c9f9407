package main

import (
	"strings"
	"testing"
)

func TestRatioAboveOneIsBetter(t *testing.T) {
	for _, tt := range []struct {
		unit       string
		ours, peer float64
		want       float64
	}{
		{"MB/s", 200, 100, 2},
		{"1/s", 50, 100, 0.5},
		{"ms", 50, 100, 2},
		{"µs", 200, 100, 0.5},
	} {
		if r := newRow("x", tt.ours, tt.unit).beside("peer", tt.peer); *r.Ratio != tt.want {
			t.Errorf("%v %s beside %v: ratio %v, want %v", tt.ours, tt.unit, tt.peer, *r.Ratio, tt.want)
		}
	}
}

func TestTargets(t *testing.T) {
	for _, tt := range []struct {
		name string
		row  row
		want bool
	}{
		{"less is better, met", newRow("x", 0.9, "ms").within(1), true},
		{"less is better, missed", newRow("x", 1.1, "ms").within(1), false},
		{"more is better, met", newRow("x", 3000, "1/s").within(3000), true},
		{"more is better, missed", newRow("x", 2999, "1/s").within(3000), false},
		{"ratio met", newRow("x", 60, "MB/s").beside("p", 100).keeping(0.6), true},
		{"ratio missed", newRow("x", 59, "MB/s").beside("p", 100).keeping(0.6), false},
		{"no peer, no ratio", newRow("x", 59, "MB/s").keeping(0.6), false},
	} {
		if *tt.row.Met != tt.want {
			t.Errorf("%s: met = %v with target %q", tt.name, *tt.row.Met, tt.row.Target)
		}
	}
}

func TestRatioOfRounds(t *testing.T) {
	// The second round met a slow machine, on both sides.
	s := samples{"A": {"MB/s": {100, 10, 99}}, "B": {"MB/s": {100, 10, 110}}}
	if r := s.rounds("x", "A", "MB/s", "peer", "B"); *r.Ratio != 1 || r.Ours != 99 || *r.PeerValue != 100 {
		t.Errorf("ratio %v, ours %v, peer %v", *r.Ratio, r.Ours, *r.PeerValue)
	}
}

func TestTable(t *testing.T) {
	var b strings.Builder
	printTable(&b, []row{newRow("fast", 1, "ms").within(2), newRow("plain", 3, "ms")})
	for _, want := range []string{"fast", "≤ 2 ms", "yes", "plain", "–"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("the table lacks %q:\n%s", want, b.String())
		}
	}
}
