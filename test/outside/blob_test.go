package outside

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blockblob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
)

const (
	storageVersion = "2023-05-01"
	blobDataOwner  = "b7e6dc6d-f1e8-4753-8033-0f276bb0955b"
)

// newAccount makes a storage account in which the administrator may do everything.
func (p *platform) newAccount() (id, endpoint string) {
	p.t.Helper()
	id = p.newGroup() + "/providers/Microsoft.Storage/storageAccounts/sa" + suffix()
	status, account := p.arm("PUT", id, storageVersion, map[string]any{"location": "local", "kind": "StorageV2", "sku": map[string]any{"name": "Standard_LRS"}})
	if status != http.StatusOK {
		p.t.Fatalf("PUT %s = %d %v, want 200: az refuses 201", id, status, account)
	}
	props, _ := account["properties"].(map[string]any)
	endpoints, _ := props["primaryEndpoints"].(map[string]any)
	if endpoint, _ = endpoints["blob"].(string); endpoint == "" {
		p.t.Fatalf("the account has no blob endpoint: %v", account)
	}
	p.grant(id, blobDataOwner)
	return id, endpoint
}

func wantCode(t *testing.T, what string, err error, codes ...bloberror.Code) {
	t.Helper()
	if !bloberror.HasCode(err, codes...) {
		t.Errorf("%s: %v, want %v", what, err, codes)
	}
}

func TestAzblob(t *testing.T) {
	p := newPlatform(t)
	id, endpoint := p.newAccount()
	ctx := t.Context()
	client, err := azblob.NewClient(endpoint, p.cred, &azblob.ClientOptions{ClientOptions: p.opt})
	p.check(err)
	_, err = client.CreateContainer(ctx, "data", nil)
	p.check(err)
	_, err = client.CreateContainer(ctx, "data", nil)
	wantCode(t, "creating a container twice", err, bloberror.ContainerAlreadyExists)

	const name = "dir/../a%2Fb c+é.csv"
	_, err = client.UploadBuffer(ctx, "data", name, []byte("0123456789"), &azblob.UploadBufferOptions{Metadata: map[string]*string{"ward": to.Ptr("7")}})
	p.check(err)
	big := make([]byte, 9<<20+17)
	_, err = rand.Read(big)
	p.check(err)
	_, err = client.UploadStream(ctx, "data", "dir/big", bytes.NewReader(big), &azblob.UploadStreamOptions{BlockSize: 1 << 20, Concurrency: 3})
	p.check(err)

	down, err := client.DownloadStream(ctx, "data", name, &azblob.DownloadStreamOptions{Range: blob.HTTPRange{Offset: 3, Count: 4}})
	p.check(err)
	got, err := io.ReadAll(down.Body)
	p.check(err)
	if string(got) != "3456" || down.ContentRange == nil || *down.ContentRange != "bytes 3-6/10" {
		t.Errorf("range = %q %v", got, down.ContentRange)
	}
	back := make([]byte, len(big))
	n, err := client.DownloadBuffer(ctx, "data", "dir/big", back, &azblob.DownloadBufferOptions{BlockSize: 2 << 20})
	p.check(err)
	if n != int64(len(big)) || !bytes.Equal(back, big) {
		t.Errorf("downloaded %d bytes, want the %d that were uploaded", n, len(big))
	}
	testLists(p, client, name)
	testConditions(p, client, name)
	testTransactionalSums(p, client)
	testRefusals(p, client, id, endpoint)

	_, err = client.DeleteBlob(ctx, "data", name, nil)
	p.check(err)
	_, err = client.DownloadStream(ctx, "data", name, nil)
	wantCode(t, "reading what was deleted", err, bloberror.BlobNotFound)
	_, err = client.DeleteContainer(ctx, "data", nil)
	p.check(err)
	_, err = client.DownloadStream(ctx, "data", "dir/big", nil)
	wantCode(t, "reading from a deleted container", err, bloberror.ContainerNotFound)
}

func testLists(p *platform, client *azblob.Client, name string) {
	p.t.Helper()
	var flat []string
	for pager := client.NewListBlobsFlatPager("data", &azblob.ListBlobsFlatOptions{MaxResults: to.Ptr[int32](1), Include: azblob.ListBlobsInclude{Metadata: true}}); pager.More(); {
		page, err := pager.NextPage(p.t.Context())
		p.check(err)
		for _, b := range page.Segment.BlobItems {
			flat = append(flat, *b.Name)
			if *b.Name == name && (b.Metadata["ward"] == nil || *b.Metadata["ward"] != "7") {
				p.t.Errorf("metadata = %v", b.Metadata)
			}
		}
	}
	if want := []string{name, "dir/big"}; !slices.Equal(flat, want) {
		p.t.Errorf("flat list = %q, want %q", flat, want)
	}
	var prefixes []string
	for pager := client.ServiceClient().NewContainerClient("data").NewListBlobsHierarchyPager("/", &container.ListBlobsHierarchyOptions{}); pager.More(); {
		page, err := pager.NextPage(p.t.Context())
		p.check(err)
		for _, prefix := range page.Segment.BlobPrefixes {
			prefixes = append(prefixes, *prefix.Name)
		}
	}
	if !slices.Equal(prefixes, []string{"dir/"}) {
		p.t.Errorf("prefixes = %q", prefixes)
	}
}

func testConditions(p *platform, client *azblob.Client, name string) {
	p.t.Helper()
	b := client.ServiceClient().NewContainerClient("data").NewBlockBlobClient(name)
	props, err := b.GetProperties(p.t.Context(), nil)
	p.check(err)
	if props.Metadata["Ward"] == nil && props.Metadata["ward"] == nil {
		p.t.Errorf("metadata of the blob = %v", props.Metadata)
	}
	body := func() io.ReadSeekCloser { return readSeekCloser{strings.NewReader("new")} }
	_, err = b.Upload(p.t.Context(), body(), &blockblob.UploadOptions{AccessConditions: &blob.AccessConditions{
		ModifiedAccessConditions: &blob.ModifiedAccessConditions{IfNoneMatch: to.Ptr(azcore.ETagAny)}}})
	wantCode(p.t, "creating what exists", err, bloberror.BlobAlreadyExists)
	_, err = b.Upload(p.t.Context(), body(), &blockblob.UploadOptions{AccessConditions: &blob.AccessConditions{
		ModifiedAccessConditions: &blob.ModifiedAccessConditions{IfMatch: to.Ptr(azcore.ETag(`"0x1"`))}}})
	wantCode(p.t, "replacing under a stale ETag", err, bloberror.ConditionNotMet)
	_, err = b.SetMetadata(p.t.Context(), map[string]*string{"ward": to.Ptr("8")}, &blob.SetMetadataOptions{AccessConditions: &blob.AccessConditions{
		ModifiedAccessConditions: &blob.ModifiedAccessConditions{IfMatch: props.ETag}}})
	p.check(err)
}

type readSeekCloser struct{ io.ReadSeeker }

func (readSeekCloser) Close() error { return nil }

func testTransactionalSums(p *platform, client *azblob.Client) {
	p.t.Helper()
	b := client.ServiceClient().NewContainerClient("data").NewBlockBlobClient("summed")
	_, err := b.Upload(p.t.Context(), readSeekCloser{strings.NewReader("abc")}, &blockblob.UploadOptions{TransactionalValidation: blob.TransferValidationTypeComputeCRC64()})
	p.check(err)
	_, err = b.Upload(p.t.Context(), readSeekCloser{strings.NewReader("abc")}, &blockblob.UploadOptions{TransactionalValidation: blob.TransferValidationTypeCRC64(1)})
	wantCode(p.t, "a wrong CRC-64", err, bloberror.CRC64Mismatch)
	_, err = b.Upload(p.t.Context(), readSeekCloser{strings.NewReader("abc")}, &blockblob.UploadOptions{TransactionalValidation: blob.TransferValidationTypeMD5(make([]byte, 16))})
	wantCode(p.t, "a wrong MD5", err, bloberror.MD5Mismatch)
	_, err = b.Delete(p.t.Context(), nil)
	p.check(err)
}

// testRefusals tries what nobody may do.
func testRefusals(p *platform, client *azblob.Client, id, endpoint string) {
	p.t.Helper()
	status, out := p.arm("POST", id+"/listKeys", storageVersion, nil)
	if status != http.StatusForbidden {
		p.t.Errorf("listKeys = %d %v", status, out)
	}
	r, err := http.NewRequestWithContext(p.t.Context(), "GET", endpoint+"data/dir/big", nil)
	p.check(err)
	resp, err := p.http.Do(r)
	p.check(err)
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusUnauthorized {
		p.t.Errorf("reading without a token = %s, want 401", resp.Status)
	}
	_, err = client.ServiceClient().NewContainerClient("data").NewBlobClient("dir/big").StartCopyFromURL(p.t.Context(), "https://elsewhere.example/b", nil)
	var re *azcore.ResponseError
	if !errors.As(err, &re) || re.ErrorCode != "NotSupported" {
		p.t.Errorf("a copy from elsewhere: %v", err)
	}
}
