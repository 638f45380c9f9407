package blob

import (
	"strings"
	"testing"
	"time"

	"casemate.dev/store"
)

// TestOldRecords reads and changes what was written before there were leases, kinds, tags and snapshots: the fields of
// those records, contents in the formats 0 and 1, and object records that say 1.
func TestOldRecords(t *testing.T) {
	type oldBlob struct {
		ETag     string    `json:"etag"`
		Modified time.Time `json:"modified"`
		Created  time.Time `json:"created"`
		Size     int64     `json:"size"`
		Content  string    `json:"content"`
		Lineage  string    `json:"lineage"`
	}
	big := strings.Repeat("0123456789", 20_000)
	f := newFixture(t)
	f.container("cc1")
	f.upload("/cc1/source", big)
	a, err := f.account(t.Context(), testAccount.String())
	if err != nil {
		t.Fatal(err)
	}
	err = f.update(t.Context(), a, "cc1", func(tx store.Txn, c *containerRecord) error {
		rec, err := a.blob(tx, c.ID, "source")
		if err != nil {
			return err
		}
		body, err := a.content(tx, c.ID, rec.Content)
		if err != nil {
			return err
		}
		tx.Delete(blobKey(a.id, c.ID, "source"))
		old := oldBlob{ETag: "0x8D1", Modified: rec.Modified, Created: rec.Created, Size: rec.Size, Content: "c1", Lineage: rec.Lineage}
		parts := `[{"o":"` + body.Parts[0].Object + `","n":200000}]`
		sealed, err := a.handle.SealBytes(contentKey(a.id, c.ID, "c1"), append([]byte{1}, parts...))
		if err != nil {
			return err
		}
		tx.Put(contentKey(a.id, c.ID, "c1"), sealed)
		tx.Delete(contentKey(a.id, c.ID, rec.Content))
		tx.Put(objectKey(a.id, c.ID, body.Parts[0].Object), []byte("1"))
		if err := a.save(tx, blobKey(a.id, c.ID, "big"), old); err != nil {
			return err
		}
		if sealed, err = a.handle.SealBytes(contentKey(a.id, c.ID, "c2"), []byte("\x00hello")); err != nil {
			return err
		}
		tx.Put(contentKey(a.id, c.ID, "c2"), sealed)
		old.Size, old.Content, old.Lineage = 5, "c2", "l2"
		return a.save(tx, blobKey(a.id, c.ID, "small"), old)
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"big": big, "small": "hello"} {
		w := f.must(200, "GET", "/cc1/"+name, "", "If-Match", `"0x8D1"`)
		if w.Body.String() != want || w.Header().Get("x-ms-blob-type") != "BlockBlob" || w.Header().Get("x-ms-lease-state") != "available" {
			t.Errorf("%s holds %d bytes: %v", name, w.Body.Len(), w.Header())
		}
		at := f.must(201, "PUT", "/cc1/"+name+"?comp=snapshot", "").Header().Get("x-ms-snapshot")
		f.upload("/cc1/"+name, "new")
		f.settled()
		if got := f.must(200, "GET", "/cc1/"+name+"?snapshot="+at, "").Body.String(); got != want {
			t.Errorf("the snapshot of %s holds %d bytes", name, len(got))
		}
		f.must(202, "DELETE", "/cc1/"+name, "", "x-ms-delete-snapshots", "include")
	}
	if n := f.settled(); n != 0 {
		t.Errorf("%d objects left", n)
	}
}
