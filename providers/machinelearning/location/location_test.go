package location

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const storage = "core.casemate.localhost:8443"

func TestParse(t *testing.T) {
	ws := "/subscriptions/s/resourceGroups/g/providers/Microsoft.MachineLearningServices/workspaces/w"
	for uri, want := range map[string]Location{
		"https://acct.blob.core.casemate.localhost:8443/c1/a/b%20c":                    {Kind: Blob, Account: "acct", Container: "c1", Path: "a/b c"},
		"https://acct.dfs.core.casemate.localhost/c1/":                                 {Kind: Blob, Account: "acct", Container: "c1"},
		"wasbs://c1@acct.blob.core.casemate.localhost/a/":                              {Kind: Blob, Account: "acct", Container: "c1", Path: "a/"},
		"azureml://datastores/blob/paths/x/y.csv":                                      {Kind: Datastore, Store: "blob", Path: "x/y.csv"},
		"azureml://subscriptions/s/resourcegroups/g/workspaces/w/datastores/d/paths/p": {Kind: Datastore, Workspace: ws, Store: "d", Path: "p"},
		"azureml:/subscriptions/s/resourceGroups/g":                                    {Kind: Resource, ID: "/subscriptions/s/resourceGroups/g"},
		ws + "/data/a/versions/1":                                                      {Kind: Resource, ID: ws + "/data/a/versions/1"},
		"azureml:cancer:3":                                                             {Kind: Asset, Name: "cancer", Version: "3"},
		"azureml:cancer@latest":                                                        {Kind: Asset, Name: "cancer", Label: "latest"},
		"azureml://jobs/j1/outputs/artifacts/paths/model/":                             {Kind: Output, Job: "j1", Output: "artifacts", Path: "model/"},
		"azureml://jobs/j1/outputs/model":                                              {Kind: Output, Job: "j1", Output: "model"},
		"runs:/j1/model":                                                               {Kind: Artifact, Job: "j1", Path: "model"},
		"mlflow-artifacts:/7/j1/artifacts/model/model.pkl":                             {Kind: Artifact, Job: "j1", Path: "model/model.pkl"},
		"azureml://subscriptions/s/resourceGroups/g/providers/Microsoft.MachineLearningServices/workspaces/w/data/d/versions/2": {Kind: Asset, Workspace: ws, Name: "d", Version: "2"},
	} {
		got, err := Parse(uri, storage)
		if err != nil {
			t.Errorf("%s: %v", uri, err)
		} else if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: %s", uri, diff)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for _, uri := range []string{
		"", "x", "file:///etc/passwd", "http://acct.blob.core.casemate.localhost/c/p", "https://evil.example/c/p", "https://169.254.169.254/c/p",
		"https://acct.blob.core.casemate.localhost.evil.example/c/p", "https://a.b.blob.core.casemate.localhost/c/p",
		"https://acct.blob.core.casemate.localhost/c/p?sig=abc", "https://u:p@acct.blob.core.casemate.localhost/c/p",
		"https://acct.blob.core.casemate.localhost/", "wasbs://acct.blob.core.casemate.localhost/p", "wasbs://c:x@acct.blob.core.casemate.localhost/p",
		"azureml:", "azureml:x", "azureml:x:", "azureml://", "azureml://datastores/d", "azureml://jobs/j", "azureml://jobs/j/outputs/o/x",
		"azureml://subscriptions/s/resourcegroups/g", "runs:/", "runs:/../x", "mlflow-artifacts:/1", "mlflow-artifacts:/1/r/x/p", "azureml:a:1;b",
	} {
		if got, err := Parse(uri, storage); err == nil {
			t.Errorf("%q was read as %+v", uri, got)
		}
	}
}

// TestTraversal is THREATS R20: no spelling of "up" comes through, in any form of URI.
func TestTraversal(t *testing.T) {
	ups := []string{"..", ".", "%2e%2e", "%2E.", ".%2e", "%252e%252e", "..;", "..;a=b", ".. ", "...", "..\\", "..%5c", "..%255c", "\\..", "", "%00", "a\x00", "..%00", "\x7f", "a\nb"}
	forms := []string{"azureml://datastores/d/paths/a/@/b", "https://a.blob.core.casemate.localhost/c/a/@/b", "runs:/r/a/@/b",
		"mlflow-artifacts:/1/r/artifacts/a/@/b", "azureml://jobs/j/outputs/o/paths/a/@/b", "wasbs://c@a.blob.core.casemate.localhost/a/@/b"}
	for _, up := range ups {
		for _, form := range forms {
			if got, err := Parse(strings.ReplaceAll(form, "@/", up+"/"), storage); err == nil && !strings.HasPrefix(form, "wasbs") {
				t.Errorf("%q in %s was read as %+v", up, form, got)
			}
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("azureml://datastores/d/paths/a/../b")
	f.Add("https://a.blob.core.casemate.localhost/c/%2e%2e/x")
	f.Add("azureml:name:1")
	f.Fuzz(func(t *testing.T, uri string) {
		l, err := Parse(uri, storage)
		if err != nil {
			return
		}
		if l.Kind == None {
			t.Fatalf("%q has no kind and no error", uri)
		}
		for seg := range strings.SplitSeq(l.Path, "/") {
			if seg == "." || seg == ".." || strings.ContainsAny(seg, "\\\x00") {
				t.Fatalf("%q gave path %q", uri, l.Path)
			}
		}
	})
}
