package blob

import (
	"context"
	"io"
	"slices"
)

// A content's parts are runs that follow each other without gaps. Beside whole depot objects, which is all that block
// blobs have, a run can be a piece of an object, bytes in the content record itself, or a hole, which reads as zeros.

// maxInlineRuns is how many bytes a content record of runs may hold itself; what goes beyond becomes an object.
const maxInlineRuns = 256 << 10

func (p part) isHole() bool { return p.Object == "" && p.Data == nil }

// full is the plaintext size of the object.
func (p part) full() int64 {
	if p.Full != 0 {
		return p.Full
	}
	return p.Size
}

// cut is the piece [from, to) of a run.
func (p part) cut(from, to int64) part {
	if from == 0 && to == p.Size {
		return p
	}
	out := part{Object: p.Object, Size: to - from}
	switch {
	case p.Object != "":
		out.Full, out.Skip = p.full(), p.Skip+from
	case p.Data != nil:
		out.Data = p.Data[from:to:to]
	}
	return out
}

// join puts b behind a as one run, when that is possible.
func (p part) join(b part) (part, bool) {
	switch {
	case p.isHole() && b.isHole():
	case p.Data != nil && b.Data != nil && len(p.Data)+len(b.Data) <= maxInline:
		p.Data = slices.Concat(p.Data, b.Data)
	case p.Object != "" && p.Object == b.Object && p.Skip+p.Size == b.Skip:
		p.Full = p.full()
	default:
		return p, false
	}
	p.Size += b.Size
	return p, true
}

// window is the runs of [off, off+n), which must lie inside.
func window(runs []part, off, n int64) []part {
	var out []part
	var pos int64
	for _, p := range runs {
		from, to := max(off-pos, 0), min(off+n-pos, p.Size)
		if from < to {
			out = append(out, p.cut(from, to))
		}
		pos += p.Size
	}
	return out
}

// splice replaces the bytes of [off, off+with.Size) by with; size is that of the whole.
func splice(runs []part, size, off int64, with part) []part {
	var out []part
	add := func(p part) {
		if p.Size == 0 {
			return
		}
		if n := len(out); n > 0 {
			if joined, ok := out[n-1].join(p); ok {
				out[n-1] = joined
				return
			}
		}
		out = append(out, p)
	}
	for _, p := range window(runs, 0, off) {
		add(p)
	}
	add(with)
	for _, p := range window(runs, off+with.Size, size-off-with.Size) {
		add(p)
	}
	return out
}

// resize cuts runs off, or adds a hole.
func resize(runs []part, size, next int64) []part {
	if next <= size {
		return window(runs, 0, next)
	}
	return splice(runs, size, size, part{Size: next - size})
}

// inlineBytes is how much the content record holds itself.
func inlineBytes(runs []part) (n int) {
	for _, p := range runs {
		n += len(p.Data)
	}
	return n
}

// span is a range of bytes, the end exclusive.
type span struct{ start, end int64 }

// written is what of [off, off+n) is no hole.
func written(runs []part, off, n int64) []span {
	var out []span
	pos := off
	for _, p := range window(runs, off, n) {
		end := pos + p.Size
		switch last := len(out) - 1; {
		case p.isHole():
		case last >= 0 && out[last].end == pos:
			out[last].end = end
		default:
			out = append(out, span{pos, end})
		}
		pos = end
	}
	return out
}

var zeros [64 << 10]byte

func writeZeros(ctx context.Context, w io.Writer, n int64) error {
	for n > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		m, err := w.Write(zeros[:min(n, int64(len(zeros)))])
		if n -= int64(m); err != nil {
			return err
		}
	}
	return nil
}
