// Package demo carries the main job of Casemate out and then attacks the result: a locked-down workspace, a training job on real
// patients' measurements, a scored model, and the security drill. It is `casemate demo`.
//
// It is for whoever wants to see the promises kept on their own machine, and for continuous integration, which reads the
// evidence from --json. It starts a real `casemate serve` as a process of its own and from then on is a client: every step goes over
// the public interface, as one of several principals, from one of several places in the network. The person's place inside a
// virtual network is a helper process in the namespace of an attached machine, which opens sockets there and hands them over.
//
// It believes nothing that it did not see: a step is ok only when the answer was exactly the expected one, refusals included, and each
// says what was tried and what was seen. For the search of raw disks it reads the server's directory as root, as a thief
// of the disk would. It has no back door, changes one byte of the audit log (and puts it back), and ends only the
// processes that it started.
package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"casemate.dev/internal/durable"
)

// options are what the command line says.
type options struct {
	data, json string
	keep       bool
}

// Command is `casemate demo`.
func Command() *cobra.Command {
	var o options
	cmd := &cobra.Command{Use: "demo", Short: "Train and score on sensitive data in a locked-down workspace, then attack it", Args: cobra.NoArgs}
	cmd.Flags().StringVar(&o.data, "data", "", "data directory of the server (default: a new one, removed at the end)")
	cmd.Flags().StringVar(&o.json, "json", "", "file to write the evidence to")
	cmd.Flags().BoolVar(&o.keep, "keep", false, "leave the server running and its data where it is")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		d := newDemo(o, newDisplay(cmd.OutOrStdout()))
		rep, err := d.run(cmd.Context())
		if o.json != "" {
			err = errors.Join(err, rep.write(o.json))
		}
		return err
	}
	return cmd
}

// step is one thing to do and show. After a failed one with must set, nothing further can be tried.
type step struct {
	name  string
	limit time.Duration
	must  bool
	fn    func(*demo, context.Context, *record) error
}

// steps are the whole demonstration, in order.
func steps() []step {
	const short, long = time.Minute, 10 * time.Minute
	return []step{
		{"server", short, true, (*demo).startServer},
		{"principals", short, true, (*demo).makePrincipals},
		{"network", short, true, (*demo).makeNetwork},
		{"identity", short, true, (*demo).makeIdentity},
		{"vault and key", short, true, (*demo).makeVault},
		{"storage under the customer's key", short, true, (*demo).makeStorage},
		{"registry", short, true, (*demo).makeRegistry},
		{"workspace under the customer's key", short, true, (*demo).makeWorkspace},
		{"cluster", short, true, (*demo).makeCluster},
		{"locked down", short, true, (*demo).checkLockedDown},
		{"curated image", long, true, (*demo).pushImage},

		{"patients' data", short, true, (*demo).uploadData},
		{"training job", long, true, (*demo).train},
		{"tracking", short, true, (*demo).checkRun},
		{"online endpoint", 3 * time.Minute, true, (*demo).deploy},
		{"scoring held-out patients", short, true, (*demo).score},

		{"drill: no token", short, false, (*demo).drillNoToken},
		{"drill: a valid token without a role", short, false, (*demo).drillNoRole},
		{"drill: a token of another tenant", short, false, (*demo).drillOtherTenant},
		{"drill: the right token from outside the network", short, false, (*demo).drillOutside},
		{"drill: the right token from a neighbouring network", short, false, (*demo).drillNeighbour},
		{"drill: a secret that the data scientist may not have", short, false, (*demo).drillSecret},
		{"drill: a node tries to leave its subnet", 3 * time.Minute, false, (*demo).drillNode},
		{"drill: canary search", 5 * time.Minute, false, (*demo).drillCanary},
		{"drill: the node is gone", short, false, (*demo).drillNodeGone},
		{"drill: rotation", short, false, (*demo).drillRotation},
		{"drill: revocation during a download", 2 * time.Minute, false, (*demo).drillRevocation},
		{"drill: restoring", short, false, (*demo).drillRestore},
		{"drill: who touched the data", short, false, (*demo).drillTrail},
		{"drill: one changed byte in the audit trail", short, false, (*demo).drillTamper},
	}
}

// outcome is a step as --json tells it.
type outcome struct {
	Name     string `json:"name"`
	OK       bool   `json:"ok"`
	Millis   int64  `json:"ms"`
	Evidence []fact `json:"evidence"`
	Error    string `json:"error,omitempty"`
}

// report is the evidence of a run.
type report struct {
	Steps []outcome `json:"steps"`
	OK    bool      `json:"ok"`
}

func (r report) write(path string) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("encoding the evidence: %w", err)
	}
	if path, err = filepath.Abs(path); err != nil {
		return fmt.Errorf("writing the evidence: %w", err)
	}
	return durable.WriteFile(path, append(b, '\n'), 0o644)
}

// fact is one thing tried and what was seen.
type fact struct {
	Tried string `json:"tried"`
	Saw   string `json:"saw"`
	OK    bool   `json:"ok"`
}

// record collects a step's facts.
type record struct {
	facts   []fact
	failed  int
	display *display
}

// check keeps a fact; with ok false the step has failed.
func (r *record) check(ok bool, tried, saw string, args ...any) {
	f := fact{Tried: tried, Saw: fmt.Sprintf(saw, args...), OK: ok}
	r.facts = append(r.facts, f)
	if !ok {
		r.failed++
	}
	r.display.fact(f)
}

// note keeps a fact that is as it is.
func (r *record) note(tried, saw string, args ...any) { r.check(true, tried, saw, args...) }

var errFailed = errors.New("the demonstration failed: see the steps above")

// run does all steps and cleans up.
func (d *demo) run(ctx context.Context) (rep report, err error) {
	if os.Geteuid() != 0 {
		return rep, errors.New("the demonstration needs root: virtual networks and nodes are namespaces, packet filters and mounts of the kernel")
	}
	if d.binary, err = os.Executable(); err != nil {
		return rep, fmt.Errorf("finding this program: %w", err)
	}
	began := time.Now()
	defer func() {
		if e := d.close(context.WithoutCancel(ctx), rep.OK && err == nil); e != nil {
			err = errors.Join(err, e)
			rep.OK = false
		}
	}()
	rep.OK = true
	for i, s := range steps() {
		o := d.do(ctx, i+1, s)
		rep.Steps = append(rep.Steps, o)
		rep.OK = rep.OK && o.OK
		if !o.OK && (s.must || ctx.Err() != nil) {
			for _, rest := range steps()[i+1:] {
				rep.Steps = append(rep.Steps, outcome{Name: rest.name, Evidence: []fact{}, Error: "not tried: an earlier step failed"})
			}
			break
		}
	}
	d.display.summary(rep, d, time.Since(began))
	if !rep.OK {
		return rep, errFailed
	}
	return rep, nil
}

func (d *demo) do(ctx context.Context, number int, s step) outcome {
	ctx, cancel := context.WithTimeoutCause(ctx, s.limit, fmt.Errorf("it took longer than %s", s.limit))
	defer cancel()
	began := time.Now()
	r := &record{facts: []fact{}, display: d.display}
	d.display.begin(number, s.name)
	err := s.fn(d, ctx, r)
	if err != nil && ctx.Err() != nil {
		err = errors.Join(context.Cause(ctx), err)
	}
	o := outcome{Name: s.name, OK: err == nil && r.failed == 0, Millis: time.Since(began).Milliseconds(), Evidence: r.facts}
	if err != nil {
		o.Error = err.Error()
	}
	d.display.end(o)
	return o
}
