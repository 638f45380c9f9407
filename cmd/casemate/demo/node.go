package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"casemate.dev/client"
)

// wiretap is a listener on all of the host's addresses that counts who arrives.
type wiretap struct {
	l    net.Listener
	port string
	came atomic.Int64
}

func listenOnHost() (*wiretap, error) {
	l, err := net.Listen("tcp4", "0.0.0.0:0")
	if err != nil {
		return nil, fmt.Errorf("listening on the host: %w", err)
	}
	w := &wiretap{l: l, port: strconv.Itoa(l.Addr().(*net.TCPAddr).Port)}
	go func() { // ends when the listener is closed
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			w.came.Add(1)
			_ = c.Close()
		}
	}()
	return w, nil
}

func (w *wiretap) close() { _ = w.l.Close() }

// hostAddresses are this machine's own, as others would name them.
func hostAddresses() ([]string, error) {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("listing the host's addresses: %w", err)
	}
	var out []string
	for _, a := range all {
		if ip, ok := a.(*net.IPNet); ok && ip.IP.To4() != nil && !ip.IP.IsLoopback() {
			out = append(out, ip.IP.String())
		}
	}
	return out, nil
}

// target is an address that a node tries, and what it is.
type target struct{ address, what string }

// targets are places that a node must not reach, and last the one that it may. All of them are on this machine.
func (d *demo) targets(ctx context.Context) (forbidden []target, allowed target, err error) {
	hosts, err := hostAddresses()
	if err != nil {
		return nil, target{}, err
	}
	for _, h := range hosts {
		forbidden = append(forbidden, target{net.JoinHostPort(h, d.listener.port), "a listener on the host's address"},
			target{net.JoinHostPort(h, d.server.site.Port), "the public port on the host's address"})
	}
	forbidden = append(forbidden,
		target{net.JoinHostPort("127.0.0.1", d.listener.port), "a listener on the host's loopback"},
		target{net.JoinHostPort("127.0.0.1", d.server.site.Port), "the public port on the host's loopback"},
		target{net.JoinHostPort(d.desk.address, d.server.site.Port), "the people's subnet"},
		target{net.JoinHostPort(d.neighbour.address, d.server.site.Port), "the neighbouring network"})
	blob, err := d.privateAddress(ctx, "blob")
	return forbidden, target{net.JoinHostPort(blob, d.server.site.Port), "the private endpoint of the storage account"}, err
}

// startHolder submits the job that keeps the data on a living node while others search for it.
func (d *demo) startHolder(ctx context.Context, me *client.Client) (err error) {
	if d.listener, err = listenOnHost(); err != nil {
		return err
	}
	forbidden, allowed, err := d.targets(ctx)
	if err != nil {
		return err
	}
	var list []string
	for _, t := range append(forbidden, allowed) {
		list = append(list, t.address)
	}
	code, err := d.code(ctx, me, "hold-"+d.tag, "hold.py")
	if err != nil {
		return err
	}
	d.holder, err = d.submit(ctx, me, "holder-"+d.tag, code, fmt.Sprintf("python3 hold.py %s %d", strings.Join(list, ","), holdFor), nil, nil)
	return err
}

// attempts is what the holding job reports.
type attempts struct {
	Results map[string]struct {
		Saw    string `json:"saw"`
		Millis int    `json:"ms"`
	} `json:"results"`
	Copies []string `json:"copies"`
	Bytes  int      `json:"bytes"`
}

// readAttempts waits for the job's report in its log, which streams while the job runs.
func (d *demo) readAttempts(ctx context.Context, me *client.Client) (a attempts, err error) {
	b := d.display.bar("job "+d.holder.name, 0, false)
	defer b.done()
	if _, err := d.follow(ctx, me, d.holder, "Running"); err != nil {
		return a, err
	}
	for {
		log, err := d.userLog(ctx, me, d.holder)
		if err != nil && client.StatusOf(err) != 404 {
			return a, err
		}
		for line := range strings.Lines(log) {
			if text, ok := strings.CutPrefix(line, "ATTEMPTS "); ok && strings.HasSuffix(line, "\n") {
				return a, json.Unmarshal([]byte(text), &a)
			}
		}
		b.tick("Running")
		if err := client.Sleep(ctx, 100*time.Millisecond); err != nil {
			return a, fmt.Errorf("waiting for the report of job %s: %w: %s", d.holder.name, err, tail(log, 500))
		}
	}
}

// drillNode reads from a running job's log how it fared when it tried to leave.
func (d *demo) drillNode(ctx context.Context, r *record) error {
	me := d.inside(d.scientist)
	a, err := d.readAttempts(ctx, me)
	if err != nil {
		return err
	}
	forbidden, allowed, err := d.targets(ctx)
	if err != nil {
		return err
	}
	for _, t := range forbidden {
		got := a.Results[t.address]
		// A refusal is an answer, so there would be a path; but the node's own loopback refuses by itself.
		answered := got.Saw == "connected" || strings.Contains(got.Saw, "refused") && !strings.HasPrefix(t.address, "127.")
		r.check(got.Saw != "" && !answered, "from a node of the training subnet: "+t.what+", "+t.address, "%s after %d ms", got.Saw, got.Millis)
	}
	r.check(a.Results[allowed.address].Saw == "connected", "for comparison: "+allowed.what+", "+allowed.address, "%s", a.Results[allowed.address].Saw)
	r.check(d.listener.came.Load() == 0, "count who arrived at the host's listener", "%d connections", d.listener.came.Load())
	conn, err := net.DialTimeout("tcp4", net.JoinHostPort("127.0.0.1", d.listener.port), time.Second)
	if err == nil {
		_ = conn.Close()
	}
	r.check(err == nil, "for comparison: connect to that listener from the host", "%v", map[bool]string{true: "connected", false: fmt.Sprint(err)}[err == nil])
	r.check(a.Bytes > 0 && len(a.Copies) == scratchCopies, "let the job copy the data to its disk", "%d bytes at %s", a.Bytes, strings.Join(a.Copies, ", "))
	return nil
}

// disks are the raw disks of living nodes below the data directory: image files, or directories of sealed blocks.
func (d *demo) disks() ([]string, error) {
	var out []string
	err := filepath.WalkDir(d.server.data, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		switch filepath.Ext(path) {
		case ".img":
			out = append(out, path)
		case ".sealed":
			out = append(out, path)
			return skipIfDir(e)
		case ".mnt":
			return skipIfDir(e) // what is mounted here is the node's own view
		}
		return nil
	})
	return out, err
}

func skipIfDir(e fs.DirEntry) error {
	if e.IsDir() {
		return fs.SkipDir
	}
	return nil
}

// drillCanary searches everything at rest while a node is alive that holds the data.
func (d *demo) drillCanary(ctx context.Context, r *record) error {
	needles := append(d.canary.needles(), needle{"the data scientist's secret", []byte(d.scientist.As.Secret)}, needle{"the endpoint's key", []byte(d.scoreKey)})
	if err := d.provePositive(needles, r); err != nil {
		return err
	}
	doc, err := d.inside(d.scientist).Get(ctx, d.holder.id, mlVersion)
	if err != nil {
		return err
	}
	all, err := d.disks()
	if err != nil {
		return fmt.Errorf("listing the nodes' disks: %w", err)
	}
	node := client.Text(doc, "properties.node")
	d.nodeDisks = slices.DeleteFunc(slices.Clone(all), func(path string) bool { return node == "" || !strings.Contains(path, node) })
	r.check(client.Text(doc, "properties.status") == "Running" && len(d.nodeDisks) == 1, "find the raw disk of the living node "+node, "%s (of %d)", strings.Join(d.nodeDisks, ", "), len(all))
	unix.Sync() // what a thief of the disk would get
	places := []struct {
		what string
		fill func(*search) error
	}{
		{"every file of the data directory, the raw disks of living nodes among them", func(s *search) error { return s.tree(ctx, d.server.data) }},
		{"the server's log", func(s *search) error { return s.file(d.server.log) }},
		{"memory-backed files of the host: /dev/shm and /run", func(s *search) error { return errors.Join(s.tree(ctx, "/dev/shm"), s.tree(ctx, "/run")) }},
		{"memory-backed files of the nodes", func(s *search) error { return d.searchNodeMemory(ctx, s) }},
		{"environments and command lines of all processes", searchProcesses},
	}
	for _, p := range places {
		began, s := time.Now(), newSearch(needles)
		if err := p.fill(s); err != nil {
			return err
		}
		saw := "nothing found"
		if len(s.hits) > 0 {
			saw = strings.Join(s.hits[:min(len(s.hits), 5)], "; ")
		}
		r.check(len(s.hits) == 0 && s.files > 0, "search "+p.what, "%s in %d files, %.1f MB, %d ms", saw, s.files, float64(s.bytes)/1e6, time.Since(began).Milliseconds())
	}
	return nil
}

// provePositive shows that the search finds what is there.
func (d *demo) provePositive(needles []needle, r *record) error {
	path := filepath.Join(d.dir, "control")
	defer func() { _ = os.Remove(path) }() // nothing but the word is in it
	if err := os.WriteFile(path, []byte("a row with "+d.canary.mark("row")), 0o600); err != nil {
		return fmt.Errorf("writing a file for comparison: %w", err)
	}
	s := newSearch(needles)
	if err := s.file(path); err != nil {
		return err
	}
	r.check(len(s.hits) == 1, "for comparison: search a file in clear", "%d found", len(s.hits))
	return nil
}

// nodeProcesses are the first processes of the server's nodes: they run the agent, and their mounts come from this run's server.
func nodeProcesses() ([]string, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("listing processes: %w", err)
	}
	var out []string
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err != nil {
			continue
		}
		if b, err := os.ReadFile("/proc/" + e.Name() + "/cmdline"); err == nil && strings.HasPrefix(string(b), "/casemate-agent\x00") {
			out = append(out, e.Name())
		}
	}
	return out, nil
}

// searchNodeMemory searches the tmpfs mounts of each node as the host sees them.
func (d *demo) searchNodeMemory(ctx context.Context, s *search) error {
	pids, err := nodeProcesses()
	if err != nil {
		return err
	}
	for _, pid := range pids {
		b, err := os.ReadFile("/proc/" + pid + "/mountinfo")
		if err != nil {
			continue // it ended
		}
		for line := range strings.Lines(string(b)) {
			// proc(5): the fifth field is the mount point; the type follows a lone hyphen.
			before, after, _ := strings.Cut(line, " - ")
			fields := strings.Fields(before)
			if len(fields) < 5 || !strings.HasPrefix(after, "tmpfs ") {
				continue
			}
			if err := s.tree(ctx, "/proc/"+pid+"/root"+fields[4]); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			s.text("a mount of node process "+pid, []byte(line))
		}
	}
	return nil
}

func searchProcesses(s *search) error {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return fmt.Errorf("listing processes: %w", err)
	}
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err != nil {
			continue
		}
		for _, name := range []string{"environ", "cmdline"} {
			path := "/proc/" + e.Name() + "/" + name
			if b, err := os.ReadFile(path); err == nil { // else it has ended
				s.text(path, b)
			}
		}
	}
	return nil
}

// drillNodeGone cancels the job: its node and the disk with its key go.
func (d *demo) drillNodeGone(ctx context.Context, r *record) error {
	me := d.inside(d.scientist)
	if err := me.Post(ctx, d.holder.id+"/cancel", mlVersion, nil, nil); err != nil {
		return err
	}
	began := time.Now()
	if _, err := d.follow(ctx, me, d.holder, "Canceled"); err != nil {
		return err
	}
	r.note("cancel the job", "Canceled after %d ms", time.Since(began).Milliseconds())
	for {
		left := slices.DeleteFunc(slices.Clone(d.nodeDisks), func(p string) bool { _, err := os.Lstat(p); return errors.Is(err, fs.ErrNotExist) })
		cluster, err := me.Get(ctx, d.names.clusterID, mlVersion)
		if err != nil {
			return err
		}
		nodes := fmt.Sprint(client.Dig(cluster, "properties.properties.currentNodeCount"))
		if len(d.nodeDisks) == 1 && len(left) == 0 && nodes == "0" {
			r.note("look for its node", "%s nodes in the cluster, the disk and its key are gone after %d ms", nodes, time.Since(began).Milliseconds())
			return nil
		}
		if err := client.Sleep(ctx, 50*time.Millisecond); err != nil {
			return fmt.Errorf("waiting for the node to go: %w: %s nodes, disks %v", err, nodes, left)
		}
	}
}
