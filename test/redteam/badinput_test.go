package redteam

import (
	"bytes"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"casemate.dev/test/harness"
)

// badInput is the table of what clients get wrong: each row gets a clear refusal in its plane's dialect, never a 5xx, and
// leaves nothing behind.
func badInput(t *testing.T, w *world) {
	group := w.Subscription() + "/resourceGroups/bad-" + harness.Suffix()
	vault := w.group + "/providers/Microsoft.KeyVault/vaults/"
	account := w.group + "/providers/Microsoft.Storage/storageAccounts/"
	put, get := http.MethodPut, http.MethodGet
	deep := strings.Repeat(`{"a":`, 20_000) + "1" + strings.Repeat("}", 20_000)
	for _, c := range []struct {
		what, method, url string
		body              any
		header            http.Header
		status            int
		code              string
	}{
		{"no JSON", put, w.arm(group, "2021-04-01"), "{", nil, 400, "InvalidRequestContent"},
		{"an array", put, w.arm(group, "2021-04-01"), "[]", nil, 400, "InvalidRequestContent"},
		{"null", put, w.arm(group, "2021-04-01"), "null", nil, 400, "InvalidRequestContent"},
		{"no body", put, w.arm(group, "2021-04-01"), "", nil, 400, "InvalidRequestContent"},
		{"two values", put, w.arm(group, "2021-04-01"), `{"location":"local"}{}`, nil, 400, "InvalidRequestContent"},
		{"deep nesting", put, w.arm(group, "2021-04-01"), deep, nil, 400, "InvalidRequestContent"},
		{"a string for an object", put, w.arm(group, "2021-04-01"), `{"location":"local","tags":"x"}`, nil, 400, ""},
		{"no location", put, w.arm(group, "2021-04-01"), `{}`, nil, 400, "LocationRequired"},
		{"another id in the body", put, w.arm(group, "2021-04-01"), `{"location":"local","id":"/subscriptions/x"}`, nil, 400, "InvalidRequestContent"},
		{"oversized body", put, w.arm(group, "2021-04-01"), bytes.Repeat([]byte("x"), 5<<20), nil, 413, "RequestBodyTooLarge"},
		{"oversized body without length", put, w.arm(group, "2021-04-01"), endless{bytes.NewReader(append([]byte(`{"location":"`), bytes.Repeat([]byte("x"), 5<<20)...))}, nil, 413, "RequestBodyTooLarge"},
		{"no api-version", get, w.URL("management", w.group), nil, nil, 400, "MissingApiVersionParameter"},
		{"an old api-version", get, w.arm(w.group, "2009-01-01"), nil, nil, 400, "InvalidApiVersionParameter"},
		{"a word for api-version", get, w.arm(w.group, "latest"), nil, nil, 400, "InvalidApiVersionParameter"},
		{"a broken query", get, w.URL("management", w.group+"?api-version=2021-04-01&x=%zz"), nil, nil, 400, "InvalidQueryParameterValue"},
		{"a group name with a dot at the end", put, w.arm(w.Subscription()+"/resourceGroups/dot.", "2021-04-01"), `{"location":"local"}`, nil, 400, "InvalidResourceName"},
		{"a group name of 91", put, w.arm(w.Subscription()+"/resourceGroups/"+strings.Repeat("x", 91), "2021-04-01"), `{"location":"local"}`, nil, 400, "InvalidResourceName"},
		{"another subscription", get, w.arm("/subscriptions/11111111-2222-4333-8444-555555555555/resourceGroups/x", "2021-04-01"), nil, nil, 404, ""},
		{"a type that is not", get, w.arm(w.group+"/providers/Microsoft.Nothing/things/x", "2021-04-01"), nil, nil, 404, ""},
		{"a missing group", put, w.arm(group+"/providers/Microsoft.KeyVault/vaults/kv-lost", harness.VersionVault), w.vaultBody(), nil, 404, "ResourceGroupNotFound"},
		{"If-Match of another", put, w.arm(w.group, "2021-04-01"), `{"location":"local"}`, http.Header{"If-Match": {`"x"`}}, 412, ""},
		{"If-None-Match of what exists", put, w.arm(w.group, "2021-04-01"), `{"location":"local"}`, http.Header{"If-None-Match": {"*"}}, 412, ""},
		{"If-Match of what is not", put, w.arm(group, "2021-04-01"), `{"location":"local"}`, http.Header{"If-Match": {"*"}}, 412, ""},
		{"a vault name with an underscore", put, w.arm(vault+"a_b", harness.VersionVault), w.vaultBody(), nil, 400, ""},
		{"a vault name of 25", put, w.arm(vault+strings.Repeat("v", 25), harness.VersionVault), w.vaultBody(), nil, 400, ""},
		{"an account name with a capital", put, w.arm(account+"Account1", harness.VersionStorage), `{"location":"local","kind":"StorageV2","sku":{"name":"Standard_LRS"}}`, nil, 400, ""},
		{"a role that is not", put, w.arm(w.group+"/providers/Microsoft.Authorization/roleAssignments/5a8e6c1e-7b1f-4d0c-9a55-0d7c0a3a5b11", harness.VersionRole), w.AssignmentBody("11111111-2222-4333-8444-555555555555", w.nobody), nil, 400, ""},
		{"an assignment named by a word", put, w.arm(w.group+"/providers/Microsoft.Authorization/roleAssignments/mine", harness.VersionRole), w.AssignmentBody(harness.RoleReader, w.nobody), nil, 400, ""},
		{"secret: no JSON", put, w.secretURL("s"), "{", nil, 400, "BadParameter"},
		{"secret: no value", put, w.secretURL("s"), "{}", nil, 400, "BadParameter"},
		{"secret: too long", put, w.secretURL("s"), `{"value":"` + strings.Repeat("x", 26_000) + `"}`, nil, 400, "BadParameter"},
		{"secret: bad name", put, w.URL(w.vaultHost, "/secrets/a_b?api-version=7.4"), `{"value":"x"}`, nil, 400, "BadParameter"},
		{"secret: no version", put, w.URL(w.vaultHost, "/secrets/s"), `{"value":"x"}`, nil, 400, ""},
		{"key: no type", http.MethodPost, w.URL(w.vaultHost, "/keys/k/create?api-version=7.4"), "{}", nil, 400, "BadParameter"},
		{"key: small RSA", http.MethodPost, w.URL(w.vaultHost, "/keys/k/create?api-version=7.4"), `{"kty":"RSA","key_size":512}`, nil, 400, "BadParameter"},
		{"key: bad base64", http.MethodPost, w.URL(w.vaultHost, "/keys/k/wrapkey?api-version=7.4"), `{"alg":"RSA-OAEP-256","value":"!!!"}`, nil, 400, "BadParameter"},
		{"blob: container name", put, w.URL(w.blobHost, "/Not_A_Name?restype=container"), nil, nil, 400, "InvalidResourceName"},
		{"blob: no type", put, w.URL(w.blobHost, "/open/x"), "x", nil, 400, "MissingRequiredHeader"},
		{"blob: stale ETag", put, w.URL(w.blobHost, "/closed/secret.csv"), "x", http.Header{"X-Ms-Blob-Type": {"BlockBlob"}, "If-Match": {`"0x1"`}}, 412, "ConditionNotMet"},
		{"blob: MD5", put, w.URL(w.blobHost, "/open/x"), "x", http.Header{"X-Ms-Blob-Type": {"BlockBlob"}, "Content-Md5": {"AAAAAAAAAAAAAAAAAAAAAA=="}}, 400, "Md5Mismatch"},
		{"blob: block id", put, w.URL(w.blobHost, "/open/x?comp=block&blockid=!"), "x", nil, 400, ""},
		{"blob: block list", put, w.URL(w.blobHost, "/open/x?comp=blocklist"), "<BlockList><Latest>AAAA</Latest></BlockList>", nil, 400, "InvalidBlockList"},
		{"blob: XML bomb", put, w.URL(w.blobHost, "/open/x?comp=blocklist"), `<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]><BlockList><Latest>&b;</Latest></BlockList>`, nil, 400, ""},
		{"blob: range", get, w.URL(w.blobHost, "/closed/secret.csv"), nil, http.Header{"Range": {"bytes=100000-"}}, 416, "InvalidRange"},
		{"blob: max results", get, w.URL(w.blobHost, "/closed?restype=container&comp=list&maxresults=-1"), nil, nil, 400, ""},
		{"graph: no JSON", http.MethodPost, w.URL("graph", "/v1.0/applications"), "{", nil, 400, ""},
		{"graph: password", http.MethodPost, w.URL("graph", "/v1.0/users"), `{"displayName":"x","userPrincipalName":"x@y","passwordProfile":{}}`, nil, 501, ""},
		{"graph: unknown property", http.MethodPost, w.URL("graph", "/v1.0/groups"), `{"displayName":"x","unknown":1}`, nil, 501, ""},
		{"graph: filter", get, w.URL("graph", "/v1.0/users?$filter=((((("), nil, nil, 400, ""},
	} {
		a := w.send(t, harness.Call{Method: c.method, URL: c.url, As: w.Admin, Body: c.body, Header: c.header})
		if a.Status != c.status || c.code != "" && a.Code() != c.code {
			t.Errorf("%s = %v (%s), want %d %s", c.what, a, a.Code(), c.status, c.code)
		}
		if a.Code() == "" && len(a.Body) > 0 {
			t.Errorf("%s: the refusal has no code: %v", c.what, a)
		}
		if a.Header.Get("x-ms-request-id") == "" {
			t.Errorf("%s: no x-ms-request-id", c.what)
		}
	}
	w.MustARM(t, get, group, harness.VersionGroup, nil, 404)
	if got := w.send(t, harness.Call{Method: get, URL: w.URL(w.blobHost, "/closed/secret.csv"), As: w.Admin}); string(got.Body) != canary {
		t.Errorf("after all the refusals the canary is %v", got)
	}
	longHeaders(t, w)
	badConfiguration(t, w)
}

// endless hides the length of a body.
type endless struct{ *bytes.Reader }

func (e endless) Len() {}

func (w *world) arm(id, version string) string {
	return w.URL("management", id+"?api-version="+version)
}

func (w *world) vaultBody() map[string]any {
	return map[string]any{"location": "local", "properties": map[string]any{"tenantId": w.Admin.Tenant, "sku": map[string]any{"family": "A", "name": "standard"}, "enableRbacAuthorization": true}}
}

func longHeaders(t *testing.T, w *world) {
	for what, c := range map[string]harness.Call{
		"a long path":   {URL: w.URL("management", "/subscriptions/"+strings.Repeat("x", 9000)+"?api-version=2021-04-01")},
		"a long header": {URL: w.arm(w.group, "2021-04-01"), Header: http.Header{"X-Long": {strings.Repeat("x", 200_000)}}},
		"a long token":  {URL: w.arm(w.group, "2021-04-01"), Token: strings.Repeat("x.", 20_000)},
	} {
		c.Method = http.MethodGet
		a := w.send(t, c)
		if a.Status < 400 || a.Status >= 500 {
			t.Errorf("%s = %v", what, a)
		}
	}
}

// badConfiguration starts the server with settings that it must refuse, each with a sentence that names the fault.
func badConfiguration(t *testing.T, w *world) {
	dir := t.TempDir()
	file := func(text string) string {
		path := filepath.Join(dir, harness.Suffix()+".json")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	wrongRoot := filepath.Join(dir, "root.key")
	if err := os.WriteFile(wrongRoot, []byte("short"), 0o600); err != nil {
		t.Fatal(err)
	}
	data := filepath.Join(dir, "data")
	for what, c := range map[string]struct {
		args []string
		says string
	}{
		"an unknown setting":   {[]string{"--data", data, "--config", file(`{"listne":"127.0.0.1:0"}`)}, "listne"},
		"a setting's type":     {[]string{"--data", data, "--config", file(`{"debug":"yes"}`)}, "debug"},
		"something behind":     {[]string{"--data", data, "--config", file(`{}{}`)}, "behind"},
		"no JSON":              {[]string{"--data", data, "--config", file(`listen: x`)}, "configuration"},
		"no file":              {[]string{"--data", data, "--config", filepath.Join(dir, "none.json")}, "none.json"},
		"no directory":         {[]string{}, "--data"},
		"a domain":             {[]string{"--data", data, "--domain", "bad domain"}, "bad domain"},
		"an address":           {[]string{"--data", data, "--listen", "nowhere"}, "nowhere"},
		"a port in use":        {[]string{"--data", data, "--listen", w.Address()}, "in use"},
		"a store":              {[]string{"--data", data, "--store", "sqlite"}, "sqlite"},
		"a depot":              {[]string{"--data", data, "--depot", "ftp"}, "ftp"},
		"a root scheme":        {[]string{"--data", data, "--listen", "127.0.0.1:0", "--root", "rot13:x"}, "rot13"},
		"a damaged root key":   {[]string{"--data", data, "--listen", "127.0.0.1:0", "--root", "file:" + wrongRoot}, "root.key"},
		"an unknown flag":      {[]string{"--data", data, "--insecure"}, "insecure"},
		"an argument":          {[]string{"--data", data, "now"}, "now"},
		"a missing passphrase": {[]string{"--data", data, "--listen", "127.0.0.1:0", "--root", "passphrase:NO_SUCH_VARIABLE"}, "NO_SUCH_VARIABLE"},
	} {
		out, err := w.Run(append([]string{"serve", "--dns", ""}, c.args...)...)
		if err == nil || !strings.Contains(out, c.says) || strings.Contains(out, "goroutine ") {
			t.Errorf("%s: %v, %q; want a refusal that says %q", what, err, out, c.says)
		}
	}
}
