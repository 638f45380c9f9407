package crash

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"casemate.dev/test/harness"
)

// insideEnv marks the process that runs in a mount namespace of its own.
const insideEnv = "CASEMATE_CRASH_NAMESPACE"

// TestFullDisk fills the disk under a running server. The test starts itself again in its own mount namespace, so that
// the small disk is seen by nobody else and goes with the process.
func TestFullDisk(t *testing.T) {
	if os.Getenv(insideEnv) == "" {
		if os.Getuid() != 0 {
			t.Skip("not root: a small disk needs a mount namespace")
		}
		if testing.Short() {
			t.Skip("fills a disk")
		}
		cmd := exec.CommandContext(t.Context(), "unshare", "--mount", "--propagation", "private", os.Args[0], "-test.run=^TestFullDisk$", "-test.v", "-test.timeout=5m")
		cmd.Env = append(os.Environ(), insideEnv+"=1", "CASEMATE_BIN="+harness.Binary(t))
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Error(err)
		}
		t.Logf("%s", out)
		return
	}
	dir := filepath.Join(t.TempDir(), "data")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("small", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "size=640m,mode=0700"); err != nil {
		t.Skipf("a small disk cannot be mounted: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	for _, c := range []struct {
		name string
		left int64 // bytes that remain free
	}{{"no room at all", 0}, {"room for a few records", 512 << 10}, {"less than the store's reserve", 200 << 20}} {
		t.Run(c.name, func(t *testing.T) { fullDisk(t, filepath.Join(dir, "server"), filepath.Join(dir, "filler"), c.left) })
	}
}

func fullDisk(t *testing.T, dir, filler string, left int64) {
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, harness.Options{Dir: dir})
	ctx, stop := context.WithTimeout(t.Context(), 500*time.Millisecond)
	w.work(ctx, t, false) // something to lose
	stop()
	w.check(t)
	fill(t, filler, left)

	ctx, stop = context.WithTimeout(t.Context(), 3*time.Second)
	w.work(ctx, t, true)
	stop()
	w.refusals(t)

	// A start without room either works or says what is wrong; it never makes things worse.
	w.Kill()
	if err := w.TryRestart(); err != nil {
		lines := strings.Split(strings.TrimSpace(w.Log()), "\n")
		t.Logf("starting on the full disk: %v: %s", err, lines[len(lines)-1])
	} else {
		w.Kill()
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	verifyTrail(t, w.Server)
	w.Restart(t)
	w.check(t)
	for _, c := range w.clients {
		for range 2 {
			if err := c.step(t.Context(), w); err != nil {
				t.Errorf("%T after there is room again: %v", c, err)
			}
		}
	}
	w.check(t)
	w.Stop(t)
	verifyTrail(t, w.Server)
}

// fill takes all room but left bytes.
func fill(t *testing.T, path string, left int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for chunk := make([]byte, 64<<10); ; {
		if _, err = f.Write(chunk); errors.Is(err, unix.ENOSPC) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(max(0, size-left)); err != nil {
		t.Fatal(err)
	}
}

// refusals writes what cannot be written and demands a clear answer: a status that says so, a code, and no success.
func (w *world) refusals(t *testing.T) {
	t.Helper()
	big := make([]byte, 220<<20)
	for what, c := range map[string]harness.Call{
		"a blob without room": {Method: http.MethodPut, URL: w.URL(w.blobHost, "/data/too-big"), As: w.Admin, Body: big, Header: http.Header{"X-Ms-Blob-Type": {"BlockBlob"}}},
		"a secret":            {Method: http.MethodPut, URL: w.URL(w.vaultHost, "/secrets/late?api-version=7.4"), As: w.Admin, Body: map[string]any{"value": "x"}},
		"a document":          {Method: http.MethodPut, URL: w.URL("management", w.Subscription()+"/resourceGroups/late?api-version="+harness.VersionGroup), As: w.Admin, Body: map[string]any{"location": "local"}},
	} {
		a, err := w.Send(t.Context(), c)
		if err != nil {
			if !brokenConnection(err) {
				t.Errorf("%s: %v", what, err)
			}
			continue
		}
		if a.Status != http.StatusInsufficientStorage && a.Status != http.StatusServiceUnavailable || a.Code() == "" {
			t.Errorf("%s = %v, want 507 or 503 with a code", what, a)
		}
		t.Logf("%s: %v", what, a)
	}
	if a, err := w.Send(t.Context(), harness.Call{Method: http.MethodGet, URL: w.URL("management", "/healthz")}); err != nil || a.Status >= 300 && a.Status != http.StatusServiceUnavailable {
		t.Errorf("health on a full disk: %v", fmt.Sprint(a, err))
	}
}
