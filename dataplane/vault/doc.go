// Package vault is the data plane of key vaults: keys (RSA, EC, oct), secrets and certificates with versions, soft
// delete and purge protection, and the cryptographic operations on keys, in the shapes of Azure Key Vault's REST API (2016-10-01 to the
// newest; error codes, attributes, paging and the challenge are Azure's).
//
// It serves three callers. Clients reach it through [Service.Routes], behind the gateway, which has authenticated and
// authorised them. The envelope asks it to wrap and unwrap resource keys ([Service.WrapKey], [Service.UnwrapKey]) for an
// identity, through the same authorize and record stages. The key vault provider tells it which vaults exist
// ([Service.Set], [Service.Forget], [Service.Purge]).
//
// Whatever changes whether a key may be used is durable first and announced to the envelope (Config.Revoked) second, both
// before the call returns; keys that expire are announced by [Service.Run]. Names, bodies and key URLs of clients are not
// trusted. No row shows a key's material, but the secret of a certificate holds its exportable key, as Azure's does. Backups
// are sealed by a key of the platform and bound to the tenant.
//
// It has no hardware module, so key types ending in -HSM are refused rather than pretended. Key release, attestation,
// contacts and issuers other than Self, Unknown and Casemate answer NotSupported.
package vault
