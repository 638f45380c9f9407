package agent

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"time"
)

const (
	logBuffer  = 8 << 20          // unsent bytes before writers have to wait
	logGivesUp = 60 * time.Second // of failures, before a log is declared broken and swallows what comes
)

// logStream is a growing block blob: every interval the new bytes become one block and the list is committed, so a reader sees the log at
// most that much late. A log that storage refuses never stops user code for good.
type logStream struct {
	storage *storage
	target  string
	ctx     context.Context // of the uploads, not of the writers
	now     func() time.Time

	mu      sync.Mutex // guards the fields below
	room    sync.Cond  // told when pending shrinks or broken is set
	pending bytes.Buffer
	broken  error
	closed  bool

	wake    chan struct{} // there are new bytes
	closing chan struct{} // closed by Close
	ended   chan struct{} // closed when nothing more will be sent
}

// openLog starts streaming to target; an empty target discards.
func openLog(ctx context.Context, s *storage, target string) *logStream {
	l := &logStream{storage: s, target: target, ctx: ctx, now: time.Now, wake: make(chan struct{}, 1), closing: make(chan struct{}), ended: make(chan struct{})}
	l.room.L = &l.mu
	if target == "" {
		close(l.ended)
		return l
	}
	go l.stream()
	return l
}

func (l *logStream) Write(p []byte) (int, error) {
	if l.target == "" {
		return len(p), nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.pending.Len() > logBuffer && l.broken == nil {
		l.room.Wait()
	}
	if l.broken == nil {
		l.pending.Write(p)
	}
	select {
	case l.wake <- struct{}{}:
	default:
	}
	return len(p), nil
}

// line writes one line with its time.
func (l *logStream) line(format string, args ...any) {
	fmt.Fprintf(l, "%s %s\n", l.now().UTC().Format("2006-01-02T15:04:05.000Z"), fmt.Sprintf(format, args...))
}

// interval between commits: a second at first; a blob has 50,000 blocks, so a log of days slows down.
func interval(blocks int) time.Duration {
	switch {
	case blocks < 1_800:
		return 900 * time.Millisecond
	case blocks < 10_000:
		return 5 * time.Second
	}
	return 20 * time.Second
}

// stream commits the first bytes at once and then at most one block an interval.
func (l *logStream) stream() {
	defer close(l.ended)
	var ids []string
	var failing time.Time
	for {
		select {
		case <-l.wake:
		case <-l.closing:
		}
		chunk, closed := l.take()
		if len(chunk) > 0 || closed && len(ids) == 0 {
			if len(chunk) > 0 { // of what said nothing an empty blob is made; the service has no empty blocks
				ids = append(ids, blockID(len(ids)))
			}
			err := l.commit(ids, chunk)
			for failing = l.now(); err != nil; err = l.commit(ids, chunk) {
				if l.ctx.Err() != nil || l.now().Sub(failing) > logGivesUp {
					l.fail(err)
					return
				}
				pause(l.ctx, time.Second)
			}
		}
		if closed {
			return
		}
		l.rest(interval(len(ids)))
	}
}

func (l *logStream) commit(ids []string, chunk []byte) error {
	if len(chunk) > 0 {
		if err := l.storage.putBlock(l.ctx, l.target, ids[len(ids)-1], chunk); err != nil {
			return err
		}
	}
	return l.storage.putBlockList(l.ctx, l.target, "text/plain; charset=utf-8", ids)
}

// take empties the buffer. closed is true when nothing can follow what it returns.
func (l *logStream) take() (chunk []byte, closed bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	chunk = bytes.Clone(l.pending.Bytes())
	l.pending.Reset()
	l.room.Broadcast()
	return chunk, l.closed
}

// rest waits between commits, but not once the log is closed.
func (l *logStream) rest(d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-l.closing:
	case <-l.ctx.Done():
	}
}

func (l *logStream) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.broken = err
	l.pending.Reset()
	l.room.Broadcast()
}

// Close sends the rest and waits for it; the error tells that bytes are missing.
func (l *logStream) Close() error {
	l.mu.Lock()
	if !l.closed {
		l.closed = true
		close(l.closing)
	}
	l.mu.Unlock()
	<-l.ended
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.broken != nil {
		return fmt.Errorf("storing log: %w", l.broken)
	}
	return nil
}
