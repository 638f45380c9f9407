// Package containerregistry declares Microsoft.ContainerRegistry to the
// resource manager: registries with their key, network rules and login server.
//
// It is for platform engineers and their templates. Bodies come from clients
// that may ask for anything: what Casemate does not do is refused by name, and
// the admin account, whose password everybody shares, has no switch. The
// gateway authorises, and enforces the network rules that are declared here;
// the registry itself is dataplane/registry.
//
// A registry's name is its host name, so it belongs to one registry of the
// whole platform; the claim is a record of its own. A customer's key can be
// given, replaced and taken back at any time, on a registry that is in use.
// Replications, webhooks, tasks, tokens, scope maps and cache rules are not
// offered; policies are kept as documents where they change nothing.
package containerregistry
