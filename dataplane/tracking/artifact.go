package tracking

import (
	"context"
	"io"
	"net/http"
	"path"
	"strconv"
	"strings"

	"casemate.dev/resource"
	"casemate.dev/store"
)

// maxArtifact bounds one upload.
const maxArtifact = 16 << 30

// cleanPath refuses every path of an artifact that could mean something else to somebody else (THREATS R20). The gateway has
// decoded it once; what still looks encoded is refused.
func cleanPath(p string) (string, error) {
	refused := invalid("Invalid path: '%s'. Artifact paths are relative and hold no empty, '.' or '..' segments, backslashes, percent signs, semicolons or control characters.", clip(p))
	if p == "" {
		return "", nil
	}
	if len(p) > 1024 || strings.ContainsAny(p, "\\%;?#\u2024\u2025\uff0e\uff0f") {
		return "", refused
	}
	for _, r := range p {
		if r < 0x20 || r == 0x7f || r == 0xfffd {
			return "", refused
		}
	}
	for seg := range strings.SplitSeq(p, "/") {
		if strings.Trim(seg, ". ") == "" || len(seg) > 1 && seg[1] == ':' {
			return "", refused
		}
	}
	return p, nil
}

type listArtifacts struct {
	runRef
	Path string `json:"path"`
}

func (s *Service) listArtifacts(ctx context.Context, c *call, in listArtifacts) (any, error) {
	dir, err := cleanPath(in.Path)
	if err != nil {
		return nil, err
	}
	var info runInfo
	if err := c.view(ctx, func(r store.Reader) (err error) { info, err = c.run(r, in.id()); return err }); err != nil {
		return nil, err
	}
	found, err := s.cfg.Artifacts.ListArtifacts(ctx, c.r.Caller, c.id, info.ID, dir)
	if err != nil {
		return nil, err
	}
	return map[string]any{"root_uri": info.artifactURI(), "files": wireArtifacts(found, func(p string) string { return p })}, nil
}

func wireArtifacts(found []Artifact, show func(string) string) []any {
	files := make([]any, 0, len(found))
	for _, a := range found {
		f := map[string]any{"path": show(a.Path), "is_dir": a.Dir}
		if !a.Dir {
			f["file_size"] = a.Size
		}
		files = append(files, f)
	}
	return files
}

// proxied splits {experiment}/{run}/artifacts[/{path}] and finds the run: a path is never used unless its run exists here.
func (c *call) proxied(ctx context.Context, whole string) (runInfo, string, error) {
	if _, err := cleanPath(whole); err != nil {
		return runInfo{}, "", err
	}
	parts := strings.SplitN(whole, "/", 4)
	if len(parts) < 3 || parts[2] != "artifacts" {
		return runInfo{}, "", invalid("Invalid path: '%s'. Artifacts are at {experiment}/{run}/artifacts/{path}.", clip(whole))
	}
	var info runInfo
	if err := c.view(ctx, func(r store.Reader) (err error) { info, err = c.run(r, parts[1]); return err }); err != nil {
		return info, "", err
	}
	if info.Experiment != parts[0] {
		return info, "", absent("Run '%s' is not in experiment '%s'.", clip(parts[1]), clip(parts[0]))
	}
	return info, strings.Join(parts[3:], ""), nil
}

// listProxied is the listing of MLflow's artifact proxy: paths are relative to the directory asked for.
func (s *Service) listProxied(ctx context.Context, c *call, in listArtifacts) (any, error) {
	info, dir, err := c.proxied(ctx, strings.Trim(in.Path, "/"))
	if err != nil {
		return nil, err
	}
	found, err := s.cfg.Artifacts.ListArtifacts(ctx, c.r.Caller, c.id, info.ID, dir)
	if err != nil {
		return nil, err
	}
	return map[string]any{"files": wireArtifacts(found, path.Base)}, nil
}

// file opens the run and path of a request for one artifact.
func (s *Service) file(r *resource.Request) (*call, runInfo, string, error) {
	c, err := s.enter(r)
	if err != nil {
		return nil, runInfo{}, "", err
	}
	info, p, err := c.proxied(r.Context(), r.Vars["path"])
	if err == nil && p == "" {
		err = invalid("The path of an artifact is missing.")
	}
	r.Remember("run", info.ID)
	return c, info, p, err
}

func (s *Service) download(w http.ResponseWriter, r *resource.Request) error {
	c, info, p, err := s.file(r)
	if err != nil {
		return err
	}
	body, size, _, err := s.cfg.Artifacts.OpenArtifact(r.Context(), r.Caller, c.id, info.ID, p)
	if err != nil {
		return notFoundAs(err, p)
	}
	defer func() { _ = body.Close() }() // read to its end, or the copy's error is returned
	h := w.Header()
	// Never what the artifact claims to be: a page from a run must not run as a page of the platform.
	h.Set("Content-Type", "application/octet-stream")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Disposition", "attachment")
	h.Set("Content-Length", strconv.FormatInt(size, 10))
	_, err = io.Copy(w, body)
	return err
}

func (s *Service) upload(w http.ResponseWriter, r *resource.Request) error {
	c, info, p, err := s.file(r)
	if err != nil {
		return err
	}
	if info.Stage != stageActive {
		return invalid("The run %s must be in the 'active' state. Current state is %s.", info.ID, info.Stage)
	}
	if err := s.cfg.Artifacts.PutArtifact(r.Context(), r.Caller, c.id, info.ID, p, r.Body, r.ContentLength, "application/octet-stream"); err != nil {
		return err
	}
	return writeJSON(w, nil)
}

func (s *Service) remove(w http.ResponseWriter, r *resource.Request) error {
	c, info, p, err := s.file(r)
	if err != nil {
		return err
	}
	if err := s.cfg.Artifacts.DeleteArtifact(r.Context(), r.Caller, c.id, info.ID, p); err != nil {
		return notFoundAs(err, p)
	}
	return writeJSON(w, nil)
}

func notFoundAs(err error, p string) error {
	if resource.StatusOf(err) == http.StatusNotFound {
		return absent("No such artifact: '%s'", clip(p))
	}
	return err
}
