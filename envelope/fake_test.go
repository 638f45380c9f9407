package envelope_test

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"casemate.dev/envelope"
)

// fakeRecords keeps records in memory and fails the call number failAt.
type fakeRecords struct {
	mu     sync.Mutex
	byID   map[string][]byte
	calls  int
	failAt int  // 0: never
	after  bool // fail a Save after it was done
}

var errDisk = errors.New("disk on fire")

func newRecords() *fakeRecords { return &fakeRecords{byID: map[string][]byte{}} }

func (r *fakeRecords) failsLocked() bool {
	r.calls++
	return r.calls == r.failAt
}

func (r *fakeRecords) Load(_ context.Context, id string) ([]byte, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.failsLocked() {
		return nil, errDisk
	}
	rec, ok := r.byID[id]
	if !ok {
		return nil, envelope.ErrNoRecord
	}
	return bytes.Clone(rec), nil
}

func (r *fakeRecords) Save(_ context.Context, id string, rec []byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	fails := r.failsLocked()
	if !fails || r.after {
		r.byID[id] = bytes.Clone(rec)
	}
	if fails {
		return errDisk
	}
	return nil
}

func (r *fakeRecords) List(context.Context) ([]string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.failsLocked() {
		return nil, errDisk
	}
	return slices.Sorted(maps.Keys(r.byID)), nil
}

// fakeVault wraps with real GCM under keys of its own. The state of a key
// version, and an outage, are switched by the tests.
type fakeVault struct {
	mu       sync.Mutex
	newest   map[string]int    // by key URL
	disabled map[string]string // reason by kid
	outage   error
	asked    []string
	during   func(op string) // called while a question is being answered
	lie      bool            // unwrap to other bytes
}

func newVault() *fakeVault {
	return &fakeVault{newest: map[string]int{}, disabled: map[string]string{}}
}

const (
	keyA = "https://kv-a.vault.casemate.localhost:8443/keys/Ward"
	keyB = "https://kv-b.vault.casemate.localhost:8443/keys/ward"
)

func refA() *envelope.KeyRef { return &envelope.KeyRef{KeyURL: keyA, Identity: "id-1"} }
func refB() *envelope.KeyRef { return &envelope.KeyRef{KeyURL: keyB, Identity: "id-1"} }

func (v *fakeVault) set(fn func()) {
	v.mu.Lock()
	defer v.mu.Unlock()
	fn()
}

func (v *fakeVault) rotate(keyURL string) { v.set(func() { v.newest[keyURL]++ }) }

func (v *fakeVault) kidLocked(keyURL string) string {
	if strings.Count(keyURL, "/") == 5 {
		return keyURL
	}
	return fmt.Sprintf("%s/v%d", keyURL, v.newest[keyURL])
}

func (v *fakeVault) count(op string) (n int) {
	v.set(func() {
		for _, a := range v.asked {
			if strings.HasPrefix(a, op) {
				n++
			}
		}
	})
	return n
}

func (v *fakeVault) decide(op, kid string, identity string) error {
	if v.during != nil {
		v.during(op)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.asked = append(v.asked, op+" "+kid)
	if v.outage != nil {
		return v.outage
	}
	if reason := v.disabled[kid]; reason != "" {
		return envelope.Refused(kid, errors.New(reason))
	}
	if reason := v.disabled[op+" "+identity]; reason != "" {
		return envelope.Refused(kid, errors.New(reason))
	}
	return nil
}

func vaultAEAD(kid string) cipher.AEAD {
	block, err := aes.NewCipher(bytes.Repeat([]byte(kid[len(kid)-2:]), 16))
	if err != nil {
		panic(err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		panic(err)
	}
	return aead
}

func (v *fakeVault) WrapKey(_ context.Context, ref envelope.KeyRef, plain []byte) ([]byte, string, error) {
	v.mu.Lock()
	kid := v.kidLocked(ref.KeyURL)
	v.mu.Unlock()
	if err := v.decide("wrap", kid, ref.Identity); err != nil {
		return nil, "", err
	}
	return vaultAEAD(kid).Seal(nil, nil, plain, []byte(kid)), kid, nil
}

func (v *fakeVault) UnwrapKey(_ context.Context, ref envelope.KeyRef, kid string, wrapped []byte) ([]byte, error) {
	if err := v.decide("unwrap", kid, ref.Identity); err != nil {
		return nil, err
	}
	plain, err := vaultAEAD(kid).Open(nil, nil, wrapped, []byte(kid))
	v.set(func() {
		if v.lie {
			plain[0] ^= 1
		}
	})
	return plain, err
}

// bench is one Keys with everything below it.
type bench struct {
	t       *testing.T
	clock   *clock
	records *fakeRecords
	vault   *fakeVault
	keys    *envelope.Keys
	h       *envelope.Hierarchy
}

type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

func newBench(t *testing.T) *bench {
	t.Helper()
	root, err := envelope.OpenRoot("file:", t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	h, err := envelope.OpenHierarchy(t.Context(), t.TempDir(), root)
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{t: t, clock: &clock{now: time.Unix(1_700_000_000, 0)}, records: newRecords(), vault: newVault(), h: h}
	b.restart()
	return b
}

// restart forgets what is in memory, as after a crash.
func (b *bench) restart() {
	b.records.failAt = 0
	b.keys = envelope.NewKeys(b.h, b.records, b.vault, envelope.Options{Now: b.clock.Now})
}

func (b *bench) create(id string, ref *envelope.KeyRef) *envelope.Handle {
	b.t.Helper()
	if err := b.keys.Create(b.t.Context(), id, ref); err != nil {
		b.t.Fatal(err)
	}
	return b.handle(id)
}

func (b *bench) handle(id string) *envelope.Handle {
	b.t.Helper()
	h, err := b.keys.Handle(b.t.Context(), id)
	if err != nil {
		b.t.Fatal(err)
	}
	return h
}

func (b *bench) version(id string) string {
	b.t.Helper()
	kid, err := b.keys.Version(id)
	if err != nil {
		b.t.Fatal(err)
	}
	return kid
}

// opens checks that sealed opens under the resource's key of now.
func (b *bench) opens(id string, sealed []byte) {
	b.t.Helper()
	if got, err := b.handle(id).OpenBytes("doc", sealed); err != nil || string(got) != "value of "+id {
		b.t.Fatalf("opening the value of %s: %q, %v", id, got, err)
	}
}

func (b *bench) seal(id string) []byte {
	b.t.Helper()
	sealed, err := b.handle(id).SealBytes("doc", []byte("value of "+id))
	if err != nil {
		b.t.Fatal(err)
	}
	return sealed
}

func done(h *envelope.Handle) bool {
	select {
	case <-h.Done():
		return true
	default:
		return false
	}
}
