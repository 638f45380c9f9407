package file

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// List implements depot.Depot. It holds the names of one fan-out directory and
// of the directories above it at a time.
func (d *Depot) List(ctx context.Context, prefix string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		l := &lister{ctx: ctx, prefix: prefix, yield: func(key string) bool { return yield(key, nil) }}
		if err := l.level(d.objects, ""); err != nil && !errors.Is(err, errStop) {
			yield("", fmt.Errorf("listing objects: %w", err))
		}
	}
}

type lister struct {
	ctx    context.Context
	prefix string
	yield  func(string) bool
}

// errStop: the caller has seen enough.
var errStop = errors.New("stop")

// item is something to list, at its place in the order of keys.
type item struct {
	key  string // of an object; or the beginning of all keys below dir
	path string
	kind kind
}

type kind int

const (
	aObject  kind = iota
	aFanOut       // a directory of objects
	aSegment      // a level
)

// may reports whether keys that begin with key can have the prefix.
func (l *lister) may(key string) bool {
	return strings.HasPrefix(key, l.prefix) || strings.HasPrefix(l.prefix, key)
}

// level lists a directory of fan-outs and segments. start is what all keys
// below it begin with.
func (l *lister) level(dir, start string) error {
	names, err := l.read(dir)
	if err != nil {
		return err
	}
	var items []item
	for _, name := range names {
		it := item{start + name, filepath.Join(dir, name), aFanOut}
		if segment, ok := strings.CutSuffix(name, segmentSuffix); ok {
			it = item{start + segment + "/", it.path, aSegment}
		}
		if l.may(it.key) {
			items = append(items, it)
		}
	}
	// A fan-out "ab" and the segments that begin with "ab" interleave, and
	// are adjacent here; nothing else overlaps.
	slices.SortFunc(items, byKey)
	for len(items) > 0 {
		n := 1
		group := items[:1]
		if first := items[0]; first.kind == aFanOut {
			for n < len(items) && items[n].kind == aSegment && strings.HasPrefix(items[n].key, first.key) && len(first.key) == len(start)+fanOut {
				n++
			}
			objects, err := l.objects(first.path, start)
			if err != nil {
				return err
			}
			group = append(objects, items[1:n]...)
			slices.SortFunc(group, byKey)
		}
		if err := l.walk(group); err != nil {
			return err
		}
		items = items[n:]
	}
	return nil
}

func byKey(a, b item) int { return cmp.Compare(a.key, b.key) }

func (l *lister) objects(dir, start string) ([]item, error) {
	names, err := l.read(dir)
	if err != nil {
		return nil, err
	}
	var items []item
	for _, name := range names {
		if key := start + name; strings.HasPrefix(key, l.prefix) {
			items = append(items, item{key: key, kind: aObject})
		}
	}
	return items, nil
}

// walk lists objects and segments in order.
func (l *lister) walk(group []item) error {
	for _, it := range group {
		if it.kind == aSegment {
			if err := l.level(it.path, it.key); err != nil {
				return err
			}
			continue
		}
		if err := l.ctx.Err(); err != nil {
			return err
		}
		if !l.yield(it.key) {
			return errStop
		}
	}
	return nil
}

// read returns the names in a directory, none if it has gone.
func (l *lister) read(dir string) ([]string, error) {
	if err := l.ctx.Err(); err != nil {
		return nil, err
	}
	f, err := os.Open(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	names, err := f.Readdirnames(-1)
	return names, errors.Join(err, f.Close())
}
