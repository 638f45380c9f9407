package plan

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

// reservedAddresses is how many addresses of each subnet the platform keeps: network, gateway (.1), two more
// for the platform (.2, .3) and broadcast. [Azure Virtual Network FAQ]
const reservedAddresses = 5

// Room counts the addresses of a subnet.
type Room struct {
	Subnet   string
	Prefix   netip.Prefix
	Size     int // all addresses of the prefix
	Reserved int // kept by the platform
	Used     int
	Free     int
}

// ExhaustedError says that a subnet has fewer free addresses than were asked for.
type ExhaustedError struct {
	Room
	Wanted int
}

func (e *ExhaustedError) Error() string {
	return fmt.Sprintf("subnet %s (%s) has no room for %d more: %d addresses, of which %d are reserved by the platform, %d in use and %d free",
		e.Subnet, e.Prefix, e.Wanted, e.Size, e.Reserved, e.Used, e.Free)
}

// Survey counts a subnet's addresses; those of taken that lie outside it, or are reserved anyway, do not count.
func Survey(s Subnet, taken []netip.Addr) Room {
	used := map[netip.Addr]bool{}
	for _, a := range taken {
		if s.Prefix.Contains(a) && !reserved(s.Prefix, a) {
			used[a] = true
		}
	}
	size := 1 << (32 - s.Prefix.Bits())
	return Room{s.Name, s.Prefix, size, reservedAddresses, len(used), max(0, size-reservedAddresses-len(used))}
}

// Foresee returns an *ExhaustedError if the subnet cannot take count more addresses: ask it before
// a cluster is allowed to grow, not when its last node fails to start.
func Foresee(s Subnet, taken []netip.Addr, count int) error {
	if room := Survey(s, taken); room.Free < count {
		return &ExhaustedError{Room: room, Wanted: count}
	}
	return nil
}

// Allocate returns the lowest free address of the subnet, or an *ExhaustedError.
func Allocate(s Subnet, taken []netip.Addr) (netip.Addr, error) {
	if !s.Prefix.IsValid() || !s.Prefix.Addr().Is4() || s.Prefix.Bits() > 29 {
		return netip.Addr{}, fmt.Errorf("allocating an address: subnet %s has no usable prefix (%s)", s.Name, s.Prefix)
	}
	used := make(map[netip.Addr]bool, len(taken))
	for _, a := range taken {
		used[a] = true
	}
	// Among the first len(taken)+1 candidates at least one is free, so the loop is bounded by what is in use.
	for a := advance(s.Prefix.Masked().Addr(), 4); s.Prefix.Contains(a) && !reserved(s.Prefix, a); a = a.Next() {
		if !used[a] {
			return a, nil
		}
	}
	return netip.Addr{}, &ExhaustedError{Room: Survey(s, taken), Wanted: 1}
}

// reserved tells whether the platform keeps an address of the prefix: the first four and the last.
func reserved(p netip.Prefix, a netip.Addr) bool {
	return a.Compare(advance(p.Masked().Addr(), 4)) < 0 || a == last(p)
}

func last(p netip.Prefix) netip.Addr {
	return advance(p.Masked().Addr(), 1<<(32-p.Bits())-1)
}

// advance adds to an IPv4 address; callers stay inside a prefix, so it does not wrap.
func advance(a netip.Addr, by uint32) netip.Addr {
	b := a.As4()
	binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])+by)
	return netip.AddrFrom4(b)
}
