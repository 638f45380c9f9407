package outside

import (
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/crane"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

const (
	registryVersion = "2023-07-01"
	tokenUser       = "00000000-0000-0000-0000-000000000000"
)

// newRegistry makes a container registry and returns its login server.
func (p *platform) newRegistry() (id, server string) {
	p.t.Helper()
	id = p.newGroup() + "/providers/Microsoft.ContainerRegistry/registries/reg" + suffix()
	status, doc := p.arm("PUT", id, registryVersion, map[string]any{"location": "local", "sku": map[string]any{"name": "Premium"}, "properties": map[string]any{"adminUserEnabled": false}})
	if status != http.StatusOK && status != http.StatusCreated {
		p.t.Fatalf("PUT %s = %d %v", id, status, doc)
	}
	props, _ := doc["properties"].(map[string]any)
	if server, _ = props["loginServer"].(string); server == "" {
		p.t.Fatalf("the registry has no login server: %v", doc)
	}
	return id, server
}

func wantRegistryStatus(t *testing.T, what string, err error, status int) {
	t.Helper()
	var e *transport.Error
	if !errors.As(err, &e) || e.StatusCode != status {
		t.Errorf("%s: %v, want %d", what, err, status)
	}
}

// crane, with the ways to sign in that docker and az use.
func TestCrane(t *testing.T) {
	p := newPlatform(t)
	id, server := p.newRegistry()
	as := func(a authn.Authenticator) []crane.Option {
		return []crane.Option{crane.WithContext(t.Context()), crane.WithTransport(p.http.Transport), crane.WithAuth(a)}
	}
	secret := as(&authn.Basic{Username: p.env["AZURE_CLIENT_ID"], Password: p.env["AZURE_CLIENT_SECRET"]})
	token := as(&authn.Basic{Username: tokenUser, Password: p.token()})

	img, err := random.Image(300_000, 3)
	p.check(err)
	ref := server + "/team/app:v1"
	p.check(crane.Push(img, ref, secret...))
	p.check(crane.Tag(ref, "v2", token...))
	for name, opts := range map[string][]crane.Option{"secret": secret, "token": token} {
		back, err := crane.Pull(server+"/team/app:v2", opts...)
		p.check(err)
		if err := validate.Image(back); err != nil {
			t.Errorf("pulled with a %s: %v", name, err)
		}
		want, err := img.Digest()
		p.check(err)
		if got, err := back.Digest(); err != nil || got != want {
			t.Errorf("pulled with a %s: %v (%v), want %v", name, got, err, want)
		}
	}
	tags, err := crane.ListTags(server+"/team/app", secret...)
	p.check(err)
	if !slices.Equal(tags, []string{"v1", "v2"}) {
		t.Errorf("tags = %v", tags)
	}
	p.check(crane.Copy(ref, server+"/other/app:v1", secret...)) // mounts the layers
	repos, err := crane.Catalog(server, secret...)
	p.check(err)
	if !slices.Equal(repos, []string{"other/app", "team/app"}) {
		t.Errorf("catalog = %v", repos)
	}

	_, err = crane.Pull(ref, as(authn.Anonymous)...)
	wantRegistryStatus(t, "pulling without signing in", err, http.StatusUnauthorized)
	_, err = crane.Pull(ref, as(&authn.Basic{Username: p.env["AZURE_CLIENT_ID"], Password: "wrong"})...)
	wantRegistryStatus(t, "pulling with a wrong secret", err, http.StatusUnauthorized)
	_, err = crane.Pull(ref, as(&authn.Basic{Username: strings.SplitN(server, ".", 2)[0], Password: "admin"})...)
	wantRegistryStatus(t, "pulling as an admin user", err, http.StatusUnauthorized)
	if status, doc := p.arm("POST", id+"/listCredentials", registryVersion, nil); status < 400 {
		t.Errorf("passwords are handed out: %d %v", status, doc)
	}

	digest, err := crane.Digest(ref, secret...)
	p.check(err)
	p.check(crane.Delete(server+"/team/app@"+digest, secret...))
	_, err = crane.Manifest(ref, secret...)
	wantRegistryStatus(t, "reading a manifest that was deleted", err, http.StatusNotFound)

	props := map[string]any{"location": "local", "sku": map[string]any{"name": "Premium"}, "properties": map[string]any{"publicNetworkAccess": "Disabled"}}
	if status, doc := p.arm("PUT", id, registryVersion, props); status != http.StatusOK {
		t.Fatalf("closing the registry: %d %v", status, doc)
	}
	_, err = crane.Pull(server+"/other/app:v1", secret...)
	wantRegistryStatus(t, "pulling from outside with public access disabled", err, http.StatusForbidden)
}
