package demo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"casemate.dev/client"
)

const (
	domain     = "casemate.localhost"
	usualPort  = "127.0.0.1:8443"
	startLimit = 30 * time.Second
	drainLimit = 40 * time.Second
)

// server is the platform's process.
type server struct {
	cmd   *exec.Cmd
	ended chan struct{} // closed when the process is gone; err is set then
	err   error
	log   string // file of its output
	data  string
	site  client.Site
	env   map[string]string
}

// listenAddress is the usual one, or any that is free.
func listenAddress() string {
	l, err := net.Listen("tcp", usualPort)
	if err != nil {
		return "127.0.0.1:0"
	}
	_ = l.Close() // it was only to see whether the port is free
	return usualPort
}

func (d *demo) startServer(ctx context.Context, r *record) (err error) {
	if d.dir, err = os.MkdirTemp("/var/tmp", "casemate-demo-"); err != nil {
		return fmt.Errorf("making a directory: %w", err)
	}
	data := d.options.data
	if data == "" {
		data = filepath.Join(d.dir, "data")
	}
	if data, err = filepath.Abs(data); err != nil {
		return fmt.Errorf("finding the data directory: %w", err)
	}
	began := time.Now()
	if d.server, err = launch(d.binary, data, filepath.Join(d.dir, "server.log")); err != nil {
		return err
	}
	line, off, err := d.server.ready(ctx)
	if err != nil {
		return err
	}
	r.note("start "+filepath.Base(d.binary)+" serve --data "+data, "%s (%d ms until the line was read)", line, time.Since(began).Milliseconds())
	for _, what := range off {
		return fmt.Errorf("this machine cannot run the demonstration: %s", what)
	}
	if err := d.server.readClientFiles(line); err != nil {
		return err
	}
	d.admin, err = d.principal("administrator", client.Credential{Tenant: d.server.env["AZURE_TENANT_ID"], ClientID: d.server.env["AZURE_CLIENT_ID"],
		Secret: d.server.env["AZURE_CLIENT_SECRET"], ObjectID: d.server.env["CASEMATE_OBJECT_ID"]})
	return err
}

// launch starts the server. Its output goes to a file, so that it can outlive this process.
func launch(binary, data, log string) (*server, error) {
	out, err := os.OpenFile(log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("making the server's log: %w", err)
	}
	defer func() { _ = out.Close() }() // the process has its own descriptor
	s := &server{log: log, data: data, ended: make(chan struct{})}
	s.cmd = exec.Command(binary, "serve", "--data", data, "--listen", listenAddress(), "--domain", domain, "--dns", "")
	s.cmd.Stdout, s.cmd.Stderr = out, out
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a terminal's Ctrl-C is ours: what was made is removed before the server ends
	if err := s.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting the server: %w", err)
	}
	go func() {
		s.err = s.cmd.Wait()
		close(s.ended)
	}()
	return s, nil
}

// ready waits for the line that says so, and returns it with what is switched off.
func (s *server) ready(ctx context.Context) (line string, off []string, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, startLimit, fmt.Errorf("the server was not ready within %s", startLimit))
	defer cancel()
	for {
		b, err := os.ReadFile(s.log)
		if err != nil {
			return "", nil, fmt.Errorf("reading the server's log: %w", err)
		}
		off = nil
		for l := range strings.Lines(string(b)) {
			l = strings.TrimSpace(l)
			if strings.HasPrefix(l, "ready ") {
				return l, off, nil
			}
			if what, ok := strings.CutPrefix(l, "off: "); ok {
				off = append(off, what)
			}
		}
		select {
		case <-s.ended:
			return "", nil, fmt.Errorf("the server ended: %w: %s", errors.Join(s.err, errEnded), lastLine(b))
		default:
		}
		if err := client.Sleep(ctx, 10*time.Millisecond); err != nil {
			return "", nil, err
		}
	}
}

var errEnded = errors.New("the process is gone")

func lastLine(b []byte) string {
	lines := bytes.Split(bytes.TrimSpace(b), []byte("\n"))
	return string(lines[len(lines)-1])
}

// readClientFiles reads what the server leaves for its clients.
func (s *server) readClientFiles(ready string) error {
	fields := strings.Fields(ready)
	if len(fields) < 2 {
		return fmt.Errorf("reading the line %q: it has no address", ready)
	}
	u, err := url.Parse(fields[1])
	if err != nil {
		return fmt.Errorf("reading the line %q: %w", ready, err)
	}
	port := u.Port()
	if port == "" {
		port = "443"
	}
	dir := filepath.Join(s.data, "client")
	roots, err := client.LoadRoots(filepath.Join(dir, "ca.pem"))
	if err != nil {
		return err
	}
	s.site = client.Site{Domain: domain, Port: port, Roots: roots, Dial: client.At(net.JoinHostPort("127.0.0.1", port))}
	b, err := os.ReadFile(filepath.Join(dir, "env"))
	if err != nil {
		return fmt.Errorf("reading the client environment: %w", err)
	}
	s.env = map[string]string{}
	for line := range strings.Lines(string(b)) {
		k, v, ok := strings.Cut(strings.TrimPrefix(strings.TrimSpace(line), "export "), "=")
		if ok {
			s.env[k] = strings.Trim(v, `'"`)
		}
	}
	return nil
}

// stop drains the server: SIGTERM, and SIGKILL only when it does not end.
func (s *server) stop() error {
	select {
	case <-s.ended:
		return fmt.Errorf("the server ended before it was asked to: %w", errors.Join(s.err, errEnded))
	default:
	}
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return fmt.Errorf("stopping the server: %w", err)
	}
	select {
	case <-s.ended:
		if s.err != nil {
			return fmt.Errorf("stopping the server: %w", s.err)
		}
		return nil
	case <-time.After(drainLimit):
		_ = s.cmd.Process.Kill() // it may have ended just now
		<-s.ended
		return fmt.Errorf("the server did not drain within %s and was killed", drainLimit)
	}
}
