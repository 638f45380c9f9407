package blob

import (
	"bytes"
	"context"
	"errors"
	"slices"

	"casemate.dev/resource"
	"casemate.dev/store"
)

const (
	pageSize     = 512
	maxPageBlob  = 8 << 40 // bytes
	maxPageWrite = 4 << 20 // Put Page, bytes
	maxRuns      = 50_000  // separately written runs of a page blob
)

// sequenceConditions are x-ms-if-sequence-number-le, -lt and -eq; nil: not given.
type sequenceConditions struct{ le, lt, eq *int64 }

func (q sequenceConditions) check(n int64) error {
	if (q.le != nil && n > *q.le) || (q.lt != nil && n >= *q.lt) || (q.eq != nil && n != *q.eq) {
		return resource.Errorf(412, "SequenceNumberConditionNotMet", "The sequence number condition specified was not met: the blob's is %d.", n)
	}
	return nil
}

// pageWrite is Put Page: body is nil to clear. off and n are aligned to pages.
type pageWrite struct {
	upload
	off, n int64
	clear  bool
	seq    sequenceConditions
}

func (s *Service) mayWritePages(cond conditions, cur *blobRecord, name string) error {
	if cur == nil {
		return errBlobNotFound(name)
	}
	if err := s.mayChange(cond, cur); err != nil {
		return err
	}
	return mustBe(pageBlob, cur)
}

func (s *Service) checkPages(q pageWrite, cur *blobRecord, name string) error {
	if err := s.mayWritePages(q.cond, cur, name); err != nil {
		return err
	}
	if q.off+q.n > cur.Size {
		return resource.Errorf(416, "InvalidPageRange", "The page range specified is invalid: the blob has %d bytes.", cur.Size)
	}
	return q.seq.check(cur.Sequence)
}

// putPages writes or clears pages.
func (s *Service) putPages(ctx context.Context, a *account, container, name string, q pageWrite) (rec *blobRecord, err error) {
	var c string
	err = s.view(ctx, a, container, func(r store.Reader, cr *containerRecord) error {
		c = cr.ID
		cur, err := a.blob(r, c, name)
		if err != nil {
			return err
		}
		return s.checkPages(q, cur, name)
	})
	if err != nil {
		return nil, err
	}
	st := &staged{s: s, part: part{Size: q.n}}
	if !q.clear {
		if st, err = s.stage(ctx, a, c, q.body, q.size, q.sums, true); err != nil {
			return nil, err
		}
		if st.key == "" {
			st.part = part{Data: st.inline, Size: q.n}
		}
	}
	rec, err = s.splicePages(ctx, a, container, c, name, q, st)
	if errors.Is(err, errSpill) {
		// The bytes are small, and so many were written before that the record holds no more of them.
		var big *staged
		if big, err = s.stage(ctx, a, c, bytes.NewReader(st.inline), q.n, &checksum{}, false); err != nil {
			return nil, err
		}
		st = big
		rec, err = s.splicePages(ctx, a, container, c, name, q, st)
	}
	st.settle(err)
	s.sweepSoon()
	return rec, err
}

func (s *Service) splicePages(ctx context.Context, a *account, container, c, name string, q pageWrite, st *staged) (rec *blobRecord, err error) {
	err = s.updateSame(ctx, a, container, c, func(t store.Txn) error {
		old, err := a.blob(t, c, name)
		if err != nil {
			return err
		}
		if err := s.checkPages(q, old, name); err != nil {
			return err
		}
		body, err := a.content(t, c, old.Content)
		if err != nil {
			return err
		}
		runs := splice(body.Parts, old.Size, q.off, st.part)
		if st.part.Data != nil && inlineBytes(runs) > maxInlineRuns {
			return errSpill
		}
		if len(runs) > maxRuns && len(runs) > len(body.Parts) {
			return resource.Errorf(409, "BlockCountExceedsLimit", "The page blob consists of %d separately written ranges, which is the limit of this service.", maxRuns)
		}
		if st.key != "" {
			a.retain(t, c, st.part.Object)
		}
		rec = s.nextPages(old)
		return a.replace(t, c, name, old, rec, content{Parts: runs}, nil)
	})
	return rec, err
}

// nextPages is the record after a change of the contents.
func (s *Service) nextPages(old *blobRecord) *blobRecord {
	r := *old
	r.stamp, r.Content, r.MD5 = s.stampNow(), newID(), nil
	r.Lease = old.Lease.after(r.Modified)
	return &r
}

// pageProperties is what Set Blob Properties can change of a page blob: size (-1: not) and sequence number.
type pageProperties struct {
	size     int64
	action   string // max, update, increment; empty: leave it
	sequence int64
}

func (p pageProperties) asked() bool { return p.size >= 0 || p.action != "" }

// setPageProperties resizes a page blob and sets its sequence number. props nil leaves the content headers.
func (s *Service) setPageProperties(ctx context.Context, a *account, container, name string, cond conditions, p pageProperties, props *properties) (rec *blobRecord, err error) {
	err = s.update(ctx, a, container, func(t store.Txn, c *containerRecord) error {
		old, err := a.blob(t, c.ID, name)
		if err != nil {
			return err
		}
		if err := s.mayWritePages(cond, old, name); err != nil {
			return err
		}
		rec = s.nextPages(old)
		switch p.action {
		case "max":
			rec.Sequence = max(rec.Sequence, p.sequence)
		case "update":
			rec.Sequence = p.sequence
		case "increment":
			if rec.Sequence++; rec.Sequence < 0 {
				return resource.Errorf(409, "SequenceNumberIncrementTooLarge", "The sequence number increment cannot be performed because it would result in overflow of the sequence number.")
			}
		}
		if props != nil {
			rec.properties = *props
		}
		if p.size < 0 || p.size == old.Size {
			rec.Content = old.Content
			return a.save(t, blobKey(a.id, c.ID, name), rec)
		}
		body, err := a.content(t, c.ID, old.Content)
		if err != nil {
			return err
		}
		runs := resize(slices.Clone(body.Parts), old.Size, p.size)
		rec.Size = p.size
		return a.replace(t, c.ID, name, old, rec, content{Parts: runs}, nil)
	})
	s.sweepSoon()
	return rec, err
}

// pages tells which pages were written.
func (s *Service) pages(ctx context.Context, a *account, container, name string, cond conditions, want byteRange) (rec *blobRecord, out []span, err error) {
	rd, err := s.read(ctx, a, container, name, cond)
	defer rd.release()
	if err != nil {
		return rd.rec, nil, err
	}
	if err := mustBe(pageBlob, rd.rec); err != nil {
		return rd.rec, nil, err
	}
	off, n, err := want.resolve(rd.rec.Size)
	if err != nil {
		return rd.rec, nil, err
	}
	return rd.rec, written(rd.content.Parts, off, n), nil
}
