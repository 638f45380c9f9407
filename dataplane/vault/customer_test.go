package vault

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"casemate.dev/envelope"
)

func unmarshal(s string, to any) error { return json.Unmarshal([]byte(s), to) }

const base = "https://kv1.vault.casemate.test:8443"

func TestCustomerKey(t *testing.T) {
	ctx := t.Context()
	for _, kty := range []string{"RSA", "oct"} {
		r := newRig(t)
		v1 := r.must(200, "POST", "/keys/cmk/create", obj{"kty": kty}).str("key", "kid")
		ref := envelope.KeyRef{KeyURL: base + "/keys/cmk", Identity: "me"}
		plain := bytes.Repeat([]byte{7}, 32)
		wrapped, kid, err := r.WrapKey(ctx, ref, plain)
		if err != nil || kid != v1 || bytes.Contains(wrapped, plain[:8]) {
			t.Fatalf("wrapping: %s, %v", kid, err)
		}
		v2 := r.must(200, "POST", "/keys/cmk/rotate", nil).str("key", "kid")
		if _, kid, err := r.WrapKey(ctx, ref, plain); err != nil || kid != v2 {
			t.Errorf("wrapping after rotation: %s, %v", kid, err)
		}
		pinned := envelope.KeyRef{KeyURL: v1, Identity: "me"}
		if _, kid, err := r.WrapKey(ctx, pinned, plain); err != nil || kid != v1 {
			t.Errorf("wrapping with a pinned version: %s, %v", kid, err)
		}
		if got, err := r.UnwrapKey(ctx, ref, kid, wrapped); err != nil || !bytes.Equal(got, plain) {
			t.Errorf("unwrapping the old version: %v", err)
		}
		wrapped[3] ^= 1
		if _, err := r.UnwrapKey(ctx, ref, kid, wrapped); err == nil {
			t.Error("a changed wrapping unwraps")
		}
		if want := "me Microsoft.KeyVault/vaults/keys/wrap/action " + vaultID + "/keys/cmk"; r.inner.asked[0] != want {
			t.Errorf("entered with %q, want %q", r.inner.asked[0], want)
		}
	}
}

func TestCustomerKeyRefusals(t *testing.T) {
	ctx := t.Context()
	r := newRig(t)
	kid := r.must(200, "POST", "/keys/cmk/create", obj{"kty": "RSA"}).str("key", "kid")
	r.must(200, "POST", "/keys/ec/create", obj{"kty": "EC"})
	ref := envelope.KeyRef{KeyURL: base + "/keys/cmk", Identity: "me"}
	wrapped, _, err := r.WrapKey(ctx, ref, []byte("key"))
	if err != nil {
		t.Fatal(err)
	}
	version := "/keys/cmk/" + versionOf(kid)
	nothing := func() {}
	now := r.time().Unix()
	shut := r.vault
	shut.TrustedServices = false
	tests := []struct {
		name     string
		identity string
		before   func()
		after    func()
		refused  bool
	}{
		{"disabled", "me", func() { r.must(200, "PATCH", version, obj{"attributes": obj{"enabled": false}}) }, func() { r.must(200, "PATCH", version, obj{"attributes": obj{"enabled": true}}) }, true},
		{"expired", "me", func() { r.must(200, "PATCH", version, obj{"attributes": obj{"exp": now}}) }, func() { r.must(200, "PATCH", version, obj{"attributes": obj{"exp": now + 1000}}) }, true},
		{"not yet", "me", func() { r.must(200, "PATCH", version, obj{"attributes": obj{"nbf": now + 1}}) }, func() { r.must(200, "PATCH", version, obj{"attributes": obj{"nbf": 1}}) }, true},
		{"operation taken", "me", func() { r.must(200, "PATCH", version, obj{"key_ops": []string{"sign"}}) }, func() { r.must(200, "PATCH", version, obj{"key_ops": []string{"wrapKey", "unwrapKey"}}) }, true},
		{"deleted", "me", func() { r.must(200, "DELETE", "/keys/cmk", nil) }, func() { r.must(200, "POST", "/deletedkeys/cmk/recover", nil) }, true},
		{"firewall shut", "me", func() { r.Set(shut) }, func() { r.Set(r.vault) }, true},
		{"vault deleted", "me", func() { r.Forget(r.vault.ID) }, func() { r.Set(r.vault) }, true},
		{"no role", "stranger", nothing, nothing, true},
		{"no principal", "nobody", nothing, nothing, true},
		{"directory down", "outage", nothing, nothing, false},
		{"audit down", "unrecorded", nothing, nothing, false},
	}
	for _, tt := range tests {
		r.heard()
		tt.before()
		if told := r.heard(); tt.identity == "me" && (len(told) != 1 || !strings.HasPrefix(told[0], "revoked ")) {
			t.Errorf("%s: hooks %v", tt.name, told)
		}
		ref := envelope.KeyRef{KeyURL: base + "/keys/cmk", Identity: tt.identity}
		_, err := r.UnwrapKey(ctx, ref, kid, wrapped)
		if err == nil || errors.Is(err, envelope.ErrRefused) != tt.refused {
			t.Errorf("%s: unwrapping: %v, want refused %v", tt.name, err, tt.refused)
		}
		if _, _, err := r.WrapKey(ctx, ref, []byte("key")); err == nil || errors.Is(err, envelope.ErrRefused) != tt.refused {
			t.Errorf("%s: wrapping: %v, want refused %v", tt.name, err, tt.refused)
		}
		tt.after()
		if _, err := r.UnwrapKey(ctx, envelope.KeyRef{KeyURL: base + "/keys/cmk", Identity: "me"}, kid, wrapped); err != nil {
			t.Errorf("%s: unwrapping afterwards: %v", tt.name, err)
		}
	}
	for _, bad := range []string{
		"", "x", "http://kv1.vault.casemate.test:8443/keys/cmk", "https://kv1.vault.casemate.test/keys/cmk", "https://kv1.vault.evil.test:8443/keys/cmk",
		"https://kv2.vault.casemate.test:8443/keys/cmk", base + "/secrets/cmk", base + "/keys/cmk/1", base + "/keys", base + "/keys/../keys/cmk",
		base + "/keys/cmk?x=1", base + "/keys/cmk%2f1", "https://u@kv1.vault.casemate.test:8443/keys/cmk", base + "/keys/other", base + "/keys/ec",
	} {
		if _, _, err := r.WrapKey(ctx, envelope.KeyRef{KeyURL: bad, Identity: "me"}, []byte("key")); !errors.Is(err, envelope.ErrRefused) {
			t.Errorf("wrapping with %q: %v", bad, err)
		}
	}
	if _, err := r.UnwrapKey(ctx, envelope.KeyRef{KeyURL: base + "/keys/ec", Identity: "me"}, kid, wrapped); !errors.Is(err, envelope.ErrRefused) {
		t.Errorf("unwrapping with a kid of another key: %v", err)
	}
}

func TestKeyExists(t *testing.T) {
	r := newRig(t)
	r.must(200, "POST", "/keys/cmk/create", obj{"kty": "RSA"})
	r.must(200, "POST", "/keys/ec/create", obj{"kty": "EC"})
	for url, want := range map[string]bool{
		base + "/keys/cmk": true, base + "/keys/ec": false, base + "/keys/none": false,
		"https://kv9.vault.casemate.test:8443/keys/cmk": false, "https://example.org/keys/cmk": false,
	} {
		if err := r.KeyExists(t.Context(), url); (err == nil) != want {
			t.Errorf("KeyExists(%s) = %v", url, err)
		}
	}
}

func TestExpiryRevokes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.cfg.Clock = time.Now
		r.vault.RetentionDays = 1 // no vault has so few; the test's time is for others
		r.Set(r.vault)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- r.Run(ctx) }()
		exp := time.Now().Add(90 * time.Second).Unix()
		kid := r.must(200, "POST", "/keys/k/create", obj{"kty": "oct", "attributes": obj{"exp": exp}}).str("key", "kid")
		r.must(200, "PATCH", "/keys/k/", obj{"attributes": obj{"exp": exp + 10}})
		r.heard()
		time.Sleep(time.Until(time.Unix(exp+10, 0)) - time.Millisecond)
		synctest.Wait()
		if got := r.heard(); got != nil {
			t.Errorf("revoked early: %v", got)
		}
		time.Sleep(time.Millisecond)
		synctest.Wait()
		if got, want := r.heard(), []string{"revoked /keys/k/" + versionOf(kid)}; !cmp.Equal(got, want) {
			t.Errorf("hooks %v, want %v", got, want)
		}
		// A key that is made to expire now, while Run sleeps, and the purge of a deleted one after its retention.
		r.must(200, "DELETE", "/keys/k", nil)
		r.must(200, "PUT", "/secrets/stay", obj{"value": "x"})
		time.Sleep(24*time.Hour - time.Second)
		synctest.Wait()
		r.must(200, "GET", "/deletedkeys/k", nil)
		time.Sleep(time.Second)
		synctest.Wait()
		r.must(404, "GET", "/deletedkeys/k", nil)
		r.must(200, "GET", "/secrets/stay", nil)
		if n := len(r.mem.kvs); n != 2 {
			t.Errorf("%d records are left", n)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

func TestUnknownOutcomeRevokes(t *testing.T) {
	r := newRig(t)
	kid := r.must(200, "POST", "/keys/k/create", obj{"kty": "oct"}).str("key", "kid")
	r.heard()
	r.mem.fail = errors.New("disk is gone")
	r.must(500, "PATCH", "/keys/k/", obj{"attributes": obj{"enabled": false}})
	r.must(500, "DELETE", "/keys/k", nil)
	if got, want := r.heard(), []string{"revoked /keys/k/" + versionOf(kid), "revoked /keys/k"}; !cmp.Equal(got, want) {
		t.Errorf("hooks %v, want %v", got, want)
	}
}

func TestPurgeVault(t *testing.T) {
	r := newRig(t)
	r.must(200, "POST", "/keys/k/create", obj{"kty": "oct", "attributes": obj{"exp": 1_900_000_000}})
	r.must(200, "PUT", "/secrets/s", obj{"value": "x"})
	r.must(200, "DELETE", "/secrets/s", nil)
	other := r.vault
	other.ID = mustID(strings.Replace(vaultID, "Kv1", "Kv10", 1))
	r.Set(other)
	if err := r.update(t.Context(), other, func(b bench) error {
		return b.putObject(keys, object{Name: "mine"})
	}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := r.Purge(t.Context(), r.vault); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(r.mem.kvs); n != 1 {
		t.Errorf("%d records are left, want the other vault's: %v", n, r.mem.kvs)
	}
}

// TestConcurrentUse rotates, disables and uses one key from many goroutines: no use succeeds after its version's disabling
// was answered.
func TestConcurrentUse(t *testing.T) {
	r := newRig(t)
	r.must(200, "POST", "/keys/k/create", obj{"kty": "oct"})
	ref := envelope.KeyRef{KeyURL: base + "/keys/k", Identity: "me"}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 50 {
				wrapped, kid, err := r.WrapKey(t.Context(), ref, []byte("0123456789abcdef"))
				if err != nil {
					t.Error(err)
					return
				}
				if _, err := r.UnwrapKey(t.Context(), ref, kid, wrapped); err != nil && !errors.Is(err, envelope.ErrRefused) {
					t.Error(err)
				}
			}
		})
	}
	for range 20 {
		old := r.must(200, "GET", "/keys/k", nil).str("key", "kid")
		wrapped, kid, err := r.WrapKey(t.Context(), ref, []byte("0123456789abcdef"))
		if err != nil || kid != old {
			t.Fatal(kid, err)
		}
		r.must(200, "POST", "/keys/k/rotate", nil)
		r.must(200, "PATCH", "/keys/k/"+versionOf(old), obj{"attributes": obj{"enabled": false}})
		if _, err := r.UnwrapKey(t.Context(), ref, kid, wrapped); !errors.Is(err, envelope.ErrRefused) {
			t.Fatalf("a disabled version unwraps: %v", err)
		}
	}
	wg.Wait()
}

// BenchmarkUnwrapKey alternates between the bare primitive, the envelope's way in and the REST handler, so that all three meet
// the same machine; it reports how much of the bare primitive's speed the others keep.
func BenchmarkUnwrapKey(b *testing.B) {
	for _, size := range []int{2048, 3072} {
		b.Run(fmt.Sprintf("RSA-%d", size), func(b *testing.B) { benchmarkUnwrapKey(b, size) })
	}
}

func benchmarkUnwrapKey(b *testing.B, size int) {
	r := newRig(b)
	kid := r.must(200, "POST", "/keys/k/create", obj{"kty": "RSA", "key_size": size}).str("key", "kid")
	ref := envelope.KeyRef{KeyURL: kid, Identity: "me"}
	wrapped, _, err := r.WrapKey(b.Context(), ref, make([]byte, 32))
	if err != nil {
		b.Fatal(err)
	}
	_, k, err := r.load(b.Context(), r.vault, "k", "")
	if err != nil {
		b.Fatal(err)
	}
	path, body := "/keys/k/"+versionOf(kid)+"/unwrapkey", obj{"alg": "RSA-OAEP-256", "value": b64(wrapped)}
	ways := []func() error{
		func() error { _, err := k.unwrapResource(wrapped); return err },
		func() error { _, err := r.UnwrapKey(b.Context(), ref, kid, wrapped); return err },
		func() error { r.must(200, "POST", path, body); return nil },
	}
	var samples [3][]time.Duration
	for b.Loop() {
		for i, way := range ways {
			began := time.Now()
			if err := way(); err != nil {
				b.Fatal(err)
			}
			samples[i] = append(samples[i], time.Since(began))
		}
	}
	var median [3]float64
	for i, s := range samples {
		slices.Sort(s)
		median[i] = float64(s[len(s)/2])
	}
	b.ReportMetric(median[0], "bare-ns")
	b.ReportMetric(median[0]/median[1], "envelope/bare")
	b.ReportMetric(median[0]/median[2], "rest/bare")
}
