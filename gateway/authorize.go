package gateway

import (
	"context"
	"fmt"
	"net/http"
	"strings"

	"casemate.dev/resource"
)

// authorize asks for the row's action at the row's scope.
func (g *Gateway) authorize(x *exchange) error {
	r := x.r
	if r.Route.Open != "" {
		x.entry.Reason = r.Route.Open
		return nil
	}
	action, isData, scope, err := actionOf(r)
	if err != nil {
		return err
	}
	r.Action, r.Scope = action, scope
	reason, err := g.decide(r.Caller, action, isData, scope)
	x.entry.Reason = reason
	return err
}

func (g *Gateway) decide(c resource.Caller, action string, isData bool, scope string) (string, error) {
	id, err := resource.ParseID(scope)
	if err != nil {
		return "", resource.Errorf(http.StatusBadRequest, "InvalidResourceID", "The scope '%s' of the request is malformed.", clip(scope, 200)).WithCause(err)
	}
	allowed, reason := g.cfg.Authorize.Authorize(c, action, isData, id)
	if !allowed {
		return reason, resource.Forbidden(c, action, scope)
	}
	return reason, nil
}

func actionOf(r *resource.Request) (action string, isData bool, scope string, err error) {
	if r.Route.Resolve != nil {
		return r.Route.Resolve(r)
	}
	action, isData = r.Route.Action, false
	if r.Route.DataAction != "" {
		action, isData = r.Route.DataAction, true
	}
	scope, err = expand(r.Route.Scope, r)
	return action, isData, scope, err
}

// expand fills a scope template in.
func expand(template string, r *resource.Request) (string, error) {
	if !strings.Contains(template, "{") {
		return template, nil
	}
	var b strings.Builder
	for rest := template; ; {
		before, after, ok := strings.Cut(rest, "{")
		b.WriteString(before)
		if !ok {
			break
		}
		name, behind, ok := strings.Cut(after, "}")
		if !ok {
			return "", fmt.Errorf("scope template %q has an open brace", template)
		}
		value := r.Vars[name]
		if name == "resource" {
			value = r.Resource
		}
		if value == "" {
			return "", fmt.Errorf("scope template %q: nothing is known for {%s}", template, name)
		}
		b.WriteString(value)
		rest = behind
	}
	s := b.String()
	if len(s) > 1 && strings.HasPrefix(s, "//") {
		s = s[1:] // {scope} of the tenant
	}
	return s, nil
}

// Enter is the in-process entry of one plane into another: the same authorize and record stages, for the caller acted for.
func (g *Gateway) Enter(ctx context.Context, c resource.Caller, action string, isData bool, scope string, category resource.Category) (func(error), error) {
	x := &exchange{began: g.cfg.Clock(), r: &resource.Request{Caller: c, Action: action, Scope: scope, CorrelationID: correlationFrom(ctx),
		Origin: resource.Origin{Kind: resource.OriginInternal}}}
	x.entry.Plane, x.entry.Category, x.entry.Operation = "internal", category.String(), action
	reason, err := g.decide(c, action, isData, scope)
	x.entry.Reason = reason
	if err != nil {
		g.recordRefusal(x, resource.AsError(err))
		return nil, err
	}
	if err := g.append(ctx, x, category.Durable()); err != nil {
		return nil, err
	}
	return func(outcome error) {
		x.entry.Status = resource.StatusOf(outcome)
		if outcome != nil {
			x.entry.Code = resource.AsError(outcome).Code
		}
		g.recordOutcome(x)
	}, nil
}
