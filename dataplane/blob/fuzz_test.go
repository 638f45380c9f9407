package blob

import (
	"encoding/base64"
	"net/http"
	"testing"
	"unicode/utf8"
)

func FuzzRange(f *testing.F) {
	for _, s := range []string{"bytes=0-", "bytes=5-4", "bytes=-5", "bytes=0-9223372036854775807", "bytes=+1-2", "bytes=1-2,3-4", "octets=1-2"} {
		f.Add(s, int64(10))
	}
	f.Fuzz(func(t *testing.T, value string, size int64) {
		r, err := parseRange(http.Header{"X-Ms-Range": {value}})
		if err != nil || size < 0 {
			return
		}
		off, n, err := r.resolve(size)
		if err == nil && (off < 0 || n < 0 || off+n > size || (r.set && n == 0)) {
			t.Fatalf("%q of %d bytes gives %d bytes from %d", value, size, n, off)
		}
	})
}

func FuzzBlockList(f *testing.F) {
	f.Add([]byte("<BlockList><Latest>AAAA</Latest></BlockList>"))
	f.Add([]byte("<BlockList><Committed>AAAA</Committed></BlockList><BlockList/>"))
	f.Add([]byte("<!DOCTYPE a [<!ENTITY b 'c'>]><BlockList>&b;</BlockList>"))
	f.Fuzz(func(t *testing.T, body []byte) {
		list, err := parseBlockList(body)
		if err != nil {
			return
		}
		for _, ref := range list {
			if checkBlockID(ref.id) != nil || ref.source < fromCommitted || ref.source > fromLatest {
				t.Fatalf("%q gives %+v", body, ref)
			}
		}
	})
}

func FuzzBlockID(f *testing.F) {
	f.Add("AAAA")
	f.Add("AA==\n")
	f.Fuzz(func(t *testing.T, id string) {
		if checkBlockID(id) != nil {
			return
		}
		raw, err := base64.StdEncoding.DecodeString(id)
		if err != nil || len(raw) == 0 || len(raw) > maxBlockID || base64.StdEncoding.EncodeToString(raw) != id {
			t.Fatalf("%q was accepted", id)
		}
	})
}

// FuzzName checks that keys of names, whatever they hold, come back from a list and stay inside their container.
func FuzzName(f *testing.F) {
	for _, s := range []string{"a/../b", "..", "\\", "a\x7f", "é", "%2F", "0", "/"} {
		f.Add(s, "")
		f.Add(s, "p")
	}
	f.Fuzz(func(t *testing.T, name, prefix string) {
		if checkBlobName(name) != nil || !utf8.ValidString(prefix) {
			return
		}
		a := &account{id: "a1"}
		key := blobKey("a1", "c1", name)
		if past := a.pastPrefix("c1", name); past <= key || past <= blobKey("a1", "c1", name+"\U0010FFFF") || past >= blobKey("a1", "c2", "") {
			t.Fatalf("the place past %q is wrong", name)
		}
		for _, m := range []marker{{name: name}, {name: name, isPrefix: true}} {
			if back, err := parseMarker(m.String()); err != nil || back != m {
				t.Fatalf("marker %+v comes back as %+v, %v", m, back, err)
			}
		}
	})
}

func FuzzServiceProperties(f *testing.F) {
	f.Add([]byte("<StorageServiceProperties><Cors/></StorageServiceProperties>"))
	f.Fuzz(func(t *testing.T, body []byte) {
		if v, err := parseServiceProperties(body); err == nil && v != "" && v < oldestVersion {
			t.Fatalf("version %q was accepted", v)
		}
	})
}
