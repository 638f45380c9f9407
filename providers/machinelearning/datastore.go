package machinelearning

import (
	"context"
	"net/http"
	"regexp"
	"strings"

	"casemate.dev/providers/machinelearning/location"
	"casemate.dev/resource"
)

func (p *Provider) datastoreType() resource.Type {
	return resource.Type{
		Name: datastoreType, APIVersions: versions, Owner: workspaceType, Created: http.StatusCreated,
		NamePattern: regexp.MustCompile(`^[a-zA-Z0-9_]{1,255}$`), NameRule: "Use letters, digits and underscores",
		Validate: p.validateDatastore, MayRemove: p.mayRemoveDatastore, Filter: filterDatastores,
		Actions: []resource.Action{{Name: "listSecrets", Permission: datastoreType + "/listsecrets/action", Audit: resource.AuditSecret,
			Handler: func(_ context.Context, d *resource.Document, _ *resource.Request) (any, error) {
				return nil, resource.Errorf(http.StatusBadRequest, "DatastoreHasNoSecrets", "The datastore '%s' has no secrets: its data is reached with the caller's own identity.", d.ID.Name())
			}}},
	}
}

var containerName = regexp.MustCompile(`^[a-z0-9]([a-z0-9]|-[a-z0-9]){2,62}$|^\$root$`)

// validateDatastore accepts stores that are reached by identity only (row I5): a store with a credential in it is refused, because
// whoever may use it could read the credential.
func (p *Provider) validateDatastore(_ context.Context, w *resource.Write) error {
	d := w.New
	if typ := d.String("properties.datastoreType"); !strings.EqualFold(typ, "AzureBlob") {
		return resource.NotSupported("The datastore type '%s' is not supported. Use AzureBlob.", typ)
	}
	switch typ := d.String("properties.credentials.credentialsType"); {
	case typ == "" && d.Get("properties.credentials") == nil, strings.EqualFold(typ, "None"):
		d.Set("properties.credentials", map[string]any{"credentialsType": "None"})
	default:
		return resource.NotSupported("Datastores with credentials (%s) are not supported. Use credentialsType None and give identities a role on the storage account.", typ)
	}
	account, container := d.String("properties.accountName"), d.String("properties.containerName")
	if !regexp.MustCompile(`^[a-z0-9]{3,24}$`).MatchString(account) {
		return resource.Invalid("properties.accountName", "'%s' is not the name of a storage account.", account)
	}
	if !containerName.MatchString(container) {
		return resource.Invalid("properties.containerName", "'%s' is not the name of a container.", container)
	}
	if w.Old != nil {
		for _, name := range []string{"accountName", "containerName", "datastoreType"} {
			if !sameValue(w.Old.Get("properties."+name), d.Get("properties."+name)) && w.Old.Bool("properties.isDefault") {
				return resource.Errorf(http.StatusBadRequest, "PropertyChangeNotAllowed", "The default datastore's '%s' cannot be changed.", name)
			}
		}
		d.Set("properties.isDefault", w.Old.Bool("properties.isDefault"))
	} else if w.Caller.Kind != resource.KindPlatform {
		d.Set("properties.isDefault", false) // read-only
	}
	d.Set("properties.endpoint", p.cfg.Authority(p.storageDomain()))
	d.Set("properties.protocol", "https")
	if d.String("properties.serviceDataAccessAuthIdentity") == "" {
		d.Set("properties.serviceDataAccessAuthIdentity", "None")
	}
	return nil
}

func (p *Provider) mayRemoveDatastore(ctx context.Context, d *resource.Document) error {
	if p.leaving(ctx, d.ID.Parent()) {
		return nil
	}
	if name := d.ID.Name(); strings.EqualFold(name, artifactDatastore) || d.Bool("properties.isDefault") {
		return resource.Errorf(http.StatusConflict, "DefaultDatastore", "The datastore '%s' belongs to the workspace and goes with it.", name)
	}
	return nil
}

func filterDatastores(r *resource.Request, docs []*resource.Document) ([]*resource.Document, error) {
	q := r.URL.Query()
	names := map[string]bool{}
	for _, n := range q["names"] {
		for part := range strings.SplitSeq(n, ",") {
			names[strings.ToLower(part)] = true
		}
	}
	var out []*resource.Document
	for _, d := range docs {
		isDefault := d.Bool("properties.isDefault")
		if v := q.Get("isDefault"); v != "" && strings.EqualFold(v, "true") != isDefault {
			continue
		}
		if len(names) > 0 && !names[strings.ToLower(d.ID.Name())] {
			continue
		}
		out = append(out, d)
	}
	return out, nil
}

// place is where data is: below a prefix of a container.
type place struct {
	account   resource.ID
	container string
	path      string
}

func (p *Provider) url(pl place) string { return p.blobURL(pl.account.Name(), pl.container, pl.path) }

// resolve finds the place of a location used in a workspace. Assets by name must be versions whose URI is itself a place.
func (p *Provider) resolve(ctx context.Context, ws workspace, target string, l location.Location) (place, error) {
	switch l.Kind {
	case location.Blob:
		account, err := p.account(ctx, ws, target, l.Account)
		return place{account, l.Container, l.Path}, err
	case location.Datastore:
		if l.Workspace != "" && !strings.EqualFold(l.Workspace, ws.id.String()) {
			return place{}, resource.NotSupported("Data of another workspace's datastore cannot be named by it. Name the blob itself: https://{account}.blob.%s/{container}/{path}.", p.storageDomain())
		}
		return p.inDatastore(ctx, ws, target, l.Store, l.Path)
	case location.Artifact:
		return place{ws.storage, artifactContainer, artifactPrefix(l.Job) + l.Path}, nil
	case location.Output:
		return p.inOutput(ctx, ws, target, l)
	}
	return place{}, resource.Invalid(target, "The URI names no data.")
}

func (p *Provider) inDatastore(ctx context.Context, ws workspace, target, store, path string) (place, error) {
	id, err := ws.id.Child("datastores", store)
	if err != nil {
		return place{}, resource.Invalid(target, "'%s' is not the name of a datastore.", store)
	}
	d, err := p.cfg.Resources.Get(ctx, id)
	if resource.StatusOf(err) == http.StatusNotFound {
		return place{}, resource.Invalid(target, "The datastore '%s' does not exist in the workspace.", store)
	}
	if err != nil {
		return place{}, err
	}
	account, err := p.account(ctx, ws, target, d.String("properties.accountName"))
	return place{account, d.String("properties.containerName"), path}, err
}

func (p *Provider) inOutput(ctx context.Context, ws workspace, target string, l location.Location) (place, error) {
	if strings.EqualFold(l.Output, "artifacts") || strings.EqualFold(l.Output, "default") {
		path := l.Path
		if strings.EqualFold(l.Output, "default") {
			path = "outputs/" + path
		}
		return place{ws.storage, artifactContainer, artifactPrefix(l.Job) + path}, nil
	}
	id, err := ws.id.Child("jobs", l.Job)
	if err != nil {
		return place{}, resource.Invalid(target, "'%s' is not the name of a job.", l.Job)
	}
	d, err := p.cfg.Resources.Get(ctx, id)
	if err != nil {
		return place{}, err
	}
	var j commandJob
	if err := d.Into(&j); err != nil {
		return place{}, err
	}
	out, ok := j.Properties.Outputs[l.Output]
	if !ok {
		return place{}, resource.Invalid(target, "The job '%s' has no output '%s'.", l.Job, l.Output)
	}
	pl, err := p.outputPlace(ctx, ws, l.Job, l.Output, out)
	pl.path += l.Path
	return pl, err
}

// artifactPrefix is where a run's artifacts are in the artifact container; the layout is Azure ML's.
func artifactPrefix(run string) string { return "ExperimentRun/dcid." + run + "/" }

// account finds a storage account by its name, which is unique on the platform.
func (p *Provider) account(ctx context.Context, ws workspace, target, name string) (resource.ID, error) {
	if strings.EqualFold(ws.storage.Name(), name) {
		return ws.storage, nil
	}
	docs, err := p.cfg.Resources.List(ctx, storageType, resource.Tenant)
	if err != nil {
		return resource.ID{}, err
	}
	for _, d := range docs {
		if strings.EqualFold(d.ID.Name(), name) {
			return d.ID, nil
		}
	}
	return resource.ID{}, resource.Invalid(target, "The storage account '%s' does not exist.", name)
}

// escapePath escapes a blob name for a URL, leaving its slashes.
func escapePath(path string) string {
	const hex = "0123456789ABCDEF"
	var b strings.Builder
	for i := range len(path) {
		c := path[i]
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("/-_.~", c) >= 0 {
			b.WriteByte(c)
			continue
		}
		b.WriteByte('%')
		b.WriteByte(hex[c>>4])
		b.WriteByte(hex[c&15])
	}
	return b.String()
}
