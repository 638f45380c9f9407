package machinelearning

import (
	"context"
	"net/http"
	"strings"
	"time"

	"casemate.dev/dataplane/runtime"
	"casemate.dev/dataplane/runtime/agent"
	"casemate.dev/providers/machinelearning/fleet"
	"casemate.dev/providers/machinelearning/location"
	"casemate.dev/resource"
)

// planner says to the fleet what jobs and deployments are.
type planner Provider

// Capacity implements fleet.Planner.
func (q *planner) Capacity(ctx context.Context, cluster string) (int, error) {
	id, err := resource.ParseID(cluster)
	if err != nil {
		return 0, err
	}
	d, err := q.cfg.Resources.Get(ctx, id)
	if err != nil {
		return 0, err
	}
	var c amlCompute
	if err := d.Into(&c); err != nil || c.Properties.Properties.ScaleSettings.Max == nil {
		return 0, err
	}
	return *c.Properties.Properties.ScaleSettings.Max, nil
}

// resolved is a job with everything it names found.
type resolved struct {
	compute  *resource.Document
	size     runtime.Limits
	subnet   string
	identity member
	image    imageRef
	code     *agent.Tree
	inputs   []agent.Input
	params   map[string]string
	outputs  []agent.Output
}

// member is a managed identity that a compute or endpoint may act as.
type member struct {
	id, principal, client string // client is "" for a system-assigned one
}

// members are a resource's identities.
func members(d *resource.Document) []member {
	var out []member
	assigned, _ := d.Get("identity.userAssignedIdentities").(map[string]any)
	for id, v := range assigned {
		m, _ := v.(map[string]any)
		principal, _ := m["principalId"].(string)
		client, _ := m["clientId"].(string)
		out = append(out, member{id, principal, client})
	}
	if principal := d.String("identity.principalId"); principal != "" {
		out = append(out, member{id: d.ID.String(), principal: principal})
	}
	return out
}

// choose picks the identity that a job runs as: the one that it names, or the compute's only one.
func choose(d *resource.Document, want *jobIdentity) (member, error) {
	const target = "properties.identity"
	have := members(d)
	if len(have) == 0 {
		return member{}, resource.Errorf(http.StatusBadRequest, "ComputeHasNoIdentity",
			"The compute '%s' has no managed identity, so its jobs could not reach any data. Give it a user-assigned or system-assigned identity.", d.ID.Name())
	}
	if want != nil {
		switch strings.ToLower(want.Type) {
		case "", "amltoken", "managed", "managedidentity":
		case "useridentity":
			return member{}, resource.NotSupported("Jobs with the submitting user's identity are not supported. Use a managed identity.")
		default:
			return member{}, resource.Invalid(target+".identityType", "The identity type '%s' is not AMLToken or Managed.", want.Type)
		}
		arm := want.ResourceID + want.MSI
		if want.ClientID != "" || want.ObjectID != "" || arm != "" {
			for _, m := range have {
				if want.ClientID != "" && strings.EqualFold(m.client, want.ClientID) || want.ObjectID != "" && strings.EqualFold(m.principal, want.ObjectID) ||
					arm != "" && strings.EqualFold(m.id, arm) {
					return m, nil
				}
			}
			return member{}, resource.Invalid(target, "The compute '%s' does not have the managed identity that the job names.", d.ID.Name())
		}
	}
	if len(have) > 1 {
		return member{}, resource.Invalid(target, "The compute '%s' has %d identities. Say by clientId which of them the job runs as.", d.ID.Name(), len(have))
	}
	return have[0], nil
}

// resolveJob finds everything that a job names, or says what is missing.
func (p *Provider) resolveJob(ctx context.Context, ws workspace, name string, j commandJob) (*resolved, error) {
	q := j.Properties
	computeID, err := p.computeID(ws.id, q.ComputeID)
	if err != nil {
		return nil, err
	}
	out := &resolved{params: map[string]string{}}
	if out.compute, err = p.cfg.Resources.Get(ctx, computeID); err != nil {
		if resource.StatusOf(err) == http.StatusNotFound {
			return nil, resource.Invalid("properties.computeId", "The compute '%s' does not exist in this workspace.", computeID.Name())
		}
		return nil, err
	}
	var c amlCompute
	if err := out.compute.Into(&c); err != nil {
		return nil, err
	}
	out.subnet = c.Properties.Properties.Subnet.ID
	if out.size, err = limitsOf("properties.computeId", c.Properties.Properties.VMSize); err != nil {
		return nil, err
	}
	if out.identity, err = choose(out.compute, q.Identity); err != nil {
		return nil, err
	}
	env, err := p.assetVersion(ctx, ws, "properties.environmentId", "environments", q.EnvironmentID)
	if err != nil {
		return nil, err
	}
	if out.image, err = p.parseImage("properties.environmentId", env.String("properties.image")); err != nil {
		return nil, err
	}
	if q.CodeID != "" {
		code, err := p.assetVersion(ctx, ws, "properties.codeId", "codes", q.CodeID)
		if err != nil {
			return nil, err
		}
		tree, err := p.pinnedTree(ctx, ws, "properties.codeId", code.ID)
		if err != nil {
			return nil, err
		}
		out.code = &tree
	}
	return out, p.resolvePorts(ctx, ws, name, j, out)
}

func (p *Provider) resolvePorts(ctx context.Context, ws workspace, job string, j commandJob, out *resolved) error {
	for name, in := range j.Properties.Inputs {
		if in.Type == "literal" {
			out.params[name] = in.Value
			continue
		}
		tree, err := p.inputTree(ctx, ws, "properties.inputs."+name+".uri", in)
		if err != nil {
			return err
		}
		out.inputs = append(out.inputs, agent.Input{Name: name, Single: in.Type == "uri_file", Tree: tree})
	}
	outputs := map[string]jobOutput{"default": {Type: "uri_folder"}}
	for name, o := range j.Properties.Outputs {
		outputs[name] = o
	}
	for name, o := range outputs {
		pl, err := p.outputPlace(ctx, ws, job, name, o)
		if err != nil {
			return err
		}
		out.outputs = append(out.outputs, agent.Output{Name: name, URLPrefix: p.url(pl)})
	}
	return nil
}

// inputTree is what the agent downloads for an input. Models come with their digests; data is read as it is when the job starts.
func (p *Provider) inputTree(ctx context.Context, ws workspace, target string, in jobInput) (agent.Tree, error) {
	l, err := p.parseURI(target, in.URI)
	if err != nil {
		return agent.Tree{}, err
	}
	if l.Kind == location.Asset || l.Kind == location.Resource {
		if strings.HasSuffix(in.Type, "_model") || strings.Contains(strings.ToLower(l.ID), "/models/") {
			m, err := p.assetVersion(ctx, ws, target, "models", in.URI)
			if err != nil {
				return agent.Tree{}, err
			}
			return p.pinnedTree(ctx, ws, target, m.ID)
		}
		d, err := p.assetVersion(ctx, ws, target, "data", in.URI)
		if err != nil {
			return agent.Tree{}, err
		}
		if typ := d.String("properties.dataType"); typ != in.Type {
			return agent.Tree{}, resource.Invalid(target, "The data asset is a %s and the input a %s.", typ, in.Type)
		}
		if l, err = p.parseURI(target, d.String("properties.dataUri")); err != nil {
			return agent.Tree{}, err
		}
	}
	pl, err := p.resolve(ctx, ws, target, l)
	if err != nil {
		return agent.Tree{}, err
	}
	if in.Type == "uri_file" {
		if pl.path == "" || strings.HasSuffix(pl.path, "/") {
			return agent.Tree{}, resource.Invalid(target, "The URI names a folder, and the input is a uri_file.")
		}
		return agent.Tree{Files: []agent.File{{Path: nameOf("/" + pl.path), URL: p.url(pl)}}}, nil
	}
	prefix := pl.path
	if prefix != "" && !strings.HasSuffix(prefix, "/") {
		prefix += "/"
	}
	pl.path = ""
	return agent.Tree{Folder: &agent.Folder{ContainerURL: strings.TrimSuffix(p.url(pl), "/"), Prefix: prefix}}, nil
}

// outputPlace is where an output goes: where the job says, or below the default datastore; the default output is part of the
// run's artifacts.
func (p *Provider) outputPlace(ctx context.Context, ws workspace, job, name string, o jobOutput) (place, error) {
	target := "properties.outputs." + name + ".uri"
	if o.URI == "" {
		if name == "default" {
			return place{ws.storage, artifactContainer, artifactPrefix(job) + "outputs/"}, nil
		}
		return p.inDatastore(ctx, ws, target, defaultDatastore, "azureml/"+job+"/"+name+"/")
	}
	l, err := p.parseURI(target, strings.ReplaceAll(o.URI, "${{name}}", job))
	if err != nil {
		return place{}, err
	}
	if l.Kind != location.Blob && l.Kind != location.Datastore {
		return place{}, resource.Invalid(target, "An output goes to a datastore or a blob prefix.")
	}
	pl, err := p.resolve(ctx, ws, target, l)
	if err == nil && !strings.HasSuffix(pl.path, "/") && pl.path != "" {
		pl.path += "/"
	}
	return pl, err
}

// image brings the image in, pulling it as the identity that will run it.
func (p *Provider) image(ctx context.Context, ws workspace, ref imageRef, as member, person string) (Image, error) {
	registry := ws.registry
	if ref.registry != "" && !strings.EqualFold(ref.registry, registry.Name()) {
		docs, err := p.cfg.Resources.List(ctx, registryType, resource.Tenant)
		if err != nil {
			return Image{}, err
		}
		registry = resource.ID{}
		for _, d := range docs {
			if strings.EqualFold(d.ID.Name(), ref.registry) {
				registry = d.ID
			}
		}
	}
	if registry.IsTenant() {
		return Image{}, resource.Errorf(http.StatusBadRequest, "RegistryNotFound", "There is no registry to take the image '%s' from. Give the workspace a containerRegistry.", ref.repository)
	}
	caller, err := p.cfg.Principals.CallerOf(ctx, as.principal)
	if err != nil {
		return Image{}, err
	}
	caller.OnBehalfOf = person
	return p.cfg.Images.Ensure(ctx, caller, registry, ref.repository, ref.reference)
}

// stopMargin is how long after a job's own time limit its node is ended from outside.
const stopMargin = 10 * time.Minute

// PlanJob implements fleet.Planner.
func (q *planner) PlanJob(ctx context.Context, r fleet.Record, _ string) (fleet.Plan, error) {
	p := (*Provider)(q)
	id, err := resource.ParseID(r.ID)
	if err != nil {
		return fleet.Plan{}, err
	}
	d, err := p.cfg.Resources.Get(ctx, id)
	if err != nil {
		return fleet.Plan{}, err
	}
	ws, err := p.workspaceOf(ctx, id)
	if err != nil {
		return fleet.Plan{}, err
	}
	var j commandJob
	if err := d.Into(&j); err != nil {
		return fleet.Plan{}, err
	}
	res, err := p.resolveJob(ctx, ws, id.Name(), j)
	if err == nil {
		err = checkContents(d, contents(res.code, res.inputs, agent.Tree{}))
	}
	if err != nil {
		return fleet.Plan{}, err
	}
	person := d.Creator.Person()
	img, err := p.image(ctx, ws, res.image, res.identity, person)
	if err != nil {
		return fleet.Plan{}, err
	}
	limit, _ := parseDuration(j.Properties.Limits.Timeout) // "" is none; validated
	logs := place{ws.storage, artifactContainer, artifactPrefix(id.Name())}
	plan := fleet.Plan{
		Image: img.Digest, Subnet: res.subnet, Limits: res.size,
		Identity: fleet.Identity{Default: res.identity.id, Identities: []string{res.identity.id}, OnBehalfOf: person, Run: id.Name()},
		Tokens:   map[string]string{"MLFLOW_TRACKING_TOKEN": p.cfg.RunAudience},
		Spec: agent.Spec{
			Kind: agent.KindJob, RunID: id.Name(), Command: j.Properties.Command, ClientID: res.identity.client,
			Env:  p.jobEnvironment(ws, id, j, img, res.identity),
			Code: res.code, Inputs: res.inputs, Outputs: res.outputs, Params: res.params,
			Logs:             agent.Logs{User: p.url(logs) + "user_logs/std_log.txt", System: p.url(logs) + "system_logs/agent.log"},
			TimeLimitSeconds: int64(limit / time.Second),
		},
	}
	if limit > 0 {
		plan.Deadline = limit + stopMargin
	}
	return plan, nil
}

// jobEnvironment is the environment of user code (INTERFACE.md, "Environment inside a job"): the image's, the job's, the platform's, each
// over the one before.
func (p *Provider) jobEnvironment(ws workspace, id resource.ID, j commandJob, img Image, as member) map[string]string {
	env := imageEnvironment(img)
	for k, v := range j.Properties.EnvironmentVariables {
		env[k] = v
	}
	platform := map[string]string{
		"AZUREML_RUN_ID": id.Name(), "AZUREML_ROOT_RUN_ID": id.Name(), "AZUREML_EXPERIMENT_NAME": j.Properties.ExperimentName,
		"MLFLOW_TRACKING_URI": p.trackingURI(ws.guid, ws.id), "MLFLOW_RUN_ID": id.Name(),
	}
	p.addPlatform(platform, ws, as)
	for k, v := range platform {
		env[k] = v
	}
	return env
}

func imageEnvironment(img Image) map[string]string {
	env := map[string]string{}
	for _, kv := range img.Env {
		if k, v, ok := strings.Cut(kv, "="); ok && variableName.MatchString(k) {
			env[k] = v
		}
	}
	return env
}

func (p *Provider) addPlatform(env map[string]string, ws workspace, as member) {
	env["AZUREML_ARM_SUBSCRIPTION"] = ws.id.Subscription()
	env["AZUREML_ARM_RESOURCEGROUP"] = ws.id.ResourceGroup()
	env["AZUREML_ARM_WORKSPACE_NAME"] = ws.id.Name()
	env["AZUREML_WORKSPACE_ID"] = ws.guid
	env["SSL_CERT_FILE"], env["REQUESTS_CA_BUNDLE"] = runtime.CAFile, runtime.CAFile
	if as.client != "" {
		env["DEFAULT_IDENTITY_CLIENT_ID"] = as.client
	}
}
