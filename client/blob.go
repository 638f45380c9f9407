package client

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
)

// blobVersion is the version of the Blob service's protocol.
const blobVersion = "2021-12-02"

// blobPart is the size above which a blob is sent in blocks.
const blobPart = 8 << 20

// BlobURL is the address of a blob, a container ("") or below it.
func (c *Client) BlobURL(account, container, name string) string {
	return c.URL(account+".blob.core") + "/" + container + "/" + escape(name)
}

func (c *Client) blob(method, url string, body io.Reader, size int64) Request {
	return Request{Method: method, URL: url, Audience: AudienceStorage, Header: http.Header{"x-ms-version": {blobVersion}}, Body: body, Size: size}
}

// PutBlob writes a blob, in blocks where it is large.
func (c *Client) PutBlob(ctx context.Context, account, container, name string, body io.Reader, size int64) error {
	url := c.BlobURL(account, container, name)
	if size <= blobPart {
		q := c.blob(http.MethodPut, url, io.LimitReader(body, size), size)
		q.Header.Set("x-ms-blob-type", "BlockBlob")
		if size == 0 {
			q.Body = http.NoBody
		}
		if _, err := c.Do(ctx, q, nil); err != nil {
			return fmt.Errorf("uploading %s: %w", name, err)
		}
		return nil
	}
	var list strings.Builder
	list.WriteString(`<?xml version="1.0" encoding="utf-8"?><BlockList>`)
	for at := int64(0); at < size; at += blobPart {
		n := min(blobPart, size-at)
		id := base64.StdEncoding.EncodeToString(fmt.Appendf(nil, "%016d", at))
		q := c.blob(http.MethodPut, url+"?comp=block&blockid="+escapeQuery(id), io.LimitReader(body, n), n)
		if _, err := c.Do(ctx, q, nil); err != nil {
			return fmt.Errorf("uploading %s at %d: %w", name, at, err)
		}
		list.WriteString("<Latest>" + id + "</Latest>")
	}
	list.WriteString("</BlockList>")
	q := c.blob(http.MethodPut, url+"?comp=blocklist", strings.NewReader(list.String()), int64(list.Len()))
	if _, err := c.Do(ctx, q, nil); err != nil {
		return fmt.Errorf("uploading %s: %w", name, err)
	}
	return nil
}

func escapeQuery(s string) string {
	return strings.NewReplacer("+", "%2B", "/", "%2F", "=", "%3D").Replace(s)
}

// OpenBlob opens a blob for reading, and says its size.
func (c *Client) OpenBlob(ctx context.Context, account, container, name string) (io.ReadCloser, int64, error) {
	res, err := c.Open(ctx, c.blob(http.MethodGet, c.BlobURL(account, container, name), nil, 0))
	if err != nil {
		return nil, 0, err
	}
	return res.Body, res.ContentLength, nil
}

// Blob reads a blob whole.
func (c *Client) Blob(ctx context.Context, account, container, name string) ([]byte, error) {
	body, size, err := c.OpenBlob(ctx, account, container, name)
	if err != nil {
		return nil, fmt.Errorf("downloading %s: %w", name, err)
	}
	b, err := io.ReadAll(io.LimitReader(body, max(size, 0)))
	if err := errors.Join(err, body.Close()); err != nil {
		return nil, fmt.Errorf("downloading %s: %w", name, err)
	}
	if size >= 0 && int64(len(b)) != size {
		return nil, fmt.Errorf("downloading %s: %d of %d bytes came", name, len(b), size)
	}
	return b, nil
}
