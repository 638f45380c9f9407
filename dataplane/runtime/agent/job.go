package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"
)

// grace is what user code has between SIGTERM and SIGKILL.
const grace = 10 * time.Second

// job is one run of a spec. A job's steps follow each other in one goroutine.
type job struct {
	worker  *worker
	spec    Spec
	report  *reporter
	storage *storage
	user    *logStream // what user code says
	system  *logStream // what the agent does
	exit    *int
}

func newJob(w *worker, spec Spec) *job {
	resource := spec.TokenResource
	if resource == "" {
		resource = "https://storage.azure.com/"
	}
	return &job{worker: w, spec: spec, report: &reporter{worker: w}, storage: &storage{
		client: w.network, retry: w.retry,
		identity: identity{client: w.network, endpoint: spec.Env["IDENTITY_ENDPOINT"], header: spec.Env["IDENTITY_HEADER"], resource: resource, clientID: spec.ClientID},
	}}
}

var namePattern = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.-]{0,254}$`)

// validate refuses a spec whose names would not stay inside the work directory or the environment.
func (s Spec) validate() error {
	if s.Kind != KindJob && s.Kind != KindServe || s.Kind == KindServe && s.Serve == nil || s.Kind == KindJob && s.Command == "" {
		return fmt.Errorf("spec of kind %q is not complete", s.Kind)
	}
	var names []string
	for _, in := range s.Inputs {
		names = append(names, in.Name)
	}
	for _, out := range s.Outputs {
		names = append(names, out.Name)
	}
	for name := range s.Params {
		names = append(names, name)
	}
	for _, name := range names {
		if !namePattern.MatchString(name) {
			return fmt.Errorf("%q is not a name of an input or output", name)
		}
	}
	for name, value := range s.Env {
		if name == "" || strings.ContainsAny(name, "=\x00") || strings.ContainsRune(value, 0) {
			return fmt.Errorf("environment variable %q cannot be set", name)
		}
	}
	return nil
}

// run prepares, runs and finishes. ctx ends with cancellation; reporting outlives it.
func (j *job) run(ctx, reporting context.Context) error {
	if err := j.report.send(reporting, Event{State: StatePreparing}); err != nil {
		return err
	}
	j.system = openLog(reporting, j.storage, j.spec.Logs.System)
	j.user = openLog(reporting, j.storage, j.spec.Logs.User)
	j.system.line("preparing %s", j.spec.RunID)
	err := j.prepare(ctx)
	if err == nil {
		err = j.execute(ctx, reporting)
	}
	if ctx.Err() != nil {
		err = errors.Join(errCancelled, err)
	}
	return j.finish(reporting, err)
}

func (j *job) path(parts ...string) string {
	return filepath.Join(append([]string{j.worker.work}, parts...)...)
}

// prepare fetches everything and verifies it before any of it runs.
func (j *job) prepare(ctx context.Context) error {
	for _, dir := range []string{"home", "code"} {
		if err := j.userDir(j.path(dir)); err != nil {
			return err
		}
	}
	// User code owns each output, not the directory around them: it cannot put a link in an output's place.
	if err := os.MkdirAll(j.path("outputs"), 0o755); err != nil {
		return fmt.Errorf("creating directory: %w", err)
	}
	if j.spec.Code != nil {
		if err := j.fetch(ctx, "code", *j.spec.Code, j.path("code"), j.worker.uid); err != nil {
			return err
		}
	}
	for _, in := range j.spec.Inputs {
		if in.Single && (len(in.Tree.Files) != 1 || in.Tree.Folder != nil) {
			return fail(CodeData, fmt.Errorf("input %s is one file, but %d are given", in.Name, len(in.Tree.Files)))
		}
		// Inputs stay the agent's: readable, but not to be changed by what runs.
		if err := j.fetch(ctx, "input "+in.Name, in.Tree, j.path("inputs", in.Name), -1); err != nil {
			return err
		}
	}
	if j.spec.Serve != nil {
		if err := j.fetch(ctx, "model", j.spec.Serve.Model, j.path("model"), -1); err != nil {
			return err
		}
	}
	for _, out := range j.spec.Outputs {
		if err := j.userDir(j.path("outputs", out.Name)); err != nil {
			return err
		}
		if out.Name == "default" {
			err := os.Symlink(j.path("outputs", "default"), j.path("code", "outputs"))
			if err != nil && !errors.Is(err, os.ErrExist) {
				return fmt.Errorf("linking outputs: %w", err)
			}
		}
	}
	return nil
}

func (j *job) userDir(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("creating directory: %w", err)
	}
	if j.worker.uid >= 0 {
		if err := os.Chown(dir, j.worker.uid, j.worker.uid); err != nil {
			return fmt.Errorf("handing over directory: %w", err)
		}
	}
	return nil
}

func (j *job) fetch(ctx context.Context, what string, tree Tree, dir string, owner int) error {
	started := time.Now()
	n, err := j.storage.fetch(ctx, tree, dir, owner)
	switch {
	case errors.Is(err, errIntegrity):
		return fail(CodeIntegrity, fmt.Errorf("%s has been changed since it was submitted; nothing was run: %w", what, err))
	case err != nil:
		return fail(CodeData, fmt.Errorf("%s: %w", what, err))
	}
	j.system.line("fetched %s: %d files in %d ms", what, n, time.Since(started).Milliseconds())
	return nil
}

// environment is user code's, sorted. What the spec says wins over what the agent proposes.
func (j *job) environment() []string {
	env := map[string]string{
		"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": j.path("home"), "USER": "casemate", "LANG": "C.UTF-8",
		"PYTHONUNBUFFERED": "1", "SSL_CERT_FILE": j.worker.caFile, "REQUESTS_CA_BUNDLE": j.worker.caFile,
	}
	for _, in := range j.spec.Inputs {
		env["AZURE_ML_INPUT_"+in.Name] = j.inputPath(in)
	}
	for _, out := range j.spec.Outputs {
		env["AZURE_ML_OUTPUT_"+out.Name] = j.path("outputs", out.Name)
	}
	for name, value := range j.spec.Params {
		env["AZUREML_PARAMETER_"+name] = value
	}
	if s := j.spec.Serve; s != nil {
		env["AZUREML_MODEL_DIR"], env["AML_APP_ROOT"], env["AZUREML_ENTRY_SCRIPT"] = j.path("model"), j.path("code"), s.entry()
	}
	for name, value := range j.spec.Env {
		env[name] = value
	}
	list := make([]string, 0, len(env))
	for name, value := range env {
		list = append(list, name+"="+value)
	}
	slices.Sort(list)
	return list
}

func (j *job) inputPath(in Input) string {
	if in.Single {
		return j.path("inputs", in.Name, filepath.FromSlash(in.Tree.Files[0].Path))
	}
	return j.path("inputs", in.Name)
}

var placeholder = regexp.MustCompile(`\$\{\{\s*(inputs|outputs)\.([A-Za-z0-9_.-]+)\s*\}\}`)

// command puts paths and literals in place of ${{inputs.x}} and ${{outputs.x}}.
func (j *job) command() (string, error) {
	values := map[string]string{}
	for name, value := range j.spec.Params {
		values["inputs."+name] = value
	}
	for _, in := range j.spec.Inputs {
		values["inputs."+in.Name] = j.inputPath(in)
	}
	for _, out := range j.spec.Outputs {
		values["outputs."+out.Name] = j.path("outputs", out.Name)
	}
	var unknown error
	text := placeholder.ReplaceAllStringFunc(j.spec.Command, func(m string) string {
		parts := placeholder.FindStringSubmatch(m)
		value, ok := values[parts[1]+"."+parts[2]]
		if !ok {
			unknown = fail(CodeUserError, fmt.Errorf("command names %s, which the job does not have", m))
		}
		return value
	})
	return text, unknown
}

// execute runs user code to its end.
func (j *job) execute(ctx, reporting context.Context) error {
	if j.spec.Kind == KindServe {
		return j.serve(ctx, reporting)
	}
	text, err := j.command()
	if err != nil {
		return err
	}
	if j.spec.TimeLimitSeconds > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, time.Duration(j.spec.TimeLimitSeconds)*time.Second, errTimeLimit)
		defer cancel()
	}
	c, logged, err := j.start([]string{"/bin/sh", "-c", text})
	if err != nil {
		return err
	}
	if err := j.report.send(reporting, Event{State: StateRunning}); err != nil {
		c.sweep()
		return err
	}
	err = j.await(ctx, c)
	c.sweep() // what it left running must not write into outputs that are being stored, nor hold the log open
	<-logged
	return err
}

var errTimeLimit = errors.New("the time limit has passed")

// start runs user code with its output going to the user log; logged is closed when the output has ended.
func (j *job) start(argv []string) (c *child, logged <-chan struct{}, err error) {
	in, out, err := os.Pipe()
	if err != nil {
		return nil, nil, fmt.Errorf("creating output pipe: %w", err)
	}
	defer out.Close()
	c, err = j.worker.processes.start(command{argv: argv, env: j.environment(), dir: j.path("code"), uid: j.worker.uid, output: out})
	if err != nil {
		in.Close()
		return nil, nil, fail(CodeImage, err)
	}
	j.system.line("started user code")
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer in.Close()
		_, _ = io.Copy(j.user, in) // a log never fails its writer; the pipe ends with the processes
	}()
	return c, done, nil
}

// await turns the end of user code into the outcome.
func (j *job) await(ctx context.Context, c *child) error {
	var status syscall.WaitStatus
	select {
	case status = <-c.ended:
	case <-ctx.Done():
		j.system.line("stopping user code: %v", context.Cause(ctx))
		status = c.terminate(grace)
	}
	code := exitCode(status)
	j.exit = &code
	j.system.line("user code ended with %d", code)
	switch {
	case errors.Is(context.Cause(ctx), errTimeLimit):
		return fail(CodeTimeLimit, fmt.Errorf("%w (%d s)", errTimeLimit, j.spec.TimeLimitSeconds))
	case ctx.Err() != nil:
		return errCancelled
	case code != 0:
		return fail(CodeUserError, fmt.Errorf("command ended with exit code %d; its output is in the log", code))
	}
	return nil
}

// finish stores what there is, whatever the outcome, and reports it last.
func (j *job) finish(ctx context.Context, outcome error) error {
	if j.exit != nil {
		if err := j.report.send(ctx, Event{State: StateFinalizing, ExitCode: j.exit}); err != nil {
			return err
		}
		for _, out := range j.spec.Outputs {
			n, err := j.storage.store(ctx, j.path("outputs", out.Name), out.URLPrefix)
			j.system.line("stored output %s: %d files", out.Name, n)
			if err != nil && outcome == nil {
				outcome = fail(CodeData, fmt.Errorf("output %s: %w", out.Name, err))
			}
		}
	}
	final := Event{State: StateCompleted, ExitCode: j.exit}
	switch {
	case errors.Is(outcome, errCancelled):
		final.State = StateCanceled
	case outcome != nil:
		final.State, final.Code, final.Error = StateFailed, codeOf(outcome), outcome.Error()
	}
	j.system.line("ending as %s %s", final.State, final.Error)
	if err := errors.Join(j.user.Close(), j.system.Close()); err != nil && final.Error == "" {
		final.Error = err.Error() // the work itself is done: told, not failed
	}
	return j.report.send(ctx, final)
}
