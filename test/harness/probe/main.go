// Command probe is what tests run inside nodes: it tries connections and requests, and prints what it saw.
//
// It is static, so that it runs in an image that holds nothing else, and it is on nobody's side: every address that it
// tries is an argument. Under the name python3 it stands for a scoring server: it answers every request with "scored", so
// that tests of the network around a deployment need no interpreter.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

func main() {
	err := errors.New("usage: probe addresses | get URL [HEADER=VALUE …] | dial TIMEOUT ADDRESS [ADDRESS …] | scan TIMEOUT HOST PORT-PORT [PORT-PORT …] and nothing else")
	args := os.Args[1:]
	switch {
	case filepath.Base(os.Args[0]) == "python3":
		err = score(args)
	case len(args) == 1 && args[0] == "addresses":
		err = addresses()
	case len(args) >= 2 && args[0] == "get":
		err = get(args[1], args[2:])
	case len(args) >= 3 && args[0] == "dial":
		err = dial(args[1], args[2:])
	case len(args) >= 4 && args[0] == "scan":
		err = scan(args[1], args[2], args[3:])
	}
	if err != nil {
		fmt.Println("PROBE", err)
		os.Exit(1)
	}
}

// addresses prints the node's own in its network.
func addresses() error {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return err
	}
	for _, a := range all {
		if ip, ok := a.(*net.IPNet); ok && ip.IP.To4() != nil && ip.IP.IsPrivate() {
			fmt.Println("ADDRESS", ip.IP)
		}
	}
	return nil
}

// get prints status and body of one request. A value @FILE is a file's content.
func get(url string, headers []string) error {
	r, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, "=")
		if before, path, ok := strings.Cut(value, "@"); ok {
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			value = before + strings.TrimSpace(string(b))
		}
		r.Header.Set(name, value)
	}
	roots := x509.NewCertPool()
	if pem, err := os.ReadFile(os.Getenv("SSL_CERT_FILE")); err == nil {
		roots.AppendCertsFromPEM(pem)
	}
	c := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}}
	resp, err := c.Do(r)
	if err != nil {
		fmt.Println("ANSWER none", strings.ReplaceAll(err.Error(), "\n", " "))
		return nil
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	fmt.Println("ANSWER", resp.StatusCode, strings.ReplaceAll(string(b), "\n", " "))
	return err
}

// dial prints how a connection to each address went.
func dial(timeout string, targets []string) error {
	limit, err := time.ParseDuration(timeout)
	if err != nil {
		return err
	}
	for i, saw := range attempt(limit, targets) {
		fmt.Println("DIAL", targets[i], saw)
	}
	return nil
}

// scan prints the ports that accept or refuse; those that stay silent are only counted.
func scan(timeout, host string, ranges []string) error {
	limit, err := time.ParseDuration(timeout)
	if err != nil {
		return err
	}
	var targets []string
	for _, r := range ranges {
		from, to, _ := strings.Cut(r, "-")
		a, err1 := strconv.Atoi(from)
		b, err2 := strconv.Atoi(to)
		if err := errors.Join(err1, err2); err != nil {
			return err
		}
		for p := a; p <= b; p++ {
			targets = append(targets, net.JoinHostPort(host, strconv.Itoa(p)))
		}
	}
	silent := 0
	for i, saw := range attempt(limit, targets) {
		if saw != "open" && saw != "refused" {
			silent++
			continue
		}
		fmt.Println("PORT", targets[i], saw)
	}
	fmt.Println("SCANNED", len(targets), "silent", silent)
	return nil
}

func attempt(limit time.Duration, targets []string) []string {
	saw, room := make([]string, len(targets)), make(chan bool, 400)
	var wg sync.WaitGroup
	for i, t := range targets {
		room <- true
		wg.Go(func() {
			defer func() { <-room }()
			ctx, cancel := context.WithTimeout(context.Background(), limit)
			defer cancel()
			var d net.Dialer
			c, err := d.DialContext(ctx, "tcp4", t)
			switch {
			case err == nil:
				saw[i] = "open"
				c.Close()
			case errors.Is(err, syscall.ECONNREFUSED):
				saw[i] = "refused"
			default:
				saw[i] = "none: " + err.Error()
			}
		})
	}
	wg.Wait()
	return saw
}

// score stands for a scoring server: score --entry FILE --port N.
func score(args []string) error {
	i := slices.Index(args, "--port")
	if i < 0 || i+1 >= len(args) {
		return errors.New("no --port")
	}
	return http.ListenAndServe(net.JoinHostPort("0.0.0.0", args[i+1]), http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `"scored"`) // the client may have gone
	}))
}
