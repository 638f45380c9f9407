package registry

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io/fs"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
)

// layoutDir writes an OCI image layout of one layer, as a client would have it.
func layoutDir(t *testing.T, canary string) string {
	t.Helper()
	dir := t.TempDir()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	check(os.MkdirAll(filepath.Join(dir, "blobs", "sha256"), 0o755))
	blob := func(b []byte) (digest.Digest, int) {
		d := digest.FromBytes(b)
		check(os.WriteFile(filepath.Join(dir, "blobs", "sha256", d.Encoded()), b, 0o644))
		return d, len(b)
	}
	var plain, packed bytes.Buffer
	tw := tar.NewWriter(&plain)
	content := append(bytes.Repeat([]byte{'x'}, 3<<20), canary...)
	check(tw.WriteHeader(&tar.Header{Name: "file", Mode: 0o644, Size: int64(len(content))}))
	_, err := tw.Write(content)
	check(err)
	check(tw.Close())
	gz, err := gzip.NewWriterLevel(&packed, gzip.NoCompression)
	check(err)
	_, err = gz.Write(plain.Bytes())
	check(err)
	check(gz.Close())
	layer, layerSize := blob(packed.Bytes())
	config, configSize := blob(fmt.Appendf(nil, `{"architecture":"amd64","os":"linux","config":{},"rootfs":{"type":"layers","diff_ids":["sha256:%x"]}}`, sha256.Sum256(plain.Bytes())))
	m, size := blob(manifest(config, layer, configSize, layerSize))
	check(os.WriteFile(filepath.Join(dir, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o644))
	check(os.WriteFile(filepath.Join(dir, "index.json"), fmt.Appendf(nil, `{"schemaVersion":2,"manifests":[{"mediaType":%q,"digest":%q,"size":%d,"annotations":{"org.opencontainers.image.ref.name":"v1"}}]}`, typeManifest, m, size), 0o644))
	return dir
}

// blobsOf maps the names of a layout's blobs to their contents.
func blobsOf(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(filepath.Join(dir, "blobs"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		out[d.Name()] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// A real client of another project: an image goes in and comes back the same, with each way to sign in.
func TestSkopeo(t *testing.T) {
	skopeo, err := exec.LookPath("skopeo")
	if err != nil {
		t.Skip("skopeo is not installed")
	}
	if testing.Short() {
		t.Skip("takes seconds")
	}
	f := newFixture(t)
	server := httptest.NewTLSServer(f)
	defer server.Close()
	certs := t.TempDir()
	f.check(os.WriteFile(filepath.Join(certs, "ca.crt"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o644))
	policy := filepath.Join(t.TempDir(), "policy.json")
	f.check(os.WriteFile(policy, []byte(`{"default":[{"type":"insecureAcceptAnything"}]}`), 0o644))
	host := server.Listener.Addr().String()
	run := func(args ...string) (string, error) {
		cmd := exec.CommandContext(t.Context(), skopeo, append([]string{"--policy", policy, "--tmpdir", t.TempDir()}, args...)...)
		cmd.Env = append(os.Environ(), "HOME="+t.TempDir(), "REGISTRY_AUTH_FILE="+filepath.Join(t.TempDir(), "auth.json"))
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	const canary = "canary-of-skopeo"
	source, back := layoutDir(t, canary), t.TempDir()
	image := "docker://" + host + "/team/app:v1"
	if out, err := run("copy", "--dest-cert-dir", certs, "--dest-creds", pusher+":secret of "+pusher, "oci:"+source+":v1", image); err != nil {
		t.Fatalf("pushing: %v\n%s", err, out)
	}
	refresh := f.form(200, "/oauth2/exchange", "refresh_token", "grant_type", "access_token", "access_token", f.people.token(puller))
	for name, creds := range map[string]string{"secret": puller + ":secret of " + puller, "refresh token": tokenUser + ":" + refresh, "directory token": tokenUser + ":" + f.people.token(puller)} {
		dir := filepath.Join(back, strings.ReplaceAll(name, " ", ""))
		if out, err := run("copy", "--src-cert-dir", certs, "--src-creds", creds, image, "oci:"+dir+":v1"); err != nil {
			t.Fatalf("pulling with a %s: %v\n%s", name, err, out)
		}
		if got, want := blobsOf(t, dir), blobsOf(t, source); len(got) != len(want) {
			t.Errorf("%d blobs came back, want %d", len(got), len(want))
		} else {
			for k := range want {
				if got[k] != want[k] {
					t.Errorf("blob %s came back as something else", k)
				}
			}
		}
	}
	out, err := run("inspect", "--cert-dir", certs, "--creds", puller+":secret of "+puller, image)
	var seen struct{ RepoTags []string }
	if err != nil || json.Unmarshal([]byte(out), &seen) != nil || len(seen.RepoTags) != 1 {
		t.Errorf("inspecting: %v\n%s", err, out)
	}
	for name, creds := range map[string][]string{
		"nobody": {"--src-no-creds"}, "wrong secret": {"--src-creds", puller + ":wrong"}, "no role": {"--src-creds", nobody + ":secret of " + nobody},
	} {
		if out, err := run(append(append([]string{"copy", "--src-cert-dir", certs}, creds...), image, "oci:"+t.TempDir()+":v1")...); err == nil {
			t.Errorf("%s pulls: %s", name, out)
		}
	}
	if out, err := run("copy", "--dest-cert-dir", certs, "--dest-creds", puller+":secret of "+puller, "oci:"+source+":v1", image+"x"); err == nil {
		t.Errorf("a puller pushes: %s", out)
	}
	if out, err := run("delete", "--cert-dir", certs, "--creds", deleter+":secret of "+deleter, image); err != nil {
		t.Errorf("deleting: %v\n%s", err, out)
	}
	f.plaintext(canary, "team")
}
