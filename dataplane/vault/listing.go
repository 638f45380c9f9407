package vault

import (
	"errors"
	"net/http"
	"strings"

	"casemate.dev/resource"
	"casemate.dev/store"
)

// entry is one object or version of a list.
type entry struct {
	object  object
	version version
}

// listObjects gives one page of the objects that are (or are not) deleted, each with its newest version, in order of
// names, and the name behind which the next page starts ("" when there is none).
func (s *Service) listObjects(r *resource.Request, vault Vault, k kind, p page, deleted bool) (entries []entry, next string, err error) {
	err = s.view(r.Context(), vault, func(h shelf) error {
		opt := store.ScanOptions{}
		if p.after != "" {
			opt.After = objectKey(vault, k, p.after)
		}
		for kv, err := range h.Scan(store.Prefix("vault", k.word, vault.ID.Key()), opt) {
			if err != nil {
				return err
			}
			var o object
			if err := h.decode(kv, &o); err != nil {
				return err
			}
			if (o.Deleted != nil) != deleted {
				continue
			}
			if len(entries) == p.size {
				next = strings.ToLower(entries[p.size-1].object.Name)
				return nil
			}
			v, err := h.version(k, o.Name, o.Current)
			if err != nil {
				return err
			}
			entries = append(entries, entry{o, v})
		}
		return nil
	})
	return entries, next, err
}

// listVersions gives one page of an object's versions, in order of their identifiers.
func (s *Service) listVersions(r *resource.Request, vault Vault, k kind, name string, p page) (entries []entry, next string, err error) {
	err = s.view(r.Context(), vault, func(h shelf) error {
		o, err := h.object(k, name)
		if err != nil {
			return err
		}
		if o.Deleted != nil {
			return notFound(k, name, "")
		}
		opt := store.ScanOptions{Limit: p.size + 1}
		if p.after != "" {
			opt.After = versionKey(vault, k, name, p.after)
		}
		for kv, err := range h.Scan(versionKey(vault, k, name, ""), opt) {
			if err != nil {
				return err
			}
			if len(entries) == p.size {
				next = entries[p.size-1].version.ID
				break
			}
			var v version
			if err := h.decode(kv, &v); err != nil {
				return err
			}
			entries = append(entries, entry{o, v})
		}
		return nil
	})
	var e *resource.Error
	if errors.As(err, &e) && e.Status == http.StatusNotFound { // Azure lists the versions of nothing as an empty list
		return nil, "", nil
	}
	return entries, next, err
}

// writeList sends one page, each entry as show makes it.
func writeList[T any](s *Service, w http.ResponseWriter, r *resource.Request, vault Vault, p page, entries []entry, next string, show func(entry) T) error {
	out := list[T]{Value: make([]T, 0, len(entries))}
	for _, e := range entries {
		out.Value = append(out.Value, show(e))
	}
	if next != "" {
		out.NextLink = s.nextLink(r, vault, p, next)
	}
	return writeJSON(w, out)
}

// target is what a request is about: a vault and, below it, an object and perhaps a version of it.
type target struct {
	vault         Vault
	name, version string
}

// targetOf reads and checks the pattern variables of a request for one object.
func (s *Service) targetOf(r *resource.Request, k kind) (target, error) {
	v, err := s.vaultOf(r)
	if err != nil {
		return target{}, err
	}
	t := target{vault: v, name: r.Vars["name"], version: r.Vars["version"]}
	if err := checkName(k, t.name); err != nil {
		return t, err
	}
	if err := checkVersion(k, t.name, t.version); err != nil {
		return t, err
	}
	r.Remember(k.word, t.name)
	return t, nil
}

// objects answers a list of objects.
func objects[T any](s *Service, k kind, deleted bool, show func(Vault, entry) T) resource.Handler {
	return func(w http.ResponseWriter, r *resource.Request) error {
		vault, err := s.vaultOf(r)
		if err != nil {
			return err
		}
		p, err := readPage(r)
		if err != nil {
			return err
		}
		entries, next, err := s.listObjects(r, vault, k, p, deleted)
		if err != nil {
			return err
		}
		return writeList(s, w, r, vault, p, entries, next, func(e entry) T { return show(vault, e) })
	}
}

// versions answers a list of an object's versions.
func versions[T any](s *Service, k kind, show func(Vault, entry) T) resource.Handler {
	return func(w http.ResponseWriter, r *resource.Request) error {
		t, err := s.targetOf(r, k)
		if err != nil {
			return err
		}
		p, err := readPage(r)
		if err != nil {
			return err
		}
		entries, next, err := s.listVersions(r, t.vault, k, t.name, p)
		if err != nil {
			return err
		}
		return writeList(s, w, r, t.vault, p, entries, next, func(e entry) T { return show(t.vault, e) })
	}
}
