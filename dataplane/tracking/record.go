package tracking

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"

	"casemate.dev/resource"
	"casemate.dev/store"
)

// Layout of the store. w is the workspace's folded ARM id; digests are of names, which stand inside the sealed values.
//
//	tracking/{w}/experiment/{experiment}            sealed experiment
//	tracking/{w}/name/{digest of name}              experiment id
//	tracking/{w}/member/{experiment}/{run}          empty: the runs of an experiment
//	tracking/{w}/run/{run}/info                     sealed runInfo
//	tracking/{w}/run/{run}/param/{digest}           sealed pair
//	tracking/{w}/run/{run}/tag/{digest}             sealed pair
//	tracking/{w}/run/{run}/latest/{digest}          sealed metric: the newest point
//	tracking/{w}/metric/{run}/{digest}/{chunk}      sealed []point: the points of one request
const plane = "tracking"

func digest(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:16])
}

// Stages and statuses, as MLflow spells them.
const (
	stageActive  = "active"
	stageDeleted = "deleted"
)

var statuses = map[string]bool{"RUNNING": true, "SCHEDULED": true, "FINISHED": true, "FAILED": true, "KILLED": true}

type experiment struct {
	ID       string            `json:"id"`
	Name     string            `json:"name"`
	Location string            `json:"location"`
	Stage    string            `json:"stage"`
	Created  int64             `json:"created"` // milliseconds, as all times here
	Updated  int64             `json:"updated"`
	Tags     map[string]string `json:"tags,omitempty"`
}

type runInfo struct {
	ID         string `json:"id"`
	Name       string `json:"name"`
	Experiment string `json:"experiment"`
	User       string `json:"user"`
	Status     string `json:"status"`
	Stage      string `json:"stage"`
	Start      int64  `json:"start"`
	End        int64  `json:"end,omitempty"`
	// Job says that the run is a job's: its status is the job's and not a client's to say.
	Job bool `json:"job,omitempty"`
}

type pair struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}

// point is one value of a metric.
type point struct {
	Value float    `json:"value"`
	Time  flexible `json:"timestamp"`
	Step  flexible `json:"step"`
}

type metric struct {
	Key string `json:"key"`
	point
}

// later is MLflow's order of points: by step, then time, then value.
func (p point) later(q point) bool {
	if p.Step != q.Step {
		return p.Step > q.Step
	}
	if p.Time != q.Time {
		return p.Time > q.Time
	}
	return float64(p.Value) > float64(q.Value)
}

// float is a float64 whose JSON may be NaN or infinite, in the words of protobuf's JSON mapping.
type float float64

// MarshalJSON writes a number, or "NaN", "Infinity", "-Infinity".
func (f float) MarshalJSON() ([]byte, error) {
	switch v := float64(f); {
	case math.IsNaN(v):
		return []byte(`"NaN"`), nil
	case math.IsInf(v, 1):
		return []byte(`"Infinity"`), nil
	case math.IsInf(v, -1):
		return []byte(`"-Infinity"`), nil
	default:
		return strconv.AppendFloat(nil, v, 'g', -1, 64), nil
	}
}

// UnmarshalJSON reads a number or a number in quotes.
func (f *float) UnmarshalJSON(b []byte) error {
	s := strings.Trim(string(b), `"`)
	v, err := strconv.ParseFloat(s, 64)
	if err != nil || strings.ContainsAny(s, "xX_") {
		return fmt.Errorf("%.40q is not a number", s)
	}
	*f = float(v)
	return nil
}

// flexible is an int64 that clients send as a number or as a string (protobuf's JSON mapping).
type flexible int64

// UnmarshalJSON reads an integer, quoted or not.
func (n *flexible) UnmarshalJSON(b []byte) error {
	s := strings.Trim(string(b), `"`)
	if s == "" || s == "null" {
		return nil
	}
	v, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		f, ferr := strconv.ParseFloat(s, 64)
		if ferr != nil || f != math.Trunc(f) || math.Abs(f) > 1<<53 {
			return fmt.Errorf("%.40q is not an integer", s)
		}
		v = int64(f)
	}
	*n = flexible(v)
	return nil
}

// book is one workspace's records with the key that seals them.
type book struct {
	store  store.Store
	handle Handle
	ws     string // folded ARM id
}

func (b *book) key(parts ...string) string {
	return store.Key(append([]string{plane, b.ws}, parts...)...)
}
func (b *book) prefix(parts ...string) string {
	return store.Prefix(append([]string{plane, b.ws}, parts...)...)
}

func (b *book) put(t store.Txn, key string, v any) error {
	plain, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encoding record: %w", err)
	}
	sealed, err := b.handle.SealBytes(key, plain)
	if err != nil {
		return err
	}
	t.Put(key, sealed)
	return nil
}

func (b *book) open(kv store.KV, v any) error {
	plain, err := b.handle.OpenBytes(kv.Key, kv.Value)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(plain, v); err != nil {
		return fmt.Errorf("decoding record: %w", err)
	}
	return nil
}

// get reads a record; false when there is none.
func (b *book) get(r store.Reader, key string, v any) (bool, error) {
	kv, err := r.Get(key)
	if errors.Is(err, store.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, b.open(kv, v)
}

func (b *book) view(ctx context.Context, fn func(store.Reader) error) error {
	return b.store.View(ctx, fn)
}

func (b *book) update(ctx context.Context, fn func(store.Txn) error) error {
	return b.store.Update(ctx, fn)
}

func absent(format string, args ...any) *resource.Error {
	return resource.Errorf(404, "RESOURCE_DOES_NOT_EXIST", format, args...)
}

func (b *book) experiment(r store.Reader, id string) (experiment, error) {
	var e experiment
	ok, err := b.get(r, b.key("experiment", id), &e)
	if err == nil && !ok {
		err = absent("No Experiment with id=%s exists", clip(id))
	}
	return e, err
}

func (b *book) run(r store.Reader, id string) (runInfo, error) {
	var i runInfo
	ok, err := b.get(r, b.key("run", id, "info"), &i)
	if err == nil && !ok {
		err = absent("Run with id=%s not found", clip(id))
	}
	return i, err
}

// activeRun is run for writers.
func (b *book) activeRun(r store.Reader, id string) (runInfo, error) {
	i, err := b.run(r, id)
	if err == nil && i.Stage != stageActive {
		err = invalid("The run %s must be in the 'active' state. Current state is %s.", clip(id), i.Stage)
	}
	return i, err
}

// fullRun is a run with its data.
type fullRun struct {
	info    runInfo
	params  map[string]string
	tags    map[string]string
	metrics map[string]point
}

// load reads a run whole, by one scan.
func (b *book) load(r store.Reader, id string) (*fullRun, error) {
	full := &fullRun{params: map[string]string{}, tags: map[string]string{}, metrics: map[string]point{}}
	found := false
	prefix := b.prefix("run", id)
	for kv, err := range r.Scan(prefix, store.ScanOptions{}) {
		if err != nil {
			return nil, err
		}
		kind, _, _ := strings.Cut(strings.TrimPrefix(kv.Key, prefix), "/")
		switch kind {
		case "info":
			found = true
			err = b.open(kv, &full.info)
		case "latest":
			var m metric
			err = b.open(kv, &m)
			full.metrics[m.Key] = m.point
		default:
			var p pair
			err = b.open(kv, &p)
			if kind == "param" {
				full.params[p.Key] = p.Value
			} else {
				full.tags[p.Key] = p.Value
			}
		}
		if err != nil {
			return nil, err
		}
	}
	if !found {
		return nil, absent("Run with id=%s not found", clip(id))
	}
	return full, nil
}
