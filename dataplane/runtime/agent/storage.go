package agent

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	storageVersion = "2023-11-03" // x-ms-version
	attempts       = 6
	blockBytes     = 8 << 20 // uploads larger than this go in blocks
	tokenMargin    = 5 * time.Minute
)

// storage speaks the Blob REST API with the node's managed identity. Safe for concurrent use.
type storage struct {
	client   *http.Client
	identity identity
	retry    time.Duration
}

// identity gets tokens from the node's identity endpoint, as a job's own SDK would (App Service protocol, api-version 2019-08-01; the header
// Metadata serves an IMDS address).
type identity struct {
	client                               *http.Client
	endpoint, header, resource, clientID string

	mu      sync.Mutex // guards the fields below; held during a request, so that many workers ask once
	token   string
	expires time.Time
}

func (i *identity) get(ctx context.Context, fresh bool) (string, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if !fresh && time.Until(i.expires) > tokenMargin {
		return i.token, nil
	}
	if i.endpoint == "" {
		return "", errors.New("this node has no identity, and storage is not read without one")
	}
	u, err := url.Parse(i.endpoint)
	if err != nil {
		return "", fmt.Errorf("parsing identity endpoint: %w", err)
	}
	q := u.Query()
	q.Set("api-version", "2019-08-01")
	q.Set("resource", i.resource)
	if i.clientID != "" {
		q.Set("client_id", i.clientID)
	}
	u.RawQuery = q.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return "", fmt.Errorf("asking for a token: %w", err)
	}
	req.Header.Set("X-IDENTITY-HEADER", i.header)
	req.Header.Set("Metadata", "true")
	resp, err := i.client.Do(req)
	if err != nil {
		return "", temporary{fmt.Errorf("asking for a token: %w", err)}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return "", temporary{fmt.Errorf("reading token: %w", err)}
	}
	if resp.StatusCode != http.StatusOK {
		err := fmt.Errorf("identity endpoint answers %s", resp.Status)
		if transient(resp.StatusCode) || resp.StatusCode == http.StatusNotFound {
			return "", temporary{err} // IMDS answers 404 while an identity is being attached
		}
		return "", err
	}
	var answer struct {
		Token   string      `json:"access_token"`
		Expires json.Number `json:"expires_on"`
	}
	if err := json.Unmarshal(body, &answer); err != nil || answer.Token == "" {
		return "", errors.New("identity endpoint answers without a token")
	}
	seconds, err := answer.Expires.Int64()
	if err != nil {
		return "", fmt.Errorf("reading token expiry: %w", err)
	}
	i.token, i.expires = answer.Token, time.Unix(seconds, 0)
	return i.token, nil
}

// temporary marks errors worth another attempt.
type temporary struct{ error }

func (t temporary) Unwrap() error { return t.error }

func transient(status int) bool {
	return status == http.StatusRequestTimeout || status == http.StatusTooManyRequests || status >= 500
}

// try repeats f while it fails temporarily.
func (s *storage) try(ctx context.Context, f func() error) error {
	wait := s.retry
	for n := 1; ; n++ {
		err := f()
		if t := (temporary{}); err == nil || !errors.As(err, &t) || n == attempts || ctx.Err() != nil {
			return err
		}
		pause(ctx, wait)
		wait = min(3*wait, 10*time.Second)
	}
}

// do sends one request with a token; a refused token is renewed once. The caller closes the body.
func (s *storage) do(ctx context.Context, method, target string, header map[string]string, body []byte) (*http.Response, error) {
	u, err := url.Parse(target)
	if err != nil || u.Scheme != "https" {
		return nil, fmt.Errorf("refusing storage address %q: not https", redact(target))
	}
	for _, fresh := range []bool{false, true} {
		token, err := s.identity.get(ctx, fresh)
		if err != nil {
			return nil, err
		}
		req, err := http.NewRequestWithContext(ctx, method, target, bytes.NewReader(body))
		if err != nil {
			return nil, fmt.Errorf("making storage request: %w", err)
		}
		req.Header.Set("Authorization", "Bearer "+token)
		req.Header.Set("x-ms-version", storageVersion)
		req.Header.Set("x-ms-date", time.Now().UTC().Format(http.TimeFormat))
		for k, v := range header {
			req.Header.Set(k, v)
		}
		resp, err := s.client.Do(req)
		if err != nil {
			return nil, temporary{fmt.Errorf("reaching storage: %w", err)}
		}
		if resp.StatusCode == http.StatusUnauthorized && !fresh {
			resp.Body.Close()
			continue
		}
		if resp.StatusCode >= 300 {
			return nil, refused(resp)
		}
		return resp, nil
	}
	return nil, errors.New("storage refuses every token") // not reached: the second answer returns
}

// refused turns an error answer into an error that names storage's own code, and closes it.
func refused(resp *http.Response) error {
	defer resp.Body.Close()
	_, _ = io.CopyN(io.Discard, resp.Body, 64<<10) // so that the connection can be used again
	err := fmt.Errorf("storage answers %s %s for %s", resp.Status, resp.Header.Get("x-ms-error-code"), redact(resp.Request.URL.String()))
	if transient(resp.StatusCode) {
		return temporary{err}
	}
	return err
}

// redact drops a query, which could hold a signature.
func redact(target string) string {
	before, _, _ := strings.Cut(target, "?")
	return before
}

// errIntegrity tells that bytes are not the pinned ones.
var errIntegrity = errors.New("its bytes are not the ones that were submitted")

// download writes one blob to f, which it empties before each attempt, and verifies it.
func (s *storage) download(ctx context.Context, file File, f *os.File) error {
	return s.try(ctx, func() error {
		if err := f.Truncate(0); err != nil {
			return fmt.Errorf("emptying file: %w", err)
		}
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return fmt.Errorf("rewinding file: %w", err)
		}
		resp, err := s.do(ctx, http.MethodGet, file.URL, nil, nil)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		sum := sha256.New()
		n, err := io.Copy(io.MultiWriter(f, sum), resp.Body)
		if err != nil {
			if ctx.Err() == nil && !errors.Is(err, os.ErrClosed) && !isDisk(err) {
				err = temporary{err}
			}
			return fmt.Errorf("reading blob: %w", err)
		}
		return verify(file, n, sum)
	})
}

// isDisk tells a failure of the own disk (full) from one of the network.
func isDisk(err error) bool {
	var p *os.PathError
	return errors.As(err, &p)
}

func verify(file File, n int64, sum hash.Hash) error {
	got := hex.EncodeToString(sum.Sum(nil))
	if file.SHA256 != "" && !strings.EqualFold(file.SHA256, got) {
		return fmt.Errorf("%w: sha256 is %s, want %s", errIntegrity, got, file.SHA256)
	}
	if file.Size > 0 && file.Size != n {
		return fmt.Errorf("%w: %d bytes, want %d", errIntegrity, n, file.Size)
	}
	return nil
}

// put stores a blob of at most blockBytes at once.
func (s *storage) put(ctx context.Context, target string, body []byte) error {
	return s.send(ctx, target, map[string]string{"x-ms-blob-type": "BlockBlob", "Content-Type": "application/octet-stream"}, body)
}

func (s *storage) putBlock(ctx context.Context, target, id string, body []byte) error {
	return s.send(ctx, target+"?comp=block&blockid="+url.QueryEscape(id), nil, body)
}

func (s *storage) putBlockList(ctx context.Context, target, contentType string, ids []string) error {
	var list bytes.Buffer
	list.WriteString(`<?xml version="1.0" encoding="utf-8"?><BlockList>`)
	for _, id := range ids {
		list.WriteString("<Latest>" + id + "</Latest>")
	}
	list.WriteString("</BlockList>")
	return s.send(ctx, target+"?comp=blocklist", map[string]string{"x-ms-blob-content-type": contentType, "Content-Type": "application/xml"}, list.Bytes())
}

func (s *storage) send(ctx context.Context, target string, header map[string]string, body []byte) error {
	return s.try(ctx, func() error {
		resp, err := s.do(ctx, http.MethodPut, target, header, body)
		if err != nil {
			return err
		}
		_, _ = io.Copy(io.Discard, resp.Body) // for the connection's sake
		return resp.Body.Close()
	})
}

// upload stores a file, in blocks when it is large.
func (s *storage) upload(ctx context.Context, target string, f io.Reader) error {
	var ids []string
	buf := make([]byte, blockBytes)
	for {
		n, err := io.ReadFull(f, buf)
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			return fmt.Errorf("reading output: %w", err)
		}
		last := err != nil
		if last && len(ids) == 0 {
			return s.put(ctx, target, buf[:n])
		}
		if n > 0 {
			ids = append(ids, blockID(len(ids)))
			if err := s.putBlock(ctx, target, ids[len(ids)-1], buf[:n]); err != nil {
				return err
			}
		}
		if last {
			return s.putBlockList(ctx, target, "application/octet-stream", ids)
		}
	}
}

// blockID names block n; all ids of a blob must have one length.
func blockID(n int) string {
	return base64.StdEncoding.EncodeToString(fmt.Appendf(nil, "block-%06d", n))
}

// list returns the blobs below a folder, following markers.
func (s *storage) list(ctx context.Context, folder Folder) ([]File, error) {
	var files []File
	for marker, pages := "", 0; pages < 10_000; pages++ {
		q := url.Values{"restype": {"container"}, "comp": {"list"}, "prefix": {folder.Prefix}}
		if marker != "" {
			q.Set("marker", marker)
		}
		var page struct {
			Blobs []struct {
				Name string
				Size string `xml:"Properties>Content-Length"`
			} `xml:"Blobs>Blob"`
			NextMarker string
		}
		err := s.try(ctx, func() error {
			resp, err := s.do(ctx, http.MethodGet, folder.ContainerURL+"?"+q.Encode(), nil, nil)
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			return xml.NewDecoder(resp.Body).Decode(&page)
		})
		if err != nil {
			return nil, fmt.Errorf("listing %s: %w", redact(folder.ContainerURL), err)
		}
		for _, b := range page.Blobs {
			rel := strings.TrimPrefix(b.Name, folder.Prefix)
			if rel == "" || strings.HasSuffix(rel, "/") {
				continue // a marker of an empty directory
			}
			size, _ := strconv.ParseInt(b.Size, 10, 64) // absent: not checked
			files = append(files, File{Path: rel, URL: folder.ContainerURL + "/" + escapePath(b.Name), Size: size})
		}
		if marker = page.NextMarker; marker == "" {
			return files, nil
		}
	}
	return nil, errors.New("listing does not end")
}

func escapePath(name string) string {
	parts := strings.Split(name, "/")
	for i, p := range parts {
		parts[i] = url.PathEscape(p)
	}
	return strings.Join(parts, "/")
}
