// Package scoring is the front of online endpoints: it authenticates a scoring request, picks a deployment by its share of the
// traffic, and passes the request to a ready instance inside its virtual network (row C9).
//
// It is for clients that score. TLS, limits, origin and audit are the gateway's; instances are kept by the machine-learning
// provider, which tells through Endpoints what an endpoint is. Callers are anonymous until the key or token they present has
// been checked here: keys by comparison in constant time, tokens by the token service and a role on the endpoint.
//
// Instances run foreign code and may answer anything, late or never: answers are bounded in time, hop-by-hop headers and headers that could speak
// for the platform are dropped, and an instance's error reaches the client as a model error, never as the platform's.
// Where a request goes follows from the server's own tables; no header of the client names a host or a port (THREATS R7).
// The package keeps no request or answer.
package scoring

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"casemate.dev/resource"
)

// Modes of authentication, as Azure ML spells authMode.
const (
	ModeKey   = "Key"
	ModeToken = "AADToken"
)

// Endpoint is what scoring needs to know of an online endpoint.
type Endpoint struct {
	ID      resource.ID
	Mode    string
	Keys    []string       // valid keys, in ModeKey
	Traffic map[string]int // percent by deployment name
}

// Endpoints tells what an endpoint is and lends ready instances.
type Endpoints interface {
	Endpoint(ctx context.Context, id resource.ID) (Endpoint, error)
	// Borrow picks a ready instance of a deployment; release must be called when the request is over.
	Borrow(deployment resource.ID) (node string, release func(), ok bool)
}

// Authorizer decides whether a caller holds an action at a scope; control/rbac's engine.
type Authorizer interface {
	Authorize(c resource.Caller, action string, isData bool, scope resource.ID) (allowed bool, reason string)
}

// Config is what the plane needs; all fields are required unless they say otherwise.
type Config struct {
	Endpoints Endpoints
	// Verify makes a caller of a bearer token that is good for scoring.
	Verify    func(ctx context.Context, token string) (resource.Caller, error)
	Authorize Authorizer
	// Dial connects to a port of a node from the platform's address inside its network.
	Dial func(ctx context.Context, node string, port int) (net.Conn, error)
	Port int             // of instances; optional, 5001
	Log  *slog.Logger    // optional
	Pick func(n int) int // a number in [0,n); optional, random
}

const (
	scoreAction    = "Microsoft.MachineLearningServices/workspaces/onlineEndpoints/score/action"
	requestLimit   = 10 << 20
	responseLimit  = 64 << 20
	requestTime    = 60 * time.Second
	deploymentHead = "azureml-model-deployment"
)

// Service is the scoring plane. It is safe for concurrent use.
type Service struct{ cfg Config }

// New makes the plane.
func New(cfg Config) (*Service, error) {
	if cfg.Endpoints == nil || cfg.Verify == nil || cfg.Authorize == nil || cfg.Dial == nil {
		return nil, errors.New("scoring: a required field of the configuration is missing")
	}
	if cfg.Port == 0 {
		cfg.Port = 5001
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Pick == nil {
		cfg.Pick = rand.IntN
	}
	return &Service{cfg}, nil
}

// Routes are the rows of the scoring plane.
func (s *Service) Routes() []resource.Route {
	const open = "an endpoint key, or a token whose principal may score, is checked by the handler"
	row := func(name, method, pattern string, body int64, audit resource.Category, h resource.Handler) resource.Route {
		return resource.Route{Name: name, Plane: resource.PlaneScoring, Method: method, Pattern: pattern, Versions: resource.Unversioned(), Open: open,
			Origin: resource.OriginResource, Body: body, Timeout: requestTime, Audit: audit, Handler: h}
	}
	return []resource.Route{
		row("OnlineEndpoints_Score", http.MethodPost, "/score", requestLimit, resource.AuditData, s.score),
		row("OnlineEndpoints_Liveness", http.MethodGet, "/", -1, resource.AuditData, s.live),
	}
}

// live answers who may score that the endpoint has an instance; it says nothing to others.
func (s *Service) live(w http.ResponseWriter, r *resource.Request) error {
	e, err := s.admit(r)
	if err != nil {
		return err
	}
	name, err := s.choose(e, "")
	if err != nil {
		return err
	}
	_, release, err := s.borrow(e, name)
	if err != nil {
		return err
	}
	release()
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = w.Write([]byte("Healthy")) // the peer may be gone
	return nil
}

// admit authenticates and authorises.
func (s *Service) admit(r *resource.Request) (Endpoint, error) {
	id, err := resource.ParseID(r.Resource)
	if err != nil {
		return Endpoint{}, resource.Errorf(http.StatusNotFound, "EndpointNotFound", "There is no such endpoint.")
	}
	scheme, credential, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	credential = strings.TrimSpace(credential)
	if !strings.EqualFold(scheme, "Bearer") || credential == "" {
		return Endpoint{}, unauthorized() // before anything is read for it
	}
	e, err := s.cfg.Endpoints.Endpoint(r.Context(), id)
	if err != nil {
		return Endpoint{}, err
	}
	if e.Mode == ModeKey {
		if !matches(e.Keys, credential) {
			return Endpoint{}, unauthorized()
		}
		r.Remember("auth", "key")
		return e, nil
	}
	c, err := s.cfg.Verify(r.Context(), credential)
	if err != nil {
		return Endpoint{}, unauthorized().WithCause(err)
	}
	if c.Node != "" && c.Node != r.Origin.Node { // the gateway checks this for the rows that it authenticates (THREATS R9)
		return Endpoint{}, unauthorized().WithCause(errors.New("the token was issued to a node and is valid on that node only"))
	}
	if allowed, _ := s.cfg.Authorize.Authorize(c, scoreAction, false, e.ID); !allowed || c.Anonymous() {
		return Endpoint{}, resource.Forbidden(c, scoreAction, e.ID.String())
	}
	r.Remember("auth", "token")
	r.Remember("principal", c.Object)
	r.Remember("person", c.Person())
	return e, nil
}

func unauthorized() *resource.Error {
	e := resource.Errorf(http.StatusUnauthorized, "key_auth_access_denied", "Present a key or a token of this endpoint: 'Authorization: Bearer …'.")
	e.Header = http.Header{"Www-Authenticate": {"Bearer"}}
	return e
}

// matches compares with every key, so that time tells neither which one matched nor how far. Hashing makes lengths equal.
func matches(keys []string, presented string) bool {
	p := sha256.Sum256([]byte(presented))
	found := 0
	for _, k := range keys {
		h := sha256.Sum256([]byte(k))
		if k != "" {
			found |= subtle.ConstantTimeCompare(h[:], p[:])
		}
	}
	return found == 1
}

// choose picks a deployment: the named one, or by lot according to the shares.
func (s *Service) choose(e Endpoint, named string) (string, error) {
	if named != "" {
		for name := range e.Traffic {
			if strings.EqualFold(name, named) {
				return name, nil
			}
		}
		return "", resource.Errorf(http.StatusNotFound, "DeploymentNotFound", "The endpoint has no deployment '%.64s'.", named)
	}
	names, total := make([]string, 0, len(e.Traffic)), 0
	for name, share := range e.Traffic {
		names = append(names, name)
		total += share
	}
	if total == 0 {
		return "", resource.Errorf(http.StatusServiceUnavailable, "NoDeploymentWithTraffic", "No deployment of the endpoint has traffic. Set properties.traffic.")
	}
	slices.Sort(names)
	lot := s.cfg.Pick(total)
	for _, name := range names {
		if lot -= e.Traffic[name]; lot < 0 {
			return name, nil
		}
	}
	return names[len(names)-1], nil
}

func (s *Service) borrow(e Endpoint, name string) (string, func(), error) {
	id, err := e.ID.Child("deployments", name)
	if err != nil {
		return "", nil, err
	}
	node, release, ok := s.cfg.Endpoints.Borrow(id)
	if !ok {
		refused := resource.Errorf(http.StatusServiceUnavailable, "DeploymentNotReady", "The deployment '%s' has no instance that is ready. See its logs.", name)
		refused.RetryAfter = time.Second
		return "", nil, refused
	}
	return node, release, nil
}
