package machinelearning

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"casemate.dev/providers/machinelearning/sensitive"
	"casemate.dev/resource"
)

// assetKind is one kind of asset: a container with immutable versions below it.
type assetKind struct {
	segment string // type segment of the container
	uri     string // the property that names the content; "" for environments
	// fixed are the properties of a version, beside uri, that never change.
	fixed    []string
	pinned   bool // the content is pinned by digest at registration (R1, R4)
	validate func(ctx context.Context, w *resource.Write) error
}

func (p *Provider) assetKinds() []assetKind {
	return []assetKind{
		{segment: "codes", uri: "codeUri", pinned: true},
		{segment: "data", uri: "dataUri", fixed: []string{"dataType", "referencedUris"}, validate: validateData},
		{segment: "models", uri: "modelUri", fixed: []string{"modelType", "flavors", "jobName"}, pinned: true, validate: p.validateModel},
		{segment: "environments", fixed: []string{"image", "condaFile", "build", "osType", "inferenceConfig"}, validate: p.validateEnvironment},
	}
}

func (k assetKind) container() string { return workspaceType + "/" + k.segment }
func (k assetKind) version() string   { return k.container() + "/versions" }

var assetName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._-]{0,254}$`)

func (p *Provider) assetTypes() []resource.Type {
	var out []resource.Type
	for _, k := range p.assetKinds() {
		const rule = "Use 1 to 255 letters, digits, dots, underscores and hyphens, and begin with a letter or digit"
		out = append(out, resource.Type{
			Name: k.container(), APIVersions: versions, Owner: workspaceType, Created: http.StatusCreated, NamePattern: assetName, NameRule: rule,
			Validate: validateContainer, View: func(ctx context.Context, d *resource.Document) { p.viewContainer(ctx, k, d) }, Filter: filterAssets,
		}, resource.Type{
			Name: k.version(), APIVersions: versions, Owner: workspaceType, Created: http.StatusCreated, NamePattern: assetName, NameRule: rule, MakesParent: true,
			Validate:  func(ctx context.Context, w *resource.Write) error { return p.validateVersion(ctx, k, w) },
			Reconcile: func(ctx context.Context, d *resource.Document) error { return p.pinVersion(ctx, k, d) },
			Remove:    func(ctx context.Context, d *resource.Document) error { return p.forgetManifest(ctx, d.ID) },
			View:      viewVersion, Filter: filterAssets,
		})
	}
	return out
}

// checkText refuses credentials in what everybody sees (row E9).
func checkText(d *resource.Document) error {
	for _, path := range []string{"properties.description", "properties.displayName"} {
		if what := sensitive.In(d.String(path)); what != "" {
			return sensitiveError(path, what)
		}
	}
	for _, path := range []string{"properties.tags", "properties.properties", "tags"} {
		m, _ := d.Get(path).(map[string]any)
		for name, v := range m {
			s, ok := v.(string)
			if !ok && v != nil {
				return resource.Invalid(path+"."+name, "The values of %s must be strings.", path)
			}
			if what := sensitive.Named(name, s); what != "" {
				return sensitiveError(path+"."+name, what)
			}
		}
	}
	return nil
}

func sensitiveError(target, what string) error {
	return resource.Errorf(http.StatusBadRequest, "SensitiveValue",
		"The value of '%s' looks like %s, and everybody who may read this resource would see it. Keep it in the workspace's key vault and read it with the managed identity.", target, what).WithTarget(target)
}

func validateContainer(_ context.Context, w *resource.Write) error {
	for _, name := range []string{"latestVersion", "nextVersion"} {
		w.New.Unset("properties." + name)
	}
	if w.New.Get("properties") == nil {
		w.New.Set("properties", map[string]any{})
	}
	return checkText(w.New)
}

// viewContainer adds what follows from the versions: the latest registered one, and the next free number.
func (p *Provider) viewContainer(ctx context.Context, k assetKind, d *resource.Document) {
	docs, err := p.cfg.Resources.List(ctx, k.version(), d.ID)
	if err != nil {
		return
	}
	next := 1
	var latest *resource.Document
	for _, v := range docs {
		if n, err := strconv.Atoi(v.ID.Name()); err == nil {
			next = max(next, n+1)
		}
		if latest == nil || newer(v, latest) < 0 {
			latest = v
		}
	}
	if latest != nil {
		d.Set("properties.latestVersion", latest.ID.Name())
	}
	d.Set("properties.nextVersion", strconv.Itoa(next))
	if d.Get("properties.isArchived") == nil {
		d.Set("properties.isArchived", false)
	}
}

// newer orders documents by creation, newest first; of those made in one instant, the higher name first.
func newer(a, b *resource.Document) int {
	return cmp.Or(b.System.CreatedAt.Compare(a.System.CreatedAt), cmp.Compare(b.ID.Name(), a.ID.Name()))
}

func (p *Provider) validateVersion(ctx context.Context, k assetKind, w *resource.Write) error {
	d := w.New
	if w.Old != nil {
		fixed := k.fixed
		if k.uri != "" {
			fixed = append([]string{k.uri}, fixed...)
		}
		for _, name := range fixed {
			path := "properties." + name
			if is := d.Get(path); is != nil && fmt.Sprint(is) != fmt.Sprint(w.Old.Get(path)) {
				return resource.Errorf(http.StatusBadRequest, "AssetVersionImmutable",
					"Version '%s' of '%s' is registered and its '%s' cannot be changed. Register a new version.", d.ID.Name(), d.ID.Parent().Name(), name).WithTarget(path)
			}
			if was := w.Old.Get(path); was != nil {
				d.Set(path, was)
			}
		}
	}
	if err := checkText(d); err != nil {
		return err
	}
	if k.uri != "" {
		uri := d.String("properties." + k.uri)
		if uri == "" {
			return resource.Invalid("properties."+k.uri, "The property '%s' is required.", k.uri)
		}
		if _, err := p.parseURI("properties."+k.uri, uri); err != nil {
			return err
		}
	}
	if k.validate != nil {
		return k.validate(ctx, w)
	}
	return nil
}

func validateData(_ context.Context, w *resource.Write) error {
	switch typ := w.New.String("properties.dataType"); typ {
	case "uri_file", "uri_folder":
		return nil
	case "mltable":
		return resource.NotSupported("Data of type mltable is not supported. Register it as uri_folder.")
	default:
		return resource.Invalid("properties.dataType", "The data type '%s' is not uri_file or uri_folder.", typ)
	}
}

func (p *Provider) validateModel(_ context.Context, w *resource.Write) error {
	if w.New.Get("properties.flavors") == nil {
		w.New.Set("properties.flavors", map[string]any{}) // clients demand it (CLIENTS.md, section 2)
	}
	if w.New.String("properties.modelType") == "" {
		w.New.Set("properties.modelType", "custom_model")
	}
	return nil
}

func (p *Provider) validateEnvironment(_ context.Context, w *resource.Write) error {
	d := w.New
	if d.Get("properties.build") != nil {
		return resource.NotSupported("Environments built from a Dockerfile are not supported. Push the image to the workspace's registry and name it in 'image'.")
	}
	if d.String("properties.condaFile") != "" {
		return resource.NotSupported("Environments built from a conda file are not supported. Push an image that holds the packages to the workspace's registry and name it in 'image'.")
	}
	if os := d.String("properties.osType"); os != "" && !strings.EqualFold(os, "Linux") {
		return resource.NotSupported("Environments run Linux; the osType '%s' is not supported.", os)
	}
	if _, err := p.parseImage("properties.image", d.String("properties.image")); err != nil {
		return err
	}
	d.Set("properties.osType", "Linux")
	d.Set("properties.environmentType", "UserCreated")
	return nil
}

func viewVersion(_ context.Context, d *resource.Document) {
	for _, name := range []string{"isArchived", "isAnonymous"} {
		if d.Get("properties."+name) == nil {
			d.Set("properties."+name, false)
		}
	}
	for _, name := range []string{"tags", "properties"} {
		if d.Get("properties."+name) == nil {
			d.Set("properties."+name, map[string]any{})
		}
	}
}

// filterAssets does what the list operations of assets and jobs have in common: listViewType, tags and $orderBy.
func filterAssets(r *resource.Request, docs []*resource.Document) ([]*resource.Document, error) {
	q := r.URL.Query()
	var out []*resource.Document
	for _, d := range docs {
		archived := d.Bool("properties.isArchived")
		switch view := q.Get("listViewType"); strings.ToLower(view) {
		case "", "activeonly":
			if archived {
				continue
			}
		case "archivedonly":
			if !archived {
				continue
			}
		case "all":
		default:
			return nil, resource.Invalid("listViewType", "The value '%s' is not ActiveOnly, ArchivedOnly or All.", view)
		}
		if hasTags(d, cmp.Or(q.Get("tags"), q.Get("tag"))) {
			out = append(out, d)
		}
	}
	if order := q.Get("$orderBy"); order != "" {
		field, dir, _ := strings.Cut(strings.ToLower(strings.TrimSpace(order)), " ")
		if field != "createdtime" && field != "createtime" && field != "createdat" || dir != "" && dir != "asc" && dir != "desc" {
			return nil, resource.Invalid("$orderBy", "'%s' is not supported. Use 'createdtime desc' or 'createdtime asc'.", order)
		}
		slices.SortStableFunc(out, newer)
		if dir != "desc" {
			slices.Reverse(out)
		}
		// nextLink continues by name, which this order is not: one page holds what $top asks for.
		if top, err := strconv.Atoi(q.Get("$top")); err == nil && top > 0 && len(out) > top {
			out = out[:top]
		}
	}
	return out, nil
}

// hasTags says whether a document has all of "name" or "name=value", separated by commas.
func hasTags(d *resource.Document, want string) bool {
	if want == "" {
		return true
	}
	tags, _ := d.Get("properties.tags").(map[string]any)
	for part := range strings.SplitSeq(want, ",") {
		name, value, valued := strings.Cut(part, "=")
		have, ok := tags[name]
		if !ok || valued && have != value {
			return false
		}
	}
	return true
}
