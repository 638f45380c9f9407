// Package agent is what runs inside a node, and the server's half that answers it.
//
// Main is process 1 of every node: the casemate binary, static, mounted read-only. It asks the node controller for its work, fetches code and inputs through
// the workspace's private endpoints with the node's managed identity, runs user code as an unprivileged user, streams its output to the workspace's
// storage while it runs, uploads outputs, reports each state and reaps orphans. Controller is its partner in the server; protocol.go is
// all they say to each other.
//
// Who may lie: to the agent, storage (code and inputs are checked against the digests of the submission) and user code (it shares the
// node, not the uid: it can reach neither the agent's memory nor its socket). To the controller, the whole node: events are bounded, ordered and say nothing
// about anybody but the node's own job.
//
// What it does not do: it holds no stored credential, listens on no port (the scoring server does, for kind serve, inside the node's
// network), needs nothing of the image but /bin/sh (and python3 for serve), and writes nothing outside the node's encrypted disk.
package agent
