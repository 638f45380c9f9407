// Package blob is the Blob service of a storage account: containers and block,
// append and page blobs over Azure's REST protocol, and the same operations in process for the
// planes that keep logs, artifacts and snapshots there.
//
// It is for whoever holds a storage role: the gateway has authenticated,
// placed, authorised and recorded a request before a handler here sees it, and
// the in-process operations enter through resource.Inner for their caller.
// Names, headers, bodies and lists come from outside and may lie; the depot
// below may lie too, which opening a sealed object finds out. The metadata
// store is trusted with names and sizes, and holds everything else sealed.
//
// Contents and metadata are sealed with the account's resource key, so that
// revoking a customer's key ends every request, those under way included.
// Copies stay within one account. Versions, soft delete, shared keys and
// signatures are refused with a clear error.
//
// The protocol is that of "Blob service REST API" (Microsoft Learn); error
// codes are those of "Blob service error codes" and "Common REST API error
// codes". DESIGN.md tells the life of one blob.
package blob
