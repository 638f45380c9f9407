// Package audit is the trail of who did what: an append-only log of every decision of the gateway and its outcome.
//
// It is for the record stage, which asks it before any effect, and for the security officer, who queries and verifies it.
// Each record is sealed, so the file tells a thief nothing; records form a SHA-256 chain, and every batch that reaches the
// disk ends in a checkpoint signed with ECDSA P-256, whose position is also kept in the metadata store: an edited,
// reordered, removed or cut-off record is found by Verify.
//
// It fails closed. Append returns an error as soon as a write or sync has failed, or when buffered records have not
// reached the disk for one second; the gateway then serves nothing that must be recorded.
//
// Callers may not lie to it about time or order: it stamps both itself. It does not decide anything, does not hold
// contents or secrets (the gateway sees to that), and does not delete: retention is a matter for later.
package audit
