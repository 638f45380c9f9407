// Package envelope holds the platform's keys and seals its data.
//
// A root key (file or passphrase) opens the [Hierarchy]; the hierarchy's
// master key, or a customer's key in a key vault, wraps one resource key for
// each account, workspace, registry and vault; the resource key derives one
// data key for each object and for each run of values. Every plane that stores
// something uses it: through a [Handle], which seals and opens but never gives
// a key away, or, for the files of the metadata store, through a [FileCipher].
//
// Whoever holds the depot, the disk or a backup may lie: all they hand back is
// authenticated, and what was truncated, extended, reordered, swapped or
// altered is [ErrCorrupt], never bytes. The key vault is trusted to say whether
// a key may be used; when it says no, every handle of that key ends, open
// streams included. When it says nothing for a minute, they end too.
//
// The package cannot see that a whole older state was put back (rollback), does
// not hide sizes, and does not authenticate the store's files, whose values
// callers seal themselves. All primitives are the standard library's and run
// under GODEBUG=fips140=only. DESIGN.md tells the life of one object.
package envelope
