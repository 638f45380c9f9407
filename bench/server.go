package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// process is a server that was started for measuring: the platform, or the peer.
type process struct {
	cmd   *exec.Cmd
	out   io.ReadCloser
	lines *bufio.Scanner
	log   string // what it said on standard error
}

func start(ctx context.Context, log, binary string, args ...string) (*process, error) {
	p := &process{cmd: exec.CommandContext(ctx, binary, args...), log: log}
	p.cmd.Cancel = func() error { return p.cmd.Process.Signal(syscall.SIGTERM) }
	p.cmd.WaitDelay = 30 * time.Second
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM} // no server outlives this command, however that ends
	f, err := os.Create(log)
	if err != nil {
		return nil, fmt.Errorf("making a log: %w", err)
	}
	defer f.Close()
	p.cmd.Stderr = f
	if p.out, err = p.cmd.StdoutPipe(); err != nil {
		return nil, err
	}
	p.lines = bufio.NewScanner(p.out)
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting %s: %w", binary, err)
	}
	return p, nil
}

// await reads lines up to the one that begins with prefix, and returns what follows it.
func (p *process) await(prefix string) (string, error) {
	stuck := time.AfterFunc(time.Minute, func() { _ = p.cmd.Process.Kill() }) // ends Scan below
	defer stuck.Stop()
	for p.lines.Scan() {
		if rest, ok := strings.CutPrefix(p.lines.Text(), prefix); ok {
			return rest, nil
		}
	}
	log, _ := os.ReadFile(p.log) // for the error only
	return "", errors.Join(fmt.Errorf("%s ended or hung before it was ready:\n%s", p.cmd.Path, log), p.stop())
}

func (p *process) stop() error {
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended: Wait tells
	_, _ = io.Copy(io.Discard, p.out)
	if err := p.cmd.Wait(); err != nil {
		return fmt.Errorf("stopping %s: %w", p.cmd.Path, err)
	}
	return nil
}

// platform is `casemate serve` on a directory of its own, and its administrator.
type platform struct {
	*process
	env    map[string]string
	addr   string // where it listens
	client *http.Client
	tls    *tls.Config
	tokens map[string]string // by scope
	ready  time.Duration     // from the start of the process to its line
}

func (b *bench) serve(ctx context.Context, dir string) (_ *platform, err error) {
	began := time.Now()
	proc, err := start(ctx, dir+".log", b.binary, "serve", "--data", dir, "--listen", "127.0.0.1:0", "--dns", "")
	if err != nil {
		return nil, err
	}
	line, err := proc.await("ready ")
	if err != nil {
		return nil, err
	}
	p := &platform{process: proc, ready: time.Since(began), tokens: map[string]string{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.stop())
		}
	}()
	u, err := url.Parse(strings.Fields(line)[0])
	if err != nil {
		return nil, fmt.Errorf("reading the line that says ready: %w", err)
	}
	p.addr = net.JoinHostPort("127.0.0.1", u.Port())
	if p.env, err = readEnv(filepath.Join(dir, "client", "env")); err != nil {
		return nil, err
	}
	if p.tls, err = trusting(filepath.Join(dir, "client", "ca.pem")); err != nil {
		return nil, err
	}
	p.client = &http.Client{Timeout: time.Minute, Transport: &http.Transport{TLSClientConfig: p.tls, MaxIdleConnsPerHost: 4,
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, p.addr)
		}}}
	return p, nil
}

func trusting(ca string) (*tls.Config, error) {
	pem, err := os.ReadFile(ca)
	if err != nil {
		return nil, fmt.Errorf("reading the authority's certificate: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("no certificate in %s", ca)
	}
	return &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}}, nil
}

// readEnv reads shell assignments.
func readEnv(path string) (map[string]string, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading the client's environment: %w", err)
	}
	env := map[string]string{}
	for line := range strings.Lines(string(raw)) {
		if k, v, ok := strings.Cut(strings.TrimPrefix(strings.TrimSpace(line), "export "), "="); ok {
			env[k] = strings.Trim(v, "'")
		}
	}
	return env, nil
}

// token is the administrator's, for an audience such as https://storage.azure.com.
func (p *platform) token(ctx context.Context, audience string) (string, error) {
	if t := p.tokens[audience]; t != "" {
		return t, nil
	}
	form := url.Values{"grant_type": {"client_credentials"}, "client_id": {p.env["AZURE_CLIENT_ID"]}, "client_secret": {p.env["AZURE_CLIENT_SECRET"]}, "scope": {audience + "/.default"}}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, p.env["AZURE_AUTHORITY_HOST"]+p.env["AZURE_TENANT_ID"]+"/oauth2/v2.0/token", strings.NewReader(form.Encode()))
	if err != nil {
		return "", err
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	var out struct {
		AccessToken string `json:"access_token"`
	}
	if err := p.do(r, &out); err != nil {
		return "", err
	}
	p.tokens[audience] = out.AccessToken
	return out.AccessToken, nil
}

func (p *platform) do(r *http.Request, out any) error {
	resp, err := p.client.Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		return fmt.Errorf("reading the answer to %s %s: %w", r.Method, r.URL.Path, err)
	}
	if resp.StatusCode > 299 {
		return fmt.Errorf("%s %s = %s %.500s", r.Method, r.URL.Path, resp.Status, raw)
	}
	if out == nil || len(raw) == 0 {
		return nil
	}
	return json.Unmarshal(raw, out)
}

// arm sends a document to the resource manager and waits, for up to 30 s, until it is provisioned.
func (p *platform) arm(ctx context.Context, method, path, version string, body any) error {
	token, err := p.token(ctx, "https://management.azure.com")
	if err != nil {
		return err
	}
	raw, err := json.Marshal(body)
	if err != nil {
		return err
	}
	send := func(method string, raw []byte, out any) error {
		r, err := http.NewRequestWithContext(ctx, method, p.env["CASEMATE_ENDPOINT"]+path+"?api-version="+version, bytes.NewReader(raw))
		if err != nil {
			return err
		}
		r.Header.Set("Authorization", "Bearer "+token)
		r.Header.Set("Content-Type", "application/json")
		return p.do(r, out)
	}
	if err := send(method, raw, nil); err != nil {
		return err
	}
	var state struct {
		Properties struct{ ProvisioningState string }
	}
	for range 300 {
		if err := send(http.MethodGet, nil, &state); err != nil {
			return err
		}
		switch state.Properties.ProvisioningState {
		case "", "Succeeded":
			return nil
		case "Failed", "Canceled":
			return fmt.Errorf("%s %s: %s", method, path, state.Properties.ProvisioningState)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
	return fmt.Errorf("%s %s: not provisioned after 30 s", method, path)
}

// group makes a resource group and returns its path.
func (p *platform) group(ctx context.Context) (string, error) {
	path := "/subscriptions/" + p.env["AZURE_SUBSCRIPTION_ID"] + "/resourceGroups/bench"
	return path, p.arm(ctx, http.MethodPut, path, "2021-04-01", map[string]any{"location": "local"})
}
