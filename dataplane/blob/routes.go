package blob

import (
	"net/http"
	"slices"
	"time"

	"casemate.dev/resource"
)

// The permissions of the service, as role definitions spell them. Those below containers/blobs are data actions.
const (
	actReadService  = "Microsoft.Storage/storageAccounts/blobServices/read"
	actWriteService = "Microsoft.Storage/storageAccounts/blobServices/write"
	actInfo         = "Microsoft.Storage/storageAccounts/blobServices/getInfo/action"
	actDelegate     = "Microsoft.Storage/storageAccounts/blobServices/generateUserDelegationKey/action"

	actReadContainer   = "Microsoft.Storage/storageAccounts/blobServices/containers/read"
	actWriteContainer  = "Microsoft.Storage/storageAccounts/blobServices/containers/write"
	actDeleteContainer = "Microsoft.Storage/storageAccounts/blobServices/containers/delete"

	dataRead   = "Microsoft.Storage/storageAccounts/blobServices/containers/blobs/read"
	dataWrite  = "Microsoft.Storage/storageAccounts/blobServices/containers/blobs/write"
	dataDelete = "Microsoft.Storage/storageAccounts/blobServices/containers/blobs/delete"

	dataReadTags  = "Microsoft.Storage/storageAccounts/blobServices/containers/blobs/tags/read"
	dataWriteTags = "Microsoft.Storage/storageAccounts/blobServices/containers/blobs/tags/write"
	dataFilter    = "Microsoft.Storage/storageAccounts/blobServices/containers/blobs/filter/action"
)

const (
	quick  = 60 * time.Second // operations on records
	stream = 2 * time.Hour    // operations that move contents

	serviceScope   = "{resource}/blobServices/default"
	containerScope = "{resource}/blobServices/default/containers/{container}"

	serviceURL   = "/"
	containerURL = "/{container}"
	blobURL      = "/{container}/{blob...}"
)

// row is a route without the columns that all of this plane share.
type row struct {
	name, method, pattern string
	query                 []string
	action                string // control-type action; else
	data                  string // data action
	body                  int64  // 0: none
	fn                    func(s *Service, c *call) error
}

var rows = []row{
	{"Service_ListContainersSegment", "GET", serviceURL, []string{"comp=list"}, actReadContainer, "", 0, listContainers},
	{"Service_GetProperties", "GET", serviceURL, []string{"restype=service", "comp=properties"}, actReadService, "", 0, getServiceProperties},
	{"Service_SetProperties", "PUT", serviceURL, []string{"restype=service", "comp=properties"}, actWriteService, "", maxServiceXML, setServiceProperties},
	{"Service_GetAccountInfo", "GET", serviceURL, []string{"restype=account", "comp=properties"}, actInfo, "", 0, getAccountInfo},
	{"Service_GetAccountInfoWithHead", "HEAD", serviceURL, []string{"restype=account", "comp=properties"}, actInfo, "", 0, getAccountInfo},

	{"Service_FilterBlobs", "GET", serviceURL, []string{"comp=blobs"}, "", dataFilter, 0, findBlobs},
	{"Container_FilterBlobs", "GET", containerURL, []string{"restype=container", "comp=blobs"}, "", dataFilter, 0, findBlobs},
	{"Container_Create", "PUT", containerURL, []string{"restype=container", "!comp"}, actWriteContainer, "", 0, createContainer},
	{"Container_Delete", "DELETE", containerURL, []string{"restype=container"}, actDeleteContainer, "", 0, deleteContainer},
	{"Container_GetProperties", "GET", containerURL, []string{"restype=container", "!comp"}, actReadContainer, "", 0, getContainer},
	{"Container_GetPropertiesWithHead", "HEAD", containerURL, []string{"restype=container", "!comp"}, actReadContainer, "", 0, getContainer},
	{"Container_GetMetadata", "GET", containerURL, []string{"restype=container", "comp=metadata"}, actReadContainer, "", 0, getContainer},
	{"Container_GetMetadataWithHead", "HEAD", containerURL, []string{"restype=container", "comp=metadata"}, actReadContainer, "", 0, getContainer},
	{"Container_SetMetadata", "PUT", containerURL, []string{"restype=container", "comp=metadata"}, actWriteContainer, "", 0, setContainerMetadata},
	{"Container_Lease", "PUT", containerURL, []string{"restype=container", "comp=lease"}, actWriteContainer, "", 0, leaseContainer},
	{"Container_ListBlobSegment", "GET", containerURL, []string{"restype=container", "comp=list"}, "", dataRead, 0, listBlobs},
	{"Container_GetAccountInfo", "GET", containerURL, []string{"restype=account", "comp=properties"}, actInfo, "", 0, getAccountInfo},
	{"Container_GetAccountInfoWithHead", "HEAD", containerURL, []string{"restype=account", "comp=properties"}, actInfo, "", 0, getAccountInfo},

	{"BlockBlob_Upload", "PUT", blobURL, []string{"!comp", "!header:x-ms-copy-source"}, "", dataWrite, maxPut, putBlob},
	{"BlockBlob_StageBlock", "PUT", blobURL, []string{"comp=block", "!header:x-ms-copy-source"}, "", dataWrite, maxBlock, putBlock},
	{"BlockBlob_CommitBlockList", "PUT", blobURL, []string{"comp=blocklist"}, "", dataWrite, maxBlockList, putBlockList},
	{"BlockBlob_GetBlockList", "GET", blobURL, []string{"comp=blocklist"}, "", dataRead, 0, getBlockList},
	{"Blob_Download", "GET", blobURL, []string{"!comp"}, "", dataRead, 0, getBlob},
	{"Blob_GetProperties", "HEAD", blobURL, []string{"!comp"}, "", dataRead, 0, headBlob},
	{"Blob_GetMetadata", "GET", blobURL, []string{"comp=metadata"}, "", dataRead, 0, getBlobMetadata},
	{"Blob_GetMetadataWithHead", "HEAD", blobURL, []string{"comp=metadata"}, "", dataRead, 0, getBlobMetadata},
	{"Blob_SetHTTPHeaders", "PUT", blobURL, []string{"comp=properties"}, "", dataWrite, 0, setBlobProperties},
	{"Blob_SetMetadata", "PUT", blobURL, []string{"comp=metadata"}, "", dataWrite, 0, setBlobMetadata},
	{"Blob_Lease", "PUT", blobURL, []string{"comp=lease"}, "", dataWrite, 0, leaseBlob},
	{"AppendBlob_AppendBlock", "PUT", blobURL, []string{"comp=appendblock", "!header:x-ms-copy-source"}, "", dataWrite, maxAppend, appendBlock},
	{"AppendBlob_Seal", "PUT", blobURL, []string{"comp=seal"}, "", dataWrite, 0, sealBlob},
	{"PageBlob_UploadPages", "PUT", blobURL, []string{"comp=page", "!header:x-ms-copy-source"}, "", dataWrite, maxPageWrite, putPage},
	{"PageBlob_GetPageRanges", "GET", blobURL, []string{"comp=pagelist"}, "", dataRead, 0, getPageRanges},
	{"Blob_GetTags", "GET", blobURL, []string{"comp=tags"}, "", dataReadTags, 0, getTags},
	{"Blob_SetTags", "PUT", blobURL, []string{"comp=tags"}, "", dataWriteTags, maxTagXML, setTags},
	{"Blob_CreateSnapshot", "PUT", blobURL, []string{"comp=snapshot"}, "", dataWrite, 0, createSnapshot},
	{"Blob_CopyFromURL", "PUT", blobURL, []string{"!comp", "header:x-ms-copy-source"}, "", dataWrite, 0, copyFromURL},
	{"Blob_AbortCopyFromURL", "PUT", blobURL, []string{"comp=copy"}, "", dataWrite, 0, abortCopy},
	{"BlockBlob_StageBlockFromURL", "PUT", blobURL, []string{"comp=block", "header:x-ms-copy-source"}, "", dataWrite, 0, putBlockFromURL},
	{"Blob_SetTier", "PUT", blobURL, []string{"comp=tier"}, "", dataWrite, 0, setTier},
	{"Blob_Delete", "DELETE", blobURL, []string{"!comp"}, "", dataDelete, 0, deleteBlob},
	{"Blob_GetAccountInfo", "GET", blobURL, []string{"restype=account", "comp=properties"}, actInfo, "", 0, getAccountInfo},
	{"Blob_GetAccountInfoWithHead", "HEAD", blobURL, []string{"restype=account", "comp=properties"}, actInfo, "", 0, getAccountInfo},
}

// missing are the operations of the protocol that are not built. They have rows so that the answer is a clear one, and
// only for those who might do them.
var missing = []struct {
	name, method, pattern string
	query                 []string
	action, data          string
	what                  string
}{
	{"Service_GetStatistics", "GET", serviceURL, []string{"restype=service", "comp=stats"}, actReadService, "", "Replication statistics"},
	{"Service_GetUserDelegationKey", "POST", serviceURL, []string{"restype=service", "comp=userdelegationkey"}, actDelegate, "", "User delegation keys and shared access signatures"},
	{"Service_SubmitBatch", "POST", serviceURL, []string{"comp=batch"}, "", dataWrite, "Batch requests"},
	{"Container_GetAccessPolicy", "GET", containerURL, []string{"restype=container", "comp=acl"}, actReadContainer, "", "Stored access policies"},
	{"Container_SetAccessPolicy", "PUT", containerURL, []string{"restype=container", "comp=acl"}, actWriteContainer, "", "Stored access policies and anonymous access"},
	{"Container_Restore", "PUT", containerURL, []string{"restype=container", "comp=undelete"}, actWriteContainer, "", "Soft delete of containers"},
	{"Container_SubmitBatch", "POST", containerURL, []string{"restype=container", "comp=batch"}, "", dataWrite, "Batch requests"},
	{"RootBlob_Download", "GET", containerURL, []string{"!restype", "!comp"}, "", dataRead, "Blobs of the root container without its name"},
	{"RootBlob_GetProperties", "HEAD", containerURL, []string{"!restype", "!comp"}, "", dataRead, "Blobs of the root container without its name"},
	{"RootBlob_Upload", "PUT", containerURL, []string{"!restype", "!comp"}, "", dataWrite, "Blobs of the root container without its name"},
	{"RootBlob_Delete", "DELETE", containerURL, []string{"!restype", "!comp"}, "", dataDelete, "Blobs of the root container without its name"},
	{"Blob_Undelete", "PUT", blobURL, []string{"comp=undelete"}, "", dataWrite, "Soft delete of blobs"},
	{"Blob_SetExpiry", "PUT", blobURL, []string{"comp=expiry"}, "", dataWrite, "Expiry of blobs"},
	{"Blob_SetImmutabilityPolicy", "PUT", blobURL, []string{"comp=immutabilityPolicies"}, "", dataWrite, "Immutability policies"},
	{"Blob_DeleteImmutabilityPolicy", "DELETE", blobURL, []string{"comp=immutabilityPolicies"}, "", dataDelete, "Immutability policies"},
	{"Blob_SetLegalHold", "PUT", blobURL, []string{"comp=legalhold"}, "", dataWrite, "Legal holds"},
	{"Blob_Query", "POST", blobURL, []string{"comp=query"}, "", dataRead, "Queries over blob contents"},
	{"AppendBlob_AppendBlockFromURL", "PUT", blobURL, []string{"comp=appendblock", "header:x-ms-copy-source"}, "", dataWrite, "Copying from a URL (Append Block From URL)"},
	{"PageBlob_UploadPagesFromURL", "PUT", blobURL, []string{"comp=page", "header:x-ms-copy-source"}, "", dataWrite, "Copying from a URL (Put Page From URL)"},
	{"PageBlob_CopyIncremental", "PUT", blobURL, []string{"comp=incrementalcopy"}, "", dataWrite, "Incremental copies of page blobs"},
}

// Routes are the rows of the blob plane.
func (s *Service) Routes() []resource.Route {
	var out []resource.Route
	for _, r := range rows {
		fn := r.fn
		out = append(out, r.route(func(w http.ResponseWriter, q *resource.Request) error { return s.serve(w, q, fn) }))
	}
	for _, m := range missing {
		r := row{name: m.name, method: m.method, pattern: m.pattern, query: m.query, action: m.action, data: m.data, body: maxPut}
		what := m.what
		out = append(out, r.route(func(http.ResponseWriter, *resource.Request) error {
			return resource.NotSupported("%s: not supported by this service.", what)
		}))
	}
	return out
}

func (r row) route(h resource.Handler) resource.Route {
	scope := serviceScope
	if r.pattern != serviceURL {
		scope = containerScope
	}
	out := resource.Route{
		Name: r.name, Plane: resource.PlaneBlob, Method: r.method, Pattern: r.pattern, Query: r.query,
		// x-ms-version is a header of its own; serve checks it.
		Versions: resource.Unversioned(),
		Action:   r.action, DataAction: r.data, Scope: scope,
		Origin: resource.OriginResource, Body: r.body, Timeout: quick, Audit: resource.AuditWrite, Handler: h,
	}
	if out.Body == 0 {
		out.Body = -1
	}
	if r.data != "" && (r.method == "GET" && r.pattern == blobURL || r.method == "PUT" && (r.body > 0 || slices.Contains(r.query, "header:x-ms-copy-source"))) {
		out.Timeout = stream
	}
	switch {
	case r.method != "GET" && r.method != "HEAD":
	case r.data != "":
		out.Audit = resource.AuditData
	default:
		out.Audit = resource.AuditRead
	}
	return out
}
