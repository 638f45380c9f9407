// Package network is the control plane of virtual networks: Microsoft.Network's virtual networks and subnets, network
// security groups and their rules, private endpoints with their DNS zone groups, and private DNS zones with A records and
// links; besides, the platform's own type Casemate.Network/attachedMachines, a place inside a network for a person's client.
//
// It is for the management plane, for the machine-learning provider (which attaches nodes), and for the gateway, to which it
// hands a listener for each private endpoint, for the platform's address in each network, and for the instance metadata of
// each node, with a function that says where a connection entered. It keeps the declared state in memory, compiles it with
// dataplane/network/plan and applies it before the client hears of a change.
//
// Its clients are authorised for the resource they write, and for nothing else: joining a subnet, a security group or a zone,
// and approving a connection to somebody else's resource, are checked at those. Bodies are hostile; what cannot be honoured
// is refused, never left out. Where the kernel cannot build networks, every write is refused with the reason.
//
// It forwards no packet, terminates no TLS and decides about no data: origins that it reports never authenticate.
package network
