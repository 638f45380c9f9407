package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

const transferSize = 64 << 20

// measureBlob sends and fetches 64 MiB with one connection. Both servers have file and directory on the disk before they
// answer a PUT; both files are in the page cache when they are fetched.
func measureBlob(ctx context.Context, b *bench) (_ []row, err error) {
	p, err := b.serve(ctx, filepath.Join(b.tmp, "blob"))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, p.stop()) }()
	account, token, err := p.account(ctx)
	if err != nil {
		return nil, err
	}
	peer, err := b.peer(ctx, nil)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, peer.stop()) }()
	ours := transferrer{client: p.client, url: account + "bench/data", token: token}
	plain := transferrer{client: peer.client, url: "https://" + peer.addr + "/data"}
	body := make([]byte, transferSize)
	rand.Read(body)
	var put, get [2][]time.Duration
	for turn := range 6 {
		for i, t := range []transferrer{ours, plain} {
			up, err := t.put(ctx, body)
			if err != nil {
				return nil, err
			}
			down, err := t.get(ctx)
			if err != nil {
				return nil, err
			}
			if turn == 0 {
				// To warm up, and to see that what comes back is what went.
				if err := t.same(ctx, body); err != nil {
					return nil, err
				}
				continue
			}
			put[i], get[i] = append(put[i], up), append(get[i], down)
		}
	}
	speed := func(d []time.Duration) float64 { return transferSize / 1e6 / median(d).Seconds() }
	const name = "plain TLS file server"
	rows := []row{
		newRow("PUT 64 MiB, fsync, encrypted at rest", speed(put[0]), "MB/s").beside(name, speed(put[1])).keeping(0.6),
		newRow("GET 64 MiB, encrypted at rest", speed(get[0]), "MB/s").beside(name, speed(get[1])).keeping(0.6),
	}
	return rows, absent(filepath.Join(b.tmp, "blob", "depot"), body[:64])
}

// account makes a storage account with a container, gives the administrator the data role, and returns the Blob endpoint and
// a token for it.
func (p *platform) account(ctx context.Context) (endpoint, token string, err error) {
	group, err := p.group(ctx)
	if err != nil {
		return "", "", err
	}
	name := fmt.Sprintf("bench%x", time.Now().UnixNano()&0xffffffff)
	id := group + "/providers/Microsoft.Storage/storageAccounts/" + name
	if err := p.arm(ctx, http.MethodPut, id, "2023-05-01", map[string]any{"location": "local", "kind": "StorageV2", "sku": map[string]any{"name": "Standard_LRS"},
		"properties": map[string]any{"publicNetworkAccess": "Enabled"}}); err != nil {
		return "", "", err
	}
	const blobDataOwner = "b7e6dc6d-f1e8-4753-8033-0f276bb0955b"
	if err := p.arm(ctx, http.MethodPut, id+"/providers/Microsoft.Authorization/roleAssignments/7b3c0d5e-5a11-4c53-9f59-6f6a3a1d0001", "2022-04-01", map[string]any{"properties": map[string]any{
		"principalId": p.env["CASEMATE_OBJECT_ID"], "principalType": "ServicePrincipal",
		"roleDefinitionId": "/subscriptions/" + p.env["AZURE_SUBSCRIPTION_ID"] + "/providers/Microsoft.Authorization/roleDefinitions/" + blobDataOwner}}); err != nil {
		return "", "", err
	}
	if token, err = p.token(ctx, "https://storage.azure.com"); err != nil {
		return "", "", err
	}
	endpoint = "https://" + name + ".blob.core." + p.env["CASEMATE_DOMAIN"] + "/"
	t := transferrer{client: p.client, url: endpoint + "bench?restype=container", token: token}
	_, err = t.send(ctx, http.MethodPut, nil, io.Discard)
	return endpoint, token, err
}

type transferrer struct {
	client     *http.Client
	url, token string
}

func (t transferrer) send(ctx context.Context, method string, body []byte, to io.Writer) (time.Duration, error) {
	r, err := http.NewRequestWithContext(ctx, method, t.url, bytes.NewReader(body))
	if err != nil {
		return 0, err
	}
	if t.token != "" {
		r.Header.Set("Authorization", "Bearer "+t.token)
		r.Header.Set("x-ms-version", "2023-11-03")
		r.Header.Set("x-ms-blob-type", "BlockBlob")
	}
	began := time.Now()
	resp, err := t.client.Do(r)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	if resp.StatusCode > 299 {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 500)) // for the error only
		return 0, fmt.Errorf("%s %s = %s %s", method, r.URL.Path, resp.Status, text)
	}
	n, err := io.CopyBuffer(to, resp.Body, make([]byte, 1<<20))
	if err == nil && method == http.MethodGet && n != transferSize {
		err = fmt.Errorf("GET %s gave %d bytes", r.URL.Path, n)
	}
	return time.Since(began), err
}

func (t transferrer) put(ctx context.Context, body []byte) (time.Duration, error) {
	return t.send(ctx, http.MethodPut, body, io.Discard)
}

// discard has no ReadFrom, so that the copy's buffer is used.
type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }

func (t transferrer) get(ctx context.Context) (time.Duration, error) {
	return t.send(ctx, http.MethodGet, nil, discard{})
}

func (t transferrer) same(ctx context.Context, body []byte) error {
	h := sha256.New()
	if _, err := t.send(ctx, http.MethodGet, nil, h); err != nil {
		return err
	}
	if want := sha256.Sum256(body); !bytes.Equal(h.Sum(nil), want[:]) {
		return fmt.Errorf("GET %s gave other bytes than were put", t.url)
	}
	return nil
}

// absent looks for plaintext among the depot's objects: a fast server that does not encrypt would be no result.
func absent(dir string, plain []byte) error {
	return filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		raw, err := os.ReadFile(path)
		if err == nil && bytes.Contains(raw, plain) {
			err = fmt.Errorf("%s holds plaintext", path)
		}
		return err
	})
}
