package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"
)

// patience is how long an event is repeated before the agent gives up and lets the node end; the server then sees a node that
// ended without a final event.
const patience = 10 * time.Minute

// reporter sends events in order. It is used by one goroutine.
type reporter struct {
	worker   *worker
	sequence int64
}

// send returns when the server has the event durably.
func (r *reporter) send(ctx context.Context, e Event) error {
	r.sequence++
	e.Sequence, e.Time = r.sequence, time.Now().UTC()
	body, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("encoding event: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	wait := r.worker.retry
	for {
		final, err := r.post(ctx, body)
		if err == nil {
			return nil
		}
		if final || ctx.Err() != nil {
			return fmt.Errorf("reporting %s: %w", e.State, err)
		}
		pause(ctx, wait)
		wait = min(2*wait, 10*time.Second)
	}
}

func (r *reporter) post(ctx context.Context, body []byte) (final bool, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://node/event", bytes.NewReader(body))
	if err != nil {
		return true, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := r.worker.control.Do(req)
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusNoContent {
		return resp.StatusCode >= 400 && resp.StatusCode < 500, fmt.Errorf("controller answers %s", resp.Status)
	}
	return false, nil
}

var errCancelled = errors.New("cancelled")

// failure is an error with the code that people see.
type failure struct {
	code string
	err  error
}

func (f failure) Error() string { return f.err.Error() }
func (f failure) Unwrap() error { return f.err }

func fail(code string, err error) error {
	if err == nil {
		return nil
	}
	return failure{code, err}
}

// codeOf is the code of the outermost failure.
func codeOf(err error) string {
	if f := (failure{}); errors.As(err, &f) {
		return f.code
	}
	return CodeAgent
}
