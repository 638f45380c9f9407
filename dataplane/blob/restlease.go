package blob

import (
	"crypto/rand"
	"fmt"
	"net/http"
	"strconv"
	"strings"
)

const (
	leaseIDHeader    = "x-ms-lease-id"
	proposedIDHeader = "x-ms-proposed-lease-id"
)

// parseLeaseID accepts a GUID in its usual forms and gives the plain lower-case one; "" for no header.
func parseLeaseID(h http.Header, name string) (string, error) {
	v := h.Get(name)
	if v == "" {
		return "", nil
	}
	id := strings.ToLower(strings.Trim(v, "{}()"))
	plain := strings.ReplaceAll(id, "-", "")
	if len(plain) != 32 || strings.Trim(plain, "0123456789abcdef") != "" || (len(id) != 32 && len(id) != 36) {
		return "", errHeader(name, "a lease ID is a GUID.")
	}
	return guidOf(plain), nil
}

func guidOf(hex string) string {
	return hex[:8] + "-" + hex[8:12] + "-" + hex[12:16] + "-" + hex[16:20] + "-" + hex[20:]
}

// newLeaseID is a random GUID (RFC 9562, version 4).
func newLeaseID() string {
	var b [16]byte
	rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return guidOf(fmt.Sprintf("%x", b))
}

func sameLease(a, b string) bool { return a == b && a != "" }

func parseSeconds(h http.Header, name string) (n int, given bool, err error) {
	v := h.Get(name)
	if v == "" {
		return 0, false, nil
	}
	n, err = strconv.Atoi(v)
	if err != nil {
		return 0, true, errHeader(name, "it must be a number of seconds.")
	}
	return n, true, nil
}

// parseLease reads the headers of Lease Blob and Lease Container.
func parseLease(h http.Header) (q leaseAsk, err error) {
	q.action, q.period = strings.ToLower(h.Get("x-ms-lease-action")), -1
	if q.id, err = parseLeaseID(h, leaseIDHeader); err != nil {
		return q, err
	}
	if q.proposed, err = parseLeaseID(h, proposedIDHeader); err != nil {
		return q, err
	}
	switch q.action {
	case "":
		return q, errMissingHeader("x-ms-lease-action")
	case "acquire":
		if q.proposed == "" {
			q.proposed = newLeaseID()
		}
		n, given, err := parseSeconds(h, "x-ms-lease-duration")
		switch {
		case err != nil:
			return q, err
		case !given:
			return q, errMissingHeader("x-ms-lease-duration")
		case n != infiniteLease && (n < 15 || n > 60):
			return q, errHeader("x-ms-lease-duration", "it must be 15 to 60 seconds, or -1 for an infinite lease.")
		}
		q.duration = n
	case "break":
		n, given, err := parseSeconds(h, "x-ms-lease-break-period")
		switch {
		case err != nil:
			return q, err
		case given && (n < 0 || n > 60):
			return q, errHeader("x-ms-lease-break-period", "it must be 0 to 60 seconds.")
		case given:
			q.period = n
		}
	case "renew", "release", "change":
		if q.id == "" {
			return q, errMissingHeader(leaseIDHeader)
		}
		if q.action == "change" && q.proposed == "" {
			return q, errMissingHeader(proposedIDHeader)
		}
	default:
		return q, errHeader("x-ms-lease-action", "'%.20s' is not acquire, renew, change, release or break.", q.action)
	}
	return q, nil
}

func (c *call) leased(q leaseAsk, l *lease, wait int, s stamp) error {
	c.stamp(s)
	status := http.StatusOK
	switch q.action {
	case "acquire":
		status = http.StatusCreated
	case "break":
		c.w.Header().Set("x-ms-lease-time", strconv.Itoa(wait))
		status = http.StatusAccepted
	}
	if l != nil && q.action != "break" {
		c.w.Header().Set(leaseIDHeader, l.ID)
	}
	return c.done(status)
}

func leaseBlob(s *Service, c *call) error {
	q, err := parseLease(c.Header)
	if err != nil {
		return err
	}
	c.Remember("lease", q.action)
	rec, wait, err := s.leaseBlob(c.Context(), c.a, c.container, c.blob, c.cond, q)
	if err != nil {
		return err
	}
	return c.leased(q, rec.Lease, wait, rec.stamp)
}

func leaseContainer(s *Service, c *call) error {
	q, err := parseLease(c.Header)
	if err != nil {
		return err
	}
	c.Remember("lease", q.action)
	rec, wait, err := s.leaseContainer(c.Context(), c.a, c.container, c.cond, q)
	if err != nil {
		return err
	}
	return c.leased(q, rec.Lease, wait, rec.stamp)
}

// lease writes the headers that tell about one.
func (c *call) lease(s *Service, l *lease) {
	status, state, duration := l.shown(s.now())
	h := c.w.Header()
	h.Set("x-ms-lease-status", status)
	h.Set("x-ms-lease-state", string(state))
	if duration != "" {
		h.Set("x-ms-lease-duration", duration)
	}
}

// lease writes the elements that lists tell about one.
func (d *document) lease(l *lease, s *Service) {
	status, state, duration := l.shown(s.now())
	d.elem("LeaseStatus", status)
	d.elem("LeaseState", string(state))
	d.optional("LeaseDuration", duration)
}
