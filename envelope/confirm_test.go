package envelope_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"casemate.dev/envelope"
)

// TestRevokedMidStream: every open stream ends at its next segment, with an
// error that names the key, and works again in the next epoch.
func TestRevokedMidStream(t *testing.T) {
	b := newBench(t)
	h := b.create("/r/c", refA())
	other := b.create("/r/other", refB())
	plain := pattern(3 * envelope.SegmentSize)
	sealed := sealAll(t, h, "place", plain)
	value := b.seal("/r/c")
	o, err := h.Open(bytes.NewReader(sealed), int64(len(sealed)), "place")
	if err != nil {
		t.Fatal(err)
	}
	s, err := h.Seal(io.Discard, "place")
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, envelope.SegmentSize)
	if _, err := io.ReadFull(o, p[:100]); err != nil {
		t.Fatal(err)
	}

	b.vault.set(func() { b.vault.disabled[keyA+"/v0"] = "the key is disabled" })
	b.keys.Revoked(keyA)

	if !done(h) || done(other) {
		t.Fatalf("done: %v, and of the other key: %v", done(h), done(other))
	}
	if envelope.KeyBytes(h) != [32]byte{} {
		t.Error("the secret was not zeroed")
	}
	calls := map[string]func() error{
		"Check":     h.Check,
		"Read":      func() error { _, err := o.Read(p); return err },
		"ReadAt":    func() error { _, err := o.ReadAt(p[:1], 0); return err },
		"WriteTo":   func() error { _, err := o.WriteTo(io.Discard); return err },
		"Write":     func() error { _, err := s.Write(plain); return err },
		"Close":     s.Close,
		"Seal":      func() error { _, err := h.Seal(io.Discard, "place"); return err },
		"Open":      func() error { _, err := h.Open(bytes.NewReader(sealed), int64(len(sealed)), "place"); return err },
		"SealBytes": func() error { _, err := h.SealBytes("doc", nil); return err },
		"OpenBytes": func() error { _, err := h.OpenBytes("doc", value); return err },
		"Handle":    func() error { _, err := b.keys.Handle(t.Context(), "/r/c"); return err },
	}
	for name, call := range calls {
		if err := call(); !errors.Is(err, envelope.ErrRevoked) || !strings.Contains(err.Error(), keyA) {
			t.Errorf("%s after revocation: %v", name, err)
		}
	}
	if _, err := b.keys.Handle(t.Context(), "/r/c"); !errors.Is(err, envelope.ErrRefused) || !strings.Contains(err.Error(), "the key is disabled") {
		t.Errorf("the refusal's reason is lost: %v", err)
	}

	b.vault.set(func() { clear(b.vault.disabled) })
	b.opens("/r/c", value)
	if h.Check() == nil {
		t.Error("the old epoch came back")
	}
	if got, err := openAll(b.handle("/r/c"), "place", sealed); err != nil || !bytes.Equal(got, plain) {
		t.Fatal(len(got), err)
	}
}

func TestRevokedScope(t *testing.T) {
	for url, want := range map[string]string{
		keyA:                        "a1 a2",
		strings.ToUpper(keyA) + "/": "a1 a2",
		keyA + "/v0":                "a1 a2",
		keyA + "/v9":                "",
		keyA[:len(keyA)-1]:          "",
		"https://kv-a.vault.casemate.localhost:8443": "a1 a2",
		"https://kv-a.vault.casemate.localhost":      "",
		keyB:                                         "b",
		"":                                           "a1 a2 b",
	} {
		b := newBench(t)
		handles := map[string]*envelope.Handle{
			"a1": b.create("/r/a1", refA()), "a2": b.create("/r/a2", refA()), "b": b.create("/r/b", refB()), "p": b.create("/r/p", nil),
		}
		b.keys.Revoked(url)
		var got []string
		for _, name := range []string{"a1", "a2", "b", "p"} {
			if done(handles[name]) {
				got = append(got, name)
			}
		}
		if strings.Join(got, " ") != want {
			t.Errorf("Revoked(%q) ended %v, want %q", url, got, want)
		}
	}
}

// TestRevokedDuringHandle: an answer by the old state of the key, still under
// way when the vault revokes, must not become a handle.
func TestRevokedDuringHandle(t *testing.T) {
	b := newBench(t)
	b.create("/r/c", refA())
	b.restart()
	var once sync.Once
	b.vault.during = func(string) {
		once.Do(func() {
			b.keys.Revoked(keyA) // while the vault is being asked: must not deadlock
		})
	}
	before := b.vault.count("unwrap")
	h := b.handle("/r/c")
	if h.Check() != nil || b.vault.count("unwrap")-before != 2 {
		t.Fatalf("asked %d times, %v; want a second question", b.vault.count("unwrap")-before, h.Check())
	}
}

func TestOutageIsNotRevocation(t *testing.T) {
	b := newBench(t)
	h := b.create("/r/c", refA())
	platform := b.create("/r/p", nil)
	ctx := t.Context()
	down := errors.New("connection refused")
	b.vault.set(func() { b.vault.outage = down })
	if err := b.keys.Reconfirm(ctx, ""); !errors.Is(err, down) || !errors.Is(err, envelope.ErrUnavailable) {
		t.Fatalf("Reconfirm: %v", err)
	}
	b.clock.advance(59 * time.Second)
	if err := h.Check(); err != nil {
		t.Fatalf("ended after 59 s: %v", err)
	}
	b.vault.set(func() { b.vault.outage = nil })
	if err := b.keys.Reconfirm(ctx, ""); err != nil {
		t.Fatal(err)
	}
	b.clock.advance(59 * time.Second)
	if err := h.Check(); err != nil {
		t.Fatalf("ended 59 s after a confirmation: %v", err)
	}
	b.vault.set(func() { b.vault.outage = down })
	b.clock.advance(time.Second)
	if err := h.Check(); !errors.Is(err, envelope.ErrUnavailable) || errors.Is(err, envelope.ErrRevoked) || !done(h) {
		t.Fatalf("after 60 s: %v, done %v", err, done(h))
	}
	if _, err := b.keys.Handle(ctx, "/r/c"); !errors.Is(err, envelope.ErrUnavailable) || !errors.Is(err, down) {
		t.Fatalf("Handle in an outage: %v", err)
	}
	if err := platform.Check(); err != nil {
		t.Fatalf("a platform-managed key needs no vault: %v", err)
	}
	b.vault.set(func() { b.vault.outage = nil })
	if err := b.handle("/r/c").Check(); err != nil {
		t.Fatal(err)
	}
}

func TestReconfirm(t *testing.T) {
	b := newBench(t)
	a1, a2 := b.create("/r/a1", refA()), b.create("/r/a2", refA())
	b.create("/r/p", nil)
	strange := b.create("/r/a3", &envelope.KeyRef{KeyURL: keyA, Identity: "id-2"})
	before := b.vault.count("unwrap")
	if err := b.keys.Reconfirm(t.Context(), keyA); err != nil {
		t.Fatal(err)
	}
	if n := b.vault.count("unwrap") - before; n != 2 {
		t.Errorf("%d questions for two identities of one key version", n)
	}
	b.vault.set(func() { b.vault.disabled["unwrap id-2"] = "no permission" })
	if err := b.keys.Reconfirm(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	if a1.Check() != nil || a2.Check() != nil {
		t.Error("the wrong identity lost its handles")
	}
	if err := strange.Check(); !errors.Is(err, envelope.ErrRevoked) {
		t.Errorf("the identity without permission: %v", err)
	}
}

// TestRun watches the intervals of the contract on a fake clock.
func TestRun(t *testing.T) {
	b := newBench(t)
	synctest.Test(t, func(t *testing.T) {
		keys := envelope.NewKeys(b.h, b.records, b.vault, envelope.Options{})
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { _ = keys.Run(ctx) })
		if err := keys.Create(ctx, "/r/c", refA()); err != nil {
			t.Fatal(err)
		}
		h, err := keys.Handle(ctx, "/r/c")
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Minute)
		if err := h.Check(); err != nil {
			t.Fatalf("ended although confirmed: %v", err)
		}
		b.vault.set(func() { b.vault.outage = errors.New("down") })
		start := time.Now()
		<-h.Done()
		if d := time.Since(start); d < 45*time.Second || d > 61*time.Second {
			t.Errorf("ended after %v of outage", d)
		}
		b.vault.set(func() { b.vault.outage = nil })
		if h, err = keys.Handle(ctx, "/r/c"); err != nil {
			t.Fatal(err)
		}
		b.vault.set(func() { b.vault.disabled[keyA+"/v0"] = "expired" })
		start = time.Now()
		<-h.Done()
		if d := time.Since(start); d > 15*time.Second || !errors.Is(h.Check(), envelope.ErrRevoked) {
			t.Errorf("an expired key ended after %v with %v", d, h.Check())
		}
		cancel()
		wg.Wait()
	})
}
