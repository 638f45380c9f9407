package blob

import (
	"time"

	"casemate.dev/store"
)

// The decisions whether an operation may go on, by all its conditions: headers, tags, then lease. Every operation on a blob asks
// one of them inside its transaction.

// mayWrite is for operations that make or replace; old is nil when there is nothing yet.
func (s *Service) mayWrite(c conditions, old *blobRecord) error {
	if err := c.write(stampOf(old)); err != nil {
		return err
	}
	if err := c.checkTags(old); err != nil {
		return err
	}
	if old == nil {
		return (*lease)(nil).allow(s.now(), c.lease, true, leaseOfBlob)
	}
	return old.Lease.allow(s.now(), c.lease, true, leaseOfBlob)
}

// mayChange is for operations that never create.
func (s *Service) mayChange(c conditions, cur *blobRecord) error {
	if err := c.change(cur.stamp); err != nil {
		return err
	}
	if err := c.checkTags(cur); err != nil {
		return err
	}
	return cur.Lease.allow(s.now(), c.lease, true, leaseOfBlob)
}

// mayRead needs no lease; one that is named must be the right one.
func (s *Service) mayRead(c conditions, cur *blobRecord) error {
	if err := c.read(cur.stamp); err != nil {
		return err
	}
	if err := c.checkTags(cur); err != nil {
		return err
	}
	return cur.Lease.allow(s.now(), c.lease, false, leaseOfBlob)
}

// mayTouchContainer is for operations on a container itself; only its removal needs the lease.
func (s *Service) mayTouchContainer(c conditions, cur *containerRecord, remove bool) error {
	if err := c.change(cur.stamp); err != nil {
		return err
	}
	return cur.Lease.allow(s.now(), c.lease, remove, leaseOfContainer)
}

// mayStage is for uncommitted blocks, which change nothing that headers could be compared with.
func (s *Service) mayStage(r store.Reader, a *account, c, name string, cond conditions) error {
	old, err := a.blob(r, c, name)
	if err != nil {
		return err
	}
	if err := mustBe(blockBlob, old); err != nil {
		return err
	}
	return s.mayWrite(conditions{lease: cond.lease}, old)
}

// leaseAfter is the lease that a blob keeps when it is replaced.
func leaseAfter(old *blobRecord, now time.Time) *lease {
	if old == nil {
		return nil
	}
	return old.Lease.after(now)
}

// mayRefer is for operations that leave the blob as it is and make something of it: their conditions are those of changes,
// and they need no lease; one that is named must be the right one.
func (s *Service) mayRefer(c conditions, cur *blobRecord) error {
	if err := c.change(cur.stamp); err != nil {
		return err
	}
	if err := c.checkTags(cur); err != nil {
		return err
	}
	return cur.Lease.allow(s.now(), c.lease, false, leaseOfBlob)
}
