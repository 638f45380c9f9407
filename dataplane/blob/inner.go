package blob

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"time"

	"casemate.dev/resource"
	"casemate.dev/store"
)

// BlobInfo is what the in-process operations tell about a blob.
type BlobInfo struct {
	Name        string
	Size        int64
	ContentType string
	ETag        string // without quotes
	Modified    time.Time
	Metadata    map[string]string
}

func infoOf(name string, rec *blobRecord) BlobInfo {
	return BlobInfo{Name: name, Size: rec.Size, ContentType: contentType(rec), ETag: rec.ETag, Modified: rec.Modified, Metadata: rec.Metadata}
}

// enter authorises and records one in-process operation for its caller, and opens the account. leave must be called with
// the outcome, which it returns in the service's error codes.
func (s *Service) enter(ctx context.Context, caller resource.Caller, account resource.ID, container, action string, category resource.Category) (a *account, leave func(error) error, err error) {
	if s.inner == nil {
		return nil, nil, errors.New("blob: no way in for operations inside the process")
	}
	if err := checkContainerName(container); err != nil {
		return nil, nil, err
	}
	isData := action == dataRead || action == dataWrite || action == dataDelete
	done, err := s.inner.Enter(ctx, caller, action, isData, scopeOf(account, container), category)
	if err != nil {
		return nil, nil, err
	}
	if a, err = s.account(ctx, account.String()); err != nil {
		done(err)
		return nil, nil, err
	}
	return a, func(err error) error {
		err = s.publicError(a, err)
		done(err)
		return err
	}, nil
}

// EnsureContainer makes a container unless it is there.
func (s *Service) EnsureContainer(ctx context.Context, caller resource.Caller, account resource.ID, container string) error {
	a, leave, err := s.enter(ctx, caller, account, container, actWriteContainer, resource.AuditWrite)
	if err != nil {
		return err
	}
	if _, err := s.statContainer(ctx, a, container, conditions{}); err == nil {
		return leave(nil)
	}
	_, err = s.createContainer(ctx, a, container, nil)
	if resource.StatusOf(err) == 409 {
		err = nil
	}
	return leave(err)
}

// PutBlob makes or replaces a blob from body, which must hold size bytes; -1 reads until its end. It is durable when
// PutBlob returns nil.
func (s *Service) PutBlob(ctx context.Context, caller resource.Caller, account resource.ID, container, name string, body io.Reader, size int64, contentType string) error {
	if err := checkBlobName(name); err != nil {
		return err
	}
	a, leave, err := s.enter(ctx, caller, account, container, dataWrite, resource.AuditWrite)
	if err != nil {
		return err
	}
	_, err = s.put(ctx, a, container, name, upload{body: body, size: size, sums: &checksum{}, props: properties{ContentType: contentType}})
	return leave(err)
}

// GetBlob opens a blob for reading from offset. The reader fails with the key's error when the key is revoked. It must be
// closed.
func (s *Service) GetBlob(ctx context.Context, caller resource.Caller, account resource.ID, container, name string, offset int64) (io.ReadCloser, BlobInfo, error) {
	if err := checkBlobName(name); err != nil {
		return nil, BlobInfo{}, err
	}
	a, leave, err := s.enter(ctx, caller, account, container, dataRead, resource.AuditData)
	if err != nil {
		return nil, BlobInfo{}, err
	}
	rd, err := s.read(ctx, a, container, name, conditions{})
	if err != nil {
		rd.release()
		return nil, BlobInfo{}, leave(err)
	}
	offset = min(max(offset, 0), rd.rec.Size)
	pr, pw := io.Pipe()
	go func() {
		defer rd.release()
		err := rd.copyTo(ctx, pw, offset, rd.rec.Size-offset)
		if errors.Is(err, io.ErrClosedPipe) {
			err = nil // the reader has seen enough
		}
		pw.CloseWithError(leave(err))
	}()
	return pr, infoOf(name, rd.rec), nil
}

// StatBlob tells about a blob.
func (s *Service) StatBlob(ctx context.Context, caller resource.Caller, account resource.ID, container, name string) (BlobInfo, error) {
	if err := checkBlobName(name); err != nil {
		return BlobInfo{}, err
	}
	a, leave, err := s.enter(ctx, caller, account, container, dataRead, resource.AuditData)
	if err != nil {
		return BlobInfo{}, err
	}
	rec, err := s.stat(ctx, a, container, name, conditions{})
	if err != nil {
		return BlobInfo{}, leave(err)
	}
	return infoOf(name, rec), leave(nil)
}

// DeleteBlob deletes a blob; it is no error when there is none.
func (s *Service) DeleteBlob(ctx context.Context, caller resource.Caller, account resource.ID, container, name string) error {
	if err := checkBlobName(name); err != nil {
		return err
	}
	a, leave, err := s.enter(ctx, caller, account, container, dataDelete, resource.AuditWrite)
	if err != nil {
		return err
	}
	err = s.remove(ctx, a, container, name, "", conditions{})
	if resource.StatusOf(err) == 404 {
		err = nil
	}
	return leave(err)
}

// ListBlobs yields the blobs whose names begin with prefix, in order of name. After an error it yields nothing more.
func (s *Service) ListBlobs(ctx context.Context, caller resource.Caller, account resource.ID, container, prefix string) iter.Seq2[BlobInfo, error] {
	return func(yield func(BlobInfo, error) bool) {
		a, leave, err := s.enter(ctx, caller, account, container, dataRead, resource.AuditData)
		if err != nil {
			yield(BlobInfo{}, err)
			return
		}
		q := query{prefix: prefix, limit: 1000}
		for {
			page, next, err := s.list(ctx, a, container, q)
			if err != nil {
				yield(BlobInfo{}, leave(err))
				return
			}
			for _, e := range page {
				if !yield(infoOf(e.name, e.rec), nil) {
					_ = leave(nil)
					return
				}
			}
			if q.marker = next; next.name == "" {
				_ = leave(nil)
				return
			}
		}
	}
}

// appendTarget is up to which size the last part of a blob is written again with what is appended, so that a log of many
// small pieces does not become a blob of many small parts.
const appendTarget = 1 << 20

// AppendBlob adds data at the end of a block blob, making it when it is not there. It is for logs: one writer for each
// blob. A second writer is refused with ConditionNotMet and nothing is changed.
func (s *Service) AppendBlob(ctx context.Context, caller resource.Caller, account resource.ID, container, name string, data []byte, contentType string) error {
	if err := checkBlobName(name); err != nil {
		return err
	}
	a, leave, err := s.enter(ctx, caller, account, container, dataWrite, resource.AuditWrite)
	if err != nil {
		return err
	}
	return leave(s.append(ctx, a, container, name, data, contentType))
}

func (s *Service) append(ctx context.Context, a *account, container, name string, data []byte, contentType string) error {
	rd, err := s.read(ctx, a, container, name, conditions{})
	defer rd.release()
	if resource.StatusOf(err) == 404 && resource.AsError(err).Code == "BlobNotFound" {
		u := upload{body: bytes.NewReader(data), size: int64(len(data)), sums: &checksum{}, props: properties{ContentType: contentType}}
		u.cond.ifNoneMatch = []string{"*"}
		_, err = s.put(ctx, a, container, name, u)
		return err
	}
	if err != nil {
		return err
	}
	if err := mustBe(blockBlob, rd.rec); err != nil {
		return err
	}
	body, tail, err := rd.splitTail(ctx)
	if err != nil {
		return err
	}
	tail = append(tail, data...)
	size := int64(len(tail))
	st, err := s.stage(ctx, a, rd.c, bytes.NewReader(tail), size, &checksum{}, len(body.Parts) == 0)
	if err != nil {
		return err
	}
	if st.key == "" {
		body = st.content()
	} else {
		st.part.Block = appendBlockID(len(body.Parts))
		body.Parts = append(body.Parts, st.part)
	}
	err = s.updateSame(ctx, a, container, rd.c, func(t store.Txn) error { return s.commitAppend(t, a, rd, name, body, st, int64(len(data))) })
	st.settle(err)
	s.sweepSoon()
	return err
}

func (s *Service) commitAppend(t store.Txn, a *account, rd *reading, name string, body content, st *staged, added int64) error {
	old, err := a.blob(t, rd.c, name)
	if err != nil {
		return err
	}
	if old == nil || old.ETag != rd.rec.ETag {
		return errConditionNotMet()
	}
	if err := s.mayChange(conditions{}, old); err != nil {
		return err
	}
	next := *old
	next.stamp, next.Content, next.MD5 = s.stampNow(), newID(), nil
	next.Size += added
	next.Lease = old.Lease.after(next.Modified)
	if st.key != "" {
		a.retain(t, rd.c, st.part.Object)
	}
	return a.replace(t, rd.c, name, old, &next, body, nil)
}

// splitTail separates the parts that stay as they are from the bytes that are to be written again.
func (rd *reading) splitTail(ctx context.Context) (content, []byte, error) {
	parts := rd.content.Parts
	if len(parts) == 0 {
		return content{}, append([]byte(nil), rd.content.Inline...), nil
	}
	last := parts[len(parts)-1]
	if last.Size >= appendTarget {
		if len(parts) >= maxCommitted {
			return content{}, nil, resource.Errorf(409, "BlockCountExceedsLimit", "The blob has %d blocks, which is the limit.", maxCommitted)
		}
		return content{Parts: append([]part(nil), parts...)}, nil, nil
	}
	var tail bytes.Buffer
	if err := rd.copyPart(ctx, &tail, last, 0, last.Size); err != nil {
		return content{}, nil, fmt.Errorf("reading the last part: %w", err)
	}
	return content{Parts: append([]part(nil), parts[:len(parts)-1]...)}, tail.Bytes(), nil
}

// appendBlockID names the parts of an appended blob by their order.
func appendBlockID(i int) string {
	return base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint64(nil, uint64(i)))
}
