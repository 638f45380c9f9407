package demo

import (
	"bytes"
	"context"
	"embed"
	"encoding/json"
	"fmt"
	"image/png"
	"strings"
	"time"

	"casemate.dev/client"
)

// jobFiles is what the data scientist has written.
//
//go:embed jobs/*.py
var jobFiles embed.FS

// job is a submitted job.
type job struct {
	name string
	id   string // ARM id
}

// uploadData puts the patients' data into the container, from the data scientist's machine inside the network, and registers it.
func (d *demo) uploadData(ctx context.Context, r *record) error {
	raw, err := d.dataSet()
	if err != nil {
		return err
	}
	if d.patients, err = readPatients(raw); err != nil {
		return err
	}
	file := writePatients(d.patients, d.canary.mark("row"))
	me := d.inside(d.scientist)
	if err := me.PutBlob(ctx, d.names.account, dataContainer, blobName, bytes.NewReader(file), int64(len(file))); err != nil {
		return err
	}
	r.note("upload the measurements and a canary row through the private endpoint", "%d patients, %d bytes to %s", len(d.patients), len(file), me.BlobURL(d.names.account, dataContainer, blobName))
	back, err := me.Blob(ctx, d.names.account, dataContainer, blobName)
	if err != nil {
		return err
	}
	r.check(bytes.Equal(back, file), "read them back", "%d bytes, the same", len(back))
	d.names.dataID = d.names.workspaceID + "/data/breast-cancer/versions/1"
	if _, err := me.Put(ctx, d.names.dataID, mlVersion, client.Object{"properties": client.Object{"dataType": "uri_file", "dataUri": me.BlobURL(d.names.account, dataContainer, blobName)}}); err != nil {
		return err
	}
	d.names.environmentID = d.names.workspaceID + "/environments/sklearn/versions/1"
	_, err = me.Put(ctx, d.names.environmentID, mlVersion, client.Object{"properties": client.Object{"image": me.Authority(d.names.registry+".azurecr") + "/" + imageName}})
	if err != nil {
		return err
	}
	r.note("register the data and the environment", "breast-cancer:1, image %s", imageName)
	return nil
}

// code uploads a file of code and registers it; from then on it is pinned by its digest.
func (d *demo) code(ctx context.Context, me *client.Client, name, file string) (string, error) {
	b, err := jobFiles.ReadFile("jobs/" + file)
	if err != nil {
		return "", fmt.Errorf("reading the job's code: %w", err)
	}
	path := "LocalUpload/" + name
	if err := me.PutBlob(ctx, d.names.account, d.names.blobStore, path+"/"+file, bytes.NewReader(b), int64(len(b))); err != nil {
		return "", err
	}
	id := d.names.workspaceID + "/codes/" + name + "/versions/1"
	_, err = me.Put(ctx, id, mlVersion, client.Object{"properties": client.Object{"codeUri": me.BlobURL(d.names.account, d.names.blobStore, path)}})
	return id, err
}

// submit starts a job over the patients' data as the jobs' identity.
func (d *demo) submit(ctx context.Context, me *client.Client, name, code, command string, environment, outputs client.Object) (job, error) {
	j := job{name: name, id: d.names.workspaceID + "/jobs/" + name}
	_, err := me.Put(ctx, j.id, mlVersion, client.Object{"properties": client.Object{
		"jobType": "Command", "experimentName": "breast-cancer", "displayName": name, "command": command, "codeId": code,
		"environmentId": d.names.environmentID, "computeId": d.names.clusterID, "environmentVariables": environment, "outputs": outputs,
		"identity": client.Object{"identityType": "Managed", "clientId": d.jobID.client},
		"inputs":   client.Object{"patients": client.Object{"jobInputType": "uri_file", "mode": "ReadOnlyMount", "uri": d.names.dataID}},
		"limits":   client.Object{"jobLimitsType": "Command", "timeout": "PT15M"},
	}})
	return j, err
}

// train submits the training job and follows it to its end.
func (d *demo) train(ctx context.Context, r *record) error {
	me := d.inside(d.scientist)
	code, err := d.code(ctx, me, "train-"+d.tag, "train.py")
	if err != nil {
		return err
	}
	began := time.Now()
	d.training, err = d.submit(ctx, me, "training-"+d.tag, code, "python3 train.py", client.Object{"MODEL_NAME": modelName},
		client.Object{"model": client.Object{"jobOutputType": "uri_folder", "mode": "ReadWriteMount"}})
	if err != nil {
		return err
	}
	r.note("submit code, data, image and a managed identity; no secret", "job %s", d.training.name)
	doc, err := d.follow(ctx, me, d.training, "Completed")
	if err != nil {
		return err
	}
	r.note("wait for the job", "%s after %.1f s on node %s", client.Text(doc, "properties.status"), time.Since(began).Seconds(), client.Text(doc, "properties.node"))
	log, err := d.userLog(ctx, me, d.training)
	if err != nil {
		return err
	}
	lines := strings.Split(strings.TrimSpace(log), "\n")
	r.note("read its log from the workspace's storage", "%d lines, the last: %s", len(lines), lines[len(lines)-1])
	return nil
}

// follow polls a job until it has the status, and fails when it ends with another.
func (d *demo) follow(ctx context.Context, me *client.Client, j job, want string) (client.Object, error) {
	b := d.display.bar("job "+j.name, 0, false)
	defer b.done()
	for pause := 50 * time.Millisecond; ; pause = min(2*pause, 400*time.Millisecond) {
		doc, err := me.Get(ctx, j.id, mlVersion)
		if err != nil {
			return nil, fmt.Errorf("reading the job: %w", err)
		}
		status := client.Text(doc, "properties.status")
		b.tick(status)
		switch status {
		case want:
			return doc, nil
		case "Completed", "Failed", "Canceled":
			log, _ := d.userLog(ctx, me, j) // whatever there is of it
			return nil, fmt.Errorf("the job %s ended as %s: %s %s\n%s", j.name, status, client.Text(doc, "properties.error.code"), client.Text(doc, "properties.error.message"), tail(log, 2000))
		}
		if err := client.Sleep(ctx, pause); err != nil {
			return nil, fmt.Errorf("waiting for the job %s, which is %s: %w", j.name, status, err)
		}
	}
}

func tail(s string, n int) string {
	if len(s) > n {
		return "…" + s[len(s)-n:]
	}
	return s
}

// userLog is what a job has written, as it stands in the workspace's storage.
func (d *demo) userLog(ctx context.Context, me *client.Client, j job) (string, error) {
	b, err := me.Blob(ctx, d.names.account, "azureml", "ExperimentRun/dcid."+j.name+"/user_logs/std_log.txt")
	return string(b), err
}

// checkRun reads what the job logged and registered.
func (d *demo) checkRun(ctx context.Context, r *record) error {
	me := d.inside(d.scientist)
	t := client.Tracking{Client: me, URI: d.names.trackingURI}
	run, err := t.Run(ctx, d.training.name)
	if err != nil {
		return err
	}
	d.names.experimentID = client.Text(run, "run.info.experiment_id")
	params, _ := client.Dig(run, "run.data.params").([]any)
	metrics, _ := client.Dig(run, "run.data.metrics").([]any)
	r.check(len(params) >= 5 && len(metrics) >= 4, "read the run's parameters and metrics", "%d parameters, %d metrics", len(params), len(metrics))
	history, err := t.MetricHistory(ctx, d.training.name, "held_out_auc")
	if err != nil {
		return err
	}
	if len(history) == 0 {
		return fmt.Errorf("the run has no history of held_out_auc")
	}
	r.check(len(history) >= 10, "read the held-out AUC of each epoch", "%d epochs, from %.4v to %.4v", len(history), history[0]["value"], history[len(history)-1]["value"])
	plot, err := t.Artifact(ctx, d.names.experimentID, d.training.name, "training.png")
	if err != nil {
		return err
	}
	config, err := png.DecodeConfig(bytes.NewReader(plot))
	r.check(err == nil, "read the plot", "PNG of %d×%d, %d bytes (%v)", config.Width, config.Height, len(plot), err)
	d.names.modelID = d.names.workspaceID + "/models/" + modelName + "/versions/1"
	model, err := me.Get(ctx, d.names.modelID, mlVersion)
	if err != nil {
		return err
	}
	r.check(client.Text(model, "properties.jobName") == d.training.name, "find the model that the job registered", "%s:1 from %s", modelName, client.Text(model, "properties.modelUri"))
	if err := t.SetTag(ctx, d.training.name, "reviewed", d.canary.mark("tag")); err != nil {
		return err
	}
	return nil
}

// heldOut are the patients that the job has not trained on, as it logged them.
func (d *demo) heldOut(ctx context.Context, me *client.Client) ([]int, error) {
	b, err := client.Tracking{Client: me, URI: d.names.trackingURI}.Artifact(ctx, d.names.experimentID, d.training.name, "held_out.json")
	if err != nil {
		return nil, err
	}
	var numbers []int
	if err := json.Unmarshal(b, &numbers); err != nil {
		return nil, fmt.Errorf("reading the list of held-out patients: %w", err)
	}
	for _, n := range numbers {
		if n < 1 || n > len(d.patients) {
			return nil, fmt.Errorf("reading the list of held-out patients: there is no patient %d", n)
		}
	}
	return numbers, nil
}
