package fleet

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/hex"
	"net/netip"
	"sync"
)

// Identity is whom a node may be; it has the fields of the identity plane's NodeIdentity.
type Identity struct {
	Default    string   // ARM id of the managed identity it is unless it asks for another
	Identities []string // ARM ids of all that it may be
	Run        string   // run id of the job; for a deployment its ARM id
	OnBehalfOf string   // object id of the person who submitted the job, or made the deployment
	Secret     string   // what the node must present to its metadata service, the value of IDENTITY_HEADER
}

// Registry says which nodes live and who they are. It exists in memory only: a node does not outlive the server, so no
// identity does either.
type Registry struct {
	mu    sync.RWMutex // guards nodes
	nodes map[string]entry
}

// entry is a living node.
type entry struct {
	Identity
	subnet  string // ARM id; "" before it is attached
	address netip.Addr
}

// NewRegistry makes an empty register.
func NewRegistry() *Registry { return &Registry{nodes: map[string]entry{}} }

// NodeAlive says whether the node exists now: tokens handed to one that does not are dead.
func (r *Registry) NodeAlive(node string) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	_, ok := r.nodes[node]
	return ok
}

// NodeIdentity is whom the node may be.
func (r *Registry) NodeIdentity(node string) (Identity, bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	e, ok := r.nodes[node]
	return e.Identity, ok && e.Default != ""
}

// Place is where a node is attached.
func (r *Registry) Place(node string) (subnet string, address netip.Addr, ok bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	e := r.nodes[node]
	return e.subnet, e.address, e.subnet != ""
}

// CheckSecret compares what a node presented to its metadata service, in constant time.
func (r *Registry) CheckSecret(node, presented string) bool {
	id, ok := r.NodeIdentity(node)
	return ok && subtle.ConstantTimeCompare([]byte(id.Secret), []byte(presented)) == 1
}

// reserve makes the node alive, still without an identity.
func (r *Registry) reserve(node string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.nodes[node] = entry{}
}

func (r *Registry) set(node string, id Identity) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.nodes[node] = entry{Identity: id}
}

func (r *Registry) attach(node, subnet string, address netip.Addr) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if e, ok := r.nodes[node]; ok {
		e.subnet, e.address = subnet, address
		r.nodes[node] = e
	}
}

func (r *Registry) remove(node string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.nodes, node)
}

// newNodeID makes a name that was never used before: tokens and logs name nodes.
func newNodeID() string { return "node-" + randomHex(8) }

// newSecret makes a node's metadata secret, 256 bits.
func newSecret() string { return randomHex(32) }

func randomHex(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails; it ends the process instead (crypto/rand, Go 1.24)
	return hex.EncodeToString(b)
}
