package machinelearning

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"time"

	"casemate.dev/dataplane/runtime/agent"
	"casemate.dev/dataplane/tracking"
	"casemate.dev/providers/machinelearning/fleet"
	"casemate.dev/providers/machinelearning/location"
	"casemate.dev/providers/machinelearning/sensitive"
	"casemate.dev/resource"
)

func (p *Provider) jobType() resource.Type {
	return resource.Type{
		Name: jobType, APIVersions: versions, Owner: workspaceType, Created: http.StatusCreated,
		NamePattern: regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_-]{0,254}$`),
		NameRule:    "Use 1 to 255 letters, digits, hyphens and underscores, and begin with a letter or digit",
		Validate:    p.validateJob, Reconcile: p.submitJob, MayRemove: p.mayRemoveJob, Remove: p.removeJob, View: p.viewJob, Filter: filterJobs,
		Actions: []resource.Action{{Name: "cancel", Permission: jobType + "/cancel/action", Audit: resource.AuditWrite, Handler: p.cancelJob}},
	}
}

// commandJob is the view of a job.
type commandJob struct {
	Properties struct {
		JobType              string               `json:"jobType"`
		Command              string               `json:"command"`
		CodeID               string               `json:"codeId"`
		EnvironmentID        string               `json:"environmentId"`
		EnvironmentVariables map[string]string    `json:"environmentVariables"`
		ComputeID            string               `json:"computeId"`
		ExperimentName       string               `json:"experimentName"`
		DisplayName          string               `json:"displayName"`
		Inputs               map[string]jobInput  `json:"inputs"`
		Outputs              map[string]jobOutput `json:"outputs"`
		Identity             *jobIdentity         `json:"identity"`
		Distribution         any                  `json:"distribution"`
		Limits               struct {
			Timeout string `json:"timeout"`
		} `json:"limits"`
		Resources struct {
			InstanceCount int    `json:"instanceCount"`
			DockerArgs    string `json:"dockerArgs"`
		} `json:"resources"`
	} `json:"properties"`
}

type jobInput struct {
	Type  string `json:"jobInputType"`
	Mode  string `json:"mode"`
	URI   string `json:"uri"`
	Value string `json:"value"`
}

type jobOutput struct {
	Type string `json:"jobOutputType"`
	Mode string `json:"mode"`
	URI  string `json:"uri"`
}

type jobIdentity struct {
	Type       string `json:"identityType"`
	ClientID   string `json:"clientId"`
	ObjectID   string `json:"objectId"`
	ResourceID string `json:"resourceId"`
	MSI        string `json:"msiResourceId"` // the name of older API versions
}

// liveJob are properties that the platform shows and clients do not set.
var liveJob = []string{"status", "services", "error", "exitCode", "attempt", "node", "notes", "startTimeUtc", "endTimeUtc"}

// changeable are the properties of a job that may change after its submission, whatever its status.
var changeable = map[string]bool{"displayname": true, "description": true, "tags": true, "isarchived": true, "properties": true, "notificationsetting": true}

func (p *Provider) validateJob(ctx context.Context, w *resource.Write) error {
	d := w.New
	for _, name := range liveJob {
		d.Unset("properties." + name)
	}
	if err := checkText(d); err != nil {
		return err
	}
	if w.Old != nil {
		return keepSubmitted(w)
	}
	var j commandJob
	if err := d.Into(&j); err != nil {
		return err
	}
	if err := checkJob(j); err != nil {
		return err
	}
	if j.Properties.ExperimentName == "" {
		j.Properties.ExperimentName = "Default"
		d.Set("properties.experimentName", "Default")
	}
	if j.Properties.DisplayName == "" {
		d.Set("properties.displayName", d.ID.Name())
	}
	ws, err := p.workspaceOf(ctx, d.ID)
	if err != nil {
		return err
	}
	// What is missing is said now, to the person, and not minutes later by a failed job.
	res, err := p.resolveJob(ctx, ws, d.ID.Name(), j)
	if err != nil {
		return err
	}
	d.Remember("contents", contents(res.code, res.inputs, agent.Tree{}))
	return p.checkRunName(ctx, ws, w.Caller, d.ID.Name())
}

// checkRunName refuses a name under which artifacts lie already, those of a job that was deleted or of another workspace with the
// same storage account: the new run would pass them on as its own, and write over them. Where the workspace's identity cannot look,
// it cannot pass anything on either.
func (p *Provider) checkRunName(ctx context.Context, ws workspace, c resource.Caller, name string) error {
	as, err := p.acting(ctx, ws, c.Person())
	if err != nil {
		return nil //nolint:nilerr // see above
	}
	for _, err := range p.cfg.Blobs.ListBlobs(ctx, as, ws.storage, artifactContainer, artifactPrefix(name)) {
		if err != nil {
			return nil //nolint:nilerr // see above
		}
		return resource.Errorf(http.StatusConflict, "JobNameTaken",
			"A run named '%s' has left artifacts in the workspace's storage account, so the name cannot be used again. Submit the job under another name.", name)
	}
	return nil
}

// keepSubmitted refuses every change of what a job does: it has been submitted.
func keepSubmitted(w *resource.Write) error {
	was, _ := w.Old.Get("properties").(map[string]any)
	is, _ := w.New.Get("properties").(map[string]any)
	if is == nil {
		is = map[string]any{}
		w.New.Set("properties", is)
	}
	for name, v := range is {
		if changeable[strings.ToLower(name)] || w.Old.Get("properties."+name) == nil && v == nil {
			continue
		}
		if fmt.Sprint(v) != fmt.Sprint(w.Old.Get("properties."+name)) {
			return resource.Errorf(http.StatusConflict, "JobPropertyImmutable",
				"A job named '%s' exists already and its '%s' cannot be changed: only displayName, description, tags and isArchived can. Submit a job of another name.", w.New.ID.Name(), name).WithTarget("properties." + name)
		}
	}
	for name, v := range was {
		if !changeable[strings.ToLower(name)] {
			w.New.Set("properties."+name, v)
		}
	}
	return nil
}

var variableName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,254}$`)

// checkJob checks what can be checked without looking anything up.
func checkJob(j commandJob) error {
	q := j.Properties
	if !strings.EqualFold(q.JobType, "Command") {
		return resource.NotSupported("Jobs of type '%s' are not supported. Use Command.", q.JobType)
	}
	switch {
	case strings.TrimSpace(q.Command) == "" || len(q.Command) > maxDocumentTextLength:
		return resource.Invalid("properties.command", "A command job needs a command of at most %d characters.", maxDocumentTextLength)
	case q.EnvironmentID == "":
		return resource.Invalid("properties.environmentId", "A command job needs an environment: give the ID of a version of one.")
	case q.ComputeID == "":
		return resource.NotSupported("Serverless compute is not supported. Name a cluster of the workspace in computeId.")
	case q.Distribution != nil:
		return resource.NotSupported("Distributed jobs are not supported. Leave distribution out.")
	case q.Resources.InstanceCount > 1:
		return resource.NotSupported("Jobs on more than one node are not supported. Set resources.instanceCount to 1.")
	case q.Resources.DockerArgs != "":
		return resource.NotSupported("dockerArgs are not supported: how a node is isolated is not the job's to say.")
	}
	if q.Limits.Timeout != "" {
		if d, err := parseDuration(q.Limits.Timeout); err != nil || d <= 0 {
			return resource.Invalid("properties.limits.timeout", "'%s' is not an ISO 8601 duration such as PT1H.", q.Limits.Timeout)
		}
	}
	if what := sensitive.In(q.Command); what != "" {
		return sensitiveError("properties.command", what)
	}
	if err := checkVariables("properties.environmentVariables", q.EnvironmentVariables); err != nil {
		return err
	}
	return checkPorts(j)
}

func checkVariables(target string, vars map[string]string) error {
	for name, value := range vars {
		if !variableName.MatchString(name) || strings.ContainsRune(value, 0) {
			return resource.Invalid(target+"."+name, "'%s' is not the name of an environment variable.", clip(name))
		}
		if what := sensitive.Named(name, value); what != "" {
			return sensitiveError(target+"."+name, what)
		}
	}
	return nil
}

// portName bounds names of inputs and outputs: they become environment variables and directories.
var portName = regexp.MustCompile(`^[a-zA-Z][a-zA-Z0-9_]{0,127}$`)

func checkPorts(j commandJob) error {
	for name, in := range j.Properties.Inputs {
		target := "properties.inputs." + name
		if !portName.MatchString(name) {
			return resource.Invalid(target, "The input name '%s' is not valid: use letters, digits and underscores.", clip(name))
		}
		switch in.Type {
		case "literal":
			if what := sensitive.Named(name, in.Value); what != "" {
				return sensitiveError(target, what)
			}
			continue
		case "uri_file", "uri_folder", "custom_model", "mlflow_model":
		default:
			return resource.NotSupported("Inputs of type '%s' are not supported (input '%s'). Use literal, uri_file, uri_folder, custom_model or mlflow_model.", in.Type, name)
		}
		// Mounts read-only are served by a download before the command starts: the job sees the same files.
		switch in.Mode {
		case "", "Download", "ReadOnlyMount":
		default:
			return resource.NotSupported("The input mode '%s' is not supported (input '%s'). Use Download or ReadOnlyMount.", in.Mode, name)
		}
	}
	for name, out := range j.Properties.Outputs {
		if !portName.MatchString(name) {
			return resource.Invalid("properties.outputs."+name, "The output name '%s' is not valid: use letters, digits and underscores.", clip(name))
		}
		switch out.Type {
		case "uri_folder", "custom_model", "mlflow_model":
		default:
			return resource.NotSupported("Outputs of type '%s' are not supported (output '%s'). Use uri_folder, custom_model or mlflow_model.", out.Type, name)
		}
		switch out.Mode { // written through a mount or uploaded at the end: both are uploads when the command has ended
		case "", "Upload", "ReadWriteMount":
		default:
			return resource.NotSupported("The output mode '%s' is not supported (output '%s'). Use Upload or ReadWriteMount.", out.Mode, name)
		}
	}
	return nil
}

// submitJob makes the run and queues the job; both only once.
func (p *Provider) submitJob(ctx context.Context, d *resource.Document) error {
	var j commandJob
	if err := d.Into(&j); err != nil {
		return err
	}
	ws := d.ID.Parent()
	if _, err := p.jobs.Status(ctx, d.ID.String(), ws.Key()); !errors.Is(err, fleet.ErrNoRecord) {
		return err // nil: submitted before
	}
	err := p.cfg.Runs.OpenJob(ctx, ws, tracking.JobRun{
		ID: d.ID.Name(), Name: d.String("properties.displayName"), Experiment: j.Properties.ExperimentName, User: d.Creator.DisplayName(),
		Tags: map[string]string{"mlflow.user": d.Creator.DisplayName(), "azureml.jobId": d.ID.String(), "mlflow.source.type": "JOB"},
	})
	if err != nil {
		return err
	}
	compute, err := p.computeID(ws, j.Properties.ComputeID)
	if err != nil {
		return err
	}
	return p.jobs.Submit(ctx, d.ID.String(), ws.Key(), compute.String())
}

// jobChanged tells the tracking plane what became of a job.
func (p *Provider) jobChanged(ctx context.Context, r fleet.Record) error {
	id, err := resource.ParseID(r.ID)
	if err != nil {
		return err
	}
	status := map[fleet.Status]string{fleet.Completed: "FINISHED", fleet.Failed: "FAILED", fleet.Canceled: "KILLED", fleet.Queued: "SCHEDULED", fleet.Preparing: "SCHEDULED"}[r.Status]
	if status == "" {
		status = "RUNNING"
	}
	return p.cfg.Runs.ChangeJob(ctx, id.Parent(), id.Name(), status, r.Started, r.Ended)
}

func (p *Provider) viewJob(ctx context.Context, d *resource.Document) {
	ws := d.ID.Parent()
	d.Set("properties.status", string(fleet.NotStarted))
	if w, err := p.workspaceOf(ctx, ws); err == nil {
		d.Set("properties.services", map[string]any{"Tracking": map[string]any{"jobServiceType": "Tracking", "endpoint": p.trackingURI(w.guid, ws)}})
	}
	r, err := p.jobs.Status(ctx, d.ID.String(), ws.Key())
	if err != nil {
		if !errors.Is(err, fleet.ErrNoRecord) {
			d.Set("properties.status", "Unknown")
		}
		return
	}
	d.Set("properties.status", string(r.Status))
	for name, t := range map[string]time.Time{"startTimeUtc": r.Started, "endTimeUtc": r.Ended} {
		if !t.IsZero() {
			d.Set("properties."+name, t.Format(time.RFC3339Nano))
		}
	}
	if r.Code != "" {
		d.Set("properties.error", map[string]any{"code": r.Code, "message": r.Message})
	}
	if r.ExitCode != nil {
		d.Set("properties.exitCode", *r.ExitCode)
	}
	if r.Attempt > 0 {
		d.Set("properties.attempt", r.Attempt)
		d.Set("properties.node", r.Node)
	}
	if len(r.Notes) > 0 {
		d.Set("properties.notes", r.Notes)
	}
}

func (p *Provider) cancelJob(ctx context.Context, d *resource.Document, _ *resource.Request) (any, error) {
	err := p.jobs.Cancel(ctx, d.ID.String(), d.ID.Parent().Key())
	switch {
	case errors.Is(err, fleet.ErrEnded):
		return nil, resource.Errorf(http.StatusConflict, "JobNotCancelable", "The job '%s' has ended.", d.ID.Name())
	case errors.Is(err, fleet.ErrNoRecord):
		return nil, resource.Errorf(http.StatusConflict, "JobNotCancelable", "The job '%s' is still being submitted. Try again.", d.ID.Name())
	case err != nil:
		return nil, err
	}
	return &resource.Response{Status: http.StatusOK}, nil
}

func (p *Provider) mayRemoveJob(ctx context.Context, d *resource.Document) error {
	r, err := p.jobs.Status(ctx, d.ID.String(), d.ID.Parent().Key())
	if err == nil && !r.Status.Final() {
		return resource.Errorf(http.StatusConflict, "JobNotEnded", "The job '%s' is %s. Cancel it first.", d.ID.Name(), r.Status)
	}
	return nil
}

// removeJob forgets the job's record. Its run and what it wrote stay: they are the experiment's.
func (p *Provider) removeJob(ctx context.Context, d *resource.Document) error {
	err := p.jobs.Forget(ctx, d.ID.String())
	if errors.Is(err, fleet.ErrActive) {
		return resource.Errorf(http.StatusConflict, "JobNotEnded", "The job '%s' has not ended. Cancel it first.", d.ID.Name())
	}
	return err
}

func filterJobs(r *resource.Request, docs []*resource.Document) ([]*resource.Document, error) {
	docs, err := filterAssets(r, docs)
	if err != nil {
		return nil, err
	}
	typ := r.URL.Query().Get("jobType")
	var out []*resource.Document
	for _, d := range docs {
		if typ == "" || strings.EqualFold(typ, d.String("properties.jobType")) {
			out = append(out, d)
		}
	}
	return out, nil
}

// computeID reads computeId: an ARM id, or the name of a cluster of the workspace.
func (p *Provider) computeID(ws resource.ID, s string) (resource.ID, error) {
	const target = "properties.computeId"
	s = strings.TrimPrefix(s, "azureml:")
	id, err := resource.ParseID(s)
	if err != nil {
		id, err = ws.Child("computes", s)
	}
	if err != nil || !id.Is(computeType) || !id.Parent().Equal(ws) {
		return id, resource.Invalid(target, "'%s' is not a compute of this workspace.", clip(s))
	}
	return id, nil
}

// assetVersion finds the version of an asset that a reference names.
func (p *Provider) assetVersion(ctx context.Context, ws workspace, target, segment, ref string) (*resource.Document, error) {
	l, err := p.parseURI(target, ref)
	if err != nil {
		return nil, err
	}
	id := resource.ID{}
	switch {
	case l.Kind == location.Resource:
		id, err = resource.ParseID(l.ID)
	case l.Kind == location.Asset && l.Workspace != "" && !strings.EqualFold(l.Workspace, ws.id.String()):
		err = errors.New("it is in another workspace")
	case l.Kind == location.Asset && l.Label != "":
		return p.latestVersion(ctx, ws, target, segment, l)
	case l.Kind == location.Asset:
		id, err = resource.ParseID(ws.id.String() + "/" + segment + "/" + l.Name + "/versions/" + l.Version)
	default:
		err = errors.New("it names no asset")
	}
	if err != nil || !id.Is(workspaceType+"/"+segment+"/versions") || !id.Parent().Parent().Equal(ws.id) {
		return nil, resource.Invalid(target, "'%s' is not a version of an asset below '%s' of this workspace.", clip(ref), segment)
	}
	d, err := p.cfg.Resources.Get(ctx, id)
	if resource.StatusOf(err) == http.StatusNotFound {
		return nil, resource.Invalid(target, "'%s' does not exist in this workspace.", clip(ref))
	}
	return d, err
}

func (p *Provider) latestVersion(ctx context.Context, ws workspace, target, segment string, l location.Location) (*resource.Document, error) {
	if !strings.EqualFold(l.Label, "latest") {
		return nil, resource.NotSupported("The label '%s' is not supported. Use @latest or a version.", l.Label)
	}
	container, err := ws.id.Child(segment, l.Name)
	if err != nil {
		return nil, resource.Invalid(target, "'%s' is not the name of an asset.", l.Name)
	}
	docs, err := p.cfg.Resources.List(ctx, workspaceType+"/"+segment+"/versions", container)
	if err != nil {
		return nil, err
	}
	var latest *resource.Document
	for _, d := range docs {
		if !d.Bool("properties.isArchived") && (latest == nil || newer(d, latest) < 0) {
			latest = d
		}
	}
	if latest == nil {
		return nil, resource.Invalid(target, "'%s' has no version in this workspace.", l.Name)
	}
	return latest, nil
}
