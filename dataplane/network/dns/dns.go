// Package dns answers the private DNS of one virtual network: the names of its private endpoints and private
// zones, and nothing else. It never forwards, so that a name can neither be resolved outside nor carry data out.
//
// Its clients are nodes, which run foreign code and may send anything: messages are parsed by miekg/dns, answers
// are built from our own records only and cut to what the client can take, source addresses are genuine (the router
// drops any other), and connections per client are limited by the caller's listener.
//
// A zone is the parent of any record's name, and the name below which a wildcard record stands. Inside a zone an
// unknown name does not exist (NXDOMAIN, with SOA for negative caching); outside all zones the answer is REFUSED.
// Records are swapped atomically; a query sees the old set or the new one. [RFC 1034, 1035, 2308, 4592, 8020]
package dns

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	mdns "github.com/miekg/dns"
)

// TTL is how long clients may keep an answer: short, because endpoints come and go.
const TTL = 10 * time.Second

// maxDatagram avoids fragments. [DNS flag day 2020]
const maxDatagram = 1232

// A Record gives a name an IPv4 address. Names are absolute and lower case; "*." in front makes a wildcard.
type Record struct {
	Name string
	IP   netip.Addr
}

// zones is one immutable set of records.
type zones struct {
	addresses map[string][]netip.Addr // by name, wildcards included
	exists    map[string]bool         // every name with something at or below it, up to its zone
	apexes    map[string]bool
}

// A Resolver answers on any number of sockets. Create it with New.
type Resolver struct {
	current atomic.Pointer[zones]
	wait    sync.WaitGroup

	mu      sync.Mutex // servers, closed
	servers []*mdns.Server
	closed  bool
}

// New returns a resolver that knows no name.
func New() *Resolver {
	r := &Resolver{}
	r.Set(nil)
	return r
}

// Set replaces all records.
func (r *Resolver) Set(records []Record) {
	z := &zones{map[string][]netip.Addr{}, map[string]bool{}, map[string]bool{}}
	for _, rec := range records {
		z.addresses[rec.Name] = append(z.addresses[rec.Name], rec.IP)
		z.apexes[parent(rec.Name)] = true
	}
	for name := range z.addresses {
		for n := strings.TrimPrefix(name, "*."); ; n = parent(n) {
			z.exists[n] = true
			if z.apexes[n] || n == "." {
				break
			}
		}
	}
	r.current.Store(z)
}

// Serve answers on the two sockets until Close, and owns them from now on.
func (r *Resolver) Serve(packets net.PacketConn, streams net.Listener) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return errors.Join(net.ErrClosed, packets.Close(), streams.Close())
	}
	for _, s := range []*mdns.Server{
		{PacketConn: packets, Handler: r, UDPSize: maxDatagram},
		{Listener: streams, Handler: r, ReadTimeout: 2 * time.Second, WriteTimeout: 2 * time.Second, IdleTimeout: func() time.Duration { return 5 * time.Second }, MaxTCPQueries: 64},
	} {
		started := make(chan error, 1)
		s.NotifyStartedFunc = func() { started <- nil }
		r.wait.Go(func() {
			if err := s.ActivateAndServe(); err != nil {
				select {
				case started <- err:
				default:
				}
			}
		})
		if err := <-started; err != nil {
			return fmt.Errorf("serving DNS: %w", err)
		}
		r.servers = append(r.servers, s)
	}
	return nil
}

// Close stops answering and waits for what is under way.
func (r *Resolver) Close() {
	r.mu.Lock()
	servers := r.servers
	r.servers, r.closed = nil, true
	r.mu.Unlock()
	for _, s := range servers {
		s.Shutdown() // fails only if already stopped
	}
	r.wait.Wait()
}

// ServeDNS answers one message. It implements the handler interface of miekg/dns.
func (r *Resolver) ServeDNS(w mdns.ResponseWriter, query *mdns.Msg) {
	reply := r.Answer(query)
	if _, datagram := w.RemoteAddr().(*net.UDPAddr); datagram {
		size := mdns.MinMsgSize
		if options := query.IsEdns0(); options != nil {
			size = min(max(size, int(options.UDPSize())), maxDatagram)
		}
		reply.Truncate(size)
	}
	w.WriteMsg(reply) // a client that went away is no concern of ours
}

// Answer makes the reply to a query.
func (r *Resolver) Answer(query *mdns.Msg) *mdns.Msg {
	reply := new(mdns.Msg)
	if len(query.Question) != 1 {
		return reply.SetRcode(query, mdns.RcodeFormatError)
	}
	reply.SetReply(query)
	if options := query.IsEdns0(); options != nil {
		reply.SetEdns0(maxDatagram, false)
	}
	q := query.Question[0]
	switch {
	case query.Opcode != mdns.OpcodeQuery:
		reply.Rcode = mdns.RcodeNotImplemented
		return reply
	case q.Qclass != mdns.ClassINET || q.Qtype == mdns.TypeAXFR || q.Qtype == mdns.TypeIXFR || q.Qtype == mdns.TypeANY:
		reply.Rcode = mdns.RcodeRefused
		return reply
	}
	r.current.Load().answer(reply, q)
	return reply
}

func (z *zones) answer(reply *mdns.Msg, q mdns.Question) {
	name := strings.ToLower(q.Name)
	apex, ok := z.apex(name)
	if !ok {
		reply.Rcode = mdns.RcodeRefused
		return
	}
	reply.Authoritative = true
	addresses, exists := z.find(name, apex)
	if !exists {
		reply.Rcode = mdns.RcodeNameError
	}
	if q.Qtype == mdns.TypeA {
		for _, ip := range addresses {
			// The owner keeps the spelling of the question, whose random case some clients check.
			reply.Answer = append(reply.Answer, &mdns.A{Hdr: header(q.Name, mdns.TypeA), A: ip.AsSlice()})
		}
	}
	if len(reply.Answer) == 0 {
		reply.Ns = []mdns.RR{&mdns.SOA{Hdr: header(apex, mdns.TypeSOA), Ns: apex, Mbox: "hostmaster." + apex,
			Serial: 1, Refresh: 3600, Retry: 300, Expire: 86400, Minttl: uint32(TTL / time.Second)}}
	}
}

// apex returns the closest zone that holds the name.
func (z *zones) apex(name string) (string, bool) {
	for n := name; n != "."; n = parent(n) {
		if z.apexes[n] {
			return n, true
		}
	}
	return "", false
}

// find returns the addresses of a name: its own, else those of the wildcard at its closest existing ancestor
// (RFC 4592 section 3.3.1). The name exists with no address when only names below it do.
func (z *zones) find(name, apex string) ([]netip.Addr, bool) {
	if own, ok := z.addresses[name]; ok {
		return own, true
	}
	if z.exists[name] || name == apex {
		return nil, true
	}
	for n := parent(name); ; n = parent(n) {
		if wild, ok := z.addresses["*."+n]; ok {
			return wild, true
		}
		if z.exists[n] || n == apex || n == "." {
			return nil, false
		}
	}
}

func header(name string, kind uint16) mdns.RR_Header {
	return mdns.RR_Header{Name: name, Rrtype: kind, Class: mdns.ClassINET, Ttl: uint32(TTL / time.Second)}
}

// parent removes the first label of an absolute name. Labels of queries may contain escaped dots; such names
// never equal a record's, wherever they are cut.
func parent(name string) string {
	if _, rest, ok := strings.Cut(name, "."); ok && rest != "" {
		return rest
	}
	return "."
}
