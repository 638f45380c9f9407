package images

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// Two builds of the same packages are the same image. It takes minutes and the machine's package archive.
func TestBuildIsReproducible(t *testing.T) {
	if testing.Short() || os.Getenv("CI") != "true" {
		t.Skip("takes minutes: set CI=true")
	}
	if _, err := exec.LookPath("mmdebstrap"); err != nil || os.Getuid() != 0 {
		t.Skip("needs root and mmdebstrap")
	}
	dir := t.TempDir()
	casemate := filepath.Join(dir, "casemate")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", casemate, "../cmd/casemate")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building casemate: %v\n%s", err, out)
	}
	script, err := Unpack("sklearn", dir)
	if err != nil {
		t.Fatal(err)
	}
	var first []byte
	for _, round := range []string{"one", "two"} {
		out := filepath.Join(dir, round)
		run := exec.CommandContext(t.Context(), script, "-c", filepath.Join(dir, "cache-"+round), out)
		run.Env = append(os.Environ(), "CASEMATE="+casemate)
		if text, err := run.CombinedOutput(); err != nil {
			t.Fatalf("building the image: %v\n%s", err, text)
		}
		index, err := os.ReadFile(filepath.Join(out, "index.json"))
		if err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = index
		} else if !bytes.Equal(first, index) {
			t.Errorf("the second build is another image:\n%s\n%s", first, index)
		}
	}
}
