package gateway

import (
	"context"
	"net/http"
	"time"

	"github.com/google/uuid"

	"casemate.dev/control/audit"
	"casemate.dev/resource"
)

type correlationKey struct{}

func correlationFrom(ctx context.Context) string {
	if s, ok := ctx.Value(correlationKey{}).(string); ok {
		return s
	}
	return uuid.NewString()
}

// record writes the decision before any effect. When it cannot, the request is refused: what is not on record does not
// happen.
func (g *Gateway) record(x *exchange) error {
	r := x.r
	r.Request = r.Request.WithContext(context.WithValue(r.Context(), correlationKey{}, r.CorrelationID))
	if r.Route.Audit == resource.AuditProbe {
		return nil
	}
	return g.append(r.Context(), x, r.Route.Audit.Durable())
}

func (g *Gateway) append(ctx context.Context, x *exchange, durable bool) error {
	e := g.describe(x)
	e.Phase, e.Allowed = audit.PhaseDecision, true
	if err := g.cfg.Record.Append(ctx, e, durable); err != nil {
		return unrecorded(err)
	}
	x.opened = true
	return nil
}

func unrecorded(err error) error {
	e := resource.Errorf(http.StatusServiceUnavailable, "AuditLogUnavailable", "The audit log cannot be written, so nothing may be served. Ask your administrator to look at the audit log's disk.").WithCause(err)
	e.RetryAfter = 5 * time.Second
	return e
}

// recordRefusal keeps who was refused what. That it cannot be kept changes nothing for the caller: the answer is no.
func (g *Gateway) recordRefusal(x *exchange, err *resource.Error) {
	if x.r.Route != nil && x.r.Route.Audit == resource.AuditProbe {
		return
	}
	e := g.describe(x)
	e.Phase, e.Allowed, e.Status, e.Code = audit.PhaseDecision, false, err.Status, err.Code
	if appendErr := g.cfg.Record.Append(context.WithoutCancel(g.contextOf(x)), e, false); appendErr != nil {
		g.cfg.Logger.Error("refusal not recorded", "correlationId", x.r.CorrelationID, "cause", appendErr)
	}
}

// recordOutcome completes the record of a request that was let in.
func (g *Gateway) recordOutcome(x *exchange) {
	if !x.opened {
		return
	}
	e := g.describe(x)
	e.Phase, e.Allowed, e.Note = audit.PhaseOutcome, true, x.r.Note
	e.Millis = g.cfg.Clock().Sub(x.began).Milliseconds()
	if e.Status == 0 && x.w != nil {
		e.Status = x.w.status
	}
	if e.Status == 0 {
		e.Status = http.StatusOK
	}
	if err := g.cfg.Record.Append(context.WithoutCancel(g.contextOf(x)), e, false); err != nil {
		g.cfg.Logger.Error("outcome not recorded", "correlationId", x.r.CorrelationID, "cause", err)
	}
}

func (g *Gateway) contextOf(x *exchange) context.Context {
	if x.r.Request != nil {
		return x.r.Context()
	}
	return context.Background()
}

// describe fills an entry from what the stages found so far.
func (g *Gateway) describe(x *exchange) audit.Entry {
	r, e := x.r, x.entry
	e.Correlation, e.Action, e.Scope, e.Resource = r.CorrelationID, r.Action, r.Scope, r.Resource
	if r.Route != nil {
		e.Plane, e.Operation, e.Category = string(r.Route.Plane), r.Route.Name, r.Route.Audit.String()
	}
	c := r.Caller
	e.Caller, e.CallerName, e.CallerKind, e.App, e.Tenant, e.TokenID = c.Object, c.DisplayName(), string(c.Kind), c.App, c.Tenant, c.TokenID
	e.Person, e.Run, e.Node = c.OnBehalfOf, c.Run, c.Node
	o := r.Origin
	e.Origin, e.Endpoint, e.Network = o.Kind.String(), o.PrivateEndpoint, o.Network
	if o.Remote.IsValid() {
		e.Remote = o.Remote.String()
	}
	return e
}
