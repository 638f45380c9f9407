// Package machinelearning is the resource provider Microsoft.MachineLearningServices: workspaces, computes, datastores, code,
// data, model and environment assets, command jobs, online endpoints and their deployments.
//
// It is for the control plane, which derives ARM's behaviour from its Types, and for the tracking and scoring planes, which reach
// workspaces, storage and instances through it. The parts: package location reads URIs, sensitive finds credentials where none may be,
// fleet runs jobs and instances on nodes; this package says what they are.
//
// Who may lie: bodies, names and URIs are hostile until validated; storage may hold other bytes than were registered, which is why code
// and models are pinned by digest and checked on the node (THREATS R1, R4); nodes are believed about their own job only.
// Callers have been authorised at the gateway for the resource itself. Whatever it touches besides (a subnet, somebody's blobs) is
// checked or read with the caller's own rights.
//
// What it does not do: pipelines, sweeps, schedules, compute instances, attached computes, batch endpoints and environments
// built from conda files are refused with NotSupported, never accepted and ignored.
package machinelearning
