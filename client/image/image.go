package image

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// tokenUser is the user name that goes with a directory token as password (Azure Container Registry).
const tokenUser = "00000000-0000-0000-0000-000000000000"

// Progress hears how many bytes of how many have been pushed. Both grow.
type Progress func(complete, total int64)

// Push copies the one image of a layout to ref, such as reg1.azurecr.casemate.localhost:8443/casemate/sklearn:1. token is
// an access token of the directory, which the registry exchanges; transport trusts the registry's certificate and finds
// its host. It returns the digest that was pushed. What the registry has already is not sent again.
func Push(ctx context.Context, layoutDir, ref string, transport http.RoundTripper, token string, progress Progress) (v1.Hash, error) {
	img, err := open(layoutDir)
	if err != nil {
		return v1.Hash{}, err
	}
	target, err := name.NewTag(ref, name.StrictValidation)
	if err != nil {
		return v1.Hash{}, fmt.Errorf("reading the name of an image: %w", err)
	}
	options := []remote.Option{remote.WithContext(ctx), remote.WithTransport(transport), remote.WithAuth(&authn.Basic{Username: tokenUser, Password: token})}
	done := make(chan struct{})
	if progress == nil {
		close(done)
	} else {
		updates := make(chan v1.Update, 16)
		options = append(options, remote.WithProgress(updates))
		go func() {
			defer close(done)
			for u := range updates { // remote.Write closes it
				progress(u.Complete, u.Total)
			}
		}()
	}
	err = remote.Write(target, img, options...)
	<-done
	if err != nil {
		return v1.Hash{}, fmt.Errorf("pushing %s: %w", ref, err)
	}
	return img.Digest()
}

// open reads the one image of a layout.
func open(dir string) (v1.Image, error) {
	p, err := layout.FromPath(dir)
	if err != nil {
		return nil, fmt.Errorf("opening the image layout %s: %w", dir, err)
	}
	index, err := p.ImageIndex()
	if err != nil {
		return nil, fmt.Errorf("opening the image layout %s: %w", dir, err)
	}
	m, err := index.IndexManifest()
	if err != nil {
		return nil, fmt.Errorf("opening the image layout %s: %w", dir, err)
	}
	if len(m.Manifests) != 1 {
		return nil, fmt.Errorf("the image layout %s holds %d images instead of one", dir, len(m.Manifests))
	}
	img, err := index.Image(m.Manifests[0].Digest)
	if err != nil {
		return nil, fmt.Errorf("opening the image layout %s: %w", dir, err)
	}
	return img, nil
}

// Digest is the digest of the one image of a layout.
func Digest(layoutDir string) (v1.Hash, error) {
	img, err := open(layoutDir)
	if err != nil {
		return v1.Hash{}, err
	}
	return img.Digest()
}

// ErrNoFile: the image holds no regular file of that name.
var ErrNoFile = errors.New("no such file in the image")

// maxFile bounds what ExtractFile reads into memory.
const maxFile = 64 << 20

// ExtractFile reads one regular file from the layers of a layout's image; the newest layer that has it counts, and
// whiteouts are not looked at: curated images have one layer. file is absolute.
func ExtractFile(layoutDir, file string) ([]byte, error) {
	img, err := open(layoutDir)
	if err != nil {
		return nil, err
	}
	layers, err := img.Layers()
	if err != nil {
		return nil, fmt.Errorf("reading the layers of %s: %w", layoutDir, err)
	}
	for i := len(layers) - 1; i >= 0; i-- {
		r, err := layers[i].Uncompressed()
		if err != nil {
			return nil, fmt.Errorf("reading a layer of %s: %w", layoutDir, err)
		}
		b, err := ExtractTar(r, file)
		if err = errors.Join(err, r.Close()); err == nil {
			return b, nil
		}
		if !errors.Is(err, ErrNoFile) {
			return nil, err
		}
	}
	return nil, fmt.Errorf("%w: %s", ErrNoFile, file)
}

// ExtractTar reads one regular file from a tar. Links are not followed.
func ExtractTar(rootfs io.Reader, file string) ([]byte, error) {
	want := clean(file)
	for tr := tar.NewReader(rootfs); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("%w: %s", ErrNoFile, file)
		}
		if err != nil {
			return nil, fmt.Errorf("reading the image's files: %w", err)
		}
		if clean(h.Name) != want {
			continue
		}
		if h.Typeflag != tar.TypeReg {
			return nil, fmt.Errorf("%w: %s is not a regular file", ErrNoFile, file)
		}
		if h.Size > maxFile {
			return nil, fmt.Errorf("%s has %d bytes, more than %d", file, h.Size, maxFile)
		}
		b, err := io.ReadAll(tr)
		if err != nil {
			return nil, fmt.Errorf("reading %s: %w", file, err)
		}
		return b, nil
	}
}

func clean(name string) string { return strings.TrimPrefix(path.Clean("/"+name), "/") }
