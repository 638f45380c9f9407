package envelope_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"testing"

	"casemate.dev/envelope"
)

var update = flag.Bool("update", false, "write testdata/vectors.json anew")

// vectorFile is testdata/vectors.json. Plaintexts are the bytes i*7+i/251 (mod
// 256) for i from 0. Sealed bytes are base64.
type vectorFile struct {
	Comment  string       `json:"comment"`
	Objects  []vector     `json:"objects"`
	Values   []vector     `json:"values"`
	MustFail []mustFailer `json:"mustFail"`
}

type vector struct {
	Name        string `json:"name"`
	ResourceID  string `json:"resourceId"`
	ResourceKey string `json:"resourceKey"` // hex
	KeyID       string `json:"keyId"`       // hex
	Object      string `json:"object"`
	PlainSize   int    `json:"plainSize"`
	Sealed      []byte `json:"sealed"`
}

// mustFailer opens an altered base, or the base under altered circumstances.
// Its bytes are the ranges of Keep, [from, to), of the base one after the
// other; without Keep, all of it; then the byte at XOR.At is changed by XOR.With.
type mustFailer struct {
	Name        string   `json:"name"`
	Kind        string   `json:"kind"` // object or value
	Base        string   `json:"base"`
	Keep        [][2]int `json:"keep,omitempty"`
	XOR         *xor     `json:"xor,omitempty"`
	Append      []byte   `json:"append,omitempty"`
	Object      *string  `json:"object,omitempty"`
	ResourceID  string   `json:"resourceId,omitempty"`
	ResourceKey string   `json:"resourceKey,omitempty"`
}

type xor struct {
	At   int  `json:"at"`
	With byte `json:"with"`
}

func pattern(n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i*7 + i/251)
	}
	return p
}

func (v vector) key(t *testing.T) (k [32]byte) {
	t.Helper()
	raw, err := hex.DecodeString(v.ResourceKey)
	if err != nil || len(raw) != 32 {
		t.Fatalf("resource key of %s: %v", v.Name, err)
	}
	return [32]byte(raw)
}

const vectorPath = "testdata/vectors.json"

func readVectors(t *testing.T) vectorFile {
	t.Helper()
	if *update {
		writeVectors(t)
	}
	text, err := os.ReadFile(vectorPath)
	if err != nil {
		t.Fatal(err)
	}
	var file vectorFile
	if err := json.Unmarshal(text, &file); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestVectors(t *testing.T) {
	file := readVectors(t)
	for _, v := range file.Objects {
		t.Run("object/"+v.Name, func(t *testing.T) {
			h := envelope.HandleOf(v.ResourceID, v.key(t))
			got, err := openAll(h, v.Object, v.Sealed)
			if err != nil || !bytes.Equal(got, pattern(v.PlainSize)) {
				t.Fatalf("got %d bytes, %v; want the %d of the pattern", len(got), err, v.PlainSize)
			}
			needOracle(t)
			k := oracleKey{v.ResourceID, v.key(t)}
			if got := hex.EncodeToString(k.id()); got != v.KeyID {
				t.Errorf("key id %s, want %s", got, v.KeyID)
			}
			if got := k.seal(v.Object, v.Sealed[64:96], pattern(v.PlainSize)); !bytes.Equal(got, v.Sealed) {
				t.Error("the oracle seals to other bytes than those published")
			}
		})
	}
	for _, v := range file.Values {
		t.Run("value/"+v.Name, func(t *testing.T) {
			h := envelope.HandleOf(v.ResourceID, v.key(t))
			got, err := h.OpenBytes(v.Object, v.Sealed)
			if err != nil || !bytes.Equal(got, pattern(v.PlainSize)) {
				t.Fatalf("got %d bytes, %v; want the %d of the pattern", len(got), err, v.PlainSize)
			}
			needOracle(t)
			k := oracleKey{v.ResourceID, v.key(t)}
			if got := k.sealValue(v.Object, v.Sealed[1:17], pattern(v.PlainSize)); !bytes.Equal(got, v.Sealed) {
				t.Error("the oracle seals to other bytes than those published")
			}
		})
	}
}

func TestMustFailVectors(t *testing.T) {
	file := readVectors(t)
	bases := map[string]vector{}
	for _, v := range file.Objects {
		bases["object/"+v.Name] = v
	}
	for _, v := range file.Values {
		bases["value/"+v.Name] = v
	}
	for _, m := range file.MustFail {
		t.Run(m.Kind+"/"+m.Name, func(t *testing.T) {
			v, ok := bases[m.Kind+"/"+m.Base]
			if !ok {
				t.Fatalf("no base %q", m.Base)
			}
			sealed := m.apply(v.Sealed)
			if m.Object != nil {
				v.Object = *m.Object
			}
			if m.ResourceID != "" {
				v.ResourceID = m.ResourceID
			}
			if m.ResourceKey != "" {
				v.ResourceKey = m.ResourceKey
			}
			h := envelope.HandleOf(v.ResourceID, v.key(t))
			if m.Kind == "value" {
				got, err := h.OpenBytes(v.Object, sealed)
				if !errors.Is(err, envelope.ErrCorrupt) || got != nil {
					t.Fatalf("got %d bytes and %v, want ErrCorrupt", len(got), err)
				}
				return
			}
			got, err := openAll(h, v.Object, sealed)
			if !errors.Is(err, envelope.ErrCorrupt) {
				t.Fatalf("got %d bytes and %v, want ErrCorrupt", len(got), err)
			}
			if !bytes.HasPrefix(pattern(v.PlainSize), got) {
				t.Fatal("bytes came out that were never sealed")
			}
		})
	}
}

func (m mustFailer) apply(base []byte) []byte {
	out := bytes.Clone(base)
	if m.Keep != nil {
		out = nil
		for _, r := range m.Keep {
			out = append(out, base[r[0]:r[1]]...)
		}
	}
	if m.XOR != nil {
		out[m.XOR.At] ^= m.XOR.With
	}
	return append(out, m.Append...)
}

// openAll reads a sealed object to its end.
func openAll(h *envelope.Handle, object string, sealed []byte) ([]byte, error) {
	o, err := h.Open(bytes.NewReader(sealed), int64(len(sealed)), object)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	_, err = io.Copy(&out, o)
	return out.Bytes(), err
}

func writeVectors(t *testing.T) {
	t.Helper()
	needOracle(t)
	const resource = "/subscriptions/00000000-0000-0000-0000-00000000c0de/resourceGroups/Ward/providers/Microsoft.Storage/storageAccounts/patients"
	k := oracleKey{Resource: resource, Key: [32]byte(pattern(32))}
	base := vector{ResourceID: resource, ResourceKey: hex.EncodeToString(k.Key[:]), KeyID: hex.EncodeToString(k.id())}
	file := vectorFile{Comment: "Sealed objects and values of package envelope, format version 1, described in format.go. " +
		"Plaintext byte i is (i*7 + i/251) mod 256. Every entry of mustFail must be refused; see its type in vectors_test.go."}
	for i, n := range []int{0, 1, 100, 65536, 131077} {
		v := base
		v.Name = []string{"empty", "one", "hundred", "full-segment", "three-segments"}[i]
		v.Object, v.PlainSize = "containers/raw/"+v.Name, n
		v.Sealed = k.seal(v.Object, pattern(64)[i:i+32], pattern(n))
		file.Objects = append(file.Objects, v)
	}
	for i, n := range []int{0, 300} {
		v := base
		v.Name, v.Object, v.PlainSize = []string{"empty", "document"}[i], "document/7", n
		v.Sealed = k.sealValue(v.Object, pattern(64)[i:i+16], pattern(n))
		file.Values = append(file.Values, v)
	}
	file.MustFail = mustFailers()
	text, err := json.MarshalIndent(file, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(vectorPath), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(vectorPath, append(text, '\n'), 0o644); err != nil {
		t.Fatal(err)
	}
}

func mustFailers() []mustFailer {
	const three = "three-segments"
	const seg, head, end = 65564, 96, 96 + 131077 + 3*28
	elsewhere := "containers/raw/elsewhere"
	list := []mustFailer{
		{Name: "nothing", Base: "empty", Keep: [][2]int{{0, 0}}},
		{Name: "header only", Base: "hundred", Keep: [][2]int{{0, head}}},
		{Name: "half a header", Base: "hundred", Keep: [][2]int{{0, 48}}},
		{Name: "cut by one byte", Base: "hundred", Keep: [][2]int{{0, head + 127}}},
		{Name: "cut to an empty segment", Base: "hundred", Keep: [][2]int{{0, head + 28}}},
		{Name: "cut after the first segment", Base: three, Keep: [][2]int{{0, head + seg}}},
		{Name: "cut after the second segment", Base: three, Keep: [][2]int{{0, head + 2*seg}}},
		{Name: "cut within the second segment", Base: three, Keep: [][2]int{{0, head + seg + 1000}}},
		{Name: "first segment missing", Base: three, Keep: [][2]int{{0, head}, {head + seg, end}}},
		{Name: "middle segment missing", Base: three, Keep: [][2]int{{0, head + seg}, {head + 2*seg, end}}},
		{Name: "segments exchanged", Base: three, Keep: [][2]int{{0, head}, {head + seg, head + 2*seg}, {head, head + seg}, {head + 2*seg, end}}},
		{Name: "segment twice", Base: three, Keep: [][2]int{{0, head + seg}, {head, head + seg}, {head + 2*seg, end}}},
		{Name: "last segment twice", Base: three, Keep: [][2]int{{0, end}, {head + 2*seg, end}}},
		{Name: "only the last segment", Base: three, Keep: [][2]int{{0, head}, {head + 2*seg, end}}},
		{Name: "one byte more", Base: "hundred", Append: []byte{0}},
		{Name: "an empty segment more", Base: "full-segment", Append: make([]byte, 28)},
		{Name: "another place", Base: "hundred", Object: &elsewhere},
		{Name: "another resource", Base: "hundred", ResourceID: "/subscriptions/other"},
		{Name: "another resource key", Base: "hundred", ResourceKey: hex.EncodeToString(pattern(64)[32:])},
		{Name: "flip in the first nonce", Base: three, XOR: &xor{head, 1}},
		{Name: "flip in the first ciphertext", Base: three, XOR: &xor{head + 12, 0x80}},
		{Name: "flip in the middle tag", Base: three, XOR: &xor{head + 2*seg - 1, 1}},
		{Name: "flip in the last tag", Base: three, XOR: &xor{end - 1, 1}},
	}
	for _, f := range []struct {
		name string
		at   int
	}{{"magic", 0}, {"version", 9}, {"reserved bytes", 11}, {"segment size", 13}, {"resource hash", 16}, {"key id", 63}, {"salt", 64}, {"end of the salt", 95}} {
		list = append(list, mustFailer{Name: "flip in the " + f.name, Base: "hundred", XOR: &xor{f.at, 1}})
	}
	for i := range list {
		list[i].Kind = "object"
	}
	value := []mustFailer{
		{Name: "nothing", Base: "empty", Keep: [][2]int{{0, 0}}},
		{Name: "cut by one byte", Base: "document", Keep: [][2]int{{0, 344}}},
		{Name: "one byte more", Base: "document", Append: []byte{0}},
		{Name: "another place", Base: "document", Object: &elsewhere},
		{Name: "another resource", Base: "document", ResourceID: "/subscriptions/other"},
		{Name: "flip in the version", Base: "document", XOR: &xor{0, 1}},
		{Name: "flip in the salt", Base: "document", XOR: &xor{16, 1}},
		{Name: "flip in the nonce", Base: "document", XOR: &xor{17, 1}},
		{Name: "flip in the ciphertext", Base: "document", XOR: &xor{29, 1}},
		{Name: "flip in the tag", Base: "document", XOR: &xor{344, 1}},
	}
	for _, m := range value {
		m.Kind = "value"
		list = append(list, m)
	}
	return list
}
