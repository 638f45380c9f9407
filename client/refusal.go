package client

import (
	"encoding/json"
	"encoding/xml"
	"io"
	"net/http"
	"strings"
)

// readError reads a refusal in any dialect of the planes: ARM and vault {"error":{…}}, token service {"error":"…"}, registry
// {"errors":[…]}, tracking {"error_code":…}, storage XML.
func readError(res *http.Response) *Error {
	b, _ := io.ReadAll(io.LimitReader(res.Body, 64<<10)) // what there is
	e := parseError(b)
	e.Status = res.StatusCode
	if e.Code == "" {
		e.Code = res.Header.Get("x-ms-error-code")
	}
	if e.Code == "" {
		e.Code = http.StatusText(res.StatusCode)
	}
	return e
}

func parseError(b []byte) *Error {
	text := strings.TrimSpace(string(b))
	if strings.HasPrefix(text, "<") || strings.HasPrefix(text, "\ufeff<") {
		var x struct{ Code, Message string }
		if err := xml.Unmarshal([]byte(strings.TrimPrefix(text, "\ufeff")), &x); err == nil {
			return &Error{Code: x.Code, Message: x.Message}
		}
	}
	type fault struct{ Code, Message string }
	var any struct {
		Error       json.RawMessage `json:"error"`
		Description string          `json:"error_description"`
		Errors      []fault         `json:"errors"`
		ErrorCode   string          `json:"error_code"`
		Code        string          `json:"code"`
		Message     string          `json:"message"`
	}
	if json.Unmarshal(b, &any) != nil {
		return &Error{Message: clip(text)}
	}
	var inner fault
	var word string
	switch {
	case json.Unmarshal(any.Error, &inner) == nil && inner.Code != "":
		return &Error{Code: inner.Code, Message: inner.Message}
	case json.Unmarshal(any.Error, &word) == nil && word != "":
		return &Error{Code: word, Message: any.Description}
	case len(any.Errors) > 0:
		return &Error{Code: any.Errors[0].Code, Message: any.Errors[0].Message}
	case any.ErrorCode != "":
		return &Error{Code: any.ErrorCode, Message: any.Message}
	case any.Code != "":
		return &Error{Code: any.Code, Message: any.Message}
	}
	return &Error{Message: clip(text)}
}

func clip(s string) string {
	if len(s) > 300 {
		return s[:300] + "…"
	}
	return s
}
