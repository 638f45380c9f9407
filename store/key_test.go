package store_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"casemate.dev/store"
)

func TestKey(t *testing.T) {
	tests := []struct {
		parts []string
		want  string
	}{
		{nil, ""},
		{[]string{"rbac", "assignment", "a1"}, "rbac/assignment/a1"},
		{[]string{"a/b"}, "a0_b"},
		{[]string{"a", "b"}, "a/b"},
		{[]string{"a", "", "b"}, "a//b"},
		{[]string{"00"}, "0`0`"},
		{[]string{"x-y.z"}, "x0]y0^z"},
		{[]string{"\x00\xff"}, "00\xff"},
	}
	for _, tt := range tests {
		if got := store.Key(tt.parts...); got != tt.want {
			t.Errorf("Key(%q) = %q, want %q", tt.parts, got, tt.want)
		}
	}
}

func TestPrefixNeverCoversASibling(t *testing.T) {
	prefix := store.Prefix("vault", "a")
	for _, parts := range [][]string{{"vault", "ab"}, {"vault", "a/x"}, {"vault", "a"}, {"vaulta"}} {
		if key := store.Key(parts...); strings.HasPrefix(key, prefix) {
			t.Errorf("prefix %q covers %q", prefix, key)
		}
	}
	if !strings.HasPrefix(store.Key("vault", "a", ""), prefix) {
		t.Errorf("prefix %q does not cover an empty last part", prefix)
	}
}

func TestSplitKeyRefuses(t *testing.T) {
	for _, key := range []string{"a-b", "0", "a/0", "0a", "0\x2f", "\x00"} {
		if parts, err := store.SplitKey(key); err == nil {
			t.Errorf("SplitKey(%q) = %q, want an error", key, parts)
		}
	}
}

// parts draws lists that are rich in the bytes which escaping must get right.
func parts() *rapid.Generator[[]string] {
	b := rapid.OneOf(rapid.SampledFrom([]byte{0, '-', '.', '/', '0', '1', 'a', 0x60, 0xff}), rapid.Byte())
	part := rapid.Map(rapid.SliceOfN(b, 0, 5), func(b []byte) string { return string(b) })
	return rapid.SliceOfN(part, 1, 4)
}

func TestKeyKeepsOrderAndIdentity(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := parts().Draw(t, "a"), parts().Draw(t, "b")
		if got, want := strings.Compare(store.Key(a...), store.Key(b...)), slices.Compare(a, b); got != want {
			t.Fatalf("comparing keys of %q and %q = %d, want %d", a, b, got, want)
		}
		back, err := store.SplitKey(store.Key(a...))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(a, back); diff != "" {
			t.Fatalf("SplitKey(Key) (-want +got):\n%s", diff)
		}
	})
}

func FuzzSplitKey(f *testing.F) {
	f.Add("rbac/assignment/a1")
	f.Add("a0_b//0`")
	f.Fuzz(func(t *testing.T, key string) {
		parts, err := store.SplitKey(key)
		if err != nil {
			return
		}
		if got := store.Key(parts...); got != key {
			t.Fatalf("Key(SplitKey(%q)) = %q", key, got)
		}
	})
}
