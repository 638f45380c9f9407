package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"casemate.dev/control/identity"
	"casemate.dev/internal/durable"
)

// lockDirectory makes sure that one process at a time works on a data directory.
func lockDirectory(dir string) (func() error, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening the lock of the data directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("another process works on the data directory %s: %w", dir, err)
	}
	return f.Close, nil
}

// writeClientFiles writes what clients need beside credentials: the authority's certificate and the cloud description.
func (a *App) writeClientFiles() error {
	dir := a.path("client")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("making the client directory: %w", err)
	}
	cloud, err := json.MarshalIndent(a.cloud(), "", "  ")
	if err != nil {
		return fmt.Errorf("encoding the cloud description: %w", err)
	}
	return errors.Join(
		durable.WriteFile(filepath.Join(dir, "ca.pem"), a.certificate.PEM(), 0o600),
		durable.WriteFile(filepath.Join(dir, "cloud.json"), append(cloud, '\n'), 0o600))
}

// cloud is the argument of "az cloud register --cloud-config" (CLIENTS.md, section 1.2).
func (a *App) cloud() map[string]any {
	return map[string]any{
		"endpoints": map[string]any{
			"resourceManager": a.addr.url("management"), "management": a.addr.url("management") + "/", "activeDirectory": a.addr.url("login") + "/adfs",
			"activeDirectoryResourceId": a.addr.url("management") + "/", "activeDirectoryGraphResourceId": a.addr.url("graph") + "/", "microsoftGraphResourceId": a.addr.url("graph") + "/",
		},
		"suffixes": map[string]any{
			"keyvaultDns": "." + a.addr.authority("vault."+a.cfg.Domain), "storageEndpoint": a.addr.authority("core." + a.cfg.Domain),
			"acrLoginServerEndpoint": "." + a.addr.authority("azurecr."+a.cfg.Domain), "mhsmDns": "." + a.addr.authority("managedhsm."+a.cfg.Domain),
		},
	}
}

// writeAdministrator writes the only copy of the administrator's secret.
func (a *App) writeAdministrator(admin identity.Administrator) error {
	return a.writeEnv(map[string]string{"AZURE_TENANT_ID": admin.TenantID, "AZURE_CLIENT_ID": admin.ClientID, "AZURE_CLIENT_SECRET": admin.Secret, "CASEMATE_OBJECT_ID": admin.ObjectID})
}

// envNames is the order in which DIR/client/env lists its assignments.
var envNames = []string{"AZURE_TENANT_ID", "AZURE_CLIENT_ID", "AZURE_CLIENT_SECRET", "AZURE_SUBSCRIPTION_ID", "AZURE_AUTHORITY_HOST", "SSL_CERT_FILE",
	"REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS", "CASEMATE_ENDPOINT", "CASEMATE_DOMAIN", "CASEMATE_OBJECT_ID"}

// writeEnv lays values over those of DIR/client/env; what depends on the address is always current.
func (a *App) writeEnv(values map[string]string) error {
	path := filepath.Join(a.path("client"), "env")
	all, err := readEnv(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	ca := filepath.Join(a.path("client"), "ca.pem")
	for k, v := range map[string]string{"AZURE_AUTHORITY_HOST": a.addr.url("login") + "/", "SSL_CERT_FILE": ca, "REQUESTS_CA_BUNDLE": ca, "NODE_EXTRA_CA_CERTS": ca,
		"CASEMATE_ENDPOINT": a.addr.url("management"), "CASEMATE_DOMAIN": a.addr.authority(a.cfg.Domain)} {
		all[k] = v
	}
	for k, v := range values {
		all[k] = v
	}
	var b strings.Builder
	for _, k := range envNames {
		if v, ok := all[k]; ok {
			fmt.Fprintf(&b, "export %s='%s'\n", k, v)
		}
	}
	return durable.WriteFile(path, []byte(b.String()), 0o600)
}

// readEnv reads the assignments that writeEnv wrote.
func readEnv(path string) (map[string]string, error) {
	out := map[string]string{}
	b, err := os.ReadFile(path)
	if err != nil {
		return out, fmt.Errorf("reading the client environment: %w", err)
	}
	for line := range strings.Lines(string(b)) {
		k, v, ok := strings.Cut(strings.TrimPrefix(strings.TrimSpace(line), "export "), "=")
		if ok {
			out[k] = strings.Trim(v, "'")
		}
	}
	return out, nil
}

// writeHosts keeps DIR/client/hosts current: a line for /etc/hosts with each name that exists.
func (a *App) writeHosts(_ context.Context, names []string) error {
	var b strings.Builder
	for _, n := range names {
		fmt.Fprintf(&b, "%s %s\n", publicIPv4(a.public.Addr()), n)
	}
	return durable.WriteFile(filepath.Join(a.path("client"), "hosts"), []byte(b.String()), 0o600)
}
