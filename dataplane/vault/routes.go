package vault

import (
	"net/http"
	"time"

	"casemate.dev/resource"
)

const (
	keyBody    = 64 << 10
	secretBody = 6*maxSecret + 16<<10 // JSON may write an octet with six
	noBody     = 1 << 10              // some clients send "{}" where there is nothing to say
)

// actions is the prefix of Key Vault's data actions.
const actions = "Microsoft.KeyVault/vaults/"

const (
	vaultScope  = "{resource}"
	keyScope    = "{resource}/keys/{name}"
	secretScope = "{resource}/secrets/{name}"
)

// row is a route of this plane before its common columns.
type row struct {
	name    string
	method  string
	pattern string
	action  string // without prefix
	scope   string
	body    int64
	handler resource.Handler
}

// Routes are all rows of the vault plane. Clients that leave the version out of a URL send an empty segment, which the
// gateway drops: such operations have a row with and one without version.
func (s *Service) Routes() []resource.Route {
	rows := s.keyRows()
	rows = append(rows, s.secretRows()...)
	rows = append(rows, s.certificateRows()...)
	rows = append(rows, unsupportedRows()...)
	out := make([]resource.Route, 0, len(rows))
	for _, r := range rows {
		audit := resource.AuditSecret
		if r.scope == vaultScope && r.method == http.MethodGet {
			audit = resource.AuditRead // lists: names and dates, no key and no secret
		}
		out = append(out, resource.Route{
			Name: r.name, Plane: resource.PlaneVault, Method: r.method, Pattern: r.pattern, Versions: resource.AnyVersion(),
			DataAction: actions + r.action, Scope: r.scope, Origin: resource.OriginResource, Body: r.body,
			Timeout: time.Minute, Audit: audit, Handler: r.handler,
		})
	}
	return out
}

func (s *Service) keyRows() []row {
	rows := []row{
		{"Keys_Create", http.MethodPost, "/keys/{name}/create", "keys/create/action", keyScope, keyBody, s.createKey},
		{"Keys_Import", http.MethodPut, "/keys/{name}", "keys/import/action", keyScope, keyBody, s.importKey},
		{"Keys_Rotate", http.MethodPost, "/keys/{name}/rotate", "keys/rotate/action", keyScope, noBody, s.rotateKey},
		{"Keys_List", http.MethodGet, "/keys", "keys/read", vaultScope, -1, objects(s, keys, false, s.keyItem)},
		{"Keys_ListVersions", http.MethodGet, "/keys/{name}/versions", "keys/read", keyScope, -1, versions(s, keys, s.keyVersionItem)},
		{"Keys_GetCurrent", http.MethodGet, "/keys/{name}", "keys/read", keyScope, -1, s.getKey},
		{"Keys_Get", http.MethodGet, "/keys/{name}/{version}", "keys/read", keyScope, -1, s.getKey},
		{"Keys_UpdateCurrent", http.MethodPatch, "/keys/{name}", "keys/update/action", keyScope, keyBody, s.updateKey},
		{"Keys_Update", http.MethodPatch, "/keys/{name}/{version}", "keys/update/action", keyScope, keyBody, s.updateKey},
		{"Keys_Delete", http.MethodDelete, "/keys/{name}", "keys/delete", keyScope, noBody, s.deleteKey},
		{"DeletedKeys_List", http.MethodGet, "/deletedkeys", "keys/read", vaultScope, -1, objects(s, keys, true, s.keyItem)},
		{"DeletedKeys_Get", http.MethodGet, "/deletedkeys/{name}", "keys/read", keyScope, -1, s.getDeletedKey},
		{"DeletedKeys_Recover", http.MethodPost, "/deletedkeys/{name}/recover", "keys/recover/action", keyScope, noBody, s.recoverKey},
		{"Keys_Backup", http.MethodPost, "/keys/{name}/backup", "keys/backup/action", keyScope, noBody, s.backupObject(keys)},
		{"Keys_Restore", http.MethodPost, "/keys/restore", "keys/restore/action", vaultScope, restoreBody, s.restoreObject(keys, s.showKey)},
		{"KeyRotationPolicies_Get", http.MethodGet, "/keys/{name}/rotationpolicy", "keyrotationpolicies/read", keyScope, -1, s.getRotationPolicy},
		{"KeyRotationPolicies_Update", http.MethodPut, "/keys/{name}/rotationpolicy", "keyrotationpolicies/write", keyScope, keyBody, s.setRotationPolicy},
		{"RandomBytes_Get", http.MethodPost, "/rng", "rng/action", vaultScope, noBody, s.randomBytes},
		{"DeletedKeys_Purge", http.MethodDelete, "/deletedkeys/{name}", "keys/purge/action", keyScope, noBody, s.purgeObject(keys)},
	}
	for _, op := range []struct {
		name, segment, action string
		handler               resource.Handler
	}{
		{"Keys_Encrypt", "encrypt", "keys/encrypt/action", s.operate("encrypt", encrypt)},
		{"Keys_Decrypt", "decrypt", "keys/decrypt/action", s.operate("decrypt", decrypt)},
		{"Keys_WrapKey", "wrapkey", "keys/wrap/action", s.operate("wrapKey", wrapKey)},
		{"Keys_UnwrapKey", "unwrapkey", "keys/unwrap/action", s.operate("unwrapKey", unwrapKey)},
		{"Keys_Sign", "sign", "keys/sign/action", s.operate("sign", signDigest)},
		{"Keys_Verify", "verify", "keys/verify/action", s.verifyDigest},
	} {
		rows = append(rows,
			row{op.name, http.MethodPost, "/keys/{name}/{version}/" + op.segment, op.action, keyScope, keyBody, op.handler},
			row{op.name + "Current", http.MethodPost, "/keys/{name}/" + op.segment, op.action, keyScope, keyBody, op.handler})
	}
	return rows
}

func (s *Service) secretRows() []row {
	return []row{
		{"Secrets_Set", http.MethodPut, "/secrets/{name}", "secrets/setSecret/action", secretScope, secretBody, s.setSecret},
		{"Secrets_List", http.MethodGet, "/secrets", "secrets/readMetadata/action", vaultScope, -1, objects(s, secrets, false, s.secretItem)},
		{"Secrets_ListVersions", http.MethodGet, "/secrets/{name}/versions", "secrets/readMetadata/action", secretScope, -1, versions(s, secrets, s.secretBundle)},
		{"Secrets_GetCurrent", http.MethodGet, "/secrets/{name}", "secrets/getSecret/action", secretScope, -1, s.getSecret},
		{"Secrets_Get", http.MethodGet, "/secrets/{name}/{version}", "secrets/getSecret/action", secretScope, -1, s.getSecret},
		{"Secrets_UpdateCurrent", http.MethodPatch, "/secrets/{name}", "secrets/update/action", secretScope, keyBody, s.updateSecret},
		{"Secrets_Update", http.MethodPatch, "/secrets/{name}/{version}", "secrets/update/action", secretScope, keyBody, s.updateSecret},
		{"Secrets_Delete", http.MethodDelete, "/secrets/{name}", "secrets/delete", secretScope, noBody, s.deleteSecret},
		{"DeletedSecrets_List", http.MethodGet, "/deletedsecrets", "secrets/readMetadata/action", vaultScope, -1, objects(s, secrets, true, s.secretItem)},
		{"DeletedSecrets_Get", http.MethodGet, "/deletedsecrets/{name}", "secrets/readMetadata/action", secretScope, -1, s.getDeletedSecret},
		{"DeletedSecrets_Recover", http.MethodPost, "/deletedsecrets/{name}/recover", "secrets/recover/action", secretScope, noBody, s.recoverSecret},
		{"Secrets_Backup", http.MethodPost, "/secrets/{name}/backup", "secrets/backup/action", secretScope, noBody, s.backupObject(secrets)},
		{"Secrets_Restore", http.MethodPost, "/secrets/restore", "secrets/restore/action", vaultScope, restoreBody, s.restoreObject(secrets, s.showSecret)},
		{"DeletedSecrets_Purge", http.MethodDelete, "/deletedsecrets/{name}", "secrets/purge/action", secretScope, noBody, s.purgeObject(secrets)},
	}
}

// unsupportedRows say clearly what this vault does not do, to those who would be allowed to do it.
func unsupportedRows() []row {
	not := func(what string) resource.Handler {
		return func(http.ResponseWriter, *resource.Request) error {
			return resource.NotSupported("%s not supported by this key vault.", what)
		}
	}
	contacts, issuers := not("Contacts of certificates are"), not("Issuers other than Self, Unknown and Casemate are")
	rows := []row{
		{"CertificateContacts_Get", http.MethodGet, "/certificates/contacts", "certificates/read", vaultScope, -1, contacts},
		{"CertificateContacts_Set", http.MethodPut, "/certificates/contacts", "certificatecontacts/write", vaultScope, keyBody, contacts},
		{"CertificateContacts_Delete", http.MethodDelete, "/certificates/contacts", "certificatecontacts/write", vaultScope, noBody, contacts},
		{"CertificateIssuers_List", http.MethodGet, "/certificates/issuers", "certificatecas/read", vaultScope, -1, issuers},
		{"CertificateIssuers_Set", http.MethodPut, "/certificates/issuers/{issuer}", "certificatecas/write", vaultScope, keyBody, issuers},
		{"Keys_Release", http.MethodPost, "/keys/{name}/{version}/release", "keys/release/action", keyScope, keyBody, not("Keys never leave the vault: key release is")},
		{"Keys_ReleaseCurrent", http.MethodPost, "/keys/{name}/release", "keys/release/action", keyScope, keyBody, not("Keys never leave the vault: key release is")},
		{"Keys_GetAttestation", http.MethodGet, "/keys/{name}/{version}/attestation", "keys/read", keyScope, -1, not("Attestation needs a hardware security module: it is")},
	}
	return rows
}
