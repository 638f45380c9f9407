package outside

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

const startTime = time.Minute

// TestMain starts a server unless CASEMATE_OUTSIDE_ENV names one that runs already.
func TestMain(m *testing.M) {
	code, err := withServer(m.Run)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func withServer(run func() int) (code int, err error) {
	if os.Getenv(envName) != "" {
		return run(), nil
	}
	tmp, err := os.MkdirTemp("", "casemate-outside-")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	binary := os.Getenv("CASEMATE_BIN")
	if binary == "" {
		binary = filepath.Join(tmp, "casemate")
		build := exec.Command("go", "build", "-o", binary, "./cmd/casemate")
		build.Dir, build.Env = "../..", append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			return 0, fmt.Errorf("building casemate: %w\n%s", err, out)
		}
	}
	dir := filepath.Join(tmp, "data")
	server := exec.Command(binary, "serve", "--data", dir, "--listen", "127.0.0.1:0", "--dns", "")
	server.Stderr = os.Stderr
	out, err := server.StdoutPipe()
	if err != nil {
		return 0, err
	}
	if err := server.Start(); err != nil {
		return 0, fmt.Errorf("starting the server: %w", err)
	}
	ready := make(chan bool, 1)
	go func() {
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if strings.HasPrefix(lines.Text(), "ready ") {
				ready <- true
			}
		}
		close(ready)
	}()
	select {
	case ok := <-ready:
		if ok {
			if err = os.Setenv(envName, filepath.Join(dir, "client", "env")); err == nil {
				code = run()
			}
		}
	case <-time.After(startTime):
		err = fmt.Errorf("the server was not ready within %v", startTime)
	}
	return code, errors.Join(err, stop(server))
}

// stop wants the server to drain and to end with status 0.
func stop(server *exec.Cmd) error {
	_ = server.Process.Signal(syscall.SIGTERM) // it may have ended: Wait tells
	timer := time.AfterFunc(startTime, func() { _ = server.Process.Kill() })
	defer timer.Stop()
	if err := server.Wait(); err != nil {
		return fmt.Errorf("the server ended: %w", err)
	}
	return nil
}
