package vault

import (
	"crypto/rand"
	"net/http"

	"casemate.dev/resource"
)

// maxRandom is the most octets that one request for random bytes gets.
const maxRandom = 128

func (s *Service) randomBytes(w http.ResponseWriter, r *resource.Request) error {
	if _, err := s.vaultOf(r); err != nil {
		return err
	}
	var body struct {
		Count int `json:"count"`
	}
	if err := readBody(r, &body); err != nil {
		return err
	}
	if body.Count < 1 || body.Count > maxRandom {
		return badParameter("The property 'count' must be a number from 1 to %d.", maxRandom)
	}
	out := make([]byte, body.Count)
	rand.Read(out) //nolint:errcheck // never fails (crypto/rand)
	return writeJSON(w, map[string]octets{"value": out})
}
