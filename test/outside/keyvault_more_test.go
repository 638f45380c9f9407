package outside

import (
	"bytes"
	"testing"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azkeys"
	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azsecrets"
)

func TestAzkeysBackupAndPolicy(t *testing.T) {
	b := newVaultBench(t)
	b.becomeOfficer()
	ctx := t.Context()
	c := b.keys()
	made, err := c.CreateKey(ctx, "cmk", azkeys.CreateKeyParameters{Kty: to.Ptr(azkeys.KeyTypeRSA)}, nil)
	b.check(err)
	if made.Attributes.Exportable == nil || *made.Attributes.Exportable {
		t.Errorf("attributes: %+v", made.Attributes)
	}
	policy, err := c.GetKeyRotationPolicy(ctx, "cmk", nil)
	b.check(err)
	if len(policy.LifetimeActions) != 1 || *policy.LifetimeActions[0].Action.Type != azkeys.KeyRotationPolicyActionNotify {
		t.Errorf("default policy: %+v", policy.KeyRotationPolicy)
	}
	set, err := c.UpdateKeyRotationPolicy(ctx, "cmk", azkeys.KeyRotationPolicy{
		Attributes: &azkeys.KeyRotationPolicyAttributes{ExpiryTime: to.Ptr("P90D")},
		LifetimeActions: []*azkeys.LifetimeAction{{
			Action: &azkeys.LifetimeActionType{Type: to.Ptr(azkeys.KeyRotationPolicyActionRotate)}, Trigger: &azkeys.LifetimeActionTrigger{TimeBeforeExpiry: to.Ptr("P30D")},
		}},
	}, nil)
	b.check(err)
	if *set.Attributes.ExpiryTime != "P90D" || set.Attributes.Created == nil || len(set.LifetimeActions) != 1 {
		t.Errorf("policy: %+v", set.KeyRotationPolicy)
	}
	rotated, err := c.RotateKey(ctx, "cmk", nil)
	b.check(err)
	if rotated.Attributes.Expires == nil || rotated.Attributes.Expires.Sub(*rotated.Attributes.Created).Hours() != 90*24 {
		t.Errorf("a version under the policy: %+v", rotated.Attributes)
	}
	random, err := c.GetRandomBytes(ctx, azkeys.GetRandomBytesParameters{Count: to.Ptr(int32(16))}, nil)
	b.check(err)
	if len(random.Value) != 16 {
		t.Errorf("random bytes: %x", random.Value)
	}
	_, err = c.Release(ctx, "cmk", "", azkeys.ReleaseParameters{TargetAttestationToken: to.Ptr("x")}, nil)
	wantVaultError(t, "releasing a key", err, 501, "NotSupported")
	testKeyBackup(b, c, made.Key)
}

func testKeyBackup(b *vaultBench, c *azkeys.Client, first *azkeys.JSONWebKey) {
	t, ctx := b.t, b.t.Context()
	secret := []byte("0123456789abcdef0123456789abcdef")
	alg := to.Ptr(azkeys.EncryptionAlgorithmRSAOAEP256)
	wrapped, err := c.WrapKey(ctx, "cmk", first.KID.Version(), azkeys.KeyOperationParameters{Algorithm: alg, Value: secret}, nil)
	b.check(err)
	backup, err := c.BackupKey(ctx, "cmk", nil)
	b.check(err)
	if bytes.Contains(backup.Value, []byte("kty")) {
		t.Error("the backup shows its content")
	}
	_, err = c.RestoreKey(ctx, azkeys.RestoreKeyParameters{KeyBackup: backup.Value}, nil)
	wantVaultError(t, "restoring over a live key", err, 409, "Conflict")

	other := newVaultBench(t)
	other.becomeOfficer()
	oc := other.keys()
	restored, err := oc.RestoreKey(ctx, azkeys.RestoreKeyParameters{KeyBackup: backup.Value}, nil)
	b.check(err)
	if restored.Key.KID.Name() != "cmk" {
		t.Errorf("restored: %+v", restored.Key)
	}
	got, err := oc.UnwrapKey(ctx, "cmk", first.KID.Version(), azkeys.KeyOperationParameters{Algorithm: alg, Value: wrapped.Result}, nil)
	b.check(err)
	if !bytes.Equal(got.Result, secret) {
		t.Errorf("unwrapped by the restored key: %x", got.Result)
	}
	backup.Value[len(backup.Value)-1] ^= 1
	_, err = newVaultBench(t).keys().RestoreKey(ctx, azkeys.RestoreKeyParameters{KeyBackup: backup.Value}, nil)
	wantVaultError(t, "restoring without a role", err, 403, "Forbidden")
	_, err = oc.RestoreKey(ctx, azkeys.RestoreKeyParameters{KeyBackup: backup.Value}, nil)
	wantVaultError(t, "restoring a damaged backup", err, 400, "BadParameter")
}

func TestAzsecretsBackup(t *testing.T) {
	b := newVaultBench(t)
	b.becomeOfficer()
	ctx := t.Context()
	c := b.secrets()
	for _, v := range []string{"one", "two"} {
		_, err := c.SetSecret(ctx, "s", azsecrets.SetSecretParameters{Value: to.Ptr(v), ContentType: to.Ptr("text/plain")}, nil)
		b.check(err)
	}
	backup, err := c.BackupSecret(ctx, "s", nil)
	b.check(err)
	_, err = c.DeleteSecret(ctx, "s", nil)
	b.check(err)
	_, err = c.PurgeDeletedSecret(ctx, "s", nil)
	b.check(err)
	_, err = c.RestoreSecret(ctx, azsecrets.RestoreSecretParameters{SecretBackup: backup.Value}, nil)
	b.check(err)
	got, err := c.GetSecret(ctx, "s", "", nil)
	b.check(err)
	if *got.Value != "two" || *got.ContentType != "text/plain" {
		t.Errorf("restored: %+v", got.Secret)
	}
}
