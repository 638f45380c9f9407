package image

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/klauspost/compress/zstd"

	"casemate.dev/dataplane/runtime"
	"casemate.dev/dataplane/runtime/volume"
)

type entry struct {
	name, link, data string
	kind             byte
	mode             int64
}

func reg(name, data string) entry {
	return entry{name: name, data: data, kind: tar.TypeReg, mode: 0o644}
}
func dir(name string) entry           { return entry{name: name, kind: tar.TypeDir, mode: 0o755} }
func symlink(name, link string) entry { return entry{name: name, link: link, kind: tar.TypeSymlink} }
func hard(name, link string) entry    { return entry{name: name, link: link, kind: tar.TypeLink} }

func archive(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Linkname: e.link, Typeflag: e.kind, Mode: e.mode, Size: int64(len(e.data)), ModTime: time.Unix(1e9, 0), Format: tar.FormatPAX}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// unpackInto applies layers to a fresh root beside a directory of the host that must stay as it is.
func unpackInto(t testing.TB, layers ...[]byte) (root string, err error) {
	t.Helper()
	outer := t.TempDir()
	root = filepath.Join(outer, "root")
	host := filepath.Join(outer, "host")
	for _, d := range []string{root, host} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(host, "secret"), []byte("host"), 0o600); err != nil {
		t.Fatal(err)
	}
	opened, err := os.OpenRoot(root)
	if err != nil {
		t.Fatal(err)
	}
	defer opened.Close()
	u := &unpacker{root: opened, bytesLeft: 1 << 20, entriesLeft: 1000}
	for _, l := range layers {
		if err = u.apply(bytes.NewReader(l)); err != nil {
			break
		}
	}
	if err == nil {
		err = runtime.PrepareRoot(opened)
	}
	if got, hostErr := os.ReadFile(filepath.Join(host, "secret")); hostErr != nil || string(got) != "host" {
		t.Errorf("the host's file is %q, %v", got, hostErr)
	}
	entries, _ := os.ReadDir(host)
	if more, _ := os.ReadDir(outer); len(entries) != 1 || len(more) != 2 {
		t.Errorf("the host got new files: %v %v", entries, more)
	}
	return root, err
}

// describe lists a root: path, kind, contents.
func describe(t testing.TB, root string) map[string]string {
	t.Helper()
	got := map[string]string{}
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == root {
			return err
		}
		rel, _ := filepath.Rel(root, p)
		info, err := d.Info()
		if err != nil {
			return err
		}
		switch {
		case d.IsDir():
			got[rel] = "dir"
		case info.Mode()&fs.ModeSymlink != 0:
			link, _ := os.Readlink(p)
			got[rel] = "-> " + link
		case info.Mode().IsRegular():
			data, _ := os.ReadFile(p)
			got[rel] = "file " + string(data)
		default:
			got[rel] = info.Mode().String()
		}
		if info.Mode()&(fs.ModeSetuid|fs.ModeSetgid) != 0 {
			got[rel] += " set-id"
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{"proc", "dev", "sys", "run", "tmp", "work", "etc", "etc/resolv.conf", "etc/hosts", "etc/hostname", "casemate-agent"} {
		if want := map[bool]string{true: "dir", false: "file "}[!strings.Contains(p, "/") && p != "casemate-agent"]; !strings.HasPrefix(got[p], want) {
			t.Errorf("mount point %s is %q", p, got[p])
		}
		if got[p] == "dir" || got[p] == "file " {
			delete(got, p)
		}
	}
	return got
}

// Images made to climb out (THREATS R34): each is refused, or harmless inside its own root.
func TestHostileImages(t *testing.T) {
	setuid := entry{name: "bin/su", kind: tar.TypeReg, mode: 0o4755, data: "x"}
	setgidDir := entry{name: "d", kind: tar.TypeDir, mode: 0o2755}
	for name, tc := range map[string]struct {
		layers []([]entry)
		want   map[string]string // nil: refused
	}{
		"dotdot":             {[][]entry{{reg("../host/secret", "x")}}, nil},
		"dotdot inside":      {[][]entry{{reg("a/../../host/secret", "x")}}, nil},
		"absolute":           {[][]entry{{reg("/etc/passwd", "x")}}, map[string]string{"etc/passwd": "file x"}},
		"double slash":       {[][]entry{{reg("//etc//passwd", "x")}}, map[string]string{"etc/passwd": "file x"}},
		"through link":       {[][]entry{{symlink("up", "../host"), reg("up/secret", "x")}}, map[string]string{"up": "-> ../host", "host": "dir", "host/secret": "file x"}},
		"through absolute":   {[][]entry{{symlink("var", "/run2"), reg("var/x", "x")}}, map[string]string{"var": "-> /run2", "run2": "dir", "run2/x": "file x"}},
		"link in later":      {[][]entry{{symlink("a", "../../host")}, {reg("a/secret", "x")}}, map[string]string{"a": "-> ../../host", "host": "dir", "host/secret": "file x"}},
		"overwrite link":     {[][]entry{{symlink("f", "../host/secret")}, {reg("f", "x")}}, map[string]string{"f": "file x"}},
		"link loop":          {[][]entry{{symlink("a", "b"), symlink("b", "a"), reg("a/x", "x")}}, nil},
		"hard link out":      {[][]entry{{hard("f", "../host/secret")}}, nil},
		"hard link absolute": {[][]entry{{hard("f", "/host/secret")}}, nil},
		"hard via link":      {[][]entry{{symlink("up", "../host"), hard("f", "up/secret")}}, nil},
		"hard to dir":        {[][]entry{{dir("d"), hard("f", "d")}}, nil},
		"hard to itself":     {[][]entry{{reg("f", "x"), hard("f", "f")}}, map[string]string{"f": "file x"}},
		"whiteout up":        {[][]entry{{reg(".wh...", "")}}, nil},
		"whiteout link":      {[][]entry{{symlink("up", "../host")}, {reg("up/.wh.secret", "")}}, map[string]string{"up": "-> ../host", "host": "dir"}},
		"opaque link":        {[][]entry{{symlink("up", "../host")}, {reg("up/.wh..wh..opq", "")}}, map[string]string{"up": "-> ../host", "host": "dir"}},
		"device":             {[][]entry{{{name: "disk", kind: tar.TypeBlock}, {name: "mem", kind: tar.TypeChar}, {name: "p", kind: tar.TypeFifo}}}, map[string]string{}},
		"dev link":           {[][]entry{{symlink("dev", "../host")}}, map[string]string{}},
		"dev null link":      {[][]entry{{dir("dev"), symlink("dev/null", "/proc/sysrq-trigger")}}, map[string]string{}},
		"proc link":          {[][]entry{{symlink("proc", "/work"), symlink("work", "/proc"), symlink("tmp", "../host")}}, map[string]string{}},
		"resolv link":        {[][]entry{{dir("etc"), symlink("etc/resolv.conf", "../../host/secret")}}, map[string]string{}},
		"etc link":           {[][]entry{{symlink("etc", "../host"), symlink("casemate-agent", "/host/secret")}}, map[string]string{}},
		"set-uid":            {[][]entry{{setuid, setgidDir}}, map[string]string{"bin": "dir", "bin/su": "file x", "d": "dir"}},
		"file as parent":     {[][]entry{{reg("f", "x"), reg("f/g", "x")}}, nil},
		"dir over link":      {[][]entry{{symlink("d", "../host")}, {dir("d"), reg("d/x", "x")}}, map[string]string{"d": "dir", "d/x": "file x"}},
		"too large":          {[][]entry{{reg("f", strings.Repeat("x", 1<<20)), reg("g", "x")}}, nil},
		"long link":          {[][]entry{{symlink("l", strings.Repeat("x", 5000))}}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			var layers [][]byte
			for _, l := range tc.layers {
				layers = append(layers, archive(t, l...))
			}
			root, err := unpackInto(t, layers...)
			if tc.want == nil {
				if err == nil {
					t.Errorf("unpacked: %v", describe(t, root))
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, describe(t, root)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestLayersApplyInOrder(t *testing.T) {
	root, err := unpackInto(t,
		archive(t, dir("a"), reg("a/one", "1"), reg("a/two", "2"), dir("b"), reg("b/old", "x"), reg("keep", "k")),
		archive(t, reg("a/.wh.one", ""), reg("a/three", "3"), reg("b/new", "n"), reg("b/.wh..wh..opq", ""), hard("b/link", "keep"), reg("keep", "replaced")))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"a": "dir", "a/two": "file 2", "a/three": "file 3", "b": "dir", "b/new": "file n", "b/link": "file k", "keep": "file replaced"}
	if diff := cmp.Diff(want, describe(t, root)); diff != "" {
		t.Error(diff)
	}
	info, err := os.Stat(filepath.Join(root, "a/two"))
	if err != nil || !info.ModTime().Equal(time.Unix(1e9, 0)) {
		t.Errorf("time %v, %v", info.ModTime(), err)
	}
}

func FuzzUnpack(f *testing.F) {
	f.Add(archive(f, symlink("a", "../b"), reg("a/x", "y"), hard("z", "a/x"), reg("a/.wh.x", "")))
	f.Fuzz(func(t *testing.T, layer []byte) { _, _ = unpackInto(t, layer) })
}

func openStore(t *testing.T, dir string, key KeySource) *Store {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mounting file systems needs root")
	}
	s, err := Open(t.Context(), Config{Dir: dir, Key: key, Bytes: 128 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = volume.UnmountBelow(dir) })
	return s
}

func imageOf(t testing.TB, layers ...[]byte) v1.Image {
	t.Helper()
	img := empty.Image
	for _, l := range layers {
		layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(l)), nil })
		if err != nil {
			t.Fatal(err)
		}
		if img, err = mutate.AppendLayers(img, layer); err != nil {
			t.Fatal(err)
		}
	}
	img, err := mutate.Config(img, v1.Config{Env: []string{"A=b"}, Labels: map[string]string{"run": "rm -rf /"}, User: "0"})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func push(t *testing.T, server *httptest.Server, img v1.Image) string {
	t.Helper()
	reference := strings.TrimPrefix(server.URL, "https://") + "/casemate/test:v1"
	ref, err := name.ParseReference(reference)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, img, remote.WithTransport(server.Client().Transport)); err != nil {
		t.Fatal(err)
	}
	return reference
}

func TestPullVerifiesKeepsAndCollects(t *testing.T) {
	var blobs int
	var refuse bool
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "/blobs/") {
			blobs++
		}
		if refuse {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		inner.ServeHTTP(w, r)
	}))
	defer server.Close()
	canary := strings.Repeat("image-canary-4711", 1000)
	reference := push(t, server, imageOf(t, archive(t, reg("f", canary))))
	home, key := t.TempDir(), bytes.Repeat([]byte{7}, 32)
	source := func(context.Context, string) ([]byte, error) { return key, nil }
	s := openStore(t, home, source)
	pull := Pull{Reference: reference, Transport: server.Client().Transport}
	img, err := s.Pull(t.Context(), pull)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"A=b"}, img.Env); diff != "" {
		t.Error(diff)
	}
	if err := volume.Sync(s.path()); err != nil {
		t.Fatal(err)
	}
	if found, err := volume.Contains(s.Raw(), []byte("image-canary-4711")); err != nil || found {
		t.Errorf("image legible on the raw disk: %v %v", found, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	// A restart with the key finds the image, without its layers being asked for again.
	s, blobs = openStore(t, home, source), 0
	pull.Reference = strings.Replace(reference, ":v1", "@"+img.Digest, 1)
	if again, err := s.Pull(t.Context(), pull); err != nil || again.Digest != img.Digest || blobs != 0 {
		t.Errorf("pulling again: %+v, %v, %d blobs", again, err, blobs)
	}
	// That it is here gives it to nobody whom the registry refuses.
	refuse = true
	if got, err := s.Pull(t.Context(), pull); err == nil {
		t.Errorf("a refused caller got %+v by its digest", got)
	}
	refuse = false
	root, release, err := s.Rootfs(t.Context(), img.Digest)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(root, "f")); err != nil || string(got) != canary {
		t.Errorf("file differs: %v", err)
	}
	none := func(string) bool { return false }
	if n, err := s.Collect(t.Context(), none); err != nil || n != 0 {
		t.Errorf("collected %d images in use, %v", n, err)
	}
	release()
	release()
	if n, err := s.Collect(t.Context(), none); err != nil || n != 1 {
		t.Errorf("collected %d images, %v", n, err)
	}
	if _, _, err := s.Rootfs(t.Context(), img.Digest); !errors.Is(err, runtime.ErrNoImage) {
		t.Errorf("collected image: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	// Another key begins anew: the cache is lost, never opened.
	key = bytes.Repeat([]byte{8}, 32)
	s = openStore(t, home, source)
	if _, err := s.Get(img.Digest); !errors.Is(err, runtime.ErrNoImage) {
		t.Errorf("image under another key: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestPullRefusals(t *testing.T) {
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	tamper := false
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if tamper && strings.Contains(r.URL.Path, "/blobs/") {
			fmt.Fprint(w, "other bytes")
			return
		}
		inner.ServeHTTP(w, r)
	}))
	defer server.Close()
	s := openStore(t, t.TempDir(), nil)
	defer s.Close()
	good := push(t, server, imageOf(t, archive(t, reg("f", "x"))))
	pull := func(reference string) error {
		_, err := s.Pull(t.Context(), Pull{Reference: reference, Transport: server.Client().Transport})
		return err
	}
	tamper = true
	if err := pull(good); err == nil {
		t.Error("pulled other bytes than the manifest names")
	}
	tamper = false
	if err := pull(good + "-absent"); err == nil {
		t.Error("pulled an absent tag")
	}
	if err := pull("not a reference"); err == nil {
		t.Error("pulled nonsense")
	}
	plain := httptest.NewServer(inner)
	defer plain.Close()
	if err := pull(strings.TrimPrefix(plain.URL, "http://") + "/casemate/test:v1"); err == nil {
		t.Error("pulled over plain HTTP")
	}
	hostile := imageOf(t, archive(t, reg("../x", "x")))
	if _, err := s.Add(t.Context(), hostile); err == nil {
		t.Error("unpacked a climbing image")
	}
	if entries, _ := os.ReadDir(s.path("partial")); len(entries) != 0 {
		t.Errorf("refused images left %v", entries)
	}
	if err := pull(good); err != nil {
		t.Error(err)
	}
}

// claimed is an image whose manifest gives its configuration another size.
type claimed struct {
	v1.Image
	size int64
}

func (c claimed) Manifest() (*v1.Manifest, error) {
	m, err := c.Image.Manifest()
	if err != nil {
		return nil, err
	}
	m = m.DeepCopy()
	m.Config.Size = c.size
	return m, nil
}

// What an image claims must not choose how much of the server's memory it takes.
func TestImagesDoNotChooseMemory(t *testing.T) {
	s := openStore(t, t.TempDir(), nil)
	defer s.Close()
	if _, err := s.Add(t.Context(), claimed{imageOf(t, archive(t, reg("f", "x"))), 64 << 30}); err == nil || !strings.Contains(err.Error(), "configuration has") {
		t.Errorf("a configuration of 64 GiB: %v", err)
	}
	plain := archive(t, reg("f", strings.Repeat("content ", 100_000)))
	for window, ok := range map[int]bool{8 << 20: true, 128 << 20: true, 256 << 20: false} {
		var buf bytes.Buffer
		w, err := zstd.NewWriter(&buf, zstd.WithWindowSize(window), zstd.WithEncoderConcurrency(1))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(plain); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(w.Flush(), w.Close()); err != nil {
			t.Fatal(err)
		}
		r, err := uncompressed(&buf)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		if (err == nil) != ok || ok && !bytes.Equal(got, plain) {
			t.Errorf("window of %d bytes: %d bytes, %v", window, len(got), err)
		}
		_ = r.Close()
	}
}
