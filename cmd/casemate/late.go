package main

import (
	"context"
	"errors"
	"sync/atomic"

	"casemate.dev/control/operation"
	"casemate.dev/dataplane/vault"
	"casemate.dev/envelope"
	"casemate.dev/gateway"
	"casemate.dev/resource"
)

// Some planes need each other: types are declared before the engine that keeps their documents exists, rows before the
// gateway that serves them. These joints are given out first and closed once, before anything is served.

var errNotJoined = errors.New("the platform is still starting")

// lateResources is the operation engine, joined later.
type lateResources struct {
	p atomic.Pointer[operation.Engine]
}

func (l *lateResources) engine() (*operation.Engine, error) {
	if e := l.p.Load(); e != nil {
		return e, nil
	}
	return nil, errNotJoined
}

func (l *lateResources) Get(ctx context.Context, id resource.ID) (*resource.Document, error) {
	e, err := l.engine()
	if err != nil {
		return nil, err
	}
	return e.Get(ctx, id)
}

func (l *lateResources) List(ctx context.Context, typ string, below resource.ID) ([]*resource.Document, error) {
	e, err := l.engine()
	if err != nil {
		return nil, err
	}
	return e.List(ctx, typ, below)
}

func (l *lateResources) Put(ctx context.Context, c resource.Caller, id resource.ID, body map[string]any) (*resource.Document, error) {
	e, err := l.engine()
	if err != nil {
		return nil, err
	}
	return e.Put(ctx, c, id, body)
}

func (l *lateResources) Update(ctx context.Context, id resource.ID, fn func(*resource.Document) error) (*resource.Document, error) {
	e, err := l.engine()
	if err != nil {
		return nil, err
	}
	return e.Update(ctx, id, fn)
}

func (l *lateResources) Delete(ctx context.Context, c resource.Caller, id resource.ID) error {
	e, err := l.engine()
	if err != nil {
		return err
	}
	return e.Delete(ctx, c, id)
}

func (l *lateResources) Again(ctx context.Context, id resource.ID) error {
	e, err := l.engine()
	if err != nil {
		return err
	}
	return e.Again(ctx, id)
}

// lateInner is the gateway's in-process entry, joined later.
type lateInner struct {
	p atomic.Pointer[gateway.Gateway]
}

func (l *lateInner) Enter(ctx context.Context, c resource.Caller, action string, isData bool, scope string, category resource.Category) (func(error), error) {
	g := l.p.Load()
	if g == nil {
		return nil, errNotJoined
	}
	return g.Enter(ctx, c, action, isData, scope, category)
}

// lateVault is the key vault plane, as the envelope asks it to wrap and unwrap; joined later.
type lateVault struct{ p atomic.Pointer[vault.Service] }

func (l *lateVault) WrapKey(ctx context.Context, ref envelope.KeyRef, plain []byte) ([]byte, string, error) {
	v := l.p.Load()
	if v == nil {
		return nil, "", errNotJoined
	}
	return v.WrapKey(ctx, ref, plain)
}

func (l *lateVault) UnwrapKey(ctx context.Context, ref envelope.KeyRef, kid string, wrapped []byte) ([]byte, error) {
	v := l.p.Load()
	if v == nil {
		return nil, errNotJoined
	}
	return v.UnwrapKey(ctx, ref, kid, wrapped)
}
