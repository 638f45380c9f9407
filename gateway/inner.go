package gateway

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"

	"casemate.dev/resource"
)

// Transport reaches the planes in process for a caller that a plane acts for: the image store pulling with a node's
// identity, say. Requests pass receive, authorize, govern, record and dispatch; the caller is given instead of
// authenticated, and the origin is the platform itself. It goes through no socket, and leads to no other host.
func (g *Gateway) Transport(c resource.Caller) http.RoundTripper {
	return innerTransport{g, c}
}

type innerTransport struct {
	g *Gateway
	c resource.Caller
}

func (t innerTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	if t.c.Anonymous() {
		return nil, errors.New("acting in process: nobody is acted for")
	}
	in := req.Clone(withOrigin(req.Context(), resource.Origin{Kind: resource.OriginInternal}))
	if in.Host == "" {
		in.Host = in.URL.Host
	}
	if in.Body == nil {
		in.Body = http.NoBody
	}
	body, w := io.Pipe()
	answer := &pipeAnswer{header: http.Header{}, body: w, began: make(chan struct{})}
	go t.serve(answer, in)
	select {
	case <-answer.began:
	case <-req.Context().Done():
		body.CloseWithError(req.Context().Err())
		return nil, req.Context().Err()
	}
	return &http.Response{
		Status: fmt.Sprintf("%d %s", answer.status, http.StatusText(answer.status)), StatusCode: answer.status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: answer.sent, Body: body, ContentLength: answer.length(req.Method), Request: req,
	}, nil
}

// serve runs the stages that remain for a caller who is known. A cut-off answer ends the pipe with an error.
func (t innerTransport) serve(w *pipeAnswer, in *http.Request) {
	defer in.Body.Close()
	defer func() {
		err := error(io.EOF)
		if p := recover(); p != nil {
			err = io.ErrUnexpectedEOF
		}
		w.WriteHeader(http.StatusOK)
		w.body.CloseWithError(err)
	}()
	t.g.run(w, in, func(x *exchange) []stage {
		x.r.Caller = t.c
		return t.g.inner
	})
}

// told ends a request for which no row was found; outside, the authenticate stage does.
func (g *Gateway) told(x *exchange) error { return x.missing }

// pipeAnswer is the ResponseWriter of an in-process request.
type pipeAnswer struct {
	header http.Header
	body   *io.PipeWriter
	once   sync.Once
	began  chan struct{} // closed when status and sent are set
	status int
	sent   http.Header
}

func (p *pipeAnswer) Header() http.Header { return p.header }

func (p *pipeAnswer) WriteHeader(status int) {
	if status < 200 {
		return
	}
	p.once.Do(func() {
		p.status, p.sent = status, http.Header{}
		for k, v := range p.header {
			p.sent[http.CanonicalHeaderKey(k)] = v
		}
		close(p.began)
	})
}

func (p *pipeAnswer) Write(b []byte) (int, error) {
	p.WriteHeader(http.StatusOK)
	return p.body.Write(b)
}

func (p *pipeAnswer) length(method string) int64 {
	var n int64
	if _, err := fmt.Sscan(p.sent.Get("Content-Length"), &n); err != nil || method == http.MethodHead && n < 0 {
		return -1
	}
	return n
}
