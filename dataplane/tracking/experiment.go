package tracking

import (
	"context"
	"maps"
	"slices"
	"strings"

	"casemate.dev/store"
)

// defaultID is the id that clients use before they have chosen an experiment; it stands for the one named Default.
const (
	defaultID   = "0"
	defaultName = "Default"
)

var experimentSchema = schema{
	attributes: map[string]bool{"name": false, "experiment_id": false, "lifecycle_stage": false, "creation_time": true, "last_update_time": true},
	entities:   map[entity]bool{tagEntity: true},
}

func (e experiment) get(kind entity, key string) value {
	if kind == tagEntity {
		v, ok := e.Tags[key]
		return value{text: v, ok: ok}
	}
	switch key {
	case "name":
		return value{text: e.Name, ok: true}
	case "experiment_id":
		return value{text: e.ID, ok: true}
	case "lifecycle_stage":
		return value{text: e.Stage, ok: true}
	case "creation_time":
		return value{number: float64(e.Created), numeric: true, ok: true}
	}
	return value{number: float64(e.Updated), numeric: true, ok: true}
}

func (e experiment) wire() map[string]any {
	return map[string]any{"experiment_id": e.ID, "name": e.Name, "artifact_location": e.Location, "lifecycle_stage": e.Stage,
		"creation_time": e.Created, "last_update_time": e.Updated, "tags": pairs(e.Tags)}
}

func pairs(m map[string]string) []pair {
	out := make([]pair, 0, len(m))
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out = append(out, pair{k, m[k]})
	}
	return out
}

type createExperiment struct {
	Name     string `json:"name"`
	Location string `json:"artifact_location"`
	Tags     []pair `json:"tags"`
}

func (s *Service) createExperiment(ctx context.Context, c *call, in createExperiment) (any, error) {
	if in.Location != "" && !strings.HasPrefix(in.Location, "mlflow-artifacts:/") {
		return nil, invalid("Artifacts of a workspace are in its own storage. Leave artifact_location out.")
	}
	e, err := c.newExperiment(in.Name, in.Tags, s.now())
	if err != nil {
		return nil, err
	}
	err = c.update(ctx, func(t store.Txn) error {
		if _, err := t.Get(c.key("name", digest(e.Name))); err == nil {
			return exists("Experiment '%s' already exists.", clip(e.Name))
		}
		return c.putExperiment(t, e)
	})
	if err != nil {
		return nil, err
	}
	return map[string]any{"experiment_id": e.ID}, nil
}

func (b *book) newExperiment(name string, tags []pair, now int64) (experiment, error) {
	if name == "" || len(name) > 500 || strings.TrimSpace(name) != name {
		return experiment{}, invalid("An experiment's name has 1 to 500 characters and no spaces around it.")
	}
	id := newExperimentID()
	e := experiment{ID: id, Name: name, Location: "mlflow-artifacts:/" + id, Stage: stageActive, Created: now, Updated: now, Tags: map[string]string{}}
	return e, setTags(e.Tags, tags)
}

func (b *book) putExperiment(t store.Txn, e experiment) error {
	t.Put(b.key("name", digest(e.Name)), []byte(e.ID))
	return b.put(t, b.key("experiment", e.ID), e)
}

// experimentByName finds an experiment; ok is false when there is none.
func (b *book) experimentByName(r store.Reader, name string) (e experiment, ok bool, err error) {
	kv, err := r.Get(b.key("name", digest(name)))
	if err != nil {
		return e, false, nil //nolint:nilerr // absent
	}
	ok, err = b.get(r, b.key("experiment", string(kv.Value)), &e)
	return e, ok, err
}

// ensure finds an experiment by name or makes it.
func (b *book) ensure(t store.Txn, name string, now int64) (experiment, error) {
	e, ok, err := b.experimentByName(t, name)
	if err != nil || ok {
		return e, err
	}
	if e, err = b.newExperiment(name, nil, now); err != nil {
		return e, err
	}
	return e, b.putExperiment(t, e)
}

// aliased turns the default id into the real one; it makes the default experiment when it is first spoken of.
func (c *call) aliased(ctx context.Context, id string) (string, error) {
	if id != defaultID {
		return id, nil
	}
	err := c.update(ctx, func(t store.Txn) error {
		e, err := c.ensure(t, defaultName, c.s.now())
		id = e.ID
		return err
	})
	return id, err
}

type experimentRef struct {
	ID   string `json:"experiment_id"`
	Name string `json:"experiment_name"`
}

func (s *Service) getExperiment(ctx context.Context, c *call, in experimentRef) (any, error) {
	id, err := c.aliased(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	var e experiment
	err = c.view(ctx, func(r store.Reader) (err error) { e, err = c.experiment(r, id); return err })
	return map[string]any{"experiment": e.wire()}, err
}

func (s *Service) getExperimentByName(ctx context.Context, c *call, in experimentRef) (any, error) {
	var e experiment
	err := c.view(ctx, func(r store.Reader) error {
		var ok bool
		var err error
		if e, ok, err = c.experimentByName(r, in.Name); err == nil && !ok {
			err = absent("Could not find experiment with name '%s'", clip(in.Name))
		}
		return err
	})
	return map[string]any{"experiment": e.wire()}, err
}

type searchExperiments struct {
	Max    flexible `json:"max_results"`
	Token  string   `json:"page_token"`
	Filter string   `json:"filter"`
	Order  []string `json:"order_by"`
	View   string   `json:"view_type"`
}

func (s *Service) searchExperiments(ctx context.Context, c *call, in searchExperiments) (any, error) {
	f, err := parseFilter(in.Filter, experimentSchema)
	if err != nil {
		return nil, err
	}
	if len(in.Order) == 0 {
		in.Order = []string{"creation_time DESC", "experiment_id"}
	}
	order, err := parseOrder(append(in.Order, "experiment_id"), experimentSchema)
	if err != nil {
		return nil, err
	}
	want, err := stageFilter(in.View)
	if err != nil {
		return nil, err
	}
	var found []experiment
	err = c.view(ctx, func(r store.Reader) error {
		for kv, err := range r.Scan(c.prefix("experiment"), store.ScanOptions{}) {
			if err != nil {
				return err
			}
			var e experiment
			if err := c.open(kv, &e); err != nil {
				return err
			}
			if want(e.Stage) && f.holds(e.get) {
				found = append(found, e)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(found, func(a, b experiment) int { return compare(order, a.get, b.get) })
	page, next, err := paginate(found, in.Token, int(in.Max), 1000, 50000)
	if err != nil {
		return nil, err
	}
	out := make([]any, 0, len(page))
	for _, e := range page {
		out = append(out, e.wire())
	}
	return withToken(map[string]any{"experiments": out}, next), nil
}

// stageFilter is MLflow's ViewType.
func stageFilter(view string) (func(stage string) bool, error) {
	switch strings.ToUpper(view) {
	case "", "ACTIVE_ONLY", "1":
		return func(s string) bool { return s == stageActive }, nil
	case "DELETED_ONLY", "2":
		return func(s string) bool { return s == stageDeleted }, nil
	case "ALL", "3":
		return func(string) bool { return true }, nil
	}
	return nil, invalid("The view type '%s' is not ACTIVE_ONLY, DELETED_ONLY or ALL.", clip(view))
}

type updateExperiment struct {
	ID   string `json:"experiment_id"`
	Name string `json:"new_name"`
}

func (s *Service) updateExperiment(ctx context.Context, c *call, in updateExperiment) (any, error) {
	return nil, c.changeExperiment(ctx, in.ID, func(t store.Txn, e *experiment) error {
		fresh, err := c.newExperiment(in.Name, nil, 0)
		if err != nil {
			return err
		}
		if fresh.Name == e.Name {
			return nil
		}
		if _, taken, err := c.experimentByName(t, fresh.Name); err != nil || taken {
			if err == nil {
				err = exists("Experiment '%s' already exists.", clip(fresh.Name))
			}
			return err
		}
		t.Delete(c.key("name", digest(e.Name)))
		e.Name = fresh.Name
		return nil
	})
}

func (c *call) changeExperiment(ctx context.Context, id string, fn func(store.Txn, *experiment) error) error {
	return c.update(ctx, func(t store.Txn) error {
		e, err := c.experiment(t, id)
		if err != nil {
			return err
		}
		if err := fn(t, &e); err != nil {
			return err
		}
		e.Updated = c.s.now()
		return c.putExperiment(t, e)
	})
}

func (s *Service) deleteExperiment(ctx context.Context, c *call, in experimentRef) (any, error) {
	return nil, c.changeExperiment(ctx, in.ID, func(_ store.Txn, e *experiment) error { e.Stage = stageDeleted; return nil })
}

func (s *Service) restoreExperiment(ctx context.Context, c *call, in experimentRef) (any, error) {
	return nil, c.changeExperiment(ctx, in.ID, func(_ store.Txn, e *experiment) error { e.Stage = stageActive; return nil })
}

type experimentTag struct {
	ID string `json:"experiment_id"`
	pair
}

func (s *Service) setExperimentTag(ctx context.Context, c *call, in experimentTag) (any, error) {
	return nil, c.changeExperiment(ctx, in.ID, func(_ store.Txn, e *experiment) error {
		if e.Tags == nil {
			e.Tags = map[string]string{}
		}
		return setTags(e.Tags, []pair{in.pair})
	})
}
