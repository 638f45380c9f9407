package outside

import (
	"errors"
	"net/http"
	"testing"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/arm"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/resources/armresources"
)

// TestClientSecretCredential signs in as tenant and as AD FS, and fails with a wrong secret.
func TestClientSecretCredential(t *testing.T) {
	p := newPlatform(t)
	for name, c := range map[string]struct {
		tenant, secret string
		discovery, ok  bool
	}{
		"tenant":       {p.env["AZURE_TENANT_ID"], p.env["AZURE_CLIENT_SECRET"], false, true},
		"adfs":         {"adfs", p.env["AZURE_CLIENT_SECRET"], true, true},
		"wrong secret": {p.env["AZURE_TENANT_ID"], "wrong", false, false},
		"wrong tenant": {"11111111-2222-4333-8444-555555555555", p.env["AZURE_CLIENT_SECRET"], false, false},
	} {
		t.Run(name, func(t *testing.T) {
			cred, err := azidentity.NewClientSecretCredential(c.tenant, p.env["AZURE_CLIENT_ID"], c.secret,
				&azidentity.ClientSecretCredentialOptions{ClientOptions: p.opt, DisableInstanceDiscovery: !c.discovery})
			if err != nil {
				t.Fatal(err)
			}
			tok, err := cred.GetToken(t.Context(), policy.TokenRequestOptions{Scopes: []string{p.env["CASEMATE_ENDPOINT"] + "/.default"}})
			if (err == nil) != c.ok {
				t.Fatalf("GetToken: %v", err)
			}
			if !c.ok {
				return
			}
			client := p.groups(t, cred)
			if _, err := client.CheckExistence(t.Context(), "nothing-of-this-name", nil); err != nil {
				t.Errorf("using the token %.10s…: %v", tok.Token, err)
			}
		})
	}
}

func (p *platform) groups(t *testing.T, cred azcore.TokenCredential) *armresources.ResourceGroupsClient {
	t.Helper()
	c, err := armresources.NewResourceGroupsClient(p.env["AZURE_SUBSCRIPTION_ID"], cred, &arm.ClientOptions{ClientOptions: p.opt, DisableRPRegistration: true})
	p.check(err)
	return c
}

// TestArmresources makes, tags, lists and deletes a resource group.
func TestArmresources(t *testing.T) {
	p := newPlatform(t)
	ctx, client, name := t.Context(), p.groups(t, p.cred), "outside-"+suffix()
	made, err := client.CreateOrUpdate(ctx, name, armresources.ResourceGroup{Location: to.Ptr("local"), Tags: map[string]*string{"ward": to.Ptr("7")}}, nil)
	p.check(err)
	if *made.Name != name || *made.Properties.ProvisioningState != "Succeeded" || *made.Type != "Microsoft.Resources/resourceGroups" {
		t.Errorf("made %+v", made.ResourceGroup)
	}
	patched, err := client.Update(ctx, name, armresources.ResourceGroupPatchable{Tags: map[string]*string{"ward": to.Ptr("8")}}, nil)
	p.check(err)
	if *patched.Tags["ward"] != "8" {
		t.Errorf("tags = %v", patched.Tags)
	}
	found := false
	for pager := client.NewListPager(nil); pager.More(); {
		page, err := pager.NextPage(ctx)
		p.check(err)
		for _, g := range page.Value {
			found = found || *g.Name == name
		}
	}
	if !found {
		t.Errorf("the list lacks %s", name)
	}
	poller, err := client.BeginDelete(ctx, name, nil)
	p.check(err)
	_, err = poller.PollUntilDone(ctx, nil)
	p.check(err)
	_, err = client.Get(ctx, name, nil)
	var re *azcore.ResponseError
	if !errors.As(err, &re) || re.StatusCode != http.StatusNotFound || re.ErrorCode != "ResourceGroupNotFound" {
		t.Errorf("reading what was deleted: %v", err)
	}
}
