package volume

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

const (
	probeBytes = 4 << 20
	// slowest is the least write speed in MB/s that a driver is chosen with, unless all are slower.
	slowest = 15
)

// Measured is what the self-test saw of one driver.
type Measured struct {
	Driver  string
	Setup   time.Duration // creating and mounting a volume
	WriteMB float64       // MB/s, written and synced
	Err     error         // why it cannot be used
}

// Choose tests each driver on dir's file system and returns the first in order that works and is not slow, with what it
// measured. Without a working driver the error joins every reason: nothing is ever stored in clear instead.
func Choose(ctx context.Context, drivers ...Driver) (Driver, []Measured, error) {
	var all []Measured
	var best Driver
	var bestSpeed float64
	var reasons []error
	for _, d := range drivers {
		m := measure(ctx, d)
		all = append(all, m)
		if m.Err != nil {
			reasons = append(reasons, fmt.Errorf("%s: %w", d.Name(), m.Err))
			continue
		}
		if m.WriteMB >= slowest {
			return d, all, nil
		}
		if m.WriteMB > bestSpeed {
			best, bestSpeed = d, m.WriteMB
		}
	}
	if best == nil {
		return nil, all, fmt.Errorf("no encrypted volume driver works here: %w", errors.Join(reasons...))
	}
	return best, all, nil
}

// measure creates a volume, writes a canary in name and contents, reads it back, and searches the raw bytes for it.
func measure(ctx context.Context, d Driver) (m Measured) {
	m.Driver = d.Name()
	started := time.Now()
	id := "self-test-" + hex.EncodeToString(randomKey()[:4])
	v, err := d.Create(ctx, Spec{ID: id, Bytes: 64 << 20})
	if err != nil {
		m.Err = err
		return m
	}
	defer func() {
		if err := v.Close(); err != nil && m.Err == nil {
			m.Err = fmt.Errorf("closing volume: %w", err)
		}
		if _, err := os.Stat(v.Raw()); err == nil && m.Err == nil {
			m.Err = errors.New("the disk of a closed volume is still there")
		}
	}()
	m.Setup = time.Since(started)
	canary := make([]byte, 64)
	rand.Read(canary)
	name := "canary-" + hex.EncodeToString(canary[:12])
	data := bytes.Repeat(canary, probeBytes/len(canary))
	path := filepath.Join(v.Path(), name)
	started = time.Now()
	if err := writeSynced(path, data); err != nil {
		m.Err = err
		return m
	}
	m.WriteMB = float64(probeBytes) / 1e6 / time.Since(started).Seconds()
	back, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(back, data) {
		m.Err = fmt.Errorf("reading back: bytes differ (%v)", err)
		return m
	}
	if err := Sync(v.Path()); err != nil {
		m.Err = err
		return m
	}
	for _, needle := range [][]byte{canary, []byte(name)} {
		if found, err := Contains(v.Raw(), needle); err != nil || found {
			m.Err = fmt.Errorf("searching raw bytes: canary legible %v (%v)", found, err)
			return m
		}
	}
	return m
}

func writeSynced(path string, data []byte) error {
	f, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("creating probe: %w", err)
	}
	defer f.Close()
	if _, err := f.Write(data); err != nil {
		return fmt.Errorf("writing probe: %w", err)
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("syncing probe: %w", err)
	}
	return nil
}

// Sync writes everything of path's file system to its image, so that a search of the image sees what a thief would.
func Sync(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("opening volume: %w", err)
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil && !errors.Is(err, unix.ENOSYS) {
		return fmt.Errorf("syncing volume: %w", err)
	}
	return nil
}
