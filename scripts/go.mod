// The tools of this repository's own commands. A module of its own, so that the platform's layers and dependencies do not
// know of them.
module casemate.dev/scripts

go 1.26.0
