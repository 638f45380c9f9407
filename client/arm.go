package client

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// Object is a JSON object.
type Object = map[string]any

// Dig walks an object by a dotted path; nil where there is nothing.
func Dig(v any, path string) any {
	for name := range strings.SplitSeq(path, ".") {
		m, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		v = m[name]
	}
	return v
}

// Text is Dig for strings.
func Text(v any, path string) string {
	s, _ := Dig(v, path).(string)
	return s
}

func (c *Client) manage(ctx context.Context, method, id, version string, body any, out any) (http.Header, error) {
	sep := "?"
	if strings.Contains(id, "?") {
		sep = "&"
	}
	return c.Do(ctx, Request{Method: method, URL: c.URL("management") + id + sep + "api-version=" + version, Audience: c.URL("management"), JSON: body}, out)
}

// Get reads a resource.
func (c *Client) Get(ctx context.Context, id, version string) (Object, error) {
	var out Object
	_, err := c.manage(ctx, http.MethodGet, id, version, nil, &out)
	return out, err
}

// Put creates or replaces a resource and waits until it stands.
func (c *Client) Put(ctx context.Context, id, version string, body Object) (Object, error) {
	return c.write(ctx, http.MethodPut, id, version, body)
}

// Patch changes a resource and waits until the change is done.
func (c *Client) Patch(ctx context.Context, id, version string, body Object) (Object, error) {
	return c.write(ctx, http.MethodPatch, id, version, body)
}

func (c *Client) write(ctx context.Context, method, id, version string, body Object) (Object, error) {
	var out Object
	h, err := c.manage(ctx, method, id, version, body, &out)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", method, id, err)
	}
	if op := h.Get("Azure-AsyncOperation"); op != "" {
		if err := c.wait(ctx, op); err != nil {
			return nil, fmt.Errorf("%s %s: %w", method, id, err)
		}
		return c.Get(ctx, id, version)
	}
	return out, nil
}

// Delete removes a resource and waits until it is gone.
func (c *Client) Delete(ctx context.Context, id, version string) error {
	h, err := c.manage(ctx, http.MethodDelete, id, version, nil, nil)
	if err == nil && h.Get("Azure-AsyncOperation") != "" {
		err = c.wait(ctx, h.Get("Azure-AsyncOperation"))
	}
	if err != nil {
		return fmt.Errorf("DELETE %s: %w", id, err)
	}
	return nil
}

// Post calls an action of a resource.
func (c *Client) Post(ctx context.Context, path, version string, body, out any) error {
	if body == nil {
		body = Object{}
	}
	if _, err := c.manage(ctx, http.MethodPost, path, version, body, out); err != nil {
		return fmt.Errorf("POST %s: %w", path, err)
	}
	return nil
}

// The pause between polls of an operation grows up to what Retry-After asks of clients that wait for long: most operations
// here are over in milliseconds.
const (
	firstPause = 20 * time.Millisecond
	lastPause  = time.Second
)

// wait polls a long-running operation (ARM RPC, "Asynchronous operations") to its end.
func (c *Client) wait(ctx context.Context, operation string) error {
	if !strings.HasPrefix(operation, c.URL("management")+"/") {
		return fmt.Errorf("waiting for an operation: %q is not at the resource manager", operation)
	}
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		if err := Sleep(ctx, pause); err != nil {
			return fmt.Errorf("waiting for an operation: %w", err)
		}
		var s struct {
			Status string          `json:"status"`
			Error  json.RawMessage `json:"error"`
		}
		if _, err := c.Do(ctx, Request{URL: operation, Audience: c.URL("management")}, &s); err != nil {
			return fmt.Errorf("waiting for an operation: %w", err)
		}
		switch s.Status {
		case "Succeeded":
			return nil
		case "Failed", "Canceled":
			e := &Error{Status: http.StatusConflict}
			_ = json.Unmarshal(s.Error, e) // an operation may fail without saying why
			return e
		}
	}
}

// Sleep pauses, unless the context ends first.
func Sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

const authorizationVersion = "2022-04-01"

// AssignRole gives a principal a built-in role at a scope.
func (c *Client) AssignRole(ctx context.Context, scope, role, principal string) error {
	body := Object{"properties": Object{"roleDefinitionId": "/providers/Microsoft.Authorization/roleDefinitions/" + role,
		"principalId": principal, "principalType": "ServicePrincipal"}}
	_, err := c.Put(ctx, strings.TrimSuffix(scope, "/")+"/providers/Microsoft.Authorization/roleAssignments/"+newGUID(), authorizationVersion, body)
	if StatusOf(err) == http.StatusConflict {
		return nil // it is assigned already
	}
	return err
}

// newGUID makes a random GUID (RFC 9562 §5.4).
func newGUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
