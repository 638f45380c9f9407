package gateway

import (
	"context"
	"errors"
	"net/http"
	"time"

	"casemate.dev/envelope"
	"casemate.dev/resource"
	"casemate.dev/store"
	"casemate.dev/store/depot"
)

// dispatch runs the row's handler. What the handler returns becomes the answer; its outcome completes the record.
func (g *Gateway) dispatch(x *exchange) error {
	err := x.r.Route.Handler(x.w, x.r)
	switch {
	case err == nil:
		return nil
	case isPublic(err):
		return err
	case errors.Is(err, store.ErrFull), errors.Is(err, depot.ErrFull):
		return resource.Errorf(http.StatusInsufficientStorage, "InsufficientStorage", "The platform's disk is full, and nothing was changed. Free space or ask your administrator, then try again.").WithCause(err)
	case errors.Is(err, envelope.ErrRevoked), errors.Is(err, envelope.ErrRefused):
		return resource.Errorf(http.StatusForbidden, "KeyVaultEncryptionKeyNotFound", "The customer-managed key that protects this resource cannot be used: %s. Restore the key, or the identity's access to it.", err).WithCause(err)
	case errors.Is(err, envelope.ErrUnavailable):
		e := resource.Errorf(http.StatusServiceUnavailable, "KeyVaultUnavailable", "The key vault whose key protects this resource has not answered for a while. Try again.").WithCause(err)
		e.RetryAfter = time.Second
		return e
	case errors.Is(err, envelope.ErrDestroyed):
		return resource.Errorf(http.StatusGone, "ResourceKeyDestroyed", "The data of this resource was destroyed together with its key.").WithCause(err)
	case errors.Is(err, context.DeadlineExceeded):
		return resource.Errorf(http.StatusGatewayTimeout, "OperationTimedOut", "The operation could not be completed within the permitted time. Try again.").WithCause(err)
	}
	return err
}

func isPublic(err error) bool {
	var e *resource.Error
	return errors.As(err, &e)
}
