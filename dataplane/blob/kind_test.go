package blob

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"
)

func (f *fixture) create(target, kind string, headers ...string) {
	f.t.Helper()
	f.must(201, "PUT", target, "", append([]string{"x-ms-blob-type", kind}, headers...)...)
}

func pageRange(off, n int) string { return fmt.Sprintf("bytes=%d-%d", off, off+n-1) }

func TestAppendBlob(t *testing.T) {
	f := newFixture(t)
	f.container("cc1")
	f.create("/cc1/log", "AppendBlob", "Content-Type", "text/plain", "x-ms-meta-k", "v")
	if got := f.must(200, "GET", "/cc1/log", ""); got.Body.Len() != 0 || got.Header().Get("x-ms-blob-type") != "AppendBlob" {
		t.Errorf("a new append blob = %q %v", got.Body, got.Header())
	}
	var want strings.Builder
	for i, n := range []int{1, 40_000, 30_000, 10, 200_000, 5, 70_000, 65_536, 1} {
		block := strings.Repeat(strconv.Itoa(i), n)
		w := f.must(201, "PUT", "/cc1/log?comp=appendblock", block, "x-ms-blob-condition-appendpos", strconv.Itoa(want.Len()), "Content-MD5", md5Of(block))
		got := []string{w.Header().Get("x-ms-blob-append-offset"), w.Header().Get("x-ms-blob-committed-block-count")}
		if diff := cmp.Diff([]string{strconv.Itoa(want.Len()), strconv.Itoa(i + 1)}, got); diff != "" {
			t.Error(diff)
		}
		want.WriteString(block)
	}
	f.restart()
	if got := f.must(200, "GET", "/cc1/log", "").Body.String(); got != want.String() {
		t.Fatalf("the blob holds %d bytes, want %d", len(got), want.Len())
	}
	if got := f.must(206, "GET", "/cc1/log", "", "x-ms-range", "bytes=39990-70050").Body.String(); got != want.String()[39_990:70_051] {
		t.Errorf("a range across runs is wrong: %d bytes", len(got))
	}
	tests := []struct {
		method, target, body string
		headers              []string
		want                 string
	}{
		{"PUT", "/cc1/log?comp=appendblock", "x", []string{"x-ms-blob-condition-appendpos", "0"}, "412 AppendPositionConditionNotMet"},
		{"PUT", "/cc1/log?comp=appendblock", "x", []string{"x-ms-blob-condition-maxsize", strconv.Itoa(want.Len())}, "412 MaxBlobSizeConditionNotMet"},
		{"PUT", "/cc1/log?comp=appendblock", "", nil, "400 InvalidHeaderValue"},
		{"PUT", "/cc1/log?comp=appendblock", "x", []string{"x-ms-blob-condition-appendpos", "-1"}, "400 InvalidHeaderValue"},
		{"PUT", "/cc1/log?comp=appendblock", "x", []string{"Content-MD5", md5Of("y")}, "400 Md5Mismatch"},
		{"PUT", "/cc1/log?comp=appendblock", "x", []string{"If-Match", `"0x1"`}, "412 ConditionNotMet"},
		{"PUT", "/cc1/log?comp=appendblock", "x", []string{"x-ms-lease-id", leaseA}, "412 LeaseNotPresentWithBlobOperation"},
		{"PUT", "/cc1/none?comp=appendblock", "x", nil, "404 BlobNotFound"},
		{"PUT", blockURL("/cc1/log", 1), "x", nil, "409 InvalidBlobType"},
		{"PUT", "/cc1/log?comp=blocklist", "<BlockList/>", nil, "409 InvalidBlobType"},
		{"GET", "/cc1/log?comp=blocklist", "", nil, "409 InvalidBlobType"},
		{"GET", "/cc1/log?comp=pagelist", "", nil, "409 InvalidBlobType"},
		{"PUT", "/cc1/log?comp=seal", "", []string{"x-ms-blob-condition-appendpos", "1"}, "412 AppendPositionConditionNotMet"},
		{"PUT", "/cc1/log?comp=seal", "", nil, "200"},
		{"PUT", "/cc1/log?comp=seal", "", nil, "200"},
		{"PUT", "/cc1/log?comp=appendblock", "x", nil, "409 BlobIsSealed"},
	}
	for _, tt := range tests {
		w := f.do(tt.method, tt.target, tt.body, tt.headers...)
		if got := outcome(w.Code, w.Header().Get("x-ms-error-code")); got != tt.want {
			t.Errorf("%s %s %v = %s, want %s", tt.method, tt.target, tt.headers, got, tt.want)
		}
	}
	if got := f.must(200, "HEAD", "/cc1/log", "").Header().Get("x-ms-blob-sealed"); got != "true" {
		t.Errorf("sealed = %q", got)
	}
	f.must(202, "DELETE", "/cc1/log", "")
	if n := f.settled(); n != 0 {
		t.Errorf("%d objects left", n)
	}
}

// TestAppendersRace: many writers without conditions lose nothing and tear nothing.
func TestAppendersRace(t *testing.T) {
	f := newFixture(t)
	f.container("cc1")
	f.create("/cc1/log", "AppendBlob")
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for range 5 {
				block := strings.Repeat(string(rune('a'+i)), 19_999) + "|"
				if w := f.do("PUT", "/cc1/log?comp=appendblock", block); w.Code != 201 {
					t.Errorf("append = %d %s", w.Code, w.Body)
				}
			}
		})
	}
	wg.Wait()
	blocks := strings.Split(strings.TrimSuffix(f.must(200, "GET", "/cc1/log", "").Body.String(), "|"), "|")
	for _, b := range blocks {
		if strings.Trim(b, b[:1]) != "" || len(b) != 19_999 {
			t.Fatalf("a torn block of %d bytes", len(b))
		}
	}
	if len(blocks) != 20 {
		t.Errorf("%d blocks, want 20", len(blocks))
	}
	f.must(202, "DELETE", "/cc1/log", "")
	if n := f.settled(); n != 0 {
		t.Errorf("%d objects left", n)
	}
}

type pageListXML struct {
	PageRange []struct{ Start, End int }
}

// TestPagesAgainstOracle writes, clears and resizes at random and compares with a slice of bytes and one of booleans.
func TestPagesAgainstOracle(t *testing.T) {
	f := newFixture(t)
	f.container("cc1")
	n := 0
	rapid.Check(t, func(rt *rapid.T) {
		n++
		target := fmt.Sprintf("/cc1/p%d", n)
		pages := rapid.IntRange(0, 400).Draw(rt, "pages")
		f.create(target, "PageBlob", "x-ms-blob-content-length", strconv.Itoa(pages*512))
		data, used := make([]byte, pages*512), make([]bool, pages)
		for i := range rapid.IntRange(1, 12).Draw(rt, "steps") {
			op := rapid.SampledFrom([]string{"update", "update", "clear", "resize"}).Draw(rt, "op")
			if op == "resize" {
				pages = rapid.IntRange(0, 400).Draw(rt, "pages")
				f.must(200, "PUT", target+"?comp=properties", "", "x-ms-blob-content-length", strconv.Itoa(pages*512))
				data, used = append(data, make([]byte, 400*512)...)[:pages*512], append(used, make([]bool, 400)...)[:pages]
				// What was cut off reads as zeros when it comes back.
				data, used = append([]byte(nil), data...), append([]bool(nil), used...)
				continue
			}
			if pages == 0 {
				continue
			}
			first := rapid.IntRange(0, pages-1).Draw(rt, "first")
			count := rapid.IntRange(1, pages-first).Draw(rt, "count")
			body := ""
			if op == "update" {
				body = strings.Repeat(string(rune('a'+i)), count*512)
			}
			f.must(201, "PUT", target+"?comp=page", body, "x-ms-page-write", op, "x-ms-range", pageRange(first*512, count*512))
			for p := first; p < first+count; p++ {
				used[p] = op == "update"
				copy(data[p*512:(p+1)*512], bytes.Repeat([]byte{map[bool]byte{true: byte('a' + i)}[op == "update"]}, 512))
			}
		}
		if got := f.must(200, "GET", target, "").Body.Bytes(); !bytes.Equal(got, data) {
			rt.Fatalf("the blob differs from its oracle")
		}
		if len(data) > 0 {
			first := rapid.IntRange(0, len(data)-1).Draw(rt, "from")
			last := rapid.IntRange(first, len(data)-1).Draw(rt, "to")
			if got := f.must(206, "GET", target, "", "x-ms-range", pageRange(first, last-first+1)).Body.Bytes(); !bytes.Equal(got, data[first:last+1]) {
				rt.Fatalf("range %d-%d differs", first, last)
			}
		}
		var list pageListXML
		if err := xml.Unmarshal(f.must(200, "GET", target+"?comp=pagelist", "").Body.Bytes(), &list); err != nil {
			rt.Fatal(err)
		}
		got := make([]bool, pages)
		for _, r := range list.PageRange {
			for p := r.Start / 512; p <= r.End/512; p++ {
				got[p] = true
			}
		}
		if diff := cmp.Diff(used, got, cmpopts.EquateEmpty()); diff != "" {
			rt.Fatalf("page ranges: %s", diff)
		}
		f.must(202, "DELETE", target, "")
		if n := f.settled(); n != 0 {
			rt.Fatalf("%d objects left", n)
		}
	})
}

// TestSmallPagesSpill: a content record stays small however many small writes there are.
func TestSmallPagesSpill(t *testing.T) {
	f := newFixture(t)
	f.container("cc1")
	f.create("/cc1/p", "PageBlob", "x-ms-blob-content-length", strconv.Itoa(1<<20))
	for i := 0; i < 40; i++ {
		f.must(201, "PUT", "/cc1/p?comp=page", strings.Repeat("x", 16384), "x-ms-page-write", "update", "x-ms-range", pageRange(i*20480, 16384))
	}
	if n := f.depot.count(); n == 0 || n > 40 {
		t.Errorf("%d objects", n)
	}
	f.restart()
	got := f.must(200, "GET", "/cc1/p", "").Body.String()
	if strings.Count(got, "x") != 40*16384 || strings.Count(got, "\x00") != 1<<20-40*16384 {
		t.Errorf("the blob holds %d x of %d bytes", strings.Count(got, "x"), len(got))
	}
}

func TestPageRefusals(t *testing.T) {
	f := newFixture(t)
	f.container("cc1")
	f.create("/cc1/p", "PageBlob", "x-ms-blob-content-length", "2048", "x-ms-blob-sequence-number", "7")
	page, write := strings.Repeat("x", 512), []string{"x-ms-page-write", "update", "x-ms-range", "bytes=512-1023"}
	with := func(h ...string) []string { return append(append([]string{}, write...), h...) }
	tests := []struct {
		method, target, body string
		headers              []string
		want                 string
	}{
		{"PUT", "/cc1/q", "", []string{"x-ms-blob-type", "PageBlob"}, "400 MissingRequiredHeader"},
		{"PUT", "/cc1/q", "", []string{"x-ms-blob-type", "PageBlob", "x-ms-blob-content-length", "513"}, "400 InvalidHeaderValue"},
		{"PUT", "/cc1/q", "", []string{"x-ms-blob-type", "PageBlob", "x-ms-blob-content-length", "8796093022720"}, "400 InvalidHeaderValue"},
		{"PUT", "/cc1/p?comp=page", page, []string{"x-ms-page-write", "update"}, "400 InvalidHeaderValue"},
		{"PUT", "/cc1/p?comp=page", page, []string{"x-ms-range", "bytes=0-511"}, "400 MissingRequiredHeader"},
		{"PUT", "/cc1/p?comp=page", page, []string{"x-ms-page-write", "update", "x-ms-range", "bytes=1-512"}, "416 InvalidPageRange"},
		{"PUT", "/cc1/p?comp=page", page, []string{"x-ms-page-write", "update", "x-ms-range", "bytes=0-1023"}, "400 InvalidHeaderValue"},
		{"PUT", "/cc1/p?comp=page", page, []string{"x-ms-page-write", "clear", "x-ms-range", "bytes=0-511"}, "400 InvalidHeaderValue"},
		{"PUT", "/cc1/p?comp=page", page, []string{"x-ms-page-write", "update", "x-ms-range", "bytes=2048-2559"}, "416 InvalidPageRange"},
		{"PUT", "/cc1/p?comp=page", page, with("x-ms-if-sequence-number-lt", "7"), "412 SequenceNumberConditionNotMet"},
		{"PUT", "/cc1/p?comp=page", page, with("x-ms-if-sequence-number-le", "6"), "412 SequenceNumberConditionNotMet"},
		{"PUT", "/cc1/p?comp=page", page, with("x-ms-if-sequence-number-eq", "8"), "412 SequenceNumberConditionNotMet"},
		{"PUT", "/cc1/p?comp=page", page, with("x-ms-if-sequence-number-eq", "7"), "201"},
		{"PUT", "/cc1/p?comp=appendblock", page, nil, "409 InvalidBlobType"},
		{"PUT", "/cc1/p?comp=seal", "", nil, "409 InvalidBlobType"},
		{"PUT", "/cc1/none?comp=page", page, write, "404 BlobNotFound"},
		{"PUT", "/cc1/p?comp=properties", "", []string{"x-ms-blob-content-length", "100"}, "400 InvalidHeaderValue"},
		{"PUT", "/cc1/p?comp=properties", "", []string{"x-ms-sequence-number-action", "update"}, "400 MissingRequiredHeader"},
		{"PUT", "/cc1/p?comp=properties", "", []string{"x-ms-sequence-number-action", "increment"}, "200"},
		{"GET", "/cc1/p?comp=pagelist&prevsnapshot=2020-01-01T00:00:00.0000000Z", "", nil, "501 NotSupported"},
	}
	for _, tt := range tests {
		w := f.do(tt.method, tt.target, tt.body, tt.headers...)
		if got := outcome(w.Code, w.Header().Get("x-ms-error-code")); got != tt.want {
			t.Errorf("%s %s %v = %s, want %s", tt.method, tt.target, tt.headers, got, tt.want)
		}
	}
	h := f.must(200, "HEAD", "/cc1/p", "").Header()
	if h.Get("x-ms-blob-sequence-number") != "8" || h.Get("x-ms-blob-type") != "PageBlob" || h.Get("x-ms-access-tier") != "" {
		t.Errorf("headers = %v", h)
	}
	f.must(201, "PUT", "/cc1/p?comp=lease", "", "x-ms-lease-action", "acquire", "x-ms-lease-duration", "-1")
	if w := f.do("PUT", "/cc1/p?comp=page", page, write...); w.Header().Get("x-ms-error-code") != "LeaseIdMissing" {
		t.Errorf("writing a leased page blob: %d", w.Code)
	}
	if s := f.must(200, "GET", "/cc1?restype=container&comp=list", "").Body.String(); !strings.Contains(s, "<x-ms-blob-sequence-number>8</x-ms-blob-sequence-number><BlobType>PageBlob</BlobType>") {
		t.Errorf("list = %s", s)
	}
}
