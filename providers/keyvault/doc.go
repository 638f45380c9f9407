// Package keyvault is the control plane of key vaults: the type Microsoft.KeyVault/vaults, the deleted vaults below each
// subscription, and the check of names. Reference: Azure REST API specifications, Microsoft.KeyVault, 2016-10-01 to 2026-02-01.
//
// It is for the management plane: [Provider.Types] and [Provider.Routes] go to the gateway by way of control/operation. It
// tells the data plane which vaults exist and what they allow, and makes and destroys the resource key that seals a vault's
// records.
//
// Its clients are authorised but not trusted: names are unique over all tenants and reserved before anything is made, and no
// control-plane write grants access to keys or secrets. Access policies are therefore refused, and so is a vault without
// soft delete. What a body asks for and the platform cannot do is refused with the reason.
//
// It decides about no role and serves no key and no secret; those belong to the vault plane.
package keyvault
