package main

import (
	"bufio"
	"strings"
	"testing"
)

func TestRead(t *testing.T) {
	const pass = `{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Test":"TestA","Output":"=== RUN   TestA\n"}
{"Action":"pass","Package":"p","Test":"TestA/sub"}
{"Action":"pass","Package":"p","Test":"TestA"}
{"Action":"pass","Package":"p","Elapsed":0.1}
`
	for _, tt := range []struct {
		name, events   string
		passed, failed int
		skips          string
	}{
		{"a test with a subtest counts once", pass, 1, 0, ""},
		{"a failed test counts once, its package and subtest do not", `{"Action":"fail","Package":"p","Test":"TestA/sub"}
{"Action":"fail","Package":"p","Test":"TestA"}
{"Action":"fail","Package":"p"}
`, 0, 1, ""},
		{"a package that fails outside of tests counts", pass + `{"Action":"output","Package":"q","Output":"panic: no\n"}
{"Action":"fail","Package":"q"}
`, 1, 1, ""},
		{"a package that does not build counts", `{"ImportPath":"p","Action":"build-output","Output":"syntax error\n"}
{"ImportPath":"p","Action":"build-fail"}
`, 0, 1, ""},
		{"a skip says why", `{"Action":"output","Package":"p","Test":"TestA","Output":"    a_test.go:1: needs root\n"}
{"Action":"output","Package":"p","Test":"TestA","Output":"--- SKIP: TestA (0.00s)\n"}
{"Action":"skip","Package":"p","Test":"TestA"}
{"Action":"pass","Package":"p"}
`, 0, 0, "TestA: a_test.go:1: needs root"},
	} {
		var got tally
		got.read(bufio.NewScanner(strings.NewReader(tt.events)))
		if got.passed != tt.passed || got.failed != tt.failed || strings.Join(got.skips, ";") != tt.skips {
			t.Errorf("%s: %d passed, %d failed, skipped %q; want %d, %d, %q", tt.name, got.passed, got.failed, got.skips, tt.passed, tt.failed, tt.skips)
		}
	}
}

func TestReportEndsWithTheLine(t *testing.T) {
	var b strings.Builder
	(&tally{passed: 2, failed: 1, skips: []string{"b", "a", "a"}}).report(&b)
	if want := "skipped a\nskipped b\n3 skipped\n2 passed, 1 failed\n"; b.String() != want {
		t.Errorf("report = %q, want %q", b.String(), want)
	}
}

func TestChoose(t *testing.T) {
	list := []stage{{name: "engines"}, {name: "test/outside"}}
	if got, err := choose(list, "outside,engines"); err != nil || len(got) != 2 || got[0].name != "test/outside" {
		t.Errorf("choose = %v, %v", got, err)
	}
	if _, err := choose(list, "nothing"); err == nil {
		t.Error("an unknown stage is chosen")
	}
}
