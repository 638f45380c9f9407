package resource

import (
	"fmt"
	"strings"
)

// ID is a canonical Azure resource ID: the path of a scope, from the tenant ("/") over a subscription and a resource
// group down to a resource, its children, and extension resources below any of them.
//
//	/subscriptions/{s}/resourceGroups/{g}/providers/{namespace}/{type}/{name}[/{childType}/{childName}…][/providers/…]
//
// IDs compare without regard to case: use Key for maps and stores, String for people. The zero ID is the tenant.
type ID struct {
	path string // no trailing slash; "" is the tenant
}

// Tenant is the root of all scopes.
var Tenant = ID{}

// maxIDLength bounds an ID; Azure documents 2,048 for the whole request path.
const maxIDLength = 2048

// ParseID reads s, which must start with "/" and hold only canonical segments: none empty, "." or "..", no control
// characters, no percent sign, backslash, question mark or hash. "/" is the tenant.
func ParseID(s string) (ID, error) {
	if s == "/" {
		return Tenant, nil
	}
	if len(s) > maxIDLength {
		return ID{}, fmt.Errorf("resource ID is longer than %d characters", maxIDLength)
	}
	if !strings.HasPrefix(s, "/") || strings.HasSuffix(s, "/") {
		return ID{}, fmt.Errorf("resource ID %q must start with a slash and not end with one", s)
	}
	segs := strings.Split(s[1:], "/")
	for _, seg := range segs {
		if err := checkSegment(seg); err != nil {
			return ID{}, fmt.Errorf("resource ID %q: %w", s, err)
		}
	}
	if err := checkShape(segs); err != nil {
		return ID{}, fmt.Errorf("resource ID %q: %w", s, err)
	}
	return ID{path: s}, nil
}

// MustParseID is ParseID for IDs written in code; it panics on a malformed one.
func MustParseID(s string) ID {
	id, err := ParseID(s)
	if err != nil {
		panic(err)
	}
	return id
}

func checkSegment(seg string) error {
	if seg == "" || seg == "." || seg == ".." {
		return fmt.Errorf("segment %q is not allowed", seg)
	}
	for _, r := range seg {
		if r < 0x20 || r == 0x7f || strings.ContainsRune(`%\?#<>&;`, r) {
			return fmt.Errorf("segment %q holds a character that is not allowed", seg)
		}
	}
	return nil
}

// checkShape demands pairs of type and name; "providers/{namespace}" starts a resource or an extension resource.
func checkShape(segs []string) error {
	for i := 0; i < len(segs); {
		if strings.EqualFold(segs[i], "providers") && i+1 < len(segs) && strings.Contains(segs[i+1], ".") {
			if i+2 == len(segs) {
				return fmt.Errorf("a provider namespace needs a type and a name after it")
			}
			i += 2
			continue
		}
		if i+1 >= len(segs) {
			return fmt.Errorf("segment %q needs a name after it", segs[i])
		}
		i += 2
	}
	return nil
}

// String is the ID as its creator spelled it; "/" for the tenant.
func (id ID) String() string {
	if id.path == "" {
		return "/"
	}
	return id.path
}

// Key is the lower-case form, equal for equal IDs.
func (id ID) Key() string { return strings.ToLower(id.String()) }

// Equal compares without regard to case.
func (id ID) Equal(o ID) bool { return strings.EqualFold(id.path, o.path) }

// IsTenant says whether the ID is the root scope.
func (id ID) IsTenant() bool { return id.path == "" }

func (id ID) segments() []string {
	if id.path == "" {
		return nil
	}
	return strings.Split(id.path[1:], "/")
}

// after returns the segment that follows the first segment equal to word at an even position before any provider.
func (id ID) after(word string) string {
	segs := id.segments()
	for i := 0; i+1 < len(segs); i += 2 {
		if strings.EqualFold(segs[i], word) {
			return segs[i+1]
		}
		if strings.EqualFold(segs[i], "providers") {
			return ""
		}
	}
	return ""
}

// Subscription is the subscription's GUID, or "" above one.
func (id ID) Subscription() string { return id.after("subscriptions") }

// ResourceGroup is the resource group's name, or "" above one.
func (id ID) ResourceGroup() string { return id.after("resourceGroups") }

// Name is the last segment.
func (id ID) Name() string {
	segs := id.segments()
	if len(segs) == 0 {
		return ""
	}
	return segs[len(segs)-1]
}

// Type is the full resource type, such as Microsoft.Storage/storageAccounts/blobServices, in the spelling of the ID.
// Subscriptions and resource groups have the types Microsoft.Resources/subscriptions and …/subscriptions/resourceGroups.
func (id ID) Type() string {
	segs := id.segments()
	last := lastProvider(segs)
	if last < 0 {
		switch len(segs) {
		case 2:
			return "Microsoft.Resources/" + segs[0]
		case 4:
			return "Microsoft.Resources/" + segs[0] + "/" + segs[2]
		}
		return ""
	}
	b := strings.Builder{}
	b.WriteString(segs[last+1])
	for i := last + 2; i < len(segs); i += 2 {
		b.WriteString("/" + segs[i])
	}
	return b.String()
}

// WireType is the type as documents show it: resource groups lose "subscriptions" there, though not in permissions.
func (id ID) WireType() string {
	if id.Is("Microsoft.Resources/subscriptions/resourceGroups") {
		return "Microsoft.Resources/resourceGroups"
	}
	return id.Type()
}

// Is compares the type without regard to case.
func (id ID) Is(typ string) bool { return strings.EqualFold(id.Type(), typ) }

func lastProvider(segs []string) int {
	for i := len(segs) - 4; i >= 0; i-- {
		if strings.EqualFold(segs[i], "providers") && strings.Contains(segs[i+1], ".") {
			return i
		}
	}
	return -1
}

// Parent is the enclosing scope: a child resource's parent resource, a resource's group, an extension resource's
// target, a group's subscription, a subscription's tenant.
func (id ID) Parent() ID {
	segs := id.segments()
	if len(segs) <= 2 {
		return Tenant
	}
	cut := len(segs) - 2
	if p := lastProvider(segs); p >= 0 && cut == p+2 {
		cut = p
	}
	if cut == 0 {
		return Tenant
	}
	return ID{path: "/" + strings.Join(segs[:cut], "/")}
}

// Names are the names of the resource and its ancestors of the same provider, outermost first.
func (id ID) Names() []string {
	segs := id.segments()
	var out []string
	for i := lastProvider(segs) + 3; i < len(segs) && i >= 3; i += 2 {
		out = append(out, segs[i])
	}
	return out
}

// Child is the ID of a child resource of the same provider.
func (id ID) Child(typ, name string) (ID, error) {
	return ParseID(strings.TrimSuffix(id.String(), "/") + "/" + typ + "/" + name)
}

// Extension is the ID of a resource of another provider below this scope.
func (id ID) Extension(typ, name string) (ID, error) {
	return ParseID(strings.TrimSuffix(id.String(), "/") + "/providers/" + typ + "/" + name)
}

// Contains says whether o is this scope or lies below it.
func (id ID) Contains(o ID) bool {
	if id.path == "" {
		return true
	}
	a, b := id.Key(), o.Key()
	return a == b || strings.HasPrefix(b, a+"/")
}

// Scopes lists the keys of the scope and all its ancestors, tenant ("/") first.
func (id ID) Scopes() []string {
	var out []string
	for s := id; ; s = s.Parent() {
		out = append(out, s.Key())
		if s.IsTenant() {
			break
		}
	}
	for i, j := 0, len(out)-1; i < j; i, j = i+1, j-1 {
		out[i], out[j] = out[j], out[i]
	}
	return out
}
