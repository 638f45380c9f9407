package tracking

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"slices"

	"casemate.dev/store"
)

// MLflow's limits of one batch.
const (
	maxBatch       = 1000
	maxBatchParams = 100
	maxBatchTags   = 100
)

type logBatch struct {
	runRef
	Metrics []metric `json:"metrics"`
	Params  []pair   `json:"params"`
	Tags    []pair   `json:"tags"`
}

func (s *Service) logBatch(ctx context.Context, c *call, in logBatch) (any, error) {
	switch {
	case len(in.Metrics) > maxBatch || len(in.Metrics)+len(in.Params)+len(in.Tags) > maxBatch:
		return nil, invalid("A batch logging request can contain at most %d metrics, params and tags.", maxBatch)
	case len(in.Params) > maxBatchParams || len(in.Tags) > maxBatchTags:
		return nil, invalid("A batch logging request can contain at most %d params and %d tags.", maxBatchParams, maxBatchTags)
	}
	return nil, c.log(ctx, in.id(), in.Metrics, in.Params, in.Tags)
}

type logMetric struct {
	runRef
	metric
}

func (s *Service) logMetric(ctx context.Context, c *call, in logMetric) (any, error) {
	return nil, c.log(ctx, in.id(), []metric{in.metric}, nil, nil)
}

type logPair struct {
	runRef
	pair
}

func (s *Service) logParam(ctx context.Context, c *call, in logPair) (any, error) {
	return nil, c.log(ctx, in.id(), nil, []pair{in.pair}, nil)
}

func (s *Service) setTag(ctx context.Context, c *call, in logPair) (any, error) {
	return nil, c.log(ctx, in.id(), nil, nil, []pair{in.pair})
}

func (s *Service) deleteTag(ctx context.Context, c *call, in logPair) (any, error) {
	return nil, c.update(ctx, func(t store.Txn) error {
		if _, err := c.activeRun(t, in.id()); err != nil {
			return err
		}
		key := c.key("run", in.id(), "tag", digest(in.Key))
		if _, err := t.Get(key); err != nil {
			return absent("No tag with name: %s in run with id %s", clip(in.Key), clip(in.id()))
		}
		t.Delete(key)
		return nil
	})
}

// log writes metrics, parameters and tags of a run, all or none.
func (c *call) log(ctx context.Context, run string, metrics []metric, params, tags []pair) error {
	for _, m := range metrics {
		if err := checkKey("metric", m.Key); err != nil {
			return err
		}
	}
	for _, p := range params {
		if err := checkKey("parameter", p.Key); err != nil {
			return err
		}
		if len(p.Value) > maxParamValue {
			return invalid("The value of parameter '%s' is longer than %d characters.", clip(p.Key), maxParamValue)
		}
	}
	if err := setTags(map[string]string{}, tags); err != nil {
		return err
	}
	groups := map[string][]point{}
	for _, m := range metrics {
		groups[m.Key] = append(groups[m.Key], m.point)
	}
	chunk := c.newChunk()
	return c.update(ctx, func(t store.Txn) error {
		if _, err := c.activeRun(t, run); err != nil {
			return err
		}
		for key, points := range groups {
			if err := c.addPoints(t, run, key, chunk, points); err != nil {
				return err
			}
		}
		for _, p := range params {
			if err := c.addParam(t, run, p); err != nil {
				return err
			}
		}
		for _, p := range tags {
			if err := c.put(t, c.key("run", run, "tag", digest(p.Key)), p); err != nil {
				return err
			}
		}
		return nil
	})
}

// newChunk names the points of one request: by time, so that history is read in about the order of writing.
func (c *call) newChunk() string {
	b := make([]byte, 6)
	_, _ = rand.Read(b) // never fails (crypto/rand)
	return fmt.Sprintf("%016x%s", c.s.cfg.Clock().UnixNano(), hex.EncodeToString(b))
}

func (c *call) addPoints(t store.Txn, run, key, chunk string, points []point) error {
	d := digest(key)
	if err := c.put(t, c.key("metric", run, d, chunk), points); err != nil {
		return err
	}
	newest := metric{Key: key}
	had, err := c.get(t, c.key("run", run, "latest", d), &newest)
	if err != nil {
		return err
	}
	changed := false
	for _, p := range points {
		if !had || p.later(newest.point) {
			newest.point, had, changed = p, true, true
		}
	}
	if !changed {
		return nil
	}
	return c.put(t, c.key("run", run, "latest", d), newest)
}

// addParam writes a parameter once: the same value again is no change, another one is refused.
func (c *call) addParam(t store.Txn, run string, p pair) error {
	key := c.key("run", run, "param", digest(p.Key))
	var have pair
	had, err := c.get(t, key, &have)
	if err != nil {
		return err
	}
	if had {
		if have.Value == p.Value {
			return nil
		}
		return invalid("Changing param values is not allowed. Param with key='%s' was already logged with value='%s' for run ID='%s'. Attempted logging new value '%s'.",
			clip(p.Key), clip(have.Value), clip(run), clip(p.Value))
	}
	return c.put(t, key, p)
}

type historyRequest struct {
	runRef
	Key   string   `json:"metric_key"`
	Max   flexible `json:"max_results"`
	Token string   `json:"page_token"`
}

// getHistory returns a metric's points in order of step, time and value; a point that was sent twice, as a retry does, is one.
func (s *Service) getHistory(ctx context.Context, c *call, in historyRequest) (any, error) {
	var points []point
	err := c.view(ctx, func(r store.Reader) error {
		if _, err := c.run(r, in.id()); err != nil {
			return err
		}
		for kv, err := range r.Scan(c.prefix("metric", in.id(), digest(in.Key)), store.ScanOptions{}) {
			if err != nil {
				return err
			}
			var some []point
			if err := c.open(kv, &some); err != nil {
				return err
			}
			points = append(points, some...)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(points, func(a, b point) int {
		return cmp.Or(cmp.Compare(a.Step, b.Step), cmp.Compare(a.Time, b.Time), cmp.Compare(a.Value, b.Value))
	})
	points = slices.CompactFunc(points, func(a, b point) bool {
		return a.Step == b.Step && a.Time == b.Time && cmp.Compare(a.Value, b.Value) == 0
	})
	page, next, err := paginate(points, in.Token, int(in.Max), len(points)+1, len(points)+1_000_000)
	if err != nil {
		return nil, err
	}
	out := make([]metric, 0, len(page))
	for _, p := range page {
		out = append(out, metric{in.Key, p})
	}
	return withToken(map[string]any{"metrics": out}, next), nil
}
