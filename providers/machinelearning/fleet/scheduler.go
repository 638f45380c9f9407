package fleet

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"casemate.dev/dataplane/runtime"
	"casemate.dev/resource"
	"casemate.dev/store"
)

// Planner says what a job is and how many nodes its cluster may have. Its errors are refusals of the job when they are
// *resource.Error, word for word; others are kept from the job's owner.
type Planner interface {
	PlanJob(ctx context.Context, r Record, node string) (Plan, error)
	Capacity(ctx context.Context, cluster string) (int, error)
}

// Config is what a fleet needs; all fields are required unless they say otherwise.
type Config struct {
	Store    store.Store
	Handles  func(ctx context.Context, owner string) (Handle, error)
	Runtime  runtime.Runtime
	Network  Network
	Planner  Planner
	Serve    ServePlanner
	Metadata Metadata
	CA       []byte // PEM, given to every node
	// Token makes a token of one of a node's identities, for Plan.Tokens; the node is registered.
	Token func(ctx context.Context, node, identity, audience string) (string, error)
	// Changed hears of each durable change of a job. It may hear one twice. After an error the end of a job is told again later.
	Changed func(ctx context.Context, r Record) error
	// Refused hears that a node has found other bytes than the registered ones, before the node's report is acknowledged. Optional.
	Refused func(ctx context.Context, r Refusal) error
	Clock   resource.Clock // optional, time.Now
	Grace   time.Duration  // optional, 30 s: what a canceled job has before its node is killed
	Retry   time.Duration  // optional, 5 s: how often work that had to wait (a revoked key) is tried again
	Log     *slog.Logger   // optional
}

// Scheduler runs jobs: first in, first out for each cluster.
type Scheduler struct {
	cfg      Config
	ledger   ledger
	launcher *launcher
	kick     chan struct{} // holds a token when the queues should be looked at

	mu    sync.Mutex      // guards jobs and every job's place and untold
	jobs  map[string]*job // active jobs by folded id
	ready bool            // Run has loaded what an earlier process left
}

// place says where in the scheduler a job stands.
type place int

const (
	waiting   place = iota // in its cluster's queue
	executing              // a goroutine has it
	dormant                // its workspace's key is unusable, or its end has yet to be told
)

type job struct {
	id, cluster string // as in record, where they never change
	submitted   time.Time

	mu     sync.Mutex // guards record; held while a change is written
	record Record

	cancel     chan struct{} // closed when somebody asks for the job's end
	cancelOnce sync.Once

	place place // guarded by Scheduler.mu
}

// NewScheduler makes a scheduler; nothing happens before Run.
func NewScheduler(cfg Config, registry *Registry) *Scheduler {
	cfg = cfg.withDefaults()
	return &Scheduler{
		cfg:      cfg,
		ledger:   ledger{cfg.Store, cfg.Handles},
		launcher: newLauncher(cfg, registry),
		kick:     make(chan struct{}, 1),
		jobs:     map[string]*job{},
	}
}

func (cfg Config) withDefaults() Config {
	if cfg.Clock == nil {
		cfg.Clock = time.Now
	}
	if cfg.Grace == 0 {
		cfg.Grace = 30 * time.Second
	}
	if cfg.Retry == 0 {
		cfg.Retry = 5 * time.Second
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return cfg
}

func newLauncher(cfg Config, registry *Registry) *launcher {
	return &launcher{cfg.Runtime, cfg.Network, registry, cfg.Token, cfg.Metadata, cfg.CA, cfg.Refused, cfg.Log.Warn}
}

// Submit queues a job durably. Submitting a known job again does nothing.
func (s *Scheduler) Submit(ctx context.Context, id, owner, cluster string) error {
	r := Record{ID: id, Owner: owner, Cluster: cluster, Status: Queued, Submitted: s.cfg.Clock().UTC()}
	created, err := s.ledger.create(ctx, r)
	if err != nil {
		return fmt.Errorf("queueing job: %w", err)
	}
	if !created {
		return nil
	}
	s.adopt(r, waiting)
	s.wake()
	return nil
}

// Status reads a job's record; ErrNoRecord for one never submitted.
func (s *Scheduler) Status(ctx context.Context, id, owner string) (Record, error) {
	return s.ledger.read(ctx, id, owner)
}

// ErrEnded says that a job has ended and cannot be canceled.
var ErrEnded = errors.New("job has ended")

// Cancel asks for the job's end: at once when it waits, else through its agent, and by force after the grace period.
func (s *Scheduler) Cancel(ctx context.Context, id, owner string) error {
	s.mu.Lock()
	j := s.jobs[fold(id)]
	if j == nil || j.place == dormant {
		s.mu.Unlock()
		r, err := s.ledger.read(ctx, id, owner)
		switch {
		case err != nil:
			return err
		case r.Status.Final():
			return ErrEnded
		}
		return fmt.Errorf("canceling job %s: it is not under control yet, try again", id)
	}
	if j.place == waiting {
		j.place = executing // nobody else starts it
		s.mu.Unlock()
		err := s.change(ctx, j, func(r *Record) error { return r.end(Canceled, s.cfg.Clock().UTC(), "", "") })
		if err != nil {
			s.put(j, waiting)
			return err
		}
		s.finish(ctx, j)
		return nil
	}
	s.mu.Unlock()
	err := s.change(ctx, j, func(r *Record) error {
		if r.Status.Final() {
			return ErrEnded
		}
		if r.Status == CancelRequested || r.Status == Queued {
			return nil // Queued: between two attempts; the closed channel ends it
		}
		return r.to(CancelRequested)
	})
	if err != nil {
		return err
	}
	j.cancelOnce.Do(func() { close(j.cancel) })
	return nil
}

// ErrActive says that a job has not ended.
var ErrActive = errors.New("job has not ended")

// Forget removes the record of a job that has ended, or that has no node and waits for a key: with the key gone for good it
// could neither run nor be canceled, and its workspace must be able to go.
func (s *Scheduler) Forget(ctx context.Context, id string) error {
	s.mu.Lock()
	j := s.jobs[fold(id)]
	rests := j == nil || j.place == dormant
	s.mu.Unlock()
	if !rests && !j.snapshot().Status.Final() {
		return ErrActive
	}
	if err := s.ledger.forget(ctx, id); err != nil {
		return err
	}
	s.mu.Lock()
	if j := s.jobs[fold(id)]; j != nil && j.place == dormant {
		delete(s.jobs, fold(id))
	}
	s.mu.Unlock()
	return nil
}

// ActiveIn names the jobs of a workspace that have not ended, among those that are under control.
func (s *Scheduler) ActiveIn(owner string) []string {
	s.mu.Lock()
	var all []*job
	for _, j := range s.jobs {
		if j.place != dormant {
			all = append(all, j)
		}
	}
	s.mu.Unlock()
	var out []string
	for _, j := range all {
		if r := j.snapshot(); fold(r.Owner) == fold(owner) && !r.Status.Final() {
			out = append(out, r.ID)
		}
	}
	slices.Sort(out)
	return out
}

// Counts are a cluster's nodes and queue as of now.
type Counts struct{ Queued, Preparing, Running, Leaving int }

// Nodes is how many nodes exist.
func (c Counts) Nodes() int { return c.Preparing + c.Running + c.Leaving }

// NodeState is one node of a cluster.
type NodeState struct {
	Node, Job string
	Status    Status
}

// Cluster counts a cluster's nodes and lists them in order of their names.
func (s *Scheduler) Cluster(cluster string) (Counts, []NodeState) {
	var c Counts
	var nodes []NodeState
	for _, j := range s.of(cluster) {
		r := j.snapshot()
		switch r.Status {
		case Queued:
			c.Queued++
			continue
		case Preparing:
			c.Preparing++
		case Running:
			c.Running++
		case Finalizing, CancelRequested:
			c.Leaving++
		default:
			continue
		}
		nodes = append(nodes, NodeState{r.Node, r.ID, r.Status})
	}
	slices.SortFunc(nodes, func(a, b NodeState) int { return cmp.Compare(a.Node, b.Node) })
	return c, nodes
}

func (s *Scheduler) of(cluster string) []*job {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []*job
	for _, j := range s.jobs {
		if fold(j.cluster) == fold(cluster) {
			out = append(out, j)
		}
	}
	return out
}

// Run schedules until ctx ends; then every node is taken away, and the jobs that had one are run again at the next start.
func (s *Scheduler) Run(ctx context.Context) error {
	var running sync.WaitGroup
	defer running.Wait()
	retry := time.NewTicker(s.cfg.Retry)
	defer retry.Stop()
	for {
		if err := s.recover(ctx); err != nil && ctx.Err() == nil {
			s.cfg.Log.Warn("loading jobs", "error", err)
		}
		s.admit(ctx, &running)
		select {
		case <-ctx.Done():
			return nil
		case <-retry.C:
		case <-s.kick:
		}
	}
}

// recover adopts active jobs that nobody has: at start those that an earlier process left, later those that had to wait for
// their key or whose end has not been told.
func (s *Scheduler) recover(ctx context.Context) error {
	s.mu.Lock()
	look := !s.ready
	for _, j := range s.jobs {
		look = look || j.place == dormant
	}
	s.mu.Unlock()
	if !look {
		return nil
	}
	entries, err := s.ledger.listActive(ctx)
	if err != nil {
		return err
	}
	listed := map[string]bool{}
	for _, a := range entries {
		listed[fold(a.ID)] = true
	}
	s.mu.Lock()
	for id, j := range s.jobs {
		if j.place == dormant && !listed[id] {
			delete(s.jobs, id) // forgotten while it was looked at
		}
	}
	s.mu.Unlock()
	for _, a := range entries {
		s.mu.Lock()
		j := s.jobs[fold(a.ID)]
		known := j != nil && j.place != dormant
		s.mu.Unlock()
		if known {
			continue
		}
		if err := s.revive(ctx, a); err != nil {
			s.cfg.Log.Warn("reviving job", "job", a.ID, "error", err)
			s.adopt(Record{ID: a.ID, Owner: a.Owner, Cluster: a.Cluster, Status: Queued, Submitted: a.Submitted}, dormant)
		}
	}
	s.mu.Lock()
	s.ready = true
	s.mu.Unlock()
	return nil
}

// revive takes one active job over. One that had a node has lost it with the process that held it.
func (s *Scheduler) revive(ctx context.Context, a active) error {
	r, err := s.ledger.read(ctx, a.ID, a.Owner)
	if errors.Is(err, ErrNoRecord) {
		return s.ledger.settle(ctx, a.ID)
	}
	if err != nil {
		return err
	}
	j := s.adopt(r, executing)
	if !r.Status.Final() && r.Status != Queued {
		if err := s.change(ctx, j, func(r *Record) error { return r.lost(s.cfg.Clock().UTC(), "the platform was restarted") }); err != nil {
			s.put(j, dormant)
			return err
		}
	}
	if j.snapshot().Status.Final() {
		s.finish(ctx, j)
		return nil
	}
	s.put(j, waiting)
	return nil
}

// admit starts waiting jobs, oldest first, on clusters that have room.
func (s *Scheduler) admit(ctx context.Context, running *sync.WaitGroup) {
	s.mu.Lock()
	queues, busy := map[string][]*job{}, map[string]int{}
	for _, j := range s.jobs {
		c := fold(j.cluster)
		switch j.place {
		case waiting:
			queues[c] = append(queues[c], j)
		case executing:
			busy[c]++
		}
	}
	s.mu.Unlock()
	for cluster, queue := range queues {
		if ctx.Err() != nil {
			return
		}
		limit, err := s.cfg.Planner.Capacity(ctx, queue[0].cluster)
		if err != nil {
			s.cfg.Log.Warn("reading capacity", "cluster", cluster, "error", err)
			continue
		}
		slices.SortFunc(queue, func(a, b *job) int {
			return cmp.Or(a.submitted.Compare(b.submitted), cmp.Compare(a.id, b.id))
		})
		for _, j := range queue[:min(len(queue), max(0, limit-busy[cluster]))] {
			if s.take(j) {
				running.Go(func() { s.execute(ctx, j) })
			}
		}
	}
}

func (s *Scheduler) take(j *job) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if j.place != waiting {
		return false
	}
	j.place = executing
	return true
}

func (s *Scheduler) adopt(r Record, p place) *job {
	s.mu.Lock()
	defer s.mu.Unlock()
	j := &job{id: r.ID, cluster: r.Cluster, submitted: r.Submitted, record: r, cancel: make(chan struct{}), place: p}
	s.jobs[fold(r.ID)] = j
	return j
}

func (s *Scheduler) put(j *job, p place) {
	s.mu.Lock()
	j.place = p
	s.mu.Unlock()
	s.wake()
}

func (s *Scheduler) wake() {
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

func (j *job) snapshot() Record {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.record.clone()
}
