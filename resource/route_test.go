package resource

import "testing"

// Versions come from strangers: whatever they are, they are judged and never end in a panic, nor in a header or a link.
func TestVersions(t *testing.T) {
	list := OneOf("2024-04-01", "2020-01-01")
	for _, tt := range []struct {
		rule    Versions
		version string
		ok      bool
	}{
		{list, "2024-04-01", true}, {list, "2022-01-01-preview", true}, {list, "2030-01-01", true}, {list, "2019-12-31", false},
		{list, "", false}, {list, "7.4", false}, {list, "7.4-preview.1", false}, {list, "9.", false}, {list, "9.x", false}, {list, "2024", false},
		{list, "2024-04-01\r\nX: y", false}, {list, "2024-04-01&a=b", false}, {list, "2024-04-01é", false},
		{AnyVersion(), "7.4", true}, {AnyVersion(), "7.6-preview.2", true}, {AnyVersion(), "2026-02-06", true}, {AnyVersion(), "7.&", false}, {AnyVersion(), "", false},
		{Unversioned(), "", true}, {Unversioned(), "x", true},
	} {
		if err := tt.rule.Check(tt.version); (err == nil) != tt.ok {
			t.Errorf("%s %q: %v", tt.rule.rule, tt.version, err)
		}
	}
}

func FuzzVersions(f *testing.F) {
	f.Add("7.4")
	f.Fuzz(func(t *testing.T, version string) {
		for _, rule := range []Versions{OneOf("2024-04-01", "7.0"), OneOf("2024-04-01"), AnyVersion()} {
			if rule.Check(version) == nil && len(version) > 32 {
				t.Errorf("%q is accepted", version)
			}
		}
	})
}
