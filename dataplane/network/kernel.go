package network

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	vnetns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"casemate.dev/dataplane/network/netns"
	"casemate.dev/dataplane/network/plan"
)

// inner is the name of a node's own interface.
const inner = "eth0"

const mtu = 1500

// setting is one sysctl, below /proc/sys/net of the namespace.
type setting struct{ path, value string }

// routerSettings, in order: switching ip_forward resets others. tcp_fwmark_accept makes an accepted socket carry the
// mark of the packet that opened it, tcp_loose=0 keeps connection tracking from adopting streams it has not
// seen begin. [kernel Documentation/networking/ip-sysctl.rst, nf_conntrack-sysctl.rst]
var routerSettings = []setting{
	{"ipv6/conf/all/disable_ipv6", "1"},
	{"ipv6/conf/default/disable_ipv6", "1"},
	{"ipv4/ip_forward", "1"},
	{"ipv4/conf/all/rp_filter", "1"},
	{"ipv4/conf/all/send_redirects", "0"},
	{"ipv4/conf/default/send_redirects", "0"},
	{"ipv4/conf/all/accept_redirects", "0"},
	{"ipv4/conf/default/accept_redirects", "0"},
	{"ipv4/conf/all/accept_source_route", "0"},
	{"ipv4/tcp_fwmark_accept", "1"},
	{"netfilter/nf_conntrack_tcp_loose", "0"},
}

var nodeSettings = []setting{
	{"ipv6/conf/all/disable_ipv6", "1"},
	{"ipv6/conf/default/disable_ipv6", "1"},
	{"ipv4/ip_forward", "0"},
	{"ipv4/conf/all/accept_redirects", "0"},
	{"ipv4/conf/default/accept_redirects", "0"},
}

// work is one run of Apply: it changes the kernel and remembers what it changed.
type work struct {
	log     *slog.Logger
	changes []string
	fresh   map[string]bool // namespaces made in this run; sockets opened in their predecessors are dead
}

func (w *work) did(format string, args ...any) {
	change := fmt.Sprintf(format, args...)
	w.changes = append(w.changes, change)
	w.log.Debug("network: " + change)
}

func (w *work) namespace(name string) error {
	made, err := netns.Create(name)
	if made {
		w.fresh[name] = true
		w.did("create namespace %s", name)
	}
	return err
}

// remove empties a namespace before unmounting it: should anybody keep it alive, it leads nowhere.
func (w *work) remove(name string) error {
	if netns.Exists(name) {
		err := inspect(name, func(ns *os.File) error { return w.removeLinks(ns, nil) })
		if err != nil {
			return fmt.Errorf("emptying namespace %s: %w", name, err)
		}
	}
	if err := netns.Remove(name); err != nil {
		return err
	}
	w.did("remove namespace %s", name)
	return nil
}

// removeLinks removes the veth links that the network does not plan; with nil, all of them.
func (w *work) removeLinks(ns *os.File, network *plan.Network) error {
	h, err := handle(ns)
	if err != nil {
		return err
	}
	defer h.Close()
	links, err := h.LinkList()
	if err != nil {
		return fmt.Errorf("listing links: %w", err)
	}
	for _, l := range links {
		name := l.Attrs().Name
		planned := network != nil && slices.ContainsFunc(network.Attachments, func(a plan.Attachment) bool { return a.Link == name })
		if l.Type() != "veth" || planned {
			continue
		}
		if err := h.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) { // gone with its other end
			return fmt.Errorf("deleting link %s: %w", name, err)
		}
		w.did("delete link %s in %s", name, filepath.Base(ns.Name()))
	}
	return nil
}

// settings writes the sysctls that differ.
func (w *work) settings(ns *os.File, list []setting) error {
	return netns.Do(ns, func() error { // /proc/sys/net is that of the thread which opens it
		for _, s := range list {
			path := "/proc/sys/net/" + s.path
			now, err := os.ReadFile(path)
			if errors.Is(err, os.ErrNotExist) && strings.HasPrefix(s.path, "ipv6/") {
				continue // a kernel without IPv6 has none to disable
			}
			if err != nil {
				return fmt.Errorf("reading setting: %w", err)
			}
			if string(bytes.TrimSpace(now)) == s.value {
				continue
			}
			if err := os.WriteFile(path, []byte(s.value), 0); err != nil {
				return fmt.Errorf("writing setting: %w", err)
			}
			w.did("set %s=%s in %s", s.path, s.value, filepath.Base(ns.Name()))
		}
		return nil
	})
}

// loopback brings lo up with 127.0.0.1/8 and exactly the given addresses. host: of host scope, never a source elsewhere.
func (w *work) loopback(ns *os.File, addresses []netip.Addr, host bool) error {
	h, err := handle(ns)
	if err != nil {
		return err
	}
	defer h.Close()
	lo, err := h.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("finding loopback: %w", err)
	}
	if err := w.up(h, lo); err != nil {
		return err
	}
	scope := unix.RT_SCOPE_UNIVERSE
	if host {
		scope = unix.RT_SCOPE_HOST
	}
	return w.addresses(h, lo, scope, addresses)
}

// addresses makes the IPv4 addresses of a link equal to the list, each a /32; loopback's own 127.0.0.1/8 stays.
func (w *work) addresses(h *netlink.Handle, l netlink.Link, scope int, want []netip.Addr) error {
	have, err := h.AddrList(l, netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("listing addresses: %w", err)
	}
	present := map[netip.Addr]bool{}
	for _, a := range have {
		ip, _ := netip.AddrFromSlice(a.IP.To4())
		ones, _ := a.Mask.Size()
		if ip.IsLoopback() && l.Attrs().Name == "lo" {
			continue
		}
		if ones == 32 && a.Scope == scope && slices.Contains(want, ip) {
			present[ip] = true
			continue
		}
		if err := h.AddrDel(l, &a); err != nil {
			return fmt.Errorf("deleting address %s: %w", a.IPNet, err)
		}
		w.did("delete address %s of %s", a.IPNet, l.Attrs().Name)
	}
	for _, ip := range want {
		if present[ip] {
			continue
		}
		if err := h.AddrAdd(l, &netlink.Addr{IPNet: host(ip), Scope: scope}); err != nil {
			return fmt.Errorf("adding address %s: %w", ip, err)
		}
		w.did("add address %s to %s", ip, l.Attrs().Name)
	}
	return nil
}

func (w *work) up(h *netlink.Handle, l netlink.Link) error {
	if l.Attrs().Flags&net.FlagUp != 0 {
		return nil
	}
	if err := h.LinkSetUp(l); err != nil {
		return fmt.Errorf("setting %s up: %w", l.Attrs().Name, err)
	}
	w.did("set %s up", l.Attrs().Name)
	return nil
}

// handle opens a netlink socket inside the namespace.
func handle(ns *os.File) (*netlink.Handle, error) {
	h, err := netlink.NewHandleAt(vnetns.NsHandle(ns.Fd()), unix.NETLINK_ROUTE, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("opening netlink in %s: %w", ns.Name(), err)
	}
	return h, nil
}

func host(ip netip.Addr) *net.IPNet {
	return &net.IPNet{IP: ip.AsSlice(), Mask: net.CIDRMask(32, 32)}
}
