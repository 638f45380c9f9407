package blob

import (
	"bytes"
	"context"
	"errors"
	"slices"

	"casemate.dev/resource"
	"casemate.dev/store"
)

// The kinds of blobs, as x-ms-blob-type spells them. A record without one is a block blob.
const (
	blockBlob  = "BlockBlob"
	appendBlob = "AppendBlob"
	pageBlob   = "PageBlob"
)

const (
	maxAppend = 100 << 20 // Append Block, bytes
	// raceTries bounds how often an operation begins again because another one was quicker.
	raceTries = 20
)

func (b *blobRecord) kind() string {
	if b.Kind == "" {
		return blockBlob
	}
	return b.Kind
}

// mustBe demands a kind of blob; old is nil when there is none.
func mustBe(kind string, old *blobRecord) error {
	if old != nil && old.kind() != kind {
		return resource.Errorf(409, "InvalidBlobType", "The blob type is invalid for this operation: the blob is of type %s.", old.kind())
	}
	return nil
}

// create makes an empty append blob, or a page blob of size zeros, in the place of whatever was there.
func (s *Service) create(ctx context.Context, a *account, container, name, kind string, size, sequence int64, u upload) (*blobRecord, error) {
	rec := s.newRecord(u)
	rec.Kind, rec.Size, rec.Sequence = kind, size, sequence
	var body content
	if size > 0 {
		body.Parts = []part{{Size: size}}
	}
	err := s.update(ctx, a, container, func(t store.Txn, c *containerRecord) error {
		old, err := a.blob(t, c.ID, name)
		if err != nil {
			return err
		}
		if err := s.mayWrite(u.cond, old); err != nil {
			return err
		}
		rec.Lease = leaseAfter(old, rec.Modified)
		loose, err := a.forget(t, c.ID, name)
		if err != nil {
			return err
		}
		return a.replace(t, c.ID, name, old, rec, body, loose)
	})
	s.sweepSoon()
	return rec, err
}

// appendConditions are those of Append Block and Append Blob Seal; -1: not given.
type appendConditions struct {
	maxSize, position int64
}

// mayAppend decides whether size more bytes may come to the end of cur.
func (s *Service) mayAppend(cond conditions, ac appendConditions, cur *blobRecord, name string, size int64) error {
	if cur == nil {
		return errBlobNotFound(name)
	}
	if err := s.mayChange(cond, cur); err != nil {
		return err
	}
	switch err := mustBe(appendBlob, cur); {
	case err != nil:
		return err
	case ac.position >= 0 && ac.position != cur.Size:
		return resource.Errorf(412, "AppendPositionConditionNotMet", "The append position condition specified was not met: the blob has %d bytes.", cur.Size)
	case ac.maxSize >= 0 && cur.Size+size > ac.maxSize:
		return resource.Errorf(412, "MaxBlobSizeConditionNotMet", "The max blob size condition specified was not met: the blob has %d bytes.", cur.Size)
	}
	return nil
}

func errSealed() *resource.Error {
	return resource.Errorf(409, "BlobIsSealed", "The specified blob is sealed and its contents can't be modified unless the blob is re-created after a delete.")
}

// errSpill: the bytes do not fit into the content record any more; they have to become an object first.
var errSpill = errors.New("content record is full")

// appendBlock adds one block at the end. Small blocks are gathered in the content record, and become one object when they
// have grown to maxInline.
func (s *Service) appendBlock(ctx context.Context, a *account, container, name string, cond conditions, ac appendConditions, u upload) (rec *blobRecord, offset int64, err error) {
	check := func(cur *blobRecord) error {
		if err := s.mayAppend(cond, ac, cur, name, u.size); err != nil {
			return err
		}
		switch {
		case cur.Sealed:
			return errSealed()
		case cur.Blocks >= maxCommitted:
			return resource.Errorf(409, "BlockCountExceedsLimit", "The blob has %d blocks, which is the limit.", maxCommitted)
		}
		return nil
	}
	var c string
	err = s.view(ctx, a, container, func(r store.Reader, cr *containerRecord) error {
		c = cr.ID
		cur, err := a.blob(r, c, name)
		if err != nil {
			return err
		}
		return check(cur)
	})
	if err != nil {
		return nil, 0, err
	}
	st, err := s.stage(ctx, a, c, u.body, u.size, u.sums, true)
	if err != nil {
		return nil, 0, err
	}
	rec, offset, err = s.appendStaged(ctx, a, container, c, name, st, check)
	st.settle(err)
	s.sweepSoon()
	return rec, offset, err
}

// appendStaged adds a staged body. When the last run and the body are too large together for the content record, both
// become one object; should another block come in between, that is tried again.
func (s *Service) appendStaged(ctx context.Context, a *account, container, c, name string, st *staged, check func(*blobRecord) error) (rec *blobRecord, offset int64, err error) {
	var tail []byte // of the blob as it was at seen
	var seen string
	next := st
	for range raceTries {
		err = s.updateSame(ctx, a, container, c, func(t store.Txn) error {
			old, err := a.blob(t, c, name)
			if err != nil {
				return err
			}
			if err := check(old); err != nil {
				return err
			}
			body, err := a.content(t, c, old.Content)
			if err != nil {
				return err
			}
			runs := slices.Clone(body.Parts)
			last := len(runs) - 1
			switch {
			case next != st && seen != old.ETag:
				return errSpill // the object that was made of the tail is stale
			case next != st:
				runs = append(runs[:last], next.part)
			case st.key != "":
				runs = append(runs, st.part)
			case last >= 0 && runs[last].Data != nil && len(runs[last].Data)+len(st.inline) > maxInline:
				tail, seen = runs[last].Data, old.ETag
				return errSpill
			default:
				runs = splice(runs, old.Size, old.Size, part{Data: st.inline, Size: int64(len(st.inline))})
			}
			if next.key != "" {
				a.retain(t, c, next.part.Object)
			}
			r := *old
			r.stamp, r.Content, r.MD5, r.Blocks = s.stampNow(), newID(), nil, old.Blocks+1
			r.Size, r.Lease = sizeOf(runs), old.Lease.after(r.Modified)
			rec, offset = &r, old.Size
			return a.replace(t, c, name, old, &r, content{Parts: runs}, nil)
		})
		if next != st {
			next.settle(err)
			next = st
		} else if errors.Is(err, errSpill) {
			both := slices.Concat(tail, st.inline)
			if next, err = s.stage(ctx, a, c, bytes.NewReader(both), int64(len(both)), &checksum{}, false); err != nil {
				return nil, 0, err
			}
			continue
		}
		if !errors.Is(err, errSpill) {
			return rec, offset, err
		}
	}
	if next != st {
		next.settle(errSpill)
	}
	return nil, 0, resource.Errorf(503, "ServerBusy", "Too many clients append to the blob at the same time.")
}

func sizeOf(runs []part) (n int64) {
	for _, p := range runs {
		n += p.Size
	}
	return n
}

// seal ends an append blob: it can be read and deleted, and nothing can be added. Sealing again changes nothing.
func (s *Service) seal(ctx context.Context, a *account, container, name string, cond conditions, ac appendConditions) (rec *blobRecord, err error) {
	next := s.stampNow()
	err = s.update(ctx, a, container, func(t store.Txn, c *containerRecord) error {
		if rec, err = a.blob(t, c.ID, name); err != nil {
			return err
		}
		if err := s.mayAppend(cond, ac, rec, name, 0); err != nil || rec.Sealed {
			return err
		}
		rec.Sealed, rec.stamp, rec.Lease = true, next, rec.Lease.after(next.Modified)
		return a.save(t, blobKey(a.id, c.ID, name), rec)
	})
	return rec, err
}
