package registry

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"

	"github.com/distribution/distribution/v3"
	storagedriver "github.com/distribution/distribution/v3/registry/storage/driver"

	"casemate.dev/resource"
)

// maxPage is the most names of one page, and how many there are when the client does not say.
const maxPage = 1000

// page reads the paging parameters n and last.
func page(r *resource.Request) (n int, last string, err error) {
	q := r.URL.Query()
	n, last = maxPage, q.Get("last")
	if v := q.Get("n"); v != "" {
		n, err = strconv.Atoi(v)
		if err != nil || n < 0 {
			return 0, "", resource.Errorf(http.StatusBadRequest, "PAGINATION_NUMBER_INVALID", "The query parameter n must be a number that is not negative.")
		}
	}
	return min(n, maxPage), last, nil
}

// listTags lists a repository's tags in order.
func listTags(c *call) error {
	n, last, err := page(c.r)
	if err != nil {
		return err
	}
	ctx := c.r.Context()
	repo, err := c.one.repository(ctx, c.target.name)
	if err != nil {
		return err
	}
	tags, more := []string{}, false
	if n > 0 {
		found, err := repo.Tags(ctx).List(ctx, n, last)
		switch {
		case errors.As(err, new(distribution.ErrRepositoryUnknown)):
			return errNoRepository(c.target.name)
		case err != nil && !errors.Is(err, io.EOF):
			return err
		}
		more = err == nil
		tags = append(tags, found...)
	}
	if more {
		next(c.w, "/v2/"+c.target.name+"/tags/list", n, tags[len(tags)-1])
	}
	return sendJSON(c.w, map[string]any{"name": c.target.name, "tags": tags})
}

// catalog lists the repositories that hold a manifest.
func (s *Service) catalog(w http.ResponseWriter, r *resource.Request) error {
	n, last, err := page(r)
	if err != nil {
		return err
	}
	o, err := s.open(r.Context(), r.Resource)
	if err != nil {
		return err
	}
	names, count := make([]string, n), 0
	if n > 0 {
		count, err = o.space.Repositories(r.Context(), names, last)
		if errors.As(err, new(storagedriver.PathNotFoundError)) {
			err = io.EOF // nothing was ever pushed
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return s.publicError(o.arm, err)
		}
		if err == nil && count > 0 {
			next(w, "/v2/_catalog", n, names[count-1])
		}
	}
	return sendJSON(w, map[string]any{"repositories": names[:count]})
}

// next tells where the next page is (RFC 8288).
func next(w http.ResponseWriter, path string, n int, last string) {
	w.Header().Set("Link", fmt.Sprintf(`<%s?last=%s&n=%d>; rel="next"`, path, url.QueryEscape(last), n))
}

func sendJSON(w http.ResponseWriter, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encoding answer: %w", err)
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	w.WriteHeader(http.StatusOK)
	_, err = w.Write(b)
	return err
}
