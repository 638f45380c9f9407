package outside

import (
	"bytes"
	"io"
	"strings"
	"testing"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/appendblob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blockblob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/lease"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/pageblob"
)

// newContainer makes an account with a container in it.
func (p *platform) newContainer() (*azblob.Client, *container.Client) {
	p.t.Helper()
	_, endpoint := p.newAccount()
	client, err := azblob.NewClient(endpoint, p.cred, &azblob.ClientOptions{ClientOptions: p.opt})
	p.check(err)
	_, err = client.CreateContainer(p.t.Context(), "data", nil)
	p.check(err)
	return client, client.ServiceClient().NewContainerClient("data")
}

func text(s string) io.ReadSeekCloser { return readSeekCloser{strings.NewReader(s)} }

func TestAzblobLeases(t *testing.T) {
	p := newPlatform(t)
	ctx := t.Context()
	_, c := p.newContainer()
	b := c.NewBlockBlobClient("b")
	_, err := b.Upload(ctx, text("1"), nil)
	p.check(err)
	l, err := lease.NewBlobClient(b, nil)
	p.check(err)
	_, err = l.AcquireLease(ctx, 15, nil)
	p.check(err)
	_, err = b.Upload(ctx, text("2"), nil)
	wantCode(t, "writing without the lease", err, bloberror.LeaseIDMissing)
	_, err = b.SetMetadata(ctx, nil, &blob.SetMetadataOptions{AccessConditions: &blob.AccessConditions{LeaseAccessConditions: &blob.LeaseAccessConditions{LeaseID: l.LeaseID()}}})
	p.check(err)
	props, err := b.GetProperties(ctx, nil)
	p.check(err)
	if props.LeaseState == nil || *props.LeaseState != lease.StateTypeLeased || *props.LeaseDuration != lease.DurationTypeFixed {
		t.Errorf("lease = %v %v", props.LeaseState, props.LeaseDuration)
	}
	_, err = l.RenewLease(ctx, nil)
	p.check(err)
	_, err = l.ChangeLease(ctx, "cccccccc-3333-4333-8333-333333333333", nil)
	p.check(err)
	_, err = l.BreakLease(ctx, &lease.BlobBreakOptions{BreakPeriod: to.Ptr[int32](0)})
	p.check(err)
	_, err = l.RenewLease(ctx, nil)
	wantCode(t, "renewing what was broken", err, bloberror.LeaseIsBrokenAndCannotBeRenewed)
	_, err = l.ReleaseLease(ctx, nil)
	p.check(err)

	cl, err := lease.NewContainerClient(c, nil)
	p.check(err)
	_, err = cl.AcquireLease(ctx, -1, nil)
	p.check(err)
	_, err = c.Delete(ctx, nil)
	wantCode(t, "deleting a leased container", err, bloberror.LeaseIDMissing)
	_, err = cl.ReleaseLease(ctx, nil)
	p.check(err)
	_, err = c.Delete(ctx, nil)
	p.check(err)
}

func TestAzblobAppend(t *testing.T) {
	p := newPlatform(t)
	ctx := t.Context()
	_, c := p.newContainer()
	a := c.NewAppendBlobClient("log")
	_, err := a.Create(ctx, nil)
	p.check(err)
	for i, s := range []string{"one ", strings.Repeat("2", 100_000), " three"} {
		r, err := a.AppendBlock(ctx, text(s), nil)
		p.check(err)
		if *r.BlobCommittedBlockCount != int32(i+1) {
			t.Errorf("block count = %d", *r.BlobCommittedBlockCount)
		}
	}
	_, err = a.AppendBlock(ctx, text("x"), &appendblob.AppendBlockOptions{AppendPositionAccessConditions: &appendblob.AppendPositionAccessConditions{AppendPosition: to.Ptr[int64](3)}})
	wantCode(t, "appending elsewhere", err, bloberror.AppendPositionConditionNotMet)
	_, err = a.Seal(ctx, nil)
	p.check(err)
	_, err = a.AppendBlock(ctx, text("x"), nil)
	wantCode(t, "appending to a sealed blob", err, "BlobIsSealed")
	down, err := a.DownloadStream(ctx, nil)
	p.check(err)
	got, err := io.ReadAll(down.Body)
	p.check(err)
	if want := "one " + strings.Repeat("2", 100_000) + " three"; string(got) != want || *down.BlobType != blob.BlobTypeAppendBlob {
		t.Errorf("the log has %d bytes, want %d", len(got), len(want))
	}
}

func TestAzblobPages(t *testing.T) {
	p := newPlatform(t)
	ctx := t.Context()
	_, c := p.newContainer()
	pb := c.NewPageBlobClient("disk")
	_, err := pb.Create(ctx, 8192, &pageblob.CreateOptions{SequenceNumber: to.Ptr[int64](5)})
	p.check(err)
	_, err = pb.UploadPages(ctx, text(strings.Repeat("a", 2048)), blob.HTTPRange{Offset: 1024, Count: 2048}, nil)
	p.check(err)
	_, err = pb.ClearPages(ctx, blob.HTTPRange{Offset: 1536, Count: 512}, nil)
	p.check(err)
	_, err = pb.UploadPages(ctx, text(strings.Repeat("b", 512)), blob.HTTPRange{Count: 512}, &pageblob.UploadPagesOptions{
		SequenceNumberAccessConditions: &pageblob.SequenceNumberAccessConditions{IfSequenceNumberLessThan: to.Ptr[int64](5)}})
	wantCode(t, "a stale sequence number", err, bloberror.SequenceNumberConditionNotMet)
	var spans []int64
	for pager := pb.NewGetPageRangesPager(nil); pager.More(); {
		page, err := pager.NextPage(ctx)
		p.check(err)
		for _, r := range page.PageRange {
			spans = append(spans, *r.Start, *r.End)
		}
	}
	if want := []int64{1024, 1535, 2048, 3071}; len(spans) != 4 || spans[0] != want[0] || spans[1] != want[1] || spans[2] != want[2] || spans[3] != want[3] {
		t.Errorf("page ranges = %v, want %v", spans, want)
	}
	_, err = pb.Resize(ctx, 4096, nil)
	p.check(err)
	_, err = pb.UpdateSequenceNumber(ctx, &pageblob.UpdateSequenceNumberOptions{ActionType: to.Ptr(pageblob.SequenceNumberActionTypeIncrement)})
	p.check(err)
	down, err := pb.DownloadStream(ctx, nil)
	p.check(err)
	got, err := io.ReadAll(down.Body)
	p.check(err)
	want := make([]byte, 4096)
	copy(want[1024:], bytes.Repeat([]byte("a"), 512))
	copy(want[2048:], bytes.Repeat([]byte("a"), 1024))
	if !bytes.Equal(got, want) || *down.BlobSequenceNumber != 6 {
		t.Errorf("the page blob has %d bytes and sequence number %d", len(got), *down.BlobSequenceNumber)
	}
}

func TestAzblobTags(t *testing.T) {
	p := newPlatform(t)
	ctx := t.Context()
	client, c := p.newContainer()
	for _, ward := range []string{"6", "7"} {
		_, err := client.UploadBuffer(ctx, "data", "ward"+ward, nil, &azblob.UploadBufferOptions{Tags: map[string]string{"ward": ward, "kind": "in patient"}})
		p.check(err)
	}
	b := c.NewBlobClient("ward7")
	_, err := b.SetTags(ctx, map[string]string{"ward": "7", "state": "closed"}, nil)
	p.check(err)
	tags, err := b.GetTags(ctx, nil)
	p.check(err)
	if len(tags.BlobTagSet) != 2 {
		t.Errorf("tags = %v", tags.BlobTagSet)
	}
	found, err := client.ServiceClient().FilterBlobs(ctx, `"ward" >= '7' AND @container = 'data'`, nil)
	p.check(err)
	if len(found.Blobs) != 1 || *found.Blobs[0].Name != "ward7" || *found.Blobs[0].ContainerName != "data" {
		t.Errorf("found %v", found.Blobs)
	}
	_, err = b.GetProperties(ctx, &blob.GetPropertiesOptions{AccessConditions: &blob.AccessConditions{ModifiedAccessConditions: &blob.ModifiedAccessConditions{IfTags: to.Ptr("state = 'open'")}}})
	wantCode(t, "reading under a condition on tags", err, bloberror.ConditionNotMet)
}

func TestAzblobSnapshotsAndCopies(t *testing.T) {
	p := newPlatform(t)
	ctx := t.Context()
	_, c := p.newContainer()
	b := c.NewBlockBlobClient("dir/a b")
	_, err := b.Upload(ctx, text("one"), &blockblob.UploadOptions{Metadata: map[string]*string{"k": to.Ptr("v")}})
	p.check(err)
	snap, err := b.CreateSnapshot(ctx, nil)
	p.check(err)
	_, err = b.Upload(ctx, text("two"), nil)
	p.check(err)
	old, err := b.WithSnapshot(*snap.Snapshot)
	p.check(err)
	down, err := old.DownloadStream(ctx, nil)
	p.check(err)
	got, err := io.ReadAll(down.Body)
	p.check(err)
	if string(got) != "one" {
		t.Errorf("the snapshot holds %q", got)
	}
	page, err := c.NewListBlobsFlatPager(&container.ListBlobsFlatOptions{Include: container.ListBlobsInclude{Snapshots: true}}).NextPage(ctx)
	p.check(err)
	if items := page.Segment.BlobItems; len(items) != 2 || items[0].Snapshot == nil || *items[0].Snapshot != *snap.Snapshot {
		t.Errorf("list = %v", items)
	}

	restored := c.NewBlockBlobClient("restored")
	started, err := restored.StartCopyFromURL(ctx, old.URL(), nil)
	p.check(err)
	if started.CopyStatus == nil || *started.CopyStatus != blob.CopyStatusTypeSuccess {
		t.Errorf("copy status = %v", started.CopyStatus)
	}
	props, err := restored.GetProperties(ctx, nil)
	p.check(err)
	if props.CopyStatus == nil || *props.CopyStatus != blob.CopyStatusTypeSuccess || *props.ContentLength != 3 {
		t.Errorf("properties of the copy = %v %v", props.CopyStatus, props.ContentLength)
	}
	_, err = c.NewBlockBlobClient("put").UploadBlobFromURL(ctx, b.URL(), nil)
	p.check(err)
	blocks := c.NewBlockBlobClient("blocks")
	_, err = blocks.StageBlockFromURL(ctx, "AAAA", b.URL(), &blockblob.StageBlockFromURLOptions{Range: blob.HTTPRange{Offset: 1, Count: 2}})
	p.check(err)
	_, err = blocks.CommitBlockList(ctx, []string{"AAAA"}, nil)
	p.check(err)
	down, err = blocks.DownloadStream(ctx, nil)
	p.check(err)
	if got, err = io.ReadAll(down.Body); err != nil || string(got) != "wo" {
		t.Errorf("a block of a URL = %q %v", got, err)
	}
	_, err = restored.SetTier(ctx, blob.AccessTierCool, nil)
	p.check(err)

	_, err = b.Delete(ctx, nil)
	wantCode(t, "deleting a blob with snapshots", err, bloberror.SnapshotsPresent)
	_, err = b.Delete(ctx, &blob.DeleteOptions{DeleteSnapshots: to.Ptr(blob.DeleteSnapshotsOptionTypeInclude)})
	p.check(err)
}
