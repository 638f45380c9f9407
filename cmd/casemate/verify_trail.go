package main

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"casemate.dev/control/audit"
	"casemate.dev/store"
)

// verifyTrail opens keys and trail only; nothing is served and nothing is written.
func verifyTrail(ctx context.Context, cfg Config, log *slog.Logger) (rep audit.Report, err error) {
	a := &App{cfg: cfg, log: log}
	defer func() { err = errors.Join(err, a.close()) }()
	var later joints
	if err := a.openKeys(ctx, &later); err != nil {
		return rep, err
	}
	h, err := a.platformHandle(ctx, keyAudit)
	if err != nil {
		return rep, err
	}
	key, err := signingKey(ctx, h, oneRecord{a.store, store.Key("audit", "key")})
	if err != nil {
		return rep, err
	}
	return audit.Check(ctx, audit.Config{Dir: a.path("audit"), Sealer: h, Key: key, Head: auditHead{a.store}, Clock: time.Now})
}
