package tracking

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"casemate.dev/resource"
	"casemate.dev/store"
)

// Handle seals and opens a workspace's records; envelope's handles are ones.
type Handle interface {
	SealBytes(object string, plain []byte) ([]byte, error)
	OpenBytes(object string, sealed []byte) ([]byte, error)
}

// Artifact is one entry of a listing: a file, or a directory.
type Artifact struct {
	Path string // relative to the run's artifacts
	Dir  bool
	Size int64
}

// Artifacts are the files of runs in the workspace's own storage. The implementation acts as the workspace, for the caller.
type Artifacts interface {
	// ListArtifacts lists what is directly in a directory ("" is the root), in order of path.
	ListArtifacts(ctx context.Context, c resource.Caller, ws resource.ID, run, dir string) ([]Artifact, error)
	OpenArtifact(ctx context.Context, c resource.Caller, ws resource.ID, run, path string) (body io.ReadCloser, size int64, contentType string, err error)
	PutArtifact(ctx context.Context, c resource.Caller, ws resource.ID, run, path string, body io.Reader, size int64, contentType string) error
	DeleteArtifact(ctx context.Context, c resource.Caller, ws resource.ID, run, path string) error
}

// Config is what the plane needs; Clock is optional.
type Config struct {
	Store     store.Store
	Handles   func(ctx context.Context, workspace string) (Handle, error)
	Artifacts Artifacts
	Models    Models
	Authority func(host string) string // adds the public port to a host name where it is not 443
	Domain    string
	Clock     resource.Clock
}

// Service is the workspace data plane. It is safe for concurrent use.
type Service struct{ cfg Config }

// New makes the plane.
func New(cfg Config) (*Service, error) {
	if cfg.Store == nil || cfg.Handles == nil || cfg.Authority == nil || cfg.Domain == "" {
		return nil, errors.New("tracking: a required field of the configuration is missing")
	}
	if cfg.Clock == nil {
		cfg.Clock = time.Now
	}
	return &Service{cfg}, nil
}

// Join gives the plane what is made after it: the provider's storage and assets. It must be called before serving.
func (s *Service) Join(a Artifacts, m Models) { s.cfg.Artifacts, s.cfg.Models = a, m }

func (s *Service) now() int64 { return s.cfg.Clock().UnixMilli() }

func (s *Service) book(ctx context.Context, ws resource.ID) (*book, error) {
	h, err := s.cfg.Handles(ctx, ws.Key())
	if err != nil {
		return nil, err
	}
	return &book{s.cfg.Store, h, ws.Key()}, nil
}

// newExperimentID makes an ID as MLflow's stores do: digits, too many to collide.
func newExperimentID() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return strconv.FormatUint(binary.BigEndian.Uint64(b[:])>>2+1, 10)
}

func newRunID() string { return strings.ReplaceAll(uuid.NewString(), "-", "") }

// call is one request with its workspace opened.
type call struct {
	*book
	s  *Service
	r  *resource.Request
	id resource.ID
}

// operation does the work of a row whose body and answer are JSON.
type operation[In any] func(ctx context.Context, c *call, in In) (any, error)

// jsonHandler decodes the body, or for GET the query, runs fn and writes its answer.
func jsonHandler[In any](s *Service, fn operation[In]) resource.Handler {
	return func(w http.ResponseWriter, r *resource.Request) error {
		c, err := s.enter(r)
		if err != nil {
			return err
		}
		var raw []byte
		if r.Method == http.MethodGet {
			raw, err = queryJSON(r.URL.Query())
		} else {
			raw, err = r.ReadBody()
		}
		if err != nil {
			return err
		}
		var in In
		if len(raw) == 0 {
			raw = []byte("{}")
		}
		if err := json.Unmarshal(raw, &in); err != nil {
			return resource.Errorf(http.StatusBadRequest, "BAD_REQUEST", "The request is not valid JSON for this operation: %s.", err)
		}
		out, err := fn(r.Context(), c, in)
		if err != nil {
			return err
		}
		return writeJSON(w, out)
	}
}

func writeJSON(w http.ResponseWriter, v any) error {
	if v == nil {
		v = struct{}{}
	}
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encoding answer: %w", err)
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(b) // the peer may be gone
	return nil
}

// queryJSON makes of a query what the body would have been; a name that occurs twice is a list.
func queryJSON(q url.Values) ([]byte, error) {
	m := map[string]any{}
	for name, values := range q {
		if len(values) == 1 && !listParameters[name] {
			m[name] = values[0]
		} else {
			m[name] = values
		}
	}
	return json.Marshal(m)
}

var listParameters = map[string]bool{"order_by": true, "stages": true, "experiment_ids": true}

// enter opens the workspace that host and path both name.
func (s *Service) enter(r *resource.Request) (*call, error) {
	id, err := s.workspace(r)
	if err != nil {
		return nil, err
	}
	b, err := s.book(r.Context(), id)
	if err != nil {
		return nil, err
	}
	return &call{book: b, s: s, r: r, id: id}, nil
}

// workspace is the workspace of a request. The host decides (its private endpoint and its network rules were checked); a path
// that names another workspace is refused as absent.
func (s *Service) workspace(r *resource.Request) (resource.ID, error) {
	host, err := resource.ParseID(r.Resource)
	if err != nil || host.IsTenant() {
		return resource.ID{}, absent("There is no such workspace here. Use the workspace's own tracking URI, its property mlFlowTrackingUri.")
	}
	v := r.Vars
	path, err := resource.ParseID("/subscriptions/" + v["subscription"] + "/resourceGroups/" + v["group"] + "/providers/" + v["namespace"] + "/workspaces/" + v["workspace"])
	if err != nil || !path.Equal(host) {
		return resource.ID{}, absent("The tracking URI names a workspace that is not the one of its host.")
	}
	return host, nil
}

// Drop forgets everything of a workspace that is being deleted, in steps: it may be called again.
func (s *Service) Drop(ctx context.Context, ws resource.ID) error {
	prefix := store.Prefix(plane, ws.Key())
	for {
		var keys []string
		err := s.cfg.Store.View(ctx, func(r store.Reader) error {
			for kv, err := range r.Scan(prefix, store.ScanOptions{KeysOnly: true, Limit: 1000}) {
				if err != nil {
					return err
				}
				keys = append(keys, kv.Key)
			}
			return nil
		})
		if err != nil || len(keys) == 0 {
			return err
		}
		err = s.cfg.Store.Update(ctx, func(t store.Txn) error {
			for _, k := range keys {
				t.Delete(k)
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("dropping runs of %s: %w", ws, err)
		}
	}
}
