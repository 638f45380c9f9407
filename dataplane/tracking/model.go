package tracking

import (
	"cmp"
	"context"
	"slices"
	"strconv"
	"strings"
	"time"

	"casemate.dev/resource"
)

// Model is a registered model.
type Model struct {
	Name, Description string
	Tags              map[string]string
	Created, Updated  time.Time
}

// ModelVersion is one version of a registered model.
type ModelVersion struct {
	Name, Version    string
	Source           string
	Run              string
	Description      string
	Stage            string
	Tags             map[string]string
	User             string
	Created, Updated time.Time
}

// Models is the workspace's registry: its model assets.
type Models interface {
	CreateModel(ctx context.Context, c resource.Caller, ws resource.ID, m Model) error // *resource.Error 409 when it exists
	ListModels(ctx context.Context, ws resource.ID) ([]Model, error)
	// CreateModelVersion registers the next version of a model that exists, and returns it.
	CreateModelVersion(ctx context.Context, c resource.Caller, ws resource.ID, v ModelVersion) (ModelVersion, error)
	// ListModelVersions lists the versions of one model, or of all for "".
	ListModelVersions(ctx context.Context, ws resource.ID, name string) ([]ModelVersion, error)
	SetModelStage(ctx context.Context, c resource.Caller, ws resource.ID, name, version, stage string) error
}

var (
	modelSchema   = schema{attributes: map[string]bool{"name": false, "creation_timestamp": true, "last_updated_timestamp": true}, aliases: map[string]string{"timestamp": "last_updated_timestamp"}, entities: map[entity]bool{tagEntity: true}}
	versionSchema = schema{attributes: map[string]bool{"name": false, "run_id": false, "source_path": false, "version_number": true, "creation_timestamp": true, "last_updated_timestamp": true},
		aliases: map[string]string{"source": "source_path", "version": "version_number"}, entities: map[entity]bool{tagEntity: true}}
)

func (m Model) get(e entity, key string) value {
	if e == tagEntity {
		v, ok := m.Tags[key]
		return value{text: v, ok: ok}
	}
	return stamped(key, m.Name, m.Created, m.Updated)
}

func stamped(key, name string, created, updated time.Time) value {
	switch key {
	case "name":
		return value{text: name, ok: true}
	case "creation_timestamp":
		return value{number: float64(created.UnixMilli()), numeric: true, ok: true}
	}
	return value{number: float64(updated.UnixMilli()), numeric: true, ok: true}
}

func (v ModelVersion) get(e entity, key string) value {
	if e == tagEntity {
		t, ok := v.Tags[key]
		return value{text: t, ok: ok}
	}
	switch key {
	case "run_id":
		return value{text: v.Run, ok: v.Run != ""}
	case "source_path":
		return value{text: v.Source, ok: true}
	case "version_number":
		n, err := strconv.Atoi(v.Version)
		return value{number: float64(n), numeric: true, ok: err == nil}
	}
	return stamped(key, v.Name, v.Created, v.Updated)
}

func (v ModelVersion) wire() map[string]any {
	stage := v.Stage
	if stage == "" {
		stage = "None"
	}
	return map[string]any{"name": v.Name, "version": v.Version, "creation_timestamp": v.Created.UnixMilli(), "last_updated_timestamp": v.Updated.UnixMilli(),
		"user_id": v.User, "current_stage": stage, "description": v.Description, "source": v.Source, "run_id": v.Run, "status": "READY", "tags": pairs(v.Tags)}
}

// wireModel is a model with the newest version of each stage.
func wireModel(m Model, versions []ModelVersion) map[string]any {
	latest := []any{}
	for _, v := range newestByStage(versions) {
		latest = append(latest, v.wire())
	}
	return map[string]any{"name": m.Name, "creation_timestamp": m.Created.UnixMilli(), "last_updated_timestamp": m.Updated.UnixMilli(),
		"description": m.Description, "tags": pairs(m.Tags), "latest_versions": latest}
}

func newestByStage(versions []ModelVersion) []ModelVersion {
	best := map[string]ModelVersion{}
	for _, v := range versions {
		if have, ok := best[v.Stage]; !ok || versionNumber(v) > versionNumber(have) {
			best[v.Stage] = v
		}
	}
	var out []ModelVersion
	for _, v := range best {
		out = append(out, v)
	}
	slices.SortFunc(out, func(a, b ModelVersion) int { return cmp.Compare(a.Stage, b.Stage) })
	return out
}

func versionNumber(v ModelVersion) int {
	n, _ := strconv.Atoi(v.Version) // versions that are no numbers come before all
	return n
}

type createModel struct {
	Name        string `json:"name"`
	Description string `json:"description"`
	Tags        []pair `json:"tags"`
}

func (s *Service) createModel(ctx context.Context, c *call, in createModel) (any, error) {
	m := Model{Name: in.Name, Description: in.Description, Tags: map[string]string{}}
	if err := setTags(m.Tags, in.Tags); err != nil {
		return nil, err
	}
	if err := s.cfg.Models.CreateModel(ctx, c.r.Caller, c.id, m); err != nil {
		if resource.StatusOf(err) == 409 {
			return nil, exists("Registered Model (name=%s) already exists.", clip(in.Name))
		}
		return nil, err
	}
	return s.getModel(ctx, c, modelRef{Name: in.Name})
}

type modelRef struct {
	Name    string   `json:"name"`
	Version string   `json:"version"`
	Stages  []string `json:"stages"`
}

func (s *Service) getModel(ctx context.Context, c *call, in modelRef) (any, error) {
	models, err := s.cfg.Models.ListModels(ctx, c.id)
	if err != nil {
		return nil, err
	}
	for _, m := range models {
		if strings.EqualFold(m.Name, in.Name) {
			versions, err := s.cfg.Models.ListModelVersions(ctx, c.id, m.Name)
			return map[string]any{"registered_model": wireModel(m, versions)}, err
		}
	}
	return nil, absent("Registered Model with name=%s not found", clip(in.Name))
}

type searchModels struct {
	Filter string   `json:"filter"`
	Max    flexible `json:"max_results"`
	Order  []string `json:"order_by"`
	Token  string   `json:"page_token"`
}

func (s *Service) searchModels(ctx context.Context, c *call, in searchModels) (any, error) {
	models, err := s.cfg.Models.ListModels(ctx, c.id)
	if err != nil {
		return nil, err
	}
	page, next, err := selectPage(models, in, modelSchema, 100, Model.get)
	if err != nil {
		return nil, err
	}
	out := make([]any, 0, len(page))
	for _, m := range page {
		versions, err := s.cfg.Models.ListModelVersions(ctx, c.id, m.Name)
		if err != nil {
			return nil, err
		}
		out = append(out, wireModel(m, versions))
	}
	return withToken(map[string]any{"registered_models": out}, next), nil
}

func (s *Service) searchVersions(ctx context.Context, c *call, in searchModels) (any, error) {
	versions, err := s.cfg.Models.ListModelVersions(ctx, c.id, "")
	if err != nil {
		return nil, err
	}
	page, next, err := selectPage(versions, in, versionSchema, 10000, ModelVersion.get)
	if err != nil {
		return nil, err
	}
	out := make([]any, 0, len(page))
	for _, v := range page {
		out = append(out, v.wire())
	}
	return withToken(map[string]any{"model_versions": out}, next), nil
}

// selectPage filters, orders and cuts a list.
func selectPage[T any](all []T, in searchModels, sch schema, normal int, get func(T, entity, string) value) ([]T, string, error) {
	f, err := parseFilter(in.Filter, sch)
	if err != nil {
		return nil, "", err
	}
	order, err := parseOrder(append(slices.Clone(in.Order), "name"), sch)
	if err != nil {
		return nil, "", err
	}
	look := func(v T) lookup { return func(e entity, key string) value { return get(v, e, key) } }
	var found []T
	for _, v := range all {
		if f.holds(look(v)) {
			found = append(found, v)
		}
	}
	slices.SortStableFunc(found, func(a, b T) int { return compare(order, look(a), look(b)) })
	return paginate(found, in.Token, int(in.Max), normal, 200_000)
}

type createVersion struct {
	Name        string `json:"name"`
	Source      string `json:"source"`
	Run         string `json:"run_id"`
	Description string `json:"description"`
	Tags        []pair `json:"tags"`
}

func (s *Service) createVersion(ctx context.Context, c *call, in createVersion) (any, error) {
	if _, err := s.getModel(ctx, c, modelRef{Name: in.Name}); err != nil {
		return nil, err
	}
	v := ModelVersion{Name: in.Name, Source: in.Source, Run: in.Run, Description: in.Description, Tags: map[string]string{}}
	if err := setTags(v.Tags, in.Tags); err != nil {
		return nil, err
	}
	made, err := s.cfg.Models.CreateModelVersion(ctx, c.r.Caller, c.id, v)
	if err != nil {
		return nil, err
	}
	c.r.Remember("model", made.Name+":"+made.Version)
	return map[string]any{"model_version": made.wire()}, nil
}

func (c *call) version(ctx context.Context, name, version string) (ModelVersion, error) {
	versions, err := c.s.cfg.Models.ListModelVersions(ctx, c.id, name)
	if err != nil {
		return ModelVersion{}, err
	}
	for _, v := range versions {
		if v.Version == version {
			return v, nil
		}
	}
	return ModelVersion{}, absent("Model Version (name=%s, version=%s) not found", clip(name), clip(version))
}

func (s *Service) getVersion(ctx context.Context, c *call, in modelRef) (any, error) {
	v, err := c.version(ctx, in.Name, in.Version)
	if err != nil {
		return nil, err
	}
	return map[string]any{"model_version": v.wire()}, nil
}

func (s *Service) getDownloadURI(ctx context.Context, c *call, in modelRef) (any, error) {
	v, err := c.version(ctx, in.Name, in.Version)
	return map[string]any{"artifact_uri": v.Source}, err
}

func (s *Service) latestVersions(ctx context.Context, c *call, in modelRef) (any, error) {
	versions, err := s.cfg.Models.ListModelVersions(ctx, c.id, in.Name)
	if err != nil {
		return nil, err
	}
	out := []any{}
	for _, v := range newestByStage(versions) {
		w := v.wire()
		if len(in.Stages) == 0 || slices.ContainsFunc(in.Stages, func(s string) bool { return strings.EqualFold(s, w["current_stage"].(string)) }) {
			out = append(out, w)
		}
	}
	return map[string]any{"model_versions": out}, nil
}

type transition struct {
	modelRef
	Stage   string `json:"stage"`
	Archive bool   `json:"archive_existing_versions"`
}

// stages are MLflow's.
var stages = map[string]string{"none": "None", "staging": "Staging", "production": "Production", "archived": "Archived"}

func (s *Service) transitionStage(ctx context.Context, c *call, in transition) (any, error) {
	stage, ok := stages[strings.ToLower(in.Stage)]
	if !ok {
		return nil, invalid("The stage '%s' is not None, Staging, Production or Archived.", clip(in.Stage))
	}
	if _, err := c.version(ctx, in.Name, in.Version); err != nil {
		return nil, err
	}
	if in.Archive {
		versions, err := s.cfg.Models.ListModelVersions(ctx, c.id, in.Name)
		if err != nil {
			return nil, err
		}
		for _, v := range versions {
			if v.Stage == stage && v.Version != in.Version {
				if err := s.cfg.Models.SetModelStage(ctx, c.r.Caller, c.id, v.Name, v.Version, "Archived"); err != nil {
					return nil, err
				}
			}
		}
	}
	if err := s.cfg.Models.SetModelStage(ctx, c.r.Caller, c.id, in.Name, in.Version, stage); err != nil {
		return nil, err
	}
	return s.getVersion(ctx, c, in.modelRef)
}
