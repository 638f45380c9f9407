// Package tracking is the workspace data plane: experiments, runs with parameters, metrics, tags and artifacts, and the model
// registry, in the protocol of MLflow 2 (REST API, https://mlflow.org/docs/latest/rest-api.html), and as much of Azure ML's run
// history as its clients ask for.
//
// It is for stock MLflow clients, on a person's machine or inside a job, whose tracking URI names a workspace by host and by ARM id;
// both must be the same workspace. The gateway has authenticated and authorised each request at that workspace and recorded it.
//
// Bodies, names, filters and paths are hostile: names and sizes are MLflow's own limits or stricter, filters are parsed into a
// fixed grammar and never become a query of anything else, and paths are refused unless they mean the same to everybody
// (THREATS R20). Artifacts never leave the workspace's own storage account: no URI of a client's choice is fetched (R24).
//
// Every record is sealed under the workspace's key; names of experiments, parameters, metrics and tags occur in store keys only
// as digests. The package keeps no artifact bytes and no model: those are reached through Artifacts and Models.
package tracking
