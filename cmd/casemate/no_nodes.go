package main

import (
	"context"
	"crypto/rand"

	"casemate.dev/dataplane/runtime"
	"casemate.dev/resource"
)

// noNodes stands where the node runtime is on machines that have none: whoever wants a node is told so.
type noNodes struct{}

func (noNodes) SelfTest(context.Context) error                                { return errNoNodes }
func (noNodes) Start(context.Context, runtime.NodeSpec) (runtime.Node, error) { return nil, errNoNodes }
func (noNodes) Cleanup(context.Context) error                                 { return nil }
func (l *joints) inUse(ctx context.Context, id resource.ID) error {
	if l.use == nil {
		return errNotJoined
	}
	return l.use(ctx, id)
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return b
}
