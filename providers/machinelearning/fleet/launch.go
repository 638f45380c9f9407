package fleet

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"time"

	"casemate.dev/dataplane/runtime"
	"casemate.dev/dataplane/runtime/agent"
)

// Plan is one piece of work made concrete for one node.
type Plan struct {
	Image        string // digest in the image store
	Subnet       string // ARM id
	Limits       runtime.Limits
	ScratchBytes int64
	Identity     Identity // Secret is made by the fleet
	Spec         agent.Spec
	Tokens       map[string]string // environment variable → audience of a token of the node's identity
	Deadline     time.Duration     // backstop behind the agent's own time limit; 0: none
}

// Attachment is a node's place in a virtual network.
type Attachment struct {
	Address    netip.Addr
	NetNSPath  string
	ResolvConf []byte
	Hosts      []byte // may be nil
}

// Network gives nodes their addresses. Attach must have closed the namespace by the subnet's rules when it returns.
type Network interface {
	Attach(ctx context.Context, node, subnet string) (Attachment, error)
	Detach(ctx context.Context, node string) error
}

// Metadata are the places where a node asks for tokens; the values of IDENTITY_ENDPOINT and MSI_ENDPOINT.
type Metadata struct {
	IdentityEndpoint string
	MSIEndpoint      string
}

// Refusal is what a node refused to run: its agent found other bytes than the registered ones (THREATS R1, R4).
type Refusal struct {
	ID, Node, Run, OnBehalfOf string // ID is the job's or the deployment's
	Code, Message             string
}

// launcher starts one node and takes it away again.
type launcher struct {
	runtime  runtime.Runtime
	network  Network
	registry *Registry
	token    func(ctx context.Context, node, identity, audience string) (string, error)
	metadata Metadata
	ca       []byte
	refused  func(ctx context.Context, r Refusal) error // may be nil
	log      func(msg string, args ...any)
}

// cleanupTime bounds the removal of a node, which goes on when the server is asked to stop.
const cleanupTime = 30 * time.Second

// start attaches and starts a node that the registry has reserved, for a job or a deployment. The caller must call end, also after an error.
func (l *launcher) start(ctx context.Context, work, node string, plan Plan, record func(context.Context, agent.Event) error) (runtime.Node, *agent.Controller, error) {
	if plan.Identity.Default == "" {
		return nil, nil, fmt.Errorf("starting node %s: the plan has no identity", node)
	}
	plan.Identity.Secret = newSecret()
	l.registry.set(node, plan.Identity)
	at, err := l.network.Attach(ctx, node, plan.Subnet)
	if err != nil {
		return nil, nil, fmt.Errorf("attaching node %s to %s: %w", node, plan.Subnet, err)
	}
	l.registry.attach(node, plan.Subnet, at.Address)
	spec := plan.Spec
	spec.Env = maps.Clone(spec.Env)
	if spec.Env == nil {
		spec.Env = map[string]string{}
	}
	spec.Env["IDENTITY_ENDPOINT"], spec.Env["IDENTITY_HEADER"] = l.metadata.IdentityEndpoint, plan.Identity.Secret
	spec.Env["MSI_ENDPOINT"], spec.Env["MSI_SECRET"] = l.metadata.MSIEndpoint, plan.Identity.Secret
	for variable, audience := range plan.Tokens {
		if spec.Env[variable], err = l.token(ctx, node, plan.Identity.Default, audience); err != nil {
			return nil, nil, fmt.Errorf("getting token for node %s: %w", node, err)
		}
	}
	ctrl := agent.NewController(spec, l.telling(work, node, plan.Identity, record))
	n, err := l.runtime.Start(ctx, runtime.NodeSpec{
		ID: node, Image: plan.Image, NetNSPath: at.NetNSPath, Limits: plan.Limits, ScratchBytes: plan.ScratchBytes,
		ResolvConf: at.ResolvConf, Hosts: at.Hosts, CA: l.ca, Agent: ctrl,
	})
	if err != nil {
		return nil, nil, fmt.Errorf("starting node %s: %w", node, err)
	}
	return n, ctrl, nil
}

// telling tells of refusals before record hears of them; when that fails the agent reports again.
func (l *launcher) telling(work, node string, who Identity, record func(context.Context, agent.Event) error) func(context.Context, agent.Event) error {
	return func(ctx context.Context, e agent.Event) error {
		if e.Code == agent.CodeIntegrity && l.refused != nil {
			r := Refusal{ID: work, Node: node, Run: who.Run, OnBehalfOf: who.OnBehalfOf, Code: e.Code, Message: clip(e.Error, 2000)}
			if err := l.refused(ctx, r); err != nil {
				return fmt.Errorf("recording refusal: %w", err)
			}
		}
		return record(ctx, e)
	}
}

// end ends the node's identity (its tokens are dead from here on), destroys the node, and only then gives its address back: an
// address is never somebody else's while its old holder lives. n may be nil.
func (l *launcher) end(ctx context.Context, node string, n runtime.Node) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
	defer cancel()
	l.registry.remove(node)
	var errs []error
	if n != nil {
		errs = append(errs, n.Remove(ctx))
	}
	errs = append(errs, l.network.Detach(ctx, node))
	if err := errors.Join(errs...); err != nil {
		l.log("removing node", "node", node, "error", err)
	}
}
