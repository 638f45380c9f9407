package vault

import (
	"path/filepath"
	"testing"

	"casemate.dev/envelope"
	"casemate.dev/store/pebble"
	"casemate.dev/store/storetest"
)

// TestReopen runs against the embedded store: what was acknowledged is there after the process is
// gone, nothing on the disk shows it, and under another vault key it is unreadable.
func TestReopen(t *testing.T) {
	dir := t.TempDir()
	files := storetest.NewCipher()
	sealer := newSealer()
	open := func() (*rig, *pebble.Store) {
		st, err := pebble.Open(pebble.Config{Dir: filepath.Join(dir, "store"), Cipher: files})
		if err != nil {
			t.Fatal(err)
		}
		return newRigOn(t, st, sealer), st
	}
	r, st := open()
	kid := r.must(200, "POST", "/keys/CanaryKey/create", obj{"kty": "RSA", "attributes": obj{"exp": 1_900_000_000}}).str("key", "kid")
	r.must(200, "PUT", "/secrets/canarysecret", obj{"value": "canary value"})
	r.must(200, "PUT", "/secrets/gone", obj{"value": "canary value"})
	r.must(200, "DELETE", "/secrets/gone", nil)
	ref := envelope.KeyRef{KeyURL: base + "/keys/CanaryKey", Identity: "me"}
	wrapped, _, err := r.WrapKey(t.Context(), ref, []byte("resource key"))
	if err != nil {
		t.Fatal(err)
	}
	if err := st.Close(); err != nil {
		t.Fatal(err)
	}
	storetest.NoPlaintext(t, dir, "CanaryKey", "canarykey", "canarysecret", "canary value")

	r, st = open()
	defer st.Close()
	if got, err := r.UnwrapKey(t.Context(), ref, kid, wrapped); err != nil || string(got) != "resource key" {
		t.Errorf("unwrapping after reopening: %q, %v", got, err)
	}
	if got := r.must(200, "GET", "/secrets/canarysecret", nil).str("value"); got != "canary value" {
		t.Errorf("secret after reopening: %q", got)
	}
	r.must(404, "GET", "/secrets/gone", nil)
	r.must(204, "DELETE", "/deletedsecrets/gone", nil)
	r.cfg.Handle = handleOf(newSealer()) // another key: as after the vault's key was destroyed and made again
	if a := r.do("GET", "/secrets/canarysecret", nil); a.status != 500 {
		t.Errorf("a record under another key: %d %v", a.status, a.body)
	}
}
