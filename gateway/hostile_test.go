package gateway

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"casemate.dev/resource"
)

// A refusal is found under the category of its row, like what was allowed: "who was refused a secret?"
func TestRefusalsHaveACategory(t *testing.T) {
	for token, status := range map[string]int{"": 401, "bad": 401, "node": 401, "good": 403} {
		f := newWorld()
		w := do(f.gateway(t), public, "GET", "https://v1.vault.casemate.test/secrets/other?api-version=2024-01-01", token, "")
		if w.Code != status || len(f.entries) != 1 || f.entries[0].Category != "Secret" || f.entries[0].Allowed {
			t.Errorf("token %q: %d, trail %+v", token, w.Code, f.entries)
		}
	}
}

// Whoever announces a body and never sends it holds a connection no longer than the row's time.
func TestBodyThatNeverComes(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for a real connection's deadline")
	}
	f := newWorld()
	rows := f.rows()
	for i := range rows {
		rows[i].Timeout = 50 * time.Millisecond
	}
	rows[1].Handler = func(_ http.ResponseWriter, r *resource.Request) error {
		_, err := r.ReadBody()
		return err
	}
	g := f.gateway(t)
	g, err := New(Config{Domain: g.cfg.Domain, Planes: g.cfg.Planes, Routes: rows, Authorize: f, Record: f, Documents: f, Clock: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- g.Serve(ctx, Listener{Listener: ln}, time.Second) }()
	for _, head := range []string{"Authorization: Bearer good\r\n", ""} {
		c, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		fmt.Fprintf(c, "PUT /subscriptions/s/resourceGroups/g?api-version=2024-01-01 HTTP/1.1\r\nHost: management.casemate.test\r\nContent-Length: 60\r\n%s\r\n{", head)
		res, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatalf("with %q: %v", head, err)
		}
		if _, err := io.Copy(io.Discard, res.Body); err != nil || res.StatusCode < 400 {
			t.Errorf("with %q: %s, %v", head, res.Status, err)
		}
		if _, err := c.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("with %q: the connection lives on: %v", head, err)
		}
		c.Close()
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// A connection does not outlive the place where it entered: an endpoint that was taken away serves nobody.
func TestConnectionsEndWithTheirListener(t *testing.T) {
	f := newWorld()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- f.gateway(t).Serve(t.Context(), Listener{Listener: ln}, time.Second) }()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	r := bufio.NewReader(c)
	ask := func() error {
		fmt.Fprint(c, "GET /healthz HTTP/1.1\r\nHost: management.casemate.test\r\n\r\n")
		res, err := http.ReadResponse(r, nil)
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, res.Body)
		return err
	}
	if err := ask(); err != nil {
		t.Fatal(err)
	}
	ln.Close()
	if err := <-done; err != nil && !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
	if err := ask(); err == nil {
		t.Error("the connection outlived its listener")
	}
}

// A plane that ends a stream by the connection's deadline leaves a connection whose context has ended. No later request may
// meet it: it would fail for a reason that is not its own.
func TestABrokenConnectionIsNotUsedAgain(t *testing.T) {
	for _, fail := range []bool{false, true} {
		f := newWorld()
		rows := f.rows()
		first := true
		rows[0].Handler = func(w http.ResponseWriter, r *resource.Request) error {
			if err := r.Context().Err(); err != nil {
				return err
			}
			if !first {
				_, err := io.WriteString(w, "whole")
				return err
			}
			first = false
			if !fail {
				if _, err := w.Write(make([]byte, 1<<16)); err != nil {
					return err
				}
			}
			c := http.NewResponseController(w)
			if err := errors.Join(c.SetReadDeadline(time.Unix(1, 0)), c.SetWriteDeadline(time.Unix(1, 0))); err != nil {
				return err
			}
			<-r.Context().Done() // net/http has noticed
			if fail {
				return resource.Errorf(403, "KeyRevoked", "the key is gone")
			}
			return nil
		}
		planes := f.gateway(t).cfg.Planes
		g, err := New(Config{Domain: "casemate.test", Planes: planes, Routes: rows, Authorize: f, Record: f, Documents: f, Clock: time.Now})
		if err != nil {
			t.Fatal(err)
		}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		served := make(chan error, 1)
		go func() { served <- g.Serve(ctx, Listener{Listener: l}, time.Second) }()
		client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", l.Addr().String())
		}}}
		get := func() (int, string, error) {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://management.casemate.test/subscriptions/s/resourceGroups/g?api-version=2024-01-01", nil)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Authorization", "Bearer good")
			res, err := client.Do(req)
			if err != nil {
				return 0, "", err
			}
			defer res.Body.Close()
			b, err := io.ReadAll(res.Body)
			return res.StatusCode, string(b), err
		}
		status, body, err := get()
		if fail && (err != nil || status != 403 || !strings.Contains(body, "KeyRevoked")) {
			t.Errorf("the reason did not reach the client: %d %q %v", status, body, err)
		}
		for range 3 {
			if status, body, err := get(); err != nil || status != 200 || body != "whole" {
				t.Errorf("after a broken connection: %d %q %v", status, body, err)
			}
		}
		client.CloseIdleConnections()
		stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}
}
