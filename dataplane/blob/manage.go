package blob

import (
	"context"
	"iter"
	"time"

	"casemate.dev/resource"
)

// ContainerInfo is a container as the control plane shows it.
type ContainerInfo struct {
	Name     string
	ETag     string // without quotes
	Modified time.Time
	Metadata map[string]string
	// The lease, as its states are named; LeaseDuration is empty unless leased.
	LeaseStatus, LeaseState, LeaseDuration string
}

// The operations below serve the rows of Microsoft.Storage/…/containers, which the gateway has authorised under the
// containers' own permissions; they check nobody.

// CreateContainer makes a container. made is false when it was there; then metadata replaces the container's, unless nil.
func (s *Service) CreateContainer(ctx context.Context, account resource.ID, name string, metadata map[string]string) (info ContainerInfo, made bool, err error) {
	a, err := s.account(ctx, account.String())
	if err != nil {
		return info, false, err
	}
	if err := checkMetadata(metadata); err != nil {
		return info, false, err
	}
	rec, err := s.createContainer(ctx, a, name, metadata)
	if made = err == nil; resource.StatusOf(err) == 409 {
		if metadata == nil {
			rec, err = s.statContainer(ctx, a, name, conditions{})
		} else {
			rec, err = s.setContainerMetadata(ctx, a, name, conditions{}, metadata)
		}
	}
	if err != nil {
		return info, false, s.publicError(a, err)
	}
	return s.containerInfo(name, rec), made, nil
}

// StatContainer tells about a container.
func (s *Service) StatContainer(ctx context.Context, account resource.ID, name string) (ContainerInfo, error) {
	a, err := s.account(ctx, account.String())
	if err != nil {
		return ContainerInfo{}, err
	}
	rec, err := s.statContainer(ctx, a, name, conditions{})
	if err != nil {
		return ContainerInfo{}, s.publicError(a, err)
	}
	return s.containerInfo(name, rec), nil
}

// DeleteContainer removes a container and all in it, unless it is leased.
func (s *Service) DeleteContainer(ctx context.Context, account resource.ID, name string) error {
	a, err := s.account(ctx, account.String())
	if err != nil {
		return err
	}
	return s.publicError(a, s.deleteContainer(ctx, a, name, conditions{}))
}

// Containers yields the containers of an account in order of name.
func (s *Service) Containers(ctx context.Context, account resource.ID) iter.Seq2[ContainerInfo, error] {
	return func(yield func(ContainerInfo, error) bool) {
		a, err := s.account(ctx, account.String())
		if err != nil {
			yield(ContainerInfo{}, err)
			return
		}
		for after := ""; ; {
			list, next, err := s.listContainers(ctx, a, "", after, 1000)
			if err != nil {
				yield(ContainerInfo{}, s.publicError(a, err))
				return
			}
			for _, c := range list {
				if !yield(s.containerInfo(c.Name, c.containerRecord), nil) {
					return
				}
			}
			if after = next; next == "" {
				return
			}
		}
	}
}

func (s *Service) containerInfo(name string, rec *containerRecord) ContainerInfo {
	status, state, duration := rec.Lease.shown(s.now())
	return ContainerInfo{Name: name, ETag: rec.ETag, Modified: rec.Modified, Metadata: rec.Metadata,
		LeaseStatus: status, LeaseState: string(state), LeaseDuration: duration}
}
