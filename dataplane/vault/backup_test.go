package vault

import (
	"context"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// withBackups lets a rig seal backups.
func (r *rig) withBackups(s Sealer) *rig {
	r.cfg.Backups = func(context.Context) (Sealer, error) { return s, nil }
	return r
}

func TestBackupAndRestoreKey(t *testing.T) {
	seal := newSealer()
	r := newRig(t).withBackups(seal)
	first := r.must(200, "POST", "/keys/Signer/create", obj{"kty": "EC", "attributes": obj{"exp": 1_900_000_000}, "tags": obj{"a": "b"}})
	second := r.must(200, "POST", "/keys/signer/rotate", nil)
	r.must(200, "PUT", "/keys/signer/rotationpolicy", obj{"lifetimeActions": []obj{rotateAfter("P30D")}, "attributes": obj{"expiryTime": "P90D"}})
	digest := b64(make([]byte, 32))
	signed := r.must(200, "POST", "/keys/signer/"+versionOf(first.str("key", "kid"))+"/sign", obj{"alg": "ES256", "value": digest}).str("value")
	blob := r.must(200, "POST", "/keys/signer/backup", obj{}).str("value")

	if a := r.do("POST", "/keys/restore", obj{"value": blob}); a.status != 409 || a.err.Code != "Conflict" {
		t.Errorf("restoring over a live key: %d %v", a.status, a.err)
	}
	r.must(200, "DELETE", "/keys/signer", nil)
	if a := r.do("POST", "/keys/restore", obj{"value": blob}); a.status != 409 || a.inner() != "ObjectIsDeletedButRecoverable" {
		t.Errorf("restoring over a deleted key: %d %v", a.status, a.err)
	}
	r.must(204, "DELETE", "/deletedkeys/signer", nil)

	for name, to := range map[string]*rig{"same vault": r, "another store": newRig(t).withBackups(seal)} {
		to.heard()
		got := to.must(200, "POST", "/keys/restore", obj{"value": blob})
		if diff := cmp.Diff(second.body["key"], got.body["key"]); diff != "" {
			t.Errorf("%s: key (-backed up +restored):\n%s", name, diff)
		}
		if !cmp.Equal(to.heard(), []string{"rotated /keys/Signer"}) {
			t.Errorf("%s: the envelope was not told", name)
		}
		old := "/keys/signer/" + versionOf(first.str("key", "kid"))
		if diff := cmp.Diff(first.body["attributes"], to.must(200, "GET", old, nil).body["attributes"]); diff != "" {
			t.Errorf("%s: attributes of the first version:\n%s", name, diff)
		}
		if v := to.must(200, "POST", old+"/verify", obj{"alg": "ES256", "digest": digest, "value": signed}); v.body["value"] != true {
			t.Errorf("%s: the restored key does not verify", name)
		}
		if got := to.must(200, "GET", "/keys/signer/rotationpolicy", nil); got.str("attributes", "expiryTime") != "P90D" {
			t.Errorf("%s: policy %v", name, got.body)
		}
	}
}

func TestRestoreRefusals(t *testing.T) {
	seal := newSealer()
	r := newRig(t).withBackups(seal)
	r.must(200, "POST", "/keys/k/create", obj{"kty": "oct"})
	r.must(200, "PUT", "/secrets/s", obj{"value": "x"})
	key := r.must(200, "POST", "/keys/k/backup", nil).str("value")
	secret := r.must(200, "POST", "/secrets/s/backup", nil).str("value")
	damaged := unb64(t, key)
	damaged[len(damaged)/2] ^= 1

	otherTenant := newRig(t).withBackups(seal)
	otherTenant.vault.Tenant = "22222222-2222-2222-2222-222222222222"
	otherTenant.Set(otherTenant.vault)
	otherPlatform := newRig(t).withBackups(newSealer())
	for name, tt := range map[string]struct {
		r          *rig
		path, blob string
	}{
		"damaged":            {r, "/keys/restore", b64(damaged)},
		"a secret as a key":  {r, "/keys/restore", secret},
		"a key as a secret":  {r, "/secrets/restore", key},
		"another tenant":     {otherTenant, "/keys/restore", key},
		"another platform":   {otherPlatform, "/keys/restore", key},
		"nothing":            {r, "/keys/restore", ""},
		"magic only":         {r, "/keys/restore", b64(backupMagic)},
		"something unsealed": {r, "/keys/restore", b64(append([]byte("CMKVB1\x00"), `{"parts":[]}`...))},
	} {
		if a := tt.r.do("POST", tt.path, obj{"value": tt.blob}); a.status != 400 || a.err.Code != "BadParameter" {
			t.Errorf("%s: %d %v", name, a.status, a.err)
		}
	}
	if a := newRig(t).do("POST", "/keys/restore", obj{"value": key}); a.status != 501 {
		t.Errorf("without a backup key: %d", a.status)
	}
	if strings.Contains(string(damaged), `"kty"`) {
		t.Error("the backup shows its content")
	}
	if a := r.do("POST", "/keys/none/backup", nil); a.status != 404 {
		t.Errorf("backing up nothing: %d", a.status)
	}
}

// TestBackupKeepsSecrets: whatever versions a secret has, a restore gives them all back.
func TestBackupKeepsSecrets(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		seal := newSealer()
		r := newRig(t).withBackups(seal)
		var ids, values []string
		for range rapid.IntRange(1, 5).Draw(rt, "versions") {
			value := rapid.String().Draw(rt, "value")
			a := r.must(200, "PUT", "/secrets/s", obj{"value": value, "contentType": rapid.StringN(0, 20, 60).Draw(rt, "type")})
			ids, values = append(ids, versionOf(a.str("id"))), append(values, a.str("value"))
		}
		before := r.must(200, "GET", "/secrets/s/versions", nil)
		to := newRig(t).withBackups(seal)
		restored := to.must(200, "POST", "/secrets/restore", obj{"value": r.must(200, "POST", "/secrets/s/backup", nil).str("value")})
		if _, shown := restored.body["value"]; shown {
			rt.Fatal("the answer to a restore shows the value")
		}
		if diff := cmp.Diff(before.body, to.must(200, "GET", "/secrets/s/versions", nil).body); diff != "" {
			rt.Fatal(diff)
		}
		for i, id := range ids {
			if got := to.must(200, "GET", "/secrets/s/"+id, nil).str("value"); got != values[i] {
				rt.Fatalf("version %d: %q, want %q", i, got, values[i])
			}
		}
	})
}
