package crash

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"

	"github.com/google/uuid"

	"casemate.dev/test/harness"
)

// content is what blob i of a client holds: anybody can make it again.
func content(name string, i int) []byte {
	random := rand.New(rand.NewPCG(uint64(i), uint64(len(name))))
	b := make([]byte, 1+random.IntN(300<<10))
	for j := range b {
		b[j] = byte(random.Uint32())
	}
	return append([]byte(fmt.Sprint(name, " ", i, "\n")), b...)
}

func get(t *testing.T, w *world, url string) harness.Answer {
	t.Helper()
	a, err := w.Send(t.Context(), harness.Call{Method: http.MethodGet, URL: url, As: w.Admin})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// blobs uploads new blobs in one request each.
type blobs struct {
	host, name string
	next       int // blob being written
	checked    int // below, all were checked already; some are looked at again
	doubt      bool
}

func (b *blobs) String() string { return fmt.Sprintf("%d blobs", b.next) }

func (b *blobs) path(i int) string { return fmt.Sprintf("/data/%s/%06d", b.name, i) }

func (b *blobs) step(ctx context.Context, w *world) error {
	b.doubt = true
	a, err := w.PutBlob(ctx, w.Admin, b.host, b.path(b.next), content(b.name, b.next))
	if err == nil && a.Status != http.StatusCreated {
		err = fmt.Errorf("uploading = %v", a)
	}
	if err != nil {
		return err
	}
	b.next, b.doubt = b.next+1, false
	return nil
}

func (b *blobs) check(t *testing.T, w *world) {
	t.Helper()
	again := max(1, b.checked/50)
	for i := range b.next {
		if i < b.checked && i%again != 0 {
			continue
		}
		if a := get(t, w, w.URL(b.host, b.path(i))); a.Status != http.StatusOK || !bytes.Equal(a.Body, content(b.name, i)) {
			t.Errorf("acknowledged blob %s: %d, %d bytes", b.path(i), a.Status, len(a.Body))
		}
	}
	b.checked = b.next
	if b.doubt {
		a := get(t, w, w.URL(b.host, b.path(b.next)))
		if a.Status != http.StatusNotFound && (a.Status != http.StatusOK || !bytes.Equal(a.Body, content(b.name, b.next))) {
			t.Errorf("unacknowledged blob %s is there in part: %d, %d bytes", b.path(b.next), a.Status, len(a.Body))
		}
	}
	// The list tells the same.
	listed := map[string]bool{}
	for marker := ""; ; {
		a := get(t, w, w.URL(b.host, "/data?restype=container&comp=list&prefix="+b.name+"/&marker="+marker))
		for part := range strings.SplitSeq(string(a.Body), "<Name>") {
			if name, _, ok := strings.Cut(part, "</Name>"); ok {
				listed["/data/"+name] = true
			}
		}
		_, rest, _ := strings.Cut(string(a.Body), "<NextMarker>")
		if marker, _, _ = strings.Cut(rest, "</NextMarker>"); marker == "" {
			break
		}
	}
	for i := range b.next {
		if !listed[b.path(i)] {
			t.Errorf("the list lacks %s", b.path(i))
		}
	}
	if extra := len(listed) - b.next; extra > 1 || extra == 1 && !b.doubt {
		t.Errorf("the list has %d blobs, %d were acknowledged", len(listed), b.next)
	}
}

// blocks uploads blobs in blocks: nothing is there before the block list is committed.
type blocks struct {
	host  string
	next  int
	doubt bool // the commit was on its way
}

func (b *blocks) String() string    { return fmt.Sprintf("%d blobs of blocks", b.next) }
func (b *blocks) path(i int) string { return fmt.Sprintf("/data/blocks/%06d", i) }

func (b *blocks) step(ctx context.Context, w *world) error {
	b.doubt = false
	whole, list := content("blocks", b.next), "<BlockList>"
	for i := range 3 {
		id := base64.StdEncoding.EncodeToString(fmt.Appendf(nil, "%04d", i))
		list += "<Latest>" + id + "</Latest>"
		part := whole[i*len(whole)/3 : (i+1)*len(whole)/3]
		if len(part) == 0 {
			part = []byte{0}
		}
		if _, err := w.acknowledged(ctx, harness.Call{Method: http.MethodPut, URL: w.URL(b.host, b.path(b.next)+"?comp=block&blockid="+strings.ReplaceAll(id, "=", "%3D")), As: w.Admin, Body: part}); err != nil {
			return err
		}
	}
	b.doubt = true
	if _, err := w.acknowledged(ctx, harness.Call{Method: http.MethodPut, URL: w.URL(b.host, b.path(b.next)+"?comp=blocklist"), As: w.Admin, Body: list + "</BlockList>"}); err != nil {
		return err
	}
	b.next, b.doubt = b.next+1, false
	return nil
}

func (b *blocks) check(t *testing.T, w *world) {
	t.Helper()
	for i := range b.next {
		if a := get(t, w, w.URL(b.host, b.path(i))); a.Status != http.StatusOK || !bytes.Equal(a.Body, content("blocks", i)) {
			t.Errorf("acknowledged blob %s: %d, %d bytes", b.path(i), a.Status, len(a.Body))
		}
	}
	a := get(t, w, w.URL(b.host, b.path(b.next)))
	whole := a.Status == http.StatusOK && bytes.Equal(a.Body, content("blocks", b.next))
	if a.Status != http.StatusNotFound && !(b.doubt && whole) {
		t.Errorf("uncommitted blob %s: %d, %d bytes", b.path(b.next), a.Status, len(a.Body))
	}
	if whole {
		b.next++ // it is there to stay
	}
}

// counter is a value that a client moves on one by one.
type counter struct {
	acked, tried int
}

// settle demands that what is there lies between the last acknowledged and the last tried, and goes on from it.
func (c *counter) settle(t *testing.T, what string, is int) {
	t.Helper()
	if is < c.acked || is > c.tried {
		t.Errorf("%s is at %d; %d was acknowledged and %d tried", what, is, c.acked, c.tried)
	}
	c.acked, c.tried = is, is
}

// overwrites replaces one blob again and again.
type overwrites struct {
	host string
	counter
}

func (o *overwrites) String() string { return fmt.Sprintf("%d overwrites", o.acked) }

func (o *overwrites) step(ctx context.Context, w *world) error {
	o.tried = o.acked + 1
	a, err := w.PutBlob(ctx, w.Admin, o.host, "/data/same", content("same", o.tried))
	if err == nil && a.Status != http.StatusCreated {
		err = fmt.Errorf("overwriting = %v", a)
	}
	if err == nil {
		o.acked = o.tried
	}
	return err
}

func (o *overwrites) check(t *testing.T, w *world) {
	t.Helper()
	a := get(t, w, w.URL(o.host, "/data/same"))
	is := 0
	if a.Status == http.StatusOK {
		if _, err := fmt.Sscanf(string(a.Body[:min(40, len(a.Body))]), "same %d", &is); err != nil || !bytes.Equal(a.Body, content("same", is)) {
			t.Errorf("the overwritten blob is torn: %v", err)
		}
	}
	o.settle(t, "the overwritten blob", is)
}

// secrets sets one secret again and again.
type secrets struct{ counter }

func (s *secrets) String() string { return fmt.Sprintf("%d secret versions", s.acked) }

func (s *secrets) step(ctx context.Context, w *world) error {
	s.tried = s.acked + 1
	_, err := w.acknowledged(ctx, harness.Call{Method: http.MethodPut, URL: w.URL(w.vaultHost, "/secrets/count?api-version=7.4"), As: w.Admin, Body: map[string]any{"value": fmt.Sprint(s.tried)}})
	if err == nil {
		s.acked = s.tried
	}
	return err
}

func (s *secrets) check(t *testing.T, w *world) {
	t.Helper()
	is := 0
	if a := get(t, w, w.URL(w.vaultHost, "/secrets/count?api-version=7.4")); a.Status == http.StatusOK {
		_, _ = fmt.Sscan(a.Field("value"), &is) // zero is found out below
	}
	s.settle(t, "the secret", is)
	versions := 0
	for url := w.URL(w.vaultHost, "/secrets/count/versions?api-version=7.4"); url != "" && is > 0; {
		a := get(t, w, url)
		list, _ := a.JSON()["value"].([]any)
		versions += len(list)
		url = a.Field("nextLink")
	}
	if versions != is {
		t.Errorf("the secret has %d versions, want %d", versions, is)
	}
}

// rotations moves the customer's key on, under which an account's data lies, and wraps something with each version.
type rotations struct {
	counter
	wrapped []wrapped
}

type wrapped struct{ kid, value string }

const treasure = "MDEyMzQ1Njc4OWFiY2RlZg" // base64url

func (r *rotations) String() string { return fmt.Sprintf("%d rotations", r.acked) }

func (r *rotations) step(ctx context.Context, w *world) error {
	r.tried = r.acked + 1
	if _, err := w.acknowledged(ctx, harness.Call{Method: http.MethodPost, URL: w.keyURL("master", "/rotate"), As: w.Admin}); err != nil {
		return err
	}
	r.acked = r.tried
	a, err := w.acknowledged(ctx, harness.Call{Method: http.MethodPost, URL: w.keyURL("master", "/wrapkey"), As: w.Admin, Body: map[string]any{"alg": "RSA-OAEP-256", "value": treasure}})
	if err == nil {
		r.wrapped = append(r.wrapped, wrapped{a.Field("kid"), a.Field("value")})
	}
	return err
}

func (r *rotations) check(t *testing.T, w *world) {
	t.Helper()
	versions := 0
	for url := w.keyURL("master", "/versions"); url != ""; {
		a := get(t, w, url)
		list, _ := a.JSON()["value"].([]any)
		versions += len(list)
		url = a.Field("nextLink")
	}
	r.settle(t, "the key", versions-1)
	for _, one := range r.wrapped {
		a, err := w.Send(t.Context(), harness.Call{Method: http.MethodPost, URL: one.kid + "/unwrapkey?api-version=7.4", As: w.Admin, Body: map[string]any{"alg": "RSA-OAEP-256", "value": one.value}})
		if err != nil || a.Field("value") != treasure {
			t.Errorf("unwrapping with %s: %v %v", one.kid, a, err)
		}
	}
}

// assets registers version after version in the workspace, whose documents lie under the customer's key.
type assets struct{ counter }

func (s *assets) String() string { return fmt.Sprintf("%d asset versions", s.acked) }

func (s *assets) id(w *world, n int) string {
	return fmt.Sprintf("%s/data/scans/versions/%d", w.workspace, n)
}

func (s *assets) step(ctx context.Context, w *world) error {
	s.tried = s.acked + 1
	_, err := w.acknowledged(ctx, harness.Call{Method: http.MethodPut, URL: w.URL("management", s.id(w, s.tried)+"?api-version="+harness.VersionML), As: w.Admin, Body: map[string]any{
		"properties": map[string]any{"dataType": "uri_file", "dataUri": w.URL(w.blobHost, "/data/lecture"), "description": fmt.Sprint("scan ", s.tried)}}})
	if err == nil {
		s.acked = s.tried
	}
	return err
}

// check reads the newest versions, and that the key in use is one that the vault knows.
func (s *assets) check(t *testing.T, w *world) {
	t.Helper()
	is := s.acked
	for n := max(1, s.acked-20); n <= s.tried; n++ {
		a := get(t, w, w.URL("management", s.id(w, n)+"?api-version="+harness.VersionML))
		if a.Status == http.StatusOK && a.Field("properties.description") == fmt.Sprint("scan ", n) {
			is = max(is, n)
		} else if n <= s.acked {
			t.Errorf("acknowledged asset version %d = %v", n, a)
		}
	}
	s.settle(t, "the asset", is)
	a := get(t, w, w.URL("management", w.workspace+"?api-version="+harness.VersionML))
	kid := a.Field("properties.encryption.keyVaultProperties.effectiveKeyIdentifier")
	if v := get(t, w, kid+"?api-version=7.4"); a.Status != http.StatusOK || v.Status != http.StatusOK {
		t.Errorf("the workspace = %v; its key in use %q = %v", a, kid, v)
	}
}

// tags writes one ARM document again and again.
type tags struct{ counter }

func (g *tags) String() string { return fmt.Sprintf("%d document writes", g.acked) }

func (g *tags) step(ctx context.Context, w *world) error {
	g.tried = g.acked + 1
	_, err := w.acknowledged(ctx, harness.Call{Method: http.MethodPut, URL: w.URL("management", w.group+"?api-version="+harness.VersionGroup), As: w.Admin,
		Body: map[string]any{"location": "local", "tags": map[string]any{"count": fmt.Sprint(g.tried), "twin": fmt.Sprint(g.tried)}}})
	if err == nil {
		g.acked = g.tried
	}
	return err
}

func (g *tags) check(t *testing.T, w *world) {
	t.Helper()
	a := get(t, w, w.URL("management", w.group+"?api-version="+harness.VersionGroup))
	is := 0
	_, _ = fmt.Sscan(a.Field("tags.count"), &is) // zero before the first write
	if a.Status != http.StatusOK || a.Field("tags.count") != a.Field("tags.twin") {
		t.Errorf("the group is torn: %v", a)
	}
	g.settle(t, "the group's tag", is)
}

// groups makes resource groups and deletes every second one, which is a long-running operation.
type groups struct {
	live, gone []string
	doubtful   string
}

func (g *groups) String() string {
	return fmt.Sprintf("%d groups, %d deleted", len(g.live), len(g.gone))
}

func (g *groups) step(ctx context.Context, w *world) error {
	id := w.Subscription() + "/resourceGroups/crash-" + harness.Suffix()
	url := w.URL("management", id+"?api-version="+harness.VersionGroup)
	g.doubtful = id
	if _, err := w.acknowledged(ctx, harness.Call{Method: http.MethodPut, URL: url, As: w.Admin, Body: map[string]any{"location": "local"}}); err != nil {
		return err
	}
	if len(g.live) <= len(g.gone) {
		g.live, g.doubtful = append(g.live, id), ""
		return nil
	}
	a, err := w.ARM(ctx, http.MethodDelete, id, harness.VersionGroup, nil)
	if err == nil && a.Status >= 300 {
		err = fmt.Errorf("deleting %s = %v", id, a)
	}
	if err == nil {
		g.gone, g.doubtful = append(g.gone, id), ""
	}
	return err
}

func (g *groups) check(t *testing.T, w *world) {
	t.Helper()
	state := map[string]string{}
	a := get(t, w, w.URL("management", w.Subscription()+"/resourceGroups?api-version="+harness.VersionGroup))
	var list struct {
		Value []struct{ ID string }
	}
	if err := json.Unmarshal(a.Body, &list); err != nil {
		t.Error(a)
	}
	for _, one := range list.Value {
		state[strings.ToLower(one.ID)] = one.ID
	}
	for _, id := range g.live {
		if state[strings.ToLower(id)] == "" {
			t.Errorf("acknowledged group %s is missing", id)
		}
	}
	for _, id := range g.gone {
		if state[strings.ToLower(id)] != "" {
			t.Errorf("deleted group %s is back", id)
		}
	}
}

// assignments gives a student a role and takes it away: what holds is what the student can read.
type assignments struct {
	id       string // the one assignment, when it may be there
	granted  bool
	doubtful bool
	n        int
}

func (s *assignments) String() string { return fmt.Sprintf("%d role changes", s.n) }

func (s *assignments) step(ctx context.Context, w *world) error {
	if s.id == "" {
		s.id = w.account + "/blobServices/default/containers/data/providers/Microsoft.Authorization/roleAssignments/" + uuid.NewString()
	}
	c := harness.Call{Method: http.MethodPut, As: w.Admin, URL: w.URL("management", s.id+"?api-version="+harness.VersionRole), Body: w.AssignmentBody(harness.RoleBlobReader, w.student)}
	if s.granted {
		c.Method, c.Body = http.MethodDelete, nil
	}
	s.doubtful = true
	if _, err := w.acknowledged(ctx, c); err != nil {
		return err
	}
	s.doubtful, s.granted, s.n = false, !s.granted, s.n+1
	return s.look(ctx, w)
}

// look wants the change effective as soon as it is acknowledged.
func (s *assignments) look(ctx context.Context, w *world) error {
	a, err := w.Send(ctx, harness.Call{Method: http.MethodGet, URL: w.URL(w.blobHost, "/data/lecture"), As: w.student})
	if err == nil && (a.Status == http.StatusOK) != s.granted {
		err = fmt.Errorf("granted %v, but reading = %v", s.granted, a)
	}
	return err
}

func (s *assignments) check(t *testing.T, w *world) {
	t.Helper()
	if s.id == "" {
		return
	}
	there := get(t, w, w.URL("management", s.id+"?api-version="+harness.VersionRole)).Status == http.StatusOK
	if there != s.granted && !s.doubtful {
		t.Errorf("the role assignment is there: %v, acknowledged: %v", there, s.granted)
	}
	s.granted, s.doubtful = there, false
	if err := s.look(t.Context(), w); err != nil {
		t.Error(err)
	}
}
