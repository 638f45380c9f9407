package gateway

import (
	"context"
	"errors"
	"net/http"

	"casemate.dev/resource"
)

// dispatch runs the row's handler. What the handler returns becomes the answer; its outcome completes the record.
func (g *Gateway) dispatch(x *exchange) error {
	err := x.r.Route.Handler(x.w, x.r)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, context.DeadlineExceeded) && !isPublic(err):
		return resource.Errorf(http.StatusGatewayTimeout, "OperationTimedOut", "The operation could not be completed within the permitted time. Try again.").WithCause(err)
	}
	return err
}

func isPublic(err error) bool {
	var e *resource.Error
	return errors.As(err, &e)
}
