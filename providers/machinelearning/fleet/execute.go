package fleet

import (
	"context"
	"errors"
	"fmt"
	"time"

	"casemate.dev/dataplane/runtime"
	"casemate.dev/dataplane/runtime/agent"
)

// change applies fn to a job's record and makes the result durable before anybody sees it. The change goes on when ctx ends:
// what a node has reported must not be half known.
func (s *Scheduler) change(ctx context.Context, j *job, fn func(*Record) error) error {
	ctx = context.WithoutCancel(ctx)
	j.mu.Lock()
	r := j.record.clone()
	if err := fn(&r); err != nil {
		j.mu.Unlock()
		return err
	}
	if err := s.ledger.write(ctx, r); err != nil {
		j.mu.Unlock()
		return fmt.Errorf("recording job %s as %s: %w", r.ID, r.Status, err)
	}
	j.record = r
	j.mu.Unlock()
	if !r.Status.Final() {
		if err := s.cfg.Changed(ctx, r.clone()); err != nil {
			s.cfg.Log.Warn("telling of job", "job", r.ID, "status", r.Status, "error", err)
		}
	}
	return nil
}

// finish tells of a job's end and takes it off the active list; when telling fails the job stays dormant and it is tried again.
func (s *Scheduler) finish(ctx context.Context, j *job) {
	ctx = context.WithoutCancel(ctx)
	r := j.snapshot()
	err := s.cfg.Changed(ctx, r)
	if err == nil {
		err = s.ledger.settle(ctx, r.ID)
	}
	if err != nil {
		s.cfg.Log.Warn("telling of the end of job", "job", r.ID, "error", err)
		s.mu.Lock()
		j.place = dormant
		s.mu.Unlock()
		return
	}
	s.mu.Lock()
	delete(s.jobs, fold(r.ID))
	s.mu.Unlock()
	s.wake()
}

// execute runs a job once, on a fresh node.
func (s *Scheduler) execute(ctx context.Context, j *job) {
	rec := j.snapshot()
	handle, err := s.ledger.handles(ctx, rec.Owner)
	if err != nil {
		s.cfg.Log.Warn("job waits for its workspace's key", "job", rec.ID, "error", err)
		s.mu.Lock()
		j.place = dormant // no wake: the retry ticker looks again
		s.mu.Unlock()
		return
	}
	node := newNodeID()
	s.launcher.registry.reserve(node)
	err = s.change(ctx, j, func(r *Record) error {
		if err := r.to(Preparing); err != nil {
			return err
		}
		r.Attempt, r.Node = r.Attempt+1, node
		return nil
	})
	var why string
	if err == nil {
		why, err = s.onNode(ctx, j, node, handle)
	} else {
		s.launcher.registry.remove(node)
	}
	s.conclude(ctx, j, why, err)
}

// conclude decides what a job is after its node has gone: ended as its agent said, refused, to be run again, or (when the
// server stops or the key is revoked) left as it stands for the next start.
func (s *Scheduler) conclude(ctx context.Context, j *job, why string, err error) {
	now, cause := s.cfg.Clock().UTC(), err
	if !j.snapshot().Status.Final() && ctx.Err() == nil {
		err = s.change(ctx, j, func(r *Record) error {
			switch {
			case r.Status == CancelRequested:
				return r.end(Canceled, now, "", "")
			case err != nil:
				code, message := failure(err)
				return r.end(Failed, now, code, message)
			}
			return r.lost(now, why)
		})
	}
	r := j.snapshot()
	switch {
	case r.Status.Final():
		if r.Status == Failed {
			s.cfg.Log.Info("job failed", "job", r.ID, "code", r.Code, "cause", cause)
		}
		s.finish(ctx, j)
	case ctx.Err() != nil:
		// The next process finds it in the active list.
	case r.Status == Queued && err == nil:
		select {
		case <-j.cancel:
			_ = s.change(ctx, j, func(r *Record) error { return r.end(Canceled, now, "", "") })
			s.finish(ctx, j)
		default:
			s.put(j, waiting)
		}
	default:
		s.cfg.Log.Warn("job waits", "job", r.ID, "error", err)
		s.mu.Lock()
		j.place = dormant
		s.mu.Unlock()
	}
}

// onNode plans, starts and watches. why says how the node went when its agent had not reported an end; err is a refusal or a
// failure to start.
func (s *Scheduler) onNode(ctx context.Context, j *job, node string, key Handle) (why string, err error) {
	var n runtime.Node
	defer func() { s.launcher.end(ctx, node, n) }()
	plan, err := s.cfg.Planner.PlanJob(ctx, j.snapshot(), node)
	if err != nil {
		return "", err
	}
	select {
	case <-j.cancel:
		return "", nil // conclude makes it Canceled
	default:
	}
	n, ctrl, err := s.launcher.start(ctx, j.snapshot().ID, node, plan, func(ctx context.Context, e agent.Event) error { return s.report(ctx, j, e) })
	if err != nil {
		return "", err
	}
	return s.watch(ctx, j, n, ctrl, plan.Deadline, key), nil
}

// watch waits for the node's end and brings it about when it is asked for, the key is revoked, the deadline passes or the
// server stops.
func (s *Scheduler) watch(ctx context.Context, j *job, n runtime.Node, ctrl *agent.Controller, deadline time.Duration, key Handle) string {
	type ending struct {
		exit runtime.Exit
		err  error
	}
	gone := make(chan ending, 1)
	go func() {
		exit, err := n.Wait(context.WithoutCancel(ctx))
		gone <- ending{exit, err}
	}()
	var expired, forced <-chan time.Time
	if deadline > 0 {
		t := time.NewTimer(deadline)
		defer t.Stop()
		expired = t.C
	}
	cancel, why := j.cancel, "its node ended without saying why"
	for {
		select {
		case e := <-gone:
			if e.exit.OutOfMemory {
				why = "its node ran out of memory"
			}
			if e.err != nil {
				s.cfg.Log.Warn("waiting for node", "node", n.ID(), "error", e.err)
			}
			return why
		case <-cancel:
			cancel = nil
			ctrl.Cancel()
			t := time.NewTimer(s.cfg.Grace)
			defer t.Stop()
			forced = t.C
			continue
		case <-forced:
			why = "its node did not end when asked to"
		case <-expired:
			why = "its node outlived the job's time limit"
		case <-key.Done():
			why = "the workspace's key was revoked"
		case <-ctx.Done():
			why = "the platform was stopped"
		}
		if err := n.Kill(); err != nil {
			s.cfg.Log.Warn("killing node", "node", n.ID(), "error", err)
		}
		<-gone
		return why
	}
}

// report takes one event of the job's agent. The controller has put events in order.
func (s *Scheduler) report(ctx context.Context, j *job, e agent.Event) error {
	now := s.cfg.Clock().UTC()
	return s.change(ctx, j, func(r *Record) error {
		if r.Status.Final() {
			return errors.New("job has ended")
		}
		if e.ExitCode != nil {
			code := *e.ExitCode
			r.ExitCode = &code
		}
		switch e.State {
		case agent.StatePreparing, agent.StateReady:
			return nil
		case agent.StateRunning:
			if r.Status == CancelRequested {
				return nil
			}
			r.Started = now
			return r.to(Running)
		case agent.StateFinalizing:
			if r.Status == CancelRequested {
				return nil
			}
			return r.to(Finalizing)
		case agent.StateCompleted:
			return r.end(Completed, now, "", "")
		case agent.StateCanceled:
			if r.Status != CancelRequested {
				return r.end(Failed, now, "NodeLost", "The node canceled the job although nobody had asked for it.")
			}
			return r.end(Canceled, now, "", "")
		}
		code, message := userFailure(e)
		return r.end(Failed, now, code, message)
	})
}

// userFailure words the agent's failure for the job's owner.
func userFailure(e agent.Event) (code, message string) {
	code, message = clip(e.Code, 64), clip(e.Error, 2000)
	if code == "" {
		code = agent.CodeAgent
	}
	if code == agent.CodeUserError && e.ExitCode != nil {
		return code, fmt.Sprintf("The command ended with exit code %d. What it printed is in user_logs/std_log.txt of the job.", *e.ExitCode)
	}
	if message == "" {
		message = "The node's agent reported a failure without a reason. See system_logs of the job."
	}
	return code, message
}

func clip(s string, n int) string {
	if len(s) > n {
		return s[:n]
	}
	return s
}
