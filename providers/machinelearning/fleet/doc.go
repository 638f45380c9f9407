// Package fleet runs jobs and deployments on nodes: it queues, admits, starts, watches, retries and ends them, and it is
// the register of which node is which identity.
//
// It is for the machine-learning provider, which says by a Planner what a job is (image, subnet, identity, agent spec); the
// fleet decides when and where. One node runs one job or one deployment instance and is then destroyed with its disk key, so
// that nothing of a job can be met by the next one (row C1).
//
// Who may lie: the node, whose events are taken in order, bounded, and believed only about its own job; the Planner's
// inputs have been authorised at the gateway. What a job's record says is sealed under its workspace's key: with that key
// revoked the job's node is killed and its record stays as it was until the key is back.
//
// Every change of state is durable before anybody hears of it. After kill -9 the fleet finds every job that had not ended;
// a job that had a node is run again once and then fails. The package knows no ARM documents, no images and no blobs.
package fleet
