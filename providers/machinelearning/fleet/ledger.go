package fleet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"casemate.dev/dataplane/runtime"
	"casemate.dev/resource"
	"casemate.dev/store"
)

// Handle seals and opens what one workspace owns; envelope's handles are ones.
type Handle interface {
	SealBytes(object string, plain []byte) ([]byte, error)
	OpenBytes(object string, sealed []byte) ([]byte, error)
	Done() <-chan struct{} // closed when the key is no longer usable
}

// ErrNoRecord says that the fleet knows no such job.
var ErrNoRecord = errors.New("no such job in the fleet")

// ledger keeps job records: the sealed record, and while the job has not ended (or its end has not been told) an entry in
// the list of active jobs, which holds IDs only, so that a restart finds the work without opening anything.
//
//	machinelearning/job/{job id}      sealed Record
//	machinelearning/active/{job id}   active
type ledger struct {
	store   store.Store
	handles func(ctx context.Context, owner string) (Handle, error)
}

type active struct {
	ID        string    `json:"id"`
	Owner     string    `json:"owner"`
	Cluster   string    `json:"cluster"`
	Submitted time.Time `json:"submitted"`
}

func fold(id string) string { return strings.ToLower(id) }

func recordKey(id string) string { return store.Key("machinelearning", "job", fold(id)) }
func activeKey(id string) string { return store.Key("machinelearning", "active", fold(id)) }

// create writes a new record and its active entry; false when the job is known already.
func (l *ledger) create(ctx context.Context, r Record) (bool, error) {
	sealed, err := l.seal(ctx, r)
	if err != nil {
		return false, err
	}
	entry, err := json.Marshal(active{r.ID, r.Owner, r.Cluster, r.Submitted})
	if err != nil {
		return false, err
	}
	err = l.store.Update(ctx, func(t store.Txn) error {
		if err := t.CompareAndSet(recordKey(r.ID), 0, sealed); err != nil {
			return err
		}
		t.Put(activeKey(r.ID), entry)
		return nil
	})
	if errors.Is(err, store.ErrConflict) {
		return false, nil
	}
	return err == nil, err
}

func (l *ledger) write(ctx context.Context, r Record) error {
	sealed, err := l.seal(ctx, r)
	if err != nil {
		return err
	}
	return l.store.Update(ctx, func(t store.Txn) error { t.Put(recordKey(r.ID), sealed); return nil })
}

// settle takes a job off the active list, once its end has been told to whom it concerns.
func (l *ledger) settle(ctx context.Context, id string) error {
	return l.store.Update(ctx, func(t store.Txn) error { t.Delete(activeKey(id)); return nil })
}

func (l *ledger) forget(ctx context.Context, id string) error {
	return l.store.Update(ctx, func(t store.Txn) error {
		t.Delete(activeKey(id))
		t.Delete(recordKey(id))
		return nil
	})
}

func (l *ledger) read(ctx context.Context, id, owner string) (Record, error) {
	var kv store.KV
	err := l.store.View(ctx, func(r store.Reader) (err error) { kv, err = r.Get(recordKey(id)); return err })
	if errors.Is(err, store.ErrNotFound) {
		return Record{}, ErrNoRecord
	}
	if err != nil {
		return Record{}, fmt.Errorf("reading job %s: %w", id, err)
	}
	h, err := l.handles(ctx, owner)
	if err != nil {
		return Record{}, err
	}
	plain, err := h.OpenBytes(kv.Key, kv.Value)
	if err != nil {
		return Record{}, fmt.Errorf("opening record of job %s: %w", id, err)
	}
	var rec Record
	if err := json.Unmarshal(plain, &rec); err != nil {
		return Record{}, fmt.Errorf("decoding record of job %s: %w", id, err)
	}
	return rec, nil
}

// listActive returns every active entry.
func (l *ledger) listActive(ctx context.Context) ([]active, error) {
	var out []active
	err := l.store.View(ctx, func(r store.Reader) error {
		for kv, err := range r.Scan(store.Prefix("machinelearning", "active"), store.ScanOptions{}) {
			if err != nil {
				return err
			}
			var a active
			if err := json.Unmarshal(kv.Value, &a); err != nil {
				return fmt.Errorf("decoding active job %s: %w", kv.Key, err)
			}
			out = append(out, a)
		}
		return nil
	})
	return out, err
}

func (l *ledger) seal(ctx context.Context, r Record) ([]byte, error) {
	h, err := l.handles(ctx, r.Owner)
	if err != nil {
		return nil, err
	}
	plain, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("encoding job %s: %w", r.ID, err)
	}
	return h.SealBytes(recordKey(r.ID), plain)
}

// failure turns an error of the planner or of starting a node into what the job's record says: a public error word for word,
// anything else without its inside.
func failure(err error) (code, message string) {
	var e *resource.Error
	if errors.As(err, &e) {
		return e.Code, e.Message
	}
	if errors.Is(err, runtime.ErrUnavailable) {
		return "NodesUnavailable", "Nodes cannot run on this machine: it lacks what isolating them needs. The server's log names it."
	}
	return "InternalError", "The platform could not start the job. Quote the job's name to your administrator."
}
