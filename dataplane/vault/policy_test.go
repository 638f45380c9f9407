package vault

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

const day = 24 * time.Hour

func rotateAfter(d string) obj {
	return obj{"trigger": obj{"timeAfterCreate": d}, "action": obj{"type": "rotate"}}
}

func before(word, d string) obj {
	return obj{"trigger": obj{"timeBeforeExpiry": d}, "action": obj{"type": word}}
}

// settled runs what is due, and says what was heard.
func (r *rig) settled() []string {
	r.t.Helper()
	if _, err := r.settle(r.t.Context()); err != nil {
		r.t.Fatal(err)
	}
	return r.heard()
}

func (r *rig) hearEvents() *rig {
	r.cfg.Event = func(e Event) { r.tell("event " + e.Type + " " + e.Name) }
	return r
}

func TestRotationPolicyRefusals(t *testing.T) {
	r := newRig(t)
	r.must(200, "POST", "/keys/k/create", obj{"kty": "oct"})
	for says, body := range map[string]obj{
		"at least 28 days":     {"attributes": obj{"expiryTime": "P27D"}},
		"ISO 8601":             {"attributes": obj{"expiryTime": "90 days"}},
		"is empty":             {"attributes": obj{"expiryTime": "P0D"}},
		"at least 7 days":      {"lifetimeActions": []obj{rotateAfter("P6D")}},
		"needs the policy's":   {"lifetimeActions": []obj{before("Rotate", "P10D")}},
		"'timeBeforeExpiry' o": {"lifetimeActions": []obj{{"trigger": obj{"timeAfterCreate": "P30D"}, "action": obj{"type": "Notify"}}}},
		"more than one":        {"lifetimeActions": []obj{rotateAfter("P30D"), rotateAfter("P40D")}},
		"either":               {"lifetimeActions": []obj{{"trigger": obj{}, "action": obj{"type": "Rotate"}}}},
		"not supported":        {"lifetimeActions": []obj{before("Explode", "P30D")}},
		"must leave":           {"lifetimeActions": []obj{before("Rotate", "P28D")}, "attributes": obj{"expiryTime": "P30D"}},
	} {
		if a := r.do("PUT", "/keys/k/rotationpolicy", body); a.status != 400 || !strings.Contains(a.err.Message, says) {
			t.Errorf("%q: %d %v", says, a.status, a.err)
		}
	}
	if a := r.do("PUT", "/keys/none/rotationpolicy", obj{}); a.status != 404 {
		t.Errorf("policy of nothing: %d", a.status)
	}
}

func TestRotationPolicyShown(t *testing.T) {
	r := newRig(t)
	r.must(200, "POST", "/keys/k/create", obj{"kty": "oct"})
	id := base + "/keys/k/rotationpolicy"
	notify := obj{"trigger": obj{"timeBeforeExpiry": "P30D"}, "action": obj{"type": "Notify"}}
	want := obj{"id": id, "lifetimeActions": []any{notify}, "attributes": obj{"expiryTime": nil}}
	if diff := cmp.Diff(want, r.must(200, "GET", "/keys/k/rotationpolicy", nil).body); diff != "" {
		t.Errorf("default policy (-want +got):\n%s", diff)
	}
	r.must(200, "PUT", "/keys/k/rotationpolicy", obj{"lifetimeActions": []obj{before("notify", "P7D"), rotateAfter("P2M")}, "attributes": obj{"expiryTime": "P1Y"}})
	r.advance(time.Hour)
	r.must(200, "PUT", "/keys/k/rotationpolicy", obj{"lifetimeActions": []obj{before("notify", "P8D"), rotateAfter("P2M")}, "attributes": obj{"expiryTime": "P1Y"}})
	want = obj{"id": id, "attributes": obj{"expiryTime": "P1Y", "created": 1.8e9, "updated": 1.8e9 + 3600}, "lifetimeActions": []any{
		obj{"trigger": obj{"timeAfterCreate": "P2M"}, "action": obj{"type": "Rotate"}},
		obj{"trigger": obj{"timeBeforeExpiry": "P8D"}, "action": obj{"type": "Notify"}},
	}}
	if diff := cmp.Diff(want, r.must(200, "GET", "/keys/k/rotationpolicy", nil).body); diff != "" {
		t.Errorf("policy (-want +got):\n%s", diff)
	}
}

// TestAutomaticRotation follows a key through two rotations, a disabled period, a deletion and a recovery.
func TestAutomaticRotation(t *testing.T) {
	r := newRig(t).hearEvents()
	r.must(200, "POST", "/keys/k/create", obj{"kty": "oct", "key_size": 128, "key_ops": []string{"wrapKey"}, "tags": obj{"a": "b"}})
	r.must(200, "PUT", "/keys/k/rotationpolicy", obj{"lifetimeActions": []obj{rotateAfter("P60D"), before("Notify", "P10D")}, "attributes": obj{"expiryTime": "P90D"}})
	r.heard()
	rotated := []string{"rotated /keys/k", "event Microsoft.KeyVault.KeyNewVersionCreated k"}
	current := func() string { return versionOf(r.must(200, "GET", "/keys/k", nil).str("key", "kid")) }
	first := current()
	step := func(name string, d time.Duration, want []string) {
		t.Helper()
		r.advance(d)
		old := func(s string) bool { return strings.HasPrefix(s, "revoked ") || strings.HasSuffix(s, "KeyExpired k") }
		if got := slices.DeleteFunc(r.settled(), old); !cmp.Equal(got, want, cmpopts.EquateEmpty()) {
			t.Errorf("%s: heard %v, want %v", name, got, want)
		}
		if got := r.settled(); got != nil {
			t.Errorf("%s, again: heard %v", name, got)
		}
	}
	step("59 days", 59*day, nil)
	step("60 days", day, rotated)
	second := r.must(200, "GET", "/keys/k", nil)
	attrs := second.body["attributes"].(map[string]any)
	if current() == first || attrs["exp"] != float64(r.time().Add(90*day).Unix()) || !cmp.Equal(second.body["tags"], any(obj{"a": "b"})) {
		t.Errorf("second version: %v", second.body)
	}
	if ops := second.body["key"].(map[string]any)["key_ops"]; !cmp.Equal(ops, any([]any{"wrapKey"})) {
		t.Errorf("operations: %v", ops)
	}
	r.must(200, "PATCH", "/keys/k", obj{"attributes": obj{"enabled": false}})
	r.heard()
	step("disabled", 65*day, nil)
	r.must(200, "PATCH", "/keys/k", obj{"attributes": obj{"enabled": true}})
	r.heard()
	step("enabled, late", 0, rotated)
	r.must(200, "DELETE", "/keys/k", nil)
	r.heard()
	step("deleted", 61*day, nil)
	r.must(200, "POST", "/deletedkeys/k/recover", nil)
	step("recovered", 0, rotated)
	r.must(200, "PUT", "/keys/k/rotationpolicy", obj{"lifetimeActions": []obj{before("Notify", "P10D")}, "attributes": obj{"expiryTime": "P90D"}})
	step("without rotation", 79*day, nil)
	step("near its end", day, []string{"event Microsoft.KeyVault.KeyNearExpiry k"})
}

func TestNearExpiryIsTold(t *testing.T) {
	r := newRig(t).hearEvents()
	exp := r.time().Add(40 * day).Unix()
	r.must(200, "POST", "/keys/k/create", obj{"kty": "oct", "attributes": obj{"exp": exp}})
	r.must(200, "PUT", "/secrets/s", obj{"value": "x", "attributes": obj{"exp": exp}})
	r.must(200, "PUT", "/secrets/off", obj{"value": "x", "attributes": obj{"exp": exp, "enabled": false}})
	r.heard()
	r.advance(9 * day)
	if got := r.settled(); got != nil {
		t.Errorf("too early: %v", got)
	}
	r.advance(day)
	want := []string{"event Microsoft.KeyVault.KeyNearExpiry k", "event Microsoft.KeyVault.SecretNearExpiry s"}
	if got := r.settled(); !cmp.Equal(got, want) {
		t.Errorf("30 days before: %v", got)
	}
	r.must(200, "PATCH", "/secrets/s", obj{"tags": obj{"a": "b"}})
	if got := r.settled(); got != nil {
		t.Errorf("told again: %v", got)
	}
	r.must(200, "PUT", "/secrets/s", obj{"value": "y", "attributes": obj{"exp": exp}})
	if got := r.settled(); !cmp.Equal(got, want[1:]) {
		t.Errorf("a new version: %v", got)
	}
}

func TestRandomBytes(t *testing.T) {
	r := newRig(t)
	seen := map[string]bool{}
	for range 20 {
		seen[r.must(200, "POST", "/rng", obj{"count": 32}).str("value")] = true
	}
	if len(seen) != 20 {
		t.Error("random bytes repeat")
	}
	for _, n := range []int{-1, 0, 129} {
		if a := r.do("POST", "/rng", obj{"count": n}); a.status != 400 {
			t.Errorf("count %d: %d", n, a.status)
		}
	}
}

func FuzzDuration(f *testing.F) {
	for _, s := range []string{"P90D", "P3M", "PT48H", "P1Y10D", "P", "PT", "P2W", "P-1D", "P1DT", "P99999D"} {
		f.Add(s)
	}
	now := time.Unix(1_800_000_000, 0)
	f.Fuzz(func(t *testing.T, s string) {
		d, err := parseDuration(s)
		if err != nil {
			return
		}
		if !d.after(now).After(now) || !d.before(now).Before(now) || d.length() <= 0 {
			t.Errorf("%q leads nowhere: %v", s, fmt.Sprint(d))
		}
	})
}
