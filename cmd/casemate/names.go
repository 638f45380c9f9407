package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"

	"casemate.dev/resource"
)

// platformHosts exist always.
var platformHosts = []string{"management", "login", "graph"}

// hostNames keeps DIR/client/hosts equal to the names that exist: /etc/hosts has no wildcards.
type hostNames struct {
	app *App

	mu    sync.Mutex // guards names
	names map[string][]string
	wake  chan struct{}
}

// hostsOf are the host names of a resource, without the domain.
func hostsOf(d *resource.Document) []string {
	name := strings.ToLower(d.ID.Name())
	switch strings.ToLower(d.ID.Type()) {
	case "microsoft.keyvault/vaults":
		return []string{name + ".vault"}
	case "microsoft.storage/storageaccounts":
		return []string{name + ".blob.core"}
	case "microsoft.containerregistry/registries":
		return []string{name + ".azurecr"}
	case "microsoft.machinelearningservices/workspaces":
		if id := d.String("properties.workspaceId"); id != "" {
			return []string{id + ".workspace"}
		}
	}
	return nil
}

func (h *hostNames) observe(_ context.Context, before, after *resource.Document) {
	h.mu.Lock()
	if after != nil {
		h.names[after.ID.Key()] = hostsOf(after)
	} else if before != nil {
		delete(h.names, before.ID.Key())
	}
	h.mu.Unlock()
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

func (h *hostNames) list() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []string
	for _, names := range h.names {
		for _, n := range names {
			out = append(out, n+"."+h.app.cfg.Domain)
		}
	}
	slices.Sort(out)
	for i, n := range platformHosts {
		out = slices.Insert(out, i, n+"."+h.app.cfg.Domain)
	}
	return out
}

// run writes the file after changes; many at once are one write.
func (h *hostNames) run(ctx context.Context) error {
	for {
		if err := h.app.writeHosts(ctx, h.list()); err != nil {
			h.app.log.Error("writing client/hosts", "cause", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-h.wake:
		}
	}
}

// serveDNS answers every name below the domain with the public listener's address. Without its port it stays off, with a
// note: names can come from DIR/client/hosts as well.
func (a *App) serveDNS(p *parts) error {
	h := &hostNames{app: a, names: map[string][]string{}, wake: make(chan struct{}, 1)}
	for _, t := range []string{"Microsoft.KeyVault/vaults", "Microsoft.Storage/storageAccounts", "Microsoft.ContainerRegistry/registries", "Microsoft.MachineLearningServices/workspaces"} {
		p.watch(t, h.observe)
	}
	a.runs = append(a.runs, h.run)
	if a.cfg.DNS == "" {
		return nil
	}
	conn, err := net.ListenPacket("udp", a.cfg.DNS)
	if err != nil {
		a.notes = append(a.notes, fmt.Sprintf("DNS responder, because %v", err))
		return nil
	}
	srv := &dns.Server{PacketConn: conn, Handler: dns.HandlerFunc(a.answerDNS)}
	a.closes = append(a.closes, func() error { conn.Close(); return nil }) // closed already when it ran
	a.runs = append(a.runs, func(ctx context.Context) error {
		done := make(chan error, 1)
		go func() { done <- srv.ActivateAndServe() }()
		<-ctx.Done()
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		return errors.Join(srv.ShutdownContext(stop), <-done)
	})
	return nil
}

func (a *App) answerDNS(w dns.ResponseWriter, q *dns.Msg) {
	m := new(dns.Msg)
	m.SetReply(q)
	m.Authoritative = true
	ours := len(q.Question) == 1 && dns.IsSubDomain(dns.Fqdn(a.cfg.Domain), strings.ToLower(q.Question[0].Name))
	switch {
	case !ours:
		m.Rcode = dns.RcodeRefused
	case q.Question[0].Qtype == dns.TypeA:
		m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 30}, A: publicIPv4(a.public.Addr())}}
	}
	_ = w.WriteMsg(m) // the asker may be gone
}

// publicIPv4 is the address that names resolve to: the listener's, or loopback when it listens everywhere.
func publicIPv4(addr net.Addr) net.IP {
	if t, ok := addr.(*net.TCPAddr); ok && t.IP.To4() != nil && !t.IP.IsUnspecified() {
		return t.IP.To4()
	}
	return net.IPv4(127, 0, 0, 1)
}
