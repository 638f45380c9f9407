// Package resource is the contract that every layer of Casemate shares: resource IDs and scopes, the caller and the
// origin of a request, the route row with its security columns, the declaration of a control-plane resource type, and
// the one public error.
//
// It is for the gateway (which runs routes), for the control planes (which decide over scopes, callers and actions),
// and for the providers (which declare types and routes). It performs no I/O and holds no state.
//
// Nothing in here is trusted input: an ID is built only by ParseID, which refuses what is not canonical; a Route is used
// only after Validate has seen every security column. A Caller is whatever the authenticate stage made of the request;
// its zero value is nobody and may do nothing.
package resource
