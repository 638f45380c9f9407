package tracking

import (
	"fmt"
	"math"
	"regexp"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// sample is a record for the tests of filters.
type sample struct {
	metrics map[string]float64
	params  map[string]string
	tags    map[string]string
	status  string
	start   float64
}

func (s sample) get(e entity, key string) value {
	switch e {
	case metricEntity:
		v, ok := s.metrics[key]
		return value{number: v, numeric: true, ok: ok}
	case paramEntity:
		v, ok := s.params[key]
		return value{text: v, ok: ok}
	case tagEntity:
		v, ok := s.tags[key]
		return value{text: v, ok: ok}
	}
	if key == "start_time" {
		return value{number: s.start, numeric: true, ok: true}
	}
	return value{text: s.status, ok: key == "status"}
}

func TestFilter(t *testing.T) {
	s := sample{
		metrics: map[string]float64{"acc": 0.9, "val loss": 0.1, "nan": math.NaN()},
		params:  map[string]string{"lr": "0.01", "model": "SVC", "a.b": "x"},
		tags:    map[string]string{"mlflow.runName": "night run"},
		status:  "FINISHED", start: 1700000000000,
	}
	for f, want := range map[string]bool{
		"":                          true,
		"metrics.acc > 0.8":         true,
		"metrics.acc>0.95":          false,
		"metric.`val loss` <= 0.1":  true,
		`metrics."val loss" < 1e-3`: false,
		"params.lr = '0.01' and metrics.acc >= .9":      true,
		"params.lr = \"0.01\" AND params.model != 'RF'": true,
		"params.none != 'x'":                            false,
		"params.none IS NULL":                           true,
		"params.lr is not null":                         true,
		"params.a.b = 'x'":                              true,
		"tags.mlflow.runName LIKE 'night%'":             true,
		"tags.`mlflow.runName` LIKE 'NIGHT%'":           false,
		"tags.mlflow.runName ILIKE 'NIGHT _un'":         true,
		"status = 'FINISHED'":                           true,
		"attributes.status IN ('RUNNING', 'FINISHED')":  true,
		"attribute.status NOT IN ('RUNNING')":           true,
		"run.start_time > 1699999999999":                true,
		"metrics.nan = NaN":                             false,
		"metrics.nan != 1":                              true,
		"metrics.acc < -1.5e+3":                         false,
	} {
		got, err := parseFilter(f, runSchema)
		if err != nil {
			t.Errorf("%q: %v", f, err)
		} else if got.holds(s.get) != want {
			t.Errorf("%q holds: %v", f, !want)
		}
	}
}

func TestFilterRefuses(t *testing.T) {
	for _, f := range []string{
		"x", "metrics.acc", "metrics.acc >", "metrics.acc > 'x'", "metrics.acc LIKE 'x'", "params.lr > '1'", "params.lr = 1", "params.lr = 'x", "secret = 'x'",
		"metrics. > 1", "metrics.acc > 1 OR metrics.acc < 2", "metrics.acc > 1 AND", "AND metrics.acc > 1", "metrics.acc > 0x10", "metrics.acc > 1_0",
		"status IN ()", "status IN ('a'", "status IN ('a';)", "metrics.acc IN ('a')", "params.a = 'x'; DROP TABLE runs", "metrics.acc > 1)", "models.x = 'y'",
		"params.lr IS 'x'", "params.lr NOT NULL", strings.Repeat("a", maxFilterLength+1),
		strings.Repeat("metrics.a > 1 AND ", maxComparisons) + "metrics.a > 1",
	} {
		if got, err := parseFilter(f, runSchema); err == nil {
			t.Errorf("%.60q was read as %+v", f, got)
		}
	}
}

// likeOracle translates a pattern to a regular expression: slow and obvious.
func likeOracle(s, pattern string, fold bool) bool {
	var b strings.Builder
	b.WriteString("(?s)")
	if fold {
		s, pattern = strings.ToLower(s), strings.ToLower(pattern)
	}
	b.WriteString("^")
	for _, r := range pattern {
		switch r {
		case '%':
			b.WriteString(".*")
		case '_':
			b.WriteString(".")
		default:
			b.WriteString(regexp.QuoteMeta(string(r)))
		}
	}
	return regexp.MustCompile(b.String() + "$").MatchString(s)
}

// TestFilterAgainstOracle writes random comparisons as text and evaluates them both ways.
func TestFilterAgainstOracle(t *testing.T) {
	text := rapid.StringOfN(rapid.RuneFrom([]rune("abAB%_ ")), 0, 5, -1)
	number := rapid.SampledFrom([]float64{-1.5, 0, 0.25, 1, 3e10, math.Inf(1)})
	rapid.Check(t, func(t *rapid.T) {
		s := sample{metrics: map[string]float64{}, params: map[string]string{}, tags: map[string]string{}, status: text.Draw(t, "status")}
		for _, k := range []string{"k", "a b", "x.y"} {
			if rapid.Bool().Draw(t, "has metric") {
				s.metrics[k] = number.Draw(t, "metric")
			}
			if rapid.Bool().Draw(t, "has param") {
				s.params[k] = text.Draw(t, "param")
			}
		}
		var parts []string
		want := true
		for range rapid.IntRange(1, 4).Draw(t, "comparisons") {
			key := rapid.SampledFrom([]string{"k", "a b", "x.y"}).Draw(t, "key")
			if rapid.Bool().Draw(t, "numeric") {
				op, v := rapid.SampledFrom([]string{"=", "!=", "<", "<=", ">", ">="}).Draw(t, "op"), number.Draw(t, "value")
				parts = append(parts, fmt.Sprintf("metrics.`%s` %s %v", key, op, v))
				have, ok := s.metrics[key]
				want = want && ok && map[string]bool{"=": have == v, "!=": have != v, "<": have < v, "<=": have <= v, ">": have > v, ">=": have >= v}[op]
				continue
			}
			op, v := rapid.SampledFrom([]string{"=", "!=", "LIKE", "ILIKE"}).Draw(t, "op"), text.Draw(t, "value")
			parts = append(parts, fmt.Sprintf("params.\"%s\" %s '%s'", key, op, v))
			have, ok := s.params[key]
			want = want && ok && map[string]bool{"=": have == v, "!=": have != v, "LIKE": likeOracle(have, v, false), "ILIKE": likeOracle(have, v, true)}[op]
		}
		in := strings.Join(parts, rapid.SampledFrom([]string{" AND ", " and ", "\n and\t"}).Draw(t, "and"))
		f, err := parseFilter(in, runSchema)
		if err != nil {
			t.Fatalf("%q: %v", in, err)
		}
		if got := f.holds(s.get); got != want {
			t.Fatalf("%q over %+v: got %v", in, s, got)
		}
	})
}

func TestOrder(t *testing.T) {
	records := []sample{{metrics: map[string]float64{"m": 1}}, {metrics: map[string]float64{"m": math.NaN()}}, {}, {metrics: map[string]float64{"m": 2}}}
	for order, want := range map[string][]int{"metrics.m": {0, 3, 1, 2}, "metrics.m ASC": {0, 3, 1, 2}, "metrics.`m` desc": {3, 0, 1, 2}} {
		terms, err := parseOrder([]string{order}, runSchema)
		if err != nil {
			t.Fatal(err)
		}
		for i := range want[1:] {
			if compare(terms, records[want[i]].get, records[want[i+1]].get) >= 0 {
				t.Errorf("%s: %d is not before %d", order, want[i], want[i+1])
			}
		}
	}
	for _, bad := range []string{"", "metrics.m UP", "metrics.m DESC, metrics.n", "nothing"} {
		if _, err := parseOrder([]string{bad}, runSchema); err == nil {
			t.Errorf("order_by %q was accepted", bad)
		}
	}
}

func FuzzFilter(f *testing.F) {
	f.Add("metrics.acc > 0.9 AND params.`a b` ILIKE '%x_' and status NOT IN ('a', \"b\")")
	f.Add("tags.\"x\" IS NOT NULL")
	f.Fuzz(func(t *testing.T, in string) {
		got, err := parseFilter(in, runSchema)
		if err != nil {
			return
		}
		got.holds(sample{}.get)
	})
}
