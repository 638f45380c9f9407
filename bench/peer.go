package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

// The peer is what one would write who wants none of the platform's promises: net/http over TLS 1.3, a file, fsync. No
// encryption at rest, no callers, no log. It is a process of its own, as the platform is.

// servePeer serves until ctx ends: GET /document answers the file document as JSON, other paths are files. It prints
// "peer ADDRESS" when it listens; its certificate is in DIR/ca.pem.
func servePeer(ctx context.Context, dir string) error {
	cert, err := selfSigned(filepath.Join(dir, "ca.pem"))
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("listening: %w", err)
	}
	document, err := os.ReadFile(filepath.Join(dir, "document"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("reading the document: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /document", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json; charset=utf-8")
		_, _ = w.Write(document) // the client is gone
	})
	mux.HandleFunc("GET /", func(w http.ResponseWriter, r *http.Request) {
		http.ServeFile(w, r, filepath.Join(dir, filepath.Base(r.URL.Path)))
	})
	mux.HandleFunc("PUT /", func(w http.ResponseWriter, r *http.Request) {
		if err := keep(dir, filepath.Base(r.URL.Path), r.Body); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.WriteHeader(http.StatusCreated)
	})
	s := &http.Server{Handler: mux, TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}}}
	defer context.AfterFunc(ctx, func() { _ = s.Close() })()
	fmt.Println("peer", l.Addr())
	if err := s.ServeTLS(l, "", ""); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// keep is as durable as the platform's depot: the file and its directory are on the disk before the answer.
func keep(dir, name string, body io.Reader) error {
	f, err := os.CreateTemp(dir, "put")
	if err != nil {
		return err
	}
	_, err = io.Copy(f, body)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	if err := os.Rename(f.Name(), filepath.Join(dir, name)); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func selfSigned(path string) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("generating a key: %w", err)
	}
	t := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"peer"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("making a certificate: %w", err)
	}
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		return tls.Certificate{}, fmt.Errorf("writing the certificate: %w", err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}

// plainPeer is a running peer.
type plainPeer struct {
	*process
	addr   string
	tls    *tls.Config
	client *http.Client
}

func (b *bench) peer(ctx context.Context, document []byte) (*plainPeer, error) {
	dir := filepath.Join(b.tmp, "peer")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the peer's directory: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "document"), document, 0o600); err != nil {
		return nil, fmt.Errorf("writing the peer's document: %w", err)
	}
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("finding this command: %w", err)
	}
	proc, err := start(ctx, dir+".log", self, "-peer", dir)
	if err != nil {
		return nil, err
	}
	p := &plainPeer{process: proc}
	if p.addr, err = proc.await("peer "); err != nil {
		return nil, err
	}
	if p.tls, err = trusting(filepath.Join(dir, "ca.pem")); err != nil {
		return nil, errors.Join(err, p.stop())
	}
	p.tls.ServerName = "peer"
	p.client = &http.Client{Timeout: time.Minute, Transport: &http.Transport{TLSClientConfig: p.tls}}
	return p, nil
}
