package demo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

const (
	searchChunk   = 1 << 20
	searchWorkers = 2
)

// search looks for needles in names and contents of files. Its methods may be called concurrently.
type search struct {
	needles []needle
	overlap int

	mu    sync.Mutex // guards what follows
	files int
	bytes int64
	hits  []string
}

func newSearch(needles []needle) *search {
	s := &search{needles: needles}
	for _, n := range needles {
		s.overlap = max(s.overlap, len(n.bytes)-1)
	}
	return s
}

func (s *search) hit(where, what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hits = append(s.hits, what+" in "+where)
}

// text searches bytes in memory.
func (s *search) text(where string, b []byte) {
	for _, n := range s.needles {
		if bytes.Contains(b, n.bytes) {
			s.hit(where, n.what)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.files++
	s.bytes += int64(len(b))
}

// tree searches all files below a directory, on its file system only: what is mounted there, a node's disk while it
// lives, is searched as the raw bytes behind it.
func (s *search) tree(ctx context.Context, root string) error {
	var st unix.Stat_t
	if err := unix.Stat(root, &st); err != nil {
		return fmt.Errorf("searching %s: %w", root, err)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(searchWorkers)
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil // it went while we looked
		}
		if err != nil {
			return err
		}
		var own unix.Stat_t
		if unix.Lstat(path, &own) != nil || own.Dev != st.Dev {
			return skipIfDir(e)
		}
		s.names(path)
		if e.Type().IsRegular() {
			g.Go(func() error { return s.file(path) })
		}
		return nil
	})
	return errors.Join(err, g.Wait())
}

func (s *search) names(path string) {
	for _, n := range s.needles {
		if strings.Contains(filepath.Base(path), string(n.bytes)) {
			s.hit("the name of "+path, n.what)
		}
	}
}

// file searches one file, leaving out its holes.
func (s *search) file(path string) error {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ELOOP) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("searching: %w", err)
	}
	defer func() { _ = f.Close() }() // it was only read
	found := make([]bool, len(s.needles))
	buf := make([]byte, searchChunk+s.overlap)
	total := int64(0)
	for at := int64(0); ; {
		data, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break // only a hole is left
		}
		hole := int64(1<<63 - 1)
		if err != nil {
			data = at // a file system without holes: read on until the end
		} else if hole, err = unix.Seek(int(f.Fd()), data, unix.SEEK_HOLE); err != nil {
			return fmt.Errorf("searching %s: %w", path, err)
		}
		n, err := s.extent(f, data, hole, buf, found)
		total += n
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("searching %s: %w", path, err)
		}
		at = hole
	}
	for i, n := range s.needles {
		if found[i] {
			s.hit(path, n.what)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.files++
	s.bytes += total
	return nil
}

// extent searches from one offset to another, in chunks that overlap; io.EOF at the end of the file.
func (s *search) extent(f *os.File, from, to int64, buf []byte, found []bool) (total int64, err error) {
	for at := from; at < to; {
		n, err := f.ReadAt(buf[:min(int64(len(buf)), to-at)], at)
		for i, needle := range s.needles {
			found[i] = found[i] || bytes.Contains(buf[:n], needle.bytes)
		}
		total += int64(n)
		if err != nil {
			return total, err
		}
		if at+int64(n) >= to {
			return total, nil
		}
		at += int64(n - s.overlap)
	}
	return total, nil
}
