package nft

import (
	"encoding/binary"
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

var hooks = [...]struct {
	number   *nftables.ChainHook
	priority *nftables.ChainPriority
}{
	Prerouting: {nftables.ChainHookPrerouting, nftables.ChainPriorityRaw},
	Input:      {nftables.ChainHookInput, nftables.ChainPriorityFilter},
	Forward:    {nftables.ChainHookForward, nftables.ChainPriorityFilter},
	Output:     {nftables.ChainHookOutput, nftables.ChainPriorityFilter},
}

// encoder turns rules into expressions, putting lists of more than one item into named sets shared by content.
type encoder struct {
	conn  *nftables.Conn
	table *nftables.Table
	sets  map[string]*nftables.Set
}

// encode queues the whole ruleset on the connection. Chains come first, because rules jump to them.
func encode(conn *nftables.Conn, table *nftables.Table, r Ruleset) error {
	e := &encoder{conn: conn, table: table, sets: map[string]*nftables.Set{}}
	chains := make([]*nftables.Chain, len(r.Chains))
	for i, c := range r.Chains {
		chains[i] = &nftables.Chain{Name: c.Name, Table: table}
		if c.Hook != NoHook {
			policy := nftables.ChainPolicyDrop
			chains[i].Type = nftables.ChainTypeFilter
			chains[i].Hooknum, chains[i].Priority, chains[i].Policy = hooks[c.Hook].number, hooks[c.Hook].priority, &policy
		}
		conn.AddChain(chains[i])
	}
	for i, c := range r.Chains {
		for _, rule := range c.Rules {
			exprs, err := e.rule(rule)
			if err != nil {
				return fmt.Errorf("chain %s, rule %q: %w", c.Name, rule.Comment, err)
			}
			stamp := userdata.AppendString(nil, userdata.TypeComment, rule.stamp(c.Name))
			conn.AddRule(&nftables.Rule{Table: table, Chain: chains[i], Exprs: exprs, UserData: stamp})
		}
	}
	return nil
}

func (e *encoder) rule(r Rule) ([]expr.Any, error) {
	m := r.Match
	var out []expr.Any
	if m.NotIPv4 {
		out = append(out, load(expr.MetaKeyNFPROTO), compare(expr.CmpOpNeq, []byte{unix.NFPROTO_IPV4}))
	}
	if m.In != "" {
		out = append(out, load(expr.MetaKeyIIFNAME), compare(expr.CmpOpEq, interfaceName(m.In)))
	}
	if m.Out != "" {
		out = append(out, load(expr.MetaKeyOIFNAME), compare(expr.CmpOpEq, interfaceName(m.Out)))
	}
	if m.States != 0 {
		out = append(out, &expr.Ct{Key: expr.CtKeySTATE, Register: 1},
			&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(uint32(m.States)), Xor: make([]byte, 4)},
			compare(expr.CmpOpNeq, make([]byte, 4)))
	}
	if len(m.Sources)+len(m.Destinations)+len(m.NotDestinations) > 0 {
		out = append(out, load(expr.MetaKeyNFPROTO), compare(expr.CmpOpEq, []byte{unix.NFPROTO_IPV4}))
	}
	// Offsets in the IPv4 header, RFC 791 section 3.1: source 12, destination 16.
	steps := []struct {
		payload expr.Payload
		keys    []keyRange
		kind    nftables.SetDatatype
		invert  bool
	}{
		{network(12), addresses(m.Sources), nftables.TypeIPAddr, false},
		{network(16), addresses(m.Destinations), nftables.TypeIPAddr, false},
		{network(16), addresses(m.NotDestinations), nftables.TypeIPAddr, true},
	}
	for _, s := range steps {
		if len(s.keys) > 0 {
			found, err := e.among(s.keys, s.kind, s.invert)
			if err != nil {
				return nil, err
			}
			out = append(out, &s.payload, found)
		}
	}
	transport, err := e.transport(m)
	if err != nil {
		return nil, err
	}
	return append(append(out, transport...), verdict(r)...), nil
}

func (e *encoder) transport(m Match) ([]expr.Any, error) {
	protocols := m.Protocols
	ported := len(m.SourcePorts)+len(m.DestinationPorts) > 0
	if ported && len(protocols) == 0 {
		protocols = []uint8{unix.IPPROTO_TCP, unix.IPPROTO_UDP}
	}
	var out []expr.Any
	if len(protocols) > 0 {
		keys := make([]keyRange, len(protocols))
		for i, p := range protocols {
			if ported && p != unix.IPPROTO_TCP && p != unix.IPPROTO_UDP {
				return nil, fmt.Errorf("protocol %d has no ports", p)
			}
			keys[i] = keyRange{[]byte{p}, []byte{p}}
		}
		found, err := e.among(keys, nftables.TypeInetProto, false)
		if err != nil {
			return nil, err
		}
		out = append(out, load(expr.MetaKeyL4PROTO), found)
	}
	// RFC 9293 section 3.1 and RFC 768: both headers begin with source and destination port.
	for offset, list := range [][]PortRange{m.SourcePorts, m.DestinationPorts} {
		if len(list) == 0 {
			continue
		}
		found, err := e.among(portKeys(list), nftables.TypeInetService, false)
		if err != nil {
			return nil, err
		}
		payload := expr.Payload{Base: expr.PayloadBaseTransportHeader, Offset: uint32(2 * offset), Len: 2, DestRegister: 1}
		out = append(out, &payload, found)
	}
	return out, nil
}

// keyRange is a closed interval of big-endian keys of equal length.
type keyRange struct{ first, last []byte }

// among tests register 1: one interval by comparison, several by a set lookup.
func (e *encoder) among(keys []keyRange, kind nftables.SetDatatype, invert bool) (expr.Any, error) {
	if len(keys) == 1 {
		op := expr.CmpOpEq
		if invert {
			op = expr.CmpOpNeq
		}
		if string(keys[0].first) == string(keys[0].last) {
			return compare(op, keys[0].first), nil
		}
		return &expr.Range{Op: op, Register: 1, FromData: keys[0].first, ToData: keys[0].last}, nil
	}
	set, err := e.set(keys, kind)
	if err != nil {
		return nil, err
	}
	return &expr.Lookup{SourceRegister: 1, SetName: set.Name, SetID: set.ID, Invert: invert}, nil
}

// set queues a named set once per content. Elements travel in chunks: one netlink attribute holds at most 64 KiB.
func (e *encoder) set(keys []keyRange, kind nftables.SetDatatype) (*nftables.Set, error) {
	const chunk = 512
	name := "s" + digest(fmt.Sprint(kind.Name, keys))
	if s, ok := e.sets[name]; ok {
		return s, nil
	}
	interval := false
	for _, k := range keys {
		interval = interval || string(k.first) != string(k.last)
	}
	s := &nftables.Set{Table: e.table, Name: name, ID: uint32(len(e.sets) + 1), KeyType: kind, Interval: interval}
	var elements []nftables.SetElement
	for _, k := range keys {
		elements = append(elements, nftables.SetElement{Key: k.first})
		if !interval {
			continue
		}
		// The kernel wants half-open intervals; one that reaches the last key stays open.
		if end, ok := successor(k.last); ok {
			elements = append(elements, nftables.SetElement{Key: end, IntervalEnd: true})
		}
	}
	if err := e.conn.AddSet(s, nil); err != nil {
		return nil, err
	}
	for len(elements) > 0 {
		n := min(chunk, len(elements))
		if err := e.conn.SetAddElements(s, elements[:n]); err != nil {
			return nil, err
		}
		elements = elements[n:]
	}
	e.sets[name] = s
	return s, nil
}

func successor(key []byte) ([]byte, bool) {
	next := append([]byte(nil), key...)
	for i := len(next) - 1; i >= 0; i-- {
		next[i]++
		if next[i] != 0 {
			return next, true
		}
	}
	return nil, false
}

func verdict(r Rule) []expr.Any {
	var out []expr.Any
	if r.Count {
		out = append(out, &expr.Counter{})
	}
	if r.Mark != 0 {
		out = append(out, &expr.Immediate{Register: 1, Data: binaryutil.NativeEndian.PutUint32(r.Mark)},
			&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: 1})
	}
	v := &expr.Verdict{Kind: expr.VerdictDrop}
	switch r.Verdict {
	case Accept:
		v.Kind = expr.VerdictAccept
	case Return:
		v.Kind = expr.VerdictReturn
	case Jump:
		v.Kind, v.Chain = expr.VerdictJump, r.Chain
	}
	return append(out, v)
}

func load(key expr.MetaKey) expr.Any { return &expr.Meta{Key: key, Register: 1} }

func compare(op expr.CmpOp, data []byte) expr.Any {
	return &expr.Cmp{Op: op, Register: 1, Data: data}
}

func network(offset uint32) expr.Payload {
	return expr.Payload{Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4, DestRegister: 1}
}

func interfaceName(name string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return b
}

func addresses(list []Range) []keyRange {
	keys := make([]keyRange, len(list))
	for i, r := range list {
		keys[i] = keyRange{r.First.AsSlice(), r.Last.AsSlice()}
	}
	return keys
}

func portKeys(list []PortRange) []keyRange {
	keys := make([]keyRange, len(list))
	for i, r := range list {
		keys[i] = keyRange{binary.BigEndian.AppendUint16(nil, r.First), binary.BigEndian.AppendUint16(nil, r.Last)}
	}
	return keys
}
