package machinelearning

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"path"
	"regexp"
	"strings"

	"casemate.dev/dataplane/blob"
	"casemate.dev/dataplane/runtime"
	"casemate.dev/dataplane/runtime/agent"
	"casemate.dev/providers/machinelearning/fleet"
	"casemate.dev/providers/machinelearning/location"
	"casemate.dev/resource"
)

func (p *Provider) deploymentType() resource.Type {
	return resource.Type{
		Name: deploymentType, APIVersions: versions, Owner: workspaceType, Async: true, Tracked: true, Created: http.StatusCreated,
		NamePattern: regexp.MustCompile(`^[a-zA-Z][a-zA-Z0-9-]{1,30}[a-zA-Z0-9]$`),
		NameRule:    "Use 3 to 32 letters, digits and hyphens, begin with a letter and do not end with a hyphen",
		Validate:    p.validateDeployment, Reconcile: p.reconcileDeployment, MayRemove: p.mayRemoveDeployment, Remove: p.removeDeployment,
		View:    p.viewDeployment,
		Actions: []resource.Action{{Name: "getLogs", Permission: endpointType + "/deployments/getlogs/action", Audit: resource.AuditRead, Handler: p.deploymentLogs}},
	}
}

// onlineDeployment is the view of a deployment.
type onlineDeployment struct {
	Properties struct {
		ComputeType       string            `json:"endpointComputeType"`
		Model             any               `json:"model"` // an id; objects of preview versions are refused
		EnvironmentID     string            `json:"environmentId"`
		InstanceType      string            `json:"instanceType"`
		Variables         map[string]string `json:"environmentVariables"`
		Egress            string            `json:"egressPublicNetworkAccess"`
		CodeConfiguration *struct {
			CodeID        string `json:"codeId"`
			ScoringScript string `json:"scoringScript"`
		} `json:"codeConfiguration"`
		ScaleSettings struct {
			Type string `json:"scaleType"`
		} `json:"scaleSettings"`
		Properties map[string]string `json:"properties"`
	} `json:"properties"`
	SKU struct {
		Capacity *int `json:"capacity"`
	} `json:"sku"`
}

const maxInstances = 20

func (p *Provider) validateDeployment(ctx context.Context, w *resource.Write) error {
	d := w.New
	if err := checkText(d); err != nil {
		return err
	}
	var v onlineDeployment
	if err := d.Into(&v); err != nil {
		return err
	}
	if err := checkDeployment(v); err != nil {
		return err
	}
	if v.Properties.InstanceType == "" {
		v.Properties.InstanceType = defaultInstanceType
		d.Set("properties.instanceType", defaultInstanceType)
	}
	if v.SKU.Capacity == nil {
		d.Set("sku", map[string]any{"name": "Default", "capacity": 1})
	}
	// Nodes have no way out but their subnet's, whatever the deployment says; what it says must not claim otherwise.
	d.Set("properties.egressPublicNetworkAccess", "Disabled")
	endpoint, err := p.cfg.Resources.Get(ctx, d.ID.Parent())
	if err != nil {
		return err
	}
	ws, err := p.workspaceOf(ctx, d.ID)
	if err != nil {
		return err
	}
	res, err := p.resolveDeployment(ctx, ws, endpoint, v)
	if err != nil {
		return err
	}
	d.Remember("contents", contents(res.code, nil, res.model))
	// What an instance does is done for whoever last said what it should be, not for whoever made the deployment once.
	if w.Caller.Kind != resource.KindPlatform {
		d.Remember(personKey, w.Caller.Person())
	}
	return nil
}

// personKey is where a deployment remembers the person behind its instances.
const personKey = "person"

func checkDeployment(v onlineDeployment) error {
	q := v.Properties
	if q.ComputeType != "" && !strings.EqualFold(q.ComputeType, "Managed") {
		return resource.NotSupported("Deployments on '%s' compute are not supported. Use Managed.", q.ComputeType)
	}
	if s := q.ScaleSettings.Type; s != "" && !strings.EqualFold(s, "Default") {
		return resource.NotSupported("The scaleType '%s' is not supported. Use Default and set sku.capacity.", s)
	}
	if strings.EqualFold(q.Egress, "Enabled") {
		return resource.NotSupported("Instances have no way out to public networks. Set egressPublicNetworkAccess to Disabled.")
	}
	if c := v.SKU.Capacity; c != nil && (*c < 1 || *c > maxInstances) {
		return resource.Invalid("sku.capacity", "A deployment has 1 to %d instances, not %d.", maxInstances, *c)
	}
	if q.CodeConfiguration == nil || q.CodeConfiguration.CodeID == "" {
		return resource.NotSupported("A deployment needs codeConfiguration with codeId and scoringScript: a Python file with init() and run().")
	}
	if _, err := location.CleanPath(q.CodeConfiguration.ScoringScript); err != nil || q.CodeConfiguration.ScoringScript == "" || strings.HasPrefix(q.CodeConfiguration.ScoringScript, "-") {
		return resource.Invalid("properties.codeConfiguration.scoringScript", "'%s' is not a path of a file in the code.", clip(q.CodeConfiguration.ScoringScript))
	}
	return checkVariables("properties.environmentVariables", q.Variables)
}

// serving is a deployment with everything it names found.
type serving struct {
	resolved
	model  agent.Tree
	script string
}

func (p *Provider) resolveDeployment(ctx context.Context, ws workspace, endpoint *resource.Document, v onlineDeployment) (*serving, error) {
	q := v.Properties
	out := &serving{script: q.CodeConfiguration.ScoringScript}
	var err error
	if out.size, err = limitsOf("properties.instanceType", q.InstanceType); err != nil {
		return nil, err
	}
	if out.subnet = endpoint.String("properties.properties.subnetId"); out.subnet == "" {
		out.subnet = ws.subnet
	}
	if out.subnet == "" {
		return nil, resource.Errorf(http.StatusBadRequest, "ScoringSubnetMissing",
			"Nothing says in which subnet the instances live. Set properties.serverlessComputeSettings.serverlessComputeCustomSubnet of the workspace, or properties.properties.subnetId of the endpoint.")
	}
	code, err := p.assetVersion(ctx, ws, "properties.codeConfiguration.codeId", "codes", q.CodeConfiguration.CodeID)
	if err != nil {
		return nil, err
	}
	tree, err := p.pinnedTree(ctx, ws, "properties.codeConfiguration.codeId", code.ID)
	if err != nil {
		return nil, err
	}
	out.code = &tree
	env, err := p.assetVersion(ctx, ws, "properties.environmentId", "environments", q.EnvironmentID)
	if err != nil {
		return nil, err
	}
	if out.image, err = p.parseImage("properties.environmentId", env.String("properties.image")); err != nil {
		return nil, err
	}
	if q.Model == nil || q.Model == "" {
		return out, nil // the code needs no model
	}
	ref, ok := q.Model.(string)
	if !ok {
		return nil, resource.NotSupported("Name the model by its ID: azureml:{name}:{version}, or the resource ID of a version.")
	}
	model, err := p.assetVersion(ctx, ws, "properties.model", "models", ref)
	if err != nil {
		return nil, err
	}
	out.model, err = p.pinnedTree(ctx, ws, "properties.model", model.ID)
	return out, err
}

func (p *Provider) reconcileDeployment(ctx context.Context, d *resource.Document) error {
	var v onlineDeployment
	if err := d.Into(&v); err != nil {
		return err
	}
	endpoint, err := p.cfg.Resources.Get(ctx, d.ID.Parent())
	if err != nil {
		return err
	}
	spec := fleet.DeploymentSpec{ID: d.ID.String(), Owner: d.ID.Parent().Parent().Key(), Instances: 1, Revision: revisionOf(d, endpoint)}
	if v.SKU.Capacity != nil {
		spec.Instances = *v.SKU.Capacity
	}
	err = p.serving.Deploy(ctx, spec)
	if errors.Is(err, fleet.ErrInstance) {
		return resource.Errorf(http.StatusBadRequest, "DeploymentFailed", "The deployment did not become healthy: %s Its logs are at getLogs.", err).WithCause(err)
	}
	if errors.Is(err, runtime.ErrUnavailable) { // trying again would not help
		return resource.Errorf(http.StatusServiceUnavailable, "NodesUnavailable", "Nodes cannot run on this machine: it lacks what isolating them needs. The server's log names it.").WithCause(err)
	}
	return err
}

// revisionOf changes with everything that an instance is made from.
func revisionOf(d, endpoint *resource.Document) string {
	h := sha256.New()
	enc := json.NewEncoder(h) // maps are encoded in order of their keys
	for _, path := range []string{"model", "codeConfiguration", "environmentId", "environmentVariables", "instanceType"} {
		_ = enc.Encode(d.Get("properties." + path)) // decoded JSON encodes, and a hash takes all
	}
	_ = enc.Encode(d.Recall("contents"))
	_ = enc.Encode(endpoint.Get("identity"))
	_ = enc.Encode(endpoint.Get("properties.properties.subnetId"))
	return hex.EncodeToString(h.Sum(nil)[:12])
}

func (p *Provider) removeDeployment(ctx context.Context, d *resource.Document) error {
	return p.serving.Withdraw(ctx, d.ID.String())
}

// mayRemoveDeployment protects what takes traffic, unless the endpoint goes too.
func (p *Provider) mayRemoveDeployment(ctx context.Context, d *resource.Document) error {
	if p.leaving(ctx, d.ID.Parent()) {
		return nil
	}
	endpoint, err := p.cfg.Resources.Get(ctx, d.ID.Parent())
	if err != nil {
		return err
	}
	traffic, err := trafficOf(endpoint)
	if err != nil {
		return err
	}
	for name, share := range traffic {
		if share > 0 && strings.EqualFold(name, d.ID.Name()) {
			return resource.Errorf(http.StatusConflict, "DeploymentHasTraffic", "The deployment '%s' takes %d percent of the endpoint's traffic. Set its share to 0 first.", name, share)
		}
	}
	return nil
}

func (p *Provider) viewDeployment(_ context.Context, d *resource.Document) {
	d.Set("properties.readyInstances", p.serving.Ready(d.ID.String()))
	if d.String("properties.endpointComputeType") == "" {
		d.Set("properties.endpointComputeType", "Managed")
	}
}

func (p *Provider) logPlace(ws workspace, deployment resource.ID) place {
	return place{ws.storage, artifactContainer, "EndpointLogs/" + deployment.Parent().Name() + "/" + deployment.Name() + "/"}
}

const maxLogBytes = 1 << 20

// deploymentLogs returns the tail of the newest instance's log.
func (p *Provider) deploymentLogs(ctx context.Context, d *resource.Document, r *resource.Request) (any, error) {
	ws, err := p.workspaceOf(ctx, d.ID)
	if err != nil {
		return nil, err
	}
	caller, err := p.acting(ctx, ws, r.Caller.Person())
	if err != nil {
		return nil, err
	}
	pl := p.logPlace(ws, d.ID)
	items, _, err := p.listPlace(ctx, caller, pl)
	if err != nil {
		return nil, err
	}
	content := ""
	for _, node := range p.serving.Nodes(d.ID.String()) {
		for _, item := range items {
			if path.Base(item.Name) == node+".txt" {
				items = []blob.BlobInfo{item}
			}
		}
	}
	if len(items) > 0 {
		body, _, err := p.cfg.Blobs.GetBlob(ctx, caller, pl.account, pl.container, items[len(items)-1].Name, 0)
		if err != nil {
			return nil, err
		}
		b, err := io.ReadAll(io.LimitReader(body, maxLogBytes))
		if err := errors.Join(err, body.Close()); err != nil {
			return nil, err
		}
		content = string(b)
	}
	return map[string]any{"content": content}, nil
}

// PlanServe implements fleet.ServePlanner.
func (q *planner) PlanServe(ctx context.Context, deployment, node string) (fleet.Plan, error) {
	p := (*Provider)(q)
	id, err := resource.ParseID(deployment)
	if err != nil {
		return fleet.Plan{}, err
	}
	d, err := p.cfg.Resources.Get(ctx, id)
	if err != nil {
		return fleet.Plan{}, err
	}
	endpoint, err := p.cfg.Resources.Get(ctx, id.Parent())
	if err != nil {
		return fleet.Plan{}, err
	}
	ws, err := p.workspaceOf(ctx, id)
	if err != nil {
		return fleet.Plan{}, err
	}
	var v onlineDeployment
	if err := d.Into(&v); err != nil {
		return fleet.Plan{}, err
	}
	as, err := choose(endpoint, nil)
	if err != nil {
		return fleet.Plan{}, err
	}
	res, err := p.resolveDeployment(ctx, ws, endpoint, v)
	if err == nil {
		err = checkContents(d, contents(res.code, nil, res.model))
	}
	if err != nil {
		return fleet.Plan{}, err
	}
	person := d.Recall(personKey)
	if person == "" {
		person = d.Creator.Person()
	}
	img, err := p.image(ctx, ws, res.image, as, person)
	if err != nil {
		return fleet.Plan{}, err
	}
	env := imageEnvironment(img)
	for k, v := range v.Properties.Variables {
		env[k] = v
	}
	p.addPlatform(env, ws, as)
	logs := p.url(p.logPlace(ws, id)) + node
	return fleet.Plan{
		Image: img.Digest, Subnet: res.subnet, Limits: res.size,
		Identity: fleet.Identity{Default: as.id, Identities: []string{as.id}, OnBehalfOf: person, Run: id.String()},
		Spec: agent.Spec{
			Kind: agent.KindServe, RunID: node, Env: env, ClientID: as.client, Code: res.code,
			Logs:  agent.Logs{User: logs + ".txt", System: logs + ".system.txt"},
			Serve: &agent.Serve{EntryScript: res.script, Model: res.model},
		},
	}, nil
}
