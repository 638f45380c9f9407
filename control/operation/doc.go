// Package operation turns declared resource types into Azure Resource Manager's behaviour, once, for all of them: PUT,
// PATCH, GET, HEAD, DELETE, lists with nextLink, ETag and If-Match, tags, systemData, identities, provisioning states,
// and long-running operations with Azure-AsyncOperation, Location and Retry-After.
//
// It is for the providers, which declare types and write only what is theirs: Validate, Reconcile, Remove. It keeps the
// documents in the metadata store, whole, as their clients sent them; documents that belong to a workspace are sealed
// once more under that workspace's key, so that they cannot be read once the key is revoked.
//
// Every change is on disk before the client hears of it, together with an entry in a queue of unfinished work: a crash at
// any instruction leaves a document that the next start drives to Succeeded or Failed. Requests were authenticated,
// authorised and recorded by the gateway; bodies and names are still hostile here. The package decides about no role and
// no network.
package operation
