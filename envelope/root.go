package envelope

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
)

// Root opens the hierarchy at start: it wraps and unwraps the few bytes above
// which there is nothing else of ours. Unwrap answers ErrWrongRoot when the
// bytes were wrapped by another root key.
type Root interface {
	Scheme() string
	Wrap(ctx context.Context, plain []byte) ([]byte, error)
	Unwrap(ctx context.Context, wrapped []byte) ([]byte, error)
}

// OpenRoot gives the root of trust that spec names:
//
//	file:PATH             a key file, made with mode 0600 at the first start;
//	                      without PATH it is defaultDir/root.key
//	passphrase:NAME       a passphrase in the environment variable NAME
//	passphrase:PATH       a passphrase in a file; PATH has a slash or a dot
//
// The empty spec is "file:". Nothing is created before the first Wrap, so a
// lost key file is reported and not replaced by a new one.
func OpenRoot(spec, defaultDir string) (Root, error) {
	if spec == "" {
		spec = "file:"
	}
	scheme, value, found := strings.Cut(spec, ":")
	if !found {
		return nil, fmt.Errorf("root key %q has no scheme: want file:PATH or passphrase:NAME", spec)
	}
	switch scheme {
	case "file":
		if value == "" {
			value = filepath.Join(defaultDir, "root.key")
		}
		return &fileRoot{path: value}, nil
	case "passphrase":
		return openPassphraseRoot(value)
	case "pkcs11", "tpm", "kms":
		return nil, fmt.Errorf("root key scheme %q is not supported yet: use file or passphrase", scheme)
	}
	return nil, fmt.Errorf("root key scheme %q is unknown: file and passphrase are supported", scheme)
}
