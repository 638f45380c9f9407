package network

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	mdns "github.com/miekg/dns"
	vnetns "github.com/vishvananda/netns"

	datanet "casemate.dev/dataplane/network"
	"casemate.dev/resource"
)

// patience is how long a packet is waited for that must not arrive.
const patience = 300 * time.Millisecond

var selfTest = sync.OnceValue(datanet.SelfTest)

// newKernelHarness is a harness over the real data plane; it skips where networks cannot be built.
func newKernelHarness(t testing.TB) *harness {
	t.Helper()
	if testing.Short() {
		t.Skip("short: builds networks in the kernel")
	}
	if err := selfTest(); err != nil {
		t.Skip(err)
	}
	quiet := slog.New(slog.NewTextHandler(io.Discard, nil))
	plane := datanet.New(datanet.Config{Instance: t.TempDir(), Log: quiet})
	t.Cleanup(func() {
		if err := plane.Apply(context.Background(), nil); err != nil {
			t.Errorf("removing networks: %v", err)
		}
		plane.Close()
	})
	return newHarnessOn(t, plane)
}

// inside runs fn on a thread in a network namespace; sockets that fn makes itself belong there.
func inside(t testing.TB, path string, fn func() error) error {
	t.Helper()
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread dies with the goroutine
		ns, err := vnetns.GetFromPath(path)
		if err == nil {
			defer ns.Close()
			err = vnetns.Set(ns)
		}
		if err == nil {
			err = fn()
		}
		result <- err
	}()
	return <-result
}

func dialable(t testing.TB, path, to string) bool {
	return inside(t, path, func() error {
		c, err := net.DialTimeout("tcp4", to, patience)
		if err == nil {
			c.Close()
		}
		return err
	}) == nil
}

// resolve asks the network's resolver for an address.
func resolve(t *testing.T, path, name string) string {
	t.Helper()
	q := new(mdns.Msg).SetQuestion(name, mdns.TypeA)
	var answer *mdns.Msg
	err := inside(t, path, func() (err error) {
		c := mdns.Client{Timeout: 2 * time.Second}
		answer, _, err = c.Exchange(q, "168.63.129.16:53")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(answer.Answer) == 0 {
		return mdns.RcodeToString[answer.Rcode]
	}
	return answer.Answer[0].(*mdns.A).A.String()
}

// TestKernel drives the whole through documents, and looks at it from inside the networks.
func TestKernel(t *testing.T) {
	h := newKernelHarness(t)
	h.put(nsg1, `{"location":"local","properties":{"securityRules":[]}}`)
	h.put(net1, netBody(`"10.1.0.0/16"`, twoSubnets))
	net2 := strings.Replace(net1, "net1", "net2", 1)
	h.put(net2, netBody(`"10.1.0.0/16"`, `[{"name":"only","properties":{"addressPrefix":"10.1.0.0/24"}}]`))
	h.put(vault1, `{"location":"local"}`)
	h.put(pe1, autoPE(vault1, "vault"))
	machine := h.put(machine1, `{"location":"local","properties":{"subnet":{"id":"`+net1+`/subnets/training"}}}`).String("properties.namespacePath")
	neighbour := h.put(machine1+"2", `{"location":"local","properties":{"subnet":{"id":"`+net2+`/subnets/only"}}}`).String("properties.namespacePath")

	if got := resolve(t, machine, "kv1.vault.casemate.test."); got != "10.1.2.4" {
		t.Errorf("inside the vault's name is %s", got)
	}
	if got := resolve(t, neighbour, "kv1.vault.casemate.test."); got != "NXDOMAIN" {
		t.Errorf("in the neighbouring network the vault's name is %s", got)
	}
	if got := resolve(t, neighbour, "login.casemate.test."); got != "168.63.129.16" {
		t.Errorf("the token service is at %s", got)
	}
	if !dialable(t, machine, "10.1.2.4:8443") || !dialable(t, machine, "168.63.129.16:8443") {
		t.Error("the endpoint or the platform cannot be reached from inside")
	}
	for range 2 {
		o := <-h.origins
		if o.Kind != resource.OriginPrivate || o.Network != net1 || o.Subnet != net1+"/subnets/training" || o.Node != "" ||
			o.PrivateEndpoint != "" && (o.Target != vault1 || o.GroupID != "vault") || o.PrivateEndpoint == "" && o.GroupID != platformGroup {
			t.Errorf("origin: %+v", o)
		}
	}
	if dialable(t, neighbour, "10.1.2.4:8443") {
		t.Error("the endpoint can be reached from the neighbouring network")
	}
	at, err := h.p.Attach(t.Context(), "node-1", net1+"/subnets/training")
	h.check(err)
	if !dialable(t, at.NetNSPath, "169.254.169.254:80") {
		t.Error("the node has no instance metadata")
	}
	if o := <-h.origins; o.Kind != resource.OriginNode || o.Node != "node-1" {
		t.Errorf("origin of the node: %+v", o)
	}

	h.put(nsg1+"/securityRules/closed", `{"properties":{"priority":100,"direction":"Outbound","access":"Deny","protocol":"*","sourceAddressPrefix":"*","sourcePortRange":"*","destinationAddressPrefix":"10.1.2.0/24","destinationPortRange":"*"}}`)
	if dialable(t, machine, "10.1.2.4:8443") {
		t.Error("a security rule does not hold when the call returns")
	}
	h.delete(nsg1 + "/securityRules/closed")
	if !dialable(t, machine, "10.1.2.4:8443") {
		t.Error("a deleted security rule still holds")
	}
	h.delete(pe1)
	if dialable(t, machine, "10.1.2.4:8443") {
		t.Error("a deleted endpoint can be reached")
	}
	if got := resolve(t, machine, "kv1.vault.casemate.test."); got != "NXDOMAIN" {
		t.Errorf("after the endpoint was deleted the vault's name is %s", got)
	}
	h.check(h.p.Detach(t.Context(), "node-1"))
	if err := inside(t, at.NetNSPath, func() error { return nil }); err == nil {
		t.Error("the namespace of a detached node is still there")
	}
}

// BenchmarkAttach measures what a node waits for: address, namespace, rules and metadata listener, in a network with
// other nodes.
func BenchmarkAttach(b *testing.B) {
	for _, others := range []int{0, 8, 32} {
		b.Run(fmt.Sprintf("others=%d", others), func(b *testing.B) {
			h := newKernelHarness(b)
			h.put(nsg1, `{"location":"local"}`)
			h.put(net1, netBody(`"10.1.0.0/16"`, twoSubnets))
			for i := range others {
				_, err := h.p.Attach(b.Context(), fmt.Sprintf("other-%d", i), net1+"/subnets/training")
				h.check(err)
			}
			for b.Loop() {
				_, err := h.p.Attach(b.Context(), "node", net1+"/subnets/training")
				h.check(err)
				b.StopTimer()
				h.check(h.p.Detach(b.Context(), "node"))
				b.StartTimer()
			}
		})
	}
}
