// Package authorization is the provider Microsoft.Authorization: role assignments, role definitions (built-in and
// custom), permissions at a scope, deny assignments (there are none), and management locks.
//
// It is for ARM clients and for the gateway. It feeds control/rbac and the table of locks from the documents' observers,
// so that an assignment or a lock holds before its PUT returns. Whether a caller may write here is decided by the gateway
// with the same roles; this package adds that principal and role exist, that a custom role is written by somebody who may
// do so at all of its assignable scopes, and that no two role definitions share a GUID, which is what roles are known by.
//
// Bodies are foreign input. Conditions are refused, because they are not evaluated; nothing here is granted by default.
package authorization
