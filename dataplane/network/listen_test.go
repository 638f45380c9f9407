package network_test

import (
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	mdns "github.com/miekg/dns"

	"casemate.dev/dataplane/network"
	"casemate.dev/dataplane/network/plan"
)

func TestOrigin(t *testing.T) {
	n, _ := build(t, declared())
	l, err := n.Listen(t.Context(), strings.ToUpper(vnetA), "10.1.2.4:443")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, node := range []string{"node-1", "score-1", "open"} {
		client := make(chan error, 1)
		go func() {
			client <- in(n, node, func() error {
				c, err := net.DialTimeout("tcp", "10.1.2.4:443", 5*time.Second)
				if err != nil {
					return err
				}
				defer c.Close()
				_, err = io.ReadAll(c)
				return err
			})
		}()
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		o := c.(network.Originated).Origin()
		_, a, _ := n.Current().Node(node)
		if o.Network != vnetA || o.PrivateEndpoint != vaultPE || o.Source != node || o.Remote.Addr() != a.IP {
			t.Errorf("origin of %s: %+v", node, o)
		}
		c.Close()
		if err := <-client; err != nil {
			t.Errorf("%s: %v", node, err)
		}
	}
	if _, err := n.Listen(t.Context(), vnetA, "10.1.2.4:22"); !errors.Is(err, network.ErrUnknown) {
		t.Errorf("listening at a port that no endpoint has: %v", err)
	}
	if _, err := n.Listen(t.Context(), vnetB, "10.1.2.4:443"); !errors.Is(err, network.ErrUnknown) {
		t.Errorf("listening in a network that has no such endpoint: %v", err)
	}
}

func TestListenNodeAndDialNode(t *testing.T) {
	n, _ := build(t, declared())
	imds, err := n.ListenNode(t.Context(), "node-1", "169.254.169.254:80")
	if err != nil {
		t.Fatal(err)
	}
	defer imds.Close()
	go in(n, "node-1", func() error {
		c, err := net.DialTimeout("tcp", "169.254.169.254:80", 5*time.Second)
		if err == nil {
			defer c.Close()
			io.ReadAll(c)
		}
		return err
	})
	c, err := imds.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if o := c.(network.Originated).Origin(); o.Source != "node-1" || o.Network != vnetA || o.PrivateEndpoint != "" {
		t.Errorf("origin at the metadata service: %+v", o)
	}
	c.Close()
	if got := dial(n, "node-2", "169.254.169.254:80"); got != "refused" {
		t.Errorf("the metadata address of another node: %s", got)
	}
	if _, err := n.ListenNode(t.Context(), "node-1", "0.0.0.0:80"); err == nil {
		t.Error("listening on every address of a node")
	}

	serve(t, n, "node-1", "0.0.0.0:5001")
	back, err := n.DialNode(t.Context(), vnetA, "10.1.0.4:5001")
	if err != nil {
		t.Fatal(err)
	}
	if b, _ := io.ReadAll(back); string(b) != "node-1" {
		t.Errorf("dialed node answers %q", b)
	}
	back.Close()
	var denied *network.DeniedError
	if _, err := n.DialNode(t.Context(), vnetA, "10.1.0.4:5002"); !errors.As(err, &denied) || !strings.Contains(err.Error(), "nothing-else (4096)") {
		t.Errorf("dialing against the rules: %v", err)
	}
	if got := dial(n, "node-2", "10.1.0.4:5001"); got != "silence" {
		t.Errorf("a neighbour at the port for the platform: %s", got)
	}
}

func TestDNS(t *testing.T) {
	n, _ := build(t, declared())
	ask := func(node, transport, server, name string) (string, error) {
		var reply *mdns.Msg
		err := in(n, node, func() error {
			c, err := net.DialTimeout(transport, server, patience)
			if err != nil {
				return err
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(patience))
			reply, _, err = (&mdns.Client{Net: transport, Timeout: patience}).ExchangeWithConn(new(mdns.Msg).SetQuestion(name, mdns.TypeA), &mdns.Conn{Conn: c})
			return err
		})
		if err != nil {
			return "", err
		}
		if len(reply.Answer) == 0 {
			return mdns.RcodeToString[reply.Rcode], nil
		}
		return reply.Answer[0].(*mdns.A).A.String(), nil
	}
	const name = "v.vault.casemate.localhost."
	for _, c := range []struct{ node, transport, server, name, want string }{
		{"node-1", "udp", "168.63.129.16:53", name, "10.1.2.4"},
		{"node-1", "tcp", "168.63.129.16:53", name, "10.1.2.4"},
		{"node-1", "udp", "10.1.0.1:53", name, "10.1.2.4"},
		{"open", "udp", "168.63.129.16:53", "x.y.apps.casemate.localhost.", "10.1.0.4"},
		{"node-1", "udp", "168.63.129.16:53", "w.vault.casemate.localhost.", "NXDOMAIN"},
		{"node-1", "udp", "168.63.129.16:53", "example.com.", "REFUSED"},
		{"b-node", "udp", "168.63.129.16:53", name, "REFUSED"},
		{"score-1", "udp", "168.63.129.16:53", name, "10.1.2.4"},
		{"score-2", "tcp", "168.63.129.16:53", name, "10.1.2.4"},
	} {
		if got, err := ask(c.node, c.transport, c.server, c.name); err != nil || got != c.want {
			t.Errorf("%s asks %s by %s for %s: %s %v, want %s", c.node, c.server, c.transport, c.name, got, err, c.want)
		}
	}
	if got, err := ask("score-2", "udp", "168.63.129.16:53", name); err == nil {
		t.Errorf("rule no-names does not hold: %s", got)
	}
	if got, err := ask("node-1", "udp", "10.1.1.1:53", name); err == nil {
		t.Errorf("the gateway of another subnet answers: %s", got)
	}
	// New records are visible when Apply returns.
	next := declared()
	next[0].Records = append(next[0].Records, plan.Record{Name: "late.vault.casemate.localhost", IP: addr("10.1.2.8")})
	if p, err := n.Compile(next); err != nil || n.Apply(t.Context(), p) != nil {
		t.Fatal("applying records")
	}
	if got, err := ask("node-1", "udp", "168.63.129.16:53", "late.vault.casemate.localhost."); err != nil || got != "10.1.2.8" {
		t.Errorf("new record: %s %v", got, err)
	}
}

func TestPlatformListener(t *testing.T) {
	n, p := build(t, declared())
	l, err := n.Listen(t.Context(), vnetA, "168.63.129.16:5005")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dialed := make(chan string, 1)
	go func() { dialed <- dial(n, "open", "168.63.129.16:5005") }()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if o := c.(network.Originated).Origin(); o.Network != vnetA || o.PrivateEndpoint != "" || o.Source != "open" {
		t.Errorf("origin at the platform's address: %+v", o)
	}
	c.Close()
	if got := <-dialed; got != "open" {
		t.Errorf("dialing the platform: %s", got)
	}
	for networkID, at := range map[string]string{vnetA: "168.63.129.16:5006", vnetB: "168.63.129.16:5005"} {
		if _, err := n.Listen(t.Context(), networkID, at); !errors.Is(err, network.ErrUnknown) {
			t.Errorf("listening at %s in %s: %v", at, networkID, err)
		}
	}
	for tag, want := range map[string]bool{"AzureResourceManager": true, "AzureActiveDirectory": true, "Storage": false} {
		networks := declared()
		networks[0].Subnets[2].Group = &plan.SecurityGroup{ID: "closed", Rules: []plan.SecurityRule{
			{Name: "tag", Priority: 100, Direction: "Outbound", Access: "Allow", Protocol: "Tcp", DestinationPrefixes: []string{tag}, DestinationPorts: []string{"5005"}},
			{Name: "nothing-else", Priority: 200, Direction: "Outbound", Access: "Deny", Protocol: "*"},
		}}
		changed, err := n.Compile(networks)
		if err != nil {
			t.Fatal(err)
		}
		if err := n.Apply(t.Context(), changed); err != nil {
			t.Fatal(err)
		}
		if got := dial(n, "open", "168.63.129.16:5005") == "open"; got != want {
			t.Errorf("with only %s allowed the platform is reachable: %v", tag, got)
		}
	}
	if err := n.Apply(t.Context(), p); err != nil {
		t.Fatal(err)
	}
}
