// Package rbac decides whether a caller may perform an action at a scope, from role definitions and role assignments in
// the semantics of Azure role-based access control: actions less notActions inside one role, data actions apart from
// actions, wildcards, inheritance from the tenant down to data scopes, groups, and deny assignments.
//
// It is for the gateway's authorize stage and for providers/authorization, which feeds it. A decision reads immutable
// snapshots behind atomic pointers: it takes no lock, does no I/O and, for actions it has met before, allocates nothing.
// A change is visible to every decision that begins after the changing method has returned.
//
// The caller must be authenticated before it gets here: its object id and groups are believed. Role definitions may be
// written by customers; a pattern is data, matched in linear or bounded quadratic time. Conditions (ABAC) are not
// evaluated: a permission block or an assignment that carries one grants nothing, and a deny assignment that carries one
// denies. Nothing is granted to everyone, and an unknown role, an empty caller or a missing snapshot grants nothing.
//
// It does not check who may write assignments, whether principals exist, or management groups; providers/authorization
// and control/identity do.
package rbac
