package blob

import (
	"encoding/xml"
	"fmt"
	"net/url"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"casemate.dev/resource"
)

func TestWhere(t *testing.T) {
	tags := map[string]string{"a": "1", "b": "x y", "k-1": "2026-01-02"}
	tests := []struct {
		expr      string
		condition bool
		want      string // true, false or error
	}{
		{`a = '1'`, false, "true"},
		{`"a"='1'AND b='x y'`, false, "true"},
		{`"a"='1' AND b='x y'`, false, "true"},
		{`"a"='1' and "k-1" >= '2026-01-01' AND "k-1"<'2026-02'`, false, "true"},
		{`a > '1'`, false, "false"},
		{`a <= '1'`, false, "true"},
		{`c < 'zzz'`, false, "false"},
		{`@container = 'cc1' AND a='1'`, false, "true"},
		{`@container = 'cc2' AND a='1'`, false, "false"},
		{`@container > 'cc2'`, false, "error"},
		{`a = '2' OR a = '1'`, false, "error"},
		{`a <> '2'`, false, "error"},
		{`a = '2' OR a = '1' AND b = 'x y'`, true, "true"},
		{`a = '1' AND b = 'no' OR a = '3'`, true, "false"},
		{`a <> '2'`, true, "true"},
		{`c <> '2'`, true, "true"},
		{`@container = 'cc1'`, true, "error"},
		{``, false, "error"},
		{`a`, false, "error"},
		{`a = `, false, "error"},
		{`a = '1`, false, "error"},
		{`a = "1"`, false, "error"},
		{`a = '1' AND`, false, "error"},
		{`a = '1' b = '2'`, false, "error"},
		{`a = '1;'`, false, "error"},
		{`k-1 = '1'`, false, "error"},
		{`"" = '1'`, false, "error"},
		{strings.Repeat("a='1' AND ", 100) + "a='1'", false, "error"},
	}
	for _, tt := range tests {
		got := "error"
		if q, err := parseWhere(tt.expr, tt.condition); err == nil {
			got = fmt.Sprint(q.holds("cc1", tags))
		}
		if got != tt.want {
			t.Errorf("%.60s (condition %v) = %s, want %s", tt.expr, tt.condition, got, tt.want)
		}
	}
}

func FuzzWhere(f *testing.F) {
	for _, s := range []string{`a='1'`, `"a b" >= '1' AND @container='x'`, `a<>'1' OR b<'2'`, `'`, `"`, `@`, `a=''`} {
		f.Add(s, true)
		f.Add(s, false)
	}
	f.Fuzz(func(t *testing.T, s string, condition bool) {
		q, err := parseWhere(s, condition)
		if err != nil {
			return
		}
		if len(q) == 0 || (!condition && len(q) != 1) {
			t.Fatalf("%q has %d alternatives", s, len(q))
		}
		// What was understood can be written and is understood the same.
		var alternatives []string
		for _, all := range q {
			var terms []string
			for _, x := range all {
				key := `"` + x.key + `"`
				if x.key == containerTerm {
					key = x.key
				}
				terms = append(terms, key+x.op+"'"+x.value+"'")
			}
			alternatives = append(alternatives, strings.Join(terms, " AND "))
		}
		again, err := parseWhere(strings.Join(alternatives, " OR "), condition)
		if err != nil && len(strings.Join(alternatives, " OR ")) <= maxWhere {
			t.Fatalf("%q became %q: %v", s, alternatives, err)
		}
		if err == nil && !cmp.Equal(q, again, cmp.AllowUnexported(term{})) {
			t.Fatalf("%q became %q", s, alternatives)
		}
	})
}

func FuzzTagHeader(f *testing.F) {
	f.Add("a=b&c=d+e")
	f.Add("a=%ff")
	f.Fuzz(func(t *testing.T, s string) {
		tags, err := parseTagHeader(s)
		if err == nil && len(tags) > maxTags {
			t.Fatalf("%d tags", len(tags))
		}
		for k, v := range tags {
			if err == nil && (k == "" || !tagText(k) || !tagText(v)) {
				t.Fatalf("%q gives %q=%q", s, k, v)
			}
		}
	})
}

func tagXML(pairs ...string) string {
	var b strings.Builder
	for i := 0; i+1 < len(pairs); i += 2 {
		fmt.Fprintf(&b, "<Tag><Key>%s</Key><Value>%s</Value></Tag>", pairs[i], pairs[i+1])
	}
	return "<Tags><TagSet>" + b.String() + "</TagSet></Tags>"
}

func TestTags(t *testing.T) {
	f := newFixture(t)
	f.container("cc1")
	w := f.upload("/cc1/b", "x", "x-ms-tags", "ward=7&state=in+use")
	get := func() string {
		s := f.must(200, "GET", "/cc1/b?comp=tags", "").Body.String()
		return s[strings.Index(s, "<Tags>"):]
	}
	if got, want := get(), tagXML("state", "in use", "ward", "7"); got != want {
		t.Errorf("tags = %s, want %s", got, want)
	}
	f.must(204, "PUT", "/cc1/b?comp=tags", tagXML("a", "1"), "x-ms-if-tags", `ward = '7' OR ward = '8'`)
	f.restart()
	if got, want := get(), tagXML("a", "1"); got != want {
		t.Errorf("tags = %s, want %s", got, want)
	}
	if got := f.must(200, "HEAD", "/cc1/b", "", "x-ms-if-tags", `a = '1'`).Header().Get("ETag"); got != w.Header().Get("ETag") {
		t.Errorf("setting tags changed the ETag")
	}
	if s := f.must(200, "GET", "/cc1?restype=container&comp=list&include=tags", "").Body.String(); !strings.Contains(s, tagXML("a", "1")) {
		t.Errorf("list = %s", s)
	}
	f.must(200, "PUT", "/cc1/b?comp=metadata", "", "x-ms-meta-k", "v")
	if got := get(); got != tagXML("a", "1") {
		t.Errorf("setting metadata left %s", got)
	}
	many := []string{}
	for i := range 11 {
		many = append(many, fmt.Sprintf("k%d", i), "v")
	}
	tests := []struct {
		method, target, body string
		headers              []string
		want                 string
	}{
		{"PUT", "/cc1/b?comp=tags", tagXML(many...), nil, "400 TagsTooLarge"},
		{"PUT", "/cc1/b?comp=tags", tagXML("a", "1", "a", "2"), nil, "400 InvalidTag"},
		{"PUT", "/cc1/b?comp=tags", tagXML("", "1"), nil, "400 EmptyTagKey"},
		{"PUT", "/cc1/b?comp=tags", tagXML("a", "ü"), nil, "400 InvalidTag"},
		{"PUT", "/cc1/b?comp=tags", tagXML(strings.Repeat("k", 129), "1"), nil, "400 InvalidTag"},
		{"PUT", "/cc1/b?comp=tags", "<Tags/>", nil, "400 InvalidXmlDocument"},
		{"PUT", "/cc1/b?comp=tags", "<!DOCTYPE a>" + tagXML(), nil, "400 InvalidXmlDocument"},
		{"PUT", "/cc1/none?comp=tags", tagXML(), nil, "404 BlobNotFound"},
		{"GET", "/cc1/none?comp=tags", "", nil, "404 BlobNotFound"},
		{"PUT", "/cc1/b", "y", []string{"x-ms-blob-type", "BlockBlob", "x-ms-if-tags", "a = '2'"}, "412 ConditionNotMet"},
		{"GET", "/cc1/b", "", []string{"x-ms-if-tags", "a <> '1'"}, "412 ConditionNotMet"},
		{"GET", "/cc1/b", "", []string{"x-ms-if-tags", "a ~ '1'"}, "400 InvalidHeaderValue"},
		{"DELETE", "/cc1/b", "", []string{"x-ms-if-tags", "b = '1'"}, "412 ConditionNotMet"},
		{"PUT", "/cc1/b?comp=metadata", "", []string{"x-ms-tags", "b=1"}, "400 UnsupportedHeader"},
		{"PUT", "/cc1?restype=container&comp=metadata", "", []string{"x-ms-if-tags", "b = '1'"}, "400 UnsupportedHeader"},
		{"GET", "/?comp=blobs", "", nil, "400 MissingRequiredQueryParameter"},
		{"GET", "/?comp=blobs&where=a", "", nil, "400 InvalidQueryParameterValue"},
		{"GET", "/?comp=blobs&where=a%3D%271%27&marker=%25", "", nil, "400 OutOfRangeInput"},
		{"GET", "/nope?restype=container&comp=blobs&where=a%3D%271%27", "", nil, "404 ContainerNotFound"},
	}
	for _, tt := range tests {
		w := f.do(tt.method, tt.target, tt.body, tt.headers...)
		if got := outcome(w.Code, w.Header().Get("x-ms-error-code")); got != tt.want {
			t.Errorf("%s %s %v = %s, want %s", tt.method, tt.target, tt.headers, got, tt.want)
		}
	}
}

// TestTagsNeedTheirPermission: writing tags beside a blob, and asking for them in a condition or list, needs more than the
// right to write or read blobs.
func TestTagsNeedTheirPermission(t *testing.T) {
	f := newFixture(t)
	f.container("cc1")
	f.upload("/cc1/b", "x", "x-ms-tags", "a=1")
	f.inner.deny = true
	for _, q := range []struct {
		method, target string
		headers        []string
	}{
		{"PUT", "/cc1/b", []string{"x-ms-blob-type", "BlockBlob", "x-ms-tags", "a=2"}},
		{"GET", "/cc1/b", []string{"x-ms-if-tags", "a='1'"}},
		{"GET", "/cc1?restype=container&comp=list&include=tags", nil},
	} {
		f.must(403, q.method, q.target, "", q.headers...)
	}
	f.must(200, "GET", "/cc1/b", "")
	want := " " + dataReadTags + " true " + scopeOf(testAccount, "cc1") + " " + resource.AuditData.String()
	if got := f.inner.asked[len(f.inner.asked)-1]; got != want {
		t.Errorf("asked %q, want %q", got, want)
	}
}

// TestFindAgainstOracle searches random tags in pages and compares with looking at each blob.
func TestFindAgainstOracle(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		f := newFixture(t)
		value := rapid.SampledFrom([]string{"1", "2", "3"})
		op := rapid.SampledFrom([]string{"=", ">", "<", ">=", "<="}).Draw(rt, "op")
		q := where{{{"a", op, value.Draw(rt, "value")}}}
		expr := fmt.Sprintf("a %s '%s'", op, q[0][0].value)
		var want, got []string
		for _, c := range []string{"cc1", "cc2", "cc3"} {
			f.container(c)
			for i := range rapid.IntRange(0, 4).Draw(rt, "blobs") {
				name := fmt.Sprintf("/%s/b%d", c, i)
				if !rapid.Bool().Draw(rt, "tagged") {
					f.upload(name, "")
					continue
				}
				v := value.Draw(rt, "tag")
				f.upload(name, "", "x-ms-tags", "a="+v)
				if q.holds(c, map[string]string{"a": v}) {
					want = append(want, name)
				}
			}
		}
		limit := rapid.IntRange(1, 3).Draw(rt, "limit")
		for marker := ""; ; {
			var page struct {
				Blobs struct {
					Blob []struct{ Name, ContainerName string }
				}
				NextMarker string
			}
			w := f.must(200, "GET", fmt.Sprintf("/?comp=blobs&where=%s&maxresults=%d&marker=%s", url.QueryEscape(expr), limit, marker), "")
			if err := xml.Unmarshal(w.Body.Bytes(), &page); err != nil {
				rt.Fatal(err)
			}
			for _, b := range page.Blobs.Blob {
				got = append(got, "/"+b.ContainerName+"/"+b.Name)
			}
			if marker = page.NextMarker; marker == "" {
				break
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			rt.Fatalf("%s: %s", expr, diff)
		}
	})
}
