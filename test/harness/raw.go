package harness

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// Raw sends requests byte by byte as a test writes them, where net/http would clean them first. It is for one goroutine.
type Raw struct {
	platform *Platform
	conn     net.Conn
	in       *bufio.Reader
}

// NewRaw makes one; Close it.
func (p *Platform) NewRaw() *Raw { return &Raw{platform: p} }

// Close closes the connection, if one is open.
func (r *Raw) Close() {
	if r.conn != nil {
		_ = r.conn.Close() // nothing is to be saved
		r.conn = nil
	}
}

// Do sends text and reads one answer. A connection that the server closed after an earlier answer is opened anew; an
// error means that the server closed the connection without an answer.
func (r *Raw) Do(ctx context.Context, method, text string) (Answer, error) {
	if r.conn == nil {
		d := tls.Dialer{Config: r.platform.TLS.Clone()}
		d.Config.ServerName = "management." + r.platform.Domain
		conn, err := d.DialContext(ctx, "tcp", r.platform.Address())
		if err != nil {
			return Answer{}, fmt.Errorf("connecting: %w", err)
		}
		r.conn, r.in = conn, bufio.NewReader(conn)
	}
	if err := r.conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return Answer{}, fmt.Errorf("setting a deadline: %w", err)
	}
	if _, err := io.WriteString(r.conn, text); err != nil {
		r.Close()
		return Answer{}, fmt.Errorf("sending: %w", err)
	}
	resp, err := http.ReadResponse(r.in, &http.Request{Method: method})
	if err != nil {
		r.Close()
		return Answer{}, fmt.Errorf("reading the answer: %w", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.Close {
		r.Close()
	}
	return Answer{Status: resp.StatusCode, Header: resp.Header, Body: body}, err
}
