package vault

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/url"
	"strconv"

	"casemate.dev/resource"
)

// attributes are those of keys and secrets, on the wire. In requests all are optional; created and later are read-only.
type attributes struct {
	Enabled         *bool  `json:"enabled,omitempty"`
	NotBefore       *int64 `json:"nbf,omitempty"`
	Expires         *int64 `json:"exp,omitempty"`
	Created         int64  `json:"created,omitempty"`
	Updated         int64  `json:"updated,omitempty"`
	RecoveryLevel   string `json:"recoveryLevel,omitempty"`
	RecoverableDays int    `json:"recoverableDays,omitempty"`
	Exportable      *bool  `json:"exportable,omitempty"`  // of keys: always false
	HSMPlatform     string `json:"hsmPlatform,omitempty"` // of keys: "0", none
}

// apply puts what a client sent over a version.
func (a *attributes) apply(v *version) error {
	if a == nil {
		return nil
	}
	if a.Enabled != nil {
		v.Enabled = *a.Enabled
	}
	if a.NotBefore != nil {
		v.NotBefore = a.NotBefore
	}
	if a.Expires != nil {
		v.Expires = a.Expires
	}
	for _, t := range []*int64{v.NotBefore, v.Expires} {
		if t != nil && (*t < 0 || *t > maxUnix) {
			return badParameter("A time in 'attributes' is out of range. Times are seconds since 1970-01-01T00:00:00Z.")
		}
	}
	if v.NotBefore != nil && v.Expires != nil && *v.Expires <= *v.NotBefore {
		return badParameter("The attribute 'exp' must be later than 'nbf'.")
	}
	return nil
}

// maxUnix is the end of the year 9999, the last that clients can show.
const maxUnix = 253402300799

// attributesOf shows a version's attributes.
func (v *version) attributesOf(vault Vault) attributes {
	enabled := v.Enabled
	out := attributes{
		Enabled: &enabled, NotBefore: v.NotBefore, Expires: v.Expires, Created: v.Created, Updated: v.Updated,
		RecoveryLevel: vault.recoveryLevel(), RecoverableDays: vault.RetentionDays,
	}
	if v.Key != nil {
		out.Exportable, out.HSMPlatform = new(bool), "0"
	}
	return out
}

// recoveryLevel is Azure's DeletionRecoveryLevel.
func (v Vault) recoveryLevel() string {
	level := "Recoverable"
	if v.RetentionDays < 90 {
		level = "CustomizedRecoverable"
	}
	if !v.PurgeProtection {
		level += "+Purgeable"
	}
	return level
}

// Limits of Key Vault on tags.
const (
	maxTags      = 15
	maxTagLength = 256
)

func checkTags(tags map[string]string) error {
	if len(tags) > maxTags {
		return badParameter("There are %d tags; at most %d are allowed.", len(tags), maxTags)
	}
	for name, value := range tags {
		if name == "" || len(name) > maxTagLength || len(value) > maxTagLength {
			return badParameter("A tag's name must have 1 to %d characters and its value at most %d.", maxTagLength, maxTagLength)
		}
	}
	return nil
}

// deletedPart is what bundles and items of deleted objects have besides.
type deletedPart struct {
	RecoveryID         string `json:"recoveryId,omitempty"`
	DeletedDate        int64  `json:"deletedDate,omitempty"`
	ScheduledPurgeDate int64  `json:"scheduledPurgeDate,omitempty"`
}

func (s *Service) deletedPart(vault Vault, k kind, o object) deletedPart {
	if o.Deleted == nil {
		return deletedPart{}
	}
	return deletedPart{
		RecoveryID:  s.URL(vault.label()) + "/deleted" + k.plural + "/" + o.Name,
		DeletedDate: o.Deleted.At, ScheduledPurgeDate: o.Deleted.Purge,
	}
}

// readBody decodes the JSON object of a request.
func readBody(r *resource.Request, to any) error {
	b, err := r.ReadBody()
	if err != nil {
		return err
	}
	if len(b) == 0 {
		return badParameter("The request body is empty; a JSON object is required.")
	}
	if err := json.Unmarshal(b, to); err != nil {
		return badParameter("The request body cannot be read as JSON of the expected form.").WithCause(err)
	}
	return nil
}

func writeJSON(w http.ResponseWriter, v any) error { return writeJSONStatus(w, http.StatusOK, v) }

func writeJSONStatus(w http.ResponseWriter, status int, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	w.WriteHeader(status)
	_, err = w.Write(b)
	return err
}

// pageSize is the default and the greatest number of items on a page.
const pageSize = 25

// page is where a list request wants to start and end.
type page struct {
	after string // name or version behind which to start; "" for the beginning
	size  int
}

func readPage(r *resource.Request) (page, error) {
	p := page{size: pageSize}
	q := r.URL.Query()
	if s := q.Get("maxresults"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 || n > pageSize {
			return p, badParameter("The parameter 'maxresults' must be a number from 1 to %d.", pageSize)
		}
		p.size = n
	}
	if s := q.Get("$skiptoken"); s != "" {
		b, err := base64.RawURLEncoding.DecodeString(s)
		if err != nil || len(b) == 0 || len(b) > 127 {
			return p, badParameter("The parameter '$skiptoken' is not one that this service issued.")
		}
		p.after = string(b)
	}
	return p, nil
}

// list is one page of a list.
type list[T any] struct {
	Value    []T     `json:"value"`
	NextLink *string `json:"nextLink"`
}

// nextLink is the URL of the page after the item called last.
func (s *Service) nextLink(r *resource.Request, vault Vault, p page, last string) *string {
	q := url.Values{"api-version": {r.URL.Query().Get("api-version")}, "maxresults": {strconv.Itoa(p.size)}}
	q.Set("$skiptoken", base64.RawURLEncoding.EncodeToString([]byte(last)))
	link := s.URL(vault.label()) + r.URL.EscapedPath() + "?" + q.Encode()
	return &link
}
