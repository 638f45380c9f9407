package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sync/errgroup"
)

// parallel transfers of one tree.
const parallel = 6

// fetch downloads a tree into dir, which it creates, and returns how many files it got. Names come from storage, so they are opened inside one os.Root.
func (s *storage) fetch(ctx context.Context, tree Tree, dir string, owner int) (int, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return 0, fmt.Errorf("creating directory: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return 0, fmt.Errorf("opening directory: %w", err)
	}
	defer root.Close()
	files := tree.Files
	if tree.Folder != nil {
		found, err := s.list(ctx, *tree.Folder)
		if err != nil {
			return 0, err
		}
		files = append(files[:len(files):len(files)], found...)
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(parallel)
	for _, file := range files {
		group.Go(func() error {
			if err := s.fetchOne(ctx, root, file); err != nil {
				return fmt.Errorf("fetching %q: %w", file.Path, err)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return 0, err
	}
	if owner >= 0 {
		if err := give(root, owner); err != nil {
			return 0, err
		}
	}
	return len(files), nil
}

func (s *storage) fetchOne(ctx context.Context, root *os.Root, file File) error {
	name := path.Clean(file.Path)
	if !fs.ValidPath(name) || name == "." || strings.ContainsAny(file.Path, "\\\x00") {
		return errors.New("its path is not a plain relative path")
	}
	if err := root.MkdirAll(path.Dir(name), 0o755); err != nil {
		return fmt.Errorf("creating directory: %w", err)
	}
	f, err := root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("creating file: %w", err)
	}
	return errors.Join(s.download(ctx, file, f), f.Close())
}

// give hands a tree over to user code.
func give(root *os.Root, owner int) error {
	return fs.WalkDir(root.FS(), ".", func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if err := root.Lchown(p, owner, owner); err != nil {
			return fmt.Errorf("handing over file: %w", err)
		}
		return nil
	})
}

// store uploads every regular file below dir and returns how many. User code made the tree, so links are neither followed nor stored: a link
// to the agent's own files must not be published.
func (s *storage) store(ctx context.Context, dir, prefix string) (int, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return 0, fmt.Errorf("opening output: %w", err)
	}
	defer root.Close()
	var names []string
	err = fs.WalkDir(root.FS(), ".", func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			names = append(names, p)
		}
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("listing output: %w", err)
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(parallel)
	for _, name := range names {
		group.Go(func() error {
			f, err := root.Open(filepath.FromSlash(name))
			if err != nil {
				return fmt.Errorf("opening output %q: %w", name, err)
			}
			defer f.Close()
			if err := s.upload(ctx, strings.TrimSuffix(prefix, "/")+"/"+escapePath(name), f); err != nil {
				return fmt.Errorf("storing output %q: %w", name, err)
			}
			return nil
		})
	}
	return len(names), group.Wait()
}
