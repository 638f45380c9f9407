// Package nft loads a small, closed form of packet filter into the nftables of one network namespace.
//
// A Ruleset is plain data: chains of rules, each rule one conjunction of matches and a verdict. Package network renders
// it from a plan; its text form stands in golden files, and a test there evaluates it packet by packet. This package
// only encodes: Load replaces the whole table in one transaction, so that no packet ever meets half a ruleset, and
// Matches tells whether the kernel still holds exactly what was loaded (each rule carries a digest of itself).
//
// Every base chain drops what no rule accepts, and IPv6 never matches an address. The kernel is trusted; whoever has
// CAP_NET_ADMIN over the namespace can change rules behind our back, and nobody inside a node has it.
// It does not decide anything, does not know NSGs, and does no NAT. [nftables: kernel include/uapi/linux/netfilter/nf_tables.h]
package nft

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strings"
)

// A Ruleset is one table of the inet family.
type Ruleset struct {
	Table  string
	Chains []Chain
}

// A Chain is a base chain with policy drop if it has a hook, otherwise the target of jumps.
type Chain struct {
	Name  string
	Hook  Hook
	Rules []Rule
}

// A Hook is where a base chain meets packets; the zero value means none.
type Hook int

// The hooks in use. Prerouting runs before connection tracking (priority raw), the others at priority filter.
const (
	NoHook Hook = iota
	Prerouting
	Input
	Forward
	Output
)

// A Rule applies its verdict to packets that satisfy all of Match. Rules with Count have a counter.
type Rule struct {
	Comment string // at most 100 bytes are kept; read back by Counters
	Match   Match
	Verdict Verdict
	Chain   string // for Jump
	Count   bool
	Mark    uint32 // set on the packet if not zero
}

// A Verdict ends a rule.
type Verdict int

// The verdicts. The zero value drops.
const (
	Drop Verdict = iota
	Accept
	Return
	Jump
)

// A Match is a conjunction; a zero field matches everything. Addresses are IPv4 and match no IPv6 packet;
// ports match TCP and UDP only. Lists are sorted and disjoint.
type Match struct {
	NotIPv4          bool // matches packets of any other network protocol
	In, Out          string
	States           State
	Sources          []Range
	Destinations     []Range
	NotDestinations  []Range
	Protocols        []uint8
	SourcePorts      []PortRange
	DestinationPorts []PortRange
}

// A Range is a closed interval of IPv4 addresses.
type Range struct{ First, Last netip.Addr }

// A PortRange is a closed interval of ports.
type PortRange struct{ First, Last uint16 }

// State is a set of connection tracking states.
type State uint32

// Connection tracking states. [enum ip_conntrack_info as seen by nft_ct]
const (
	Invalid     State = 1
	Established State = 2
	Related     State = 4
	New         State = 8
)

// Host is the range of one address.
func Host(a netip.Addr) Range { return Range{a, a} }

var (
	hookNames    = [...]string{"", "prerouting", "input", "forward", "output"}
	verdictNames = [...]string{"drop", "accept", "return", "jump"}
)

// String is the ruleset in words close to those of nft(8).
func (r Ruleset) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "table inet %s\n", r.Table)
	for _, c := range r.Chains {
		fmt.Fprintf(&b, "  chain %s", c.Name)
		if c.Hook != NoHook {
			fmt.Fprintf(&b, " hook %s policy drop", hookNames[c.Hook])
		}
		b.WriteString("\n")
		for _, rule := range c.Rules {
			fmt.Fprintf(&b, "    %s\n", rule)
		}
	}
	return b.String()
}

func (r Rule) String() string {
	words := r.Match.words()
	if r.Count {
		words = append(words, "counter")
	}
	if r.Mark != 0 {
		words = append(words, fmt.Sprintf("mark set %#x", r.Mark))
	}
	words = append(words, verdictNames[r.Verdict])
	if r.Verdict == Jump {
		words = append(words, r.Chain)
	}
	if r.Comment != "" {
		words = append(words, fmt.Sprintf("comment %q", r.Comment))
	}
	return strings.Join(words, " ")
}

func (m Match) words() []string {
	var words []string
	add := func(present bool, format string, args ...any) {
		if present {
			words = append(words, fmt.Sprintf(format, args...))
		}
	}
	add(m.NotIPv4, "nfproto != ipv4")
	add(m.In != "", "iifname %s", m.In)
	add(m.Out != "", "oifname %s", m.Out)
	add(m.States != 0, "ct state %s", m.States)
	add(len(m.Sources) > 0, "ip saddr %s", list(m.Sources))
	add(len(m.Destinations) > 0, "ip daddr %s", list(m.Destinations))
	add(len(m.NotDestinations) > 0, "ip daddr != %s", list(m.NotDestinations))
	add(len(m.Protocols) > 0, "l4proto %s", list(m.Protocols))
	add(len(m.SourcePorts) > 0, "th sport %s", list(m.SourcePorts))
	add(len(m.DestinationPorts) > 0, "th dport %s", list(m.DestinationPorts))
	return words
}

// String lists the states in the order of their bits.
func (s State) String() string {
	var words []string
	for _, x := range [...]struct {
		bit  State
		name string
	}{{Invalid, "invalid"}, {Established, "established"}, {Related, "related"}, {New, "new"}} {
		if s&x.bit != 0 {
			words = append(words, x.name)
		}
	}
	return strings.Join(words, ",")
}

func (r Range) String() string     { return interval(r.First, r.Last) }
func (r PortRange) String() string { return interval(r.First, r.Last) }

func interval[T comparable](first, last T) string {
	if first == last {
		return fmt.Sprint(first)
	}
	return fmt.Sprintf("%v-%v", first, last)
}

func list[T any](items []T) string {
	words := make([]string, len(items))
	for i, v := range items {
		words[i] = fmt.Sprint(v)
	}
	if len(words) == 1 {
		return words[0]
	}
	return "{ " + strings.Join(words, ", ") + " }"
}

// stamp is the comment the kernel keeps with a rule: the readable part, then a digest of the whole rule and its
// place, by which Matches recognises it.
func (r Rule) stamp(chain string) string {
	comment := r.Comment
	if len(comment) > 100 {
		comment = comment[:100]
	}
	return comment + " #" + digest(chain+"\x00"+r.String())
}

func digest(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:8])
}
