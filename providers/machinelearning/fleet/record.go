package fleet

import (
	"fmt"
	"slices"
	"time"
)

// Status is a job's status, spelled as Azure ML's JobStatus.
type Status string

// The statuses that the fleet uses, in the order of a life.
const (
	NotStarted      Status = "NotStarted"
	Queued          Status = "Queued"
	Preparing       Status = "Preparing"
	Running         Status = "Running"
	Finalizing      Status = "Finalizing"
	CancelRequested Status = "CancelRequested"
	Completed       Status = "Completed"
	Failed          Status = "Failed"
	Canceled        Status = "Canceled"
)

// Final says whether nothing can follow.
func (s Status) Final() bool { return s == Completed || s == Failed || s == Canceled }

// follows lists what may come after a status. Queued after Preparing, Running and Finalizing is the restart after a node
// was lost.
var follows = map[Status][]Status{
	NotStarted:      {Queued, Canceled, Failed},
	Queued:          {Preparing, Canceled, Failed},
	Preparing:       {Running, Finalizing, CancelRequested, Queued, Failed, Canceled, Completed},
	Running:         {Finalizing, CancelRequested, Queued, Failed, Canceled, Completed},
	Finalizing:      {CancelRequested, Queued, Failed, Canceled, Completed},
	CancelRequested: {Canceled, Completed, Failed},
}

// maxAttempts bounds how often a job is run when its node is lost under it.
const maxAttempts = 2

// Record is what the fleet keeps of one job, sealed under the key of its owner.
type Record struct {
	ID        string    `json:"id"`      // ARM id of the job
	Owner     string    `json:"owner"`   // ARM id of the workspace, whose key seals this
	Cluster   string    `json:"cluster"` // ARM id of the compute
	Status    Status    `json:"status"`
	Submitted time.Time `json:"submitted"`
	Started   time.Time `json:"started,omitzero"` // user code began, last attempt
	Ended     time.Time `json:"ended,omitzero"`
	Attempt   int       `json:"attempt,omitempty"` // executions begun
	Node      string    `json:"node,omitempty"`    // of the last execution
	ExitCode  *int      `json:"exitCode,omitempty"`
	Code      string    `json:"code,omitempty"`    // of the failure
	Message   string    `json:"message,omitempty"` // of the failure, for people
	Notes     []Note    `json:"notes,omitempty"`
}

// Note is something that happened to a job and that its owner should know.
type Note struct {
	Time time.Time `json:"time"`
	Text string    `json:"text"`
}

// to moves the record on, or refuses.
func (r *Record) to(s Status) error {
	if !slices.Contains(follows[r.Status], s) {
		return fmt.Errorf("job %s cannot go from %s to %s", r.ID, r.Status, s)
	}
	r.Status = s
	return nil
}

func (r *Record) end(s Status, at time.Time, code, message string) error {
	if err := r.to(s); err != nil {
		return err
	}
	r.Ended, r.Code, r.Message = at, code, message
	return nil
}

// lost is the transition of a job whose node went away before it had reported an end: once it is queued again, then it fails.
func (r *Record) lost(at time.Time, why string) error {
	if r.Status == CancelRequested {
		return r.end(Canceled, at, "", "")
	}
	if r.Attempt >= maxAttempts {
		return r.end(Failed, at, "NodeLost", fmt.Sprintf("The node was lost in each of %d attempts; the last time %s.", r.Attempt, why))
	}
	if err := r.to(Queued); err != nil {
		return err
	}
	r.Started, r.ExitCode = time.Time{}, nil
	r.Notes = append(r.Notes, Note{at, fmt.Sprintf("Attempt %d lost its node: %s. The job runs once more from its beginning.", r.Attempt, why)})
	return nil
}

func (r Record) clone() Record {
	r.Notes = slices.Clone(r.Notes)
	return r
}
