package dns_test

import (
	"net"
	"net/netip"
	"testing"

	mdns "github.com/miekg/dns"

	"casemate.dev/dataplane/network/dns"
)

var records = []dns.Record{
	{Name: "acct.blob.core.example.", IP: netip.MustParseAddr("10.0.0.4")},
	{Name: "two.vault.example.", IP: netip.MustParseAddr("10.0.0.5")},
	{Name: "two.vault.example.", IP: netip.MustParseAddr("10.0.0.6")},
	{Name: "*.ws.inference.example.", IP: netip.MustParseAddr("10.0.0.7")},
	{Name: "deep.x.vault.example.", IP: netip.MustParseAddr("10.0.0.8")},
}

func TestAnswer(t *testing.T) {
	r := dns.New()
	r.Set(records)
	for _, c := range []struct {
		name  string
		kind  uint16
		rcode int
		want  []string
	}{
		{"acct.blob.core.example.", mdns.TypeA, mdns.RcodeSuccess, []string{"10.0.0.4"}},
		{"AcCt.BLOB.core.example.", mdns.TypeA, mdns.RcodeSuccess, []string{"10.0.0.4"}},
		{"two.vault.example.", mdns.TypeA, mdns.RcodeSuccess, []string{"10.0.0.5", "10.0.0.6"}},
		{"acct.blob.core.example.", mdns.TypeAAAA, mdns.RcodeSuccess, nil},
		{"other.blob.core.example.", mdns.TypeA, mdns.RcodeNameError, nil},
		{"below.acct.blob.core.example.", mdns.TypeA, mdns.RcodeNameError, nil},
		{"x.vault.example.", mdns.TypeA, mdns.RcodeSuccess, nil}, // exists: something is below it
		{"blob.core.example.", mdns.TypeA, mdns.RcodeSuccess, nil},
		{"any.ws.inference.example.", mdns.TypeA, mdns.RcodeSuccess, []string{"10.0.0.7"}},
		{"a.b.ws.inference.example.", mdns.TypeA, mdns.RcodeSuccess, []string{"10.0.0.7"}},
		{"ws.inference.example.", mdns.TypeA, mdns.RcodeSuccess, nil},
		{"core.example.", mdns.TypeA, mdns.RcodeRefused, nil},
		{"example.com.", mdns.TypeA, mdns.RcodeRefused, nil},
		{".", mdns.TypeNS, mdns.RcodeRefused, nil},
		{"blob.core.example.", mdns.TypeAXFR, mdns.RcodeRefused, nil},
		{"acct.blob.core.example.", mdns.TypeANY, mdns.RcodeRefused, nil},
	} {
		reply := r.Answer(new(mdns.Msg).SetQuestion(c.name, c.kind))
		var got []string
		for _, rr := range reply.Answer {
			got = append(got, rr.(*mdns.A).A.String())
		}
		if reply.Rcode != c.rcode || len(got) != len(c.want) {
			t.Errorf("%s %s: %s %v, want %s %v", c.name, mdns.TypeToString[c.kind], mdns.RcodeToString[reply.Rcode], got, mdns.RcodeToString[c.rcode], c.want)
			continue
		}
		for i := range got {
			if got[i] != c.want[i] {
				t.Errorf("%s: %v, want %v", c.name, got, c.want)
			}
		}
		if reply.Rcode != mdns.RcodeRefused && len(got) == 0 && len(reply.Ns) != 1 {
			t.Errorf("%s: negative answer without SOA", c.name)
		}
	}
	r.Set(nil)
	if reply := r.Answer(new(mdns.Msg).SetQuestion(records[0].Name, mdns.TypeA)); reply.Rcode != mdns.RcodeRefused {
		t.Errorf("after Set(nil): %s", mdns.RcodeToString[reply.Rcode])
	}
}

func TestServe(t *testing.T) {
	r := dns.New()
	r.Set(records)
	packets, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	streams, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Serve(packets, streams); err != nil {
		t.Fatal(err)
	}
	for network, addr := range map[string]string{"udp": packets.LocalAddr().String(), "tcp": streams.Addr().String()} {
		reply, _, err := (&mdns.Client{Net: network}).Exchange(new(mdns.Msg).SetQuestion(records[0].Name, mdns.TypeA), addr)
		if err != nil || len(reply.Answer) != 1 {
			t.Errorf("%s: %v %v", network, reply, err)
		}
	}
	r.Close()
	if _, err := net.Dial("tcp4", streams.Addr().String()); err == nil {
		t.Error("still listening after Close")
	}
}

// FuzzAnswer: whatever a node sends, the answer packs, and names only what the records hold.
func FuzzAnswer(f *testing.F) {
	for _, r := range records {
		wire, _ := new(mdns.Msg).SetQuestion(r.Name, mdns.TypeA).Pack()
		f.Add(wire)
	}
	f.Add([]byte{0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 3, 'a', '.', 'b', 0, 0, 1, 0, 1})
	r := dns.New()
	r.Set(records)
	known := map[string]bool{}
	for _, rec := range records {
		known[rec.IP.String()] = true
	}
	f.Fuzz(func(t *testing.T, wire []byte) {
		query := new(mdns.Msg)
		if query.Unpack(wire) != nil {
			return
		}
		reply := r.Answer(query)
		if _, err := reply.Pack(); err != nil {
			t.Fatalf("answer does not pack: %v\n%v", err, reply)
		}
		for _, rr := range reply.Answer {
			if a, ok := rr.(*mdns.A); !ok || !known[a.A.String()] {
				t.Fatalf("foreign answer %v", rr)
			}
		}
	})
}
