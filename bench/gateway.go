package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"time"
)

// measureGateway asks for one resource group, with a token, again and again: receive, authenticate, origin, authorize,
// govern, record and dispatch, all on. The peer answers the same bytes without any of it.
func measureGateway(ctx context.Context, b *bench) (_ []row, err error) {
	p, err := b.serve(ctx, filepath.Join(b.tmp, "gateway"))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, p.stop()) }()
	group, err := p.group(ctx)
	if err != nil {
		return nil, err
	}
	token, err := p.token(ctx, "https://management.azure.com")
	if err != nil {
		return nil, err
	}
	u, err := url.Parse(p.env["CASEMATE_ENDPOINT"])
	if err != nil {
		return nil, err
	}
	conf := p.tls.Clone()
	conf.ServerName = u.Hostname()
	ours := target{addr: p.addr, tls: conf, request: fmt.Appendf(nil,
		"GET %s?api-version=2021-04-01 HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\nUser-Agent: bench\r\n\r\n", group, u.Host, token)}
	one, err := ours.dial(ctx)
	if err != nil {
		return nil, err
	}
	document, err := one.call()
	if err = errors.Join(err, one.conn.Close()); err != nil {
		return nil, err
	}
	peer, err := b.peer(ctx, document)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, peer.stop()) }()
	plain := target{addr: peer.addr, tls: peer.tls, request: []byte("GET /document HTTP/1.1\r\nHost: peer\r\nUser-Agent: bench\r\n\r\n")}
	return race(ctx, ours, plain)
}

// race measures both in turns.
func race(ctx context.Context, ours, plain target) ([]row, error) {
	const turns, connections = 5, 16
	both := [2]target{ours, plain}
	var single [2][]time.Duration
	var many [2][]float64
	for turn := range turns + 1 {
		for i, t := range both {
			d, err := t.latencies(ctx, time.Second)
			if err != nil {
				return nil, err
			}
			n, err := t.throughput(ctx, connections, 2*time.Second)
			if err != nil {
				return nil, err
			}
			if turn == 0 {
				continue // to warm up
			}
			single[i], many[i] = append(single[i], d...), append(many[i], n)
		}
	}
	const peer = "plain net/http over TLS"
	at := func(i int, q float64) float64 { return millis(quantile(single[i], q)) }
	return []row{
		newRow("GET of a resource group, p50, 1 connection", at(0, 0.5), "ms").beside(peer, at(1, 0.5)).within(1),
		newRow("GET of a resource group, p99, 1 connection", at(0, 0.99), "ms").beside(peer, at(1, 0.99)),
		newRow("GETs of a resource group, 16 connections, client on the same cores", median(many[0]), "1/s").beside(peer, median(many[1])).within(3000),
	}, nil
}
