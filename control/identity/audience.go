package identity

import (
	"net/url"
	"strings"

	"casemate.dev/resource"
)

// urls are the public names of this installation.
type urls struct {
	login    string            // https://login.<authority>
	host     string            // its host[:port]
	planes   map[string]string // audience without trailing slash → plane
	suffixes map[string]string // ".blob.core.<authority>" → plane: audiences that name one account
}

// planeStorage stands for blob, dfs, file, queue and table, which share audiences.
const planeStorage = string(resource.PlaneBlob)

func newURLs(cfg Config) urls {
	host := func(name string) string { return cfg.Authority(name + "." + cfg.Domain) }
	u := urls{login: "https://" + host("login"), host: host("login"), planes: map[string]string{}, suffixes: map[string]string{}}
	add := func(plane resource.Plane, names ...string) {
		for _, n := range names {
			u.planes["https://"+strings.ToLower(n)] = string(plane)
		}
	}
	// Microsoft's own names are audiences too: clients that cannot be told another one ask for them, and the token is
	// good at this installation only, because its issuer is.
	add(resource.PlaneManagement, host("management"), "management.azure.com", "management.core.windows.net")
	add(resource.PlaneGraph, host("graph"), "graph.microsoft.com", "graph.windows.net")
	add(resource.PlaneVault, host("vault"), "vault.azure.net")
	add(resource.PlaneBlob, "storage.azure.com")
	add(resource.PlaneRegistry, "containerregistry.azure.net", host("azurecr"))
	add(resource.PlaneWorkspace, "ml.azure.com", host("api"), host("workspace"))
	for _, kind := range []string{"blob", "dfs", "file", "queue", "table"} {
		u.suffixes["."+strings.ToLower(host(kind+".core"))] = planeStorage
	}
	u.suffixes["."+strings.ToLower(host("azurecr"))] = string(resource.PlaneRegistry)
	return u
}

// planeOf says which plane an audience belongs to; "" for an audience that nobody here answers to. An audience is an
// https URL of a host, with one trailing slash or none.
func (u urls) planeOf(audience string) string {
	a := strings.ToLower(strings.TrimSuffix(audience, "/"))
	if p, ok := u.planes[a]; ok {
		return p
	}
	parsed, err := url.Parse(a)
	if err != nil || parsed.Scheme != "https" || a != "https://"+parsed.Host {
		return ""
	}
	if i := strings.IndexByte(parsed.Host, '.'); i > 0 {
		return u.suffixes[parsed.Host[i:]]
	}
	return ""
}

// Audience returns the audiences that a plane accepts, as Verify takes them. The registry exchanges tokens of the
// management plane as well (AAD OAuth of Azure Container Registry), and scoring takes those of the workspace plane.
func (s *Service) Audience(plane resource.Plane) func(audience string) bool {
	want := string(plane)
	if plane == resource.PlaneScoring {
		want = string(resource.PlaneWorkspace)
	}
	return func(audience string) bool {
		got := s.urls.planeOf(audience)
		switch {
		case got == "":
			return false
		case plane == resource.PlaneRegistry, plane == resource.PlaneWorkspace:
			return got == want || got == string(resource.PlaneManagement)
		}
		return got == want
	}
}

// Challenge is the WWW-Authenticate value that sends a client without a token to this authority.
func (s *Service) Challenge(audience string) string {
	return `Bearer authorization="` + s.urls.login + "/" + s.HomeTenant() + `", authorization_uri="` + s.urls.login + "/" + s.HomeTenant() +
		`", resource="` + audience + `"`
}

// The three families of endpoints, each with its issuer.
type dialect int

const (
	dialectV2   dialect = iota // /{tenant}/oauth2/v2.0
	dialectV1                  // /{tenant}/oauth2
	dialectADFS                // /adfs: clients that take it for AD FS ask nobody whether to trust it
)

func (u urls) issuer(d dialect, tenant string) string {
	switch d {
	case dialectV1:
		return u.login + "/" + tenant + "/"
	case dialectADFS:
		return u.login + "/adfs"
	}
	return u.login + "/" + tenant + "/v2.0"
}

func (u urls) issues(issuer, tenant string) bool {
	for _, d := range []dialect{dialectV2, dialectV1, dialectADFS} {
		if issuer == u.issuer(d, tenant) {
			return true
		}
	}
	return false
}
