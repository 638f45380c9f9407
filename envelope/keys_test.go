package envelope_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"casemate.dev/envelope"
)

func TestCreate(t *testing.T) {
	b := newBench(t)
	ctx := t.Context()
	steps := []struct {
		id   string
		ref  *envelope.KeyRef
		want error
	}{
		{"/r/P", nil, nil},
		{"/r/p", nil, nil}, // the same resource
		{"/r/p", refA(), envelope.ErrBound},
		{"/r/c", refA(), nil},
		{"/r/C", refA(), nil},
		{"/r/c", nil, envelope.ErrBound},
		{"/r/c", refB(), envelope.ErrBound},
	}
	for _, s := range steps {
		if err := b.keys.Create(ctx, s.id, s.ref); !errors.Is(err, s.want) {
			t.Errorf("Create(%s, %v): %v, want %v", s.id, s.ref, err, s.want)
		}
	}
	for _, url := range []string{"", "http://kv/keys/k", "https://kv/secrets/k", "https://kv/keys", "https://kv/keys/k/1/2", "https://kv/keys/k?x=1", "https:///keys/k"} {
		if err := b.keys.Create(ctx, "/r/bad", &envelope.KeyRef{KeyURL: url}); err == nil {
			t.Errorf("a key was created under %q", url)
		}
	}
	if err := b.keys.Create(ctx, "", nil); err == nil {
		t.Error("a key was created for no resource")
	}
	if _, err := b.keys.Handle(ctx, "/r/bad"); !errors.Is(err, envelope.ErrNoRecord) {
		t.Errorf("Handle without Create: %v", err)
	}
	if got := b.version("/r/p"); got != "" {
		t.Errorf("platform-managed version is %q", got)
	}
	if got, want := b.version("/r/c"), keyA+"/v0"; got != want {
		t.Errorf("version is %q, want %q", got, want)
	}
}

func TestHandleIsCachedAndDurable(t *testing.T) {
	b := newBench(t)
	h := b.create("/r/C", refA())
	sealed := b.seal("/r/c")
	asked := b.vault.count("unwrap")
	for range 10 {
		if b.handle("/R/c") != h {
			t.Fatal("another handle within an epoch")
		}
	}
	if n := b.vault.count("unwrap") - asked; n != 0 {
		t.Fatalf("the vault was asked %d times", n)
	}
	b.restart()
	b.opens("/r/c", sealed)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%d", "%x"} {
		if got := fmt.Sprintf(verb, h); got != "key handle of /r/c" {
			t.Errorf("%s prints a handle as %s", verb, got)
		}
	}
}

// TestRecordsFail fails each call of each operation in turn: an error, never a
// panic or a half state, and the operation succeeds when it is done again.
func TestRecordsFail(t *testing.T) {
	ctx := context.Background()
	ops := map[string]func(b *bench) error{
		"create":  func(b *bench) error { return b.keys.Create(ctx, "/r/new", refA()) },
		"handle":  func(b *bench) error { b.restart2(); _, err := b.keys.Handle(ctx, "/r/c"); return err },
		"rebind":  func(b *bench) error { return b.keys.Rebind(ctx, "/r/c", nil) },
		"destroy": func(b *bench) error { return b.keys.Destroy(ctx, "/r/c") },
		"version": func(b *bench) error { b.restart2(); _, err := b.keys.Version("/r/c"); return err },
	}
	for name, op := range ops {
		for _, after := range []bool{false, true} {
			for failAt := 1; ; failAt++ {
				b := newBench(t)
				h := b.create("/r/c", refA())
				sealed := b.seal("/r/c")
				b.records.calls, b.records.failAt, b.records.after = 0, failAt, after
				err := op(b)
				if b.records.calls < failAt {
					break // the operation makes no more calls
				}
				if !errors.Is(err, errDisk) || !errors.Is(err, envelope.ErrUnavailable) {
					t.Fatalf("%s with call %d failing: %v", name, failAt, err)
				}
				if name != "destroy" && h.Check() != nil {
					t.Errorf("%s with call %d failing ended the handle", name, failAt)
				}
				b.restart()
				if name != "destroy" {
					b.opens("/r/c", sealed)
				}
				if err := op(b); err != nil {
					t.Fatalf("%s done again after call %d failed: %v", name, failAt, err)
				}
			}
		}
	}
}

// restart2 is restart that leaves the fault in place.
func (b *bench) restart2() {
	failAt := b.records.failAt
	b.restart()
	b.records.failAt = failAt
}

// TestHostileRecords: whoever keeps the records can only refuse service.
func TestHostileRecords(t *testing.T) {
	b := newBench(t)
	b.create("/r/a", nil)
	b.create("/r/b", nil)
	a, rb := b.records.byID["/r/a"], b.records.byID["/r/b"]
	flipped := bytes.Clone(a)
	flipped[len(flipped)/2] ^= 1
	for name, rec := range map[string][]byte{"another's": rb, "flipped": flipped, "empty": {}, "json": []byte(`{"keyId":"AAAAAAAAAAAAAAAAAAAAAA=="}`)} {
		b.restart()
		b.records.byID["/r/a"] = rec
		if _, err := b.keys.Handle(t.Context(), "/r/a"); !errors.Is(err, envelope.ErrCorrupt) {
			t.Errorf("%s record: %v", name, err)
		}
		if err := b.keys.Create(t.Context(), "/r/a", nil); !errors.Is(err, envelope.ErrCorrupt) {
			t.Errorf("Create over %s record: %v", name, err)
		}
	}
	other := newBench(t)
	other.records.byID["/r/a"] = a
	if _, err := other.keys.Handle(t.Context(), "/r/a"); !errors.Is(err, envelope.ErrCorrupt) {
		t.Errorf("a record of another hierarchy: %v", err)
	}
}

func TestLyingVault(t *testing.T) {
	b := newBench(t)
	h := b.create("/r/c", refA())
	b.vault.set(func() { b.vault.lie = true })
	if err := b.keys.Reconfirm(t.Context(), ""); !errors.Is(err, envelope.ErrCorrupt) || h.Check() != nil {
		t.Errorf("Reconfirm: %v, handle %v", err, h.Check())
	}
	b.restart()
	if _, err := b.keys.Handle(t.Context(), "/r/c"); !errors.Is(err, envelope.ErrCorrupt) {
		t.Errorf("Handle with other bytes: %v", err)
	}
	if err := b.keys.Create(t.Context(), "/r/new", refA()); !errors.Is(err, envelope.ErrCorrupt) {
		t.Errorf("Create with a vault that loses keys: %v", err)
	}
	if len(b.records.byID) != 1 {
		t.Error("an unproved record was saved")
	}
}

func TestNoVault(t *testing.T) {
	b := newBench(t)
	keys := envelope.NewKeys(b.h, b.records, nil, envelope.Options{})
	if err := keys.Create(t.Context(), "/r/c", refA()); !errors.Is(err, envelope.ErrUnavailable) {
		t.Fatal(err)
	}
	if err := keys.Create(t.Context(), "/r/p", nil); err != nil {
		t.Fatal(err)
	}
}

// TestConcurrency lets everything happen at once, for the race detector, and
// checks that afterwards all is as it should be.
func TestConcurrency(t *testing.T) {
	b := newBench(t)
	ids := []string{"/r/0", "/r/1", "/r/2"}
	sealed := map[string][]byte{}
	for _, id := range ids {
		b.create(id, refA())
		sealed[id] = b.seal(id)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg sync.WaitGroup
	for _, id := range ids {
		wg.Go(func() {
			for ctx.Err() == nil {
				h, err := b.keys.Handle(ctx, id)
				if err != nil {
					continue
				}
				s, err := h.SealBytes("doc", []byte("x"))
				if err == nil {
					_, err = h.OpenBytes("doc", s)
				}
				if err != nil && !errors.Is(err, envelope.ErrRevoked) {
					t.Error(err)
				}
			}
		})
		wg.Go(func() {
			for i := 0; i < 50; i++ {
				_ = b.keys.Rebind(ctx, id, []*envelope.KeyRef{nil, refA(), refB()}[i%3])
			}
			cancel()
		})
	}
	wg.Go(func() {
		for ctx.Err() == nil {
			b.keys.Revoked(keyA)
			_ = b.keys.Reconfirm(ctx, "")
			b.vault.rotate(keyA)
			_, _ = b.keys.Rotate(ctx, keyA)
		}
	})
	wg.Wait()
	for _, id := range ids {
		b.opens(id, sealed[id])
	}
	b.restart()
	for _, id := range ids {
		b.opens(id, sealed[id])
	}
}

func TestHandleWaitsNoLongerThanItsContext(t *testing.T) {
	b := newBench(t)
	b.create("/r/c", refA())
	b.restart()
	entered, release := make(chan struct{}), make(chan struct{})
	b.vault.during = func(string) { close(entered); <-release }
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := b.keys.Handle(t.Context(), "/r/c"); err != nil {
			t.Error(err)
		}
	})
	<-entered
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.keys.Handle(ctx, "/r/c"); !errors.Is(err, context.Canceled) || !errors.Is(err, envelope.ErrUnavailable) {
		t.Errorf("a second caller with a cancelled context: %v", err)
	}
	close(release)
	wg.Wait()
}

func BenchmarkHandle(b *testing.B) {
	root, err := envelope.OpenRoot("file:", b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	h, err := envelope.OpenHierarchy(b.Context(), b.TempDir(), root)
	if err != nil {
		b.Fatal(err)
	}
	keys := envelope.NewKeys(h, newRecords(), newVault(), envelope.Options{})
	if err := keys.Create(b.Context(), testResource, refA()); err != nil {
		b.Fatal(err)
	}
	for name, id := range map[string]string{"lower": strings.ToLower(testResource), "mixed": testResource} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if _, err := keys.Handle(b.Context(), id); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}
