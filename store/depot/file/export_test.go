package file

import "casemate.dev/internal/durable"

// OpenWithFaults is Open with fault asked before each call that writes.
func OpenWithFaults(dir string, fault func(durable.Op, string) error) (*Depot, error) {
	return open(dir, durable.FS{Fault: fault})
}
