package sensitive

import (
	"encoding/base64"
	"strings"
	"testing"
)

func TestNamed(t *testing.T) {
	key := base64.StdEncoding.EncodeToString(make([]byte, 64))
	token := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"RS256","typ":"JWT"}`)) + "." + base64.RawURLEncoding.EncodeToString([]byte(`{"oid":"x"}`)) + ".c2ln"
	for _, tt := range []struct {
		name, value string
		found       bool
	}{
		{"K", key, true},
		{"CMD", "python t.py --key " + key + " --x 1", true},
		{"T", token, true},
		{"T", "Bearer " + strings.Repeat("a", 30), true},
		{"P", "-----BEGIN RSA PRIVATE KEY-----\nMII", true},
		{"P", "-----BEGIN PRIVATE KEY-----", true},
		{"U", "https://a.blob.core.windows.net/c?sv=2022-11-02&sr=c&sig=abcdefghijklmnopqrstuv%3D", true},
		{"C", "DefaultEndpointsProtocol=https;AccountName=a;AccountKey=abcdefghij==", true},
		{"C", "Server=db;User Id=sa;Password=hunter2", true},
		{"D", "postgres://u:pw@db/x", true},
		{"S", "abc8Q~" + strings.Repeat("x", 34), true},
		{"A", "AKIA" + strings.Repeat("A", 16), true},
		{"G", "ghp_" + strings.Repeat("a", 36), true},
		{"DB_PASSWORD", "x", true},
		{"HF_TOKEN", "x", true},
		{"CLIENT_SECRET", "x", true},
		{"API_KEY", "", false},
		{"DB_SECRET", "https://kv.vault.casemate.localhost/secrets/db", false},
		{"TOKENIZER", "bert", false},
		{"MAX_TOKENS", "512", false},
		{"LEARNING_RATE", "0.1", false},
		{"KEY", "value", false},
		{"C", "python train.py --data ${{inputs.data}} --signal=abcdefghijklmnopqrstuvwxyz", false},
		{"P", "-----BEGIN CERTIFICATE-----", false},
		{"B", base64.StdEncoding.EncodeToString(make([]byte, 63)), false},
		{"H", strings.Repeat("0123456789abcdef", 4), false},
	} {
		if got := Named(tt.name, tt.value); (got != "") != tt.found {
			t.Errorf("%s=%.40s: found %q, want found %v", tt.name, tt.value, got, tt.found)
		}
	}
}

func FuzzIn(f *testing.F) {
	f.Add("eyJhbGciOiJub25lIn0.e30.")
	f.Fuzz(func(_ *testing.T, s string) { In(s) })
}
