package blob

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	"casemate.dev/envelope"
	"casemate.dev/resource"
	"casemate.dev/store"
	"casemate.dev/store/depot"
)

func errContainerNotFound(name string) *resource.Error {
	return resource.Errorf(404, "ContainerNotFound", "The specified container '%s' does not exist.", name)
}

func errBlobNotFound(name string) *resource.Error {
	return resource.Errorf(404, "BlobNotFound", "The specified blob '%s' does not exist.", name)
}

func errHeader(name, format string, args ...any) *resource.Error {
	return resource.Errorf(400, "InvalidHeaderValue", "The value of the header %s is not valid: %s", name, fmt.Sprintf(format, args...)).WithTarget(name)
}

func errMissingHeader(name string) *resource.Error {
	return resource.Errorf(400, "MissingRequiredHeader", "The header %s is required for this request.", name).WithTarget(name)
}

// publicError turns what the layers below answer into the service's error codes.
func (s *Service) publicError(a *account, err error) error {
	var public *resource.Error
	var tooLarge *http.MaxBytesError
	switch {
	case err == nil:
		return nil
	case errors.Is(err, envelope.ErrRevoked): // before what is public: below it is the vault's answer, which is not for this service's clients
		return resource.Errorf(403, "KeyVaultEncryptionKeyNotFound",
			"The account's data cannot be read or written: its encryption key %s is disabled, deleted, expired or no longer permitted.", s.keyName(a)).WithCause(err)
	case errors.As(err, &public):
		return err
	case errors.Is(err, envelope.ErrDestroyed), errors.Is(err, envelope.ErrNoRecord):
		return resource.Errorf(403, "AccountIsDisabled", "The account has no encryption key: it is being created or deleted.").WithCause(err)
	case errors.Is(err, envelope.ErrUnavailable):
		e := resource.Errorf(503, "ServerBusy", "The key vault cannot confirm the account's encryption key %s at the moment.", s.keyName(a)).WithCause(err)
		e.RetryAfter = time.Second
		return e
	case errors.Is(err, depot.ErrFull), errors.Is(err, store.ErrFull):
		return resource.Errorf(503, "ServerBusy", "The server is out of disk space. Nothing was changed.").WithCause(err)
	case errors.As(err, &tooLarge):
		return resource.Errorf(413, "RequestBodyTooLarge", "The request body is larger than the %d bytes that this operation accepts.", tooLarge.Limit)
	case errors.Is(err, errBodyShort):
		return resource.Errorf(400, "InvalidInput", "The request body ended before Content-Length bytes had arrived.").WithCause(err)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return resource.Errorf(500, "OperationTimedOut", "The operation could not be completed within the permitted time.").WithCause(err)
	}
	return err
}

// keyName is the customer's key for a message.
func (s *Service) keyName(a *account) string {
	if a == nil {
		return ""
	}
	kid, err := s.keys.Version(a.arm.String())
	if err != nil {
		return ""
	}
	return "'" + kid + "'"
}

// errBodyShort: the client sent fewer bytes than it had promised.
var errBodyShort = errors.New("request body ended early")

// bodyError marks what reading a request body can answer.
func bodyError(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: %w", errBodyShort, err)
	}
	return fmt.Errorf("reading request body: %w", err)
}
