package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net"
	"net/http"
	"time"

	"casemate.dev/resource"
)

// Listener is one place where connections enter. Origin tells, from the accepted connection, where it came from; nil means
// the public listener.
type Listener struct {
	Listener net.Listener
	Origin   func(net.Conn) resource.Origin
	// TLS is nil on a node's metadata listener only: instance metadata is plain HTTP inside the node's own namespace
	// (CLIENTS.md, section 6).
	TLS *tls.Config
}

const (
	headerTimeout = 15 * time.Second
	idleTimeout   = 120 * time.Second
	maxHeader     = 64 << 10
)

// TLSConfig is the platform's TLS policy: 1.2 and newer, forward secrecy, HTTP/1.1 (Azure Storage speaks nothing else, and
// one stream a connection is what a revoked key can cut).
func TLSConfig(get func(*tls.ClientHelloInfo) (*tls.Certificate, error)) *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS12,
		GetCertificate: get,
		NextProtos:     []string{"http/1.1"},
		CipherSuites: []uint16{
			tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
			tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
		},
	}
}

// Serve accepts connections on l until ctx ends, then drains for at most grace.
func (g *Gateway) Serve(ctx context.Context, l Listener, grace time.Duration) error {
	srv := &http.Server{
		Handler:           g,
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		// "OPTIONS *" passes the stages like everything else.
		DisableGeneralOptionsHandler: true,
		ErrorLog:                     log.New(discardHandshakes{g.cfg.Logger}, "", 0),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return withOrigin(ctx, originOfConn(l, c))
		},
		BaseContext: func(net.Listener) context.Context { return context.WithoutCancel(ctx) },
	}
	ln := l.Listener
	if l.TLS != nil {
		ln = tls.NewListener(ln, l.TLS)
	}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ln) }()
	select {
	case err := <-done:
		if errors.Is(err, net.ErrClosed) {
			// The owner of the listener took it away: the place where its connections entered is no more, so they end too.
			return srv.Close()
		}
		return fmt.Errorf("serving %s: %w", l.Listener.Addr(), err)
	case <-ctx.Done():
	}
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
	defer cancel()
	if err := srv.Shutdown(drain); err != nil {
		return errors.Join(fmt.Errorf("draining %s: %w", l.Listener.Addr(), err), srv.Close())
	}
	return nil
}

func originOfConn(l Listener, c net.Conn) resource.Origin {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	if l.Origin == nil {
		return resource.Origin{Kind: resource.OriginPublic, Remote: remoteOf(c)}
	}
	return l.Origin(c)
}

// discardHandshakes keeps the noise of port scanners at debug level.
type discardHandshakes struct{ l *slog.Logger }

func (d discardHandshakes) Write(b []byte) (int, error) {
	d.l.Debug("connection", "error", clip(string(b), 300))
	return len(b), nil
}
