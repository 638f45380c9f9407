package outside

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azkeys"
	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azsecrets"
)

const vaultVersion = "2023-07-01"

// vaultBench is a key vault made for one test.
type vaultBench struct {
	*platform
	name, id, url string
}

func newVaultBench(t *testing.T) *vaultBench {
	t.Helper()
	b := &vaultBench{platform: newPlatform(t), name: "kv-" + suffix()}
	b.id = b.newGroup() + "/providers/Microsoft.KeyVault/vaults/" + b.name
	b.makeVault()
	return b
}

func (b *vaultBench) makeVault() {
	b.t.Helper()
	v := b.must(http.MethodPut, b.id, vaultVersion, map[string]any{"location": "local", "properties": map[string]any{
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
	b.must(http.MethodDelete, b.id, vaultVersion, nil)
	b.must(http.MethodPost, "/subscriptions/"+b.env["AZURE_SUBSCRIPTION_ID"]+"/providers/Microsoft.KeyVault/locations/local/deletedVaults/"+b.name+"/purge", vaultVersion, nil)
}

// becomeOfficer gives the administrator the role Key Vault Administrator at the vault.
func (b *vaultBench) becomeOfficer() {
	b.t.Helper()
	b.grant(b.id, "00482a5a-887f-4fb3-b363-3b7fe8e74483")
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
