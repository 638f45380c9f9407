package operation

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"casemate.dev/resource"
)

const (
	bodyLimit   = 4 << 20 // ARM's own limit for a request body
	controlTime = 2 * time.Minute
	pageSize    = 1000
)

// Routes derives the rows of all types, and those of the operations themselves.
func (e *Engine) Routes() []resource.Route {
	var out []resource.Route
	for _, t := range e.order {
		out = append(out, e.typeRoutes(t)...)
	}
	for _, op := range []struct {
		name, path string
		handler    resource.Handler
	}{
		{"OperationStatuses_Get", "operationStatuses", e.getStatus},
		{"OperationResults_Get", "operationResults", e.getResult},
	} {
		out = append(out, resource.Route{
			Name: op.name, Plane: resource.PlaneManagement, Method: http.MethodGet,
			Pattern:  "/subscriptions/{subscriptionId}/providers/{namespace}/locations/{location}/" + op.path + "/{operationId}",
			Versions: resource.AnyVersion(), Open: "shown to who began the operation, and to who may read its resource",
			Origin: resource.OriginAnywhere, Body: -1, Timeout: controlTime, Audit: resource.AuditRead, Handler: op.handler,
		})
	}
	return out
}

// pattern is the path of one resource of the type, and that of its collection.
func (t *typeInfo) pattern() (one, collection string) {
	base := ""
	switch t.top().Level {
	case resource.AtSubscriptionRaw:
		if len(t.segments) == 1 {
			return "/subscriptions/{subscriptionId}", "/subscriptions"
		}
		return "/subscriptions/{subscriptionId}/resourceGroups/{resourceGroupName}", "/subscriptions/{subscriptionId}/resourceGroups"
	case resource.AtResourceGroup:
		base = "/subscriptions/{subscriptionId}/resourceGroups/{resourceGroupName}"
	case resource.AtSubscription:
		base = "/subscriptions/{subscriptionId}"
	case resource.AtAnyScope:
		base = "/{scope...}"
	}
	base += "/providers/" + t.namespace
	for i, s := range t.segments {
		collection = base + "/" + s
		base = fmt.Sprintf("%s/{%sName%d}", collection, s, i)
	}
	return base, collection
}

func (t *typeInfo) top() *typeInfo {
	for t.parent != nil && t.Level == 0 {
		t = t.parent
	}
	return t
}

// scopeOf turns a pattern into the scope template of a resource or collection.
func scopeOf(pattern string) string {
	return strings.Replace(strings.Replace(pattern, "/{scope...}", "{scope}", 1), "...}", "}", 1)
}

func (e *Engine) typeRoutes(t *typeInfo) []resource.Route {
	one, many := t.pattern()
	stem := strings.ReplaceAll(t.namespace, ".", "") + "_" + strings.Join(t.segments, "_")
	row := func(name, method, pattern, action, scope string, audit resource.Category, body int64, h resource.Handler) resource.Route {
		return resource.Route{Name: stem + "_" + name, Plane: resource.PlaneManagement, Method: method, Pattern: pattern, Versions: resource.OneOf(t.APIVersions...),
			Action: action, Scope: scope, Origin: resource.OriginAnywhere, Body: body, Timeout: controlTime, Audit: audit, Handler: h}
	}
	scope := scopeOf(one)
	out := []resource.Route{
		row("Get", http.MethodGet, one, t.Name+"/read", scope, resource.AuditRead, -1, e.handleGet(t)),
		row("Head", http.MethodHead, one, t.Name+"/read", scope, resource.AuditRead, -1, e.handleHead),
	}
	if !t.ReadOnly {
		out = append(out, row("CreateOrUpdate", http.MethodPut, one, t.Name+"/write", scope, resource.AuditWrite, bodyLimit, e.handleWrite(t, false)))
		if !t.NotPatchable {
			out = append(out, row("Update", http.MethodPatch, one, t.Name+"/write", scope, resource.AuditWrite, bodyLimit, e.handleWrite(t, true)))
		}
		if !t.NotDeletable {
			out = append(out, row("Delete", http.MethodDelete, one, t.Name+"/delete", scope, resource.AuditWrite, bodyLimit, e.handleDelete(t)))
		}
	}
	list := row("List", http.MethodGet, many, t.Name+"/read", listScope(t, many), resource.AuditRead, -1, e.handleList(t))
	if t.Level == resource.AtSubscriptionRaw && t.Filter != nil {
		// Clients begin with these lists, whatever the scope of their role is: a role in one group is enough to see that group.
		list.Handler = handleVisible(list.Scope, list.Handler)
		list.Action, list.Scope, list.Open = "", "", "lists only what the caller may see"
	}
	out = append(out, list)
	if t.Level == resource.AtResourceGroup && t.parent == nil {
		sub := "/subscriptions/{subscriptionId}/providers/" + t.Name
		out = append(out, row("ListBySubscription", http.MethodGet, sub, t.Name+"/read", "/subscriptions/{subscriptionId}", resource.AuditRead, -1, e.handleList(t)))
	}
	for _, a := range t.Actions {
		out = append(out, e.actionRoute(t, a, stem, one, many))
	}
	return out
}

// listScope is the scope at which a list is authorised: the parent of the collection.
func listScope(t *typeInfo, many string) string {
	if t.Level == resource.AtSubscriptionRaw {
		if len(t.segments) == 1 {
			return "/"
		}
		return "/subscriptions/{subscriptionId}"
	}
	if t.parent != nil {
		parent, _ := t.parent.pattern()
		return scopeOf(parent)
	}
	scope, _, _ := strings.Cut(many, "/providers/")
	if scope == "" {
		return "/"
	}
	return scopeOf(scope)
}

func (e *Engine) actionRoute(t *typeInfo, a resource.Action, stem, one, many string) resource.Route {
	method, versions := a.Method, a.Versions
	if method == "" {
		method = http.MethodPost
	}
	if len(versions) == 0 {
		versions = t.APIVersions
	}
	pattern, scope := one+"/"+a.Name, scopeOf(one)
	if a.Collection {
		pattern, scope = many+"/"+a.Name, listScope(t, many)
	}
	return resource.Route{Name: stem + "_" + strings.ReplaceAll(a.Name, "/", "_"), Plane: resource.PlaneManagement, Method: method, Pattern: pattern,
		Versions: resource.OneOf(versions...), Action: a.Permission, Scope: scope, Origin: resource.OriginAnywhere, Body: bodyLimit,
		Timeout: controlTime, Audit: a.Audit, Handler: e.handleAction(t, a)}
}

func (e *Engine) handleGet(t *typeInfo) resource.Handler {
	return func(w http.ResponseWriter, r *resource.Request) error {
		d, err := e.fromScope(r)
		if err != nil {
			return err
		}
		w.Header().Set("ETag", d.ETag)
		return writeJSON(w, http.StatusOK, e.show(r.Context(), t, d))
	}
}

func (e *Engine) fromScope(r *resource.Request) (*resource.Document, error) {
	id, err := resource.ParseID(r.Scope)
	if err != nil {
		return nil, err
	}
	return e.Get(r.Context(), id)
}

func (e *Engine) handleHead(w http.ResponseWriter, r *resource.Request) error {
	d, err := e.fromScope(r)
	if err != nil {
		return err
	}
	w.Header().Set("ETag", d.ETag)
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// show is what clients see of a document.
func (e *Engine) show(ctx context.Context, t *typeInfo, d *resource.Document) map[string]any {
	if t.View != nil {
		t.View(ctx, d)
	}
	return d.Wire()
}

func (e *Engine) handleWrite(t *typeInfo, patch bool) resource.Handler {
	return func(w http.ResponseWriter, r *resource.Request) error {
		raw, err := r.ReadBody()
		if err != nil {
			return err
		}
		body, err := resource.DecodeBody(raw)
		if err != nil {
			return err
		}
		id, err := resource.ParseID(r.Scope)
		if err != nil {
			return err
		}
		res, err := e.apply(r.Context(), change{caller: r.Caller, id: id, body: body, patch: patch, version: r.Version,
			cond: condition{match: r.Header.Get("If-Match"), noneMatch: r.Header.Get("If-None-Match")}})
		if err != nil {
			return err
		}
		status := http.StatusOK
		if res.created {
			status = t.Created
		}
		w.Header().Set("ETag", res.doc.ETag)
		if res.operation != "" {
			e.links(w.Header(), t, id, res.operation, r.Version)
			w.Header().Del("Location") // a PUT's result is the resource itself
		}
		return writeJSON(w, status, e.show(r.Context(), t, res.doc))
	}
}

func (e *Engine) handleDelete(t *typeInfo) resource.Handler {
	return func(w http.ResponseWriter, r *resource.Request) error {
		id, err := resource.ParseID(r.Scope)
		if err != nil {
			return err
		}
		op, existed, err := e.remove(r.Context(), r.Caller, id, condition{match: r.Header.Get("If-Match")})
		switch {
		case err != nil:
			return err
		case op != "":
			e.links(w.Header(), t, id, op, r.Version)
			w.WriteHeader(http.StatusAccepted)
		case existed && t.DeletedStatus != 0:
			w.WriteHeader(t.DeletedStatus)
		case existed:
			w.WriteHeader(http.StatusOK)
		case t.DeletedStatus == http.StatusOK && t.Level == resource.AtSubscriptionRaw:
			return resource.Errorf(http.StatusNotFound, "ResourceGroupNotFound", "Resource group '%s' could not be found.", id.Name())
		default:
			w.WriteHeader(http.StatusNoContent)
		}
		return nil
	}
}

func (e *Engine) handleList(t *typeInfo) resource.Handler {
	return func(w http.ResponseWriter, r *resource.Request) error {
		below, err := resource.ParseID(r.Scope)
		if err != nil {
			return err
		}
		if t.parent != nil && !e.Exists(below) {
			return resource.NotFound(below)
		}
		docs, err := e.List(r.Context(), t.Name, below)
		if err != nil {
			return err
		}
		if t.Filter != nil {
			if docs, err = t.Filter(r, docs); err != nil {
				return err
			}
		}
		return e.writePage(w, r, t, docs)
	}
}

// handleVisible is for lists of what the caller may see, which ask for no role themselves.
func handleVisible(scope string, list resource.Handler) resource.Handler {
	return func(w http.ResponseWriter, r *resource.Request) error {
		if r.Caller.Anonymous() {
			return resource.Errorf(http.StatusUnauthorized, "AuthenticationFailed", "Authentication failed. Sign in and send a bearer token.")
		}
		r.Scope = strings.ReplaceAll(scope, "{subscriptionId}", r.Vars["subscriptionId"])
		return list(w, r)
	}
}

// writePage sends one page; nextLink carries the place of the last one sent.
func (e *Engine) writePage(w http.ResponseWriter, r *resource.Request, t *typeInfo, docs []*resource.Document) error {
	q := r.URL.Query()
	size := pageSize
	if s := q.Get("$top"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 {
			return resource.Invalid("$top", "The value '%s' of $top is not a positive number.", clip(s))
		}
		size = min(n, pageSize)
	}
	if len(docs) > size || q.Has("$skipToken") { // filters may add documents in an order of their own; pages need one
		slices.SortFunc(docs, func(a, b *resource.Document) int {
			return strings.Compare(storeKey(t.Name, a.ID), storeKey(t.Name, b.ID))
		})
	}
	if s := q.Get("$skipToken"); s != "" {
		after, err := base64.RawURLEncoding.DecodeString(s)
		if err != nil {
			return resource.Invalid("$skipToken", "The $skipToken is malformed. Follow nextLink as it was given.")
		}
		for len(docs) > 0 && storeKey(t.Name, docs[0].ID) <= string(after) {
			docs = docs[1:]
		}
	}
	out := map[string]any{}
	if len(docs) > size {
		docs = docs[:size]
		q.Set("$skipToken", base64.RawURLEncoding.EncodeToString([]byte(storeKey(t.Name, docs[size-1].ID))))
		out["nextLink"] = e.cfg.BaseURL + r.URL.EscapedPath() + "?" + q.Encode()
	}
	value := make([]any, 0, len(docs))
	for _, d := range docs {
		value = append(value, e.show(r.Context(), t, d))
	}
	out["value"] = value
	return writeJSON(w, http.StatusOK, out)
}

func clip(s string) string {
	if len(s) > 40 {
		return s[:40] + "…"
	}
	return s
}

func (e *Engine) handleAction(t *typeInfo, a resource.Action) resource.Handler {
	return func(w http.ResponseWriter, r *resource.Request) error {
		d, err := e.fromScope(r)
		if err != nil && (!a.Collection || resource.StatusOf(err) != http.StatusNotFound) {
			return err
		}
		out, err := a.Handler(r.Context(), d, r)
		if err != nil {
			return err
		}
		if resp, ok := out.(*resource.Response); ok {
			for k, v := range resp.Header {
				w.Header().Set(k, v)
			}
			if resp.Body == nil {
				w.WriteHeader(resp.Status)
				return nil
			}
			return writeJSON(w, resp.Status, resp.Body)
		}
		if out == nil {
			w.WriteHeader(http.StatusNoContent)
			return nil
		}
		return writeJSON(w, http.StatusOK, out)
	}
}

func writeJSON(w http.ResponseWriter, status int, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encoding answer: %w", err)
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	w.WriteHeader(status)
	_, _ = w.Write(b) // the peer may be gone
	return nil
}
