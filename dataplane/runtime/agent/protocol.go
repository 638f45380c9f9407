package agent

import "time"

// This file is the whole HTTP contract between a node's agent and the node controller in the server, spoken over the node's unix socket:
//
//	GET  /spec    → 200 Spec             what to do; asked once, a second asker gets 410 Gone
//	POST /event   ← Event → 204          a state; 204 means that the server holds it durably
//	GET  /signal  → 200 Signal           blocks until the server wants something of the agent
//
// Everything is JSON. The socket exists for one node alone, so no token is spoken on it.

// Kind says what a node is for.
type Kind string

const (
	KindJob   Kind = "job"   // run a command once
	KindServe Kind = "serve" // load a model and answer scoring requests until cancelled
)

// Spec is the work of one node. Secret values travel only in Env and only over the socket.
type Spec struct {
	Kind  Kind   `json:"kind"`
	RunID string `json:"runId"`

	// Command runs as `/bin/sh -c Command` in the code directory (kind job).
	// ${{inputs.name}} and ${{outputs.name}} are replaced by the paths inside the node.
	Command string            `json:"command,omitempty"`
	Env     map[string]string `json:"env,omitempty"` // for user code; IDENTITY_ENDPOINT and IDENTITY_HEADER are read by the agent too

	// TokenResource is the audience the agent asks its managed identity a storage token for; default https://storage.azure.com/.
	TokenResource string `json:"tokenResource,omitempty"`
	// ClientID selects a user-assigned identity; empty means the node's only one.
	ClientID string `json:"clientId,omitempty"`

	Code    *Tree             `json:"code,omitempty"`    // becomes the working directory /work/code
	Inputs  []Input           `json:"inputs,omitempty"`  //
	Outputs []Output          `json:"outputs,omitempty"` //
	Params  map[string]string `json:"params,omitempty"`  // literal inputs for ${{inputs.name}}
	Logs    Logs              `json:"logs"`

	// TimeLimitSeconds ends the command (SIGTERM, then SIGKILL); 0 means none.
	TimeLimitSeconds int64 `json:"timeLimitSeconds,omitempty"`

	Serve *Serve `json:"serve,omitempty"` // required for kind serve
}

// File is one blob to fetch. SHA256 (lower-case hex) and Size pin its bytes when given: other bytes stop the job before any of it runs (THREATS R1).
type File struct {
	Path   string `json:"path"` // relative, slash-separated, inside the tree
	URL    string `json:"url"`  // https URL of the blob
	SHA256 string `json:"sha256,omitempty"`
	Size   int64  `json:"size,omitempty"`
}

// Tree is a set of files: either listed one by one (Files), or everything below a prefix of a container (Folder).
type Tree struct {
	Files  []File  `json:"files,omitempty"`
	Folder *Folder `json:"folder,omitempty"`
}

// Folder names all blobs of a container whose name begins with Prefix; the prefix is cut off the paths.
type Folder struct {
	ContainerURL string `json:"containerUrl"`
	Prefix       string `json:"prefix,omitempty"` // ends with "/" unless empty
}

// Input is data made available at /work/inputs/Name, in the environment as AZURE_ML_INPUT_Name. A Single input is one file and its path names that file.
type Input struct {
	Name   string `json:"name"`
	Single bool   `json:"single,omitempty"`
	Tree   Tree   `json:"tree"`
}

// Output is a directory /work/outputs/Name, in the environment as AZURE_ML_OUTPUT_Name, uploaded below URLPrefix when the command has ended.
// The name "default" is also reachable as ./outputs of the code directory.
type Output struct {
	Name      string `json:"name"`
	URLPrefix string `json:"urlPrefix"` // https://account.blob…/container/path/
}

// Logs are blob URLs. User takes standard output and error of the command while it runs (…/user_logs/std_log.txt), System what the agent did
// (…/system_logs/agent.log). Empty means that the log is not kept.
type Logs struct {
	User   string `json:"user,omitempty"`
	System string `json:"system,omitempty"`
}

// Serve is a deployment: Model is downloaded to /work/model (AZUREML_MODEL_DIR), and EntryScript of the code, a Python file with
// init() and run(raw_data), answers POST /score on Address:Port.
type Serve struct {
	EntryScript string `json:"entryScript"`       // relative to Code, default score.py
	Model       Tree   `json:"model"`             //
	Port        int    `json:"port,omitempty"`    // default 5001
	Python      string `json:"python,omitempty"`  // interpreter in the image, default python3
	Startup     int64  `json:"startup,omitempty"` // seconds until healthy, default 120
}

// State is a step in the life of the work.
type State string

const (
	StatePreparing  State = "Preparing"  // the agent has its spec and fetches code and inputs
	StateRunning    State = "Running"    // user code has been started
	StateReady      State = "Ready"      // the scoring server answers its health probe (kind serve)
	StateFinalizing State = "Finalizing" // user code has ended, outputs and logs are being uploaded
	StateCompleted  State = "Completed"  // final
	StateFailed     State = "Failed"     // final; Error says why
	StateCanceled   State = "Canceled"   // final
)

// Final tells whether no event can follow.
func (s State) Final() bool { return s == StateCompleted || s == StateFailed || s == StateCanceled }

// Error codes of StateFailed.
const (
	CodeUserError = "UserError"      // the command ended with a non-zero status
	CodeIntegrity = "IntegrityError" // code or input is not what was submitted
	CodeData      = "DataError"      // code, input or output could not be transferred
	CodeTimeLimit = "TimeLimit"      //
	CodeImage     = "ImageError"     // the image lacks /bin/sh or python3
	CodeServe     = "ServeError"     // the scoring server ended or did not become healthy
	CodeAgent     = "AgentError"     // anything else
)

// Event is one report. Sequence counts from 1 without gaps; the agent repeats an event until it is acknowledged.
type Event struct {
	Sequence int64     `json:"sequence"`
	Time     time.Time `json:"time"`
	State    State     `json:"state"`
	ExitCode *int      `json:"exitCode,omitempty"` // of user code, once it has ended
	Code     string    `json:"code,omitempty"`     // with StateFailed
	Error    string    `json:"error,omitempty"`    // for people; holds no output of user code
}

// Signal is what the server wants of the agent.
type Signal struct {
	Cancel bool `json:"cancel"`
}
