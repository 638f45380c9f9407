// Package az drives a running platform with Debian's azure-cli, unmodified and as its users type it.
//
// The client is large, so the test runs only where CI=true or CASEMATE_AZ=1 is set and az is installed. The C library that
// az uses does not resolve *.localhost, so az runs in a mount namespace of its own with its own /etc/hosts; the machine's
// is never touched. That needs root. The test proves nothing about the server's insides and trusts az in everything.
package az

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// bench is a server of this test's own and an az that knows nothing but it.
type bench struct {
	t     *testing.T
	home  string // of az
	hosts string // file that az sees as /etc/hosts
	env   map[string]string
}

func newBench(t *testing.T) *bench {
	t.Helper()
	if os.Getenv("CI") != "true" && os.Getenv("CASEMATE_AZ") != "1" {
		t.Skip("the Azure CLI is a large install: set CASEMATE_AZ=1 to run this test with it (apt-get install --no-install-recommends azure-cli)")
	}
	if _, err := exec.LookPath("az"); err != nil {
		t.Skip("az is not installed: apt-get install --no-install-recommends azure-cli")
	}
	if os.Getuid() != 0 {
		t.Skip("not root: az needs a mount namespace with its own /etc/hosts")
	}
	b := &bench{t: t, home: t.TempDir()}
	b.hosts = filepath.Join(b.home, "hosts")
	dir := b.start()
	b.env = readEnv(t, filepath.Join(dir, "client", "env"))
	b.addHosts("management", "login", "graph")
	return b
}

// start runs a server until the test ends and returns its data directory.
func (b *bench) start() string {
	b.t.Helper()
	binary := os.Getenv("CASEMATE_BIN")
	if binary == "" {
		binary = filepath.Join(b.t.TempDir(), "casemate")
		build := exec.Command("go", "build", "-o", binary, "./cmd/casemate")
		build.Dir, build.Env = "../../..", append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			b.t.Fatalf("building casemate: %v\n%s", err, out)
		}
	}
	dir := filepath.Join(b.t.TempDir(), "data")
	server := exec.Command(binary, "serve", "--data", dir, "--listen", "127.0.0.1:0", "--dns", "")
	server.Stderr = os.Stderr
	out, err := server.StdoutPipe()
	b.check(err)
	b.check(server.Start())
	b.t.Cleanup(func() {
		_ = server.Process.Signal(syscall.SIGTERM) // it may have ended: Wait tells
		timer := time.AfterFunc(time.Minute, func() { _ = server.Process.Kill() })
		defer timer.Stop()
		if err := server.Wait(); err != nil {
			b.t.Errorf("the server ended: %v", err)
		}
	})
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if strings.HasPrefix(lines.Text(), "ready ") {
			return dir
		}
	}
	b.t.Fatal("the server ended before it was ready")
	return ""
}

func (b *bench) check(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

func readEnv(t *testing.T, path string) map[string]string {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	env := map[string]string{}
	for line := range strings.Lines(string(raw)) {
		if name, value, ok := strings.Cut(strings.TrimPrefix(strings.TrimSpace(line), "export "), "="); ok {
			env[name] = strings.Trim(value, `"'`)
		}
	}
	return env
}

// addHosts makes platform names known to az.
func (b *bench) addHosts(names ...string) {
	b.t.Helper()
	domain, _, _ := strings.Cut(b.env["CASEMATE_DOMAIN"], ":")
	text, err := os.ReadFile(b.hosts)
	if err != nil {
		text = []byte("127.0.0.1 localhost\n")
	}
	for _, n := range names {
		text = fmt.Appendf(text, "127.0.0.1 %s.%s\n", n, domain)
	}
	b.check(os.WriteFile(b.hosts, text, 0o644))
}

// az runs one command line and returns what it printed.
func (b *bench) az(args ...string) string {
	b.t.Helper()
	out, errs, err := b.tryAz(args...)
	if err != nil {
		b.t.Fatalf("az %s: %v\n%s%s", strings.Join(args, " "), err, out, errs)
	}
	return out
}

func (b *bench) tryAz(args ...string) (stdout, stderr string, err error) {
	script := `mount --bind "$1" /etc/hosts && shift && exec az "$@"`
	cmd := exec.CommandContext(b.t.Context(), "unshare", append([]string{"--mount", "--propagation", "private", "sh", "-c", script, "sh", b.hosts}, args...)...)
	cmd.Env = append(os.Environ(), "HOME="+b.home, "AZURE_CONFIG_DIR="+filepath.Join(b.home, "az"), "AZURE_CORE_COLLECT_TELEMETRY=0", "AZURE_CORE_OUTPUT=json",
		"AZURE_CORE_ONLY_SHOW_ERRORS=1", "REQUESTS_CA_BUNDLE="+b.env["REQUESTS_CA_BUNDLE"])
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	return out.String(), errs.String(), err
}

// value runs a command whose answer is JSON and returns the string below dots.
func value(t *testing.T, raw, path string) string {
	t.Helper()
	var v any
	if err := json.Unmarshal([]byte(raw), &v); err != nil {
		t.Fatalf("az printed no JSON: %s", raw)
	}
	for name := range strings.SplitSeq(path, ".") {
		m, _ := v.(map[string]any)
		v = m[name]
	}
	return fmt.Sprint(v)
}

func suffix() string {
	var s [5]byte
	_, _ = rand.Read(s[:]) // never fails, see crypto/rand
	return hex.EncodeToString(s[:])
}

// TestAzureCLI is one session of an engineer, from registering the cloud to removing what was made.
func TestAzureCLI(t *testing.T) {
	b := newBench(t)
	b.az("cloud", "register", "-n", "Casemate", "--cloud-config", "@"+filepath.Join(filepath.Dir(b.env["SSL_CERT_FILE"]), "cloud.json"))
	b.az("cloud", "set", "-n", "Casemate")
	b.az("login", "--service-principal", "-u", b.env["AZURE_CLIENT_ID"], "-p", b.env["AZURE_CLIENT_SECRET"], "--tenant", b.env["AZURE_TENANT_ID"])
	if got := value(t, b.az("account", "show"), "id"); got != b.env["AZURE_SUBSCRIPTION_ID"] {
		t.Errorf("az account show: subscription %s, want %s", got, b.env["AZURE_SUBSCRIPTION_ID"])
	}
	if out, errs, err := b.tryAz("login", "--service-principal", "-u", b.env["AZURE_CLIENT_ID"], "-p", "wrong", "--tenant", b.env["AZURE_TENANT_ID"]); err == nil || !strings.Contains(errs, "AADSTS7000215") {
		t.Errorf("az login with a wrong secret: %v\n%s%s", err, out, errs)
	}
	b.groups()
	b.storage()
	b.vault()
}

func (b *bench) groups() {
	b.t.Helper()
	group := "az-" + suffix()
	if got := value(b.t, b.az("group", "create", "-n", group, "-l", "local", "--tags", "ward=7"), "properties.provisioningState"); got != "Succeeded" {
		b.t.Errorf("az group create: state %s", got)
	}
	if out := b.az("group", "list", "--tag", "ward=7"); !strings.Contains(out, group) {
		b.t.Errorf("az group list: %s", out)
	}
	if out := b.az("group", "exists", "-n", group); strings.TrimSpace(out) != "true" {
		b.t.Errorf("az group exists: %s", out)
	}
	if got := value(b.t, b.az("rest", "--method", "get", "--url", "/subscriptions/{subscriptionId}/resourcegroups/"+group+"?api-version=2021-04-01"), "name"); got != group {
		b.t.Errorf("az rest: name %s", got)
	}
	b.az("group", "delete", "-n", group, "--yes")
	if out := b.az("group", "exists", "-n", group); strings.TrimSpace(out) != "false" {
		b.t.Errorf("az group exists after deletion: %s", out)
	}
}

// assign gives the administrator a data role. Debian's "az role assignment" crashes in the client (azure-cli 2.45.0), so az rest does it.
func (b *bench) assign(scope, role string) {
	b.t.Helper()
	name := uuid()
	body, err := json.Marshal(map[string]any{"properties": map[string]any{"principalId": b.env["CASEMATE_OBJECT_ID"], "principalType": "ServicePrincipal",
		"roleDefinitionId": "/subscriptions/" + b.env["AZURE_SUBSCRIPTION_ID"] + "/providers/Microsoft.Authorization/roleDefinitions/" + role}})
	b.check(err)
	b.az("rest", "--method", "put", "--url", scope+"/providers/Microsoft.Authorization/roleAssignments/"+name+"?api-version=2022-04-01", "--body", string(body))
}

func uuid() string {
	var u [16]byte
	_, _ = rand.Read(u[:]) // never fails, see crypto/rand
	u[6], u[8] = u[6]&0x0f|0x40, u[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
}

func (b *bench) storage() {
	t := b.t
	t.Helper()
	group, account := "az-"+suffix(), "sa"+suffix()
	b.addHosts(account + ".blob.core")
	b.az("group", "create", "-n", group, "-l", "local")
	made := b.az("storage", "account", "create", "-n", account, "-g", group, "-l", "local", "--sku", "Standard_LRS")
	b.assign(value(t, made, "id"), "b7e6dc6d-f1e8-4753-8033-0f276bb0955b") // Storage Blob Data Owner
	login := []string{"--account-name", account, "--auth-mode", "login"}
	run := func(args ...string) string { t.Helper(); return b.az(append(args, login...)...) }
	if out := run("storage", "container", "create", "-n", "data"); value(t, out, "created") != "true" {
		t.Errorf("az storage container create: %s", out)
	}
	if out := run("storage", "container", "list"); !strings.Contains(out, `"data"`) {
		t.Errorf("az storage container list: %s", out)
	}
	content := bytes.Repeat([]byte("one line of patients' measurements\n"), 200_000) // seven megabytes
	up, down := filepath.Join(b.home, "up.csv"), filepath.Join(b.home, "down.csv")
	b.check(os.WriteFile(up, content, 0o600))
	run("storage", "blob", "upload", "-c", "data", "-n", "dir/a b.csv", "-f", up, "--no-progress")
	if out := run("storage", "blob", "list", "-c", "data"); !strings.Contains(out, "dir/a b.csv") {
		t.Errorf("az storage blob list: %s", out)
	}
	run("storage", "blob", "download", "-c", "data", "-n", "dir/a b.csv", "-f", down, "--no-progress")
	got, err := os.ReadFile(down)
	b.check(err)
	if !bytes.Equal(got, content) {
		t.Errorf("downloaded %d bytes, want the %d that were uploaded", len(got), len(content))
	}
	run("storage", "blob", "delete", "-c", "data", "-n", "dir/a b.csv")
	if out, errs, err := b.tryAz("storage", "container", "list", "--account-name", account, "--auth-mode", "key"); err == nil {
		t.Errorf("az storage with the account's key succeeded: %s%s", out, errs)
	}
	b.az("group", "delete", "-n", group, "--yes")
}

func (b *bench) vault() {
	t := b.t
	t.Helper()
	group, name := "az-"+suffix(), "kv-"+suffix()
	b.addHosts(name + ".vault")
	b.az("group", "create", "-n", group, "-l", "local")
	made := b.az("keyvault", "create", "-n", name, "-g", group, "-l", "local", "--enable-rbac-authorization", "true")
	if out := b.az("keyvault", "list"); !strings.Contains(out, name) {
		t.Errorf("az keyvault list: %s", out)
	}
	b.assign(value(t, made, "id"), "00482a5a-887f-4fb3-b363-3b7fe8e74483") // Key Vault Administrator
	domain := b.env["CASEMATE_DOMAIN"]
	secret := func(method string, more ...string) string {
		t.Helper()
		return b.az(append([]string{"rest", "--method", method, "--url", "https://" + name + ".vault." + domain + "/secrets/s1?api-version=7.4", "--resource", "https://vault." + domain}, more...)...)
	}
	secret("put", "--body", `{"value":"hello"}`)
	if got := value(t, secret("get"), "value"); got != "hello" {
		t.Errorf("the secret is %q", got)
	}
	b.az("keyvault", "delete", "-n", name, "-g", group)
	b.az("group", "delete", "-n", group, "--yes")
}
