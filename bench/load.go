package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// The load client repeats one request on connections that stay open. It is small on purpose: client and server share the
// machine's cores, so what a full HTTP client spends would be missing from the server's result. It understands answers with a
// Content-Length only, and wants each to be 200.

type target struct {
	addr    string
	tls     *tls.Config
	request []byte // a whole HTTP/1.1 request
}

type caller struct {
	conn net.Conn
	r    *bufio.Reader
	req  []byte
}

func (t target) dial(ctx context.Context) (*caller, error) {
	conn, err := (&tls.Dialer{Config: t.tls}).DialContext(ctx, "tcp", t.addr)
	if err != nil {
		return nil, fmt.Errorf("connecting: %w", err)
	}
	return &caller{conn: conn, r: bufio.NewReader(conn), req: t.request}, nil
}

// call sends the request once and returns the body, which is valid until the next call.
func (c *caller) call() ([]byte, error) {
	if err := c.conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return nil, err
	}
	if _, err := c.conn.Write(c.req); err != nil {
		return nil, fmt.Errorf("sending: %w", err)
	}
	status, err := c.r.ReadSlice('\n')
	if err != nil {
		return nil, fmt.Errorf("reading the status: %w", err)
	}
	ok, first := bytes.HasPrefix(status, []byte("HTTP/1.1 200")), string(status)
	length := -1
	for {
		line, err := c.r.ReadSlice('\n')
		if err != nil {
			return nil, fmt.Errorf("reading a header: %w", err)
		}
		if len(bytes.TrimSpace(line)) == 0 {
			break
		}
		if len(line) > 15 && strings.EqualFold(string(line[:15]), "content-length:") {
			if length, err = strconv.Atoi(string(bytes.TrimSpace(line[15:]))); err != nil {
				return nil, fmt.Errorf("reading the length: %w", err)
			}
		}
	}
	if length < 0 {
		return nil, errors.New("the answer has no Content-Length")
	}
	body := make([]byte, length)
	if _, err := io.ReadFull(c.r, body); err != nil {
		return nil, fmt.Errorf("reading the body: %w", err)
	}
	if !ok {
		return nil, fmt.Errorf("the answer is %s %.300s", strings.TrimSpace(first), body)
	}
	return body, nil
}

// latencies calls one after the other on one connection for a time.
func (t target) latencies(ctx context.Context, length time.Duration) ([]time.Duration, error) {
	c, err := t.dial(ctx)
	if err != nil {
		return nil, err
	}
	defer c.conn.Close()
	var out []time.Duration
	for end := time.Now().Add(length); time.Now().Before(end) && ctx.Err() == nil; {
		began := time.Now()
		if _, err := c.call(); err != nil {
			return nil, err
		}
		out = append(out, time.Since(began))
	}
	return out, ctx.Err()
}

// throughput calls on n connections at once for a time, and returns calls per second.
func (t target) throughput(ctx context.Context, n int, length time.Duration) (float64, error) {
	callers := make([]*caller, n)
	for i := range callers {
		c, err := t.dial(ctx)
		if err != nil {
			return 0, err
		}
		defer c.conn.Close()
		callers[i] = c
	}
	var wg sync.WaitGroup
	counts, errs := make([]int, n), make([]error, n)
	began := time.Now()
	end := began.Add(length)
	for i, c := range callers {
		wg.Go(func() {
			for time.Now().Before(end) && ctx.Err() == nil {
				if _, errs[i] = c.call(); errs[i] != nil {
					return
				}
				counts[i]++
			}
		})
	}
	wg.Wait()
	sum := 0
	for _, c := range counts {
		sum += c
	}
	return float64(sum) / time.Since(began).Seconds(), errors.Join(append(errs, ctx.Err())...)
}

// quantile of samples; q between 0 and 1.
func quantile(samples []time.Duration, q float64) time.Duration {
	if len(samples) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(samples))
	return s[min(len(s)-1, int(q*float64(len(s))))]
}
