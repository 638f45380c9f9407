package demo

import (
	"context"
	"fmt"

	"casemate.dev/client"
)

// deploy puts the model behind an online endpoint. Meanwhile the job for the searches starts: its node lives until it is cancelled.
func (d *demo) deploy(ctx context.Context, r *record) error {
	me := d.inside(d.scientist)
	if err := d.startHolder(ctx, me); err != nil {
		return err
	}
	code, err := d.code(ctx, me, "score-"+d.tag, "score.py")
	if err != nil {
		return err
	}
	d.names.endpoint = "tumours-" + d.tag
	d.names.endpointID = d.names.workspaceID + "/onlineEndpoints/" + d.names.endpoint
	body := client.Object{"location": location, "identity": client.Object{"type": "SystemAssigned"}, "properties": client.Object{"authMode": "Key"}}
	doc, err := me.Put(ctx, d.names.endpointID, mlVersion, body)
	if err != nil {
		return err
	}
	d.scoreURI = client.Text(doc, "properties.scoringUri")
	access := client.Text(doc, "properties.publicNetworkAccess")
	r.check(access == "Disabled", "make an online endpoint", "%s, public access %s like the workspace's", d.scoreURI, access)
	b := d.display.bar("deployment", 0, false)
	_, err = me.Put(ctx, d.names.endpointID+"/deployments/"+deploymentName, mlVersion, client.Object{"location": location, "sku": client.Object{"name": "Default", "capacity": 1},
		"properties": client.Object{"endpointComputeType": "Managed", "model": d.names.modelID, "environmentId": d.names.environmentID, "instanceType": nodeSize,
			"codeConfiguration": client.Object{"codeId": code, "scoringScript": "score.py"}}})
	b.done()
	if err != nil {
		return err
	}
	props := body["properties"].(client.Object)
	props["traffic"] = client.Object{deploymentName: 100}
	if _, err := me.Put(ctx, d.names.endpointID, mlVersion, body); err != nil {
		return err
	}
	r.note("deploy the registered model in the scoring subnet and give it all traffic", "deployment %s", deploymentName)
	var keys struct {
		Primary string `json:"primaryKey"`
	}
	if err := me.Post(ctx, d.names.endpointID+"/listKeys", mlVersion, nil, &keys); err != nil {
		return err
	}
	d.scoreKey = keys.Primary
	r.check(len(keys.Primary) >= 32, "ask for the endpoint's key", "%d characters", len(keys.Primary))
	return nil
}

// score asks for every held-out patient and compares with the truth.
func (d *demo) score(ctx context.Context, r *record) error {
	me := d.inside(d.scientist)
	numbers, err := d.heldOut(ctx, me)
	if err != nil {
		return err
	}
	var rows [][]float64
	for _, n := range numbers {
		rows = append(rows, d.patients[n-1].measurements)
	}
	var answer struct {
		Malignant []float64 `json:"malignant"`
	}
	if err := me.Score(ctx, d.scoreURI, d.scoreKey, client.Object{"measurements": rows}, &answer); err != nil {
		return err
	}
	if len(answer.Malignant) != len(rows) {
		return fmt.Errorf("%d patients were scored, %d asked for", len(answer.Malignant), len(rows))
	}
	var all []prediction
	for i, n := range numbers {
		all = append(all, prediction{answer.Malignant[i], d.patients[n-1].malignant})
	}
	d.scores = evaluate(all)
	r.check(d.scores.accuracy > 0.9 && d.scores.auc > 0.95, fmt.Sprintf("score %d held-out patients over TLS from inside the network", d.scores.count),
		"accuracy %.3f, AUC %.4f", d.scores.accuracy, d.scores.auc)
	return nil
}
