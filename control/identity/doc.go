// Package identity is the directory and the token authority: tenants, users, groups, applications, service principals
// and managed identities; OAuth 2.0 client credentials with OpenID Connect discovery, in the shapes of Microsoft Entra
// (/{tenant}) and AD FS (/adfs); the instance metadata service that hands tokens to nodes; and a small directory API in
// the shape of Microsoft Graph. It is for the gateway, whose authenticate stage is Verify, and for every client.
//
// Anybody may talk to the token rows, and a token may say anything: nothing in it counts before its signature, issuer,
// tenant, audience and times have been checked, and after that its principal, the credential that it was issued for and
// the node that it was handed to are looked up again each time. A node is believed to be the node that its socket says.
// Disabling or deleting a principal, removing a secret, or the end of a node or of its run ends their tokens at once.
//
// Client secrets are made here, 256 random bits each, and kept only as salted hashes; signing keys are generated here
// and never leave. Records are sealed by a handle that the application provides. The package does not sign in people
// (no passwords, no browser pages, no device code), accepts no client assertions, and issues no refresh or ID tokens.
package identity
