package vault

import (
	"net/http"

	"casemate.dev/resource"
)

// badParameter is 400 with Azure's code for a body, name or query that cannot be used.
func badParameter(format string, args ...any) *resource.Error {
	return resource.Errorf(http.StatusBadRequest, "BadParameter", format, args...)
}

// forbidden is 403 with the inner code that clients tell cases apart by; it travels as the only detail.
func forbidden(inner, format string, args ...any) *resource.Error {
	e := resource.Errorf(http.StatusForbidden, "Forbidden", format, args...)
	e.Details = []*resource.Error{{Code: inner}}
	return e
}

// notFound says that an object or a version of it does not exist.
func notFound(k kind, name, version string) *resource.Error {
	if version != "" {
		name += "/" + version
	}
	return resource.Errorf(http.StatusNotFound, k.title+"NotFound",
		"A %s with (name/id) %s was not found in this key vault. If you recently deleted this %s you may be able to recover it.", k.word, name, k.word)
}

// deletedConflict refuses the use of a name that a deleted object still holds.
func deletedConflict(k kind, name string) *resource.Error {
	e := resource.Errorf(http.StatusConflict, "Conflict",
		"%s %s is currently in a deleted but recoverable state, and its name cannot be reused; in this state, the %s can only be recovered or purged.", k.title, name, k.word)
	e.Details = []*resource.Error{{Code: "ObjectIsDeletedButRecoverable"}}
	return e
}

// purgeProtected refuses a purge that purge protection forbids.
func purgeProtected() *resource.Error {
	return resource.Errorf(http.StatusForbidden, "Forbidden",
		`Operation "purge" is not allowed because purge protection is enabled for this vault. Key Vault service will automatically purge it after the retention period has passed.`)
}
