package audit

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

type memHead struct {
	mu  sync.Mutex
	seq uint64
	sum []byte
}

func (h *memHead) LoadHead(context.Context) (uint64, []byte, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.seq, h.sum, nil
}

func (h *memHead) SaveHead(_ context.Context, seq uint64, sum []byte) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.seq, h.sum = seq, append([]byte(nil), sum...)
	return nil
}

type gcm struct{ cipher.AEAD }

func (g gcm) SealBytes(o string, p []byte) ([]byte, error) {
	return g.Seal(nil, nil, p, []byte(o)), nil
}
func (g gcm) OpenBytes(o string, s []byte) ([]byte, error) { return g.Open(nil, nil, s, []byte(o)) }

func testConfig(t testing.TB) Config {
	t.Helper()
	block, err := aes.NewCipher(make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return Config{Dir: t.TempDir(), Sealer: gcm{aead}, Key: key, Head: &memHead{}, Clock: time.Now}
}

// start opens a log and runs it; stop ends it cleanly.
func start(t testing.TB, cfg Config) (l *Log, stop func()) {
	t.Helper()
	l, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { l.Run(ctx); close(done) }()
	return l, func() { cancel(); <-done }
}

func write(t testing.TB, l *Log, n int) {
	t.Helper()
	for i := range n {
		e := Entry{Phase: PhaseDecision, Operation: "Op", Caller: fmt.Sprint("caller-", i%3), Scope: fmt.Sprintf("/subscriptions/s/resourceGroups/g%d", i%2), Allowed: true}
		if err := l.Append(t.Context(), e, true); err != nil {
			t.Fatal(err)
		}
	}
}

func TestReopenKeepsSequenceAndVerifies(t *testing.T) {
	cfg := testConfig(t)
	cfg.SegmentSize = 2000 // several segments
	for round := range 4 {
		l, stop := start(t, cfg)
		write(t, l, 10)
		rep, err := l.Verify(t.Context())
		if err != nil || !rep.Intact || rep.Records != uint64(10*(round+1)) {
			t.Fatalf("round %d: %+v, %v", round, rep, err)
		}
		stop()
	}
	if s, _ := listSegments(cfg.Dir); len(s) < 3 {
		t.Fatalf("expected several segments, got %d", len(s))
	}
}

func TestEveryFlippedByteIsFound(t *testing.T) {
	cfg := testConfig(t)
	l, stop := start(t, cfg)
	write(t, l, 5)
	path := filepath.Join(cfg.Dir, fmt.Sprintf("%016d.log", 1))
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := range whole {
		bad := append([]byte(nil), whole...)
		bad[i] ^= 0x40
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		rep, err := l.Verify(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if rep.Intact {
			t.Fatalf("byte %d of %d was changed and nobody noticed", i, len(whole))
		}
	}
	for _, cut := range []int{len(whole) / 3, len(whole) - 1, headerSize} {
		if err := os.WriteFile(path, whole[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		if rep, err := l.Verify(t.Context()); err != nil || rep.Intact {
			t.Fatalf("cut at %d: %+v %v", cut, rep, err)
		}
	}
	stop()
	if _, err := Open(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "cut off") {
		t.Fatalf("opening a log that was cut off: %v", err)
	}
}

func TestTornTailIsCutOff(t *testing.T) {
	cfg := testConfig(t)
	l, stop := start(t, cfg)
	write(t, l, 3)
	stop()
	path := filepath.Join(cfg.Dir, fmt.Sprintf("%016d.log", 1))
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write([]byte{0, 0, 1, 0, kindRecord, 1, 2, 3}); err != nil {
		t.Fatal(err)
	}
	f.Close()
	l, stop = start(t, cfg)
	defer stop()
	write(t, l, 2)
	rep, err := l.Verify(t.Context())
	if err != nil || !rep.Intact || rep.Records != 5 {
		t.Fatalf("%+v %v", rep, err)
	}
}

type failingFile struct {
	File
	left *int // operations until everything fails
}

var errDisk = errors.New("disk on fire")

func (f failingFile) Write(b []byte) (int, error) {
	if *f.left--; *f.left < 0 {
		return 0, errDisk
	}
	return f.File.Write(b)
}

func (f failingFile) Sync() error {
	if *f.left--; *f.left < 0 {
		return errDisk
	}
	return f.File.Sync()
}

func TestFailsClosedAtEachWriteAndSync(t *testing.T) {
	for n := range 8 {
		cfg := testConfig(t)
		left := n
		cfg.Create = func(path string) (File, error) {
			f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
			return failingFile{f, &left}, err
		}
		l, err := Open(t.Context(), cfg)
		if err != nil {
			if n >= 2 {
				t.Fatal(err)
			}
			continue
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { l.Run(ctx); close(done) }()
		acknowledged := uint64(0)
		for range 6 {
			if err := l.Append(ctx, Entry{Phase: PhaseDecision}, true); err != nil {
				if !errors.Is(err, ErrUnavailable) {
					t.Fatal(err)
				}
				break
			}
			acknowledged++
		}
		if err := l.Append(ctx, Entry{}, false); !errors.Is(err, ErrUnavailable) {
			t.Fatalf("n=%d: a broken log still accepts: %v", n, err)
		}
		cancel()
		<-done
		cfg.Create = nil
		l, err = Open(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		rep, err := l.Verify(t.Context())
		if err != nil || !rep.Intact || rep.Records < acknowledged {
			t.Fatalf("n=%d: acknowledged %d, found %+v, %v", n, acknowledged, rep, err)
		}
	}
}

func TestUnsyncedForASecondFailsClosed(t *testing.T) {
	cfg := testConfig(t)
	now := time.Unix(1000, 0)
	cfg.Clock = func() time.Time { return now }
	l, err := Open(t.Context(), cfg) // nobody runs it
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Append(t.Context(), Entry{}, false); err != nil {
		t.Fatal(err)
	}
	now = now.Add(staleAfter + time.Millisecond)
	if err := l.Append(t.Context(), Entry{}, false); !errors.Is(err, ErrUnavailable) {
		t.Fatalf("got %v", err)
	}
}

func TestQuery(t *testing.T) {
	cfg := testConfig(t)
	cfg.SegmentSize = 1500
	l, stop := start(t, cfg)
	defer stop()
	write(t, l, 12)
	var got []uint64
	err := l.Query(t.Context(), Filter{Caller: "CALLER-1", ScopePrefix: "/subscriptions/S/resourcegroups/g1", Newest: true}, func(e Entry) bool {
		got = append(got, e.Sequence)
		return true
	})
	if err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(got) != "[8 2]" {
		t.Fatalf("got %v", got)
	}
}

func BenchmarkAppendDurable64(b *testing.B) {
	l, stop := start(b, testConfig(b))
	defer stop()
	b.SetParallelism(32)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if err := l.Append(context.Background(), Entry{Phase: PhaseDecision, Operation: "Op", Allowed: true}, true); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

func BenchmarkAppendBuffered(b *testing.B) {
	l, stop := start(b, testConfig(b))
	defer stop()
	for b.Loop() {
		if err := l.Append(context.Background(), Entry{Phase: PhaseDecision, Operation: "Op", Allowed: true}, false); err != nil {
			b.Fatal(err)
		}
	}
}

// slowFile lets a test hold a batch on its way to the disk, and then fail it.
type slowFile struct {
	File
	writing chan struct{}
	fail    chan error
}

func (f slowFile) Write(b []byte) (int, error) {
	if len(b) == headerSize {
		return f.File.Write(b)
	}
	f.writing <- struct{}{}
	return 0, <-f.fail
}

// Who came while a batch was on its way that then failed is told so: its own batch will never be written.
func TestNobodyWaitsForAFailedLog(t *testing.T) {
	cfg := testConfig(t)
	f := slowFile{writing: make(chan struct{}), fail: make(chan error)}
	cfg.Create = func(path string) (File, error) {
		file, err := os.Create(path)
		f.File = file
		return f, err
	}
	l, stop := start(t, cfg)
	got := make(chan error, 2)
	add := func() { got <- l.Append(context.Background(), Entry{Operation: "Op"}, true) }
	go add()
	<-f.writing
	go add()
	for { // until the second record is in the buffer
		l.mu.Lock()
		waits := len(l.buf) > 0
		l.mu.Unlock()
		if waits {
			break
		}
	}
	f.fail <- errors.New("disk on fire")
	for range 2 {
		select {
		case err := <-got:
			if !errors.Is(err, ErrUnavailable) {
				t.Error("a record on a failed log was acknowledged:", err)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("somebody waits for a log that has failed")
		}
	}
	stop()
}

func TestAClosedLogRefuses(t *testing.T) {
	cfg := testConfig(t)
	l, stop := start(t, cfg)
	write(t, l, 1)
	stop()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := l.Append(ctx, Entry{}, true); !errors.Is(err, ErrUnavailable) || ctx.Err() != nil {
		t.Fatal(err)
	}
}

func TestARecordLargerThanAFrameIsRefused(t *testing.T) {
	cfg := testConfig(t)
	l, stop := start(t, cfg)
	if err := l.Append(t.Context(), Entry{Note: map[string]string{"x": strings.Repeat("x", maxFrame)}}, true); !errors.Is(err, ErrUnavailable) {
		t.Error(err)
	}
	write(t, l, 1)
	stop()
	l, stop = start(t, cfg)
	defer stop()
	if rep, err := l.Verify(t.Context()); err != nil || !rep.Intact || rep.Records != 1 {
		t.Fatalf("%+v, %v", rep, err)
	}
}

// The tenant is the scope of all scopes: what has none lies in it too, signing in for one.
func TestFilterOfTheTenant(t *testing.T) {
	for prefix, want := range map[string]bool{"": true, "/": true, "/subscriptions/s": false} {
		if got := (Filter{ScopePrefix: prefix}).match(&Entry{Operation: "Token_V2"}); got != want {
			t.Errorf("scope %q chooses an entry without one: %v", prefix, got)
		}
	}
}
