package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"casemate.dev/control/audit"
	"casemate.dev/control/certificate"
	"casemate.dev/control/identity"
	"casemate.dev/control/operation"
	"casemate.dev/control/rbac"
	"casemate.dev/dataplane/blob"
	"casemate.dev/dataplane/network"
	"casemate.dev/dataplane/registry"
	"casemate.dev/dataplane/runtime/image"
	"casemate.dev/dataplane/runtime/oci"
	"casemate.dev/dataplane/vault"
	"casemate.dev/envelope"
	"casemate.dev/gateway"
	"casemate.dev/resource"
	"casemate.dev/store"
	"casemate.dev/store/depot"
)

// drainTime is how long open requests may take to end after SIGTERM.
const drainTime = 20 * time.Second

// App is the whole platform, wired. New builds it from the bottom up; Run serves until its context ends.
type App struct {
	cfg   Config
	log   *slog.Logger
	began time.Time
	addr  address

	public net.Listener
	store  store.Store
	depot  depot.Depot
	keys   *envelope.Keys

	audit       *audit.Log
	certificate *certificate.Authority
	identity    *identity.Service
	rbac        *rbac.Engine
	operation   *operation.Engine
	gateway     *gateway.Gateway
	vault       *vault.Service
	blob        *blob.Service
	registry    *registry.Service
	network     *network.Network // nil where this machine cannot have networks
	images      *image.Store     // nil where it cannot have nodes
	nodes       *oci.Runtime

	platform        resource.Caller
	removePrincipal func(ctx context.Context, objectID string) error // set before anything is served
	work            sync.WaitGroup                                   // short background work, ended before the store closes
	runs            []func(context.Context) error                    // background work, all ended before Run returns
	closes          []func() error                                   // in reverse order at the end
	notes           []string                                         // planes that are off, and why
}

// New builds the platform. Nothing is served before Run.
func New(ctx context.Context, cfg Config, log *slog.Logger) (_ *App, err error) {
	a := &App{cfg: cfg, log: log, began: time.Now()}
	defer func() {
		if err != nil {
			err = errors.Join(err, a.close())
		}
	}()
	if a.public, err = net.Listen("tcp", cfg.Listen); err != nil {
		return nil, fmt.Errorf("listening on %s: %w", cfg.Listen, err)
	}
	a.closes = append(a.closes, func() error { a.public.Close(); return nil }) // closed already after a drain
	a.addr = newAddress(cfg.Domain, a.public.Addr())

	var later joints
	if err = a.openKeys(ctx, &later); err != nil {
		return nil, err
	}
	if err = a.openControl(ctx); err != nil {
		return nil, err
	}
	var p *parts
	if p, err = a.openPlanes(ctx, &later); err != nil {
		return nil, err
	}
	if err = a.openEngine(ctx, p, &later); err != nil {
		return nil, err
	}
	if err = a.openGateway(p, &later); err != nil {
		return nil, err
	}
	if err = a.firstStart(ctx); err != nil {
		return nil, err
	}
	return a, p.ready(ctx)
}

// joints are closed late: see late.go.
type joints struct {
	resources lateResources
	inner     lateInner
	vault     lateVault
	use       func(ctx context.Context, id resource.ID) error // refuses the deletion of what a workspace stands on
}

// Run serves until ctx ends, drains, and closes everything.
func (a *App) Run(ctx context.Context, ready func()) error {
	// Background work outlives the listeners, so that requests that drain still find it.
	work, stopWork := context.WithCancel(context.WithoutCancel(ctx))
	defer stopWork()
	// Work that fails ends the process: the next start repairs, while a platform without one of its organs would pretend.
	ctx, fail := context.WithCancel(ctx)
	defer fail()
	end := a.startWork(work, fail)
	serve, ctx := errgroup.WithContext(ctx)
	serve.Go(func() error {
		return a.gateway.Serve(ctx, gateway.Listener{Listener: a.public, TLS: gateway.TLSConfig(a.certificate.Certificate)}, drainTime)
	})
	if ready != nil {
		ready()
	}
	err := serve.Wait()
	err = errors.Join(err, end())
	a.work.Wait()
	return errors.Join(err, a.close())
}

// startWork starts all background work. The function that it returns ends it, what was built last first: nodes that end still find
// the network by which they store their logs.
func (a *App) startWork(ctx context.Context, fail func()) (end func() error) {
	type task struct {
		stop context.CancelFunc
		done chan error
	}
	var tasks []task
	for _, run := range a.runs {
		ctx, stop := context.WithCancel(ctx)
		t := task{stop, make(chan error, 1)}
		tasks = append(tasks, t)
		go func() {
			err := run(ctx)
			switch {
			case ctx.Err() != nil:
				err = nil // it was asked to end
			case err != nil:
				a.log.Error("background work ended; stopping", "cause", err)
				fail()
			}
			t.done <- err
		}()
	}
	return func() error {
		var errs []error
		for i := len(tasks) - 1; i >= 0; i-- {
			tasks[i].stop()
			errs = append(errs, <-tasks[i].done)
		}
		return errors.Join(errs...)
	}
}

func (a *App) close() error {
	var errs []error
	for i := len(a.closes) - 1; i >= 0; i-- {
		errs = append(errs, a.closes[i]())
	}
	a.closes = nil
	return errors.Join(errs...)
}

func (a *App) path(name string) string { return filepath.Join(a.cfg.Data, name) }

// address builds the platform's URLs.
type address struct {
	domain string
	port   int
}

func newAddress(domain string, addr net.Addr) address {
	port := 443
	if t, ok := addr.(*net.TCPAddr); ok {
		port = t.Port
	}
	return address{domain: domain, port: port}
}

// authority appends the public port where it is not 443.
func (a address) authority(host string) string {
	if a.port == 443 {
		return host
	}
	return fmt.Sprintf("%s:%d", host, a.port)
}

// url is the base URL of a platform host, such as management.
func (a address) url(name string) string { return "https://" + a.authority(name+"."+a.domain) }
