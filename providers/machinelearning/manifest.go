package machinelearning

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"

	"casemate.dev/dataplane/blob"
	"casemate.dev/dataplane/runtime/agent"
	"casemate.dev/providers/machinelearning/location"
	"casemate.dev/resource"
	"casemate.dev/store"
)

// manifest pins the bytes of a registered asset: every blob with its size and SHA-256, as they were at registration. Nodes
// refuse other bytes (THREATS R1, R4).
//
//	machinelearning/manifest/{version id}   sealed manifest
type manifest struct {
	Account   string         `json:"account"` // ARM id
	Container string         `json:"container"`
	Prefix    string         `json:"prefix"` // of the blob names; Path of an entry is what follows
	Files     []manifestFile `json:"files"`
}

type manifestFile struct {
	Path   string `json:"path"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
}

const maxManifestFiles = 10000

func manifestKey(id resource.ID) string { return store.Key("machinelearning", "manifest", id.Key()) }

// pinVersion reads the registered content once, with the rights of whoever registers it, and keeps its manifest.
func (p *Provider) pinVersion(ctx context.Context, k assetKind, d *resource.Document) error {
	if !k.pinned {
		return nil
	}
	ws, err := p.workspaceOf(ctx, d.ID)
	if err != nil {
		return err
	}
	if _, err := p.readManifest(ctx, ws, d.ID); err == nil {
		return nil // pinned before; only tags and the like have changed
	} else if !errors.Is(err, errNoManifest) {
		return err
	}
	target := "properties." + k.uri
	l, err := p.parseURI(target, d.String(target))
	if err != nil {
		return err
	}
	pl, err := p.resolve(ctx, ws, target, l)
	if err != nil {
		return err
	}
	m, err := p.makeManifest(ctx, d.Creator, target, pl)
	if err != nil {
		return err
	}
	return p.writeManifest(ctx, ws, d.ID, m)
}

func (p *Provider) makeManifest(ctx context.Context, c resource.Caller, target string, pl place) (manifest, error) {
	items, prefix, err := p.listPlace(ctx, c, pl)
	if err != nil {
		return manifest{}, err
	}
	if len(items) == 0 {
		return manifest{}, resource.Errorf(http.StatusBadRequest, "AssetContentNotFound", "There is nothing at '%s'. Upload the content before it is registered.", p.url(pl)).WithTarget(target)
	}
	m := manifest{Account: pl.account.String(), Container: pl.container, Prefix: prefix}
	for _, item := range items {
		path := strings.TrimPrefix(item.Name, prefix)
		if _, err := location.CleanPath(path); err != nil || strings.HasSuffix(path, "/") {
			return manifest{}, resource.Errorf(http.StatusBadRequest, "AssetPathNotAllowed", "The blob '%s' has a name that cannot be a path on a node.", item.Name).WithTarget(target)
		}
		sum, n, err := p.digest(ctx, c, pl, item.Name)
		if err != nil {
			return manifest{}, err
		}
		m.Files = append(m.Files, manifestFile{Path: path, Size: n, SHA256: sum})
	}
	return m, nil
}

// listPlace lists the blobs of a place: the one blob of that name, or else all below it as a folder.
func (p *Provider) listPlace(ctx context.Context, c resource.Caller, pl place) (items []blob.BlobInfo, prefix string, err error) {
	folder := pl.path
	if folder != "" && !strings.HasSuffix(folder, "/") {
		folder += "/"
	}
	for item, err := range p.cfg.Blobs.ListBlobs(ctx, c, pl.account, pl.container, pl.path) {
		if err != nil {
			return nil, "", err
		}
		if item.Name == pl.path && !strings.HasSuffix(pl.path, "/") {
			return []blob.BlobInfo{item}, pl.path[:strings.LastIndexByte(pl.path, '/')+1], nil
		}
		if strings.HasPrefix(item.Name, folder) && !strings.HasSuffix(item.Name, "/") {
			items = append(items, item)
		}
		if len(items) > maxManifestFiles {
			return nil, "", resource.Errorf(http.StatusBadRequest, "AssetTooManyFiles", "An asset may have %d files; '%s' has more.", maxManifestFiles, p.url(pl))
		}
	}
	return items, folder, nil
}

func (p *Provider) digest(ctx context.Context, c resource.Caller, pl place, name string) (string, int64, error) {
	body, _, err := p.cfg.Blobs.GetBlob(ctx, c, pl.account, pl.container, name, 0)
	if err != nil {
		return "", 0, err
	}
	h := sha256.New()
	n, err := io.Copy(h, body)
	if err := errors.Join(err, body.Close()); err != nil {
		return "", 0, fmt.Errorf("reading blob %s: %w", name, err)
	}
	return hex.EncodeToString(h.Sum(nil)), n, nil
}

var errNoManifest = errors.New("asset has no manifest")

func (p *Provider) writeManifest(ctx context.Context, ws workspace, id resource.ID, m manifest) error {
	h, err := p.cfg.Handles(ctx, ws.id.Key())
	if err != nil {
		return err
	}
	plain, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("encoding manifest: %w", err)
	}
	sealed, err := h.SealBytes(manifestKey(id), plain)
	if err != nil {
		return err
	}
	return p.cfg.Store.Update(ctx, func(t store.Txn) error { t.Put(manifestKey(id), sealed); return nil })
}

func (p *Provider) readManifest(ctx context.Context, ws workspace, id resource.ID) (manifest, error) {
	var kv store.KV
	err := p.cfg.Store.View(ctx, func(r store.Reader) (err error) { kv, err = r.Get(manifestKey(id)); return err })
	if errors.Is(err, store.ErrNotFound) {
		return manifest{}, errNoManifest
	}
	if err != nil {
		return manifest{}, fmt.Errorf("reading manifest: %w", err)
	}
	h, err := p.cfg.Handles(ctx, ws.id.Key())
	if err != nil {
		return manifest{}, err
	}
	plain, err := h.OpenBytes(manifestKey(id), kv.Value)
	if err != nil {
		return manifest{}, err
	}
	var m manifest
	if err := json.Unmarshal(plain, &m); err != nil {
		return manifest{}, fmt.Errorf("decoding manifest of %s: %w", id, err)
	}
	return m, nil
}

func (p *Provider) forgetManifest(ctx context.Context, id resource.ID) error {
	return p.cfg.Store.Update(ctx, func(t store.Txn) error { t.Delete(manifestKey(id)); return nil })
}

// tree is the manifest as a node's agent takes it: file by file, each with its digest.
func (p *Provider) tree(m manifest) (agent.Tree, error) {
	account, err := resource.ParseID(m.Account)
	if err != nil {
		return agent.Tree{}, fmt.Errorf("reading manifest: %w", err)
	}
	var t agent.Tree
	for _, f := range m.Files {
		t.Files = append(t.Files, agent.File{Path: f.Path, URL: p.blobURL(account.Name(), m.Container, m.Prefix+f.Path), SHA256: f.SHA256, Size: f.Size})
	}
	return t, nil
}

// pinnedTree is the tree of a registered code or model version.
func (p *Provider) pinnedTree(ctx context.Context, ws workspace, target string, id resource.ID) (agent.Tree, error) {
	m, err := p.readManifest(ctx, ws, id)
	if errors.Is(err, errNoManifest) {
		return agent.Tree{}, resource.Errorf(http.StatusBadRequest, "AssetNotPinned", "The asset '%s' has no digests, so nothing says what it holds. Register it again.", id).WithTarget(target)
	}
	if err != nil {
		return agent.Tree{}, err
	}
	return p.tree(m)
}

// contents is the digest of all that was pinned: what a job or deployment was accepted with. An asset that was deleted and
// registered again under the same name and version has other contents (THREATS R1, R4).
func contents(code *agent.Tree, inputs []agent.Input, model agent.Tree) string {
	h := sha256.New()
	enc := json.NewEncoder(h) // strings and numbers encode, and a hash takes all
	if code != nil {
		_ = enc.Encode(code.Files)
	}
	inputs = slices.SortedFunc(slices.Values(inputs), func(a, b agent.Input) int { return strings.Compare(a.Name, b.Name) })
	for _, in := range inputs {
		if in.Tree.Folder == nil && len(in.Tree.Files) > 0 && in.Tree.Files[0].SHA256 != "" {
			_ = enc.Encode(in)
		}
	}
	_ = enc.Encode(model.Files)
	return hex.EncodeToString(h.Sum(nil))
}

// checkContents refuses what has other contents than it was accepted with.
func checkContents(d *resource.Document, now string) error {
	if was := d.Recall("contents"); was != "" && was != now {
		return resource.Errorf(http.StatusConflict, "ContentsChanged", "Code or a model that '%s' names holds other bytes than when it was submitted, so nothing was run. Submit it again if that is meant.", d.ID.Name())
	}
	return nil
}
