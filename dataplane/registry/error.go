package registry

import (
	"context"
	"errors"
	"net/http"
	"os"
	"time"

	"github.com/distribution/distribution/v3"
	storagedriver "github.com/distribution/distribution/v3/registry/storage/driver"

	"casemate.dev/envelope"
	"casemate.dev/resource"
	"casemate.dev/store"
	"casemate.dev/store/depot"
)

// The codes are those of the OCI Distribution Specification, "Error Codes".

func errNoRegistry(name string) *resource.Error {
	return resource.Errorf(http.StatusNotFound, "NAME_UNKNOWN", "The registry '%s' does not exist.", name)
}

func errName(name string) *resource.Error {
	return resource.Errorf(http.StatusBadRequest, "NAME_INVALID", "'%.100s' is not the name of a repository: use lower-case letters, digits, separators and slashes.", name)
}

func errNoRepository(name string) *resource.Error {
	return resource.Errorf(http.StatusNotFound, "NAME_UNKNOWN", "The repository '%s' does not exist.", name)
}

func errNoManifest(name, ref string) *resource.Error {
	return resource.Errorf(http.StatusNotFound, "MANIFEST_UNKNOWN", "The repository '%s' holds no manifest '%.140s'.", name, ref)
}

func errNoBlob(name, digest string) *resource.Error {
	return resource.Errorf(http.StatusNotFound, "BLOB_UNKNOWN", "The repository '%s' holds no blob '%.140s'.", name, digest)
}

func errNoUpload(id string) *resource.Error {
	return resource.Errorf(http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN", "There is no upload '%.60s' in this repository. Begin another one.", id)
}

func errUpload(status int, format string, args ...any) *resource.Error {
	return resource.Errorf(status, "BLOB_UPLOAD_INVALID", format, args...)
}

func errDigest(format string, args ...any) *resource.Error {
	return resource.Errorf(http.StatusBadRequest, "DIGEST_INVALID", format, args...)
}

func errManifest(format string, args ...any) *resource.Error {
	return resource.Errorf(http.StatusBadRequest, "MANIFEST_INVALID", format, args...)
}

// errMismatch: what is stored under a digest has another one. The answer breaks off.
var errMismatch = errors.New("stored content does not have its digest")

// publicError turns what the layers below answer into the protocol's error codes.
func (s *Service) publicError(arm resource.ID, err error) error {
	var public *resource.Error
	var tooLarge *http.MaxBytesError
	err = flatten(err)
	switch {
	case err == nil || errors.As(err, &public):
		return err
	case errors.Is(err, envelope.ErrRevoked):
		return resource.Errorf(http.StatusForbidden, "DENIED",
			"The registry's data cannot be read or written: its encryption key %s is disabled, deleted, expired or no longer permitted.", s.keyName(arm)).WithCause(err)
	case errors.Is(err, envelope.ErrDestroyed), errors.Is(err, envelope.ErrNoRecord):
		return resource.Errorf(http.StatusForbidden, "DENIED", "The registry has no encryption key: it is being created or deleted.").WithCause(err)
	case errors.Is(err, envelope.ErrUnavailable):
		return retry(resource.Errorf(http.StatusServiceUnavailable, "TOOMANYREQUESTS", "The key vault cannot confirm the registry's encryption key %s at the moment.", s.keyName(arm)).WithCause(err))
	case errors.Is(err, depot.ErrFull), errors.Is(err, store.ErrFull):
		return retry(resource.Errorf(http.StatusServiceUnavailable, "TOOMANYREQUESTS", "The server is out of disk space. Nothing was changed.").WithCause(err))
	case errors.As(err, &tooLarge):
		return resource.Errorf(http.StatusRequestEntityTooLarge, "SIZE_INVALID", "The request body is larger than the %d bytes that this operation accepts.", tooLarge.Limit)
	case errors.Is(err, errBody):
		return errUpload(http.StatusBadRequest, "The request body ended early. Ask for the upload's status and go on from there.").WithCause(err)
	case errors.Is(err, errOvertaken):
		return errUpload(http.StatusConflict, "Another request has changed this upload. Ask for its status.").WithCause(err)
	case errors.Is(err, errFragments):
		return errUpload(http.StatusBadRequest, "The upload has %d parts already. Send larger chunks.", maxParts)
	case errors.Is(err, distribution.ErrUnsupported), errors.As(err, new(storagedriver.ErrUnsupportedMethod)):
		return resource.Errorf(http.StatusMethodNotAllowed, "UNSUPPORTED", "The registry does not support this operation.")
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return resource.Errorf(http.StatusGatewayTimeout, "TOOMANYREQUESTS", "The operation could not be completed within the permitted time.").WithCause(err)
	}
	return err
}

func retry(e *resource.Error) *resource.Error {
	e.RetryAfter = time.Second
	return e
}

// flatten makes the causes of a manifest's refusal visible to errors.Is, which distribution's list of them hides.
func flatten(err error) error {
	var list distribution.ErrManifestVerification
	if errors.As(err, &list) {
		return errors.Join(list...)
	}
	return err
}

// keyName is the customer's key for a message.
func (s *Service) keyName(arm resource.ID) string {
	kid, err := s.cfg.Keys.Version(arm.String())
	if err != nil || kid == "" {
		return ""
	}
	return "'" + kid + "'"
}
