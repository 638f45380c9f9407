// Package gateway is the one way in. Every byte that enters Casemate, on any host name and any plane, passes its seven
// stages in order: receive, authenticate, origin, authorize, govern, record, dispatch. The stages stand in one slice in
// gateway.go, one file each.
//
// It is for everybody outside, and everybody may lie to it: host names, paths, headers, tokens and bodies are hostile
// until a stage has judged them. It trusts the socket that accepted a connection (the origin comes from there and never
// from a header), the rows it was given, and the deciders joined to it in cmd/casemate.
//
// Rows come from the planes and providers as resource.Route; a row with a missing security column, or two rows that
// answer the same request, stop start-up. The gateway knows no resource type and no protocol beyond HTTP: dialects of
// errors and challenges are given per plane.
package gateway
