package client

import (
	"context"
	"fmt"
	"net/http"
)

func (c *Client) directory(ctx context.Context, path string, body, out any) error {
	_, err := c.Do(ctx, Request{Method: http.MethodPost, URL: c.URL("graph") + "/v1.0/" + path, Audience: c.URL("graph"), JSON: body}, out)
	if err != nil {
		return fmt.Errorf("POST %s: %w", path, err)
	}
	return nil
}

// CreateServicePrincipal makes an application with its service principal and one secret.
func (c *Client) CreateServicePrincipal(ctx context.Context, name string) (Credential, error) {
	var app, sp struct {
		ID    string `json:"id"`
		AppID string `json:"appId"`
	}
	var secret struct {
		Text string `json:"secretText"`
	}
	if err := c.directory(ctx, "applications", Object{"displayName": name}, &app); err != nil {
		return Credential{}, err
	}
	if err := c.directory(ctx, "servicePrincipals", Object{"appId": app.AppID}, &sp); err != nil {
		return Credential{}, err
	}
	if err := c.directory(ctx, "applications/"+app.ID+"/addPassword", Object{"passwordCredential": Object{"displayName": name}}, &secret); err != nil {
		return Credential{}, err
	}
	return Credential{Tenant: c.As.Tenant, ClientID: app.AppID, Secret: secret.Text, ObjectID: sp.ID}, nil
}

// CreateTenant makes another tenant and returns its administrator.
func (c *Client) CreateTenant(ctx context.Context, name string) (Credential, error) {
	var t struct {
		ID    string `json:"id"`
		Admin struct {
			AppID  string `json:"appId"`
			ID     string `json:"id"`
			Secret string `json:"secretText"`
		} `json:"administrator"`
	}
	if err := c.directory(ctx, "tenants", Object{"displayName": name}, &t); err != nil {
		return Credential{}, err
	}
	return Credential{Tenant: t.ID, ClientID: t.Admin.AppID, Secret: t.Admin.Secret, ObjectID: t.Admin.ID}, nil
}
