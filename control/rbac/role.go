package rbac

import (
	"strings"
	"sync"
	"sync/atomic"
)

// Permission is one block of a role definition. Blocks of a role add up; notActions subtract inside their own block.
type Permission struct {
	Actions        []string `json:"actions"`
	NotActions     []string `json:"notActions"`
	DataActions    []string `json:"dataActions"`
	NotDataActions []string `json:"notDataActions"`
	Condition      string   `json:"condition,omitempty"` // not empty: the block grants nothing
}

// Role is a role definition.
type Role struct {
	ID               string // GUID; the last segment of the definition's resource ID
	Name             string // roleName
	Description      string
	BuiltIn          bool
	AssignableScopes []string
	Permissions      []Permission
}

// roleKey is what roles are looked up by: the lower-case GUID of a definition's ID, however the ID is qualified.
func roleKey(id string) string {
	return strings.ToLower(id[strings.LastIndexByte(id, '/')+1:])
}

// Allows says whether the role by itself grants an action. It is meant for checks on definitions; decisions use Engine.
func (r Role) Allows(action string, isData bool) bool {
	return compileRole(r).allows(strings.ToLower(action), isData)
}

type block struct {
	actions, notActions patterns
	data, notData       patterns
}

type compiledRole struct {
	Role
	blocks []block
}

func compileRole(r Role) *compiledRole {
	c := &compiledRole{Role: r}
	for _, p := range r.Permissions {
		if p.Condition != "" {
			continue
		}
		c.blocks = append(c.blocks, block{
			actions: compilePatterns(p.Actions), notActions: compilePatterns(p.NotActions),
			data: compilePatterns(p.DataActions), notData: compilePatterns(p.NotDataActions),
		})
	}
	return c
}

// allows expects a lower-case action. A nil role, one that is assigned but not defined, allows nothing.
func (c *compiledRole) allows(action string, isData bool) bool {
	if c == nil || action == "" {
		return false
	}
	for i := range c.blocks {
		b := &c.blocks[i]
		yes, no := &b.actions, &b.notActions
		if isData {
			yes, no = &b.data, &b.notData
		}
		if yes.match(action) && !no.match(action) {
			return true
		}
	}
	return false
}

// maxMemo bounds the remembered actions of a role set. There are some hundred actions in the route table; a client that
// can make up more costs time, not memory.
const maxMemo = 4096

// roleSet is an immutable list of roles by slot number, with a memory of which roles allow which action. A change of any
// role makes a new set with an empty memory, so that nothing remembered outlives the definitions it came from.
type roleSet struct {
	slots []*compiledRole
	memo  [2]atomic.Pointer[map[string]bitset] // by isData; keys are actions as spelled by the asker
	mu    sync.Mutex                           // held by writers of memo
}

// at returns the role in a slot, nil when none is defined there.
func (s *roleSet) at(slot uint32) *compiledRole {
	if int(slot) >= len(s.slots) {
		return nil
	}
	return s.slots[slot]
}

type bitset []uint64

func (b bitset) has(i uint32) bool {
	return int(i/64) < len(b) && b[i/64]&(1<<(i%64)) != 0
}

// allowing returns the slots of the roles that allow the action.
func (s *roleSet) allowing(action string, isData bool) bitset {
	memo := &s.memo[0]
	if isData {
		memo = &s.memo[1]
	}
	if m := memo.Load(); m != nil {
		if b, ok := (*m)[action]; ok {
			return b
		}
	}
	bits := make(bitset, (len(s.slots)+63)/64)
	lower := strings.ToLower(action)
	for i, r := range s.slots {
		if r.allows(lower, isData) {
			bits[i/64] |= 1 << (i % 64)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	grown := map[string]bitset{}
	if m := memo.Load(); m != nil {
		if len(*m) >= maxMemo {
			return bits
		}
		for k, v := range *m {
			grown[k] = v
		}
	}
	grown[strings.Clone(action)] = bits
	memo.Store(&grown)
	return bits
}
