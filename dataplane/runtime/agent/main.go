package agent

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"

	"casemate.dev/dataplane/runtime"
)

// Main is the `casemate agent` command: process 1 of a node. With --probe it prints what it sees and ends. Its error output reaches
// the server's log, so nothing of user code or of the spec is written there.
func Main(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	if os.Getpid() != 1 {
		fmt.Fprintln(stderr, "agent: runs as process 1 of a node only")
		return 2
	}
	if len(args) == 1 && args[0] == "--probe" {
		if err := json.NewEncoder(stdout).Encode(runtime.TakeProbe()); err != nil {
			return 1
		}
		return 0
	}
	if len(args) != 0 {
		fmt.Fprintln(stderr, "agent: takes no arguments; it is started inside nodes")
		return 2
	}
	a, err := inNode()
	if err == nil {
		err = a.run(ctx)
	}
	if err != nil {
		fmt.Fprintln(stderr, "agent:", err)
		return 1
	}
	return 0
}

// worker does the work of one node. Its fields are where a node puts things; tests put them elsewhere.
type worker struct {
	work      string // /work
	caFile    string // for user code
	uid       int    // user code's; -1 keeps the agent's own
	control   *http.Client
	network   *http.Client
	processes *processes
	retry     time.Duration // first pause between attempts
}

func inNode() (*worker, error) {
	pool := x509.NewCertPool()
	pem, err := os.ReadFile(runtime.CAFile)
	if err != nil {
		return nil, fmt.Errorf("reading certificates: %w", err)
	}
	pool.AppendCertsFromPEM(pem)
	socket := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", runtime.AgentSocket)
	}}
	return &worker{
		work: runtime.WorkDir, caFile: runtime.CAFile, uid: runtime.UserID,
		control:   &http.Client{Transport: socket},
		network:   networkClient(&tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}),
		processes: newProcesses(true), retry: 200 * time.Millisecond,
	}, nil
}

// networkClient reaches storage and the identity endpoint: directly, and never where an answer redirects, which would carry a token there.
func networkClient(config *tls.Config) *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			TLSClientConfig: config, MaxIdleConnsPerHost: 8, ForceAttemptHTTP2: false,
			TLSHandshakeTimeout: 20 * time.Second, ResponseHeaderTimeout: 2 * time.Minute,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return errors.New("refusing to be redirected") },
	}
}

// run does everything between the spec and the final event.
func (w *worker) run(ctx context.Context) error {
	var spec Spec
	if err := w.ask(ctx, "/spec", &spec); err != nil {
		return fmt.Errorf("asking for the spec: %w", err)
	}
	if err := spec.validate(); err != nil {
		r := &reporter{worker: w}
		return r.send(ctx, Event{State: StateFailed, Code: CodeAgent, Error: err.Error()})
	}
	// Cancellation ends user code and transfers of the preparation, not the reports about it.
	working, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	watching, done := context.WithCancel(context.WithoutCancel(ctx))
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		w.watchSignal(watching, func() { stop(errCancelled) })
	}()
	err := newJob(w, spec).run(working, context.WithoutCancel(ctx))
	done()
	<-watched
	return err
}

// ask reads JSON from the controller, once.
func (w *worker) ask(ctx context.Context, path string, into any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://node"+path, nil)
	if err != nil {
		return err
	}
	resp, err := w.control.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("controller answers %s", resp.Status)
	}
	if err := json.NewDecoder(resp.Body).Decode(into); err != nil {
		return fmt.Errorf("decoding answer: %w", err)
	}
	return nil
}

// watchSignal waits for the server to want something. A lost connection is retried: the server may be restarting its side.
func (w *worker) watchSignal(ctx context.Context, cancel func()) {
	for ctx.Err() == nil {
		var s Signal
		if err := w.ask(ctx, "/signal", &s); err == nil && s.Cancel {
			cancel()
			return
		}
		pause(ctx, time.Second)
	}
}

// pause waits or returns early with ctx.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
