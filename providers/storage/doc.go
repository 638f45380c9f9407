// Package storage declares Microsoft.Storage to the resource manager: storage
// accounts with their keys, network rules and endpoints, and the containers of
// their Blob service.
//
// It is for platform engineers and their templates. Bodies come from clients
// that may ask for anything: what Casemate does not do is refused by name, and
// what would weaken an account (shared keys, anonymous access, plain HTTP, old
// TLS) has no switch. The gateway authorises, and enforces the network rules
// that are declared here; the Blob service itself is dataplane/blob.
//
// An account's name is its host name, so it belongs to one account of the whole
// platform; the claim is a record of its own. The redundancy that a SKU names
// is that of the storage below the depot: nothing is replicated here. Queues,
// tables, files and hierarchical namespaces are not offered.
package storage
