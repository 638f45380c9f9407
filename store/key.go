package store

import (
	"errors"
	"strings"
)

// separator stands between the parts of a key. Escaped parts contain only
// bytes above it, so that a part sorts before every longer part it begins.
const separator = '/'

// escape begins the two-byte form of a byte that may not stand for itself:
// every byte up to and including escape. It is the least byte above separator.
const escape = '0'

// Key joins parts to one key: Key("rbac", "assignment", id). Any byte may
// occur in a part. Distinct lists of parts give distinct keys, and keys sort
// as their lists of parts do, part by part and bytewise, so that
//
//	Key("a", "b") < Key("a", "b", "c") < Key("a", "b-c")
//
// Each byte b ≤ '0' of a part is written as '0' followed by '0'+b; all others
// stand for themselves. Parts of lower-case letters and digits other than 0
// are therefore unchanged, but a GUID or a name with '-' or '.' is not: always
// build keys and prefixes with Key and Prefix, never by hand.
func Key(parts ...string) string {
	var b strings.Builder
	for i, part := range parts {
		if i > 0 {
			b.WriteByte(separator)
		}
		writePart(&b, part)
	}
	return b.String()
}

// Prefix returns the prefix of all keys that have parts before their last
// parts: Prefix("a") covers Key("a", "x"), and neither Key("a") nor Key("ab").
func Prefix(parts ...string) string {
	if len(parts) == 0 {
		return ""
	}
	return Key(parts...) + string(separator)
}

func writePart(b *strings.Builder, part string) {
	for i := 0; i < len(part); i++ {
		if c := part[i]; c <= escape {
			b.WriteByte(escape)
			b.WriteByte(escape + c)
		} else {
			b.WriteByte(c)
		}
	}
}

// SplitKey is the inverse of Key for lists of one or more parts. It refuses
// strings that Key cannot have returned.
func SplitKey(key string) ([]string, error) {
	pieces := strings.Split(key, string(separator))
	for i, piece := range pieces {
		part, err := unescape(piece)
		if err != nil {
			return nil, err
		}
		pieces[i] = part
	}
	return pieces, nil
}

func unescape(piece string) (string, error) {
	var b strings.Builder
	for i := 0; i < len(piece); i++ {
		c := piece[i]
		switch {
		case c > escape:
			b.WriteByte(c)
		case c < escape:
			return "", errors.New("splitting key: byte is not escaped")
		case i+1 == len(piece):
			return "", errors.New("splitting key: escape at end of part")
		default:
			i++
			plain := piece[i] - escape
			if piece[i] < escape || plain > escape {
				return "", errors.New("splitting key: byte is escaped in vain")
			}
			b.WriteByte(plain)
		}
	}
	return b.String(), nil
}
