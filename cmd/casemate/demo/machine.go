package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// DialCommandName is the hidden command that a machine runs inside its namespace.
const DialCommandName = "demo-client"

// machine is a person's machine inside a virtual network: a process in its namespace that opens connections there and hands them over
// (SCM_RIGHTS, unix(7)). TLS is between the person and the service; the helper sees addresses only.
type machine struct {
	name    string
	id      string // ARM id
	address string
	cmd     *exec.Cmd
	conn    *net.UnixConn

	mu      sync.Mutex // guards next, waiting, broken
	next    uint64
	waiting map[uint64]chan dialled
	broken  error
}

// dialRequest asks the helper for a connection, dialAnswer accompanies it.
type dialRequest struct {
	ID      uint64        `json:"id"`
	Addr    string        `json:"addr"` // name or address, with port
	Timeout time.Duration `json:"timeout"`
}

type dialAnswer struct {
	ID    uint64 `json:"id"`
	Error string `json:"error,omitempty"`
}

type dialled struct {
	conn net.Conn
	err  error
}

// enter starts the helper in a namespace.
func enter(binary, namespace, name string) (*machine, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("making a socket pair: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "machine"), os.NewFile(uintptr(fds[1]), "machine")
	defer func() { _, _ = ours.Close(), theirs.Close() }() // both have been duplicated
	c, err := net.FileConn(ours)
	if err != nil {
		return nil, fmt.Errorf("making a socket pair: %w", err)
	}
	m := newMachine(name, c.(*net.UnixConn)) // a UNIX socket was asked for
	m.cmd = exec.Command("nsenter", "--net="+namespace, binary, DialCommandName)
	m.cmd.ExtraFiles, m.cmd.Stderr = []*os.File{theirs}, os.Stderr
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := m.cmd.Start(); err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("entering the network namespace %s: %w", namespace, err)
	}
	go m.receive()
	return m, nil
}

// newMachine is a machine whose helper is at the other end of a socket.
func newMachine(name string, conn *net.UnixConn) *machine {
	return &machine{name: name, conn: conn, waiting: map[uint64]chan dialled{}}
}

// Dial opens a connection from inside the network; names are asked of the network's own resolver.
func (m *machine) Dial(ctx context.Context, _, addr string) (net.Conn, error) {
	timeout := 10 * time.Second
	if t, ok := ctx.Deadline(); ok {
		timeout = min(timeout, time.Until(t))
	}
	ch := make(chan dialled, 1)
	m.mu.Lock()
	if m.broken != nil {
		m.mu.Unlock()
		return nil, m.broken
	}
	m.next++
	id := m.next
	m.waiting[id] = ch
	m.mu.Unlock()
	b, err := json.Marshal(dialRequest{ID: id, Addr: addr, Timeout: timeout})
	if err == nil {
		_, err = m.conn.Write(b)
	}
	if err != nil {
		m.take(id)
		return nil, fmt.Errorf("asking machine %s for a connection: %w", m.name, err)
	}
	select {
	case d := <-ch:
		return d.conn, d.err
	case <-ctx.Done():
		if m.take(id) == nil { // it has come in this moment
			if d := <-ch; d.conn != nil {
				_ = d.conn.Close()
			}
		}
		return nil, ctx.Err()
	}
}

// take removes a waiting request; nil when it is not there any more.
func (m *machine) take(id uint64) chan dialled {
	m.mu.Lock()
	defer m.mu.Unlock()
	ch := m.waiting[id]
	delete(m.waiting, id)
	return ch
}

// receive hands connections to who waits for them.
func (m *machine) receive() {
	buf, rights := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
	for {
		n, oobn, _, _, err := m.conn.ReadMsgUnix(buf, rights)
		if err != nil || n == 0 {
			m.fail(fmt.Errorf("machine %s is gone: %w", m.name, errors.Join(err, errEnded)))
			return
		}
		var a dialAnswer
		conn, err := receivedConn(rights[:oobn])
		if jsonErr := json.Unmarshal(buf[:n], &a); jsonErr != nil {
			err = errors.Join(err, jsonErr)
		}
		if a.Error != "" {
			err = errors.New(a.Error)
		}
		ch := m.take(a.ID)
		switch {
		case ch != nil:
			ch <- dialled{conn, err}
		case conn != nil:
			_ = conn.Close() // nobody waits any more
		}
	}
}

func (m *machine) fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.broken = err
	for id, ch := range m.waiting {
		ch <- dialled{nil, err}
		delete(m.waiting, id)
	}
}

// receivedConn makes a connection of the descriptor in a control message; nil when there is none.
func receivedConn(oob []byte) (net.Conn, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil || len(messages) != 1 {
		return nil, errors.Join(errors.New("reading the control message of a connection"), err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return nil, errors.Join(errors.New("reading the descriptor of a connection"), err)
	}
	f := os.NewFile(uintptr(fds[0]), "connection")
	defer func() { _ = f.Close() }() // FileConn has its own
	return net.FileConn(f)
}

// close ends the helper.
func (m *machine) close() error {
	_ = m.conn.Close() // the helper ends when its socket does
	if err := m.cmd.Wait(); err != nil {
		return fmt.Errorf("ending machine %s: %w", m.name, err)
	}
	return nil
}
