// Package images holds the recipes of the curated images: shell scripts that build root file systems from the packages of the machine's own
// distribution, and pack them with `casemate image pack`.
//
// It is for the commands, which carry the recipes in the binary, so that an image can be built where nothing of the repository
// is. The scripts run as root and trust the machine's apt sources; what they make is pushed to a registry like any image,
// and gets no privilege from being curated. The package builds nothing itself.
package images

import (
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

//go:embed sklearn/*.sh
var recipes embed.FS

// Unpack writes a recipe's scripts to a directory and returns the path of the one that builds: build.sh [-c CACHE] OUT.
func Unpack(name, dir string) (string, error) {
	files, err := fs.ReadDir(recipes, name)
	if err != nil {
		return "", fmt.Errorf("there is no recipe of an image %s: %w", name, err)
	}
	var errs []error
	for _, f := range files {
		b, err := recipes.ReadFile(name + "/" + f.Name())
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, f.Name()), b, 0o700)
		}
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return "", fmt.Errorf("writing the recipe of image %s: %w", name, err)
	}
	return filepath.Join(dir, "build.sh"), nil
}
