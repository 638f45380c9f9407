package agent

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

//go:embed score_server.py
var scoreServer []byte

func (s Serve) entry() string {
	if s.EntryScript == "" {
		return "score.py"
	}
	return s.EntryScript
}

func (s Serve) port() int {
	if s.Port == 0 {
		return 5001
	}
	return s.Port
}

func (s Serve) startup() time.Duration {
	if s.Startup == 0 {
		return 120 * time.Second
	}
	return time.Duration(s.Startup) * time.Second
}

// serve runs the scoring server until the node is cancelled.
func (j *job) serve(ctx, reporting context.Context) error {
	s := *j.spec.Serve
	python, err := findProgram(s.Python)
	if err != nil {
		return fail(CodeImage, err)
	}
	if !strings.HasSuffix(s.entry(), ".py") || strings.Contains(s.entry(), "..") {
		return fail(CodeServe, fmt.Errorf("entry script %q is not a Python file of the code", s.entry()))
	}
	if _, err := os.Stat(j.path("code", s.entry())); err != nil {
		return fail(CodeServe, fmt.Errorf("the code has no entry script %s", s.entry()))
	}
	script := j.path("score_server.py") // the agent's own: user code cannot change it
	if err := os.WriteFile(script, scoreServer, 0o644); err != nil {
		return fmt.Errorf("writing scoring server: %w", err)
	}
	c, logged, err := j.start([]string{python, script, "--entry", j.path("code", s.entry()), "--port", strconv.Itoa(s.port())})
	if err != nil {
		return err
	}
	defer func() { c.sweep(); <-logged }()
	if err := j.report.send(reporting, Event{State: StateRunning}); err != nil {
		return err
	}
	if err := j.untilHealthy(ctx, c, s); err != nil {
		return err
	}
	if err := j.report.send(reporting, Event{State: StateReady}); err != nil {
		return err
	}
	if err := j.await(ctx, c); !errors.Is(err, errCancelled) {
		return fail(CodeServe, fmt.Errorf("the scoring server ended with exit code %d; its output is in the log", *j.exit))
	}
	return errCancelled
}

// untilHealthy polls the health probe, which answers once init() of the entry script has returned.
func (j *job) untilHealthy(ctx context.Context, c *child, s Serve) error {
	ctx, cancel := context.WithTimeoutCause(ctx, s.startup(), errTimeLimit)
	defer cancel()
	client := &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case status := <-c.ended:
			code := exitCode(status)
			j.exit = &code
			return fail(CodeServe, fmt.Errorf("the scoring server ended with exit code %d before it was healthy; its output is in the log", code))
		case <-ctx.Done():
			code := exitCode(c.terminate(grace))
			j.exit = &code
			if errors.Is(context.Cause(ctx), errTimeLimit) {
				return fail(CodeServe, fmt.Errorf("the scoring server was not healthy within %s", s.startup()))
			}
			return errCancelled
		case <-tick.C:
		}
		for _, host := range ownAddresses() {
			if healthy(ctx, client, net.JoinHostPort(host, strconv.Itoa(s.port()))) {
				return nil
			}
		}
	}
}

func healthy(ctx context.Context, client *http.Client, address string) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/", nil)
	if err != nil {
		return false
	}
	resp, err := client.Do(req)
	if err != nil {
		return false
	}
	resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

// ownAddresses of the node; loopback first, which a network namespace need not have up.
func ownAddresses() []string {
	list := []string{"127.0.0.1"}
	addrs, _ := net.InterfaceAddrs() // none is a fine answer
	for _, a := range addrs {
		if ip, ok := a.(*net.IPNet); ok && !ip.IP.IsLoopback() && !ip.IP.IsLinkLocalUnicast() {
			list = append(list, ip.IP.String())
		}
	}
	return list
}

// findProgram looks where user code would.
func findProgram(name string) (string, error) {
	if name == "" {
		name = "python3"
	}
	if strings.HasPrefix(name, "/") {
		return name, executable(name)
	}
	for _, dir := range []string{"/usr/local/bin", "/usr/bin", "/bin", "/opt/conda/bin"} {
		if path := dir + "/" + name; executable(path) == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("the image has no %s", name)
}

func executable(path string) error {
	if err := syscall.Access(path, 1 /* X_OK */); err != nil {
		return fmt.Errorf("the image has no %s", path)
	}
	return nil
}
