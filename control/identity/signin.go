package identity

import "context"

// SignIn authenticates a service principal of the home tenant by its secret, for protocols that carry both in a way of
// their own (docker login), and returns an access token as the token endpoint would. The error is that of the endpoint.
func (s *Service) SignIn(_ context.Context, clientID, secret, audience string) (raw string, err error) {
	principal, credential, err := s.authenticateClient(dialectV2, s.HomeTenant(), clientID, secret)
	if err != nil {
		return "", err
	}
	t, err := s.issue(grant{principal: principal, credential: credential, audience: audience, dialect: dialectV2, lifetime: tokenLifetime})
	if err != nil {
		return "", err
	}
	return t.Raw, nil
}
