package storetest

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// NoPlaintext fails the test when one of the canaries occurs in a file's
// contents or in a path below dir, or when there is no file at all.
func NoPlaintext(t testing.TB, dir string, canaries ...string) {
	t.Helper()
	files := 0
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var data []byte
		if !entry.IsDir() {
			files++
			if data, err = os.ReadFile(path); err != nil {
				return err
			}
		}
		for _, canary := range canaries {
			if strings.Contains(strings.TrimPrefix(path, dir), canary) {
				t.Errorf("path %s shows %q", path, canary)
			}
			if bytes.Contains(data, []byte(canary)) {
				t.Errorf("contents of %s show %q", path, canary)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if files == 0 {
		t.Errorf("no file below %s", dir)
	}
}
