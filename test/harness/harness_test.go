package harness

import (
	"io/fs"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
)

// TestLifeOfAServer starts, stops, kills and restarts one, and sees its client files stay usable.
func TestLifeOfAServer(t *testing.T) {
	s := Start(t, Options{})
	if a := s.Must(t, Call{Method: http.MethodGet, URL: s.URL("management", "/healthz")}); string(a.Body) != "ok\n" {
		t.Errorf("healthz = %q", a.Body)
	}
	group := s.NewGroup(t)
	s.MustARM(t, http.MethodGet, group, VersionGroup, nil)
	port := s.Port

	s.Stop(t)
	if out, err := s.Run("verify", "--data", s.Dir); err != nil || !strings.Contains(out, `"intact":true`) {
		t.Errorf("verify: %v %s", err, out)
	}
	s.Restart(t)
	s.MustARM(t, http.MethodGet, group, VersionGroup, nil)
	s.Kill()
	s.Restart(t)
	s.MustARM(t, http.MethodGet, group, VersionGroup, nil)
	if s.Port != port {
		t.Errorf("port %s after a restart, want %s", s.Port, port)
	}
	testSecondProcess(t, s)
	testModes(t, s.Dir)
}

// testSecondProcess wants one process at a time on a directory.
func testSecondProcess(t *testing.T, s *Server) {
	t.Helper()
	out, err := s.Run("serve", "--data", s.Dir, "--listen", "127.0.0.1:0", "--dns", "")
	if err == nil || !strings.Contains(out, "another process") {
		t.Errorf("a second server on the directory: %v %s", err, out)
	}
}

// testModes wants nothing of the data directory within reach of other users.
func testModes(t *testing.T, dir string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", path, info.Mode())
		} else if d.IsDir() {
			return fs.SkipDir // closed: what is in it is out of reach
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}
