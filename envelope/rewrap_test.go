package envelope_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"casemate.dev/envelope"
)

func TestDestroy(t *testing.T) {
	b := newBench(t)
	ctx := t.Context()
	h := b.create("/r/c", refA())
	sealed, object := b.seal("/r/c"), sealAll(t, h, "place", []byte("x"))
	if err := errors.Join(b.keys.Destroy(ctx, "/r/C"), b.keys.Destroy(ctx, "/r/c"), b.keys.Destroy(ctx, "/r/never")); err != nil {
		t.Fatal(err)
	}
	if err := h.Check(); !errors.Is(err, envelope.ErrDestroyed) || !done(h) {
		t.Fatalf("the handle: %v", err)
	}
	b.restart()
	for _, err := range []error{
		func() error { _, err := b.keys.Handle(ctx, "/r/c"); return err }(),
		func() error { _, err := b.keys.Version("/r/c"); return err }(),
		b.keys.Rebind(ctx, "/r/c", nil),
	} {
		if !errors.Is(err, envelope.ErrDestroyed) {
			t.Errorf("after Destroy: %v", err)
		}
	}
	if n, err := b.keys.Rotate(ctx, keyA); n != 0 || err != nil {
		t.Errorf("Rotate over a tombstone: %d, %v", n, err)
	}
	again := b.create("/r/c", refA())
	if _, err := again.OpenBytes("doc", sealed); !errors.Is(err, envelope.ErrCorrupt) {
		t.Errorf("the new key opened the old value: %v", err)
	}
	if _, err := openAll(again, "place", object); !errors.Is(err, envelope.ErrCorrupt) || !strings.Contains(err.Error(), "sealed by key") {
		t.Errorf("the new key and the old object: %v", err)
	}
}

func TestRebind(t *testing.T) {
	b := newBench(t)
	ctx := t.Context()
	h := b.create("/r/x", nil)
	sealed := b.seal("/r/x")
	for _, ref := range []*envelope.KeyRef{refA(), refA(), refB(), nil, refB()} {
		if err := b.keys.Rebind(ctx, "/r/X", ref); err != nil {
			t.Fatal(err)
		}
		want := ""
		if ref != nil {
			want = ref.KeyURL + "/v0"
		}
		if got := b.version("/r/x"); got != want {
			t.Errorf("version %q, want %q", got, want)
		}
		if err := h.Check(); err != nil {
			t.Fatalf("rebinding ended the epoch: %v", err)
		}
		b.opens("/r/x", sealed)
	}
	b.keys.Revoked(keyA)
	if h.Check() != nil {
		t.Error("a key left behind still ends the handle")
	}
	b.keys.Revoked(keyB)
	if h.Check() == nil {
		t.Error("the key bound to does not end the handle")
	}
	b.restart()
	b.opens("/r/x", sealed)

	b.vault.set(func() { b.vault.disabled[keyB+"/v0"] = "disabled" })
	if err := b.keys.Rebind(ctx, "/r/x", nil); !errors.Is(err, envelope.ErrRevoked) {
		t.Errorf("rebinding away from a refused key: %v", err)
	}
	b.vault.set(func() { clear(b.vault.disabled); b.vault.disabled["unwrap id-9"] = "may only wrap" })
	err := b.keys.Rebind(ctx, "/r/x", &envelope.KeyRef{KeyURL: keyA, Identity: "id-9"})
	if !errors.Is(err, envelope.ErrRevoked) || b.version("/r/x") != keyB+"/v0" {
		t.Errorf("rebound to an identity that cannot unwrap: %v, now %s", err, b.version("/r/x"))
	}
	b.opens("/r/x", sealed)
}

// TestRevokedDuringRebind: the new key is revoked between the proof and the use.
func TestRevokedDuringRebind(t *testing.T) {
	b := newBench(t)
	h := b.create("/r/x", nil)
	calls := 0
	b.vault.during = func(op string) {
		if op != "unwrap" {
			return
		}
		if calls++; calls == 1 { // the proof; the vault has decided by the old state
			b.keys.Revoked(keyA)
		} else {
			b.vault.set(func() { b.vault.disabled[keyA+"/v0"] = "disabled" })
		}
	}
	if err := b.keys.Rebind(t.Context(), "/r/x", refA()); err != nil {
		t.Fatal(err)
	}
	if err := h.Check(); !errors.Is(err, envelope.ErrRevoked) {
		t.Fatalf("the handle goes on under a revoked key: %v", err)
	}
}

func TestRotate(t *testing.T) {
	b := newBench(t)
	ctx := t.Context()
	const n = 5
	sealed := map[string][]byte{}
	handles := map[string]*envelope.Handle{}
	for i := range n {
		id := fmt.Sprintf("/r/%d", i)
		handles[id] = b.create(id, refA())
		sealed[id] = b.seal(id)
	}
	b.create("/r/platform", nil)
	b.create("/r/b", refB())
	b.create("/r/pinned", &envelope.KeyRef{KeyURL: keyA + "/v0", Identity: "id-1"})
	if got, err := b.keys.Rotate(ctx, keyA); got != 0 || err != nil {
		t.Fatalf("nothing to rotate: %d, %v", got, err)
	}
	b.vault.rotate(keyA)
	if got, err := b.keys.Rotate(ctx, keyA); got != n || err != nil {
		t.Fatalf("rotated %d, %v; want %d", got, err, n)
	}
	for id, want := range map[string]string{"/r/0": keyA + "/v1", "/r/b": keyB + "/v0", "/r/pinned": keyA + "/v0", "/r/platform": ""} {
		if got := b.version(id); got != want {
			t.Errorf("version of %s is %q, want %q", id, got, want)
		}
	}
	b.vault.set(func() { b.vault.disabled[keyA+"/v0"] = "old" })
	b.keys.Revoked(keyA + "/v0")
	for id, h := range handles {
		if err := h.Check(); err != nil {
			t.Errorf("rotation ended the handle of %s: %v", id, err)
		}
	}
	b.restart()
	for id := range handles {
		b.opens(id, sealed[id])
	}
}

// TestRotateInterrupted fails every call to the records in turn, before and
// after its effect, restarts, and finishes the work.
func TestRotateInterrupted(t *testing.T) {
	const n = 4
	for _, after := range []bool{false, true} {
		for failAt := 1; failAt <= 2*n+1; failAt++ {
			b := newBench(t)
			sealed := map[string][]byte{}
			for i := range n {
				id := fmt.Sprintf("/r/%d", i)
				b.create(id, refA())
				sealed[id] = b.seal(id)
			}
			b.vault.rotate(keyA)
			b.records.calls, b.records.failAt, b.records.after = 0, failAt, after
			first, err := b.keys.Rotate(t.Context(), keyA)
			if !errors.Is(err, errDisk) {
				t.Fatalf("call %d failed and Rotate said %d, %v", failAt, first, err)
			}
			for id := range sealed { // nothing is lost in between, live or restarted
				b.opens(id, sealed[id])
			}
			b.restart()
			for id := range sealed {
				b.opens(id, sealed[id])
			}
			second, err := b.keys.Rotate(t.Context(), keyA)
			if err != nil || first+second > n || first+second < n-1 {
				t.Fatalf("call %d: rotated %d and then %d of %d, %v", failAt, first, second, n, err)
			}
			for id := range sealed {
				if got, want := b.version(id), keyA+"/v1"; got != want {
					t.Errorf("version of %s is %s", id, got)
				}
				b.opens(id, sealed[id])
			}
		}
	}
}

func TestRotateCancelled(t *testing.T) {
	b := newBench(t)
	b.create("/r/1", refA())
	b.vault.rotate(keyA)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if n, err := b.keys.Rotate(ctx, keyA); n != 0 || !errors.Is(err, context.Canceled) {
		t.Fatal(n, err)
	}
	if _, err := b.keys.Rotate(t.Context(), "not a url"); err == nil {
		t.Fatal("rotated nonsense")
	}
}
