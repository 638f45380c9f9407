// The benchmarks: a module of its own, which sees the platform only as outsiders do. It needs the standard library alone.
module casemate.dev/bench

go 1.26.0
