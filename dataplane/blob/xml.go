package blob

import (
	"bytes"
	"encoding/base64"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"casemate.dev/resource"
)

// document writes an XML answer. Elements are written as the service orders them; values are escaped.
type document struct{ bytes.Buffer }

func newDocument() *document {
	d := &document{}
	d.WriteString(`<?xml version="1.0" encoding="utf-8"?>`)
	return d
}

func (d *document) open(name string, attrs ...string) {
	d.WriteString("<" + name)
	for i := 0; i+1 < len(attrs); i += 2 {
		d.WriteString(" " + attrs[i] + `="`)
		d.text(attrs[i+1])
		d.WriteString(`"`)
	}
	d.WriteString(">")
}

func (d *document) close(name string) { d.WriteString("</" + name + ">") }

func (d *document) text(s string) {
	// A bytes.Buffer takes everything.
	_ = xml.EscapeText(&d.Buffer, []byte(s))
}

func (d *document) elem(name, value string) {
	d.open(name)
	d.text(value)
	d.close(name)
}

// optional writes the element unless it is empty.
func (d *document) optional(name, value string) {
	if value != "" {
		d.elem(name, value)
	}
}

// name writes a blob's name, percent-encoded where XML could not hold it ("List Blobs", since version 2021-02-12).
func (d *document) name(name string) {
	for _, r := range name {
		if r < 0x20 || r == 0xFFFE || r == 0xFFFF {
			d.open("Name", "Encoded", "true")
			d.text(url.PathEscape(name))
			d.close("Name")
			return
		}
	}
	d.elem("Name", name)
}

func (d *document) metadata(m map[string]string) {
	d.open("Metadata")
	for _, k := range slices.Sorted(maps.Keys(m)) {
		d.elem(k, m[k])
	}
	d.close("Metadata")
}

func (d *document) send(w http.ResponseWriter) error {
	w.Header().Set("Content-Type", "application/xml")
	w.Header().Set("Content-Length", strconv.Itoa(d.Len()))
	w.WriteHeader(http.StatusOK)
	_, err := w.Write(d.Bytes())
	return err
}

func httpTime(t time.Time) string { return t.UTC().Format(http.TimeFormat) }

func (d *document) container(s *Service, c namedContainer, metadata bool) {
	d.open("Container")
	d.elem("Name", c.Name)
	d.open("Properties")
	d.elem("Last-Modified", httpTime(c.Modified))
	d.elem("Etag", `"`+c.ETag+`"`)
	d.lease(c.Lease, s)
	d.elem("DefaultEncryptionScope", "$account-encryption-key")
	d.elem("DenyEncryptionScopeOverride", "false")
	d.elem("HasImmutabilityPolicy", "false")
	d.elem("HasLegalHold", "false")
	d.close("Properties")
	if metadata && len(c.Metadata) > 0 {
		d.metadata(c.Metadata)
	}
	d.close("Container")
}

func (d *document) entry(s *Service, e entry, metadata, tags, copies bool) {
	if e.rec == nil {
		d.open("BlobPrefix")
		d.name(e.name)
		d.close("BlobPrefix")
		return
	}
	d.open("Blob")
	d.name(e.name)
	d.optional("Snapshot", e.snapshot)
	d.open("Properties")
	d.elem("Creation-Time", httpTime(e.rec.Created))
	d.elem("Last-Modified", httpTime(e.rec.Modified))
	d.elem("Etag", e.rec.ETag)
	d.elem("Content-Length", strconv.FormatInt(e.rec.Size, 10))
	d.elem("Content-Type", contentType(e.rec))
	d.elem("Content-Encoding", e.rec.ContentEncoding)
	d.elem("Content-Language", e.rec.ContentLanguage)
	d.elem("Content-CRC64", "")
	d.elem("Content-MD5", base64.StdEncoding.EncodeToString(e.rec.MD5))
	d.elem("Cache-Control", e.rec.CacheControl)
	d.elem("Content-Disposition", e.rec.ContentDisposition)
	d.ofKind(e.rec)
	tier, inferred := tierOf(e.rec)
	d.optional("AccessTier", tier)
	if inferred {
		d.elem("AccessTierInferred", "true")
	}
	d.lease(e.rec.Lease, s)
	if copies {
		d.copiedFrom(e.rec)
	}
	d.elem("ServerEncrypted", "true")
	d.close("Properties")
	if metadata {
		d.metadata(e.rec.Metadata)
	}
	if tags && len(e.rec.Tags) > 0 {
		d.tags(e.rec.Tags)
	}
	d.close("Blob")
}

// parseBlockList reads <BlockList> with Committed, Uncommitted and Latest elements, whose order is the blob's.
func parseBlockList(body []byte) ([]blockRef, error) {
	bad := func(format string, args ...any) error {
		return resource.Errorf(400, "InvalidXmlDocument", "XML specified is not syntactically valid: %s", fmt.Sprintf(format, args...))
	}
	dec := xml.NewDecoder(bytes.NewReader(body))
	var list []blockRef
	depth := 0
	for {
		tok, err := dec.Token()
		if errors.Is(err, io.EOF) {
			if depth != 0 || list == nil {
				return nil, bad("it holds no BlockList")
			}
			return list, nil
		}
		if err != nil {
			return nil, bad("%s", err)
		}
		switch tok := tok.(type) {
		case xml.Directive:
			return nil, bad("a document type is not allowed")
		case xml.StartElement:
			if depth == 0 {
				if tok.Name.Local != "BlockList" || list != nil {
					return nil, bad("unexpected element '%.40s'", tok.Name.Local)
				}
				list, depth = []blockRef{}, 1
				continue
			}
			ref, err := parseBlockRef(dec, tok)
			if err != nil {
				return nil, err
			}
			if list = append(list, ref); len(list) > maxCommitted {
				return nil, resource.Errorf(400, "BlockListTooLong", "The block list may not contain more than %d blocks.", maxCommitted)
			}
		case xml.EndElement:
			depth--
		}
	}
}

func parseBlockRef(dec *xml.Decoder, start xml.StartElement) (blockRef, error) {
	source := map[string]blockSource{"Committed": fromCommitted, "Uncommitted": fromUncommitted, "Latest": fromLatest}[start.Name.Local]
	if source == 0 {
		return blockRef{}, resource.Errorf(400, "InvalidXmlNodeValue", "The block list holds an element '%.40s'.", start.Name.Local)
	}
	var id string
	if err := dec.DecodeElement(&id, &start); err != nil {
		return blockRef{}, resource.Errorf(400, "InvalidXmlDocument", "XML specified is not syntactically valid: %s", err)
	}
	id = strings.TrimSpace(id)
	return blockRef{source: source, id: id}, checkBlockID(id)
}

// serviceXML is the part of the service properties that can be asked for. Everything else is off and stays off.
type serviceXML struct {
	XMLName xml.Name `xml:"StorageServiceProperties"`
	Logging *struct {
		Delete, Read, Write bool
	}
	HourMetrics, MinuteMetrics *struct{ Enabled bool }
	Cors                       *struct {
		Rules []struct{} `xml:"CorsRule"`
	}
	DefaultServiceVersion string
	DeleteRetentionPolicy *struct{ Enabled bool }
	StaticWebsite         *struct{ Enabled bool }
}

// parseServiceProperties gives the default version to keep and refuses every feature that would have to be switched on.
func parseServiceProperties(body []byte) (version string, err error) {
	var p serviceXML
	if err := xml.Unmarshal(body, &p); err != nil {
		return "", resource.Errorf(400, "InvalidXmlDocument", "XML specified is not syntactically valid: %s", err)
	}
	on := func(f *struct{ Enabled bool }) bool { return f != nil && f.Enabled }
	switch {
	case p.Logging != nil && (p.Logging.Delete || p.Logging.Read || p.Logging.Write):
		return "", resource.NotSupported("Storage Analytics logging is not supported: the platform's audit log records every access.")
	case on(p.HourMetrics), on(p.MinuteMetrics):
		return "", resource.NotSupported("Storage Analytics metrics are not supported.")
	case p.Cors != nil && len(p.Cors.Rules) > 0:
		return "", resource.NotSupported("CORS rules are not supported.")
	case on(p.DeleteRetentionPolicy):
		return "", resource.NotSupported("Soft delete of blobs is not supported.")
	case on(p.StaticWebsite):
		return "", resource.NotSupported("Static websites are not supported.")
	}
	if p.DefaultServiceVersion != "" {
		if _, err := checkVersion(p.DefaultServiceVersion); err != nil {
			return "", resource.Errorf(400, "InvalidXmlNodeValue", "DefaultServiceVersion must be a service version, %s or newer.", oldestVersion)
		}
	}
	return p.DefaultServiceVersion, nil
}

// servicePropertiesXML shows what is so.
func servicePropertiesXML(version string) *document {
	d := newDocument()
	off := func(name string) {
		d.open(name)
		d.elem("Enabled", "false")
		d.close(name)
	}
	d.open("StorageServiceProperties")
	d.open("Logging")
	for _, e := range [][2]string{{"Version", "1.0"}, {"Read", "false"}, {"Write", "false"}, {"Delete", "false"}} {
		d.elem(e[0], e[1])
	}
	off("RetentionPolicy")
	d.close("Logging")
	for _, m := range []string{"HourMetrics", "MinuteMetrics"} {
		d.open(m)
		d.elem("Version", "1.0")
		d.elem("Enabled", "false")
		off("RetentionPolicy")
		d.close(m)
	}
	d.elem("Cors", "")
	d.optional("DefaultServiceVersion", version)
	off("DeleteRetentionPolicy")
	off("StaticWebsite")
	d.close("StorageServiceProperties")
	return d
}
