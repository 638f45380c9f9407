package blob

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"casemate.dev/resource"
	"casemate.dev/store"
	"casemate.dev/store/depot"
)

func blockID(i int) string { return b64(fmt.Appendf(nil, "%06d", i)) }

func blockURL(target string, i int) string { return target + "?comp=block&blockid=" + blockID(i) }

func listOf(source string, ids ...int) string {
	var b strings.Builder
	b.WriteString("<BlockList>")
	for _, i := range ids {
		fmt.Fprintf(&b, "<%s>%s</%s>", source, blockID(i), source)
	}
	b.WriteString("</BlockList>")
	return b.String()
}

func TestBlocks(t *testing.T) {
	f := newFixture(t)
	f.container("cc1")
	for i, body := range []string{"aa", "bb", "cc"} {
		f.must(201, "PUT", blockURL("/cc1/b", i), body)
	}
	f.must(201, "PUT", blockURL("/cc1/b", 1), "BB") // replaces
	if w := f.do("PUT", "/cc1/b?comp=block&blockid=AAAA", "x"); w.Header().Get("x-ms-error-code") != "InvalidBlobOrBlock" {
		t.Errorf("a block id of another length: %d %s", w.Code, w.Body)
	}
	f.must(404, "GET", "/cc1/b", "")
	if s := f.must(200, "GET", "/cc1/b?comp=blocklist&blocklisttype=all", "").Body.String(); strings.Count(s, "<Size>2</Size>") != 3 {
		t.Errorf("block list = %s", s)
	}
	f.must(201, "PUT", "/cc1/b?comp=blocklist", listOf("Latest", 1, 0, 1), "x-ms-blob-content-type", "text/plain", "x-ms-blob-content-md5", md5Of("kept"))
	w := f.must(200, "GET", "/cc1/b", "")
	if w.Body.String() != "BBaaBB" || w.Header().Get("Content-MD5") != md5Of("kept") || w.Header().Get("Content-Type") != "text/plain" {
		t.Errorf("committed = %q %v", w.Body, w.Header())
	}
	if n := f.settled(); n != 2 { // the third block and the first BB's predecessor are gone
		t.Errorf("%d objects, want 2", n)
	}
	// Committed blocks go on living in the next list, fresh ones join, others go.
	f.must(201, "PUT", blockURL("/cc1/b", 7), "dd")
	f.must(400, "PUT", "/cc1/b?comp=blocklist", listOf("Uncommitted", 0))
	f.must(400, "PUT", "/cc1/b?comp=blocklist", listOf("Committed", 7))
	mixed := strings.TrimSuffix(listOf("Committed", 0), "</BlockList>") + strings.TrimPrefix(listOf("Uncommitted", 7), "<BlockList>")
	f.must(201, "PUT", "/cc1/b?comp=blocklist", mixed)
	if got := f.must(200, "GET", "/cc1/b", "").Body.String(); got != "aadd" {
		t.Errorf("second list = %q", got)
	}
	if n := f.settled(); n != 2 {
		t.Errorf("%d objects, want 2", n)
	}
	f.must(201, "PUT", blockURL("/cc1/b", 8), "lost")
	f.must(202, "DELETE", "/cc1/b", "")
	if n := f.settled(); n != 0 {
		t.Errorf("%d objects, want none", n)
	}
}

// TestRangesAgainstOracle reads random ranges of a blob of random blocks and compares with slices of the plaintext.
func TestRangesAgainstOracle(t *testing.T) {
	f := newFixture(t)
	f.container("cc1")
	n := 0
	rapid.Check(t, func(rt *rapid.T) {
		n++
		target := fmt.Sprintf("/cc1/b%d", n)
		sizes := rapid.SliceOfN(rapid.SampledFrom([]int{1, 2, 65535, 65536, 65537, 100_000}), 0, 4).Draw(rt, "sizes")
		var plain []byte
		var ids []int
		for i, size := range sizes {
			body := bytes.Repeat([]byte{byte('a' + i)}, size)
			body[size-1] = '|'
			plain = append(plain, body...)
			f.must(201, "PUT", blockURL(target, i), string(body))
			ids = append(ids, i)
		}
		f.must(201, "PUT", target+"?comp=blocklist", listOf("Uncommitted", ids...))
		for range 10 {
			first := rapid.IntRange(0, len(plain)+2).Draw(rt, "first")
			last := rapid.IntRange(first, len(plain)+3).Draw(rt, "last")
			w := f.do("GET", target, "", "x-ms-range", fmt.Sprintf("bytes=%d-%d", first, last))
			if first >= len(plain) {
				if w.Code != 416 || w.Header().Get("Content-Range") != fmt.Sprintf("bytes */%d", len(plain)) {
					rt.Fatalf("range %d-%d of %d = %d %v", first, last, len(plain), w.Code, w.Header())
				}
				continue
			}
			want := plain[first:min(last+1, len(plain))]
			if w.Code != 206 || !bytes.Equal(w.Body.Bytes(), want) || w.Header().Get("Content-Length") != strconv.Itoa(len(want)) {
				rt.Fatalf("range %d-%d of %d = %d with %d bytes, want %d", first, last, len(plain), w.Code, w.Body.Len(), len(want))
			}
		}
	})
}

// oracleList is List Blobs in its slowest form.
func oracleList(names []string, prefix, delimiter string) []string {
	var out []string
	for _, n := range names {
		if !strings.HasPrefix(n, prefix) {
			continue
		}
		if delimiter != "" {
			if i := strings.Index(n[len(prefix):], delimiter); i >= 0 {
				n = n[:len(prefix)+i+len(delimiter)] + " (prefix)"
			}
		}
		out = append(out, n)
	}
	return slices.Compact(out)
}

func TestListAgainstOracle(t *testing.T) {
	f := newFixture(t)
	n := 0
	piece := rapid.SampledFrom([]string{"a", "b", "/", "//", "-", "0", "é", "\x01", ".."})
	text := func(least, most int) *rapid.Generator[string] {
		return rapid.Map(rapid.SliceOfN(piece, least, most), func(p []string) string { return strings.Join(p, "") })
	}
	rapid.Check(t, func(rt *rapid.T) {
		n++
		c := fmt.Sprintf("list%d", n)
		f.container(c)
		a, err := f.account(t.Context(), testAccount.String())
		if err != nil {
			rt.Fatal(err)
		}
		names := rapid.SliceOfNDistinct(text(1, 5), 0, 12, rapid.ID[string]).Draw(rt, "names")
		slices.Sort(names)
		for _, name := range names {
			u := upload{body: strings.NewReader(name), size: int64(len(name)), sums: &checksum{}}
			if _, err := f.put(t.Context(), a, c, name, u); err != nil {
				rt.Fatal(err)
			}
		}
		q := query{prefix: text(0, 2).Draw(rt, "prefix"), delimiter: rapid.SampledFrom([]string{"", "/", "//", "é"}).Draw(rt, "delimiter"),
			limit: rapid.IntRange(1, 5).Draw(rt, "limit")}
		var got []string
		for pages := 0; ; pages++ {
			page, next, err := f.list(t.Context(), a, c, q)
			if err != nil || len(page) > q.limit || pages > len(names) {
				rt.Fatalf("page %d: %d entries, %v", pages, len(page), err)
			}
			for _, e := range page {
				if e.rec == nil {
					e.name += " (prefix)"
				} else if e.rec.Size != int64(len(e.name)) {
					rt.Fatalf("%q has the record of another blob", e.name)
				}
				got = append(got, e.name)
			}
			if next.name == "" {
				break
			}
			if len(page) != q.limit {
				rt.Fatalf("a page of %d with a marker, limit %d", len(page), q.limit)
			}
			if q.marker, err = parseMarker(next.String()); err != nil {
				rt.Fatal(err)
			}
		}
		if diff := cmp.Diff(oracleList(names, q.prefix, q.delimiter), got); diff != "" {
			rt.Fatalf("%+v over %q (-want +got):\n%s", q, names, diff)
		}
	})
}

// faultyStore fails the next Update after its function has run: a crash between the depot's commit and the store's.
type faultyStore struct {
	store.Store
	fail atomic.Bool
}

func (s *faultyStore) Update(ctx context.Context, fn func(store.Txn) error) error {
	return s.Store.Update(ctx, func(t store.Txn) error {
		if err := fn(t); err != nil {
			return err
		}
		if s.fail.Load() {
			return store.ErrFailed
		}
		return nil
	})
}

func TestCrashBetweenDepotAndStore(t *testing.T) {
	f := newFixture(t)
	faulty := &faultyStore{Store: f.store}
	f.store = faulty
	f.restart()
	f.container("cc1")
	old, next := strings.Repeat("old", 50_000), strings.Repeat("new", 50_000)
	f.upload("/cc1/b", old)
	f.must(201, "PUT", blockURL("/cc1/blocks", 1), "kept")
	faulty.fail.Store(true)
	f.must(500, "PUT", "/cc1/b", next, "x-ms-blob-type", "BlockBlob")
	f.must(500, "PUT", "/cc1/new", next, "x-ms-blob-type", "BlockBlob")
	f.must(500, "PUT", blockURL("/cc1/blocks", 2), next)
	faulty.fail.Store(false)
	if n := f.depot.count(); n != 5 {
		t.Fatalf("%d objects before the restart, want the 2 that count and 3 orphans", n)
	}
	f.restart()
	if err := f.sweepOrphans(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := f.settled(); n != 2 {
		t.Errorf("%d objects after the restart, want 2", n)
	}
	if got := f.must(200, "GET", "/cc1/b", "").Body.String(); got != old {
		t.Error("the blob is not what was acknowledged")
	}
	f.must(404, "GET", "/cc1/new", "")
	f.must(201, "PUT", "/cc1/blocks?comp=blocklist", listOf("Latest", 1))
	if got := f.must(200, "GET", "/cc1/blocks", "").Body.String(); got != "kept" {
		t.Errorf("staged block = %q", got)
	}
}

func TestDepotFaults(t *testing.T) {
	for _, op := range []string{"create", "write", "commit"} {
		for _, fault := range []error{depot.ErrFull, errFault} {
			f := newFixture(t)
			f.container("cc1")
			f.upload("/cc1/b", "old")
			f.depot.fault = func(at string) error {
				if at == op {
					return fault
				}
				return nil
			}
			w := f.do("PUT", "/cc1/b", strings.Repeat("x", 200_000), "x-ms-blob-type", "BlockBlob")
			if errors.Is(fault, depot.ErrFull) && (w.Code != 503 || w.Header().Get("x-ms-error-code") != "ServerBusy") || w.Code < 500 {
				t.Errorf("full at %s: %d %s", op, w.Code, w.Body)
			}
			f.depot.fault = nil
			if got := f.must(200, "GET", "/cc1/b", "").Body.String(); got != "old" || f.depot.count() != 0 {
				t.Errorf("after %v at %s: %q, %d objects", fault, op, got, f.depot.count())
			}
		}
	}
}

func TestConditionalWritesHaveOneWinner(t *testing.T) {
	f := newFixture(t)
	f.container("cc1")
	etag := f.upload("/cc1/b", "0").Header().Get("ETag")
	for _, tt := range []struct{ target, header, value string }{{"/cc1/new", "If-None-Match", "*"}, {"/cc1/b", "If-Match", etag}} {
		var won atomic.Int32
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				body := strings.Repeat(strconv.Itoa(i), 70_000)
				if f.do("PUT", tt.target, body, "x-ms-blob-type", "BlockBlob", tt.header, tt.value).Code == 201 {
					won.Add(1)
				}
			})
		}
		wg.Wait()
		if won.Load() != 1 {
			t.Errorf("%s: %d writers won, want 1", tt.header, won.Load())
		}
	}
	if n := f.settled(); n != 2 {
		t.Errorf("%d objects, want the 2 of the winners", n)
	}
}

func TestReaderKeepsItsObjects(t *testing.T) {
	f := newFixture(t)
	f.container("cc1")
	var ids []int
	for i := range 3 {
		f.must(201, "PUT", blockURL("/cc1/b", i), strings.Repeat(strconv.Itoa(i), 70_000))
		ids = append(ids, i)
	}
	f.must(201, "PUT", "/cc1/b?comp=blocklist", listOf("Latest", ids...))
	a, err := f.account(t.Context(), testAccount.String())
	if err != nil {
		t.Fatal(err)
	}
	rd, err := f.read(t.Context(), a, "cc1", "b", conditions{})
	if err != nil {
		t.Fatal(err)
	}
	f.must(201, "PUT", "/cc1/b?comp=blocklist", listOf("Committed", 0)) // same lineage
	f.must(202, "DELETE", "/cc1/b", "")
	held, err := f.Sweep(t.Context())
	if err != nil || !held || f.depot.count() != 3 {
		t.Fatalf("sweeping under a reader: held %v, %d objects, %v", held, f.depot.count(), err)
	}
	var got bytes.Buffer
	if err := rd.copyTo(t.Context(), &got, 0, rd.rec.Size); err != nil || got.Len() != 210_000 {
		t.Fatalf("reading what was deleted: %d bytes, %v", got.Len(), err)
	}
	rd.release()
	if n := f.settled(); n != 0 {
		t.Errorf("%d objects after the reader left", n)
	}
}

func TestRevocation(t *testing.T) {
	f := newFixture(t)
	srv := httptest.NewServer(f)
	defer srv.Close()
	f.container("cc1")
	const size = 64 << 20
	f.upload("/cc1/b", strings.Repeat("x", size))
	resp, err := http.Get(srv.URL + "/cc1/b")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.CopyN(io.Discard, resp.Body, 1<<20); err != nil {
		t.Fatal(err)
	}
	// An upload that never goes on. A plain connection: http.Client would wait for its own body, whatever the server does.
	conn, err := net.Dial("tcp", srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "PUT /cc1/slow HTTP/1.1\r\nHost: x\r\nx-ms-blob-type: BlockBlob\r\nContent-Length: %d\r\n\r\n", size)
	if _, err := conn.Write(make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	f.revoke()
	n, err := io.Copy(io.Discard, resp.Body)
	if err == nil || n > size/2 {
		t.Errorf("the open download gave %d more bytes and %v", n, err)
	}
	// The server hangs up; what it could still say names the reason.
	said, _ := io.ReadAll(conn)
	if len(said) > 0 && !strings.Contains(string(said), "KeyVaultEncryptionKeyNotFound") {
		t.Errorf("the open upload was answered %q", said)
	}
	for _, target := range []string{"/cc1/b", "/cc1?restype=container&comp=list", "/?comp=list"} {
		w := f.do("GET", target, "")
		if w.Code != 403 || w.Header().Get("x-ms-error-code") != "KeyVaultEncryptionKeyNotFound" || !strings.Contains(w.Body.String(), testKeyURL) {
			t.Errorf("GET %s while revoked = %d %s", target, w.Code, w.Body)
		}
	}
	f.vault.set(false)
	f.keys.Revoked(testKeyURL)
	f.must(200, "HEAD", "/cc1/b", "")
}

func TestDamageIsNeverServed(t *testing.T) {
	f := newFixture(t)
	f.container("cc1")
	f.upload("/cc1/one", strings.Repeat("1", 100_000))
	f.upload("/cc1/two", strings.Repeat("2", 100_000))
	var keys []string
	for k := range f.depot.List(t.Context(), "") {
		keys = append(keys, k)
	}
	f.depot.objects[keys[0]], f.depot.objects[keys[1]] = f.depot.objects[keys[1]], f.depot.objects[keys[0]]
	for _, target := range []string{"/cc1/one", "/cc1/two"} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s was served from swapped objects", target)
				}
			}()
			if w := f.do("GET", target, ""); strings.ContainsAny(w.Body.String(), "12") {
				t.Errorf("%s answered %d with contents", target, w.Code)
			}
		}()
	}
}

func TestContainersAndAccountsArePurged(t *testing.T) {
	f := newFixture(t)
	big := strings.Repeat("x", 100_000)
	f.container("cc1")
	f.container("cc2")
	f.upload("/cc1/b", big)
	f.upload("/cc2/b", big)
	f.must(201, "PUT", blockURL("/cc1/c", 1), "x")
	f.must(202, "DELETE", "/cc1?restype=container", "")
	f.must(404, "GET", "/cc1/b", "")
	f.container("cc1")
	f.must(404, "GET", "/cc1/b", "")
	f.revoke() // removing data needs no key
	if n := f.settled(); n != 1 {
		t.Errorf("%d objects, want cc2's", n)
	}
	if err := f.DestroyAccount(t.Context(), testAccount); err != nil {
		t.Fatal(err)
	}
	if n := f.settled(); n != 0 {
		t.Errorf("%d objects after the account", n)
	}
	err := f.store.View(t.Context(), func(r store.Reader) error {
		for kv, err := range r.Scan(store.Prefix(plane), store.ScanOptions{}) {
			if err != nil {
				return err
			}
			t.Errorf("record %q is left", kv.Key)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	f.must(404, "GET", "/cc2/b", "")
}

func TestOldUploadsExpire(t *testing.T) {
	f := newFixture(t)
	f.container("cc1")
	f.must(201, "PUT", blockURL("/cc1/b", 1), "x")
	if err := f.sweepUploads(t.Context()); err != nil || f.settled() != 1 {
		t.Fatalf("a fresh block is gone: %v", err)
	}
	f.now = func() time.Time { return time.Now().Add(8 * 24 * time.Hour) }
	if err := f.sweepUploads(t.Context()); err != nil || f.settled() != 0 {
		t.Fatalf("an old block is left: %v", err)
	}
	f.must(404, "GET", "/cc1/b?comp=blocklist&blocklisttype=all", "")
}

func TestInner(t *testing.T) {
	f := newFixture(t)
	ctx, who := t.Context(), resource.Caller{Kind: resource.KindUser, Object: "u1"}
	if err := f.EnsureContainer(ctx, who, testAccount, "logs"); err != nil {
		t.Fatal(err)
	}
	if err := f.EnsureContainer(ctx, who, testAccount, "logs"); err != nil {
		t.Fatal(err)
	}
	if err := f.PutBlob(ctx, who, testAccount, "logs", "a", strings.NewReader(strings.Repeat("p", 100_000)), -1, "text/plain"); err != nil {
		t.Fatal(err)
	}
	want := strings.Repeat("p", 100_000)
	for _, piece := range []string{"one", strings.Repeat("2", 70_000), strings.Repeat("3", 1<<20), "four"} {
		if err := f.AppendBlob(ctx, who, testAccount, "logs", "a", []byte(piece), ""); err != nil {
			t.Fatal(err)
		}
		want += piece
	}
	if err := f.AppendBlob(ctx, who, testAccount, "logs", "small", []byte("x"), "text/plain"); err != nil {
		t.Fatal(err)
	}
	if err := f.AppendBlob(ctx, who, testAccount, "logs", "small", []byte("y"), ""); err != nil {
		t.Fatal(err)
	}
	r, info, err := f.GetBlob(ctx, who, testAccount, "logs", "a", 99_999)
	if err != nil {
		t.Fatal(err)
	}
	if got := readAll(t, r); got != want[99_999:] || info.Size != int64(len(want)) {
		t.Errorf("read %d bytes of %d", len(got), info.Size)
	}
	r, _, err = f.GetBlob(ctx, who, testAccount, "logs", "small", 0)
	if err != nil {
		t.Fatal(err)
	}
	if got := readAll(t, r); got != "xy" {
		t.Errorf("small = %q", got)
	}
	var names []string
	for b, err := range f.ListBlobs(ctx, who, testAccount, "logs", "") {
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, b.Name)
	}
	if diff := cmp.Diff([]string{"a", "small"}, names); diff != "" {
		t.Error(diff)
	}
	if n := f.settled(); n != 2 { // one full part, one tail
		t.Errorf("%d objects, want 2", n)
	}
	if err := f.DeleteBlob(ctx, who, testAccount, "logs", "a"); err != nil {
		t.Fatal(err)
	}
	if f.inner.open != 0 {
		t.Errorf("%d operations were never completed", f.inner.open)
	}
	last := f.inner.asked[len(f.inner.asked)-1]
	if want := "u1 " + dataDelete + " true " + testAccount.String() + "/blobServices/default/containers/logs Write"; last != want {
		t.Errorf("asked %q, want %q", last, want)
	}
	f.inner.deny = true
	if _, _, err := f.GetBlob(ctx, who, testAccount, "logs", "small", 0); resource.StatusOf(err) != 403 {
		t.Errorf("a denied caller read: %v", err)
	}
}
