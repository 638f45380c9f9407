package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// platform is a server of its own for the outside clients of one stage.
type platform struct {
	cmd  *exec.Cmd
	dir  string
	env  string // DIR/client/env
	rest chan struct{}
}

// startPlatform returns when the server says that it is ready.
func startPlatform(ctx context.Context, binary string) (*platform, error) {
	dir, err := os.MkdirTemp("", "casemate-outside-")
	if err != nil {
		return nil, fmt.Errorf("making a data directory: %w", err)
	}
	p := &platform{dir: dir, env: filepath.Join(dir, "client", "env"), rest: make(chan struct{})}
	p.cmd = exec.CommandContext(ctx, binary, "serve", "--data", dir, "--listen", "127.0.0.1:0", "--dns", "")
	p.cmd.Cancel = func() error { return p.cmd.Process.Signal(syscall.SIGTERM) }
	p.cmd.WaitDelay = 30 * time.Second
	log, err := os.Create(filepath.Join(dir, "server.log"))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("making the server's log: %w", err), os.RemoveAll(dir))
	}
	defer log.Close()
	p.cmd.Stderr = log
	out, err := p.cmd.StdoutPipe()
	if err == nil {
		err = p.cmd.Start()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("starting the server: %w", err), os.RemoveAll(dir))
	}
	ready := make(chan bool, 1)
	go func() {
		defer close(p.rest)
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
			return p, nil
		}
		err = errors.New("the server ended before it was ready")
	case <-time.After(time.Minute):
		err = errors.New("the server was not ready within a minute")
	}
	return nil, p.stop(err)
}

// stop ends the server. When something went wrong the server's last words join the error.
func (p *platform) stop(cause error) error {
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended already; Wait says how
	<-p.rest
	if err := p.cmd.Wait(); err != nil {
		cause = errors.Join(cause, fmt.Errorf("the server: %w", err))
	}
	if cause != nil {
		if log, err := os.ReadFile(filepath.Join(p.dir, "server.log")); err == nil {
			cause = fmt.Errorf("%w\nthe server's log ends:\n%s", cause, log[max(0, len(log)-4000):])
		}
	}
	return errors.Join(cause, os.RemoveAll(p.dir))
}
