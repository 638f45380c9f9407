package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"casemate.dev/control/audit"
	"casemate.dev/control/identity"
	"casemate.dev/dataplane/network"
	"casemate.dev/dataplane/runtime"
	"casemate.dev/dataplane/runtime/image"
	"casemate.dev/dataplane/runtime/oci"
	"casemate.dev/dataplane/scoring"
	"casemate.dev/dataplane/tracking"
	"casemate.dev/envelope"
	"casemate.dev/gateway"
	"casemate.dev/providers/machinelearning"
	"casemate.dev/providers/machinelearning/fleet"
	networkprovider "casemate.dev/providers/network"
	"casemate.dev/resource"
	"casemate.dev/store"
)

// openNetwork builds the network plane. On a machine that cannot have networks it is off, and says why.
func (a *App) openNetwork(p *parts, later *joints) (err error) {
	unavailable := network.SelfTest()
	if unavailable != nil {
		a.notes = append(a.notes, "virtual networks and nodes, because "+unavailable.Error())
	} else {
		a.network = network.New(network.Config{Instance: a.cfg.Data, Log: a.log})
		a.closes = append(a.closes, a.network.Close)
	}
	cfg := networkprovider.Config{Resources: &later.resources, Unavailable: unavailable, Authorize: a.rbac, Domain: a.cfg.Domain, Port: uint16(a.addr.port), Platform: a.platform,
		Serve: a.servePrivate(true), ServeNode: a.servePrivate(false), Logger: a.log,
		InUse: func(ctx context.Context, id resource.ID) error { return later.inUse(ctx, id) }}
	if a.network != nil {
		cfg.Plane = a.network
	}
	if p.network, err = networkprovider.New(cfg); err != nil {
		return err
	}
	p.add(p.network.Types(), p.network.Routes())
	for _, t := range networkprovider.ObservedTypes() {
		p.watch(t, p.network.Observe)
	}
	p.readies = append(p.readies, p.network.Load)
	a.runs = append(a.runs, p.network.Run)
	return nil
}

// servePrivate lets connections from inside networks into the gateway: with TLS, or plain for instance metadata.
func (a *App) servePrivate(secure bool) networkprovider.Serve {
	return func(ctx context.Context, l net.Listener, origin func(net.Conn) resource.Origin) error {
		listener := gateway.Listener{Listener: l, Origin: origin}
		if secure {
			listener.TLS = gateway.TLSConfig(a.certificate.Certificate)
		}
		return a.gateway.Serve(ctx, listener, time.Second)
	}
}

// openNodes opens image store and node runtime.
func (a *App) openNodes(ctx context.Context) error {
	if a.network == nil {
		return nil
	}
	dir := a.path("nodes")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("making the directory of nodes: %w", err)
	}
	nodes, err := oci.New(oci.Config{Dir: dir, Images: rootfsOf{a}, Log: a.log})
	if errors.Is(err, runtime.ErrUnavailable) {
		a.notes = append(a.notes, "nodes, because "+err.Error())
		return nil
	}
	if err != nil {
		return err
	}
	// Nodes of a killed server hold its image volume: they go before it is opened again.
	if err := nodes.Cleanup(ctx); err != nil {
		return fmt.Errorf("clearing what an earlier process left of its nodes: %w", err)
	}
	images, err := image.Open(ctx, image.Config{Dir: a.path("images"), Key: a.imageKey, Log: a.log})
	if err != nil {
		a.notes = append(a.notes, "nodes, because "+err.Error())
		return nil
	}
	a.closes = append(a.closes, images.Close, func() error { return nodes.Cleanup(context.WithoutCancel(ctx)) })
	a.images, a.nodes = images, nodes
	a.closes = append(a.closes, func() error { // all nodes have gone by now: so do their empty places in /run and the control groups
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		return nodes.Cleanup(ctx)
	})
	a.runs = append(a.runs, func(ctx context.Context) error {
		if err := a.nodes.SelfTest(ctx); err != nil && ctx.Err() == nil {
			a.log.Error("nodes cannot run on this machine", "cause", err)
		}
		return nil
	})
	return nil
}

// rootfsOf gives nodes the root file systems of the image store, which is opened after the runtime.
type rootfsOf struct{ a *App }

func (r rootfsOf) Rootfs(ctx context.Context, digest string) (dir string, release func(), err error) {
	if r.a.images == nil {
		return "", nil, errNoNodes
	}
	return r.a.images.Rootfs(ctx, digest)
}

// imageKey is the key of the image volume. It is random, sealed under the platform's key, and handed out to open the volume.
func (a *App) imageKey(ctx context.Context, name string) ([]byte, error) {
	h, err := a.platformHandle(ctx, keyImages)
	if err != nil {
		return nil, err
	}
	return sealedSecret(ctx, h, oneRecord{a.store, store.Key("image", "key", name)}, "key of image volume "+name)
}

// openMachineLearning builds the workspace planes.
func (a *App) openMachineLearning(p *parts, later *joints) error {
	track, err := tracking.New(tracking.Config{Store: a.store, Authority: a.addr.authority, Domain: a.cfg.Domain,
		Handles: func(ctx context.Context, ws string) (tracking.Handle, error) { return a.keys.Handle(ctx, ws) }})
	if err != nil {
		return err
	}
	cfg := machinelearning.Config{
		Resources: &later.resources, Store: a.store, Keys: workspaceKeys{a.keys}, Principals: a.identity, Blobs: a.blob, Images: imagePuller{a}, Runs: track,
		Handles: func(ctx context.Context, id string) (fleet.Handle, error) { return a.keys.Handle(ctx, id) },
		Network: attachments{p.network}, Dial: a.dialNetwork, Foresee: p.network.Foresee, Connections: p.network.ConnectionsOf,
		Authorize: a.rbac,
		Authority: a.addr.authority, Domain: a.cfg.Domain, Tenant: a.identity.HomeTenant(), Platform: a.platform, CA: a.certificate.PEM(),
		RunToken: func(ctx context.Context, node, id, audience string) (string, error) {
			t, err := a.identity.RunToken(ctx, node, id, audience)
			return t.Raw, err
		}, Refused: a.recordRefusal, Log: a.log}
	cfg.Runtime = noNodes{}
	if a.nodes != nil {
		cfg.Runtime = a.nodes
	}
	if p.ml, err = machinelearning.New(cfg); err != nil {
		return err
	}
	track.Join(p.ml, p.ml)
	a.identity.JoinNodes(nodeRegistry{p.ml.Registry()})
	later.use = p.ml.InUse
	score, err := scoring.New(scoring.Config{Endpoints: p.ml, Log: a.log, Dial: p.ml.DialInstance, Authorize: a.rbac,
		Verify: func(ctx context.Context, token string) (resource.Caller, error) {
			return a.identity.Verify(ctx, token, a.identity.Audience(resource.PlaneScoring))
		}})
	if err != nil {
		return err
	}
	a.runs = append(a.runs, p.ml.Run)
	p.add(p.ml.Types(), append(track.Routes(), score.Routes()...))
	return nil
}

// recordRefusal puts on the trail that a node has refused changed code or a changed model (THREATS R1, R4).
func (a *App) recordRefusal(ctx context.Context, r fleet.Refusal) error {
	return a.audit.Append(ctx, audit.Entry{Phase: audit.PhaseOutcome, Plane: string(resource.PlaneNode), Category: resource.AuditWrite.String(), Operation: "Node_Refuse",
		Scope: r.ID, Resource: r.ID, Caller: a.platform.Object, CallerName: a.platform.Name, CallerKind: string(a.platform.Kind),
		Person: r.OnBehalfOf, Run: r.Run, Node: r.Node, Origin: "node", Code: r.Code, Reason: r.Message}, true)
}

// sealedSecret loads 64 random bytes that are kept sealed, or makes them.
func sealedSecret(ctx context.Context, h *envelope.Handle, rec oneRecord, object string) ([]byte, error) {
	sealed, err := rec.Load(ctx)
	if err != nil {
		return nil, fmt.Errorf("loading the %s: %w", object, err)
	}
	if sealed != nil {
		return h.OpenBytes(object, sealed)
	}
	secret := randomBytes(64)
	if sealed, err = h.SealBytes(object, secret); err != nil {
		return nil, fmt.Errorf("sealing the %s: %w", object, err)
	}
	return secret, rec.Save(ctx, sealed)
}

// workspaceKeys are the envelope's keys under the provider's own name for a reference.
type workspaceKeys struct{ *envelope.Keys }

func keyRef(r *machinelearning.KeyRef) *envelope.KeyRef {
	if r == nil {
		return nil
	}
	return &envelope.KeyRef{KeyURL: r.KeyURL, Identity: r.Identity}
}

func (w workspaceKeys) Create(ctx context.Context, id string, ref *machinelearning.KeyRef) error {
	return w.Keys.Create(ctx, id, keyRef(ref))
}

func (w workspaceKeys) Rebind(ctx context.Context, id string, ref *machinelearning.KeyRef) error {
	return w.Keys.Rebind(ctx, id, keyRef(ref))
}

// nodeRegistry tells the identity plane who nodes are.
type nodeRegistry struct{ r *fleet.Registry }

func (n nodeRegistry) NodeIdentity(node string) (identity.NodeIdentity, bool) {
	id, ok := n.r.NodeIdentity(node)
	return identity.NodeIdentity(id), ok
}

// attachments give nodes their place in a subnet.
type attachments struct{ *networkprovider.Provider }

func (t attachments) Attach(ctx context.Context, node, subnet string) (fleet.Attachment, error) {
	at, err := t.Provider.Attach(ctx, node, subnet)
	return fleet.Attachment{NetNSPath: at.NetNSPath, ResolvConf: at.ResolvConf, Address: at.IP}, err
}

// dialNetwork connects from the platform's address inside a network.
func (a *App) dialNetwork(ctx context.Context, network, address string) (net.Conn, error) {
	if a.network == nil {
		return nil, errNoNodes
	}
	return a.network.DialNode(ctx, network, address)
}

// imagePuller pulls in process, with the rights of the identity that the node will have.
type imagePuller struct{ a *App }

func (i imagePuller) Ensure(ctx context.Context, c resource.Caller, registry resource.ID, repository, reference string) (machinelearning.Image, error) {
	if i.a.images == nil {
		return machinelearning.Image{}, errNoNodes
	}
	sep := ":"
	if strings.HasPrefix(reference, "sha256:") {
		sep = "@"
	}
	host := i.a.addr.authority(strings.ToLower(registry.Name()) + ".azurecr." + i.a.cfg.Domain)
	img, err := i.a.images.Pull(ctx, image.Pull{Reference: host + "/" + repository + sep + reference, Transport: i.a.gateway.Transport(c)})
	switch name := repository + sep + reference; {
	case errors.Is(err, runtime.ErrNoImage):
		err = resource.Errorf(http.StatusBadRequest, "ImageNotFound", "The image '%s' is not in the registry '%s'. Push it, or correct the environment.", name, registry.Name())
	case errors.Is(err, image.ErrDenied):
		err = resource.Errorf(http.StatusForbidden, "ImagePullDenied", "The identity '%s' may not pull the image '%s' from the registry '%s'. It needs the role AcrPull there.", c.DisplayName(), name, registry.Name())
	}
	return machinelearning.Image{Digest: img.Digest, Env: img.Env}, err
}

var errNoNodes = resource.Errorf(http.StatusServiceUnavailable, "NodesUnavailable",
	"This machine cannot run nodes; the server said why when it started. Start it as root on Linux with an OCI runtime installed.")
