package envelope_test

import (
	"crypto/fips140"
	"os"
	"os/exec"
	"strings"
	"testing"
)

func fipsOnly() bool { return strings.Contains(os.Getenv("GODEBUG"), "fips140=only") }

// TestFIPSOnly runs all other tests of this binary in FIPS 140-only mode, in
// which the standard library refuses whatever is not approved.
func TestFIPSOnly(t *testing.T) {
	if fipsOnly() {
		if !fips140.Enabled() {
			t.Fatal("GODEBUG asks for FIPS 140-only mode and it is off")
		}
		return
	}
	if testing.Short() {
		t.Skip("runs the whole suite a second time; not in short mode")
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.short", "-test.count=1", "-test.timeout=2m")
	cmd.Env = append(os.Environ(), "GODEBUG=fips140=only")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("the suite in FIPS 140-only mode: %v\n%s", err, out)
	}
}
