package tracking

import (
	"net/http"
	"time"

	"casemate.dev/resource"
	"casemate.dev/store"
)

// Actions of the operations list (rbac/ml_operations of the provider): all of this plane's are control-plane actions.
const (
	provider       = "Microsoft.MachineLearningServices/workspaces/"
	readExperiment = provider + "experiments/read"
	editExperiment = provider + "experiments/write"
	dropExperiment = provider + "experiments/delete"
	readRun        = provider + "experiments/runs/read"
	editRun        = provider + "experiments/runs/write"
	dropRun        = provider + "experiments/runs/delete"
	readArtifact   = provider + "metadata/artifacts/read"
	editArtifact   = provider + "metadata/artifacts/write"
	dropArtifact   = provider + "metadata/artifacts/delete"
	readModel      = provider + "models/read"
	editModel      = provider + "models/write"
	readVersion    = provider + "models/versions/read"
	editVersion    = provider + "models/versions/write"
)

const (
	workspacePath = "/subscriptions/{subscription}/{groups}/{group}/{providers}/{namespace}/{workspaces}/{workspace}"
	mlflowBase    = "/mlflow/{protocol}" + workspacePath + "/api/2.0/"
	jsonLimit     = 4 << 20
	quick         = time.Minute
	slow          = time.Hour
)

// row is one JSON operation of MLflow's protocol.
type row struct {
	name, method, path, action string
	handler                    resource.Handler
}

// Routes are the rows of the workspace plane.
func (s *Service) Routes() []resource.Route {
	var out []resource.Route
	for _, r := range s.table() {
		audit, body := resource.AuditWrite, int64(jsonLimit)
		switch r.action {
		case readExperiment, readRun, readArtifact, readModel, readVersion:
			audit = resource.AuditRead
		}
		if r.method == http.MethodGet {
			body = -1
		}
		out = append(out, s.route(r, mlflowBase+"mlflow/"+r.path, audit, body, quick))
	}
	const artifacts = mlflowBase + "mlflow-artifacts/artifacts"
	return append(out,
		s.route(row{"MlflowArtifacts_List", http.MethodGet, "", readArtifact, jsonHandler(s, s.listProxied)}, artifacts, resource.AuditRead, -1, quick),
		s.route(row{"MlflowArtifacts_Download", http.MethodGet, "", readArtifact, s.download}, artifacts+"/{path...}", resource.AuditData, -1, slow),
		s.route(row{"MlflowArtifacts_Upload", http.MethodPut, "", editArtifact, s.upload}, artifacts+"/{path...}", resource.AuditWrite, maxArtifact, slow),
		s.route(row{"MlflowArtifacts_Delete", http.MethodDelete, "", dropArtifact, s.remove}, artifacts+"/{path...}", resource.AuditWrite, -1, quick),
		s.route(row{"RunHistory_GetDetails", http.MethodGet, "", readRun, s.details}, "/history/{protocol}"+workspacePath+"/runs/{run}/details", resource.AuditRead, -1, quick),
		s.route(row{"RunHistory_GetExperimentDetails", http.MethodGet, "", readRun, s.details}, "/history/{protocol}"+workspacePath+"/experiments/{experiment}/runs/{run}/details", resource.AuditRead, -1, quick),
		resource.Route{Name: "Workspace_Discovery", Plane: resource.PlaneWorkspace, Method: http.MethodGet, Pattern: "/discovery", Versions: resource.Unversioned(),
			Open:   "tells only the names of this plane's own hosts, which clients need before they have a token",
			Origin: resource.OriginResource, Body: -1, Timeout: quick, Audit: resource.AuditProbe, Handler: s.discovery})
}

func (s *Service) route(r row, pattern string, audit resource.Category, body int64, timeout time.Duration) resource.Route {
	return resource.Route{Name: r.name, Plane: resource.PlaneWorkspace, Method: r.method, Pattern: pattern, Versions: resource.Unversioned(),
		Action: r.action, Scope: "{resource}", Resolve: s.resolver(r.action), Origin: resource.OriginResource, Body: body, Timeout: timeout, Audit: audit, Handler: r.handler}
}

// resolver authorises at the workspace of the host, after the path has been found to name the same one.
func (s *Service) resolver(action string) func(*resource.Request) (string, bool, string, error) {
	return func(r *resource.Request) (string, bool, string, error) {
		id, err := s.workspace(r)
		return action, false, id.String(), err
	}
}

func (s *Service) table() []row {
	const get, post, patch = http.MethodGet, http.MethodPost, http.MethodPatch
	return []row{
		{"Experiments_Create", post, "experiments/create", editExperiment, jsonHandler(s, s.createExperiment)},
		{"Experiments_Get", get, "experiments/get", readExperiment, jsonHandler(s, s.getExperiment)},
		{"Experiments_GetByName", get, "experiments/get-by-name", readExperiment, jsonHandler(s, s.getExperimentByName)},
		{"Experiments_Search", post, "experiments/search", readExperiment, jsonHandler(s, s.searchExperiments)},
		{"Experiments_SearchByGet", get, "experiments/search", readExperiment, jsonHandler(s, s.searchExperiments)},
		{"Experiments_List", get, "experiments/list", readExperiment, jsonHandler(s, s.searchExperiments)},
		{"Experiments_Update", post, "experiments/update", editExperiment, jsonHandler(s, s.updateExperiment)},
		{"Experiments_Delete", post, "experiments/delete", dropExperiment, jsonHandler(s, s.deleteExperiment)},
		{"Experiments_Restore", post, "experiments/restore", editExperiment, jsonHandler(s, s.restoreExperiment)},
		{"Experiments_SetTag", post, "experiments/set-experiment-tag", editExperiment, jsonHandler(s, s.setExperimentTag)},

		{"Runs_Create", post, "runs/create", editRun, jsonHandler(s, s.createRun)},
		{"Runs_Get", get, "runs/get", readRun, jsonHandler(s, s.getRun)},
		{"Runs_Update", post, "runs/update", editRun, jsonHandler(s, s.updateRun)},
		{"Runs_Search", post, "runs/search", readRun, jsonHandler(s, s.searchRuns)},
		{"Runs_Delete", post, "runs/delete", dropRun, jsonHandler(s, s.deleteRun)},
		{"Runs_Restore", post, "runs/restore", editRun, jsonHandler(s, s.restoreRun)},
		{"Runs_LogMetric", post, "runs/log-metric", editRun, jsonHandler(s, s.logMetric)},
		{"Runs_LogBatch", post, "runs/log-batch", editRun, jsonHandler(s, s.logBatch)},
		{"Runs_LogParameter", post, "runs/log-parameter", editRun, jsonHandler(s, s.logParam)},
		{"Runs_SetTag", post, "runs/set-tag", editRun, jsonHandler(s, s.setTag)},
		{"Runs_DeleteTag", post, "runs/delete-tag", editRun, jsonHandler(s, s.deleteTag)},
		{"Metrics_GetHistory", get, "metrics/get-history", readRun, jsonHandler(s, s.getHistory)},
		{"Artifacts_List", get, "artifacts/list", readArtifact, jsonHandler(s, s.listArtifacts)},

		{"RegisteredModels_Create", post, "registered-models/create", editModel, jsonHandler(s, s.createModel)},
		{"RegisteredModels_Get", get, "registered-models/get", readModel, jsonHandler(s, s.getModel)},
		{"RegisteredModels_Search", get, "registered-models/search", readModel, jsonHandler(s, s.searchModels)},
		{"RegisteredModels_GetLatestVersions", get, "registered-models/get-latest-versions", readVersion, jsonHandler(s, s.latestVersions)},
		{"RegisteredModels_PostLatestVersions", post, "registered-models/get-latest-versions", readVersion, jsonHandler(s, s.latestVersions)},
		{"ModelVersions_Create", post, "model-versions/create", editVersion, jsonHandler(s, s.createVersion)},
		{"ModelVersions_Get", get, "model-versions/get", readVersion, jsonHandler(s, s.getVersion)},
		{"ModelVersions_Search", get, "model-versions/search", readVersion, jsonHandler(s, s.searchVersions)},
		{"ModelVersions_GetDownloadUri", get, "model-versions/get-download-uri", readVersion, jsonHandler(s, s.getDownloadURI)},
		{"ModelVersions_TransitionStage", post, "model-versions/transition-stage", editVersion, jsonHandler(s, s.transitionStage)},
		{"ModelVersions_PatchStage", patch, "model-versions/transition-stage", editVersion, jsonHandler(s, s.transitionStage)},
	}
}

// discovery is what a workspace's discoveryUrl answers (CLIENTS.md, section 2).
func (s *Service) discovery(w http.ResponseWriter, r *resource.Request) error {
	host := "https://" + s.cfg.Authority(r.Host+".workspace."+s.cfg.Domain)
	return writeJSON(w, map[string]string{"api": host, "history": host, "mlflow": host})
}

// details is a run as Azure ML's run history shows it.
func (s *Service) details(w http.ResponseWriter, r *resource.Request) error {
	c, err := s.enter(r)
	if err != nil {
		return err
	}
	var full *fullRun
	err = c.view(r.Context(), func(rd store.Reader) (err error) { full, err = c.load(rd, r.Vars["run"]); return err })
	if err != nil {
		return err
	}
	i := full.info
	status := map[string]string{"RUNNING": "Running", "SCHEDULED": "Queued", "FINISHED": "Completed", "FAILED": "Failed", "KILLED": "Canceled"}[i.Status]
	out := map[string]any{"runId": i.ID, "status": status, "startTimeUtc": time.UnixMilli(i.Start).UTC().Format(time.RFC3339Nano), "properties": map[string]string{},
		"inputDatasets": []any{}, "outputDatasets": []any{}, "logFiles": map[string]string{}, "submittedBy": i.User}
	if i.End != 0 {
		out["endTimeUtc"] = time.UnixMilli(i.End).UTC().Format(time.RFC3339Nano)
	}
	return writeJSON(w, out)
}
