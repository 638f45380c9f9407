package network_test

import (
	"os"
	"testing"

	"github.com/google/nftables"
)

// flush removes all rules in a namespace, as somebody with root might.
func flush(t *testing.T, ns *os.File) {
	t.Helper()
	c, err := nftables.New(nftables.WithNetNSFd(int(ns.Fd())))
	if err != nil {
		t.Fatal(err)
	}
	c.FlushRuleset()
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
}
