package blob

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"regexp"
	"strings"
	"unicode/utf8"

	"casemate.dev/resource"
)

// Limits of the protocol ("Scalability targets for Blob storage", and "Naming and referencing containers, blobs, and
// metadata").
const (
	maxPut        = 5000 << 20 // Put Blob, bytes
	maxBlock      = 4000 << 20 // Put Block, bytes
	maxCommitted  = 50_000     // blocks in a list
	maxStaged     = 100_000    // uncommitted blocks of one blob
	maxBlockID    = 64         // bytes before base64
	maxBlobName   = 1024       // characters
	maxMetadata   = 8 << 10    // bytes, names and values
	maxList       = 5000       // results in one page
	maxBlockList  = 8 << 20    // bytes of XML: 50,000 longest ids need 6 MiB
	maxRangeSum   = 4 << 20    // bytes of a range whose checksum may be asked for
	maxServiceXML = 64 << 10
)

var containerName = regexp.MustCompile(`^(\$root|\$web|[a-z0-9](-?[a-z0-9])*)$`)

// checkContainerName applies the naming rule: 3 to 63 lower-case letters, digits and single hyphens.
func checkContainerName(name string) error {
	if len(name) < 3 || len(name) > 63 {
		return resource.Errorf(400, "InvalidResourceName", "The container name '%.80s' must be 3 to 63 characters long.", name)
	}
	if !containerName.MatchString(name) {
		return resource.Errorf(400, "InvalidResourceName", "The container name '%s' may hold lower-case letters, digits and single hyphens, and must start and end with a letter or digit.", name)
	}
	return nil
}

// checkBlobName accepts any text. A name is never a path here: "..", "//" and the rest are ordinary characters of a key
// in the store, and the depot knows contents by random keys only.
func checkBlobName(name string) error {
	if !utf8.ValidString(name) || strings.ContainsRune(name, 0) {
		return resource.Errorf(400, "InvalidUri", "The blob name is not valid UTF-8 text after percent-decoding.")
	}
	if name == "" {
		return resource.Errorf(400, "InvalidUri", "The request URI names no blob.")
	}
	if utf8.RuneCountInString(name) > maxBlobName {
		return resource.Errorf(400, "OutOfRangeInput", "The blob name is longer than %d characters.", maxBlobName)
	}
	return nil
}

// hashName bounds the keys of a blob's uncommitted blocks: a long name in each of 50,000 keys would not fit into the
// transaction that commits them.
func hashName(name string) string {
	sum := sha256.Sum256([]byte(name))
	return hex.EncodeToString(sum[:16])
}

// checkBlockID accepts base64 of 1 to 64 bytes.
func checkBlockID(id string) error {
	raw, err := base64.StdEncoding.Strict().DecodeString(id)
	if err != nil || len(raw) == 0 || strings.ContainsAny(id, "\r\n") {
		return resource.Errorf(400, "InvalidBlockId", "The block ID must be valid base64 of 1 to %d bytes.", maxBlockID)
	}
	if len(raw) > maxBlockID {
		return resource.Errorf(400, "OutOfRangeInput", "The block ID has %d bytes before encoding; at most %d are allowed.", len(raw), maxBlockID)
	}
	return nil
}

var metadataName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// checkMetadata demands names that are C# identifiers (lists write them as XML elements) and bounds the whole.
func checkMetadata(m map[string]string) error {
	total := 0
	for k, v := range m {
		if k == "" {
			return resource.Errorf(400, "EmptyMetadataKey", "The key for one of the metadata key-value pairs is empty.")
		}
		if !metadataName.MatchString(k) {
			return resource.Errorf(400, "InvalidMetadata", "The metadata name '%.80s' must be an identifier: letters, digits and underscores, not starting with a digit.", k)
		}
		if !utf8.ValidString(v) {
			return resource.Errorf(400, "InvalidMetadata", "The value of metadata '%.80s' is not valid text.", k)
		}
		total += len(k) + len(v)
	}
	if total > maxMetadata {
		return resource.Errorf(400, "MetadataTooLarge", "The metadata has %d bytes; at most %d are allowed.", total, maxMetadata)
	}
	return nil
}
