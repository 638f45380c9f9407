package client

import (
	"context"
	"fmt"
	"net/http"
)

// vaultVersion is the version of the key vault protocol.
const vaultVersion = "7.4"

func (c *Client) vault(ctx context.Context, method, url string, body, out any) error {
	_, err := c.Do(ctx, Request{Method: method, URL: url + "?api-version=" + vaultVersion, Audience: c.URL("vault"), JSON: body}, out)
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, url, err)
	}
	return nil
}

// CreateKey makes a key, or a new version of one; it returns the key's URL with the version.
func (c *Client) CreateKey(ctx context.Context, vault, name string, parameters Object) (string, error) {
	var out Object
	err := c.vault(ctx, http.MethodPost, c.URL(vault+".vault")+"/keys/"+name+"/create", parameters, &out)
	return Text(out, "key.kid"), err
}

// RotateKey makes a new version of a key like the one before.
func (c *Client) RotateKey(ctx context.Context, vault, name string) (string, error) {
	var out Object
	err := c.vault(ctx, http.MethodPost, c.URL(vault+".vault")+"/keys/"+name+"/rotate", Object{}, &out)
	return Text(out, "key.kid"), err
}

// EnableKey enables or disables a version of a key by its URL.
func (c *Client) EnableKey(ctx context.Context, kid string, enabled bool) error {
	return c.vault(ctx, http.MethodPatch, kid, Object{"attributes": Object{"enabled": enabled}}, nil)
}

// SetSecret keeps a secret.
func (c *Client) SetSecret(ctx context.Context, vault, name, value string) error {
	return c.vault(ctx, http.MethodPut, c.URL(vault+".vault")+"/secrets/"+name, Object{"value": value}, nil)
}

// Secret reads a secret.
func (c *Client) Secret(ctx context.Context, vault, name string) (string, error) {
	var out Object
	err := c.vault(ctx, http.MethodGet, c.URL(vault+".vault")+"/secrets/"+name, nil, &out)
	return Text(out, "value"), err
}
