package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"time"

	"casemate.dev/control/audit"
	"casemate.dev/control/certificate"
	"casemate.dev/control/identity"
	"casemate.dev/control/rbac"
	"casemate.dev/envelope"
	"casemate.dev/resource"
	"casemate.dev/store"
	depotfile "casemate.dev/store/depot/file"
	"casemate.dev/store/pebble"
)

// The platform's own resource keys: what they seal belongs to no customer.
const (
	keyIdentity    = "casemate/identity"
	keyAudit       = "casemate/audit"
	keyCertificate = "casemate/certificate"
	keyImages      = "casemate/images"
	keyBackups     = "casemate/vault-backups"
)

// openKeys opens root of trust, metadata store, depot and resource keys.
func (a *App) openKeys(ctx context.Context, later *joints) error {
	if err := os.MkdirAll(a.cfg.Data, 0o700); err != nil {
		return fmt.Errorf("making the data directory: %w", err)
	}
	unlock, err := lockDirectory(a.cfg.Data)
	if err != nil {
		return err
	}
	a.closes = append(a.closes, unlock)
	root, err := envelope.OpenRoot(a.cfg.Root, a.path("keys"))
	if err != nil {
		return err
	}
	hierarchy, err := envelope.OpenHierarchy(ctx, a.cfg.Data, root)
	if err != nil {
		return err
	}
	s, err := pebble.Open(pebble.Config{Dir: a.path("store"), Cipher: hierarchy.Files()})
	if err != nil {
		return err
	}
	a.store = s
	a.closes = append(a.closes, s.Close)
	a.runs = append(a.runs, s.Run)
	if a.depot, err = depotfile.Open(a.path("depot")); err != nil {
		return err
	}
	a.keys = envelope.NewKeys(hierarchy, keyRecords{s}, &later.vault, envelope.Options{})
	a.runs = append(a.runs, a.keys.Run)
	return nil
}

// platformHandle is the handle of one of the platform's own keys.
func (a *App) platformHandle(ctx context.Context, name string) (*envelope.Handle, error) {
	if err := a.keys.Create(ctx, name, nil); err != nil {
		return nil, fmt.Errorf("making the key %s: %w", name, err)
	}
	return a.keys.Handle(ctx, name)
}

// openControl opens what decides and remembers: audit log, certificates, directory, roles.
func (a *App) openControl(ctx context.Context) error {
	h, err := a.platformHandle(ctx, keyAudit)
	if err != nil {
		return err
	}
	key, err := signingKey(ctx, h, oneRecord{a.store, store.Key("audit", "key")})
	if err != nil {
		return err
	}
	if a.audit, err = audit.Open(ctx, audit.Config{Dir: a.path("audit"), Sealer: h, Key: key, Head: auditHead{a.store}, Clock: time.Now}); err != nil {
		return err
	}
	a.runs = append(a.runs, a.audit.Run)

	if h, err = a.platformHandle(ctx, keyCertificate); err != nil {
		return err
	}
	if a.certificate, err = certificate.Open(ctx, certificate.Config{Sealer: h, Records: oneRecord{a.store, store.Key("certificate", "root")},
		Domain: a.cfg.Domain, Names: certificateNames(), Clock: time.Now}); err != nil {
		return err
	}
	if h, err = a.platformHandle(ctx, keyIdentity); err != nil {
		return err
	}
	if a.identity, err = identity.New(identity.Config{Store: a.store, Sealer: h, Authority: a.addr.authority, Domain: a.cfg.Domain,
		PrincipalRemoved: a.principalRemoved}); err != nil {
		return err
	}
	a.runs = append(a.runs, a.identity.Run)
	roles, err := rbac.BuiltIn()
	if err != nil {
		return err
	}
	a.rbac = rbac.New(roles...)
	if err := a.writeClientFiles(); err != nil {
		return err
	}
	if _, err := a.identity.Bootstrap(ctx, a.writeAdministrator); err != nil {
		return err
	}
	a.platform = resource.Caller{Kind: resource.KindPlatform, Tenant: a.identity.HomeTenant(), Object: "ca5e3a7e-0000-4000-8000-000000000001", Name: "Casemate"}
	return nil
}

// signingKey loads the audit log's ECDSA key, or makes it at the first start.
func signingKey(ctx context.Context, h *envelope.Handle, rec oneRecord) (*ecdsa.PrivateKey, error) {
	const object = "audit signing key"
	sealed, err := rec.Load(ctx)
	if err != nil {
		return nil, fmt.Errorf("loading the audit signing key: %w", err)
	}
	if sealed == nil {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, fmt.Errorf("generating the audit signing key: %w", err)
		}
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return nil, fmt.Errorf("encoding the audit signing key: %w", err)
		}
		if sealed, err = h.SealBytes(object, der); err != nil {
			return nil, fmt.Errorf("sealing the audit signing key: %w", err)
		}
		return key, rec.Save(ctx, sealed)
	}
	der, err := h.OpenBytes(object, sealed)
	if err != nil {
		return nil, fmt.Errorf("opening the audit signing key: %w", err)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, fmt.Errorf("parsing the audit signing key: %w", err)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok {
		return nil, errors.New("the audit signing key is not an ECDSA key")
	}
	return key, nil
}
