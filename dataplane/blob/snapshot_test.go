package blob

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestSnapshots(t *testing.T) {
	big := strings.Repeat("0123456789", 20_000)
	f := newFixture(t)
	f.container("cc1")
	f.upload("/cc1/b", big, "x-ms-meta-v", "1", "x-ms-tags", "a=1")
	f.at(time.Date(2026, 1, 2, 3, 4, 5, 600, time.UTC)) // two snapshots at one time have two names
	w := f.must(201, "PUT", "/cc1/b?comp=snapshot", "", "x-ms-if-tags", "a='1'")
	one := w.Header().Get("x-ms-snapshot")
	two := f.must(201, "PUT", "/cc1/b?comp=snapshot", "", "x-ms-meta-v", "2").Header().Get("x-ms-snapshot")
	if one != "2026-01-02T03:04:05.0000006Z" || two <= one {
		t.Errorf("snapshots %s and %s", one, two)
	}
	f.must(201, "PUT", "/cc1/b?comp=lease", "", "x-ms-lease-action", "acquire", "x-ms-lease-duration", "-1", "x-ms-proposed-lease-id", leaseA)
	f.must(201, "PUT", "/cc1/b?comp=snapshot", "") // reading needs no lease
	f.upload("/cc1/b", "new", "x-ms-lease-id", leaseA)
	f.restart()
	f.settled()
	for at, v := range map[string]string{one: "1", two: "2"} {
		w := f.must(200, "GET", "/cc1/b?snapshot="+at, "")
		if w.Body.String() != big || meta(w.Header(), "v") != v {
			t.Errorf("snapshot %s holds %d bytes, metadata %q", at, w.Body.Len(), meta(w.Header(), "v"))
		}
	}
	if got := f.must(206, "GET", "/cc1/b?snapshot="+one, "", "x-ms-range", "bytes=9-10").Body.String(); got != "90" {
		t.Errorf("range of a snapshot = %q", got)
	}
	s := f.must(200, "GET", "/cc1?restype=container&comp=list&include=snapshots", "").Body.String()
	if strings.Count(s, "<Snapshot>") != 3 || strings.Count(s, "<Name>b</Name>") != 4 || strings.Index(s, one) > strings.Index(s, two) {
		t.Errorf("list = %s", s)
	}
	if s := f.must(200, "GET", "/cc1?restype=container&comp=list", "").Body.String(); strings.Contains(s, "<Snapshot>") {
		t.Errorf("list without snapshots = %s", s)
	}
	tests := []struct {
		method, target string
		headers        []string
		want           string
	}{
		{"GET", "/cc1/b?snapshot=2020-01-01T00:00:00.0000000Z", nil, "404 BlobNotFound"},
		{"GET", "/cc1/b?snapshot=yesterday", nil, "400 InvalidQueryParameterValue"},
		{"PUT", "/cc1/b?comp=metadata&snapshot=" + one, nil, "400 InvalidQueryParameterValue"},
		{"PUT", "/cc1/b?snapshot=" + one, []string{"x-ms-blob-type", "BlockBlob"}, "400 InvalidQueryParameterValue"},
		{"PUT", "/cc1/none?comp=snapshot", nil, "404 BlobNotFound"},
		{"PUT", "/cc1/b?comp=snapshot", []string{"If-Match", `"0x1"`}, "412 ConditionNotMet"},
		{"PUT", "/cc1/b?comp=snapshot", []string{"x-ms-lease-id", leaseB}, "412 LeaseIdMismatchWithBlobOperation"},
		{"DELETE", "/cc1/b", nil, "412 LeaseIdMissing"},
		{"DELETE", "/cc1/b", []string{"x-ms-lease-id", leaseA}, "409 SnapshotsPresent"},
		{"DELETE", "/cc1/b?snapshot=" + one, []string{"x-ms-delete-snapshots", "only"}, "400 InvalidHeaderValue"},
		{"DELETE", "/cc1/b?snapshot=" + one, nil, "202"},
		{"DELETE", "/cc1/b?snapshot=" + one, nil, "404 BlobNotFound"},
	}
	for _, tt := range tests {
		w := f.do(tt.method, tt.target, "", tt.headers...)
		if got := outcome(w.Code, w.Header().Get("x-ms-error-code")); got != tt.want {
			t.Errorf("%s %s %v = %s, want %s", tt.method, tt.target, tt.headers, got, tt.want)
		}
	}
	f.must(202, "DELETE", "/cc1/b", "", "x-ms-delete-snapshots", "only", "x-ms-lease-id", leaseA)
	if got := f.must(200, "GET", "/cc1/b", "").Body.String(); got != "new" {
		t.Errorf("the blob holds %q", got)
	}
	if n := f.settled(); n != 0 {
		t.Errorf("%d objects left", n)
	}
}

// TestSnapshotsAgainstOracle changes blobs of all kinds, takes and deletes snapshots at random; each snapshot goes on
// holding what its blob held, and when all are gone no object is left.
func TestSnapshotsAgainstOracle(t *testing.T) {
	f := newFixture(t)
	f.container("cc1")
	n := 0
	rapid.Check(t, func(rt *rapid.T) {
		n++
		target := fmt.Sprintf("/cc1/b%d", n)
		kind := rapid.SampledFrom([]string{"BlockBlob", "AppendBlob", "PageBlob"}).Draw(rt, "kind")
		const size = 200 << 10
		current := ""
		switch kind {
		case "BlockBlob":
			f.upload(target, "")
		case "AppendBlob":
			f.create(target, kind)
		default:
			f.create(target, kind, "x-ms-blob-content-length", fmt.Sprint(size))
			current = strings.Repeat("\x00", size)
		}
		kept := map[string]string{}
		for i := range rapid.IntRange(1, 12).Draw(rt, "steps") {
			length := rapid.SampledFrom([]int{512, 4096, 70 << 10}).Draw(rt, "length")
			body := strings.Repeat(string(rune('a'+i)), length)
			switch op := rapid.SampledFrom([]string{"write", "write", "snapshot", "drop"}).Draw(rt, "op"); {
			case op == "snapshot":
				at := f.must(201, "PUT", target+"?comp=snapshot", "").Header().Get("x-ms-snapshot")
				kept[at] = current
			case op == "drop":
				for at := range kept {
					f.must(202, "DELETE", target+"?snapshot="+at, "")
					delete(kept, at)
					break
				}
			case kind == "BlockBlob" && rapid.Bool().Draw(rt, "whole"):
				f.upload(target, body)
				current = body
			case kind == "BlockBlob":
				// One block more, all earlier ones kept: objects are shared between the blob and its snapshots.
				list := f.must(200, "GET", target+"?comp=blocklist", "").Body.String()
				ids := []string{}
				for _, e := range strings.Split(list, "<Name>")[1:] {
					ids = append(ids, "<Committed>"+e[:strings.Index(e, "<")]+"</Committed>")
				}
				if len(ids) == 0 {
					current = ""
				}
				f.must(201, "PUT", blockURL(target, i), body)
				f.must(201, "PUT", target+"?comp=blocklist", "<BlockList>"+strings.Join(ids, "")+"<Latest>"+blockID(i)+"</Latest></BlockList>")
				current += body
			case kind == "AppendBlob":
				f.must(201, "PUT", target+"?comp=appendblock", body)
				current += body
			default:
				off := rapid.IntRange(0, (size-length)/512).Draw(rt, "page") * 512
				f.must(201, "PUT", target+"?comp=page", body, "x-ms-page-write", "update", "x-ms-range", pageRange(off, length))
				current = current[:off] + body + current[off+length:]
			}
			f.settled()
		}
		kept[""] = current
		for at, want := range kept {
			query := ""
			if at != "" {
				query = "?snapshot=" + at
			}
			if got := f.must(200, "GET", target+query, "").Body.String(); got != want {
				rt.Fatalf("snapshot %q of a %s holds %d bytes, want %d", at, kind, len(got), len(want))
			}
		}
		f.must(202, "DELETE", target, "", "x-ms-delete-snapshots", "include")
		if n := f.settled(); n != 0 {
			rt.Fatalf("%d objects left", n)
		}
	})
}

// TestSnapshotPages: pages of a list with snapshots end with a whole blob and miss none.
func TestSnapshotPages(t *testing.T) {
	f := newFixture(t)
	f.container("cc1")
	var want, got []string
	for i := range 6 {
		name := fmt.Sprintf("b%d", i)
		f.upload("/cc1/"+name, "x")
		for range i % 3 {
			f.must(201, "PUT", "/cc1/"+name+"?comp=snapshot", "")
			want = append(want, name)
		}
		want = append(want, name)
	}
	for marker, more := "", true; more; more = marker != "" {
		s := f.must(200, "GET", "/cc1?restype=container&comp=list&include=snapshots&maxresults=3&marker="+marker, "").Body.String()
		names := strings.Split(s, "<Name>")[1:]
		if len(names) > 3 {
			t.Errorf("a page of %d", len(names))
		}
		for _, e := range names {
			got = append(got, e[:2])
		}
		_, rest, _ := strings.Cut(s, "<NextMarker>")
		marker, _, _ = strings.Cut(rest, "<")
	}
	if !slices.Equal(got, want) {
		t.Errorf("pages = %v, want %v", got, want)
	}
}
