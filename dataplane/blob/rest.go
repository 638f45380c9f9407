package blob

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"time"

	"casemate.dev/envelope"
	"casemate.dev/resource"
	"casemate.dev/store"
)

// call is one request to one account.
type call struct {
	*resource.Request
	w         http.ResponseWriter
	a         *account
	container string
	blob      string
	cond      conditions
}

// serve does what all operations share: versions, names, conditions, the account and its key, and the error codes.
func (s *Service) serve(w http.ResponseWriter, r *resource.Request, fn func(*Service, *call) error) error {
	version, err := checkVersion(r.Header.Get("x-ms-version"))
	if err != nil {
		return err
	}
	h := w.Header()
	h.Set("x-ms-version", version)
	h.Set("Date", httpTime(s.now()))
	if id := r.Header.Get("x-ms-client-request-id"); id != "" && len(id) <= 1024 {
		h.Set("x-ms-client-request-id", id)
	}
	c := &call{Request: r, w: w}
	if err := c.parse(); err != nil {
		return err
	}
	if c.a, err = s.account(r.Context(), r.Resource); err != nil {
		return err
	}
	if err := s.permitTags(c); err != nil {
		return err
	}
	stop := breakOnRevocation(w, c.a.handle)
	defer stop()
	err = fn(s, c)
	if err != nil && c.a.handle.Check() != nil {
		// The broken connection is how it showed; that the key is gone is why.
		err = c.a.handle.Check()
	}
	return notModified(w, s.publicError(c.a, err))
}

func (c *call) parse() error {
	var err error
	if c.container = c.Vars["container"]; c.container != "" {
		if err := checkContainerName(c.container); err != nil {
			return err
		}
		c.Remember("container", c.container)
	}
	if blob, ok := c.Vars["blob"]; ok {
		if err := checkBlobName(blob); err != nil {
			return err
		}
		c.blob = blob
		c.Remember("blob", blob)
	}
	if err := refuseUnsupported(c.Request.Request); err != nil {
		return err
	}
	if c.cond, err = parseConditions(c.Header); err != nil {
		return err
	}
	c.cond.snapshot, err = c.parseSnapshot()
	return err
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

// notModified sends 304 itself: it is an answer without a body and not an error.
func notModified(w http.ResponseWriter, err error) error {
	var e *resource.Error
	if errors.As(err, &e) && e.Status == http.StatusNotModified {
		w.Header().Set("x-ms-error-code", e.Code)
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	return err
}

func (c *call) stamp(s stamp) {
	c.w.Header().Set("ETag", `"`+s.ETag+`"`)
	c.w.Header().Set("Last-Modified", httpTime(s.Modified))
}

// metadata writes x-ms-meta-* under exactly that lower-case key: Set would capitalise it, and some SDKs compare bytewise.
func (c *call) metadata(m map[string]string) {
	for k, v := range m {
		c.w.Header()["x-ms-meta-"+k] = []string{v}
	}
}

func (c *call) done(status int) error {
	c.w.Header().Set("Content-Length", "0")
	c.w.WriteHeader(status)
	return nil
}

// changed answers a successful change of contents or metadata.
func (c *call) changed(status int, s stamp) error {
	c.stamp(s)
	c.w.Header().Set("x-ms-request-server-encrypted", "true")
	return c.done(status)
}

func (c *call) endpoint() string { return "https://" + c.Request.Request.Host + "/" }

func getServiceProperties(s *Service, c *call) error {
	var version string
	err := s.store.View(c.Context(), func(r store.Reader) error {
		_, err := c.a.load(r, serviceKey(c.a.id), &version)
		return err
	})
	if err != nil {
		return err
	}
	return servicePropertiesXML(version).send(c.w)
}

func setServiceProperties(s *Service, c *call) error {
	body, err := c.ReadBody()
	if err != nil {
		return err
	}
	version, err := parseServiceProperties(body)
	if err != nil {
		return err
	}
	err = s.store.Update(c.Context(), func(t store.Txn) error {
		if err := c.a.current(t); err != nil {
			return err
		}
		return c.a.save(t, serviceKey(c.a.id), version)
	})
	if err != nil {
		return err
	}
	return c.done(http.StatusAccepted)
}

func getAccountInfo(s *Service, c *call) error {
	sku, kind := "Standard_LRS", "StorageV2"
	if s.resources != nil {
		d, err := s.resources.Get(c.Context(), c.a.arm)
		if err != nil {
			return err
		}
		sku, kind = d.String("sku.name"), d.String("kind")
	}
	h := c.w.Header()
	h.Set("x-ms-sku-name", sku)
	h.Set("x-ms-account-kind", kind)
	h.Set("x-ms-is-hns-enabled", "false")
	return c.done(http.StatusOK)
}

func listContainers(s *Service, c *call) error {
	q := c.URL.Query()
	limit, err := parseMaxResults(q.Get("maxresults"))
	if err != nil {
		return err
	}
	metadata, err := parseInclude(q.Get("include"), "deleted", "system")
	if err != nil {
		return err
	}
	after, err := parseMarker(q.Get("marker"))
	if err != nil {
		return err
	}
	list, next, err := s.listContainers(c.Context(), c.a, q.Get("prefix"), after.name, limit)
	if err != nil {
		return err
	}
	d := newDocument()
	d.open("EnumerationResults", "ServiceEndpoint", c.endpoint())
	d.optional("Prefix", q.Get("prefix"))
	d.optional("Marker", q.Get("marker"))
	d.optional("MaxResults", q.Get("maxresults"))
	d.open("Containers")
	for _, e := range list {
		d.container(s, e, metadata)
	}
	d.close("Containers")
	d.elem("NextMarker", marker{name: next}.String())
	d.close("EnumerationResults")
	return d.send(c.w)
}

func createContainer(s *Service, c *call) error {
	if access := c.Header.Get("x-ms-blob-public-access"); access != "" {
		return resource.Errorf(409, "PublicAccessNotPermitted", "Public access is not permitted on this storage account.")
	}
	metadata, err := parseMetadata(c.Header)
	if err != nil {
		return err
	}
	rec, err := s.createContainer(c.Context(), c.a, c.container, metadata)
	if err != nil {
		return err
	}
	c.stamp(rec.stamp)
	return c.done(http.StatusCreated)
}

func deleteContainer(s *Service, c *call) error {
	if err := s.deleteContainer(c.Context(), c.a, c.container, c.cond); err != nil {
		return err
	}
	return c.done(http.StatusAccepted)
}

func getContainer(s *Service, c *call) error {
	rec, err := s.statContainer(c.Context(), c.a, c.container, c.cond)
	if err != nil {
		return err
	}
	c.stamp(rec.stamp)
	c.metadata(rec.Metadata)
	h := c.w.Header()
	c.lease(s, rec.Lease)
	h.Set("x-ms-has-immutability-policy", "false")
	h.Set("x-ms-has-legal-hold", "false")
	h.Set("x-ms-immutable-storage-with-versioning-enabled", "false")
	h.Set("x-ms-default-encryption-scope", "$account-encryption-key")
	h.Set("x-ms-deny-encryption-scope-override", "false")
	return c.done(http.StatusOK)
}

func setContainerMetadata(s *Service, c *call) error {
	metadata, err := parseMetadata(c.Header)
	if err != nil {
		return err
	}
	rec, err := s.setContainerMetadata(c.Context(), c.a, c.container, c.cond, metadata)
	if err != nil {
		return err
	}
	c.stamp(rec.stamp)
	return c.done(http.StatusOK)
}

func listBlobs(s *Service, c *call) error {
	params := c.URL.Query()
	q := query{prefix: params.Get("prefix"), delimiter: params.Get("delimiter")}
	var tags bool
	var err error
	if q.limit, err = parseMaxResults(params.Get("maxresults")); err != nil {
		return err
	}
	if hasItem(params.Get("include"), "tags") {
		if err := s.permit(c, dataReadTags, resource.AuditData); err != nil {
			return err
		}
		tags = true
	}
	metadata, err := parseInclude(params.Get("include"), "copy", "deleted", "snapshots", "versions", "tags",
		"immutabilitypolicy", "legalhold", "deletedwithversions", "permissions")
	if err != nil {
		return err
	}
	if q.marker, err = parseMarker(params.Get("marker")); err != nil {
		return err
	}
	q.snapshots = hasItem(params.Get("include"), "snapshots")
	page, next, err := s.list(c.Context(), c.a, c.container, q)
	if err != nil {
		return err
	}
	d := newDocument()
	d.open("EnumerationResults", "ServiceEndpoint", c.endpoint(), "ContainerName", c.container)
	d.optional("Prefix", q.prefix)
	d.optional("Marker", params.Get("marker"))
	d.optional("MaxResults", params.Get("maxresults"))
	d.optional("Delimiter", q.delimiter)
	d.open("Blobs")
	for _, e := range page {
		d.entry(s, e, metadata, tags, hasItem(params.Get("include"), "copy"))
	}
	d.close("Blobs")
	d.elem("NextMarker", next.String())
	d.close("EnumerationResults")
	c.Remember("results", strconv.Itoa(len(page)))
	return d.send(c.w)
}

// list reads one page of a container.
func (s *Service) list(ctx context.Context, a *account, container string, q query) (page []entry, next marker, err error) {
	err = s.view(ctx, a, container, func(r store.Reader, c *containerRecord) error {
		if page, next, err = a.list(r, c.ID, q); err == nil && q.snapshots {
			page, next, err = a.expand(r, c.ID, page, next, q.limit)
		}
		return err
	})
	return page, next, err
}
