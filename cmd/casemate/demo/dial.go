package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/miekg/dns"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// resolver is the platform's address in every virtual network.
const resolver = "168.63.129.16:53"

// DialCommand is the hidden command that opens connections inside a network namespace for `casemate demo`: requests come and sockets go over
// descriptor 3.
func DialCommand() *cobra.Command {
	return &cobra.Command{Use: DialCommandName, Hidden: true, Args: cobra.NoArgs, Short: "Open connections inside a network for the demonstration",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := net.FileConn(os.NewFile(3, "demonstration"))
			if err != nil {
				return fmt.Errorf("opening descriptor 3: this command is started by the demonstration: %w", err)
			}
			u, ok := c.(*net.UnixConn)
			if !ok {
				return errors.New("descriptor 3 is not a UNIX socket")
			}
			return dialFor(cmd.Context(), u)
		}}
}

// dialFor answers until the other side closes.
func dialFor(ctx context.Context, c *net.UnixConn) error {
	var work sync.WaitGroup
	defer work.Wait()
	defer func() { _ = c.Close() }()
	buf := make([]byte, 4096)
	for {
		n, err := c.Read(buf)
		if errors.Is(err, io.EOF) || err == nil && n == 0 || errors.Is(err, unix.ECONNRESET) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading a request: %w", err)
		}
		var q dialRequest
		if err := json.Unmarshal(buf[:n], &q); err != nil {
			return fmt.Errorf("decoding a request: %w", err)
		}
		work.Go(func() { answer(ctx, c, q) })
	}
}

func answer(ctx context.Context, c *net.UnixConn, q dialRequest) {
	ctx, cancel := context.WithTimeout(ctx, q.Timeout)
	defer cancel()
	a, rights := dialAnswer{ID: q.ID}, []byte(nil)
	f, err := open(ctx, q.Addr)
	if err != nil {
		a.Error = err.Error()
	} else {
		defer func() { _ = f.Close() }() // the message carries a duplicate
		rights = unix.UnixRights(int(f.Fd()))
	}
	b, err := json.Marshal(a)
	if err == nil {
		_, _, _ = c.WriteMsgUnix(b, rights, nil) // the asker may be gone
	}
}

// open connects and returns the socket's descriptor.
func open(ctx context.Context, addr string) (*os.File, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	ip, err := resolve(ctx, host)
	if err != nil {
		return nil, err
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp4", net.JoinHostPort(ip, port))
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }() // File duplicates
	return conn.(*net.TCPConn).File()   // tcp4 was dialled
}

// resolve asks the network's resolver. The system's own would ask the host's files first, which know nothing of this network.
func resolve(ctx context.Context, host string) (string, error) {
	if _, err := netip.ParseAddr(host); err == nil {
		return host, nil
	}
	m := new(dns.Msg)
	m.SetQuestion(dns.Fqdn(host), dns.TypeA)
	c := dns.Client{Timeout: 2 * time.Second}
	in, _, err := c.ExchangeContext(ctx, m, resolver)
	if err != nil {
		return "", fmt.Errorf("resolving %s inside the network: %w", host, err)
	}
	for _, rr := range in.Answer {
		if a, ok := rr.(*dns.A); ok {
			return a.A.String(), nil
		}
	}
	return "", fmt.Errorf("resolving %s inside the network: %s, no address", host, dns.RcodeToString[in.Rcode])
}
