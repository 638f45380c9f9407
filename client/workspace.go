package client

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strings"
)

// Tracking is a workspace's side of MLflow's protocol. URI is the workspace's mlFlowTrackingUri.
type Tracking struct {
	Client *Client
	URI    string
}

// Run reads a run with its parameters, newest metrics and tags.
func (t Tracking) Run(ctx context.Context, id string) (Object, error) {
	var out Object
	err := t.get(ctx, "mlflow/runs/get?run_id="+url.QueryEscape(id), &out)
	return out, err
}

// MetricHistory reads how a metric went.
func (t Tracking) MetricHistory(ctx context.Context, run, metric string) ([]Object, error) {
	var out struct{ Metrics []Object }
	err := t.get(ctx, "mlflow/metrics/get-history?run_id="+url.QueryEscape(run)+"&metric_key="+url.QueryEscape(metric), &out)
	return out.Metrics, err
}

// Artifact reads an artifact of a run.
func (t Tracking) Artifact(ctx context.Context, experiment, run, path string) ([]byte, error) {
	var out []byte
	err := t.get(ctx, "mlflow-artifacts/artifacts/"+escape(experiment+"/"+run+"/artifacts/"+path), &out)
	return out, err
}

// SetTag puts a tag on a run.
func (t Tracking) SetTag(ctx context.Context, run, key, value string) error {
	_, err := t.Client.Do(ctx, Request{Method: http.MethodPost, URL: strings.TrimSuffix(t.URI, "/") + "/api/2.0/mlflow/runs/set-tag",
		Audience: AudienceWorkspace, JSON: Object{"run_id": run, "key": key, "value": value}}, nil)
	return err
}

func (t Tracking) get(ctx context.Context, path string, out any) error {
	_, err := t.Client.Do(ctx, Request{URL: strings.TrimSuffix(t.URI, "/") + "/api/2.0/" + path, Audience: AudienceWorkspace}, out)
	if err != nil {
		return fmt.Errorf("GET %s: %w", path, err)
	}
	return nil
}

// Score asks an online endpoint. key is one of the endpoint's; "" means a token of the caller.
func (c *Client) Score(ctx context.Context, uri, key string, input, out any) error {
	_, err := c.Do(ctx, Request{Method: http.MethodPost, URL: uri, Audience: AudienceWorkspace, Token: key, JSON: input}, out)
	if err != nil {
		return fmt.Errorf("scoring at %s: %w", uri, err)
	}
	return nil
}
