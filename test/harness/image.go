package harness

import (
	"archive/tar"
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"testing"

	"casemate.dev/client/image"
)

// imageTools are what the tiny image has of this machine's programs.
var imageTools = []string{"sh", "cat", "sleep", "ls", "env", "date"}

// libraryDirs are where their shared libraries are looked for.
var libraryDirs = []string{"/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib/aarch64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/lib64", "/usr/lib64", "/lib", "/usr/lib"}

// TinyImage packs an OCI image layout of a shell, a few tools with their libraries, and the probe; it takes a moment instead of the
// minutes of a curated image.
func TinyImage(t testing.TB) (layout string) {
	t.Helper()
	dir := t.TempDir()
	probe, err := buildProbe(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	r := rootfs{files: map[string]string{"usr/bin/probe": probe, "usr/bin/python3": probe}}
	for _, name := range imageTools {
		path, err := exec.LookPath(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.addProgram("usr/bin/"+name, path); err != nil {
			t.Fatal(err)
		}
	}
	packed, err := r.tar()
	if err != nil {
		t.Fatal(err)
	}
	layout = filepath.Join(dir, "layout")
	if _, err := image.Pack(packed, layout, image.Options{Tag: "tiny:1", Architecture: runtime.GOARCH}); err != nil {
		t.Fatal(err)
	}
	return layout
}

func buildProbe(ctx context.Context, dir string) (string, error) {
	root, err := Root()
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "probe")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", path, "./test/harness/probe")
	cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building the probe: %w\n%s", err, out)
	}
	return path, nil
}

// rootfs maps paths in an image to files of this machine.
type rootfs struct{ files map[string]string }

// addProgram adds a program with its interpreter and all libraries that it needs (ELF, "Dynamic Section").
func (r rootfs) addProgram(as, path string) error {
	if r.files[as] != "" {
		return nil
	}
	r.files[as] = path
	f, err := elf.Open(path)
	if err != nil {
		return fmt.Errorf("reading %s: %w", path, err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type != elf.PT_INTERP {
			continue
		}
		b := make([]byte, p.Filesz)
		if _, err := p.ReadAt(b, 0); err != nil {
			return fmt.Errorf("reading the interpreter of %s: %w", path, err)
		}
		interpreter := string(bytes.TrimRight(b, "\x00"))
		r.files[interpreter[1:]] = interpreter
	}
	needed, err := f.ImportedLibraries()
	if err != nil {
		return fmt.Errorf("reading the libraries of %s: %w", path, err)
	}
	for _, name := range needed {
		i := slices.IndexFunc(libraryDirs, func(dir string) bool { _, err := os.Stat(filepath.Join(dir, name)); return err == nil })
		if i < 0 {
			return fmt.Errorf("%s needs %s, which is nowhere", path, name)
		}
		full := filepath.Join(libraryDirs[i], name)
		if err := r.addProgram(full[1:], full); err != nil {
			return err
		}
	}
	return nil
}

func (r rootfs) tar() (*bytes.Buffer, error) {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: "bin", Linkname: "usr/bin", Mode: 0o777})
	for as, path := range r.files {
		b, e := os.ReadFile(path)
		if e != nil {
			return nil, fmt.Errorf("packing %s: %w", path, e)
		}
		e = w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: as, Size: int64(len(b)), Mode: 0o755})
		if e == nil {
			_, e = w.Write(b)
		}
		err = errors.Join(err, e)
	}
	if err := errors.Join(err, w.Close()); err != nil {
		return nil, fmt.Errorf("packing the image: %w", err)
	}
	return &out, nil
}
