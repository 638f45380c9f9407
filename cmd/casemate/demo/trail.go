package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"casemate.dev/client"
)

// entry is what the demonstration reads of an entry of the audit trail.
type entry struct {
	Time        time.Time `json:"time"`
	Operation   string    `json:"operationName"`
	Action      string    `json:"action"`
	Category    string    `json:"category"`
	Caller      string    `json:"caller"`
	CallerName  string    `json:"callerName"`
	CallerKind  string    `json:"callerType"`
	Person      string    `json:"onBehalfOf"`
	Run         string    `json:"runId"`
	Node        string    `json:"nodeId"`
	Origin      string    `json:"origin"`
	Allowed     bool      `json:"allowed"`
	Code        string    `json:"code"`
	Correlation string    `json:"correlationId"`
}

const trailPath = "/providers/Casemate.Audit/trail/"

func (d *demo) trail(ctx context.Context, question client.Object) ([]entry, error) {
	question["from"] = d.since
	var answer struct {
		Value []entry `json:"value"`
	}
	err := d.admin.Post(ctx, trailPath+"query", trailVersion, question, &answer)
	return answer.Value, err
}

// drillTrail asks who has touched the patients' data.
func (d *demo) drillTrail(ctx context.Context, r *record) error {
	scientist := d.scientist.As.ObjectID
	all, err := d.trail(ctx, client.Object{"scope": d.names.accountID})
	if err != nil {
		return err
	}
	var reads, uploads, refusals, nameless int
	var shown entry
	for _, e := range all {
		switch {
		case !e.Allowed && e.Caller == d.outsider.As.ObjectID:
			refusals++
		case e.Allowed && e.Caller == d.jobID.principal && e.Person == scientist && e.Run == d.training.name && strings.HasSuffix(e.Action, "/blobs/read"):
			reads++
			shown = e
		case e.Allowed && e.Caller == scientist && strings.HasSuffix(e.Action, "/blobs/write"):
			uploads++
		}
		if e.Allowed && e.Category == "Data" && e.Person == "" && e.Caller != scientist && e.Caller != d.engineer.As.ObjectID {
			nameless++
			if nameless == 1 {
				r.display.say("without a person: %+v", e)
			}
		}
	}
	r.check(uploads > 0, "ask who wrote to the storage account", "%d entries of the data scientist in person", uploads)
	r.check(reads > 0, "ask who is behind the reads by the jobs' shared identity", "%d entries; %s by %s on node %s, run %s, on behalf of %s (the data scientist)",
		reads, shown.Operation, shown.CallerName, shown.Node, shown.Run, shown.Person)
	r.check(nameless == 0, "look for reads of data without a person", "%d of %d entries", nameless, len(all))
	r.check(refusals > 0, "ask for the outsider's attempts", "%d refusals on record", refusals)
	mine, err := d.trail(ctx, client.Object{"caller": scientist, "scope": d.names.accountID})
	if err != nil {
		return err
	}
	behind := 0
	for _, e := range mine {
		if e.Person == scientist {
			behind++
		}
	}
	r.check(behind > 0 && behind < len(mine), "ask once for everything that the data scientist is behind", "%d entries, %d of them through shared identities", len(mine), behind)
	return d.activityLog(ctx, r)
}

// activityLog reads the subscription's log as az would.
func (d *demo) activityLog(ctx context.Context, r *record) error {
	filter := fmt.Sprintf("eventTimestamp ge '%s' and resourceUri eq '%s'", d.since.UTC().Format(time.RFC3339), d.names.workspaceID)
	doc, err := d.admin.Get(ctx, "/subscriptions/"+d.server.env["AZURE_SUBSCRIPTION_ID"]+"/providers/Microsoft.Insights/eventtypes/management/values?$filter="+urlQuery(filter), "2015-04-01")
	if err != nil {
		return err
	}
	events, _ := doc["value"].([]any)
	made := 0
	for _, e := range events {
		if strings.EqualFold(client.Text(e, "operationName.value"), "Microsoft.MachineLearningServices/workspaces/write") && strings.Contains(fmt.Sprint(e), d.engineer.As.ObjectID) {
			made++
		}
	}
	r.check(made > 0, "read the activity log of the workspace", "%d events; that the engineer made it is among them", len(events))
	return nil
}

func urlQuery(s string) string {
	return strings.NewReplacer("%", "%25", " ", "%20", "'", "%27", "/", "%2F", ":", "%3A", "+", "%2B").Replace(s)
}

// verdict is the answer to a verification.
type verdict struct {
	Records uint64 `json:"records"`
	Intact  bool   `json:"intact"`
	Fault   string `json:"fault"`
}

func (d *demo) verify(ctx context.Context) (v verdict, err error) {
	return v, d.admin.Post(ctx, trailPath+"verify", trailVersion, nil, &v)
}

// drillTamper changes one byte of the trail on the disk, as somebody with root would, and puts it back.
func (d *demo) drillTamper(ctx context.Context, r *record) error {
	v, err := d.verify(ctx)
	if err != nil {
		return err
	}
	r.check(v.Intact, "verify the trail", "%d records, intact %v %s", v.Records, v.Intact, v.Fault)
	path, offset, err := d.victim()
	if err != nil {
		return err
	}
	if err := flip(path, offset); err != nil {
		return err
	}
	v, err = d.verify(ctx)
	if back := flip(path, offset); back != nil || err != nil {
		return errors.Join(err, back)
	}
	r.check(!v.Intact && v.Fault != "", fmt.Sprintf("change one byte of %s at %d and verify", filepath.Base(path), offset), "%s", v.Fault)
	v, err = d.verify(ctx)
	if err != nil {
		return err
	}
	r.check(v.Intact, "put the byte back and verify", "%d records, intact %v %s", v.Records, v.Intact, v.Fault)
	return nil
}

// victim is the middle of the largest file of the trail.
func (d *demo) victim() (string, int64, error) {
	files, err := filepath.Glob(filepath.Join(d.server.data, "audit", "*.log"))
	if err != nil {
		return "", 0, fmt.Errorf("listing the trail: %w", err)
	}
	var path string
	var size int64
	for _, f := range files {
		if st, err := os.Stat(f); err == nil && st.Size() > size {
			path, size = f, st.Size()
		}
	}
	if size < 1024 {
		return "", 0, fmt.Errorf("the trail in %s is not there", filepath.Join(d.server.data, "audit"))
	}
	return path, size / 2, nil
}

// flip inverts one byte; doing it twice does nothing.
func flip(path string, offset int64) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("opening the trail: %w", err)
	}
	b := make([]byte, 1)
	if _, err = f.ReadAt(b, offset); err == nil || errors.Is(err, io.EOF) {
		b[0] ^= 0xff
		_, err = f.WriteAt(b, offset)
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("changing the trail: %w", err)
	}
	return nil
}
