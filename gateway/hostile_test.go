package gateway

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
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
