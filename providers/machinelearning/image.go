package machinelearning

import (
	"net"
	"regexp"
	"strings"

	"casemate.dev/resource"
)

// imageRef is an image of a registry of the platform; with no registry named it is the workspace's.
type imageRef struct {
	registry   string // name; "" for the workspace's own
	repository string
	reference  string // tag or sha256:…
}

// The grammar of repository and tag is that of the OCI distribution specification 1.1, "Pulling manifests".
var (
	repositoryPattern = regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(\/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$`)
	tagPattern        = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)
	digestPattern     = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)
)

// parseImage reads {repository}[:tag|@digest] and {registry}.azurecr.{domain}[:port]/{repository}[:tag|@digest].
func (p *Provider) parseImage(target, s string) (imageRef, error) {
	ref := imageRef{reference: "latest"}
	rest := s
	if host, path, ok := strings.Cut(s, "/"); ok && strings.ContainsAny(host, ".:") {
		name := host
		if h, _, err := net.SplitHostPort(host); err == nil {
			name = h
		}
		registry, ok := strings.CutSuffix(strings.ToLower(name), ".azurecr."+strings.ToLower(p.cfg.Domain))
		if !ok || registry == "" || strings.Contains(registry, ".") {
			return ref, resource.NotSupported("The image '%s' is not in a registry of this platform. Push it to the workspace's registry and name it there.", clip(s))
		}
		ref.registry, rest = registry, path
	}
	if repo, digest, ok := strings.Cut(rest, "@"); ok {
		if repo, _, ok = strings.Cut(repo, ":"); ok {
			return ref, resource.Invalid(target, "The image '%s' has a tag and a digest. Give one of them.", clip(s))
		}
		ref.repository, ref.reference = repo, digest
		if !digestPattern.MatchString(digest) {
			return ref, resource.Invalid(target, "'%s' is not a digest.", clip(digest))
		}
	} else if repo, tag, ok := strings.Cut(rest, ":"); ok {
		ref.repository, ref.reference = repo, tag
		if !tagPattern.MatchString(tag) {
			return ref, resource.Invalid(target, "'%s' is not a tag.", clip(tag))
		}
	} else {
		ref.repository = rest
	}
	if len(ref.repository) > 255 || !repositoryPattern.MatchString(ref.repository) {
		return ref, resource.Invalid(target, "'%s' is not the name of an image. It reads {repository}:{tag}, as in casemate/sklearn:latest.", clip(s))
	}
	return ref, nil
}

func clip(s string) string {
	if len(s) > 200 {
		return s[:200] + "…"
	}
	return s
}
