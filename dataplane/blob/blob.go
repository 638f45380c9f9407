package blob

import (
	"context"
	"io"
	"maps"
	"slices"

	"casemate.dev/resource"
	"casemate.dev/store"
)

// upload is what Put Blob brings.
type upload struct {
	body     io.Reader
	size     int64 // -1: until the body ends
	sums     *checksum
	props    properties
	metadata map[string]string
	tags     map[string]string
	tier     string
	cond     conditions
}

// put makes or replaces a blob with one body.
func (s *Service) put(ctx context.Context, a *account, container, name string, u upload) (*blobRecord, error) {
	c, err := s.admit(ctx, a, container, name, u.cond)
	if err != nil {
		return nil, err
	}
	st, err := s.stage(ctx, a, c, u.body, u.size, u.sums, true)
	if err != nil {
		return nil, err
	}
	rec := s.newRecord(u)
	if rec.Size = st.part.Size; st.key == "" {
		rec.Size = int64(len(st.inline))
	}
	if sum := u.sums.keep(); sum != nil {
		rec.MD5 = sum
	}
	err = s.updateSame(ctx, a, container, c, func(t store.Txn) error {
		old, err := a.blob(t, c, name)
		if err != nil {
			return err
		}
		if err := s.mayWrite(u.cond, old); err != nil {
			return err
		}
		rec.Lease = leaseAfter(old, rec.Modified)
		loose, err := a.forget(t, c, name)
		if err != nil {
			return err
		}
		if st.key != "" {
			a.retain(t, c, st.part.Object)
		}
		return a.replace(t, c, name, old, rec, st.content(), loose)
	})
	st.settle(err)
	s.sweepSoon()
	return rec, err
}

// admit checks conditions before a body is received: the client may be waiting for 100 Continue with gigabytes. They are
// checked again in the transaction. It returns the container's incarnation.
func (s *Service) admit(ctx context.Context, a *account, container, name string, cond conditions) (c string, err error) {
	err = s.view(ctx, a, container, func(r store.Reader, rec *containerRecord) error {
		c = rec.ID
		old, err := a.blob(r, c, name)
		if err != nil {
			return err
		}
		return s.mayWrite(cond, old)
	})
	return c, err
}

// updateSame is update for the container incarnation c only: one that was made anew meanwhile is another container.
func (s *Service) updateSame(ctx context.Context, a *account, container, c string, fn func(store.Txn) error) error {
	return s.update(ctx, a, container, func(t store.Txn, rec *containerRecord) error {
		if rec.ID != c {
			return errContainerNotFound(container)
		}
		return fn(t)
	})
}

func stampOf(b *blobRecord) *stamp {
	if b == nil {
		return nil
	}
	return &b.stamp
}

func (s *Service) newRecord(u upload) *blobRecord {
	rec := &blobRecord{stamp: s.stampNow(), properties: u.props, Metadata: u.metadata, Tags: u.tags, Tier: u.tier, Content: newID(), Lineage: newID()}
	rec.Created = rec.Modified
	return rec
}

// remove deletes a blob; mode says what happens to its snapshots.
func (s *Service) remove(ctx context.Context, a *account, container, name, mode string, cond conditions) error {
	err := s.update(ctx, a, container, func(t store.Txn, c *containerRecord) error {
		old, err := a.blob(t, c.ID, name)
		if err != nil {
			return err
		}
		if old == nil {
			return errBlobNotFound(name)
		}
		if err := s.mayChange(cond, old); err != nil {
			return err
		}
		if err := a.dropSnapshots(t, c.ID, name, mode); err != nil || mode == onlySnapshots {
			return err
		}
		loose, err := a.forget(t, c.ID, name)
		if err != nil {
			return err
		}
		for _, p := range loose {
			if err := a.discard(t, c.ID, p.Object, ""); err != nil {
				return err
			}
		}
		t.Delete(blobKey(a.id, c.ID, name))
		return a.dropContent(t, c.ID, old, map[string]bool{})
	})
	s.sweepSoon()
	return err
}

// amend changes a blob's record and stamps it anew.
func (s *Service) amend(ctx context.Context, a *account, container, name string, cond conditions, change func(*blobRecord)) (*blobRecord, error) {
	var rec *blobRecord
	next := s.stampNow()
	err := s.update(ctx, a, container, func(t store.Txn, c *containerRecord) error {
		var err error
		if rec, err = a.blob(t, c.ID, name); err != nil {
			return err
		}
		if rec == nil {
			return errBlobNotFound(name)
		}
		if err := s.mayChange(cond, rec); err != nil {
			return err
		}
		change(rec)
		rec.stamp, rec.Lease = next, rec.Lease.after(next.Modified)
		return a.save(t, blobKey(a.id, c.ID, name), rec)
	})
	return rec, err
}

// stat reads a blob's record only.
func (s *Service) stat(ctx context.Context, a *account, container, name string, cond conditions) (*blobRecord, error) {
	var rec *blobRecord
	err := s.view(ctx, a, container, func(r store.Reader, c *containerRecord) error {
		var err error
		if rec, err = a.blobAt(r, c.ID, name, cond.snapshot); err != nil {
			return err
		}
		if rec == nil {
			return errBlobNotFound(name)
		}
		return s.mayRead(cond, rec)
	})
	return rec, err
}

// stageBlock receives one uncommitted block. A block of the same id is replaced.
func (s *Service) stageBlock(ctx context.Context, a *account, container, name, id string, cond conditions, body io.Reader, size int64, sums *checksum) error {
	hash := hashName(name)
	var c string
	err := s.view(ctx, a, container, func(r store.Reader, rec *containerRecord) error {
		c = rec.ID
		if err := s.mayStage(r, a, c, name, cond); err != nil {
			return err
		}
		return a.checkStage(r, c, hash, id)
	})
	if err != nil {
		return err
	}
	st, err := s.stage(ctx, a, c, body, size, sums, false)
	if err != nil {
		return err
	}
	st.part.Block = id
	now := s.now().UTC()
	err = s.updateSame(ctx, a, container, c, func(t store.Txn) error {
		if err := s.mayStage(t, a, c, name, cond); err != nil {
			return err
		}
		if err := a.checkStage(t, c, hash, id); err != nil {
			return err
		}
		var up uploadRecord
		if _, err := loadPlain(t, uploadKey(a.id, c, hash), &up); err != nil {
			return err
		}
		var old part
		had, err := loadPlain(t, blockKey(a.id, c, hash, id), &old)
		if err != nil {
			return err
		}
		if had {
			if err := a.discard(t, c, old.Object, ""); err != nil {
				return err
			}
		} else {
			up.Count++
		}
		up.IDSize, up.Touched = len(id), now
		a.retain(t, c, st.part.Object)
		if err := savePlain(t, uploadKey(a.id, c, hash), up); err != nil {
			return err
		}
		return savePlain(t, blockKey(a.id, c, hash, id), st.part)
	})
	st.settle(err)
	return err
}

// checkStage says whether one more block with this id may come.
func (a *account) checkStage(r store.Reader, c, hash, id string) error {
	var up uploadRecord
	if _, err := loadPlain(r, uploadKey(a.id, c, hash), &up); err != nil {
		return err
	}
	if up.Count > 0 && up.IDSize != len(id) {
		return resource.Errorf(400, "InvalidBlobOrBlock", "The specified blob or block content is invalid: all block IDs of a blob must have the same length.")
	}
	if up.Count >= maxStaged {
		return resource.Errorf(409, "BlockCountExceedsLimit", "The blob has %d uncommitted blocks, which is the limit.", maxStaged)
	}
	return nil
}

// blockSource says where a block of a list is looked for.
type blockSource int

const (
	fromCommitted blockSource = iota + 1
	fromUncommitted
	fromLatest
)

type blockRef struct {
	source blockSource
	id     string
}

// commit makes a blob of blocks; no content is copied. Uncommitted blocks that the list does not name are dropped.
func (s *Service) commit(ctx context.Context, a *account, container, name string, list []blockRef, u upload) (*blobRecord, error) {
	rec := s.newRecord(u)
	lineage := rec.Lineage
	err := s.update(ctx, a, container, func(t store.Txn, c *containerRecord) error {
		old, err := a.blob(t, c.ID, name)
		if err != nil {
			return err
		}
		if err := s.mayWrite(u.cond, old); err != nil {
			return err
		}
		if err := mustBe(blockBlob, old); err != nil {
			return err
		}
		committed := map[string]part{}
		if old != nil {
			body, err := a.content(t, c.ID, old.Content)
			if err != nil {
				return err
			}
			for _, p := range body.Parts {
				if p.Block != "" {
					committed[p.Block] = p
				}
			}
		}
		loose, err := a.forget(t, c.ID, name)
		if err != nil {
			return err
		}
		body, reused, err := assemble(list, committed, loose)
		if err != nil {
			return err
		}
		rec.Size, rec.Lineage, rec.Lease = 0, lineage, leaseAfter(old, rec.Modified)
		for _, p := range body.Parts {
			rec.Size += p.Size
		}
		if reused {
			rec.Lineage = old.Lineage
		}
		return a.replace(t, c.ID, name, old, rec, body, loose)
	})
	s.sweepSoon()
	return rec, err
}

// assemble finds each block of the list. reused says that some came from the committed ones.
func assemble(list []blockRef, committed, loose map[string]part) (body content, reused bool, err error) {
	for _, ref := range list {
		p, fresh := loose[ref.id]
		old, there := committed[ref.id]
		switch {
		case fresh && ref.source != fromCommitted:
		case there && ref.source != fromUncommitted:
			p, reused = old, true
		default:
			return body, false, resource.Errorf(400, "InvalidBlockList", "The specified block list is invalid: there is no block '%s' of the kind asked for.", ref.id)
		}
		body.Parts = append(body.Parts, p)
	}
	return body, reused, nil
}

// blockList is what Get Block List shows.
type blockList struct {
	rec       *blobRecord // nil: no blob has been committed
	committed []part
	loose     []part
}

func (s *Service) blocks(ctx context.Context, a *account, container, name string) (blockList, error) {
	var out blockList
	err := s.view(ctx, a, container, func(r store.Reader, c *containerRecord) error {
		out = blockList{}
		var err error
		if out.rec, err = a.blob(r, c.ID, name); err != nil {
			return err
		}
		if err := mustBe(blockBlob, out.rec); err != nil {
			return err
		}
		if out.rec != nil {
			body, err := a.content(r, c.ID, out.rec.Content)
			if err != nil {
				return err
			}
			for _, p := range body.Parts {
				if p.Block != "" {
					out.committed = append(out.committed, p)
				}
			}
		}
		loose, err := a.uncommitted(r, c.ID, name)
		if err != nil {
			return err
		}
		for _, id := range slices.Sorted(maps.Keys(loose)) {
			out.loose = append(out.loose, loose[id])
		}
		if out.rec == nil && len(out.loose) == 0 {
			return errBlobNotFound(name)
		}
		return nil
	})
	return out, err
}
