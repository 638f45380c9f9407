package blob

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"casemate.dev/resource"
	"casemate.dev/store"
)

// createContainer makes a container, or answers ContainerAlreadyExists.
func (s *Service) createContainer(ctx context.Context, a *account, name string, metadata map[string]string) (*containerRecord, error) {
	if err := checkContainerName(name); err != nil {
		return nil, err
	}
	rec := &containerRecord{stamp: s.stampNow(), ID: newID(), Metadata: metadata}
	rec.Created = rec.Modified
	err := s.store.Update(ctx, func(t store.Txn) error {
		if err := a.current(t); err != nil {
			return err
		}
		_, err := t.Get(containerKey(a.id, name))
		if errors.Is(err, store.ErrNotFound) {
			return a.save(t, containerKey(a.id, name), rec)
		}
		if err != nil {
			return err
		}
		return resource.Errorf(409, "ContainerAlreadyExists", "The specified container '%s' already exists.", name)
	})
	return rec, err
}

// deleteContainer makes a container and all in it unreachable at once; the sweeper removes them.
func (s *Service) deleteContainer(ctx context.Context, a *account, name string, cond conditions) error {
	err := s.update(ctx, a, name, func(t store.Txn, c *containerRecord) error {
		if err := s.mayTouchContainer(cond, c, true); err != nil {
			return err
		}
		t.Delete(containerKey(a.id, name))
		t.Put(purgeKey(a.id, c.ID), []byte("1"))
		return nil
	})
	s.sweepSoon()
	return err
}

// statContainer reads a container's record.
func (s *Service) statContainer(ctx context.Context, a *account, name string, cond conditions) (rec *containerRecord, err error) {
	err = s.view(ctx, a, name, func(_ store.Reader, c *containerRecord) error {
		rec = c
		return c.Lease.allow(s.now(), cond.lease, false, leaseOfContainer)
	})
	return rec, err
}

// setContainerMetadata replaces a container's metadata.
func (s *Service) setContainerMetadata(ctx context.Context, a *account, name string, cond conditions, metadata map[string]string) (*containerRecord, error) {
	var rec *containerRecord
	next := s.stampNow()
	err := s.update(ctx, a, name, func(t store.Txn, c *containerRecord) error {
		if err := s.mayTouchContainer(cond, c, false); err != nil {
			return err
		}
		c.Metadata, c.stamp, c.Lease = metadata, next, c.Lease.after(next.Modified)
		rec = c
		return a.save(t, containerKey(a.id, name), c)
	})
	return rec, err
}

// namedContainer is one entry of a list of containers.
type namedContainer struct {
	Name string
	*containerRecord
}

// listContainers gives at most limit containers whose names begin with prefix, after the name after. next is the name to
// go on after; "" at the end.
func (s *Service) listContainers(ctx context.Context, a *account, prefix, after string, limit int) (out []namedContainer, next string, err error) {
	opt := store.ScanOptions{Limit: limit + 1}
	if after != "" {
		opt.After = containerKey(a.id, after)
	}
	base := store.Prefix(plane, "container", a.id)
	err = s.store.View(ctx, func(r store.Reader) error {
		for kv, err := range r.Scan(containerKey(a.id, prefix), opt) {
			if err != nil {
				return fmt.Errorf("listing containers: %w", err)
			}
			if len(out) == limit {
				next = out[limit-1].Name
				return nil
			}
			parts, err := store.SplitKey(strings.TrimPrefix(kv.Key, base))
			if err != nil {
				return fmt.Errorf("listing containers: %w", err)
			}
			c := namedContainer{Name: parts[0], containerRecord: new(containerRecord)}
			if err := a.open(kv.Key, kv.Value, c.containerRecord); err != nil {
				return err
			}
			out = append(out, c)
		}
		return nil
	})
	return out, next, err
}
