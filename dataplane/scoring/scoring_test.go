package scoring

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"casemate.dev/resource"
)

var endpointID = resource.MustParseID("/subscriptions/s/resourceGroups/g/providers/Microsoft.MachineLearningServices/workspaces/w/onlineEndpoints/e")

type fakeEndpoints struct {
	e        Endpoint
	ready    bool
	released int
}

func (f *fakeEndpoints) Endpoint(context.Context, resource.ID) (Endpoint, error) { return f.e, nil }
func (f *fakeEndpoints) Borrow(resource.ID) (string, func(), bool) {
	return "node-1", func() { f.released++ }, f.ready
}

type onlyGood struct{}

func (onlyGood) Authorize(c resource.Caller, action string, isData bool, scope resource.ID) (bool, string) {
	return c.Object == "good" && action == scoreAction && !isData && scope.Equal(endpointID), ""
}

// plane is a scoring plane before one instance that the test plays.
func plane(t *testing.T, instance http.HandlerFunc) (*Service, *fakeEndpoints) {
	t.Helper()
	srv := httptest.NewServer(instance)
	t.Cleanup(srv.Close)
	f := &fakeEndpoints{ready: true, e: Endpoint{ID: endpointID, Mode: ModeKey, Keys: []string{"first-key", "second-key"}, Traffic: map[string]int{"blue": 100, "green": 0}}}
	s, err := New(Config{
		Endpoints: f,
		Verify: func(_ context.Context, token string) (resource.Caller, error) {
			switch token {
			case "good", "poor":
				return resource.Caller{Kind: resource.KindUser, Object: token}, nil
			case "of a node":
				return resource.Caller{Kind: resource.KindManagedIdentity, Object: "good", Node: "node-7"}, nil
			}
			return resource.Caller{}, errors.New("bad token")
		},
		Authorize: onlyGood{},
		Dial: func(ctx context.Context, node string, port int) (net.Conn, error) {
			if node != "node-1" || port != 5001 {
				return nil, errors.New("dialed somewhere else")
			}
			var d net.Dialer
			return d.DialContext(ctx, "tcp", srv.Listener.Addr().String())
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range s.Routes() {
		if err := r.Validate(); err != nil {
			t.Fatal(err)
		}
	}
	return s, f
}

func send(s *Service, auth, body string, headers ...string) (*httptest.ResponseRecorder, error) {
	req := httptest.NewRequest("POST", "/score", strings.NewReader(body))
	if auth != "" {
		req.Header.Set("Authorization", auth)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	return w, s.score(w, &resource.Request{Request: req, Resource: endpointID.String(), CorrelationID: "corr"})
}

func TestScore(t *testing.T) {
	s, f := plane(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		if r.Header.Get("Authorization") != "" || r.Header.Get("X-Ms-Target-Port") != "" {
			t.Errorf("the instance saw %v", r.Header)
		}
		w.Header().Set("Set-Cookie", "a=b")
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(append([]byte("scored "), b...))
	})
	for _, key := range []string{"Bearer first-key", "bearer second-key"} {
		w, err := send(s, key, "x", "X-MS-Target-Port", "22")
		if err != nil || w.Code != 200 || w.Body.String() != "scored x" || w.Header().Get("Set-Cookie") != "" || w.Header().Get("x-request-id") != "corr" {
			t.Errorf("%s: %v %d %q %v", key, err, w.Code, w.Body, w.Header())
		}
	}
	if f.released != 2 {
		t.Errorf("%d instances were released", f.released)
	}
}

// A job's token that was carried off its node scores nowhere.
func TestTokenOfANodeScoresOnItsNodeOnly(t *testing.T) {
	s, f := plane(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	f.e.Mode = ModeToken
	for node, want := range map[string]int{"": 401, "node-8": 401, "node-7": 200} {
		req := httptest.NewRequest("POST", "/score", strings.NewReader("x"))
		req.Header.Set("Authorization", "Bearer of a node")
		err := s.score(httptest.NewRecorder(), &resource.Request{Request: req, Resource: endpointID.String(), Origin: resource.Origin{Node: node}})
		if got := resource.StatusOf(err); got != want {
			t.Errorf("from node %q: %d (%v), want %d", node, got, err, want)
		}
	}
}

func TestScoreRefusals(t *testing.T) {
	s, f := plane(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	for _, tt := range []struct {
		mode, auth string
		want       int
	}{
		{ModeKey, "", 401}, {ModeKey, "Bearer ", 401}, {ModeKey, "Bearer wrong", 401}, {ModeKey, "Basic first-key", 401}, {ModeKey, "Bearer good", 401},
		{ModeToken, "Bearer first-key", 401}, {ModeToken, "Bearer poor", 403}, {ModeToken, "Bearer good", 200},
	} {
		f.e.Mode = tt.mode
		_, err := send(s, tt.auth, "x")
		if got := resource.StatusOf(err); got != tt.want {
			t.Errorf("%s %q: %d (%v), want %d", tt.mode, tt.auth, got, err, tt.want)
		}
	}
	f.e.Mode, f.e.Keys = ModeKey, []string{"", ""}
	if _, err := send(s, "Bearer  ", "x"); resource.StatusOf(err) != 401 {
		t.Errorf("an empty key scores: %v", err)
	}
}

func TestDeployments(t *testing.T) {
	s, f := plane(t, func(http.ResponseWriter, *http.Request) {})
	w, err := send(s, "Bearer first-key", "", deploymentHead, "green")
	if err != nil || w.Header().Get(deploymentHead) != "green" {
		t.Errorf("named deployment: %v %v", err, w.Header())
	}
	if _, err := send(s, "Bearer first-key", "", deploymentHead, "../x"); resource.StatusOf(err) != 404 {
		t.Errorf("unknown deployment: %v", err)
	}
	f.ready = false
	if _, err := send(s, "Bearer first-key", ""); resource.StatusOf(err) != 503 {
		t.Errorf("no instance: %v", err)
	}
	f.e.Traffic = map[string]int{"blue": 0}
	if _, err := send(s, "Bearer first-key", ""); resource.StatusOf(err) != 503 {
		t.Errorf("no traffic: %v", err)
	}
}

func TestModelError(t *testing.T) {
	s, _ := plane(t, func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "boom\nline", 500) })
	w, err := send(s, "Bearer first-key", "")
	var e *resource.Error
	if !errors.As(err, &e) || e.Status != 424 || w.Header().Get("ms-azureml-model-error-statuscode") != "500" || strings.Contains(e.Message, "\n") {
		t.Errorf("got %v %v", err, w.Header())
	}
}

func TestInstanceGone(t *testing.T) {
	s, _ := plane(t, func(w http.ResponseWriter, _ *http.Request) {
		c, _, _ := w.(http.Hijacker).Hijack()
		_ = c.Close()
	})
	if _, err := send(s, "Bearer first-key", ""); resource.StatusOf(err) != 502 {
		t.Errorf("got %v", err)
	}
}

// TestSharesAreKept: over all lots, each deployment gets exactly its share.
func TestSharesAreKept(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e := Endpoint{ID: endpointID, Traffic: map[string]int{}}
		total := 0
		for _, name := range []string{"a", "b", "c"} {
			e.Traffic[name] = rapid.IntRange(0, 50).Draw(t, name)
			total += e.Traffic[name]
		}
		got := map[string]int{}
		for lot := range total {
			s := &Service{Config{Pick: func(n int) int {
				if n != total {
					t.Fatalf("picked of %d, not %d", n, total)
				}
				return lot
			}}}
			name, err := s.choose(e, "")
			if err != nil {
				t.Fatal(err)
			}
			got[name]++
		}
		for name, want := range e.Traffic {
			if got[name] != want {
				t.Fatalf("%s got %d of %d", name, got[name], want)
			}
		}
	})
}
