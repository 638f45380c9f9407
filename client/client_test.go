package client

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// server answers every name of example.test.
func server(t *testing.T, h http.HandlerFunc) *Client {
	t.Helper()
	s := httptest.NewTLSServer(h)
	t.Cleanup(s.Close)
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())
	c, err := New(Site{Domain: "example.com", Roots: roots, Dial: At(s.Listener.Addr().String())}, Credential{Tenant: "t", ClientID: "app", Secret: "hush"})
	if err != nil {
		t.Fatal(err)
	}
	// The certificate of httptest is good for example.com and *.example.com is not in it on every version.
	c.http.Transport.(*http.Transport).TLSClientConfig.ServerName = "example.com"
	t.Cleanup(c.Close)
	return c
}

func token(w http.ResponseWriter, r *http.Request) bool {
	if !strings.HasPrefix(r.Host, "login.") {
		return false
	}
	_ = r.ParseForm()
	fmt.Fprintf(w, `{"access_token":"%s|%s","expires_in":3600}`, r.PostForm.Get("client_secret"), r.PostForm.Get("scope"))
	return true
}

func TestParseErrorReadsAllDialects(t *testing.T) {
	for name, c := range map[string]struct {
		body string
		want Error
	}{
		"resource manager": {`{"error":{"code":"A","message":"m"}}`, Error{Code: "A", Message: "m"}},
		"token service":    {`{"error":"invalid_client","error_description":"d"}`, Error{Code: "invalid_client", Message: "d"}},
		"registry":         {`{"errors":[{"code":"DENIED","message":"no"}]}`, Error{Code: "DENIED", Message: "no"}},
		"tracking":         {`{"error_code":"RESOURCE_DOES_NOT_EXIST","message":"m"}`, Error{Code: "RESOURCE_DOES_NOT_EXIST", Message: "m"}},
		"storage":          {"\ufeff<?xml version=\"1.0\"?><Error><Code>X</Code><Message>y</Message></Error>", Error{Code: "X", Message: "y"}},
		"plain":            {"oops", Error{Message: "oops"}},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, *parseError([]byte(c.body))); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestPutWaitsForTheOperation(t *testing.T) {
	var polls atomic.Int32
	c := server(t, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case token(w, r):
		case r.Method == http.MethodPut:
			if got := r.Header.Get("Authorization"); got != "Bearer hush|https://management.example.com/.default" {
				t.Errorf("token %q", got)
			}
			w.Header().Set("Azure-AsyncOperation", "https://management.example.com/op?api-version=1")
			w.WriteHeader(http.StatusCreated)
		case r.URL.Path == "/op":
			status := "InProgress"
			if polls.Add(1) == 3 {
				status = "Succeeded"
			}
			fmt.Fprintf(w, `{"status":%q}`, status)
		default:
			fmt.Fprint(w, `{"properties":{"provisioningState":"Succeeded"}}`)
		}
	})
	got, err := c.Put(t.Context(), "/thing", "1", Object{})
	if err != nil || Text(got, "properties.provisioningState") != "Succeeded" || polls.Load() != 3 {
		t.Errorf("got %v, %v after %d polls", got, err, polls.Load())
	}
}

func TestFailedOperationIsAnError(t *testing.T) {
	c := server(t, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case token(w, r):
		case r.Method == http.MethodPut:
			w.Header().Set("Azure-AsyncOperation", "https://management.example.com/op")
		default:
			fmt.Fprint(w, `{"status":"Failed","error":{"code":"SubnetIsFull","message":"no room"}}`)
		}
	})
	_, err := c.Put(t.Context(), "/thing", "1", Object{})
	if e, ok := errors.AsType[*Error](err); !ok || e.Code != "SubnetIsFull" {
		t.Errorf("got %v", err)
	}
}

func TestOperationsElsewhereAreRefused(t *testing.T) {
	c := server(t, func(w http.ResponseWriter, r *http.Request) {
		if !token(w, r) {
			w.Header().Set("Azure-AsyncOperation", "https://elsewhere.example.org/op")
		}
	})
	if _, err := c.Put(t.Context(), "/thing", "1", Object{}); err == nil || !strings.Contains(err.Error(), "not at the resource manager") {
		t.Errorf("got %v", err)
	}
}

func TestRedirectsAreNotFollowed(t *testing.T) {
	c := server(t, func(w http.ResponseWriter, r *http.Request) {
		if !token(w, r) {
			http.Redirect(w, r, "https://elsewhere.example.org/", http.StatusTemporaryRedirect)
		}
	})
	res, err := c.Open(t.Context(), Request{URL: c.URL("management") + "/x", Audience: c.URL("management")})
	if err != nil || res.StatusCode != http.StatusTemporaryRedirect {
		t.Fatalf("got %v, %v", res, err)
	}
	_ = res.Body.Close()
}

func TestLargeBlobsGoInBlocks(t *testing.T) {
	parts, whole := map[string][]byte{}, []byte(nil)
	c := server(t, func(w http.ResponseWriter, r *http.Request) {
		if token(w, r) {
			return
		}
		b, _ := io.ReadAll(r.Body)
		switch q := r.URL.Query(); q.Get("comp") {
		case "block":
			parts[q.Get("blockid")] = b
		case "blocklist":
			for _, id := range strings.Split(string(b), "<Latest>")[1:] {
				id, _, _ = strings.Cut(id, "<")
				whole = append(whole, parts[id]...)
			}
		default:
			t.Errorf("unexpected %s", r.URL)
		}
	})
	want := strings.Repeat("0123456789abcdef", (2*blobPart+4096)/16)
	if err := c.PutBlob(t.Context(), "a", "c", "n", strings.NewReader(want), int64(len(want))); err != nil {
		t.Fatal(err)
	}
	if string(whole) != want || len(parts) != 3 {
		t.Errorf("%d bytes in %d blocks, want %d", len(whole), len(parts), len(want))
	}
}

func TestShortDownloadIsAnError(t *testing.T) {
	c := server(t, func(w http.ResponseWriter, r *http.Request) {
		if token(w, r) {
			return
		}
		w.Header().Set("Content-Length", "10")
		_, _ = w.Write([]byte("123"))
	})
	if b, err := c.Blob(context.Background(), "a", "c", "n"); err == nil {
		t.Errorf("got %q", b)
	}
}

func TestWithoutCredentialNoTokenIsSent(t *testing.T) {
	c := server(t, func(w http.ResponseWriter, r *http.Request) {
		if got := r.Header.Get("Authorization"); got != "" {
			t.Errorf("sent %q", got)
		}
		w.WriteHeader(http.StatusUnauthorized)
	})
	c.As = Credential{}
	if _, err := c.Get(t.Context(), "/x", "1"); StatusOf(err) != http.StatusUnauthorized {
		t.Errorf("got %v", err)
	}
}
