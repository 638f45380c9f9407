package harness

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	startTime = 60 * time.Second // far above the target: a loaded machine is not what these tests judge
	stopTime  = 60 * time.Second
)

// Options start a Server. The zero value is right for most tests.
type Options struct {
	Dir    string   // data directory; empty: a temporary one
	Args   []string // further arguments of serve
	Prefix []string // command that runs the server's command line, such as unshare; it must exec it
	Env    []string // further environment
}

// Server is a `casemate serve` process. Its Platform changes with each start. It belongs to one test and is not safe for
// concurrent use, save for what hangs below Platform.
type Server struct {
	*Platform
	Dir string

	port    string // of the first start on
	options Options
	binary  string
	cmd     *exec.Cmd
	exited  chan error // receives once
	log     *logBuffer
}

var build = sync.OnceValues(buildBinary)

// Binary is bin/casemate, built from the tree that the test is in, or CASEMATE_BIN when that is set.
func Binary(t testing.TB) string {
	t.Helper()
	path, err := build()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func buildBinary() (string, error) {
	if path := os.Getenv("CASEMATE_BIN"); path != "" {
		_, err := os.Stat(path) // also so that a result is not remembered beyond this binary
		return path, err
	}
	root, err := Root()
	if err != nil {
		return "", err
	}
	if err := touchSources(root); err != nil {
		return "", err
	}
	dir := filepath.Join(root, "bin")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("making bin: %w", err)
	}
	// Test binaries run side by side: one builds, the others find it built.
	lock, err := os.OpenFile(filepath.Join(dir, ".lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return "", fmt.Errorf("opening the build lock: %w", err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return "", fmt.Errorf("locking the build: %w", err)
	}
	path := filepath.Join(dir, "casemate")
	cmd := exec.Command("go", "build", "-o", path, "./cmd/casemate")
	cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building casemate: %w\n%s", err, out)
	}
	return path, nil
}

// touchSources asks for the state of each source file. The go command remembers what a test asked for: without this it would
// answer from its cache after the server has changed, because these tests import nothing of it.
func touchSources(root string) error {
	return filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() && (strings.HasPrefix(d.Name(), ".") || path == filepath.Join(root, "bin")) {
			return cmp.Or(err, fs.SkipDir)
		}
		if !d.IsDir() && !strings.HasSuffix(path, "_test.go") {
			_, err = os.Stat(path)
		}
		return err
	})
}

// Root is the repository's folder.
func Root() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("finding the repository: %w", err)
	}
	for range 10 {
		if mod, err := os.ReadFile(filepath.Join(dir, "go.mod")); err == nil && bytes.HasPrefix(mod, []byte("module casemate.dev\n")) {
			return dir, nil
		}
		dir = filepath.Dir(dir)
	}
	return "", errors.New("no folder above has the module casemate.dev")
}

// Start runs a server until the test ends. Its log is shown when the test fails.
func Start(t testing.TB, o Options) *Server {
	t.Helper()
	s := &Server{Dir: o.Dir, port: "0", options: o, binary: Binary(t), log: &logBuffer{}}
	if s.Dir == "" {
		s.Dir = t.TempDir()
	}
	t.Cleanup(func() {
		if s.exited != nil {
			s.Stop(t)
		}
		if err := releaseMounts(s.Dir); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("the server's log:\n%s", s.log.tail(8<<10))
		}
	})
	s.Restart(t)
	return s
}

// Restart starts the process again on the same directory and port, and waits until it is ready.
func (s *Server) Restart(t testing.TB) {
	t.Helper()
	if err := s.TryRestart(); err != nil {
		t.Fatalf("%v\n%s", err, s.log.tail(4<<10))
	}
}

// TryRestart is Restart for a start that may be refused.
func (s *Server) TryRestart() error {
	args := append([]string{}, s.options.Prefix...)
	args = append(args, s.binary, "serve", "--data", s.Dir, "--listen", net.JoinHostPort("127.0.0.1", s.port), "--dns", "")
	args = append(args, s.options.Args...)
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = append(os.Environ(), s.options.Env...)
	cmd.Stderr = s.log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // a server must not outlive its test
	out, err := cmd.StdoutPipe()
	if err != nil {
		return fmt.Errorf("opening the server's output: %w", err)
	}
	started, exited := make(chan error), make(chan error, 1)
	ready := make(chan string, 1)
	go func() {
		// The kernel sends Pdeathsig when the starting thread ends: the thread stays here as long as the server runs.
		runtime.LockOSThread()
		err := cmd.Start()
		started <- err
		if err != nil {
			return
		}
		go scanReady(out, s.log, ready)
		exited <- cmd.Wait()
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("starting the server: %w", err)
	}
	s.cmd, s.exited = cmd, exited
	select {
	case line := <-ready:
		return s.connect(line)
	case err := <-exited:
		s.exited = nil
		return fmt.Errorf("the server ended before it was ready: %w", orClean(err))
	case <-time.After(startTime):
		s.end()
		return fmt.Errorf("the server was not ready within %v", startTime)
	}
}

// connect reads "ready https://management.<domain>:PORT in N ms".
func (s *Server) connect(line string) error {
	fields := strings.Fields(line)
	i := strings.LastIndexByte(fields[1], ':')
	s.port = fields[1][i+1:]
	p, err := Connect(s.Dir)
	if err != nil {
		return err
	}
	s.Platform = p
	return nil
}

func scanReady(out io.Reader, log io.Writer, ready chan<- string) {
	for lines := bufio.NewScanner(out); lines.Scan(); {
		fmt.Fprintln(log, lines.Text())
		if strings.HasPrefix(lines.Text(), "ready https://") {
			ready <- lines.Text()
		}
	}
}

func orClean(err error) error {
	if err == nil {
		return errors.New("with status 0")
	}
	return err
}

// Kill ends the process as a power cut would, as far as the process can tell.
func (s *Server) Kill() { s.end() }

func (s *Server) end() {
	if s.exited == nil {
		return
	}
	_ = s.cmd.Process.Kill() // it may have ended by itself
	<-s.exited
	s.exited = nil
}

// Stop asks the process to end and wants status 0.
func (s *Server) Stop(t testing.TB) {
	t.Helper()
	if s.exited == nil {
		t.Fatal("the server does not run")
	}
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatalf("sending SIGTERM: %v", err)
	}
	select {
	case err := <-s.exited:
		s.exited = nil
		if err != nil {
			t.Errorf("after SIGTERM: %v, want status 0", err)
		}
	case <-time.After(stopTime):
		s.end()
		t.Errorf("the server did not end within %v of SIGTERM", stopTime)
	}
}

// releaseMounts takes away what a killed server has left mounted in its directory. The next start would do it; after the
// last one nobody does.
func releaseMounts(dir string) error {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("reading the mount table: %w", err)
	}
	var errs []error
	for _, line := range slices.Backward(strings.Split(string(table), "\n")) { // what lies inside came later
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
			errs = append(errs, unix.Unmount(f[4], unix.MNT_DETACH))
		}
	}
	return errors.Join(errs...)
}

// PID is the process id of the running server.
func (s *Server) PID() int { return s.cmd.Process.Pid }

// Log is what the server wrote so far, its ready lines included.
func (s *Server) Log() string { return s.log.tail(64 << 20) }

// Run runs another command of the binary to its end, such as verify.
func (s *Server) Run(args ...string) (string, error) {
	out, err := exec.Command(s.binary, args...).CombinedOutput()
	return string(out), err
}

// logBuffer keeps what the server writes.
type logBuffer struct {
	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

func (l *logBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *logBuffer) tail(n int) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.buf.Bytes()
	return string(b[max(0, len(b)-n):])
}
