package outside

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/cloud"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azkeys"
	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azsecrets"
	"github.com/google/uuid"
)

// vaultBench is a running platform with a key vault made for one test, reached with Microsoft's clients as its
// administrator.
type vaultBench struct {
	t    *testing.T
	env  map[string]string
	http *http.Client
	cred azcore.TokenCredential
	opt  azcore.ClientOptions

	name, group, id, url string
}

// newVaultBench skips the test unless CASEMATE_OUTSIDE_ENV names the client/env file of a running server.
func newVaultBench(t *testing.T) *vaultBench {
	t.Helper()
	path := os.Getenv("CASEMATE_OUTSIDE_ENV")
	if path == "" {
		t.Skip("CASEMATE_OUTSIDE_ENV is not set: start `casemate serve` and set it to DIR/client/env")
	}
	b := &vaultBench{t: t, env: readVaultEnv(t, path)}
	b.http = b.client()
	b.opt = azcore.ClientOptions{
		Transport: b.http, Retry: policy.RetryOptions{MaxRetries: -1},
		Cloud: cloud.Configuration{ActiveDirectoryAuthorityHost: b.env["AZURE_AUTHORITY_HOST"], Services: map[cloud.ServiceName]cloud.ServiceConfiguration{}},
	}
	var err error
	b.cred, err = azidentity.NewClientSecretCredential(b.env["AZURE_TENANT_ID"], b.env["AZURE_CLIENT_ID"], b.env["AZURE_CLIENT_SECRET"],
		&azidentity.ClientSecretCredentialOptions{ClientOptions: b.opt, DisableInstanceDiscovery: true})
	b.check(err)
	var suffix [5]byte
	_, _ = rand.Read(suffix[:]) // never fails, see crypto/rand
	b.name = "kv-" + hex.EncodeToString(suffix[:])
	b.group = "/subscriptions/" + b.env["AZURE_SUBSCRIPTION_ID"] + "/resourceGroups/outside-" + b.name
	b.id = b.group + "/providers/Microsoft.KeyVault/vaults/" + b.name
	b.makeVault()
	return b
}

func (b *vaultBench) check(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

// readVaultEnv reads shell assignments.
func readVaultEnv(t *testing.T, path string) map[string]string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }() // read only
	env := map[string]string{}
	for lines := bufio.NewScanner(f); lines.Scan(); {
		line := strings.TrimPrefix(strings.TrimSpace(lines.Text()), "export ")
		if name, value, ok := strings.Cut(line, "="); ok && !strings.HasPrefix(line, "#") {
			env[name] = strings.Trim(value, `"'`)
		}
	}
	return env
}

// client trusts the platform's authority and finds its host names at the loopback address.
func (b *vaultBench) client() *http.Client {
	pem, err := os.ReadFile(b.env["SSL_CERT_FILE"])
	b.check(err)
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		b.t.Fatal("no certificate in SSL_CERT_FILE")
	}
	domain, _, _ := strings.Cut(b.env["CASEMATE_DOMAIN"], ":")
	dialer := net.Dialer{Timeout: 10 * time.Second}
	return &http.Client{Timeout: time.Minute, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12},
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			if host, port, err := net.SplitHostPort(addr); err == nil && strings.HasSuffix(host, "."+domain) {
				addr = net.JoinHostPort("127.0.0.1", port)
			}
			return dialer.DialContext(ctx, network, addr)
		},
	}}
}

// arm sends one request to the resource manager and wants a status below 300.
func (b *vaultBench) arm(method, path, version string, body any) map[string]any {
	b.t.Helper()
	var in io.Reader = http.NoBody
	if body != nil {
		raw, err := json.Marshal(body)
		b.check(err)
		in = bytes.NewReader(raw)
	}
	r, err := http.NewRequestWithContext(b.t.Context(), method, b.env["CASEMATE_ENDPOINT"]+path+"?api-version="+version, in)
	b.check(err)
	r.Header.Set("Authorization", "Bearer "+b.token())
	r.Header.Set("Content-Type", "application/json")
	resp, err := b.http.Do(r)
	b.check(err)
	defer func() { _ = resp.Body.Close() }() // read whole below
	raw, err := io.ReadAll(resp.Body)
	b.check(err)
	if resp.StatusCode >= 300 {
		b.t.Fatalf("%s %s: %s %s", method, path, resp.Status, raw)
	}
	out := map[string]any{}
	if len(raw) > 0 {
		b.check(json.Unmarshal(raw, &out))
	}
	return out
}

func (b *vaultBench) token() string {
	b.t.Helper()
	tok, err := b.cred.GetToken(b.t.Context(), policy.TokenRequestOptions{Scopes: []string{b.env["CASEMATE_ENDPOINT"] + "/.default"}})
	b.check(err)
	return tok.Token
}

func (b *vaultBench) makeVault() {
	b.t.Helper()
	b.arm(http.MethodPut, b.group, "2021-04-01", map[string]any{"location": "local"})
	v := b.arm(http.MethodPut, b.id, "2023-07-01", map[string]any{"location": "local", "properties": map[string]any{
		"tenantId": b.env["AZURE_TENANT_ID"], "sku": map[string]any{"family": "A", "name": "standard"}, "enableRbacAuthorization": true,
	}})
	props, _ := v["properties"].(map[string]any)
	b.url, _ = props["vaultUri"].(string)
	if b.url == "" {
		b.t.Fatalf("the vault has no vaultUri: %v", v)
	}
	b.t.Cleanup(b.removeVault)
}

// removeVault deletes and purges, which also tests that it can be done.
func (b *vaultBench) removeVault() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for _, step := range [][2]string{
		{http.MethodDelete, b.id},
		{http.MethodPost, "/subscriptions/" + b.env["AZURE_SUBSCRIPTION_ID"] + "/providers/Microsoft.KeyVault/locations/local/deletedVaults/" + b.name + "/purge"},
		{http.MethodDelete, b.group},
	} {
		tok, err := b.cred.GetToken(ctx, policy.TokenRequestOptions{Scopes: []string{b.env["CASEMATE_ENDPOINT"] + "/.default"}})
		if err != nil {
			b.t.Error(err)
			return
		}
		r, err := http.NewRequestWithContext(ctx, step[0], b.env["CASEMATE_ENDPOINT"]+step[1]+"?api-version=2022-07-01", nil)
		if err != nil {
			b.t.Error(err)
			return
		}
		r.Header.Set("Authorization", "Bearer "+tok.Token)
		resp, err := b.http.Do(r)
		if err != nil {
			b.t.Error(err)
			return
		}
		_ = resp.Body.Close() // nothing is wanted of it
		if resp.StatusCode >= 300 {
			b.t.Errorf("%s %s: %s", step[0], step[1], resp.Status)
		}
	}
}

// becomeOfficer gives the administrator the role Key Vault Administrator at the vault.
func (b *vaultBench) becomeOfficer() {
	b.t.Helper()
	parts := strings.Split(b.token(), ".")
	if len(parts) != 3 {
		b.t.Fatal("the access token is no JWT")
	}
	raw, err := base64.RawURLEncoding.DecodeString(parts[1])
	b.check(err)
	var claims struct{ OID string }
	b.check(json.Unmarshal(raw, &claims))
	b.arm(http.MethodPut, b.id+"/providers/Microsoft.Authorization/roleAssignments/"+uuid.NewString(), "2022-04-01", map[string]any{"properties": map[string]any{
		"roleDefinitionId": "/subscriptions/" + b.env["AZURE_SUBSCRIPTION_ID"] + "/providers/Microsoft.Authorization/roleDefinitions/00482a5a-887f-4fb3-b363-3b7fe8e74483",
		"principalId":      claims.OID, "principalType": "ServicePrincipal",
	}})
}

func (b *vaultBench) secrets() *azsecrets.Client {
	b.t.Helper()
	c, err := azsecrets.NewClient(b.url, b.cred, &azsecrets.ClientOptions{ClientOptions: b.opt})
	b.check(err)
	return c
}

func (b *vaultBench) keys() *azkeys.Client {
	b.t.Helper()
	c, err := azkeys.NewClient(b.url, b.cred, &azkeys.ClientOptions{ClientOptions: b.opt})
	b.check(err)
	return c
}

// wantVaultError demands the status and code of a refusal.
func wantVaultError(t *testing.T, what string, err error, status int, code string) {
	t.Helper()
	var e *azcore.ResponseError
	if !errors.As(err, &e) || e.StatusCode != status || e.ErrorCode != code {
		t.Errorf("%s: %v, want %d %s", what, err, status, code)
	}
}

func TestAzsecrets(t *testing.T) {
	b := newVaultBench(t)
	ctx := t.Context()
	c := b.secrets()
	_, err := c.SetSecret(ctx, "early", azsecrets.SetSecretParameters{Value: to.Ptr("x")}, nil)
	wantVaultError(t, "setting a secret as owner of the vault, without a data role", err, 403, "Forbidden")
	b.becomeOfficer()

	var versions []string
	for _, value := range []string{"one", "two"} {
		set, err := c.SetSecret(ctx, "greeting", azsecrets.SetSecretParameters{Value: to.Ptr(value), ContentType: to.Ptr("text/plain"), Tags: map[string]*string{"k": to.Ptr("v")}}, nil)
		b.check(err)
		versions = append(versions, set.ID.Version())
	}
	got, err := c.GetSecret(ctx, "greeting", "", nil)
	b.check(err)
	if *got.Value != "two" || got.ID.Name() != "greeting" || got.ID.Version() != versions[1] || *got.Attributes.RecoverableDays != 90 {
		t.Errorf("current secret: %+v", got.Secret)
	}
	got, err = c.GetSecret(ctx, "greeting", versions[0], nil)
	b.check(err)
	if *got.Value != "one" {
		t.Errorf("first version: %q", *got.Value)
	}
	_, err = c.UpdateSecretProperties(ctx, "greeting", versions[0], azsecrets.UpdateSecretPropertiesParameters{SecretAttributes: &azsecrets.SecretAttributes{Enabled: to.Ptr(false)}}, nil)
	b.check(err)
	_, err = c.GetSecret(ctx, "greeting", versions[0], nil)
	wantVaultError(t, "reading a disabled version", err, 403, "Forbidden")

	for i := range 30 {
		_, err := c.SetSecret(ctx, fmt.Sprintf("many-%02d", i), azsecrets.SetSecretParameters{Value: to.Ptr("x")}, nil)
		b.check(err)
	}
	n, pages := 0, 0
	for pager := c.NewListSecretPropertiesPager(nil); pager.More(); pages++ {
		page, err := pager.NextPage(ctx)
		b.check(err)
		n += len(page.Value)
	}
	if n != 31 || pages < 2 {
		t.Errorf("listed %d secrets on %d pages", n, pages)
	}
	testDeletedSecret(b, c)
}

func testDeletedSecret(b *vaultBench, c *azsecrets.Client) {
	t, ctx := b.t, b.t.Context()
	del, err := c.DeleteSecret(ctx, "greeting", nil)
	b.check(err)
	if del.RecoveryID == nil || del.ScheduledPurgeDate == nil || del.DeletedDate == nil {
		t.Errorf("deleted secret: %+v", del.DeletedSecret)
	}
	_, err = c.GetSecret(ctx, "greeting", "", nil)
	wantVaultError(t, "reading a deleted secret", err, 404, "SecretNotFound")
	_, err = c.SetSecret(ctx, "greeting", azsecrets.SetSecretParameters{Value: to.Ptr("x")}, nil)
	wantVaultError(t, "setting a deleted secret", err, 409, "Conflict")
	_, err = c.RecoverDeletedSecret(ctx, "greeting", nil)
	b.check(err)
	_, err = c.GetSecret(ctx, "greeting", "", nil)
	b.check(err)
	_, err = c.DeleteSecret(ctx, "greeting", nil)
	b.check(err)
	_, err = c.PurgeDeletedSecret(ctx, "greeting", nil)
	b.check(err)
	_, err = c.GetDeletedSecret(ctx, "greeting", nil)
	wantVaultError(t, "reading a purged secret", err, 404, "SecretNotFound")
}

func TestAzkeys(t *testing.T) {
	b := newVaultBench(t)
	b.becomeOfficer()
	ctx := t.Context()
	c := b.keys()
	made, err := c.CreateKey(ctx, "cmk", azkeys.CreateKeyParameters{Kty: to.Ptr(azkeys.KeyTypeRSA), KeySize: to.Ptr(int32(3072)), KeyAttributes: &azkeys.KeyAttributes{Expires: to.Ptr(time.Now().Add(time.Hour))}}, nil)
	b.check(err)
	if len(made.Key.N) != 384 || made.Key.KID.Name() != "cmk" || made.Attributes.Expires == nil {
		t.Errorf("created key: %+v", made.KeyBundle)
	}
	secret := []byte("0123456789abcdef0123456789abcdef")
	wrapped, err := c.WrapKey(ctx, "cmk", "", azkeys.KeyOperationParameters{Algorithm: to.Ptr(azkeys.EncryptionAlgorithmRSAOAEP256), Value: secret}, nil)
	b.check(err)
	if wrapped.KID.Version() != made.Key.KID.Version() {
		t.Errorf("wrapped by version %s", wrapped.KID.Version())
	}
	second, err := c.RotateKey(ctx, "cmk", nil)
	b.check(err)
	current, err := c.GetKey(ctx, "cmk", "", nil)
	b.check(err)
	if current.Key.KID.Version() != second.Key.KID.Version() || current.Key.KID.Version() == made.Key.KID.Version() {
		t.Errorf("current version after rotation: %s", current.Key.KID.Version())
	}
	unwrap := func() ([]byte, error) {
		got, err := c.UnwrapKey(ctx, "cmk", made.Key.KID.Version(), azkeys.KeyOperationParameters{Algorithm: to.Ptr(azkeys.EncryptionAlgorithmRSAOAEP256), Value: wrapped.Result}, nil)
		return got.Result, err
	}
	if got, err := unwrap(); err != nil || !bytes.Equal(got, secret) {
		t.Errorf("unwrapping by the old version: %x, %v", got, err)
	}
	_, err = c.UpdateKey(ctx, "cmk", made.Key.KID.Version(), azkeys.UpdateKeyParameters{KeyAttributes: &azkeys.KeyAttributes{Enabled: to.Ptr(false)}}, nil)
	b.check(err)
	_, err = unwrap()
	wantVaultError(t, "unwrapping by a disabled version", err, 403, "Forbidden")
	n := 0
	for pager := c.NewListKeyPropertiesVersionsPager("cmk", nil); pager.More(); {
		page, err := pager.NextPage(ctx)
		b.check(err)
		n += len(page.Value)
	}
	if n != 2 {
		t.Errorf("%d versions", n)
	}
	_, err = c.CreateKey(ctx, "hsm", azkeys.CreateKeyParameters{Kty: to.Ptr(azkeys.KeyTypeRSAHSM)}, nil)
	wantVaultError(t, "creating an HSM key", err, 400, "BadParameter")
	testSigning(b, c)
	testSymmetric(b, c)
	testDeletedKey(b, c)
}

func testSigning(b *vaultBench, c *azkeys.Client) {
	ctx := b.t.Context()
	digest := sha256.Sum256([]byte("message"))
	_, err := c.CreateKey(ctx, "signer", azkeys.CreateKeyParameters{Kty: to.Ptr(azkeys.KeyTypeEC), Curve: to.Ptr(azkeys.CurveNameP256)}, nil)
	b.check(err)
	for name, alg := range map[string]azkeys.SignatureAlgorithm{"signer": azkeys.SignatureAlgorithmES256, "cmk": azkeys.SignatureAlgorithmPS256} {
		sig, err := c.Sign(ctx, name, "", azkeys.SignParameters{Algorithm: &alg, Value: digest[:]}, nil)
		b.check(err)
		ok, err := c.Verify(ctx, name, "", azkeys.VerifyParameters{Algorithm: &alg, Digest: digest[:], Signature: sig.Result}, nil)
		b.check(err)
		if !*ok.Value {
			b.t.Errorf("%s: the signature does not verify", alg)
		}
		sig.Result[10] ^= 1
		ok, err = c.Verify(ctx, name, "", azkeys.VerifyParameters{Algorithm: &alg, Digest: digest[:], Signature: sig.Result}, nil)
		b.check(err)
		if *ok.Value {
			b.t.Errorf("%s: a changed signature verifies", alg)
		}
	}
}

func testSymmetric(b *vaultBench, c *azkeys.Client) {
	ctx := b.t.Context()
	_, err := c.ImportKey(ctx, "oct", azkeys.ImportKeyParameters{Key: &azkeys.JSONWebKey{Kty: to.Ptr(azkeys.KeyTypeOct), K: bytes.Repeat([]byte{7}, 32)}}, nil)
	b.check(err)
	alg := to.Ptr(azkeys.EncryptionAlgorithmA256GCM)
	box, err := c.Encrypt(ctx, "oct", "", azkeys.KeyOperationParameters{Algorithm: alg, Value: []byte("hello"), AdditionalAuthenticatedData: []byte("aad")}, nil)
	b.check(err)
	back, err := c.Decrypt(ctx, "oct", "", azkeys.KeyOperationParameters{Algorithm: alg, Value: box.Result, IV: box.IV, AuthenticationTag: box.AuthenticationTag, AdditionalAuthenticatedData: []byte("aad")}, nil)
	b.check(err)
	if string(back.Result) != "hello" {
		b.t.Errorf("decrypted %q", back.Result)
	}
}

func testDeletedKey(b *vaultBench, c *azkeys.Client) {
	t, ctx := b.t, b.t.Context()
	_, err := c.DeleteKey(ctx, "cmk", nil)
	b.check(err)
	_, err = c.GetKey(ctx, "cmk", "", nil)
	wantVaultError(t, "reading a deleted key", err, 404, "KeyNotFound")
	_, err = c.RecoverDeletedKey(ctx, "cmk", nil)
	b.check(err)
	_, err = c.GetKey(ctx, "cmk", "", nil)
	b.check(err)
	_, err = c.DeleteKey(ctx, "cmk", nil)
	b.check(err)
	n := 0
	for pager := c.NewListDeletedKeyPropertiesPager(nil); pager.More(); {
		page, err := pager.NextPage(ctx)
		b.check(err)
		n += len(page.Value)
	}
	if n != 1 {
		t.Errorf("%d deleted keys", n)
	}
	_, err = c.PurgeDeletedKey(ctx, "cmk", nil)
	b.check(err)
	_, err = c.GetDeletedKey(ctx, "cmk", nil)
	wantVaultError(t, "reading a purged key", err, 404, "KeyNotFound")
}
