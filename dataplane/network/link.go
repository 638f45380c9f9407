package network

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"casemate.dev/dataplane/network/plan"
)

// link makes the point-to-point link between router and node, and the routes and neighbours over it. The pair is
// born with one end in each namespace, so that it never exists on the host. Neighbours are permanent and the
// router's end neither asks nor answers ARP: there is nothing to spoof.
func (w *work) link(router, node *os.File, a *plan.Attachment) error {
	outerHandle, err := handle(router)
	if err != nil {
		return err
	}
	defer outerHandle.Close()
	innerHandle, err := handle(node)
	if err != nil {
		return err
	}
	defer innerHandle.Close()
	outerEnd, innerEnd, err := w.pair(outerHandle, innerHandle, node, a)
	if err != nil {
		return err
	}

	// The node first: it can send only when the router's end is up.
	if err := w.addresses(innerHandle, innerEnd, unix.RT_SCOPE_UNIVERSE, []netip.Addr{a.IP}); err != nil {
		return err
	}
	if err := w.up(innerHandle, innerEnd); err != nil {
		return err
	}
	if err := w.neighbour(innerHandle, innerEnd, a.Gateway, a.RouterMAC[:]); err != nil {
		return err
	}
	onLink := netlink.Route{Dst: host(a.Gateway), Scope: unix.RT_SCOPE_LINK}
	byGateway := netlink.Route{Dst: &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}, Gw: a.Gateway.AsSlice()}
	if err := w.routes(innerHandle, innerEnd, onLink, byGateway); err != nil {
		return err
	}

	if outerEnd.Attrs().RawFlags&unix.IFF_NOARP == 0 {
		if err := outerHandle.LinkSetARPOff(outerEnd); err != nil {
			return fmt.Errorf("switching ARP off: %w", err)
		}
		w.did("switch ARP off on %s", a.Link)
	}
	if err := w.up(outerHandle, outerEnd); err != nil {
		return err
	}
	if err := w.neighbour(outerHandle, outerEnd, a.IP, a.MAC[:]); err != nil {
		return err
	}
	if err := w.routes(outerHandle, outerEnd, netlink.Route{Dst: host(a.IP), Scope: unix.RT_SCOPE_LINK}); err != nil {
		return err
	}
	return errors.Join(operational(outerHandle, a.Link), operational(innerHandle, inner))
}

const (
	carrierTries = 1000
	carrierPause = 2 * time.Millisecond
)

// operational waits until the kernel sends on a link: it brings the carrier up by itself, a moment after both ends are set
// up, and drops what is sent before. A caller's first packet must not be the one that is lost.
func operational(h *netlink.Handle, name string) error {
	for range carrierTries {
		l, err := h.LinkByName(name)
		if err != nil {
			return fmt.Errorf("finding link %s: %w", name, err)
		}
		if l.Attrs().OperState == netlink.OperUp {
			return nil
		}
		time.Sleep(carrierPause)
	}
	return fmt.Errorf("link %s has no carrier after %s", name, carrierTries*carrierPause)
}

// pair returns both ends of the planned link, making it anew unless exactly it exists.
func (w *work) pair(outer, inside *netlink.Handle, node *os.File, a *plan.Attachment) (netlink.Link, netlink.Link, error) {
	outerEnd, err := find(outer, a.Link)
	if err != nil {
		return nil, nil, err
	}
	innerEnd, err := find(inside, inner)
	if err != nil {
		return nil, nil, err
	}
	if outerEnd != nil && innerEnd != nil && isPair(outerEnd, innerEnd, a) {
		return outerEnd, innerEnd, nil
	}
	for _, end := range []struct {
		h *netlink.Handle
		l netlink.Link
	}{{outer, outerEnd}, {inside, innerEnd}} {
		if end.l == nil {
			continue
		}
		if err := end.h.LinkDel(end.l); err != nil && !errors.Is(err, unix.ENODEV) { // gone with the other end
			return nil, nil, fmt.Errorf("deleting stale link %s: %w", end.l.Attrs().Name, err)
		}
		w.did("delete stale link %s", end.l.Attrs().Name)
	}
	// What the address's former owner had open must not be continued by the new one.
	if _, err := outer.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, ofAddress(a.IP)); err != nil {
		return nil, nil, fmt.Errorf("forgetting connections of %s: %w", a.IP, err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = a.Link, mtu, a.RouterMAC[:]
	err = outer.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: inner, PeerHardwareAddr: a.MAC[:], PeerMTU: mtu,
		PeerNamespace: netlink.NsFd(int(node.Fd()))})
	if err != nil {
		return nil, nil, fmt.Errorf("creating link %s: %w", a.Link, err)
	}
	w.did("create link %s", a.Link)
	outerEnd, err = outer.LinkByName(a.Link)
	if err != nil {
		return nil, nil, fmt.Errorf("finding link %s: %w", a.Link, err)
	}
	innerEnd, err = inside.LinkByName(inner)
	if err != nil {
		return nil, nil, fmt.Errorf("finding link %s of the node: %w", inner, err)
	}
	return outerEnd, innerEnd, nil
}

func isPair(outer, inside netlink.Link, a *plan.Attachment) bool {
	o, i := outer.Attrs(), inside.Attrs()
	return outer.Type() == "veth" && inside.Type() == "veth" && o.ParentIndex == i.Index && i.ParentIndex == o.Index &&
		bytes.Equal(o.HardwareAddr, a.RouterMAC[:]) && bytes.Equal(i.HardwareAddr, a.MAC[:])
}

// find returns nil when the link does not exist.
func find(h *netlink.Handle, name string) (netlink.Link, error) {
	l, err := h.LinkByName(name)
	var absent netlink.LinkNotFoundError
	if errors.As(err, &absent) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("finding link %s: %w", name, err)
	}
	return l, nil
}

// neighbour pins the hardware address of the one neighbour on a link and removes any other.
func (w *work) neighbour(h *netlink.Handle, l netlink.Link, ip netip.Addr, mac net.HardwareAddr) error {
	have, err := h.NeighList(l.Attrs().Index, netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("listing neighbours: %w", err)
	}
	for _, n := range have {
		known, _ := netip.AddrFromSlice(n.IP.To4())
		if known == ip && n.State == netlink.NUD_PERMANENT && bytes.Equal(n.HardwareAddr, mac) {
			return nil
		}
	}
	err = h.NeighSet(&netlink.Neigh{LinkIndex: l.Attrs().Index, Family: netlink.FAMILY_V4, State: netlink.NUD_PERMANENT, IP: ip.AsSlice(), HardwareAddr: mac})
	if err != nil {
		return fmt.Errorf("setting neighbour %s: %w", ip, err)
	}
	w.did("set neighbour %s on %s", ip, l.Attrs().Name)
	return nil
}

// routes makes the IPv4 routes of the main table over a link equal to the list, adding in its order.
func (w *work) routes(h *netlink.Handle, l netlink.Link, want ...netlink.Route) error {
	have, err := h.RouteList(l, netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("listing routes: %w", err)
	}
	for _, r := range have {
		if known(r, want) {
			continue
		}
		if err := h.RouteDel(&r); err != nil {
			return fmt.Errorf("deleting route %s: %w", r.Dst, err)
		}
		w.did("delete route %s over %s", r.Dst, l.Attrs().Name)
	}
	for _, r := range want {
		if known(r, have) {
			continue
		}
		r.LinkIndex = l.Attrs().Index
		if err := h.RouteAdd(&r); err != nil {
			return fmt.Errorf("adding route %s: %w", r.Dst, err)
		}
		w.did("add route %s over %s", r.Dst, l.Attrs().Name)
	}
	return nil
}

func known(r netlink.Route, list []netlink.Route) bool {
	for _, k := range list {
		if k.Dst.String() == r.Dst.String() && k.Gw.Equal(r.Gw) && k.Scope == r.Scope {
			return true
		}
	}
	return false
}

// ofAddress matches tracked connections from or to an address.
type ofAddress netip.Addr

func (a ofAddress) MatchConntrackFlow(f *netlink.ConntrackFlow) bool {
	ip := net.IP(netip.Addr(a).AsSlice())
	return f.Forward.SrcIP.Equal(ip) || f.Forward.DstIP.Equal(ip) || f.Reverse.SrcIP.Equal(ip)
}
