package identity

import "context"

// RotateDue does what Run does each minute.
func (s *Service) RotateDue(ctx context.Context) error { return s.rotateDue(ctx) }

// ForgetTokens empties the memory of checked tokens.
func (s *Service) ForgetTokens() { s.checked = newTokenCache() }

// ParseFilter and Match are $filter by itself.
func ParseFilter(text string) (func(map[string]any) bool, error) { return parseFilter(text) }
