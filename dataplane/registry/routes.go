package registry

import (
	"net/http"
	"strings"
	"time"

	"casemate.dev/envelope"
	"casemate.dev/resource"
)

// The permissions of the plane, as the role definitions AcrPull, AcrPush and AcrDelete spell them.
const (
	actPull    = "Microsoft.ContainerRegistry/registries/pull/read"
	actPush    = "Microsoft.ContainerRegistry/registries/push/write"
	actDelete  = "Microsoft.ContainerRegistry/registries/artifacts/delete"
	actCatalog = "Microsoft.ContainerRegistry/registries/catalog/read"
)

const (
	scope       = "{resource}"
	maxBlob     = 64 << 30 // of one request of an upload
	maxManifest = 4 << 20  // OCI Distribution Specification, "Pushing Manifests"
	maxForm     = 64 << 10
	quick       = time.Minute
	stream      = 2 * time.Hour
)

const (
	openCheck = "says only that the token is good; the handler refuses whoever has none (OCI Distribution Specification, \"Determining Support\")"
	openToken = "the client authenticates itself in the request (AAD OAuth of Azure Container Registry)"
)

// Routes are the rows of the registry plane. Names of repositories hold slashes, so one row for each method serves
// everything below /v2/, and Resolve says which permission a path needs.
func (s *Service) Routes() []resource.Route {
	row := func(name, method, pattern string, h resource.Handler) resource.Route {
		return resource.Route{Name: name, Plane: resource.PlaneRegistry, Method: method, Pattern: pattern, Versions: resource.Unversioned(),
			Scope: scope, Origin: resource.OriginResource, Body: -1, Timeout: quick, Audit: resource.AuditRead, Handler: h}
	}
	check := func(name, method string) resource.Route {
		r := row(name, method, "/v2", s.check)
		r.Open, r.Scope = openCheck, ""
		return r
	}
	token := func(name, method, pattern string, h resource.Handler) resource.Route {
		r := row(name, method, pattern, h)
		r.Open, r.Scope, r.Audit = openToken, "", resource.AuditSecret
		if method == http.MethodPost {
			r.Body = maxForm
		}
		return r
	}
	below := func(name, method, action string, audit resource.Category, body int64) resource.Route {
		r := row(name, method, "/v2/{rest...}", s.serve)
		r.Action, r.Resolve, r.Audit, r.Body, r.Timeout = action, permission, audit, body, stream
		return r
	}
	catalog := row("Registry_Catalog", http.MethodGet, "/v2/_catalog", s.catalog)
	catalog.Action = actCatalog
	return []resource.Route{
		check("Registry_Check", http.MethodGet), check("Registry_CheckWithHead", http.MethodHead),
		token("Token_Exchange", http.MethodPost, "/oauth2/exchange", s.exchange),
		token("Token_Refresh", http.MethodPost, "/oauth2/token", s.refresh),
		token("Token_Basic", http.MethodGet, "/oauth2/token", s.basic),
		catalog,
		below("Registry_Get", http.MethodGet, actPull, resource.AuditData, -1),
		below("Registry_Head", http.MethodHead, actPull, resource.AuditData, -1),
		below("Registry_Post", http.MethodPost, actPush, resource.AuditWrite, maxBlob),
		below("Registry_Patch", http.MethodPatch, actPush, resource.AuditWrite, maxBlob),
		below("Registry_Put", http.MethodPut, actPush, resource.AuditWrite, maxBlob),
		below("Registry_Delete", http.MethodDelete, actDelete, resource.AuditWrite, 1<<10),
	}
}

// kind is what a path below /v2/ names.
type kind int

const (
	kindManifest kind = iota + 1
	kindBlob
	kindUploads // begins an upload
	kindUpload  // one that is under way
	kindTags
)

// target is a path below /v2/, taken apart. Nothing in it was checked but its form.
type target struct {
	kind kind
	name string // of the repository
	ref  string // tag, digest or id of the upload
}

// parse reads what stands behind /v2/. The last words decide: a repository may itself be called blobs or manifests.
func parse(rest string) (target, bool) {
	segs := strings.Split(strings.TrimSuffix(rest, "/"), "/")
	at := func(i int) string { // from the end
		if i > len(segs) {
			return ""
		}
		return segs[len(segs)-i]
	}
	name := func(behind int) string {
		if len(segs) <= behind {
			return ""
		}
		return strings.Join(segs[:len(segs)-behind], "/")
	}
	var t target
	switch {
	case at(3) == "blobs" && at(2) == "uploads":
		t = target{kindUpload, name(3), at(1)}
	case at(2) == "blobs" && at(1) == "uploads":
		t = target{kindUploads, name(2), ""}
	case at(2) == "blobs":
		t = target{kindBlob, name(2), at(1)}
	case at(2) == "manifests":
		t = target{kindManifest, name(2), at(1)}
	case at(2) == "tags" && at(1) == "list":
		t = target{kindTags, name(2), ""}
	}
	return t, t.name != ""
}

// operations is everything that may be done below /v2/: the permission it needs and the handler that does it.
var operations = map[kind]map[string]operation{
	kindManifest: {
		http.MethodGet: {actPull, getManifest}, http.MethodHead: {actPull, getManifest},
		http.MethodPut: {actPush, putManifest}, http.MethodDelete: {actDelete, deleteManifest},
	},
	kindBlob: {
		http.MethodGet: {actPull, getBlob}, http.MethodHead: {actPull, getBlob}, http.MethodDelete: {actDelete, deleteBlob},
	},
	kindUploads: {http.MethodPost: {actPush, startUpload}},
	kindUpload: {
		http.MethodGet: {actPush, getUpload}, http.MethodHead: {actPush, getUpload}, http.MethodPatch: {actPush, patchUpload},
		http.MethodPut: {actPush, finishUpload}, http.MethodDelete: {actPush, cancelUpload},
	},
	kindTags: {http.MethodGet: {actPull, listTags}},
}

type operation struct {
	action string
	do     func(*call) error
}

func find(r *resource.Request) (target, operation, error) {
	t, ok := parse(r.Vars["rest"])
	if !ok {
		return t, operation{}, resource.Errorf(http.StatusNotFound, "UNSUPPORTED", "There is no operation %s here, or Casemate does not support it.", r.Method)
	}
	op, ok := operations[t.kind][r.Method]
	if !ok {
		return t, op, resource.Errorf(http.StatusMethodNotAllowed, "UNSUPPORTED", "The method %s is not allowed here.", r.Method)
	}
	return t, op, nil
}

// permission is what one request needs.
func permission(r *resource.Request) (action string, isData bool, scope string, err error) {
	_, op, err := find(r)
	return op.action, false, r.Resource, err
}

// call is one request below /v2/.
type call struct {
	s      *Service
	w      http.ResponseWriter
	r      *resource.Request
	one    *one
	target target
}

// serve runs an operation with the registry open, and ends its blocked reads and writes when the registry's key is revoked.
func (s *Service) serve(w http.ResponseWriter, r *resource.Request) error {
	t, op, err := find(r)
	if err != nil {
		return err
	}
	o, err := s.open(r.Context(), r.Resource)
	if err != nil {
		return err
	}
	r.Remember("repository", clip(t.name))
	if t.ref != "" {
		r.Remember("reference", clip(t.ref))
	}
	stop := breakOnRevocation(w, o.driver.handle)
	defer stop()
	err = op.do(&call{s: s, w: w, r: r, one: o, target: t})
	if err != nil {
		if ended := o.driver.handle.Check(); ended != nil {
			err = ended // what failed, failed because of this
		}
	}
	return s.publicError(o.arm, err)
}

// breakOnRevocation ends blocked reads and writes of the connection when the key's epoch ends: a client that has stopped
// reading would otherwise keep a stream of a revoked key open.
func breakOnRevocation(w http.ResponseWriter, h *envelope.Handle) (stop func()) {
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		select {
		case <-h.Done():
			ctl := http.NewResponseController(w)
			// Writers that cannot do this have no connection to break.
			_ = ctl.SetReadDeadline(time.Unix(1, 0))
			_ = ctl.SetWriteDeadline(time.Unix(1, 0))
		case <-quit:
		}
	}()
	return func() { close(quit); <-done }
}

// check answers GET /v2/, by which clients find out how to authenticate.
func (s *Service) check(w http.ResponseWriter, r *resource.Request) error {
	w.Header()["Docker-Distribution-Api-Version"] = []string{"registry/2.0"}
	if r.Caller.Anonymous() {
		return unauthorized("Authentication is required. Get a token from the address in the WWW-Authenticate header.")
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.Header().Set("Content-Length", "2")
	w.WriteHeader(http.StatusOK)
	_, err := w.Write([]byte("{}"))
	return err
}

func clip(s string) string {
	if len(s) > 160 {
		return s[:160] + "…"
	}
	return s
}
