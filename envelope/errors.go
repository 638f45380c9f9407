package envelope

import (
	"errors"
	"fmt"
)

// The outcomes a caller may have to tell apart; match them with errors.Is.
var (
	// ErrRevoked: the key vault refuses the customer's key, or its state
	// changed while the handle was in use. Ask Keys for a new handle.
	ErrRevoked = errors.New("access to the customer's key is revoked")
	// ErrDestroyed: the resource key is gone and what it sealed is unreadable.
	ErrDestroyed = errors.New("the resource key is destroyed")
	// ErrUnavailable: nobody could be asked. Retryable.
	ErrUnavailable = errors.New("the key cannot be confirmed")
	// ErrNoRecord: the resource never had a key. Records return it too.
	ErrNoRecord = errors.New("the resource has no key")
	// ErrBound: the resource has a key already, under another key of a vault.
	ErrBound = errors.New("the resource key is bound to another key")
	// ErrCorrupt: sealed data is damaged, cut, or belongs to another place.
	ErrCorrupt = errors.New("sealed data is damaged or belongs elsewhere")
	// ErrWrongRoot: this root key did not wrap this hierarchy.
	ErrWrongRoot = errors.New("wrong root key")
	// ErrRefused: see Refused.
	ErrRefused = errors.New("the key vault refuses")
)

// Refused marks reason as the vault's decision that the key may not be used
// now (disabled, deleted, expired, not permitted, blocked by its firewall). A
// [Vault] wraps such errors with it; an error without the mark is an outage.
func Refused(keyURL string, reason error) error {
	return fmt.Errorf("%w key %s: %w", ErrRefused, keyURL, reason)
}

// corrupt says what was found wrong with sealed data.
func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrCorrupt}, args...)...)
}

// vaultError turns an answer of the vault about kid into one of ours.
func vaultError(kid string, err error) error {
	if errors.Is(err, ErrRefused) {
		return fmt.Errorf("%w: key %s: %w", ErrRevoked, kid, err)
	}
	return fmt.Errorf("%w: asking the key vault for %s: %w", ErrUnavailable, kid, err)
}
