// Package pebble is the embedded metadata store: the contract of package store
// on CockroachDB's Pebble, over a file system that encrypts (cryptfs). One
// process owns the directory, held by a lock file.
//
// It serves trusted code of this process. The disk is trusted to keep what it
// has synced, and with nothing else: names and contents are ciphertext; see
// cryptfs for what an attacker with the disk can still do.
//
// Updates run one at a time and share fsyncs; Views read durable state only,
// and wait for no one. The first write that the disk refuses ends the store:
// from then on every call returns store.ErrFailed, nothing more is written,
// and Run returns, so that the process can exit and recover by opening again.
// DESIGN.md has the reasons and the life of an Update.
//
// It does not replicate, keep history beyond the change feed's ring, or take
// backups.
package pebble

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/vfs"

	"casemate.dev/store"
	"casemate.dev/store/pebble/cryptfs"
)

// Config says where and how to open a Store.
type Config struct {
	// Dir is the store's own directory; required. It is created (mode 0700)
	// when it does not exist. Nothing else may put files there.
	Dir string

	// Cipher encrypts Dir; required. A Dir of another cipher's is refused.
	Cipher cryptfs.Cipher

	// FS is the disk; nil means the operating system's.
	FS vfs.FS

	// Logger receives the engine's errors; nil means none. Records' keys
	// and values are never logged.
	Logger *slog.Logger

	// FreeReserve is how many bytes must stay free on the disk: with less,
	// Update returns store.ErrFull. Compactions and recovery need the room.
	// 0 means 256 MiB, negative means no reserve.
	FreeReserve int64

	// FeedBytes bounds the memory of the change feed's ring; 0 means 16 MiB.
	FeedBytes int

	// memTableSize is for tests, which make it small so that flushes and
	// compactions come often; 0 means memTableBytes.
	memTableSize uint64
}

// Sizes for a server whose idle memory stays below 150 MB: metadata is small
// and mostly read from the snapshots that planes keep of it.
const (
	cacheBytes    = 32 << 20
	memTableBytes = 8 << 20
	maxOpenFiles  = 512
)

const (
	defaultFreeReserve = 256 << 20
	defaultFeedBytes   = 16 << 20
)

// formatVersion pins the version of the files' format, which Pebble only ever
// moves forward.
const formatVersion = pebble.FormatTableFormatV6

// Store implements store.Store.
type Store struct {
	db      *pebble.DB
	fs      *breaker
	dir     string
	reserve uint64
	feed    *feed

	// writer holds one token, taken by the running Update.
	writer chan struct{}

	// inflight counts Updates, Views and commits. It goes up from zero only
	// under mu, while the store is open.
	inflight sync.WaitGroup

	// failed closes after err has been set to one wrapping store.ErrFailed.
	failed chan struct{}

	mu       sync.Mutex
	err      error          // why every call is refused: failed or closed
	durable  *snapshot      // at the newest durable revision
	pending  []*commit      // applied, not yet durable, by ascending revision
	assigned store.Revision // of the newest commit applied; also needs the writer token to change
}

var _ store.Store = (*Store)(nil)

// Open opens the store, or creates an empty one where Dir is missing or empty,
// and replays the log of a crashed process. After store.ErrFailed the process
// must exit before the store can be opened.
func Open(cfg Config) (*Store, error) {
	if cfg.Dir == "" || cfg.Cipher == nil {
		return nil, errors.New("opening store: Dir and Cipher are required")
	}
	disk := cfg.FS
	if disk == nil {
		disk = vfs.Default
	}
	if err := disk.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("creating store directory: %w", err)
	}
	s := &Store{
		dir:     cfg.Dir,
		reserve: reserveOf(cfg.FreeReserve),
		feed:    newFeed(cfg.FeedBytes),
		writer:  make(chan struct{}, 1),
		failed:  make(chan struct{}),
	}
	encrypted := cryptfs.New(disk, cfg.Dir, cfg.Cipher)
	// Before Pebble takes its lock, whose file under another key's name would
	// itself make the directory a foreign one.
	if _, err := encrypted.List(cfg.Dir); err != nil {
		return nil, fmt.Errorf("opening store: %w", err)
	}
	s.fs = &breaker{FS: encrypted, broken: s.fail}
	if err := s.open(cfg); err != nil {
		return nil, fmt.Errorf("opening store in %s: %w", cfg.Dir, err)
	}
	return s, nil
}

func reserveOf(bytes int64) uint64 {
	switch {
	case bytes < 0:
		return 0
	case bytes == 0:
		return defaultFreeReserve
	default:
		return uint64(bytes)
	}
}

func (s *Store) open(cfg Config) error {
	if err := s.guard(func() error { return s.openEngine(cfg) }); err != nil {
		return err
	}
	s.durable = &snapshot{db: s.db.NewSnapshot(), revision: s.assigned, refs: 1}
	s.feed.start(s.assigned)
	return nil
}

// guard runs fn, which calls Pebble, and returns its error. If the store fails
// meanwhile it returns without waiting for fn, which then may never end.
func (s *Store) guard(fn func() error) error {
	done := make(chan error, 1)
	go func() { done <- fn() }()
	select {
	case err := <-done:
		return err
	case <-s.failed:
		return s.failure()
	}
}

func (s *Store) openEngine(cfg Config) (err error) {
	if s.db, err = pebble.Open(s.dir, s.options(cfg)); err != nil {
		return err
	}
	if s.assigned, err = s.recover(); err != nil {
		err = errors.Join(err, s.db.Close())
	}
	return err
}

func (s *Store) options(cfg Config) *pebble.Options {
	opts := &pebble.Options{
		FS:                          s.fs,
		FormatMajorVersion:          formatVersion,
		CacheSize:                   cacheBytes,
		MemTableSize:                cmp.Or(cfg.memTableSize, memTableBytes),
		MemTableStopWritesThreshold: 4,
		MaxOpenFiles:                maxOpenFiles,
		Logger:                      engineLog{s: s, log: cfg.Logger},
		EventListener: &pebble.EventListener{
			BackgroundError: func(err error) {
				// Pebble would try again at once and for ever. Its own
				// goroutine ends here rather than park, since it has a
				// lock, given back by defer, which readers need.
				s.fail(fmt.Errorf("flushing or compacting: %w", err))
				runtime.Goexit()
			},
			DataCorruption: func(info pebble.DataCorruptionInfo) {
				s.fail(fmt.Errorf("reading %s: %w", info.Path, info.Details))
			},
		},
	}
	for i := range opts.Levels {
		opts.Levels[i].FilterPolicy = bloom.FilterPolicy(10)
	}
	return opts
}

// The engine's key space: records under recordSpace and the caller's key, and
// two keys of our own. A record's value is its revision, 8 bytes big-endian,
// and the caller's value.
const recordSpace = 'k'

var (
	revisionKey = []byte("mrevision") // the newest commit's revision, 8 bytes big-endian
	layoutKey   = []byte("mlayout")   // layout
	layout      = []byte{1}
)

const revisionSize = 8

// recover reads the newest revision and refuses a layout that is not ours.
func (s *Store) recover() (store.Revision, error) {
	found, err := s.engineGet(layoutKey)
	if err != nil {
		return 0, err
	}
	if found == nil {
		if err := s.db.Set(layoutKey, layout, pebble.Sync); err != nil {
			return 0, fmt.Errorf("writing layout: %w", err)
		}
		return 0, nil
	}
	if string(found) != string(layout) {
		return 0, fmt.Errorf("the store's layout is %x, and this program knows %x", found, layout)
	}
	value, err := s.engineGet(revisionKey)
	if err != nil || value == nil {
		return 0, err
	}
	if len(value) != revisionSize {
		return 0, fmt.Errorf("the newest revision has %d bytes", len(value))
	}
	return store.Revision(binary.BigEndian.Uint64(value)), nil
}

// engineGet returns a copy of the value, nil when there is none.
func (s *Store) engineGet(key []byte) ([]byte, error) {
	value, closer, err := s.db.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", key, err)
	}
	return append([]byte{}, value...), closer.Close()
}

// Revision is the newest durable revision.
func (s *Store) Revision() store.Revision {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.durable.revision
}

// Run returns nil when ctx ends, and the reason as soon as the store fails:
// the process should then exit, since only opening anew recovers.
func (s *Store) Run(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-s.failed:
		return s.failure()
	}
}

// fail ends the store for good. It is called with Pebble's locks held, so it
// must not call Pebble.
func (s *Store) fail(cause error) {
	s.fs.trip()
	s.mu.Lock()
	defer s.mu.Unlock()
	if errors.Is(s.err, store.ErrFailed) {
		return
	}
	s.err = fmt.Errorf("%w: %w", store.ErrFailed, cause)
	close(s.failed)
	s.feed.stop(s.err)
}

// failure is the reason why the store failed, or nil.
func (s *Store) failure() error {
	select {
	case <-s.failed:
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.err
	default:
		return nil
	}
}

// enter admits an Update or a View, which calls leave when it is done.
func (s *Store) enter(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	s.inflight.Add(1)
	return nil
}

func (s *Store) leave() { s.inflight.Done() }

// Close implements store.Store. A failed store keeps its lock file until the
// process ends: Pebble's state is unknown, and closing it could hang.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.err != nil {
		defer s.mu.Unlock()
		if errors.Is(s.err, store.ErrFailed) {
			return s.err
		}
		return nil
	}
	s.err = store.ErrClosed
	s.feed.stop(s.err)
	s.mu.Unlock()

	err := s.guard(func() error {
		s.inflight.Wait()
		s.release(s.durable)
		return s.db.Close()
	})
	if err != nil {
		return fmt.Errorf("closing store: %w", err)
	}
	return nil
}

// engineLog passes Pebble's messages on. They name files and sizes, not keys.
type engineLog struct {
	s   *Store
	log *slog.Logger
}

// Infof drops Pebble's chatter.
func (engineLog) Infof(string, ...any) {}

// Errorf logs.
func (l engineLog) Errorf(format string, args ...any) {
	if l.log != nil {
		l.log.Error("storage engine: " + fmt.Sprintf(format, args...))
	}
}

// Fatalf ends the store. Pebble relies on it not to return, and calls it in its
// own goroutines and in those which open and apply start for it.
func (l engineLog) Fatalf(format string, args ...any) {
	l.Errorf(format, args...)
	l.s.fail(fmt.Errorf(format, args...))
	park()
}
