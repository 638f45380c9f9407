package demo

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestEvaluate(t *testing.T) {
	for name, c := range map[string]struct {
		in   []prediction
		want scores
	}{
		"nothing":       {nil, scores{}},
		"perfect":       {[]prediction{{0.9, true}, {0.8, true}, {0.1, false}}, scores{3, 1, 1}},
		"reversed":      {[]prediction{{0.1, true}, {0.9, false}}, scores{2, 0, 0}},
		"all equal":     {[]prediction{{0.7, true}, {0.7, false}, {0.7, true}, {0.7, false}}, scores{4, 0.5, 0.5}},
		"one inversion": {[]prediction{{0.9, true}, {0.3, true}, {0.6, false}, {0.2, false}}, scores{4, 0.5, 0.75}},
		"one class":     {[]prediction{{0.9, true}}, scores{1, 1, 0}},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, evaluate(c.in), cmp.AllowUnexported(scores{})); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// The oracle compares every positive with every negative.
func TestEvaluateIsTheChanceOfRankingRight(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		all := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) prediction {
			return prediction{float64(rapid.IntRange(0, 8).Draw(t, "p")) / 8, rapid.Bool().Draw(t, "positive")}
		}), 1, 40).Draw(t, "all")
		wins, pairs := 0.0, 0.0
		for _, a := range all {
			for _, b := range all {
				if !a.positive || b.positive {
					continue
				}
				pairs++
				switch {
				case a.probability > b.probability:
					wins++
				case a.probability == b.probability:
					wins += 0.5
				}
			}
		}
		if pairs > 0 && math.Abs(evaluate(all).auc-wins/pairs) > 1e-9 {
			t.Fatalf("auc %v, want %v", evaluate(all).auc, wins/pairs)
		}
	})
}

func TestNeedlesFindEveryDisguise(t *testing.T) {
	c := newCanary()
	for i := range 6 {
		text := []byte(strings.Repeat("x", i) + c.mark("here") + " and more")
		hits := func(b []byte) (n int) {
			for _, needle := range c.needles() {
				if bytes.Contains(b, needle.bytes) {
					n++
				}
			}
			return n
		}
		if hits(text) != 1 {
			t.Errorf("offset %d: plain text is found %d times", i, hits(text))
		}
		if hits([]byte(base64.StdEncoding.EncodeToString(text))) != 1 {
			t.Errorf("offset %d: base64 is not found", i)
		}
		if hits(fmt.Appendf(nil, "%x", text)) != 1 {
			t.Errorf("offset %d: hexadecimal is not found", i)
		}
		if hits([]byte("nothing of the kind")) != 0 {
			t.Error("found in clean text")
		}
	}
}

func sample() []byte {
	var b strings.Builder
	b.WriteString("569,30,malignant,benign\n")
	for i := range patientCount {
		for range measureCount {
			fmt.Fprintf(&b, "%d.5,", i)
		}
		fmt.Fprintf(&b, "%d\n", i%2)
	}
	return []byte(b.String())
}

func TestPatientsRoundTrip(t *testing.T) {
	all, err := readPatients(sample())
	if err != nil || len(all) != patientCount || !all[0].malignant || all[1].malignant || all[3].measurements[29] != 3.5 {
		t.Fatalf("%d patients, %v", len(all), err)
	}
	lines := strings.Split(strings.TrimSpace(string(writePatients(all, "mark"))), "\n")
	if len(lines) != patientCount+2 || !strings.HasSuffix(lines[len(lines)-1], ",mark") || strings.HasSuffix(lines[1], "mark") {
		t.Errorf("%d lines, the last is %s", len(lines), lines[len(lines)-1])
	}
	for name, bad := range map[string]string{"short": "569,30,malignant,benign\n1,2\n", "empty": "", "binary": "\x00\x01"} {
		if _, err := readPatients([]byte(bad)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestSearchFindsAcrossChunksAndSkipsHoles(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "disk")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	needle := []needle{{"word", []byte("0123456789abcdef")}}
	for _, at := range []int64{0, searchChunk - 7, 5*searchChunk - 3, 1 << 32} {
		if err := f.Truncate(0); err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt(needle[0].bytes, at); err != nil {
			t.Fatal(err)
		}
		if err := f.Truncate(1<<32 + 4096); err != nil {
			t.Fatal(err)
		}
		s := newSearch(needle)
		if err := s.file(path); err != nil {
			t.Fatal(err)
		}
		if len(s.hits) != 1 {
			t.Errorf("at %d: %v", at, s.hits)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestSearchWalksEverythingBelow(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "a", "b"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"a/b/clean": "nothing", "a/b/dirty": "it is secretword", "a/name-of-secretword": ""} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s := newSearch([]needle{{"word", []byte("secretword")}})
	if err := s.tree(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	if s.files != 3 || len(s.hits) != 2 {
		t.Errorf("%d files, hits %v", s.files, s.hits)
	}
}

func TestStepsHaveNamesAndLimits(t *testing.T) {
	seen := map[string]bool{}
	for _, s := range steps() {
		if s.name == "" || seen[s.name] || s.limit <= 0 || s.fn == nil {
			t.Errorf("step %+v", s.name)
		}
		seen[s.name] = true
	}
}

func TestReadyLineIsRead(t *testing.T) {
	dir := t.TempDir()
	log := filepath.Join(dir, "log")
	if err := os.WriteFile(log, []byte("off: networks: not root\nready https://management.casemate.localhost:8443 in 7 ms\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	line, off, err := (&server{log: log, ended: make(chan struct{})}).ready(t.Context())
	if err != nil || !strings.HasPrefix(line, "ready ") || len(off) != 1 {
		t.Errorf("%q, %v, %v", line, off, err)
	}
	if err := os.WriteFile(log, []byte("casemate: listening: address in use\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	gone := make(chan struct{})
	close(gone)
	if _, _, err := (&server{log: log, ended: gone}).ready(t.Context()); err == nil || !strings.Contains(err.Error(), "address in use") {
		t.Errorf("got %v", err)
	}
}
