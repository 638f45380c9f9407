package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"sync"
)

// maxEvent bounds what a lying node can make the server read at once.
const maxEvent = 64 << 10

// Controller is the server's half for one node: it hands the spec out once, takes events in order and carries cancellation.
// It is the http.Handler of NodeSpec.Agent.
type Controller struct {
	spec   Spec
	record func(context.Context, Event) error
	mux    *http.ServeMux
	cancel chan struct{}

	mu        sync.Mutex // guards the fields below
	taken     bool
	last      Event
	cancelled bool
}

// NewController serves spec to one node. record is called for each event, in order, one at a time and once for each sequence number that it accepted; it must
// have made the event durable when it returns nil. An error is answered with 503 and the agent repeats the event.
func NewController(spec Spec, record func(context.Context, Event) error) *Controller {
	c := &Controller{spec: spec, record: record, mux: http.NewServeMux(), cancel: make(chan struct{})}
	c.mux.HandleFunc("GET /spec", c.serveSpec)
	c.mux.HandleFunc("POST /event", c.serveEvent)
	c.mux.HandleFunc("GET /signal", c.serveSignal)
	return c
}

// Cancel asks the agent to stop user code. Idempotent; safe before the agent has connected.
func (c *Controller) Cancel() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.cancelled {
		c.cancelled = true
		close(c.cancel)
	}
}

// Last is the newest acknowledged event; its zero value means none.
func (c *Controller) Last() Event {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.last
}

func (c *Controller) ServeHTTP(w http.ResponseWriter, r *http.Request) { c.mux.ServeHTTP(w, r) }

func (c *Controller) serveSpec(w http.ResponseWriter, _ *http.Request) {
	c.mu.Lock()
	taken := c.taken
	c.taken = true
	c.mu.Unlock()
	if taken {
		http.Error(w, "the spec has been handed out", http.StatusGone)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(c.spec) // a broken connection is the agent's to notice
}

func (c *Controller) serveEvent(w http.ResponseWriter, r *http.Request) {
	var e Event
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxEvent)).Decode(&e); err != nil {
		http.Error(w, "event is not valid JSON", http.StatusBadRequest)
		return
	}
	if err := c.accept(r.Context(), e); err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// accept records an event exactly once. A repeat of the last one is acknowledged again: its acknowledgement was lost.
func (c *Controller) accept(ctx context.Context, e Event) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case e.Sequence == c.last.Sequence && e.Sequence > 0 && e.State == c.last.State:
		return nil
	case c.last.State.Final():
		return fmt.Errorf("work has ended as %s", c.last.State)
	case e.Sequence != c.last.Sequence+1:
		return fmt.Errorf("event %d does not follow %d", e.Sequence, c.last.Sequence)
	case !e.State.known():
		return fmt.Errorf("unknown state %q", e.State)
	}
	if err := c.record(ctx, e); err != nil {
		return fmt.Errorf("recording event: %w", err)
	}
	c.last = e
	return nil
}

func (s State) known() bool {
	switch s {
	case StatePreparing, StateRunning, StateReady, StateFinalizing, StateCompleted, StateFailed, StateCanceled:
		return true
	}
	return false
}

func (c *Controller) serveSignal(w http.ResponseWriter, r *http.Request) {
	select {
	case <-c.cancel:
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(Signal{Cancel: true})
	case <-r.Context().Done():
	}
}
