package netns_test

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"slices"
	"testing"

	"casemate.dev/dataplane/network/netns"
)

func TestNamespaceLife(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: creates a network namespace")
	}
	name := fmt.Sprintf("cm-test-%d", os.Getpid())
	t.Cleanup(func() { netns.Remove(name) })

	if made, err := netns.Create(name); err != nil || !made {
		t.Fatalf("first Create: %v %v", made, err)
	}
	if made, err := netns.Create(name); err != nil || made {
		t.Fatalf("second Create must find the first's: %v %v", made, err)
	}
	f, err := netns.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var inside []net.Interface
	if err := netns.Do(f, func() (err error) { inside, err = net.Interfaces(); return err }); err != nil {
		t.Fatal(err)
	}
	if slices.ContainsFunc(inside, func(i net.Interface) bool { return i.Flags&net.FlagLoopback == 0 && i.Flags&net.FlagUp != 0 }) {
		t.Errorf("a new namespace has links: %v", inside)
	}
	if names, err := netns.List(name); err != nil || !slices.Equal(names, []string{name}) {
		t.Errorf("List = %v, %v", names, err)
	}
	if err := netns.Remove(name); err != nil {
		t.Fatal(err)
	}
	if err := netns.Remove(name); err != nil {
		t.Fatalf("removing what is absent: %v", err)
	}
	if _, err := netns.Open(name); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open after Remove: %v", err)
	}
}

func TestHalfMadeIsRepaired(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: creates a network namespace")
	}
	name := fmt.Sprintf("cm-half-%d", os.Getpid())
	if err := os.MkdirAll(netns.Directory, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(netns.Path(name), nil, 0o444); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { netns.Remove(name) })
	if netns.Exists(name) {
		t.Fatal("a plain file passes for a namespace")
	}
	if made, err := netns.Create(name); err != nil || !made || !netns.Exists(name) {
		t.Fatalf("Create over a plain file: %v %v", made, err)
	}
}

func TestBadNames(t *testing.T) {
	for _, name := range []string{"", "..", "a/b", "A", "x y", "../../etc/passwd"} {
		if _, err := netns.Create(name); err == nil {
			t.Errorf("Create(%q) succeeded", name)
		}
		if err := netns.Remove(name); err == nil {
			t.Errorf("Remove(%q) succeeded", name)
		}
	}
}
