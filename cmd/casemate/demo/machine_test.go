package demo

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// pair is a machine whose helper runs in this process.
func pair(t *testing.T) *machine {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "end")
		c, err := net.FileConn(f)
		if err := errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
		ends[i] = c.(*net.UnixConn)
	}
	m := newMachine("test", ends[0])
	var g errgroup.Group
	g.Go(func() error { m.receive(); return nil })
	g.Go(func() error { return dialFor(context.Background(), ends[1]) })
	t.Cleanup(func() {
		if err := errors.Join(ends[0].Close(), g.Wait()); err != nil {
			t.Error(err)
		}
	})
	return m
}

func TestMachineHandsConnectionsOver(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var g errgroup.Group
	g.Go(func() error {
		for {
			c, err := l.Accept()
			if err != nil {
				return nil
			}
			g.Go(func() error { defer c.Close(); _, err := io.Copy(c, c); return err })
		}
	})
	m := pair(t)
	var clients errgroup.Group
	for range 20 {
		clients.Go(func() error {
			c, err := m.Dial(t.Context(), "tcp", l.Addr().String())
			if err != nil {
				return err
			}
			defer c.Close()
			if _, err := c.Write([]byte("hello")); err != nil {
				return err
			}
			buf := make([]byte, 5)
			if _, err := io.ReadFull(c, buf); err != nil || string(buf) != "hello" {
				return errors.Join(errors.New("wrong echo "+string(buf)), err)
			}
			return nil
		})
	}
	if err := errors.Join(clients.Wait(), l.Close(), g.Wait()); err != nil {
		t.Error(err)
	}
}

func TestMachineTellsWhatWentWrong(t *testing.T) {
	m := pair(t)
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Dial(t.Context(), "tcp", nobody); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("got %v", err)
	}
	if _, err := m.Dial(t.Context(), "tcp", "no port"); err == nil {
		t.Error("an address without a port was dialled")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Nanosecond)
	defer cancel()
	if _, err := m.Dial(ctx, "tcp", nobody); err == nil {
		t.Error("dialled after its time")
	}
}

func TestMachineThatIsGone(t *testing.T) {
	m := pair(t)
	if err := m.conn.CloseRead(); err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := m.Dial(t.Context(), "tcp", "127.0.0.1:1"); errors.Is(err, errEnded) {
			return
		}
		if t.Context().Err() != nil {
			t.Fatal("never noticed")
		}
	}
}
