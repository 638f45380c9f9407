package images

import (
	"os"
	"testing"
)

func TestUnpack(t *testing.T) {
	dir := t.TempDir()
	script, err := Unpack("sklearn", dir)
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(script); err != nil || st.Mode().Perm()&0o100 == 0 {
		t.Errorf("%v, %v", st, err)
	}
	if _, err := Unpack("none", dir); err == nil {
		t.Error("a recipe that does not exist was unpacked")
	}
}
