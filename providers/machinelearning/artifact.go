package machinelearning

import (
	"context"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"casemate.dev/dataplane/tracking"
	"casemate.dev/resource"
)

const maxListing = 100_000

// artifact finds a run's artifact and the caller to reach it as: the workspace's identity, for the person.
func (p *Provider) artifact(ctx context.Context, c resource.Caller, id resource.ID, run, path string) (resource.Caller, place, error) {
	ws, err := p.workspaceOf(ctx, id)
	if err != nil {
		return resource.Caller{}, place{}, err
	}
	as, err := p.acting(ctx, ws, c.Person())
	if err != nil {
		return as, place{}, err
	}
	as.Node, as.Run = c.Node, c.Run
	return as, place{ws.storage, artifactContainer, artifactPrefix(run) + path}, nil
}

// ListArtifacts implements tracking.Artifacts.
func (p *Provider) ListArtifacts(ctx context.Context, c resource.Caller, ws resource.ID, run, dir string) ([]tracking.Artifact, error) {
	if dir != "" && !strings.HasSuffix(dir, "/") {
		dir += "/"
	}
	as, pl, err := p.artifact(ctx, c, ws, run, dir)
	if err != nil {
		return nil, err
	}
	var out []tracking.Artifact
	n := 0
	for item, err := range p.cfg.Blobs.ListBlobs(ctx, as, pl.account, pl.container, pl.path) {
		if err != nil {
			return nil, err
		}
		if n++; n > maxListing {
			return nil, resource.Errorf(http.StatusBadRequest, "INVALID_PARAMETER_VALUE", "The directory holds more than %d artifacts.", maxListing)
		}
		name, _, below := strings.Cut(strings.TrimPrefix(item.Name, pl.path), "/")
		switch {
		case name == "":
		case !below:
			out = append(out, tracking.Artifact{Path: dir + name, Size: item.Size})
		case len(out) == 0 || out[len(out)-1].Path != dir+name:
			out = append(out, tracking.Artifact{Path: dir + name, Dir: true})
		}
	}
	slices.SortFunc(out, func(a, b tracking.Artifact) int { return strings.Compare(a.Path, b.Path) })
	return out, nil
}

// OpenArtifact implements tracking.Artifacts.
func (p *Provider) OpenArtifact(ctx context.Context, c resource.Caller, ws resource.ID, run, path string) (io.ReadCloser, int64, string, error) {
	as, pl, err := p.artifact(ctx, c, ws, run, path)
	if err != nil {
		return nil, 0, "", err
	}
	body, info, err := p.cfg.Blobs.GetBlob(ctx, as, pl.account, pl.container, pl.path, 0)
	return body, info.Size, info.ContentType, err
}

// PutArtifact implements tracking.Artifacts.
func (p *Provider) PutArtifact(ctx context.Context, c resource.Caller, ws resource.ID, run, path string, body io.Reader, size int64, contentType string) error {
	as, pl, err := p.artifact(ctx, c, ws, run, path)
	if err != nil {
		return err
	}
	return p.cfg.Blobs.PutBlob(ctx, as, pl.account, pl.container, pl.path, body, size, contentType)
}

// DeleteArtifact implements tracking.Artifacts.
func (p *Provider) DeleteArtifact(ctx context.Context, c resource.Caller, ws resource.ID, run, path string) error {
	as, pl, err := p.artifact(ctx, c, ws, run, path)
	if err != nil {
		return err
	}
	return p.cfg.Blobs.DeleteBlob(ctx, as, pl.account, pl.container, pl.path)
}

const (
	modelType        = workspaceType + "/models"
	modelVersionType = modelType + "/versions"
)

func tagsOf(d *resource.Document) map[string]string {
	out := map[string]string{}
	m, _ := d.Get("properties.tags").(map[string]any)
	for k, v := range m {
		out[k], _ = v.(string)
	}
	return out
}

func wireTags(tags map[string]string) map[string]any {
	out := map[string]any{}
	for k, v := range tags {
		out[k] = v
	}
	return out
}

// CreateModel implements tracking.Models.
func (p *Provider) CreateModel(ctx context.Context, c resource.Caller, ws resource.ID, m tracking.Model) error {
	id, err := p.modelID(ws, m.Name)
	if err != nil {
		return err
	}
	if _, err := p.cfg.Resources.Get(ctx, id); err == nil {
		return resource.Errorf(http.StatusConflict, "RESOURCE_ALREADY_EXISTS", "The model '%s' exists.", m.Name)
	}
	_, err = p.cfg.Resources.Put(ctx, c, id, map[string]any{"properties": map[string]any{"description": m.Description, "tags": wireTags(m.Tags)}})
	return err
}

func (p *Provider) modelID(ws resource.ID, name string) (resource.ID, error) {
	id, err := ws.Child("models", name)
	if err != nil || !assetName.MatchString(name) {
		return id, resource.Errorf(http.StatusBadRequest, "INVALID_PARAMETER_VALUE",
			"'%s' is not the name of a model: use letters, digits, dots, underscores and hyphens.", clip(name))
	}
	return id, nil
}

// ListModels implements tracking.Models.
func (p *Provider) ListModels(ctx context.Context, ws resource.ID) ([]tracking.Model, error) {
	docs, err := p.cfg.Resources.List(ctx, modelType, ws)
	if err != nil {
		return nil, err
	}
	var out []tracking.Model
	for _, d := range docs {
		out = append(out, tracking.Model{Name: d.ID.Name(), Description: d.String("properties.description"), Tags: tagsOf(d),
			Created: d.System.CreatedAt, Updated: d.System.LastModifiedAt})
	}
	return out, nil
}

// CreateModelVersion implements tracking.Models: it takes the next free number. The content is pinned as for any registration.
func (p *Provider) CreateModelVersion(ctx context.Context, c resource.Caller, ws resource.ID, v tracking.ModelVersion) (tracking.ModelVersion, error) {
	model, err := p.modelID(ws, v.Name)
	if err != nil {
		return v, err
	}
	id, release, err := p.reserveVersion(ctx, model)
	if err != nil {
		return v, err
	}
	defer release()
	d, err := p.cfg.Resources.Put(ctx, c, id, map[string]any{"properties": map[string]any{
		"modelUri": v.Source, "jobName": v.Run, "description": v.Description, "tags": wireTags(v.Tags),
	}})
	if err != nil {
		return v, err
	}
	return viewModelVersion(d), nil
}

// reserveVersion picks a number that neither a version nor another registration under way has.
func (p *Provider) reserveVersion(ctx context.Context, model resource.ID) (resource.ID, func(), error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	docs, err := p.cfg.Resources.List(ctx, modelVersionType, model)
	if err != nil {
		return resource.ID{}, nil, err
	}
	next := 1
	for _, d := range docs {
		if n, err := strconv.Atoi(d.ID.Name()); err == nil {
			next = max(next, n+1)
		}
	}
	for {
		id, err := model.Child("versions", strconv.Itoa(next))
		if err != nil {
			return id, nil, err
		}
		if !p.reserved[id.Key()] {
			p.reserved[id.Key()] = true
			return id, func() {
				p.mu.Lock()
				defer p.mu.Unlock()
				delete(p.reserved, id.Key())
			}, nil
		}
		next++
	}
}

func viewModelVersion(d *resource.Document) tracking.ModelVersion {
	return tracking.ModelVersion{
		Name: d.ID.Parent().Name(), Version: d.ID.Name(), Source: d.String("properties.modelUri"), Run: d.String("properties.jobName"),
		Description: d.String("properties.description"), Stage: d.String("properties.stage"), Tags: tagsOf(d), User: d.System.CreatedBy,
		Created: d.System.CreatedAt, Updated: d.System.LastModifiedAt,
	}
}

// ListModelVersions implements tracking.Models.
func (p *Provider) ListModelVersions(ctx context.Context, ws resource.ID, name string) ([]tracking.ModelVersion, error) {
	below := ws
	if name != "" {
		var err error
		if below, err = p.modelID(ws, name); err != nil {
			return nil, err
		}
	}
	docs, err := p.cfg.Resources.List(ctx, modelVersionType, below)
	if err != nil {
		return nil, err
	}
	var out []tracking.ModelVersion
	for _, d := range docs {
		out = append(out, viewModelVersion(d))
	}
	return out, nil
}

// SetModelStage implements tracking.Models.
func (p *Provider) SetModelStage(ctx context.Context, _ resource.Caller, ws resource.ID, name, version, stage string) error {
	model, err := p.modelID(ws, name)
	if err != nil {
		return err
	}
	id, err := model.Child("versions", version)
	if err != nil {
		return err
	}
	_, err = p.cfg.Resources.Update(ctx, id, func(d *resource.Document) error { d.Set("properties.stage", stage); return nil })
	return err
}
