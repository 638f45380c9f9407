package tracking

import (
	"context"
	"encoding/base64"
	"errors"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"casemate.dev/resource"
	"casemate.dev/store"
)

var runSchema = schema{
	attributes: map[string]bool{"run_id": false, "run_name": false, "status": false, "artifact_uri": false, "user_id": false, "experiment_id": false,
		"lifecycle_stage": false, "start_time": true, "end_time": true},
	aliases:  map[string]string{"created": "start_time", "run name": "run_name"},
	entities: map[entity]bool{metricEntity: true, paramEntity: true, tagEntity: true},
}

func (f *fullRun) get(kind entity, key string) value {
	switch kind {
	case metricEntity:
		p, ok := f.metrics[key]
		return value{number: float64(p.Value), numeric: true, ok: ok}
	case paramEntity:
		v, ok := f.params[key]
		return value{text: v, ok: ok}
	case tagEntity:
		v, ok := f.tags[key]
		return value{text: v, ok: ok}
	}
	i := f.info
	if key == "start_time" || key == "end_time" {
		at := map[string]int64{"start_time": i.Start, "end_time": i.End}[key]
		return value{number: float64(at), numeric: true, ok: at != 0}
	}
	text := map[string]string{"run_id": i.ID, "run_name": i.Name, "status": i.Status, "artifact_uri": i.artifactURI(), "user_id": i.User,
		"experiment_id": i.Experiment, "lifecycle_stage": i.Stage}[key]
	return value{text: text, ok: true}
}

func (i runInfo) artifactURI() string {
	return "mlflow-artifacts:/" + i.Experiment + "/" + i.ID + "/artifacts"
}

func (i runInfo) wire() map[string]any {
	out := map[string]any{"run_id": i.ID, "run_uuid": i.ID, "run_name": i.Name, "experiment_id": i.Experiment, "user_id": i.User, "status": i.Status,
		"start_time": i.Start, "artifact_uri": i.artifactURI(), "lifecycle_stage": i.Stage}
	if i.End != 0 {
		out["end_time"] = i.End
	}
	return out
}

func (f *fullRun) wire() map[string]any {
	metrics := make([]metric, 0, len(f.metrics))
	for k, p := range f.metrics {
		metrics = append(metrics, metric{k, p})
	}
	slices.SortFunc(metrics, func(a, b metric) int { return strings.Compare(a.Key, b.Key) })
	return map[string]any{"info": f.info.wire(), "data": map[string]any{"metrics": metrics, "params": pairs(f.params), "tags": pairs(f.tags)},
		"inputs": map[string]any{}}
}

// MLflow's limits (mlflow/utils/validation.py of 2.x), in characters of UTF-8 bytes here.
const (
	maxKey        = 250
	maxParamValue = 6000
	maxTagValue   = 8000
	maxRunTags    = 1000
)

var keyPattern = regexp.MustCompile(`^[/\w.\- :]+$`)

// checkKey refuses names of metrics, parameters and tags that MLflow refuses.
func checkKey(kind, key string) error {
	if key == "" || len(key) > maxKey {
		return invalid("A %s's name has 1 to %d characters.", kind, maxKey)
	}
	if !keyPattern.MatchString(key) {
		return invalid("Invalid %s name: '%s'. Names may only contain alphanumerics, underscores (_), dashes (-), periods (.), spaces ( ), colon(:) and slashes (/).", kind, clip(key))
	}
	if clean := path.Clean(key); clean != key || clean == "." || strings.HasPrefix(clean, "..") || strings.HasPrefix(clean, "/") {
		return invalid("Invalid %s name: '%s'. Names may be treated as files in certain cases, and must not resolve to other names when treated as such.", kind, clip(key))
	}
	return nil
}

func setTags(into map[string]string, tags []pair) error {
	for _, t := range tags {
		if err := checkKey("tag", t.Key); err != nil {
			return err
		}
		if len(t.Value) > maxTagValue {
			return invalid("The value of tag '%s' is longer than %d characters.", clip(t.Key), maxTagValue)
		}
		into[t.Key] = t.Value
	}
	if len(into) > maxRunTags {
		return invalid("There are more than %d tags.", maxRunTags)
	}
	return nil
}

type createRun struct {
	Experiment string   `json:"experiment_id"`
	User       string   `json:"user_id"`
	Name       string   `json:"run_name"`
	Start      flexible `json:"start_time"`
	Tags       []pair   `json:"tags"`
}

func (s *Service) createRun(ctx context.Context, c *call, in createRun) (any, error) {
	id, err := c.aliased(ctx, in.Experiment)
	if err != nil {
		return nil, err
	}
	full := &fullRun{tags: map[string]string{}, info: runInfo{ID: newRunID(), Name: in.Name, Experiment: id, User: c.r.Caller.DisplayName(),
		Status: "RUNNING", Stage: stageActive, Start: int64(in.Start)}}
	if full.info.Start == 0 {
		full.info.Start = s.now()
	}
	if err := setTags(full.tags, in.Tags); err != nil {
		return nil, err
	}
	if full.info.Name == "" {
		full.info.Name = full.tags["mlflow.runName"]
	}
	if full.info.Name == "" {
		full.info.Name = "run-" + full.info.ID[:8]
	}
	if len(full.info.Name) > maxTagValue {
		return nil, invalid("The run's name is longer than %d characters.", maxTagValue)
	}
	full.tags["mlflow.runName"] = full.info.Name
	err = c.update(ctx, func(t store.Txn) error {
		e, err := c.experiment(t, id)
		if err != nil {
			return err
		}
		if e.Stage != stageActive {
			return invalid("The experiment %s must be in the 'active' state. Current state is %s.", clip(id), e.Stage)
		}
		return c.putRun(t, full)
	})
	if err != nil {
		return nil, err
	}
	return map[string]any{"run": full.wire()}, nil
}

// putRun writes a new run.
func (b *book) putRun(t store.Txn, f *fullRun) error {
	t.Put(b.key("member", f.info.Experiment, f.info.ID), []byte{1})
	if err := b.put(t, b.key("run", f.info.ID, "info"), f.info); err != nil {
		return err
	}
	for k, v := range f.tags {
		if err := b.put(t, b.key("run", f.info.ID, "tag", digest(k)), pair{k, v}); err != nil {
			return err
		}
	}
	return nil
}

type runRef struct {
	ID   string `json:"run_id"`
	UUID string `json:"run_uuid"` // MLflow 1's name
}

func (r runRef) id() string {
	if r.ID == "" {
		return r.UUID
	}
	return r.ID
}

func (s *Service) getRun(ctx context.Context, c *call, in runRef) (any, error) {
	var f *fullRun
	err := c.view(ctx, func(r store.Reader) (err error) { f, err = c.load(r, in.id()); return err })
	if err != nil {
		return nil, err
	}
	return map[string]any{"run": f.wire()}, nil
}

type updateRun struct {
	runRef
	Status string   `json:"status"`
	End    flexible `json:"end_time"`
	Name   string   `json:"run_name"`
}

func (s *Service) updateRun(ctx context.Context, c *call, in updateRun) (any, error) {
	if in.Status != "" && !statuses[in.Status] {
		return nil, invalid("The status '%s' is not one of MLflow's.", clip(in.Status))
	}
	if len(in.Name) > maxTagValue {
		return nil, invalid("The run's name is longer than %d characters.", maxTagValue)
	}
	var out runInfo
	err := c.update(ctx, func(t store.Txn) error {
		i, err := c.activeRun(t, in.id())
		if err != nil {
			return err
		}
		if in.Status != "" && !i.Job {
			i.Status = in.Status
			if in.End != 0 {
				i.End = int64(in.End)
			}
		}
		if in.Name != "" {
			i.Name = in.Name
			if err := c.put(t, c.key("run", i.ID, "tag", digest("mlflow.runName")), pair{"mlflow.runName", in.Name}); err != nil {
				return err
			}
		}
		out = i
		return c.put(t, c.key("run", i.ID, "info"), i)
	})
	return map[string]any{"run_info": out.wire()}, err
}

func (s *Service) deleteRun(ctx context.Context, c *call, in runRef) (any, error) {
	return nil, c.stage(ctx, in.id(), stageDeleted)
}

func (s *Service) restoreRun(ctx context.Context, c *call, in runRef) (any, error) {
	return nil, c.stage(ctx, in.id(), stageActive)
}

func (c *call) stage(ctx context.Context, id, stage string) error {
	return c.update(ctx, func(t store.Txn) error {
		i, err := c.run(t, id)
		if err != nil {
			return err
		}
		i.Stage = stage
		return c.put(t, c.key("run", id, "info"), i)
	})
}

type searchRuns struct {
	Experiments []string `json:"experiment_ids"`
	Filter      string   `json:"filter"`
	View        string   `json:"run_view_type"`
	Max         flexible `json:"max_results"`
	Order       []string `json:"order_by"`
	Token       string   `json:"page_token"`
}

func (s *Service) searchRuns(ctx context.Context, c *call, in searchRuns) (any, error) {
	f, err := parseFilter(in.Filter, runSchema)
	if err != nil {
		return nil, err
	}
	order, err := parseOrder(append(slices.Clone(in.Order), "start_time DESC", "run_id"), runSchema)
	if err != nil {
		return nil, err
	}
	want, err := stageFilter(in.View)
	if err != nil {
		return nil, err
	}
	for i := range in.Experiments {
		if in.Experiments[i], err = c.aliased(ctx, in.Experiments[i]); err != nil {
			return nil, err
		}
	}
	slices.Sort(in.Experiments)
	var found []*fullRun
	err = c.view(ctx, func(r store.Reader) error {
		for _, e := range slices.Compact(in.Experiments) {
			if err := c.collect(r, e, func(run *fullRun) {
				if want(run.info.Stage) && f.holds(run.get) {
					found = append(found, run)
				}
			}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(found, func(a, b *fullRun) int { return compare(order, a.get, b.get) })
	page, next, err := paginate(found, in.Token, int(in.Max), 1000, 50000)
	if err != nil {
		return nil, err
	}
	out := make([]any, 0, len(page))
	for _, run := range page {
		out = append(out, run.wire())
	}
	return withToken(map[string]any{"runs": out}, next), nil
}

// collect loads the runs of an experiment.
func (b *book) collect(r store.Reader, id string, fn func(*fullRun)) error {
	prefix := b.prefix("member", id)
	for kv, err := range r.Scan(prefix, store.ScanOptions{KeysOnly: true}) {
		if err != nil {
			return err
		}
		parts, err := store.SplitKey(kv.Key)
		if err != nil {
			return err
		}
		run, err := b.load(r, parts[len(parts)-1])
		if err != nil {
			return err
		}
		fn(run)
	}
	return nil
}

// paginate cuts a page out of a sorted list. The token is the place of its first element.
func paginate[T any](all []T, token string, size, normal, most int) (page []T, next string, err error) {
	if size == 0 {
		size = normal
	}
	if size < 0 || size > most {
		return nil, "", invalid("max_results must be 1 to %d, not %d.", most, size)
	}
	from := 0
	if token != "" {
		b, err := base64.RawURLEncoding.DecodeString(token)
		if err == nil {
			from, err = strconv.Atoi(string(b))
		}
		if err != nil || from < 0 {
			return nil, "", invalid("The page_token is malformed.")
		}
	}
	from = min(from, len(all))
	to := min(from+size, len(all))
	if to < len(all) {
		next = base64.RawURLEncoding.EncodeToString([]byte(strconv.Itoa(to)))
	}
	return all[from:to], next, nil
}

func withToken(m map[string]any, token string) map[string]any {
	if token != "" {
		m["next_page_token"] = token
	}
	return m
}

func exists(format string, args ...any) *resource.Error {
	return resource.Errorf(400, "RESOURCE_ALREADY_EXISTS", format, args...)
}

// JobRun is a run that a job makes.
type JobRun struct {
	ID, Name, Experiment, User string
	Tags                       map[string]string
}

var runIDPattern = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_-]{0,254}$`)

// OpenJob makes the run of a job, once, in an experiment that is made when it is missing.
func (s *Service) OpenJob(ctx context.Context, ws resource.ID, job JobRun) error {
	if !runIDPattern.MatchString(job.ID) {
		return errors.New("opening run: malformed id")
	}
	b, err := s.book(ctx, ws)
	if err != nil {
		return err
	}
	return b.update(ctx, func(t store.Txn) error {
		if i, err := b.run(t, job.ID); err == nil {
			if !i.Job { // somebody's own run is no job's to take over
				return resource.Errorf(409, "JobNameTaken", "There is a run '%s' that is not a job's. Submit the job under another name.", job.ID)
			}
			return nil
		} else if resource.StatusOf(err) != 404 {
			return err
		}
		e, err := b.ensure(t, job.Experiment, s.now())
		if err != nil {
			return err
		}
		full := &fullRun{tags: map[string]string{"mlflow.runName": job.Name}, info: runInfo{ID: job.ID, Name: job.Name, Experiment: e.ID, User: job.User,
			Status: "SCHEDULED", Stage: stageActive, Start: s.now(), Job: true}}
		for k, v := range job.Tags {
			full.tags[k] = v
		}
		return b.putRun(t, full)
	})
}

// ChangeJob sets the status of a job's run. A run that is gone is none of the job's business any more.
func (s *Service) ChangeJob(ctx context.Context, ws resource.ID, id, status string, started, ended time.Time) error {
	if !statuses[status] {
		return errors.New("changing run: unknown status " + status)
	}
	b, err := s.book(ctx, ws)
	if err != nil {
		return err
	}
	return b.update(ctx, func(t store.Txn) error {
		i, err := b.run(t, id)
		if resource.StatusOf(err) == 404 {
			return nil
		}
		if err != nil {
			return err
		}
		i.Status, i.End = status, 0
		if !started.IsZero() {
			i.Start = started.UnixMilli()
		}
		if !ended.IsZero() {
			i.End = ended.UnixMilli()
		}
		return b.put(t, b.key("run", id, "info"), i)
	})
}
