package resource

import (
	"errors"
	"fmt"
	"net/http"
	"time"
)

// Error is the one error that clients see. The gateway writes it in the dialect of the plane (ARM JSON, storage XML,
// vault JSON, registry JSON, OAuth). Any other error reaches the client as an internal error with a correlation ID.
//
// Source: Microsoft REST API Guidelines, "ErrorDetail"; ARM RPC v1.0, common-api-details, "Error response content".
type Error struct {
	Status     int           // HTTP status
	Code       string        // Azure's error code, such as ResourceNotFound
	Message    string        // tells the person what to do; never holds a secret
	Target     string        // the property at fault; may be empty
	Details    []*Error      // may be empty
	RetryAfter time.Duration // 0: no header
	Header     http.Header   // further response headers (a challenge, say); may be nil
	Cause      error         // for the log only, never sent
}

func (e *Error) Error() string {
	if e.Cause != nil {
		return fmt.Sprintf("%s: %s (%v)", e.Code, e.Message, e.Cause)
	}
	return e.Code + ": " + e.Message
}

// Unwrap gives the cause, which stays inside the process.
func (e *Error) Unwrap() error { return e.Cause }

// Errorf makes an Error from its three necessary parts.
func Errorf(status int, code, format string, args ...any) *Error {
	return &Error{Status: status, Code: code, Message: fmt.Sprintf(format, args...)}
}

// WithTarget names the property at fault.
func (e *Error) WithTarget(t string) *Error { e.Target = t; return e }

// WithCause keeps err for the log.
func (e *Error) WithCause(err error) *Error { e.Cause = err; return e }

// Invalid is 400 with the code InvalidParameter for a property whose value cannot be used.
func Invalid(target, format string, args ...any) *Error {
	return Errorf(http.StatusBadRequest, "InvalidParameter", format, args...).WithTarget(target)
}

// NotSupported is 501 for what Casemate does not do; it says so instead of pretending.
func NotSupported(format string, args ...any) *Error {
	return Errorf(http.StatusNotImplemented, "NotSupported", format, args...)
}

// NotFound is 404 with the code ResourceNotFound, or ResourceGroupNotFound where that is what is missing.
func NotFound(id ID) *Error {
	if id.Is("Microsoft.Resources/subscriptions/resourceGroups") {
		return Errorf(http.StatusNotFound, "ResourceGroupNotFound", "Resource group '%s' could not be found.", id.Name())
	}
	return Errorf(http.StatusNotFound, "ResourceNotFound", "The resource '%s' was not found. Check its name and the resource group.", id)
}

// Forbidden is 403 with the code AuthorizationFailed, in the words that ARM uses.
func Forbidden(c Caller, action, scope string) *Error {
	return Errorf(http.StatusForbidden, "AuthorizationFailed",
		"The client '%s' with object id '%s' does not have authorization to perform action '%s' over scope '%s' or the scope is invalid. If access was recently granted, please refresh your credentials.",
		c.DisplayName(), c.Object, action, scope)
}

// Internal hides err behind a message that names nothing.
func Internal(err error) *Error {
	return &Error{Status: http.StatusInternalServerError, Code: "InternalServerError",
		Message: "The server met an unexpected condition. Quote the correlation id to your administrator.", Cause: err}
}

// AsError finds the public error in err's chain; any other error becomes Internal.
func AsError(err error) *Error {
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	return Internal(err)
}

// StatusOf is the HTTP status that err will have.
func StatusOf(err error) int {
	if err == nil {
		return http.StatusOK
	}
	return AsError(err).Status
}
