package scoring

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"

	"casemate.dev/resource"
)

// passed are the request headers that an instance sees. Neither the credential nor anything about addresses is among them.
var passed = []string{"Content-Type", "Accept", "Accept-Encoding", "Content-Encoding", "X-Request-Id", "X-Ms-Client-Request-Id", "Traceparent", "Tracestate"}

// returned are the response headers of an instance that a client sees.
var returned = []string{"Content-Type", "Content-Encoding", "Cache-Control"}

func (s *Service) score(w http.ResponseWriter, r *resource.Request) error {
	e, err := s.admit(r)
	if err != nil {
		return err
	}
	name, err := s.choose(e, r.Header.Get(deploymentHead))
	if err != nil {
		return err
	}
	node, release, err := s.borrow(e, name)
	if err != nil {
		return err
	}
	defer release()
	r.Remember("deployment", name)
	res, closeConn, err := s.call(r, node)
	if err != nil {
		return s.callError(r, name, err)
	}
	defer closeConn()
	h := w.Header()
	h.Set("x-ms-run-function-deployment", name)
	h.Set(deploymentHead, name)
	h.Set("x-request-id", requestID(r))
	if res.StatusCode < 200 || res.StatusCode > 299 {
		return modelError(h, res)
	}
	for _, k := range returned {
		if v := res.Header.Get(k); v != "" {
			h.Set(k, v)
		}
	}
	w.WriteHeader(res.StatusCode)
	n, err := io.Copy(w, io.LimitReader(res.Body, responseLimit+1))
	if err == nil && n > responseLimit {
		err = fmt.Errorf("answer of deployment %s is longer than %d bytes", name, responseLimit)
	}
	return err
}

// call sends the request to the instance over a connection of its own: connections are not shared between clients.
func (s *Service) call(r *resource.Request, node string) (*http.Response, func(), error) {
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return s.cfg.Dial(ctx, node, s.cfg.Port)
		},
		DisableKeepAlives: true, DisableCompression: true, ResponseHeaderTimeout: requestTime, MaxResponseHeaderBytes: 64 << 10,
	}
	req, err := http.NewRequestWithContext(r.Context(), http.MethodPost, "http://instance:"+strconv.Itoa(s.cfg.Port)+"/score", r.Body)
	if err != nil {
		return nil, nil, err
	}
	req.ContentLength = r.ContentLength
	for _, k := range passed {
		if v := r.Header.Get(k); v != "" {
			req.Header.Set(k, v)
		}
	}
	req.Header.Set("X-Request-Id", requestID(r))
	res, err := transport.RoundTrip(req) // no client: redirects are answers, not orders
	if err != nil {
		transport.CloseIdleConnections()
		return nil, nil, err
	}
	return res, func() { _ = res.Body.Close(); transport.CloseIdleConnections() }, nil
}

func requestID(r *resource.Request) string {
	if id := r.Header.Get("X-Request-Id"); id != "" && len(id) <= 128 {
		return id
	}
	return r.CorrelationID
}

// callError words why an instance could not be asked.
func (s *Service) callError(r *resource.Request, deployment string, err error) error {
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return resource.Errorf(http.StatusRequestEntityTooLarge, "RequestBodyTooLarge", "A scoring request may have %d bytes.", requestLimit)
	case errors.Is(err, context.DeadlineExceeded):
		return resource.Errorf(http.StatusRequestTimeout, "ModelTimeout", "The deployment '%s' did not answer in time.", deployment)
	case r.Context().Err() != nil:
		return r.Context().Err()
	}
	s.cfg.Log.Warn("calling instance", "deployment", deployment, "error", err)
	return resource.Errorf(http.StatusBadGateway, "InstanceUnreachable", "An instance of the deployment '%s' did not answer. Try again.", deployment).WithCause(err)
}

// modelError is how an error of the model's own code looks: 424 with the original status in headers, as Azure ML's
// "HTTP status codes" of online endpoints has it. Of the text only a line is passed on.
func modelError(h http.Header, res *http.Response) error {
	text, _ := io.ReadAll(io.LimitReader(res.Body, 512)) // what there is
	out := resource.Errorf(http.StatusFailedDependency, "ModelError", "The model answered %d: %s", res.StatusCode, printable(text))
	out.Header = http.Header{}
	for k, v := range map[string]string{
		"ms-azureml-model-error-statuscode": strconv.Itoa(res.StatusCode),
		"ms-azureml-model-error-reason":     "model_error",
	} {
		out.Header.Set(k, v)
		h.Set(k, v)
	}
	return out
}

func printable(b []byte) string {
	out := make([]rune, 0, len(b))
	for _, r := range string(b) {
		if r < 0x20 || r == 0x7f {
			r = ' '
		}
		out = append(out, r)
	}
	return string(out)
}
