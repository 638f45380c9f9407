package resource

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"time"
	"unicode"
)

// Provisioning states of ARM.
const (
	StateCreating  = "Creating"
	StateUpdating  = "Updating"
	StateDeleting  = "Deleting"
	StateSucceeded = "Succeeded"
	StateFailed    = "Failed"
	StateCanceled  = "Canceled"
)

// SystemData says who made and last changed a resource (ARM RPC, "System metadata").
type SystemData struct {
	CreatedBy          string    `json:"createdBy,omitempty"`
	CreatedByType      string    `json:"createdByType,omitempty"`
	CreatedAt          time.Time `json:"createdAt"`
	LastModifiedBy     string    `json:"lastModifiedBy,omitempty"`
	LastModifiedByType string    `json:"lastModifiedByType,omitempty"`
	LastModifiedAt     time.Time `json:"lastModifiedAt"`
}

// Document is a control-plane resource: the body its client sent, kept whole with properties nobody here knows, and what
// the platform knows about it. A provider reads it through small typed views (Into) of just what it uses.
type Document struct {
	ID       ID
	Body     map[string]any // location, tags, kind, sku, identity, properties, …; never id, name, type or systemData
	System   SystemData
	ETag     string         // opaque; changes with every write
	State    string         // provisioningState
	Fault    *Error         // why State is Failed
	Internal map[string]any // what the platform remembers and never shows: principal ids, addresses, key ids
	Creator  Caller         // who created it: reconciling acts for this caller
}

// Into decodes the body into a typed view; unknown properties are left alone.
func (d *Document) Into(view any) error {
	b, err := json.Marshal(d.Body)
	if err != nil {
		return fmt.Errorf("encoding %s: %w", d.ID, err)
	}
	if err := json.Unmarshal(b, view); err != nil {
		return Errorf(400, "InvalidRequestContent", "The request content was invalid and could not be deserialized: '%s'.", err)
	}
	return nil
}

// Get reads a value by a path such as "properties.encryption.keySource"; nil where there is none. Names compare without
// regard to case, as ARM's do.
func (d *Document) Get(path string) any { return lookup(d.Body, path) }

// String is Get for strings; "" for anything else.
func (d *Document) String(path string) string { s, _ := d.Get(path).(string); return s }

// Bool is Get for booleans; false for anything else.
func (d *Document) Bool(path string) bool { b, _ := d.Get(path).(bool); return b }

// Location is the resource's location, lower-case without spaces.
func (d *Document) Location() string {
	return strings.ToLower(strings.ReplaceAll(d.String("location"), " ", ""))
}

// Set writes a value at a path, making the objects on the way.
func (d *Document) Set(path string, value any) {
	if d.Body == nil {
		d.Body = map[string]any{}
	}
	set(d.Body, path, value)
}

// Unset removes the value at a path.
func (d *Document) Unset(path string) {
	i := strings.LastIndexByte(path, '.')
	m := d.Body
	if i >= 0 {
		m, _ = lookup(d.Body, path[:i]).(map[string]any)
		path = path[i+1:]
	}
	if m != nil {
		delete(m, fold(m, path))
	}
}

// Recall reads a string that the platform remembered in Internal.
func (d *Document) Recall(key string) string { s, _ := d.Internal[key].(string); return s }

// Remember keeps a value in Internal.
func (d *Document) Remember(key string, value any) {
	if d.Internal == nil {
		d.Internal = map[string]any{}
	}
	d.Internal[key] = value
}

// Clone is a deep copy: documents handed out are the receiver's own.
func (d *Document) Clone() *Document {
	c := *d
	c.Body, _ = cloneValue(d.Body).(map[string]any)
	c.Internal, _ = cloneValue(d.Internal).(map[string]any)
	c.Creator.Groups = append([]string(nil), d.Creator.Groups...)
	return &c
}

func cloneValue(v any) any {
	switch v := v.(type) {
	case map[string]any:
		if v == nil {
			return map[string]any(nil)
		}
		out := make(map[string]any, len(v))
		for k, e := range v {
			out[k] = cloneValue(e)
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i, e := range v {
			out[i] = cloneValue(e)
		}
		return out
	}
	return v
}

// Wire is the document as clients see it.
func (d *Document) Wire() map[string]any {
	out := maps.Clone(d.Body)
	if out == nil {
		out = map[string]any{}
	}
	out["id"], out["name"], out["type"] = d.ID.String(), d.ID.Name(), d.ID.WireType()
	if d.State != "" {
		props, _ := out["properties"].(map[string]any)
		props = maps.Clone(props)
		if props == nil {
			props = map[string]any{}
		}
		props["provisioningState"] = d.State
		out["properties"] = props
	}
	if !d.System.CreatedAt.IsZero() {
		out["systemData"] = d.System
	}
	if d.ETag != "" {
		out["etag"] = d.ETag
	}
	return out
}

// DecodeBody reads a JSON object, numbers kept as written. It refuses anything else, trailing data included, and objects
// that hold one name in two spellings: what is checked under one of them could be used under the other.
func DecodeBody(b []byte) (map[string]any, error) {
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	var m map[string]any
	if err := dec.Decode(&m); err != nil {
		return nil, Errorf(400, "InvalidRequestContent", "The request content was invalid and could not be deserialized: '%s'.", err)
	}
	if m == nil {
		return nil, Errorf(400, "InvalidRequestContent", "The request content must be a JSON object.")
	}
	if dec.More() {
		return nil, Errorf(400, "InvalidRequestContent", "The request content holds more than one JSON value.")
	}
	return m, checkSpellings(m, false)
}

// distinct are objects whose names are no property names but a client's own, in which case counts.
var distinct = map[string]bool{"environmentvariables": true, "inputs": true, "outputs": true}

// checkSpellings refuses two names in one object that compare as equal without regard to case, as Get and Into compare
// them.
func checkSpellings(v any, cases bool) error {
	switch v := v.(type) {
	case map[string]any:
		seen := make(map[string]string, len(v))
		for name, e := range v {
			folded := foldName(name)
			if other, twice := seen[folded]; twice && !cases {
				return Errorf(400, "InvalidRequestContent", "The request content holds a property in two spellings, '%.100s' and '%.100s'.", min(name, other), max(name, other))
			}
			seen[folded] = name
			if err := checkSpellings(e, distinct[folded]); err != nil {
				return err
			}
		}
	case []any:
		for _, e := range v {
			if err := checkSpellings(e, false); err != nil {
				return err
			}
		}
	}
	return nil
}

// foldName is one spelling of all that strings.EqualFold and encoding/json take for the same.
func foldName(s string) string {
	return strings.Map(func(r rune) rune {
		least := r
		for f := unicode.SimpleFold(r); f != r; f = unicode.SimpleFold(f) {
			least = min(least, f)
		}
		return unicode.ToLower(least)
	}, s)
}

func fold(m map[string]any, name string) string {
	if _, ok := m[name]; ok {
		return name
	}
	for k := range m {
		if strings.EqualFold(k, name) {
			return k
		}
	}
	return name
}

func lookup(m map[string]any, path string) any {
	var cur any = m
	for part := range strings.SplitSeq(path, ".") {
		obj, ok := cur.(map[string]any)
		if !ok {
			return nil
		}
		cur = obj[fold(obj, part)]
	}
	return cur
}

func set(m map[string]any, path string, value any) {
	parts := strings.Split(path, ".")
	for _, p := range parts[:len(parts)-1] {
		p = fold(m, p)
		next, ok := m[p].(map[string]any)
		if !ok {
			next = map[string]any{}
			m[p] = next
		}
		m = next
	}
	m[fold(m, parts[len(parts)-1])] = value
}
