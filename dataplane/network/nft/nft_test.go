package nft_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"casemate.dev/dataplane/network/nft"
)

// namespace makes a network namespace that lives as long as the returned file.
func namespace(t *testing.T) *os.File {
	t.Helper()
	made := make(chan error, 1)
	var f *os.File
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			f, err = os.Open("/proc/thread-self/ns/net")
		}
		made <- err
	}()
	if err := <-made; errors.Is(err, unix.EPERM) {
		t.Skip("needs root: loads packet filters in a network namespace")
	} else if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// large has sets that need several messages, and reach the last address and port.
func large() nft.Ruleset {
	var ranges []nft.Range
	for i := range 4000 {
		ranges = append(ranges, nft.Range{
			First: netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 4}),
			Last:  netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), byte(4 + i%200)}),
		})
	}
	ranges = append(ranges, nft.Range{First: netip.MustParseAddr("255.255.255.0"), Last: netip.MustParseAddr("255.255.255.255")})
	rules := []nft.Rule{
		{Match: nft.Match{In: "lo"}, Verdict: nft.Accept},
		{Match: nft.Match{NotIPv4: true}, Count: true, Comment: "not IPv4"},
		{Match: nft.Match{States: nft.Established | nft.Related, Out: "lo"}, Verdict: nft.Accept, Mark: 7},
		{Match: nft.Match{Sources: ranges, NotDestinations: ranges[:2]}, Verdict: nft.Jump, Chain: "more"},
	}
	var more []nft.Rule
	for i := range 1500 {
		more = append(more, nft.Rule{Comment: fmt.Sprintf("rule #%d", i), Count: true, Match: nft.Match{
			Destinations:     []nft.Range{nft.Host(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}))},
			DestinationPorts: []nft.PortRange{{First: 1, Last: uint16(i + 1)}, {First: 60000, Last: 65535}},
		}})
	}
	return nft.Ruleset{Table: "casemate", Chains: []nft.Chain{{Name: "forward", Hook: nft.Forward, Rules: rules}, {Name: "more", Rules: more}}}
}

func TestLoadAndMatch(t *testing.T) {
	ns := namespace(t)
	rules := large()
	if same, err := nft.Matches(ns, rules); err != nil || same {
		t.Fatalf("an empty namespace matches: %v %v", same, err)
	}
	for range 2 { // loading again replaces
		if err := nft.Load(ns, rules); err != nil {
			t.Fatal(err)
		}
		if same, err := nft.Matches(ns, rules); err != nil || !same {
			t.Fatalf("what was loaded does not match: %v %v", same, err)
		}
	}
	counters, err := nft.Counters(ns, rules.Table)
	if err != nil || len(counters) != 1501 || counters[0].Rule != "not IPv4" || counters[1500].Rule != "rule #1499" {
		t.Fatalf("counters: %d %v", len(counters), err)
	}
	for name, change := range map[string]func(*nft.Ruleset){
		"one port":     func(r *nft.Ruleset) { r.Chains[1].Rules[700].Match.DestinationPorts[0].Last++ },
		"one verdict":  func(r *nft.Ruleset) { r.Chains[1].Rules[700].Verdict = nft.Accept },
		"one mark":     func(r *nft.Ruleset) { r.Chains[0].Rules[2].Mark++ },
		"one address":  func(r *nft.Ruleset) { r.Chains[0].Rules[3].Match.Sources = r.Chains[0].Rules[3].Match.Sources[1:] },
		"one rule":     func(r *nft.Ruleset) { r.Chains[1].Rules = r.Chains[1].Rules[1:] },
		"order":        func(r *nft.Ruleset) { l := r.Chains[1].Rules; l[0], l[1] = l[1], l[0] },
		"one chain":    func(r *nft.Ruleset) { r.Chains = append(r.Chains, nft.Chain{Name: "extra"}) },
		"another hook": func(r *nft.Ruleset) { r.Chains[0].Hook = nft.Input },
		"table":        func(r *nft.Ruleset) { r.Table = "other" },
	} {
		changed := large()
		change(&changed)
		if same, err := nft.Matches(ns, changed); err != nil || same {
			t.Errorf("%s changed, and the kernel still matches: %v %v", name, same, err)
		}
	}
}

func TestRefusesPortsOfPortlessProtocol(t *testing.T) {
	ns := namespace(t)
	err := nft.Load(ns, nft.Ruleset{Table: "x", Chains: []nft.Chain{{Name: "input", Hook: nft.Input, Rules: []nft.Rule{
		{Match: nft.Match{Protocols: []uint8{1}, DestinationPorts: []nft.PortRange{{First: 1, Last: 1}}}},
	}}}})
	if err == nil {
		t.Error("ICMP with ports was encoded")
	}
}
