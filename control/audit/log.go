package audit

import (
	"context"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// Sealer encrypts records; an envelope handle.
type Sealer interface {
	SealBytes(object string, plain []byte) ([]byte, error)
	OpenBytes(object string, sealed []byte) ([]byte, error)
}

// Head remembers, outside the log, how far the log has verifiably come, so that cutting off its end is noticed.
type Head interface {
	LoadHead(ctx context.Context) (sequence uint64, chain []byte, err error) // zero values when there is none
	SaveHead(ctx context.Context, sequence uint64, chain []byte) error
}

// File is what the log needs of its current segment; tests substitute one that fails.
type File interface {
	io.Writer
	Sync() error
	Close() error
}

// Config opens a Log. All fields are required but Create and SegmentSize.
type Config struct {
	Dir    string
	Sealer Sealer
	Key    *ecdsa.PrivateKey // P-256; signs checkpoints
	Head   Head
	Clock  func() time.Time
	Create func(path string) (File, error) // opens for appending, making the file; nil: the real file system
	// SegmentSize is how long a file grows before the next begins, in bytes; 0 means 64 MiB.
	SegmentSize int64
}

const (
	object       = "audit"
	flushEvery   = 50 * time.Millisecond // buffered records reach the disk within 100 ms
	staleAfter   = time.Second           // unsynced for so long: fail closed
	maxBuffered  = 8 << 20
	headInterval = 5 * time.Second
)

// ErrUnavailable means that the trail cannot be written: nothing may be served.
var ErrUnavailable = errors.New("the audit log cannot be written")

var (
	errEnded    = errors.New("it has been closed")
	errTooLarge = errors.New("the record is larger than a frame may be")
)

// Log is the trail. It is safe for concurrent use. Run must run for anything to reach the disk.
type Log struct {
	cfg Config

	mu      sync.Mutex // guards what follows
	buf     []byte     // frames not yet handed to the writer
	oldest  time.Time  // when the first frame in buf was appended; zero when buf is empty
	flying  time.Time  // the same for the batch on its way to the disk
	seq     uint64
	chain   chain
	synced  uint64 // last record known to be on disk
	failed  error
	waiting chan struct{} // closed when the batch now gathering is on disk (or failed)

	wake    chan struct{}
	file    File
	written int64
	segment int
	headAt  time.Time
}

// Open reads the last segment, removes a torn last frame (which was never acknowledged), compares with Head, and makes
// the log ready for Run. A log that ends before its Head was cut off: that is an error, and the platform does not start.
func Open(ctx context.Context, cfg Config) (*Log, error) {
	if cfg.Create == nil {
		cfg.Create = func(path string) (File, error) {
			return os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		}
	}
	if cfg.SegmentSize == 0 {
		cfg.SegmentSize = defaultSegment
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the audit directory: %w", err)
	}
	l := &Log{cfg: cfg, wake: make(chan struct{}, 1), waiting: make(chan struct{})}
	if err := l.recover(ctx); err != nil {
		return nil, err
	}
	return l, nil
}

func (l *Log) recover(ctx context.Context) error {
	segments, err := listSegments(l.cfg.Dir)
	if err != nil {
		return err
	}
	if len(segments) == 0 {
		if seq, _, err := l.cfg.Head.LoadHead(ctx); err != nil || seq > 0 {
			return errors.Join(fmt.Errorf("the audit log is missing but %d records were written", seq), err)
		}
		return l.roll(1, chain{})
	}
	last := segments[len(segments)-1]
	if _, err := fmt.Sscanf(filepath.Base(last), "%016d.log", &l.segment); err != nil {
		return fmt.Errorf("reading audit segment name %q: %w", filepath.Base(last), err)
	}
	if st, err := os.Stat(last); err == nil && st.Size() < int64(headerSize) && len(segments) > 1 {
		// The process died while it began this segment: nothing in it was acknowledged.
		if err := os.Remove(last); err != nil {
			return fmt.Errorf("removing a torn audit segment: %w", err)
		}
		return l.recover(ctx)
	}
	if err := l.readTail(last); err != nil {
		return err
	}
	return l.checkHead(ctx)
}

// readTail replays the last segment to find sequence and chain, and cuts off a torn frame.
func (l *Log) readTail(path string) error {
	s, err := openSegment(path)
	if err != nil {
		return err
	}
	defer s.Close()
	var sealed []byte
	records := uint64(0)
	afterCheckpoint := uint64(0)
	for {
		kind, payload, err := s.next()
		if err == io.EOF || errors.Is(err, errTorn) {
			break
		}
		if err != nil {
			return err
		}
		if kind == kindCheckpoint {
			cp, err := decodeCheckpoint(payload)
			if err != nil {
				return err
			}
			l.seq, l.synced, afterCheckpoint = cp.Sequence, cp.Sequence, 0
			continue
		}
		sealed = payload
		records++
		afterCheckpoint++
	}
	if l.seq == 0 && records > 0 || afterCheckpoint > 0 {
		e, err := l.openEntry(sealed)
		if err != nil {
			return err
		}
		l.seq = e.Sequence
	}
	l.chain = s.chain
	if err := os.Truncate(path, s.off); err != nil {
		return fmt.Errorf("cutting a torn audit frame: %w", err)
	}
	l.file, err = l.cfg.Create(path)
	if err != nil {
		return fmt.Errorf("opening audit segment: %w", err)
	}
	l.written = s.off
	if records == 0 && l.seq == 0 && l.segment > 1 {
		return l.seqFromEarlier()
	}
	return nil
}

// seqFromEarlier finds the sequence when the last segment holds no frame yet.
func (l *Log) seqFromEarlier() error {
	return l.scan(func(kind byte, payload []byte, _ *segmentReader) error {
		if kind != kindCheckpoint {
			return nil
		}
		cp, err := decodeCheckpoint(payload)
		if err == nil {
			l.seq = cp.Sequence
		}
		return err
	})
}

func (l *Log) checkHead(ctx context.Context) error {
	seq, _, err := l.cfg.Head.LoadHead(ctx)
	if err != nil {
		return fmt.Errorf("loading the audit head: %w", err)
	}
	if seq > l.seq {
		return fmt.Errorf("the audit log ends at record %d but record %d was written: it was cut off", l.seq, seq)
	}
	return nil
}

// roll begins segment n. The caller owns the file fields.
func (l *Log) roll(n int, head chain) error {
	path := filepath.Join(l.cfg.Dir, fmt.Sprintf("%016d.log", n))
	f, err := l.cfg.Create(path)
	if err != nil {
		return fmt.Errorf("creating audit segment: %w", err)
	}
	if _, err := f.Write(append([]byte(magic), head[:]...)); err != nil {
		return errors.Join(fmt.Errorf("writing audit segment header: %w", err), f.Close())
	}
	if err := f.Sync(); err != nil {
		return errors.Join(fmt.Errorf("syncing audit segment header: %w", err), f.Close())
	}
	if err := syncDir(l.cfg.Dir); err != nil {
		return errors.Join(err, f.Close())
	}
	if l.file != nil {
		l.file.Close()
	}
	l.file, l.segment, l.written = f, n, int64(headerSize)
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("opening the audit directory: %w", err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("syncing the audit directory: %w", err)
	}
	return nil
}

// Append adds e; it stamps sequence and time. With durable it returns when the record is on disk, otherwise when it is in
// the buffer. Any error means that the request must not be served.
func (l *Log) Append(ctx context.Context, e Entry, durable bool) error {
	l.mu.Lock()
	if err := l.healthLocked(); err != nil {
		l.mu.Unlock()
		return err
	}
	if len(l.buf) > maxBuffered {
		l.mu.Unlock()
		return fmt.Errorf("%w: its buffer is full", ErrUnavailable)
	}
	now := l.cfg.Clock()
	e.Sequence, e.Time = l.seq+1, now.UTC()
	plain, err := e.encode()
	if err == nil {
		plain, err = l.cfg.Sealer.SealBytes(object, plain)
	}
	if err == nil && len(plain) > maxFrame {
		err = errTooLarge // a frame that cannot be read again would stop the next start
	}
	if err != nil {
		l.mu.Unlock()
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	l.seq++
	start := len(l.buf)
	l.buf = appendFrame(l.buf, kindRecord, plain)
	l.chain = l.chain.next(l.buf[start:])
	if l.oldest.IsZero() {
		l.oldest = now
	}
	done := l.waiting
	l.mu.Unlock()
	if !durable {
		return nil
	}
	select {
	case l.wake <- struct{}{}:
	default:
	}
	select {
	case <-done:
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", ErrUnavailable, ctx.Err())
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.failedLocked()
}

// Healthy returns an error when nothing may be served.
func (l *Log) Healthy() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.healthLocked()
}

func (l *Log) failedLocked() error {
	if l.failed != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, l.failed)
	}
	return nil
}

func (l *Log) healthLocked() error {
	if err := l.failedLocked(); err != nil {
		return err
	}
	for _, since := range []time.Time{l.flying, l.oldest} {
		if !since.IsZero() && l.cfg.Clock().Sub(since) > staleAfter {
			return fmt.Errorf("%w: records have not reached the disk for a second", ErrUnavailable)
		}
	}
	return nil
}

// Run writes batches until ctx ends, then writes what is left. After a failure it goes on returning errors to Append and
// never writes again: what is on disk stays as it is for the next start to judge.
func (l *Log) Run(ctx context.Context) error {
	tick := time.NewTicker(flushEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			l.flush(context.WithoutCancel(ctx), true)
			l.mu.Lock()
			defer l.mu.Unlock()
			if l.file != nil {
				l.file.Close()
			}
			err := l.failed
			l.failLocked(errEnded)
			return err
		case <-l.wake:
		case <-tick.C:
		}
		l.flush(ctx, false)
	}
}

func (l *Log) flush(ctx context.Context, final bool) {
	l.mu.Lock()
	if l.failed != nil || len(l.buf) == 0 {
		l.mu.Unlock()
		return
	}
	batch, done, seq := l.buf, l.waiting, l.seq
	payload, err := signCheckpoint(l.cfg.Key, seq, l.chain, l.cfg.Clock())
	if err == nil {
		start := len(batch)
		batch = appendFrame(batch, kindCheckpoint, payload)
		l.chain = l.chain.next(batch[start:])
	}
	head := l.chain
	l.buf, l.waiting = nil, make(chan struct{})
	l.flying, l.oldest = l.oldest, time.Time{}
	l.mu.Unlock()

	if err == nil {
		err = l.write(batch, head)
	}
	if err == nil && (final || l.cfg.Clock().Sub(l.headAt) > headInterval) {
		l.headAt = l.cfg.Clock()
		if err = l.cfg.Head.SaveHead(ctx, seq, head[:]); err != nil {
			err = fmt.Errorf("saving the audit head: %w", err)
		}
	}
	l.mu.Lock()
	l.flying = time.Time{}
	if err == nil {
		l.synced = seq
	} else {
		l.failLocked(err)
	}
	l.mu.Unlock()
	close(done)
}

// failLocked ends the log for good. Nobody may go on waiting for a batch that will never be written.
func (l *Log) failLocked(err error) {
	if l.failed == nil {
		l.failed = err
		close(l.waiting)
	}
}

// write puts a batch on disk; head is the chain behind it, with which the next segment begins.
func (l *Log) write(batch []byte, head chain) error {
	if _, err := l.file.Write(batch); err != nil {
		return fmt.Errorf("writing the audit log: %w", err)
	}
	if err := l.file.Sync(); err != nil {
		return fmt.Errorf("syncing the audit log: %w", err)
	}
	l.written += int64(len(batch))
	if l.written < l.cfg.SegmentSize {
		return nil
	}
	return l.roll(l.segment+1, head)
}
