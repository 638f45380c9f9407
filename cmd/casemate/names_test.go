package main

import (
	"net"
	"os"
	"strings"
	"testing"
)

type boundTo struct {
	net.Listener
	addr net.Addr
}

func (b boundTo) Addr() net.Addr { return b.addr }

// The hosts file and the DNS responder give names the same address.
func TestHostsFileLeadsToTheListener(t *testing.T) {
	for listen, want := range map[string]string{"192.0.2.7:8443": "192.0.2.7", "0.0.0.0:8443": "127.0.0.1", "[::1]:8443": "127.0.0.1"} {
		addr, err := net.ResolveTCPAddr("tcp", listen)
		if err != nil {
			t.Fatal(err)
		}
		a := &App{cfg: Config{Data: t.TempDir()}, public: boundTo{addr: addr}}
		if err := os.Mkdir(a.path("client"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := a.writeHosts(t.Context(), []string{"management.casemate.test"}); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(a.path("client/hosts"))
		if err != nil || strings.TrimSpace(string(b)) != want+" management.casemate.test" {
			t.Errorf("%s: %q, %v", listen, b, err)
		}
	}
}
