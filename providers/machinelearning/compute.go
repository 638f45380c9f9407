package machinelearning

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"

	"casemate.dev/dataplane/runtime"
	"casemate.dev/providers/machinelearning/fleet"
	"casemate.dev/resource"
)

// size is a machine size: what a node of it may use of this machine.
type size struct {
	cpus int64
	gib  int64
}

// sizes are the machine sizes by Azure's names, folded. Nodes get the processors and the memory, not the hardware.
var sizes = map[string]size{
	"standard_ds1_v2": {1, 3}, "standard_ds2_v2": {2, 7}, "standard_ds3_v2": {4, 14}, "standard_ds4_v2": {8, 28},
	"standard_ds11_v2": {2, 14}, "standard_ds12_v2": {4, 28},
	"standard_d2_v2": {2, 7}, "standard_d2_v3": {2, 8}, "standard_d2s_v3": {2, 8}, "standard_d4_v3": {4, 16}, "standard_d4s_v3": {4, 16},
	"standard_d2as_v4": {2, 8}, "standard_d4as_v4": {4, 16}, "standard_d2a_v4": {2, 8}, "standard_d4a_v4": {4, 16},
	"standard_e2s_v3": {2, 16}, "standard_e4s_v3": {4, 32},
	"standard_f2s_v2": {2, 4}, "standard_f4s_v2": {4, 8}, "standard_f8s_v2": {8, 16},
	"standard_b1ms": {1, 2}, "standard_b2s": {2, 4}, "standard_b2ms": {2, 8}, "standard_a1_v2": {1, 2}, "standard_a2_v2": {2, 4},
}

const defaultInstanceType = "Standard_F4s_v2" // of deployments (FACTS section 10)

func limitsOf(target, name string) (runtime.Limits, error) {
	s, ok := sizes[strings.ToLower(name)]
	if !ok {
		var names []string
		for n := range sizes {
			names = append(names, n)
		}
		slices.Sort(names)
		return runtime.Limits{}, resource.Invalid(target, "The size '%s' is not known. Known are: %s.", name, strings.Join(names, ", "))
	}
	return runtime.Limits{MemoryBytes: s.gib << 30, CPUMillis: s.cpus * 1000}, nil
}

func (p *Provider) computeType() resource.Type {
	return resource.Type{
		Name: computeType, APIVersions: versions, Owner: workspaceType, Async: true, Created: http.StatusCreated,
		NamePattern: regexp.MustCompile(`^[a-zA-Z][a-zA-Z0-9-]{1,22}[a-zA-Z0-9]$`),
		NameRule:    "Use 3 to 24 letters, digits and hyphens, begin with a letter and do not end with a hyphen",
		Validate:    p.validateCompute,
		// Reconcile makes nothing: a cluster has no node before its first job. It makes the type long-running, as clients demand (CLIENTS.md, section 8).
		Reconcile: func(context.Context, *resource.Document) error { return nil },
		MayRemove: p.mayRemoveCompute, View: p.viewCompute,
		Actions: []resource.Action{
			{Name: "listNodes", Permission: computeType + "/listNodes/action", Audit: resource.AuditRead, Handler: p.listNodes},
			{Name: "listKeys", Permission: computeType + "/listKeys/action", Audit: resource.AuditSecret, Handler: func(context.Context, *resource.Document, *resource.Request) (any, error) {
				return nil, resource.NotSupported("An AmlCompute cluster has no keys: nodes are reached by their jobs only.")
			}},
		},
	}
}

// amlCompute is the view of a cluster.
type amlCompute struct {
	Properties struct {
		ComputeType string `json:"computeType"`
		Properties  struct {
			OSType           string `json:"osType"`
			VMSize           string `json:"vmSize"`
			VMPriority       string `json:"vmPriority"`
			EnableNodePublic *bool  `json:"enableNodePublicIp"`
			RemoteLogin      string `json:"remoteLoginPortPublicAccess"`
			Subnet           struct {
				ID string `json:"id"`
			} `json:"subnet"`
			ScaleSettings struct {
				Max  *int   `json:"maxNodeCount"`
				Min  *int   `json:"minNodeCount"`
				Idle string `json:"nodeIdleTimeBeforeScaleDown"`
			} `json:"scaleSettings"`
		} `json:"properties"`
	} `json:"properties"`
}

const (
	computeProps  = "properties.properties"
	maxClusterMax = 100
	defaultIdle   = "PT120S"
)

var liveCompute = []string{"allocationState", "allocationStateTransitionTime", "currentNodeCount", "targetNodeCount", "nodeStateCounts", "errors"}

func (p *Provider) validateCompute(ctx context.Context, w *resource.Write) error {
	d := w.New
	for _, name := range liveCompute {
		d.Unset(computeProps + "." + name)
	}
	var c amlCompute
	if err := d.Into(&c); err != nil {
		return err
	}
	if !strings.EqualFold(c.Properties.ComputeType, "AmlCompute") {
		return resource.NotSupported("The compute type '%s' is not supported. Use AmlCompute.", c.Properties.ComputeType)
	}
	if err := checkFixedCompute(w); err != nil {
		return err
	}
	if err := d.Into(&c); err != nil { // with what keepFixed has filled in
		return err
	}
	if err := checkCompute(c); err != nil {
		return err
	}
	if w.Old == nil {
		if err := p.checkSubnet(ctx, w.Caller, computeProps+".subnet.id", c.Properties.Properties.Subnet.ID); err != nil {
			return err
		}
	}
	if err := p.foresee(w, c); err != nil {
		return err
	}
	completeCompute(d, c)
	return nil
}

// foresee refuses a cluster that could grow beyond its subnet, before the first job waits for an address in vain (row N1).
func (p *Provider) foresee(w *resource.Write, c amlCompute) error {
	more := *c.Properties.Properties.ScaleSettings.Max
	if w.Old != nil {
		var was amlCompute
		if err := w.Old.Into(&was); err != nil {
			return err
		}
		if m := was.Properties.Properties.ScaleSettings.Max; m != nil {
			more -= *m
		}
	}
	if more <= 0 || p.cfg.Foresee == nil {
		return nil
	}
	return p.cfg.Foresee(c.Properties.Properties.Subnet.ID, more)
}

// checkFixedCompute: after its creation only a cluster's scale settings and identity change.
func checkFixedCompute(w *resource.Write) error {
	if w.Old == nil {
		return nil
	}
	return keepFixed(w, []string{"computeType", "properties.vmSize", "properties.vmPriority", "properties.subnet.id", "properties.enableNodePublicIp", "properties.osType"})
}

func checkCompute(c amlCompute) error {
	q := c.Properties.Properties
	if _, err := limitsOf(computeProps+".vmSize", q.VMSize); err != nil {
		return err
	}
	if q.Subnet.ID == "" {
		return resource.Invalid(computeProps+".subnet.id", "A cluster needs a subnet: nodes have private addresses only. Give the resource ID of one in properties.properties.subnet.id.")
	}
	if q.EnableNodePublic != nil && *q.EnableNodePublic {
		return resource.NotSupported("Nodes have no public addresses. Set enableNodePublicIp to false or leave it out.")
	}
	if strings.EqualFold(q.RemoteLogin, "Enabled") {
		return resource.NotSupported("Nodes have no SSH port. Set remoteLoginPortPublicAccess to Disabled or leave it out.")
	}
	if q.OSType != "" && !strings.EqualFold(q.OSType, "Linux") {
		return resource.NotSupported("Nodes run Linux; the osType '%s' is not supported.", q.OSType)
	}
	s := q.ScaleSettings
	switch {
	case s.Max == nil || *s.Max < 0 || *s.Max > maxClusterMax:
		return resource.Invalid(computeProps+".scaleSettings.maxNodeCount", "A cluster needs a maxNodeCount of 0 to %d.", maxClusterMax)
	case s.Min != nil && *s.Min != 0:
		return resource.NotSupported("Nodes live as long as their job and start within a second, so none are kept idle: set minNodeCount to 0.")
	}
	if s.Idle != "" {
		if _, err := parseDuration(s.Idle); err != nil {
			return resource.Invalid(computeProps+".scaleSettings.nodeIdleTimeBeforeScaleDown", "'%s' is not an ISO 8601 duration such as %s.", s.Idle, defaultIdle)
		}
	}
	return nil
}

func completeCompute(d *resource.Document, c amlCompute) {
	set := func(path string, value any) {
		if v := d.Get(computeProps + "." + path); v == nil || v == "" {
			d.Set(computeProps+"."+path, value)
		}
	}
	set("osType", "Linux")
	set("vmPriority", "Dedicated")
	set("enableNodePublicIp", false)
	set("remoteLoginPortPublicAccess", "Disabled")
	set("scaleSettings.minNodeCount", 0)
	set("scaleSettings.nodeIdleTimeBeforeScaleDown", defaultIdle)
	if d.Get("properties.disableLocalAuth") == nil {
		d.Set("properties.disableLocalAuth", true)
	}
	d.Set("properties.isAttachedCompute", false)
	if d.String("properties.computeLocation") == "" {
		d.Set("properties.computeLocation", d.Location())
	}
}

func (p *Provider) mayRemoveCompute(_ context.Context, d *resource.Document) error {
	if counts, _ := p.jobs.Cluster(d.ID.String()); counts.Nodes() > 0 || counts.Queued > 0 {
		return resource.Errorf(http.StatusConflict, "ComputeInUse", "The cluster '%s' has %d running and %d waiting jobs. Cancel them first.", d.ID.Name(), counts.Nodes(), counts.Queued)
	}
	return nil
}

func (p *Provider) viewCompute(_ context.Context, d *resource.Document) {
	counts, _ := p.jobs.Cluster(d.ID.String())
	state := "Steady"
	if counts.Preparing > 0 || counts.Leaving > 0 {
		state = "Resizing"
	}
	d.Set(computeProps+".allocationState", state)
	d.Set(computeProps+".currentNodeCount", counts.Nodes())
	d.Set(computeProps+".targetNodeCount", counts.Preparing+counts.Running)
	d.Set(computeProps+".nodeStateCounts", map[string]any{"idleNodeCount": 0, "runningNodeCount": counts.Running, "preparingNodeCount": counts.Preparing,
		"leavingNodeCount": counts.Leaving, "preemptedNodeCount": 0, "unusableNodeCount": 0})
	if !d.System.CreatedAt.IsZero() {
		d.Set("properties.createdOn", d.System.CreatedAt.Format(time.RFC3339Nano))
		d.Set("properties.modifiedOn", d.System.LastModifiedAt.Format(time.RFC3339Nano))
	}
}

func (p *Provider) listNodes(_ context.Context, d *resource.Document, _ *resource.Request) (any, error) {
	_, states := p.jobs.Cluster(d.ID.String())
	nodes := make([]any, 0, len(states))
	for _, s := range states {
		state := "running"
		switch s.Status {
		case fleet.Preparing:
			state = "preparing"
		case fleet.Finalizing, fleet.CancelRequested:
			state = "leaving"
		}
		nodes = append(nodes, map[string]any{"nodeId": s.Node, "nodeState": state, "runId": nameOf(s.Job)})
	}
	return map[string]any{"nodes": nodes}, nil
}

func nameOf(id string) string { return id[strings.LastIndexByte(id, '/')+1:] }

var isoDuration = regexp.MustCompile(`^P(?:(\d{1,4})D)?(?:T(?:(\d{1,5})H)?(?:(\d{1,6})M)?(?:(\d{1,8})S)?)?$`)

// parseDuration reads the ISO 8601 durations that Azure ML uses: days, hours, minutes, whole seconds.
func parseDuration(s string) (time.Duration, error) {
	m := isoDuration.FindStringSubmatch(s)
	if m == nil || s == "P" || strings.HasSuffix(s, "T") {
		return 0, errors.New("malformed duration")
	}
	var total time.Duration
	for i, unit := range []time.Duration{24 * time.Hour, time.Hour, time.Minute, time.Second} {
		n := 0
		if m[i+1] != "" {
			if _, err := fmt.Sscanf(m[i+1], "%d", &n); err != nil {
				return 0, err
			}
		}
		total += time.Duration(n) * unit
	}
	return total, nil
}
