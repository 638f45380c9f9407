package fleet

import (
	"context"
	"errors"
	goruntime "runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"casemate.dev/dataplane/runtime"
	"casemate.dev/dataplane/runtime/agent"
)

func exitCode(n int) *int { return &n }

// complete plays an agent whose command ends well.
func complete(t *testing.T, n *fakeNode) {
	t.Helper()
	for _, s := range []agent.State{agent.StatePreparing, agent.StateRunning, agent.StateFinalizing, agent.StateCompleted} {
		if code := n.say(agent.Event{State: s}); code != 204 {
			t.Fatalf("event %s answered %d", s, code)
		}
	}
	n.end(runtime.Exit{}, false)
}

func TestJobCompletes(t *testing.T) {
	w := newWorld(t)
	w.submit("a")
	n := w.node()
	env := n.agentSpec(t).Env
	id, ok := w.registry.NodeIdentity(n.ID())
	if !ok || env["IDENTITY_HEADER"] != id.Secret || len(id.Secret) != 64 || !w.registry.CheckSecret(n.ID(), id.Secret) || w.registry.CheckSecret(n.ID(), "") {
		t.Errorf("node's identity %+v does not fit its environment %v", id, env)
	}
	complete(t, n)
	r := w.await("a", Completed)
	if r.Attempt != 1 || r.Node != n.ID() || r.Started.IsZero() || r.Ended.IsZero() {
		t.Errorf("record %+v", r)
	}
	// A second submission of the same job, as a replayed PUT makes it, must not run it again.
	w.submit("a")
	if got := w.status("a"); got.Status != Completed {
		t.Errorf("status after replay is %s", got.Status)
	}
}

func TestJobFailures(t *testing.T) {
	for _, tt := range []struct {
		name       string
		arrange    func(w *world)
		play       func(n *fakeNode)
		code, text string
	}{
		{"command", nil, func(n *fakeNode) {
			n.say(agent.Event{State: agent.StateRunning})
			n.say(agent.Event{State: agent.StateFailed, Code: agent.CodeUserError, ExitCode: exitCode(3), Error: "x"})
		}, "UserError", "exit code 3"},
		{"integrity", nil, func(n *fakeNode) {
			n.say(agent.Event{State: agent.StateFailed, Code: agent.CodeIntegrity, Error: "train.py is not what was submitted"})
		}, "IntegrityError", "train.py"},
		{"image", func(w *world) { w.plan = errNoImage }, nil, "ImageNotFound", "not in the registry"},
		{"machine", func(w *world) { w.runtime.err = runtime.ErrUnavailable }, nil, "NodesUnavailable", "cannot run"},
		{"secret cause", func(w *world) { w.runtime.err = errors.New("/host/path") }, nil, "InternalError", "administrator"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			if tt.arrange != nil {
				tt.arrange(w)
			}
			w.submit("a")
			if tt.play != nil {
				n := w.node()
				tt.play(n)
				n.end(runtime.Exit{}, false)
			}
			r := w.await("a", Failed)
			if r.Code != tt.code || !strings.Contains(r.Message, tt.text) || strings.Contains(r.Message, "/host") {
				t.Errorf("got %s: %s", r.Code, r.Message)
			}
		})
	}
}

func TestQueueIsFirstInFirstOut(t *testing.T) {
	w := newWorld(t)
	w.capacity = 1
	w.submit("a", "b", "c")
	var order []string
	for range 3 {
		n := w.node()
		counts, nodes := w.sched.Cluster(testCluster)
		if counts.Nodes() != 1 || len(nodes) != 1 {
			t.Errorf("a cluster of one node has %+v", counts)
		}
		order = append(order, n.agentSpec(t).RunID[len(testWorkspace+"/jobs/"):])
		complete(t, n)
	}
	if diff := cmp.Diff([]string{"a", "b", "c"}, order); diff != "" {
		t.Error(diff)
	}
	w.await("c", Completed)
}

func TestCancel(t *testing.T) {
	ctx := context.Background()
	id := func(n string) string { return testWorkspace + "/jobs/" + n }
	w := newWorld(t)
	w.capacity = 1
	w.submit("running", "waiting")
	n := w.node()
	n.say(agent.Event{State: agent.StateRunning})
	w.await("running", Running)
	if err := w.sched.Cancel(ctx, id("waiting"), testWorkspace); err != nil {
		t.Fatal(err)
	}
	w.await("waiting", Canceled)
	if err := w.sched.Cancel(ctx, id("running"), testWorkspace); err != nil {
		t.Fatal(err)
	}
	n.awaitSignal()
	n.say(agent.Event{State: agent.StateCanceled})
	n.end(runtime.Exit{}, false)
	w.await("running", Canceled)
	if err := w.sched.Cancel(ctx, id("running"), testWorkspace); !errors.Is(err, ErrEnded) {
		t.Errorf("canceling an ended job: %v", err)
	}
	if err := w.sched.Cancel(ctx, id("none"), testWorkspace); !errors.Is(err, ErrNoRecord) {
		t.Errorf("canceling an unknown job: %v", err)
	}

	w.submit("stubborn")
	n = w.node()
	n.say(agent.Event{State: agent.StateRunning})
	w.await("stubborn", Running)
	if err := w.sched.Forget(ctx, id("stubborn")); !errors.Is(err, ErrActive) {
		t.Errorf("forgetting a running job: %v", err)
	}
	if err := w.sched.Cancel(ctx, id("stubborn"), testWorkspace); err != nil {
		t.Fatal(err)
	}
	w.await("stubborn", Canceled)
	if !n.killed {
		t.Error("a node that ignores cancellation was not killed")
	}
}

// TestRestart stops the server at each step of a job's life and expects it to end well afterwards, having run at most twice.
func TestRestart(t *testing.T) {
	for _, steps := range [][]agent.State{nil, {agent.StatePreparing}, {agent.StatePreparing, agent.StateRunning},
		{agent.StatePreparing, agent.StateRunning, agent.StateFinalizing}} {
		w := newWorld(t)
		w.submit("a")
		n := w.node()
		for _, s := range steps {
			n.say(agent.Event{State: s})
		}
		w.restart()
		if w.registry.NodeAlive(n.ID()) {
			t.Error("a lost node is alive")
		}
		complete(t, w.node())
		r := w.await("a", Completed)
		if r.Attempt != 2 || len(r.Notes) != 1 || !strings.Contains(r.Notes[0].Text, "restarted") {
			t.Errorf("after %v: %+v", steps, r)
		}
	}
}

func TestRestartBeforeEndIsTold(t *testing.T) {
	w := newWorld(t)
	w.submit("a")
	n := w.node()
	w.mu.Lock()
	w.deaf = true
	w.mu.Unlock()
	complete(t, n)
	w.restart()
	w.mu.Lock()
	w.deaf = false
	w.mu.Unlock()
	if r := w.await("a", Completed); r.Attempt != 1 {
		t.Errorf("a completed job was run again: %+v", r)
	}
}

func TestNodeLostTwiceFails(t *testing.T) {
	w := newWorld(t)
	w.submit("a")
	w.node().end(runtime.Exit{OutOfMemory: true}, false)
	w.node().end(runtime.Exit{}, false)
	r := w.await("a", Failed)
	if r.Code != "NodeLost" || r.Attempt != 2 || !strings.Contains(r.Notes[0].Text, "memory") {
		t.Errorf("%+v", r)
	}
}

func TestRevokedKeyStopsJobUntilRestored(t *testing.T) {
	w := newWorld(t)
	w.submit("a")
	n := w.node()
	n.say(agent.Event{State: agent.StateRunning})
	w.await("a", Running)
	w.revoke()
	<-n.gone
	if _, err := w.sched.Status(context.Background(), testWorkspace+"/jobs/a", testWorkspace); err == nil {
		t.Error("the record can be read without its key")
	}
	w.restoreKey()
	complete(t, w.node())
	w.await("a", Completed)
}

// With its workspace's key gone for good a job can neither run nor be canceled; it must not keep the workspace from going.
func TestJobWithoutKeyIsForgotten(t *testing.T) {
	w := newWorld(t)
	w.submit("a")
	w.node()
	w.await("a", Preparing)
	if err := w.sched.Forget(t.Context(), testWorkspace+"/jobs/a"); !errors.Is(err, ErrActive) {
		t.Errorf("forgetting a running job: %v", err)
	}
	if got := w.sched.ActiveIn(testWorkspace); len(got) != 1 {
		t.Errorf("active are %v", got)
	}
	w.revoke()
	deadline := time.Now().Add(20 * time.Second)
	for {
		err := w.sched.Forget(t.Context(), testWorkspace+"/jobs/a")
		if err == nil {
			break
		}
		if !errors.Is(err, ErrActive) || time.Now().After(deadline) {
			t.Fatal(err)
		}
		goruntime.Gosched() // the node is still being taken away
	}
	w.restoreKey()
	if _, err := w.sched.Status(t.Context(), testWorkspace+"/jobs/a", testWorkspace); !errors.Is(err, ErrNoRecord) {
		t.Errorf("the job is still known: %v", err)
	}
}

func TestDeployments(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	// Run has begun when the empty deployment can be withdrawn and a deployment can be made.
	spec := DeploymentSpec{ID: testWorkspace + "/onlineEndpoints/e/deployments/blue", Owner: testWorkspace, Instances: 2, Revision: "1"}
	deployed := make(chan error, 1)
	deploy := func() {
		go func() {
			for {
				if err := w.serving.Deploy(ctx, spec); !errors.Is(err, errNotServing) {
					deployed <- err
					return
				}
			}
		}()
	}
	deploy()
	a, b := w.node(), w.node()
	a.say(agent.Event{State: agent.StateReady})
	b.say(agent.Event{State: agent.StateReady})
	if err := <-deployed; err != nil {
		t.Fatal(err)
	}
	n1, release, _ := w.serving.Borrow(spec.ID)
	n2, _, _ := w.serving.Borrow(spec.ID)
	if n1 == n2 {
		t.Error("two requests went to one of two idle nodes")
	}
	release()
	if n3, _, _ := w.serving.Borrow(spec.ID); n3 != n1 {
		t.Error("a request did not go to the idle node")
	}
	w.restart()
	w.node().say(agent.Event{State: agent.StateReady})
	w.node().say(agent.Event{State: agent.StateReady})
	deploy() // the same spec: waits for what Run has begun
	if err := <-deployed; err != nil {
		t.Fatal(err)
	}
	// Asking again while one instance is being replaced takes nothing down.
	node, _, _ := w.serving.Borrow(spec.ID)
	w.runtime.mu.Lock()
	for _, n := range w.runtime.nodes {
		if n.ID() == node {
			n.end(runtime.Exit{}, false)
		}
	}
	w.runtime.mu.Unlock()
	replacement := w.node() // the failure is known by now
	deploy()
	replacement.say(agent.Event{State: agent.StateReady})
	if err := <-deployed; err != nil {
		t.Fatalf("asking again for a deployment that heals: %v", err)
	}
	spec.Revision = "2"
	deploy()
	n := w.node()
	w.node()
	n.say(agent.Event{State: agent.StateFailed, Code: agent.CodeServe, Error: "init() raised"})
	n.end(runtime.Exit{}, false)
	if err := <-deployed; !errors.Is(err, ErrInstance) || !strings.Contains(err.Error(), "init() raised") {
		t.Errorf("got %v", err)
	}
	if _, _, ok := w.serving.Borrow(spec.ID); ok {
		t.Error("a failed deployment serves")
	}
	w.restart()
	select {
	case <-w.runtime.started:
		t.Error("a withdrawn deployment came back")
	case <-time.After(10 * time.Millisecond): // nothing to wait for: absence
	}
}

// TestRecordNeverLeavesItsEnd drives a record with arbitrary transitions: an end is an end, and attempts are bounded.
func TestRecordNeverLeavesItsEnd(t *testing.T) {
	all := []Status{NotStarted, Queued, Preparing, Running, Finalizing, CancelRequested, Completed, Failed, Canceled}
	rapid.Check(t, func(t *rapid.T) {
		r := Record{Status: NotStarted}
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			before := r.clone()
			var err error
			if rapid.Bool().Draw(t, "lost") {
				err = r.lost(time.Time{}, "x")
			} else {
				err = r.to(rapid.SampledFrom(all).Draw(t, "to"))
				if err == nil && r.Status == Preparing {
					r.Attempt++
				}
			}
			if before.Status.Final() && (err == nil || r.Status != before.Status) {
				t.Fatalf("left %s for %s (%v)", before.Status, r.Status, err)
			}
			if err != nil && r.Status != before.Status {
				t.Fatalf("refused and changed: %v", err)
			}
		}
	})
}
