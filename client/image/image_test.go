package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

func rootfs(t testing.TB, files map[string]string, order ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, name := range order {
		h := &tar.Header{Name: name, Mode: 0o644, Size: int64(len(files[name])), Typeflag: tar.TypeReg, ModTime: time.Unix(1_700_000_000, 0)}
		if strings.HasSuffix(name, "@") {
			h = &tar.Header{Name: name, Linkname: "/etc/passwd", Typeflag: tar.TypeSymlink}
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(files[name])); err != nil && h.Typeflag == tar.TypeReg {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

var options = Options{Tag: "casemate/test:1", Architecture: "amd64", Created: time.Unix(1_700_000_000, 0), Labels: map[string]string{"b": "2", "a": "1"}}

func TestPackPushExtract(t *testing.T) {
	files := map[string]string{"./etc/os-release": "ID=test\n", "./usr/data.csv": strings.Repeat("1,2,3\n", 100_000)}
	tarball := rootfs(t, files, "./etc/os-release", "./usr/data.csv", "./etc/link@")
	dir := filepath.Join(t.TempDir(), "layout")
	digest, err := Pack(bytes.NewReader(tarball), dir, options)
	if err != nil {
		t.Fatal(err)
	}
	img, err := open(dir)
	if err != nil {
		t.Fatal(err)
	}
	checkLayers(t, img, tarball)
	again := filepath.Join(t.TempDir(), "layout")
	if other, err := Pack(bytes.NewReader(tarball), again, options); err != nil || other != digest {
		t.Errorf("packed again it is %v (%v), was %v", other, err, digest)
	}
	if got, err := Digest(again); err != nil || got != digest {
		t.Errorf("Digest = %v %v", got, err)
	}
	if b, err := ExtractFile(dir, "/usr/data.csv"); err != nil || string(b) != files["./usr/data.csv"] {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	for _, name := range []string{"/usr/none", "/etc/link@", "/etc"} {
		if _, err := ExtractFile(dir, name); !errors.Is(err, ErrNoFile) {
			t.Errorf("%s: %v", name, err)
		}
	}

	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer server.Close()
	ref := strings.TrimPrefix(server.URL, "http://") + "/casemate/test:1"
	var complete, total int64
	pushed, err := Push(t.Context(), dir, ref, server.Client().Transport, "token", func(c, n int64) { complete, total = c, n })
	if err != nil || pushed != digest {
		t.Fatalf("%v %v", pushed, err)
	}
	if complete == 0 || complete > total {
		t.Errorf("progress ended at %d of %d", complete, total)
	}
	tag, err := name.NewTag(ref)
	if err != nil {
		t.Fatal(err)
	}
	got, err := remote.Image(tag)
	if err != nil {
		t.Fatal(err)
	}
	checkLayers(t, got, tarball)
}

// checkLayers demands one layer that is the tar, under the digests that manifest and configuration give.
func checkLayers(t *testing.T, img v1.Image, tarball []byte) {
	t.Helper()
	layers, err := img.Layers()
	if err != nil || len(layers) != 1 {
		t.Fatalf("%d layers, %v", len(layers), err)
	}
	r, err := layers[0].Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(r)
	if err != nil || !bytes.Equal(b, tarball) {
		t.Errorf("the layer is another tar: %v", err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if want, _, err := v1.SHA256(bytes.NewReader(tarball)); err != nil || len(config.RootFS.DiffIDs) != 1 || config.RootFS.DiffIDs[0] != want {
		t.Errorf("the diff id is %v", config.RootFS.DiffIDs)
	}
}

func TestPackRefuses(t *testing.T) {
	dir := t.TempDir()
	if _, err := Pack(strings.NewReader("x"), dir, options); err == nil {
		t.Error("an existing directory was written over")
	}
	if _, err := Pack(strings.NewReader("x"), filepath.Join(dir, "a"), Options{}); err == nil {
		t.Error("an image without a name")
	}
	if _, err := Pack(failing{}, filepath.Join(dir, "b"), options); err == nil {
		t.Error("half an image")
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
	if _, err := Push(t.Context(), dir, "host/a:1", nil, "", nil); err == nil {
		t.Error("a directory without an image was pushed")
	}
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errors.New("disk trouble") }

func FuzzExtractTar(f *testing.F) {
	f.Add(rootfs(f, map[string]string{"a": "1"}, "a"), "/a")
	f.Add([]byte("no tar"), "a")
	f.Fuzz(func(_ *testing.T, b []byte, file string) { _, _ = ExtractTar(bytes.NewReader(b), file) })
}
