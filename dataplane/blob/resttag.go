package blob

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"unicode/utf8"

	"casemate.dev/resource"
	"casemate.dev/store"
)

// permit asks for one more permission than the row did: some headers need their own. The decision is recorded as any.
func (s *Service) permit(c *call, action string, category resource.Category) error {
	return s.permitIn(c, c.container, action, category)
}

func (s *Service) permitIn(c *call, container, action string, category resource.Category) error {
	if s.inner == nil {
		return errors.New("blob: no way in to ask for permissions")
	}
	done, err := s.inner.Enter(c.Context(), c.Caller, action, true, scopeOf(c.a.arm, container), category)
	if err != nil {
		return err
	}
	done(nil)
	return nil
}

// permitTags asks for the permissions that x-ms-tags and x-ms-if-tags need, and refuses such headers where they mean nothing.
func (s *Service) permitTags(c *call) error {
	if c.Header.Get("x-ms-copy-source") != "" && c.Route.Name != "Blob_CopyFromURL" && c.Route.Name != "BlockBlob_StageBlockFromURL" {
		return resource.Errorf(400, "UnsupportedHeader", "This operation copies nothing.").WithTarget("x-ms-copy-source")
	}
	if c.cond.tags != nil && c.blob == "" {
		return resource.Errorf(400, "UnsupportedHeader", "Conditions on tags are for operations on blobs.").WithTarget("x-ms-if-tags")
	}
	if c.Header.Get("x-ms-tags") != "" {
		if !takesTags[c.Route.Name] {
			return resource.Errorf(400, "UnsupportedHeader", "This operation sets no tags.").WithTarget("x-ms-tags")
		}
		if err := s.permit(c, dataWriteTags, resource.AuditWrite); err != nil {
			return err
		}
	}
	if c.cond.tags != nil {
		return s.permit(c, dataReadTags, resource.AuditData)
	}
	return nil
}

// takesTags are the operations that set tags by a header.
var takesTags = map[string]bool{"BlockBlob_Upload": true, "BlockBlob_CommitBlockList": true, "Blob_CopyFromURL": true}

// checkTags is the condition x-ms-if-tags; cur is nil when there is no blob, which has no tags.
func (c conditions) checkTags(cur *blobRecord) error {
	if c.tags == nil {
		return nil
	}
	if cur == nil || !c.tags.holds("", cur.Tags) {
		return errConditionNotMet()
	}
	return nil
}

// setTags replaces a blob's tags. They are no part of what ETags speak of.
func (s *Service) setTags(ctx context.Context, a *account, container, name string, cond conditions, tags map[string]string) error {
	return s.update(ctx, a, container, func(t store.Txn, c *containerRecord) error {
		rec, err := a.blob(t, c.ID, name)
		if err != nil {
			return err
		}
		if rec == nil {
			return errBlobNotFound(name)
		}
		if err := s.mayChange(cond, rec); err != nil {
			return err
		}
		rec.Tags = tags
		return a.save(t, blobKey(a.id, c.ID, name), rec)
	})
}

func setTags(s *Service, c *call) error {
	body, err := c.ReadBody()
	if err != nil {
		return err
	}
	sums, err := newChecksum(c.Header, int64(len(body)), false)
	if err != nil {
		return err
	}
	sums.write(body)
	if err := sums.verify(); err != nil {
		return err
	}
	tags, err := parseTagXML(body)
	if err != nil {
		return err
	}
	if err := s.setTags(c.Context(), c.a, c.container, c.blob, c.cond, tags); err != nil {
		return err
	}
	c.w.WriteHeader(http.StatusNoContent)
	return nil
}

func getTags(s *Service, c *call) error {
	rec, err := s.stat(c.Context(), c.a, c.container, c.blob, c.cond)
	if err != nil {
		return c.withStamp(rec, err)
	}
	d := newDocument()
	d.tags(rec.Tags)
	return d.send(c.w)
}

func (d *document) tags(tags map[string]string) {
	d.open("Tags")
	d.open("TagSet")
	for _, k := range slices.Sorted(maps.Keys(tags)) {
		d.open("Tag")
		d.elem("Key", k)
		d.elem("Value", tags[k])
		d.close("Tag")
	}
	d.close("TagSet")
	d.close("Tags")
}

// maxScanned bounds how many blobs one page of Find Blobs by Tags looks at: a page may be short, or empty, and have a
// marker all the same.
const maxScanned = 10_000

type found struct {
	container, name string
	tags            map[string]string
}

// findMarker is where a search goes on: after a blob in a container.
type findMarker struct{ container, name string }

func (m findMarker) String() string {
	if m.container == "" {
		return ""
	}
	return base64.RawURLEncoding.EncodeToString([]byte(m.container + "/" + m.name))
}

func parseFindMarker(s string) (m findMarker, err error) {
	if s == "" {
		return m, nil
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(s)
	container, name, ok := strings.Cut(string(raw), "/")
	if err != nil || !ok || checkContainerName(container) != nil || !utf8.Valid(raw) {
		return m, resource.Errorf(400, "OutOfRangeInput", "The marker is not one that an earlier page gave.").WithTarget("marker")
	}
	return findMarker{container, name}, nil
}

// find looks at blobs in order of container and name. container limits it to one.
func (s *Service) find(ctx context.Context, a *account, container string, q where, after findMarker, limit int) (out []found, next findMarker, err error) {
	names := []string{container}
	if container == "" {
		if names, err = s.containersFrom(ctx, a, after.container); err != nil {
			return nil, next, err
		}
	}
	scanned := 0
	for _, name := range names {
		page := query{limit: maxList}
		if name == after.container {
			page.marker.name = after.name
		}
		for {
			page.limit = min(maxList, maxScanned-scanned)
			if page.limit == 0 {
				return out, findMarker{name, page.marker.name}, nil
			}
			list, more, err := s.list(ctx, a, name, page)
			if resource.StatusOf(err) == 404 && container == "" {
				break // it was deleted meanwhile
			}
			if err != nil {
				return nil, next, err
			}
			for _, e := range list {
				if len(e.rec.Tags) > 0 && q.holds(name, e.rec.Tags) {
					if out = append(out, found{name, e.name, e.rec.Tags}); len(out) == limit {
						return out, findMarker{name, e.name}, nil
					}
				}
			}
			scanned += len(list)
			if page.marker = more; more.name == "" {
				break
			}
		}
	}
	return out, next, nil
}

// containersFrom names the containers from one on.
func (s *Service) containersFrom(ctx context.Context, a *account, from string) (names []string, err error) {
	for after := ""; ; {
		list, next, err := s.listContainers(ctx, a, "", after, 1000)
		if err != nil {
			return nil, fmt.Errorf("listing containers: %w", err)
		}
		for _, c := range list {
			if c.Name >= from {
				names = append(names, c.Name)
			}
		}
		if after = next; next == "" {
			return names, nil
		}
	}
}

func findBlobs(s *Service, c *call) error {
	params := c.URL.Query()
	expr := params.Get("where")
	if expr == "" {
		return resource.Errorf(400, "MissingRequiredQueryParameter", "A required query parameter was not specified for this request: where.").WithTarget("where")
	}
	q, err := parseWhere(expr, false)
	if err != nil {
		return resource.Errorf(400, "InvalidQueryParameterValue", "The query parameter where is not valid: %s.", err).WithTarget("where")
	}
	limit, err := parseMaxResults(params.Get("maxresults"))
	if err != nil {
		return err
	}
	after, err := parseFindMarker(params.Get("marker"))
	if err != nil {
		return err
	}
	list, next, err := s.find(c.Context(), c.a, c.container, q, after, limit)
	if err != nil {
		return err
	}
	d := newDocument()
	d.open("EnumerationResults", "ServiceEndpoint", c.endpoint())
	d.elem("Where", expr)
	d.open("Blobs")
	for _, e := range list {
		d.open("Blob")
		d.name(e.name)
		d.elem("ContainerName", e.container)
		d.tags(e.tags)
		d.close("Blob")
	}
	d.close("Blobs")
	d.elem("NextMarker", next.String())
	d.close("EnumerationResults")
	return d.send(c.w)
}
