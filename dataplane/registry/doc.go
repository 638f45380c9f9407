// Package registry is the data plane of container registries: the OCI
// distribution API over sealed storage, and the token exchange by which
// clients that know only "docker login" use a directory token.
//
// It is for podman, skopeo, docker, az and the platform's own nodes. Everything
// they send may lie: names, digests, manifests, ranges and tokens. Contents are
// accepted under a digest only after their bytes were hashed, and hashed again
// as they leave; manifests may refer only to what their repository holds. A
// token says who somebody is and never what they may do: the gateway asks RBAC
// on each request, so a role that is withdrawn is withdrawn at once.
//
// Repositories, manifests and uploads are kept by the distribution project's
// storage package over a storage driver of ours: small files are records in
// the metadata store, large ones objects in the depot under random keys, all
// sealed by the registry's handle. With a customer's key revoked nothing can
// be read, and streams under way end.
//
// It fetches nothing from anywhere: no pull-through cache, no foreign layers.
// It has no admin account, no anonymous pull, no repository-scoped tokens and
// no referrers API (clients then use the referrers tag schema).
//
// Source: OCI Distribution Specification 1.1; "AAD OAuth" of Azure Container
// Registry for the token rows. DESIGN.md tells the life of one push.
package registry
