package gateway

import (
	"encoding/json"
	"encoding/xml"
	"fmt"
	"net/http"
	"time"

	"casemate.dev/resource"
)

// Dialects are the ways in which the planes' clients expect errors.
var dialects = map[resource.Plane]func(http.ResponseWriter, *resource.Request, *resource.Error){
	resource.PlaneManagement: writeARMError,
	resource.PlaneGraph:      writeARMError,
	resource.PlaneVault:      writeVaultError,
	resource.PlaneScoring:    writeARMError,
	resource.PlaneWorkspace:  writeWorkspaceError,
	resource.PlaneLogin:      writeOAuthError,
	resource.PlaneNode:       writeOAuthError,
	resource.PlaneBlob:       writeStorageError,
	resource.PlaneRegistry:   writeRegistryError,
}

// Dialect is the error dialect of a plane.
func Dialect(p resource.Plane) func(http.ResponseWriter, *resource.Request, *resource.Error) {
	return dialects[p]
}

// armError is the error object of the Microsoft REST API Guidelines.
type armError struct {
	Code       string      `json:"code"`
	Message    string      `json:"message"`
	Target     string      `json:"target,omitempty"`
	Details    []*armError `json:"details,omitempty"`
	InnerError any         `json:"innererror,omitempty"`
}

func toARM(e *resource.Error) *armError {
	out := &armError{Code: e.Code, Message: e.Message, Target: e.Target}
	for _, d := range e.Details {
		out.Details = append(out.Details, toARM(d))
	}
	return out
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		http.Error(w, "{}", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.Header().Set("Content-Length", fmt.Sprint(len(b)))
	w.WriteHeader(status)
	_, _ = w.Write(b) // the peer may be gone
}

func writeARMError(w http.ResponseWriter, r *resource.Request, e *resource.Error) {
	w.Header()["x-ms-error-code"] = []string{e.Code}
	writeJSON(w, e.Status, map[string]any{"error": toARM(e)})
}

// writeVaultError is Key Vault's: a refusal's exact reason stands in innererror (Key Vault REST, "Authentication, requests
// and responses").
func writeVaultError(w http.ResponseWriter, _ *resource.Request, e *resource.Error) {
	out := &armError{Code: e.Code, Message: e.Message}
	switch e.Code {
	case "AuthorizationFailed":
		out.Code, out.InnerError = "Forbidden", map[string]any{"code": "ForbiddenByRbac"}
	case "ForbiddenByConnection":
		out.Code, out.InnerError = "Forbidden", map[string]any{"code": e.Code}
	}
	if len(e.Details) > 0 {
		out.InnerError = map[string]any{"code": e.Details[0].Code}
	}
	writeJSON(w, e.Status, map[string]any{"error": out})
}

// writeWorkspaceError serves Azure ML's clients and MLflow's, which read error_code and message at the top.
func writeWorkspaceError(w http.ResponseWriter, _ *resource.Request, e *resource.Error) {
	writeJSON(w, e.Status, map[string]any{"error": toARM(e), "error_code": e.Code, "message": e.Message})
}

// writeOAuthError is RFC 6749, section 5.2, with the members that Microsoft's clients print.
func writeOAuthError(w http.ResponseWriter, r *resource.Request, e *resource.Error) {
	writeJSON(w, e.Status, map[string]any{
		"error": e.Code, "error_description": e.Message, "correlation_id": r.CorrelationID, "trace_id": r.CorrelationID,
		"timestamp": time.Now().UTC().Format("2006-01-02 15:04:05Z"),
	})
}

// writeStorageError is the XML of the Storage REST API, "Status and error codes".
func writeStorageError(w http.ResponseWriter, r *resource.Request, e *resource.Error) {
	w.Header()["x-ms-error-code"] = []string{e.Code}
	body := struct {
		XMLName xml.Name `xml:"Error"`
		Code    string
		Message string
	}{Code: e.Code, Message: fmt.Sprintf("%s\nRequestId:%s\nTime:%s", e.Message, r.CorrelationID, time.Now().UTC().Format(time.RFC3339Nano))}
	b, err := xml.Marshal(body)
	if err != nil {
		b = nil
	}
	b = append([]byte(xml.Header), b...)
	w.Header().Set("Content-Type", "application/xml")
	w.Header().Set("Content-Length", fmt.Sprint(len(b)))
	w.WriteHeader(e.Status)
	if r.Method != http.MethodHead {
		_, _ = w.Write(b) // the peer may be gone
	}
}

// writeRegistryError is the OCI distribution specification's error list.
func writeRegistryError(w http.ResponseWriter, _ *resource.Request, e *resource.Error) {
	code := e.Code
	switch e.Status {
	case http.StatusUnauthorized:
		code = "UNAUTHORIZED"
	case http.StatusForbidden:
		code = "DENIED"
	}
	writeJSON(w, e.Status, map[string]any{"errors": []any{map[string]any{"code": code, "message": e.Message}}})
}
