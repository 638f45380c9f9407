package rbac

import (
	"bytes"
	"cmp"
	"hash/maphash"
	"slices"
	"strings"

	"casemate.dev/resource"
)

// Assignment gives a role to a principal at a scope and everything below it.
type Assignment struct {
	ID        string // resource ID
	Principal string // object id of a user, group, service principal or managed identity
	Role      string // role definition: GUID, or a resource ID that ends in it
	Scope     resource.ID
	Condition string // not empty: the assignment grants nothing
}

// grant is an assignment as decisions see it.
type grant struct {
	assignment *Assignment
	slot       uint32 // of the role in the role set
	inert      bool   // has a condition: grants nothing
}

// entry is a grant of one principal. The hash of its scope lets a decision pass over it without touching the scope.
type entry struct {
	hash  uint64
	scope string // lower-case
	grant
}

type span struct{ start, end uint32 }

// index finds the grants of a principal at a scope and above it. It is immutable once built. A principal's entries lie
// side by side, ordered by the hash of their scope: a decision looks up each of the caller's object ids once and then
// stays within those entries, so that it costs few cache misses however many assignments there are. Hashes are seeded
// at random and never decide: equal hashes are followed by comparing the scopes.
type index struct {
	principals map[string]span // by lower-case object id
	entries    []entry
}

func buildIndex(seed maphash.Seed, grants []grant) *index {
	x := &index{principals: map[string]span{}, entries: make([]entry, 0, len(grants))}
	scopes := map[string]string{} // one copy of each
	by := map[string][]entry{}
	for _, g := range grants {
		key := g.assignment.Scope.Key()
		if have, ok := scopes[key]; ok {
			key = have
		} else {
			scopes[key] = key
		}
		p := strings.ToLower(g.assignment.Principal)
		by[p] = append(by[p], entry{maphash.String(seed, key), key, g})
	}
	for p, list := range by {
		slices.SortFunc(list, func(a, b entry) int { return cmp.Compare(a.hash, b.hash) })
		start := len(x.entries)
		x.entries = append(x.entries, list...)
		x.principals[p] = span{uint32(start), uint32(len(x.entries))}
	}
	return x
}

// fewEntries is up to how many entries of a principal are read in turn; more are searched by hash.
const fewEntries = 16

// visit calls yield for each grant of the caller at the scope or above it until yield returns false.
func (x *index) visit(caller *resource.Caller, path *scopePath, yield func(grant) bool) {
	if len(x.entries) == 0 || !x.visitOne(caller.Object, path, yield) {
		return
	}
	for _, g := range caller.Groups {
		if !x.visitOne(g, path, yield) {
			return
		}
	}
}

func (x *index) visitOne(object string, path *scopePath, yield func(grant) bool) bool {
	list := x.of(object)
	if len(list) == 0 {
		return true
	}
	for _, a := range path.ancestors {
		at := 0
		if len(list) > fewEntries {
			at, _ = slices.BinarySearchFunc(list, a.hash, func(e entry, h uint64) int { return cmp.Compare(e.hash, h) })
		}
		for ; at < len(list) && list[at].hash <= a.hash; at++ {
			if e := &list[at]; e.hash == a.hash && e.scope == string(path.key(a)) && !yield(e.grant) {
				return false
			}
		}
	}
	return true
}

// scopePath is a scope in lower case with all its ancestors, the tenant and itself included.
type scopePath struct {
	lower     []byte
	ancestors []ancestor
}

type ancestor struct {
	hash uint64
	end  int // length of its part of the path; 0 is the tenant
}

func (p *scopePath) key(a ancestor) []byte {
	if a.end == 0 {
		return tenant
	}
	return p.lower[:a.end]
}

var tenant = []byte("/")

// takeApart uses the buffers as far as they reach, so that the usual scope stays on the asker's stack.
func takeApart(seed maphash.Seed, scope resource.ID, buf []byte, list []ancestor) scopePath {
	p := scopePath{ancestors: append(list, ancestor{hash: maphash.Bytes(seed, tenant)})}
	if scope.IsTenant() {
		return p
	}
	path := scope.String()
	lower, ok := lowerASCII(buf, path)
	if !ok {
		lower = []byte(strings.ToLower(path))
	}
	p.lower = lower
	for end := range ancestors(lower) {
		p.ancestors = append(p.ancestors, ancestor{maphash.Bytes(seed, lower[:end]), end})
	}
	return p
}

// ancestors yields the lengths of the prefixes of a lower-case resource ID that are scopes themselves: after each pair
// of segments, but never between a provider's namespace and what it qualifies (resource.ID, "Shape").
func ancestors(path []byte) func(yield func(int) bool) {
	return func(yield func(int) bool) {
		for i := 0; i < len(path); {
			first := segmentEnd(path, min(i+1, len(path)))
			second := segmentEnd(path, min(first+1, len(path)))
			if string(path[i+1:first]) == "providers" && slices.Contains(path[min(first+1, len(path)):second], '.') {
				i = second
				continue
			}
			if !yield(second) {
				return
			}
			i = second
		}
	}
}

// segmentEnd is the position of the first slash at or after i, or the length.
func segmentEnd(path []byte, i int) int {
	if n := bytes.IndexByte(path[i:], '/'); n >= 0 {
		return i + n
	}
	return len(path)
}

// lowerASCII returns s in lower case, in buf where it fits, or false when s holds anything but ASCII.
func lowerASCII(buf []byte, s string) ([]byte, bool) {
	buf = append(buf[:0], s...)
	high := byte(0)
	for i, c := range buf {
		high |= c
		if c-'A' < 26 {
			buf[i] = c | 0x20
		}
	}
	return buf, high < 0x80
}

// of returns the entries of one object id.
func (x *index) of(object string) []entry {
	// ToLower allocates only for an object id that is not in its canonical spelling.
	s := x.principals[strings.ToLower(object)]
	return x.entries[s.start:s.end]
}
