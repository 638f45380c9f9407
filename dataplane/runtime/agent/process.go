package agent

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"
)

// processes starts children and collects those that ended. As process 1 it inherits every orphan of the node and must collect them too, so one
// collector waits for all and hands known ones their status; os/exec would compete with it.
type processes struct {
	first bool // process 1

	mu      sync.Mutex // guards waiting; held while a child is born, so that its end cannot be collected before it is known
	waiting map[int]chan syscall.WaitStatus
}

func newProcesses(first bool) *processes {
	p := &processes{first: first, waiting: map[int]chan syscall.WaitStatus{}}
	if first {
		ended := make(chan os.Signal, 1)
		signal.Notify(ended, syscall.SIGCHLD)
		go p.collect(ended) // lives as long as process 1
	}
	return p
}

// collect runs after each SIGCHLD. Signals merge, so it takes all that have ended.
func (p *processes) collect(ended <-chan os.Signal) {
	for range ended {
		for p.collectOne(-1, syscall.WNOHANG) {
		}
	}
}

func (p *processes) collectOne(pid, options int) bool {
	var status syscall.WaitStatus
	var got int
	err := syscall.EINTR
	for errors.Is(err, syscall.EINTR) {
		var e error
		got, e = syscall.Wait4(pid, &status, options, nil)
		if e == nil {
			break
		}
		if !errors.Is(e, syscall.EINTR) {
			return false
		}
	}
	if got <= 0 {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if c := p.waiting[got]; c != nil {
		c <- status
		delete(p.waiting, got)
	}
	return true
}

// child is one started program, in a session of its own.
type child struct {
	all   *processes
	pid   int
	ended <-chan syscall.WaitStatus // gets one value
}

type command struct {
	argv   []string
	env    []string
	dir    string
	uid    int      // -1 keeps the own
	output *os.File // standard output and error
}

// start runs a program without privileges: another uid, no supplementary group, no capability (execve(2) clears them on the change of uid).
func (p *processes) start(c command) (*child, error) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, fmt.Errorf("opening null device: %w", err)
	}
	defer null.Close()
	sys := &syscall.SysProcAttr{Setsid: true}
	if c.uid >= 0 {
		sys.Credential = &syscall.Credential{Uid: uint32(c.uid), Gid: uint32(c.uid)}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	pid, _, err := syscall.StartProcess(c.argv[0], c.argv, &syscall.ProcAttr{
		Dir: c.dir, Env: c.env, Sys: sys, Files: []uintptr{null.Fd(), c.output.Fd(), c.output.Fd()},
	})
	if err != nil {
		return nil, fmt.Errorf("starting %s: %w", c.argv[0], err)
	}
	ended := make(chan syscall.WaitStatus, 1)
	p.waiting[pid] = ended
	if !p.first {
		go p.collectOne(pid, 0) // ends with the child
	}
	return &child{all: p, pid: pid, ended: ended}, nil
}

// terminate asks the whole session to end, and after grace makes it. It returns the status of the child.
func (c *child) terminate(grace time.Duration) syscall.WaitStatus {
	_ = syscall.Kill(-c.pid, syscall.SIGTERM) // gone already is as good
	t := time.NewTimer(grace)
	defer t.Stop()
	select {
	case status := <-c.ended:
		return status
	case <-t.C:
	}
	c.sweep()
	return <-c.ended
}

// sweep kills what user code has left running: in a node everything but the agent, elsewhere the child's session.
func (c *child) sweep() {
	if c.all.first {
		_ = syscall.Kill(-1, syscall.SIGKILL) // kill(2): every process of the namespace except process 1
		return
	}
	_ = syscall.Kill(-c.pid, syscall.SIGKILL)
}

// exitCode is what a shell would report.
func exitCode(s syscall.WaitStatus) int {
	if s.Signaled() {
		return 128 + int(s.Signal())
	}
	return s.ExitStatus()
}
