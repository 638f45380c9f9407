package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"

	storagedriver "github.com/distribution/distribution/v3/registry/storage/driver"
	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// The driver does what a map of paths does, whatever the order of calls, and leaves no object behind.
func TestDriverOracle(t *testing.T) {
	f := newFixture(t)
	o, err := f.open(t.Context(), testRegistry.String())
	f.check(err)
	ctx := t.Context()
	paths := []string{"/a", "/a/b", "/a/c0", "/a/c0/d", "/a/c", "/a/c/d/e", "/a.b", "/a0", "/b/0/00", "/b/0", "/B/_x-y"}
	rapid.Check(t, func(rt *rapid.T) {
		d, oracle := o.driver, map[string]string{}
		content := func() string {
			return strings.Repeat("x", rapid.SampledFrom([]int{0, 1, 100, maxInline, maxInline + 1, 150_000}).Draw(rt, "size")) + rapid.StringN(0, 3, -1).Draw(rt, "tail")
		}
		drawn := func() string { return rapid.SampledFrom(paths).Draw(rt, "path") }
		defer func() {
			for p := range oracle {
				_ = d.Delete(ctx, p) // makes room for the next round; directories may have taken it
			}
		}()
		rt.Repeat(map[string]func(*rapid.T){
			"put": func(rt *rapid.T) {
				p, c := drawn(), content()
				must(rt, d.PutContent(ctx, p, []byte(c)))
				oracle[p] = c
			},
			"write": func(rt *rapid.T) {
				p, c, appending := drawn(), content(), rapid.Bool().Draw(rt, "append")
				w, err := d.Writer(ctx, p, appending)
				if appending && err != nil && oracle[p] != "" {
					return // was written at once
				}
				must(rt, err)
				_, err = io.WriteString(w, c)
				must(rt, err)
				if rapid.Bool().Draw(rt, "commit") {
					must(rt, w.Commit(ctx))
				}
				must(rt, w.Close())
				_, had := oracle[p]
				if appending {
					oracle[p] += c
				} else {
					oracle[p] = c
				}
				if !had && c == "" {
					delete(oracle, p) // nothing was written, nothing is there
				}
			},
			"cancel": func(rt *rapid.T) {
				p := drawn()
				if _, ok := oracle[p]; ok || slices.ContainsFunc(slices.Collect(maps.Keys(oracle)), func(k string) bool { return strings.HasPrefix(k, p+"/") }) {
					return
				}
				w, err := d.Writer(ctx, p, false)
				must(rt, err)
				_, err = io.WriteString(w, content())
				must(rt, err)
				must(rt, w.Cancel(ctx))
			},
			"move": func(rt *rapid.T) {
				from, to := drawn(), drawn()
				c, ok := oracle[from]
				err := d.Move(ctx, from, to)
				if from == to {
					return
				}
				if !ok {
					wantMissing(rt, err)
					return
				}
				must(rt, err)
				delete(oracle, from)
				oracle[to] = c
			},
			"delete": func(rt *rapid.T) {
				p, n := drawn(), 0
				for k := range oracle {
					if k == p || strings.HasPrefix(k, p+"/") {
						delete(oracle, k)
						n++
					}
				}
				err := d.Delete(ctx, p)
				if n == 0 {
					wantMissing(rt, err)
				} else {
					must(rt, err)
				}
			},
			"": func(rt *rapid.T) { compare(rt, ctx, d, oracle, drawn()) },
		})
	})
	f.check(o.driver.deleteAll(ctx))
	if n := f.objects(); n != 0 {
		t.Errorf("the depot holds %d objects to which no file refers", n)
	}
}

func (d *driver) deleteAll(ctx context.Context) error {
	top, err := d.List(ctx, "/")
	for _, p := range top {
		err = errors.Join(err, d.Delete(ctx, p))
	}
	return err
}

func must(t *rapid.T, err error) {
	if err != nil {
		t.Fatal(err)
	}
}

func wantMissing(t *rapid.T, err error) {
	if !errors.As(err, new(storagedriver.PathNotFoundError)) {
		t.Fatalf("%v, want that the path does not exist", err)
	}
}

// compare looks at one path and at what the root lists.
func compare(t *rapid.T, ctx context.Context, d *driver, oracle map[string]string, p string) {
	c, ok := oracle[p]
	children := map[string]bool{}
	for k := range oracle {
		if rest, below := strings.CutPrefix(k, p+"/"); below {
			first, _, _ := strings.Cut(rest, "/")
			children[p+"/"+first] = true
		}
	}
	info, err := d.Stat(ctx, p)
	switch {
	case ok:
		must(t, err)
		if info.IsDir() || info.Size() != int64(len(c)) {
			t.Fatalf("%s: %v, want %d bytes", p, info, len(c))
		}
		b, err := d.GetContent(ctx, p)
		must(t, err)
		if string(b) != c {
			t.Fatalf("%s holds something else", p)
		}
		at := int64(rapid.IntRange(0, len(c)).Draw(t, "offset"))
		r, err := d.Reader(ctx, p, at)
		must(t, err)
		rest, err := io.ReadAll(r)
		must(t, err)
		must(t, r.Close())
		if string(rest) != c[at:] {
			t.Fatalf("%s from %d on holds something else", p, at)
		}
	case len(children) > 0:
		must(t, err)
		if !info.IsDir() {
			t.Fatalf("%s is no directory", p)
		}
	default:
		wantMissing(t, err)
	}
	list, err := d.List(ctx, p)
	if len(children) == 0 {
		wantMissing(t, err)
	} else if diff := cmp.Diff(slices.Sorted(maps.Keys(children)), slices.Sorted(slices.Values(list))); diff != "" {
		t.Fatal(diff)
	}
}

func TestDriverRefusesPaths(t *testing.T) {
	f := newFixture(t)
	o, err := f.open(t.Context(), testRegistry.String())
	f.check(err)
	for _, p := range []string{"", "/", "a", "//a", "/a/", "/a/../b", "/./a", "/a b", "/a\x00", "/ä"} {
		var invalid storagedriver.InvalidPathError
		if err := o.driver.PutContent(t.Context(), p, nil); !errors.As(err, &invalid) {
			t.Errorf("PutContent(%q) = %v", p, err)
		}
		if _, err := o.driver.GetContent(t.Context(), p); !errors.As(err, &invalid) {
			t.Errorf("GetContent(%q) = %v", p, err)
		}
	}
	if _, err := o.driver.Reader(t.Context(), "/a", -1); !errors.As(err, new(storagedriver.InvalidOffsetError)) {
		t.Errorf("%v", err)
	}
}

// Two writers of one file: the second to store is refused, and its object is gone.
func TestWritersDoNotMix(t *testing.T) {
	f := newFixture(t)
	o, err := f.open(t.Context(), testRegistry.String())
	f.check(err)
	ctx := t.Context()
	one, err := o.driver.Writer(ctx, "/f", true)
	f.check(err)
	two, err := o.driver.Writer(ctx, "/f", true)
	f.check(err)
	for _, w := range []storagedriver.FileWriter{one, two} {
		_, err := fmt.Fprint(w, "content")
		f.check(err)
	}
	f.check(one.Commit(ctx))
	if err := two.Commit(ctx); !errors.Is(err, errOvertaken) {
		t.Errorf("%v", err)
	}
	if b, err := o.driver.GetContent(ctx, "/f"); err != nil || string(b) != "content" {
		t.Errorf("%q %v", b, err)
	}
	if n := f.objects(); n != 1 {
		t.Errorf("%d objects", n)
	}
}

func TestParse(t *testing.T) {
	for rest, want := range map[string]target{
		"a/manifests/v1":                {kindManifest, "a", "v1"},
		"a/b/manifests/sha256:00":       {kindManifest, "a/b", "sha256:00"},
		"a/blobs/sha256:00":             {kindBlob, "a", "sha256:00"},
		"a/blobs/uploads/":              {kindUploads, "a", ""},
		"a/blobs/uploads":               {kindUploads, "a", ""},
		"a/blobs/uploads/id":            {kindUpload, "a", "id"},
		"blobs/uploads/blobs/uploads/x": {kindUpload, "blobs/uploads", "x"},
		"a/tags/list":                   {kindTags, "a", ""},
		"tags/list/manifests/v1":        {kindManifest, "tags/list", "v1"},
		"manifests/v1":                  {kindManifest, "", "v1"},
	} {
		got, ok := parse(rest)
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(target{})); diff != "" || ok != (want.name != "") {
			t.Errorf("%s: %v %s", rest, ok, diff)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"a/manifests/v1", "a/blobs/uploads/", "", "/", "//blobs//", "blobs/uploads"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, rest string) {
		if got, ok := parse(rest); ok && (got.name == "" || operations[got.kind] == nil) {
			t.Errorf("%q: %+v", rest, got)
		}
	})
}
