// Package location reads the URIs by which Azure ML names data: datastore paths, blobs, assets, outputs of jobs and MLflow
// artifacts. It is pure: it says what a URI names, never whether that exists or who may read it.
//
// For the machine-learning provider and the tracking plane. Every URI comes from a client and is hostile until parsed: a path is
// decoded once, and refused when it then holds an empty, "." or ".." segment, a backslash, a control character, a percent sign, or
// a semicolon (THREATS R20). Hosts are compared with the platform's own storage domain; a URI of any other host is refused,
// so that no component of the platform can be sent to an address of the client's choice (R10, R24).
package location

import (
	"fmt"
	"net"
	"net/url"
	"strings"
)

// Kind says what a URI names.
type Kind int

// The kinds; the zero value is none.
const (
	None      Kind = iota
	Blob           // a blob or prefix: Account, Container, Path
	Datastore      // a path in a datastore: Store, Path; Workspace when it names another one than the reader's
	Asset          // a version of an asset by name: Name, Version; or Label
	Resource       // an ARM id: ID
	Output         // a path in an output of a job: Job, Output, Path
	Artifact       // a path among a run's artifacts: Job, Path
)

// Location is one parsed URI.
type Location struct {
	Kind               Kind
	Account, Container string
	Workspace          string // ARM id, or "" for the workspace in which the URI is used
	Store              string
	Name, Version      string
	Label              string
	ID                 string
	Job, Output        string
	Path               string // "" or clean; ends with "/" if the URI did
}

// Parse reads a URI. storage is the domain of storage accounts, such as core.casemate.localhost, with or without a port.
func Parse(uri, storage string) (Location, error) {
	if len(uri) > 2048 {
		return Location{}, fmt.Errorf("URI is longer than 2048 characters")
	}
	l, err := parse(uri, storage)
	if err != nil {
		return Location{}, fmt.Errorf("URI %q: %w", clip(uri), err)
	}
	return l, nil
}

func parse(uri, storage string) (Location, error) {
	scheme, rest, ok := strings.Cut(uri, ":")
	if strings.HasPrefix(uri, "/") {
		return Location{Kind: Resource, ID: uri}, nil
	}
	if !ok {
		return Location{}, fmt.Errorf("it has no scheme")
	}
	switch strings.ToLower(scheme) {
	case "https", "wasbs", "abfss":
		return parseBlob(uri, storage)
	case "azureml":
		if strings.HasPrefix(rest, "//") {
			return parseLong(strings.TrimPrefix(rest, "//"))
		}
		if strings.HasPrefix(rest, "/") {
			return Location{Kind: Resource, ID: rest}, nil
		}
		return parseAsset(rest)
	case "runs": // MLflow: runs:/{run}/{path}
		job, path, _ := strings.Cut(strings.TrimLeft(rest, "/"), "/")
		return artifact(job, path)
	case "mlflow-artifacts": // MLflow proxy: mlflow-artifacts:/{experiment}/{run}/artifacts/{path}
		parts := strings.SplitN(strings.TrimLeft(rest, "/"), "/", 4)
		if len(parts) < 3 || parts[2] != "artifacts" {
			return Location{}, fmt.Errorf("it must be mlflow-artifacts:/{experiment}/{run}/artifacts/{path}")
		}
		return artifact(parts[1], strings.Join(parts[3:], ""))
	}
	return Location{}, fmt.Errorf("its scheme %q is not supported; use azureml, https, wasbs, abfss, runs or mlflow-artifacts", scheme)
}

func artifact(job, path string) (Location, error) {
	clean, err := CleanPath(path)
	if err == nil {
		err = checkName(job)
	}
	return Location{Kind: Artifact, Job: job, Path: clean}, err
}

// parseBlob reads https://{account}.blob.{storage}/{container}/{path} and wasbs|abfss://{container}@{account}.….{storage}/{path}.
func parseBlob(uri, storage string) (Location, error) {
	u, err := url.Parse(uri)
	if err != nil {
		return Location{}, fmt.Errorf("it is malformed")
	}
	if u.RawQuery != "" || u.Fragment != "" || u.ForceQuery {
		return Location{}, fmt.Errorf("it must have no query or fragment; access is by identity, not by signature")
	}
	account, err := accountOf(u.Hostname(), storage)
	if err != nil {
		return Location{}, err
	}
	l := Location{Kind: Blob, Account: account}
	path := strings.TrimPrefix(u.Path, "/") // decoded once by url.Parse
	switch {
	case u.Scheme == "https" && u.User == nil:
		l.Container, path, _ = strings.Cut(path, "/")
	case u.Scheme != "https" && u.User != nil:
		if _, has := u.User.Password(); has {
			return Location{}, fmt.Errorf("it must not hold a password")
		}
		l.Container = u.User.Username()
	default:
		return Location{}, fmt.Errorf("its container is missing or out of place")
	}
	if err := checkName(l.Container); err != nil {
		return Location{}, fmt.Errorf("container: %w", err)
	}
	l.Path, err = CleanPath(path)
	return l, err
}

func accountOf(host, storage string) (string, error) {
	if h, _, err := net.SplitHostPort(storage); err == nil {
		storage = h
	}
	for _, service := range []string{".blob.", ".dfs."} {
		account, ok := strings.CutSuffix(strings.ToLower(host), service+strings.ToLower(storage))
		if ok && account != "" && !strings.Contains(account, ".") {
			return account, nil
		}
	}
	return "", fmt.Errorf("its host is not a storage account of this platform (*.blob.%s)", storage)
}

// parseLong reads what follows azureml://.
func parseLong(rest string) (Location, error) {
	decoded, err := url.PathUnescape(rest)
	if err != nil {
		return Location{}, fmt.Errorf("it is malformed")
	}
	var l Location
	segs := strings.Split(decoded, "/")
	if strings.EqualFold(segs[0], "subscriptions") {
		n := 6 // subscriptions/s/resourcegroups/g/workspaces/w, or with providers/Microsoft.MachineLearningServices
		if len(segs) > 4 && strings.EqualFold(segs[4], "providers") {
			n = 8
		}
		if len(segs) < n+2 || !strings.EqualFold(segs[2], "resourcegroups") || !strings.EqualFold(segs[n-2], "workspaces") {
			return Location{}, fmt.Errorf("its workspace is malformed")
		}
		l.Workspace = fmt.Sprintf("/subscriptions/%s/resourceGroups/%s/providers/Microsoft.MachineLearningServices/workspaces/%s", segs[1], segs[3], segs[n-1])
		segs = segs[n:]
	}
	return parseTail(l, segs)
}

// parseTail reads datastores/{d}/paths/{p}, jobs/{j}/outputs/{o}/paths/{p} and {assets}/{name}/versions/{v}.
func parseTail(l Location, segs []string) (Location, error) {
	is := func(i int, word string) bool { return len(segs) > i && strings.EqualFold(segs[i], word) }
	var err error
	switch {
	case is(0, "datastores") && is(2, "paths"):
		l.Kind, l.Store = Datastore, segs[1]
		l.Path, err = CleanPath(strings.Join(segs[3:], "/"))
		if err == nil {
			err = checkName(l.Store)
		}
		return l, err
	case is(0, "jobs") && is(2, "outputs") && len(segs) >= 4:
		l.Kind, l.Job, l.Output = Output, segs[1], segs[3]
		if is(4, "paths") {
			l.Path, err = CleanPath(strings.Join(segs[5:], "/"))
		} else if len(segs) > 4 {
			return Location{}, fmt.Errorf("a path in an output follows the word paths")
		}
		if err == nil {
			err = checkName(l.Job, l.Output)
		}
		return l, err
	case (is(0, "data") || is(0, "models") || is(0, "codes") || is(0, "environments")) && is(2, "versions") && len(segs) == 4:
		l.Kind, l.Name, l.Version = Asset, segs[1], segs[3]
		return l, checkName(l.Name, l.Version)
	}
	return Location{}, fmt.Errorf("it must be azureml://datastores/{name}/paths/{path} or azureml://jobs/{name}/outputs/{name}/paths/{path}")
}

// parseAsset reads {name}:{version}, {name}@{label} and {name}.
func parseAsset(rest string) (Location, error) {
	l := Location{Kind: Asset}
	var ok bool
	if l.Name, l.Version, ok = strings.Cut(rest, ":"); ok {
		return l, checkName(l.Name, l.Version)
	}
	if l.Name, l.Label, ok = strings.Cut(rest, "@"); ok {
		return l, checkName(l.Name, l.Label)
	}
	return Location{}, fmt.Errorf("it needs a version (name:1) or a label (name@latest)")
}

// CleanPath refuses every path that could mean something else to somebody else, and returns the others as they are. The
// empty path is allowed, and one trailing slash.
func CleanPath(p string) (string, error) {
	if p == "" {
		return "", nil
	}
	if len(p) > 1024 {
		return "", fmt.Errorf("path is longer than 1024 characters")
	}
	for _, r := range p {
		if r < 0x20 || r == 0x7f || r == '\\' || r == '%' || r == ';' || r == 0xfffd {
			return "", fmt.Errorf("path holds the character %q, which is not allowed", r)
		}
	}
	for seg := range strings.SplitSeq(strings.TrimSuffix(p, "/"), "/") {
		if seg == "" || strings.Trim(seg, ". ") == "" {
			return "", fmt.Errorf("path holds the segment %q, which is not allowed", seg)
		}
	}
	return p, nil
}

func checkName(names ...string) error {
	for _, n := range names {
		if n == "" || len(n) > 255 || strings.Trim(n, ".") == "" || strings.ContainsAny(n, "/\\%;:?#@ \t\r\n\x00") {
			return fmt.Errorf("name %q is not allowed", clip(n))
		}
	}
	return nil
}

func clip(s string) string {
	if len(s) > 200 {
		return s[:200] + "…"
	}
	return s
}
