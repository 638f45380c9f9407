package network

import (
	"context"
	"strings"

	"casemate.dev/resource"
)

const (
	workspaceType      = "Microsoft.MachineLearningServices/workspaces"
	onlineEndpointType = workspaceType + "/onlineEndpoints"
	inferenceMember    = "inference"
)

// target is a resource type that private endpoints lead to.
type target struct {
	typ    string
	groups []group
}

// group is a sub-resource of a target. [Azure private endpoint overview, "Private-link resource"]
type group struct {
	id      string
	members []string // requiredMembers of the private link resource
	zones   []string // requiredZoneNames: Azure's, which templates name
	later   bool     // Azure has it and Casemate does not serve it yet
	// addresses are the endpoint's IP configurations: the names that resolve to each inside the network.
	addresses func(d *resource.Document, domain string) []member
}

// member is one IP configuration of a private endpoint, as it is remembered in Internal.
type member struct {
	Member  string   `json:"member"`
	Address string   `json:"address"`
	Names   []string `json:"names"`  // fully qualified, what clients ask for
	Labels  []string `json:"labels"` // names of the records in the zones of a zone group
}

// targets are the types that private endpoints can lead to.
func targets() []target {
	return []target{
		{typ: "Microsoft.Storage/storageAccounts", groups: []group{
			{id: "blob", members: []string{"blob"}, zones: []string{"privatelink.blob.core.windows.net"}, addresses: named("blob", "blob.core.")},
			{id: "dfs", later: true}, {id: "file", later: true}, {id: "queue", later: true}, {id: "table", later: true}, {id: "web", later: true},
			{id: "blob_secondary", later: true}, {id: "dfs_secondary", later: true}, {id: "queue_secondary", later: true}, {id: "table_secondary", later: true}, {id: "web_secondary", later: true},
		}},
		{typ: "Microsoft.KeyVault/vaults", groups: []group{
			{id: "vault", members: []string{"default"}, zones: []string{"privatelink.vaultcore.azure.net"}, addresses: named("default", "vault.")},
		}},
		{typ: "Microsoft.ContainerRegistry/registries", groups: []group{
			{id: "registry", members: []string{"registry"}, zones: []string{"privatelink.azurecr.io"}, addresses: named("registry", "azurecr.")},
		}},
		{typ: workspaceType, groups: []group{
			{id: "amlworkspace", members: []string{"default"}, zones: []string{"privatelink.api.azureml.ms", "privatelink.notebooks.azure.net"}, addresses: workspaceMembers},
		}},
	}
}

// named is one address for the resource's own name.
func named(memberName, suffix string) func(*resource.Document, string) []member {
	return func(d *resource.Document, domain string) []member {
		name := strings.ToLower(d.ID.Name())
		return []member{{Member: memberName, Names: []string{name + "." + suffix + domain}, Labels: []string{name}}}
	}
}

// workspaceMembers: the workspace plane, and scoring, whose names are not known beforehand. Labels are those of Azure's zone
// privatelink.api.azureml.ms.
func workspaceMembers(d *resource.Document, domain string) []member {
	id, region := strings.ToLower(d.String("properties.workspaceId")), d.Location()
	if id == "" || region == "" {
		return nil
	}
	return []member{
		{Member: "default", Names: []string{id + ".workspace." + domain}, Labels: []string{id + ".workspace." + region}},
		{Member: inferenceMember, Names: []string{"*." + region + ".inference." + domain}, Labels: []string{"*." + id + ".inference." + region}},
	}
}

func targetOf(typ string) *target {
	for _, t := range targets() {
		if strings.EqualFold(t.typ, typ) {
			return &t
		}
	}
	return nil
}

// findGroup finds what a private endpoint asks for.
func findGroup(id resource.ID, groupID string) (group, error) {
	t := targetOf(id.Type())
	if t == nil {
		return group{}, resource.NotSupported("Private endpoints to resources of type '%s' are not supported.", id.Type())
	}
	var known []string
	for _, g := range t.groups {
		switch {
		case !strings.EqualFold(g.id, groupID):
			if !g.later {
				known = append(known, g.id)
			}
		case g.later:
			return group{}, resource.NotSupported("The sub-resource '%s' of '%s' is not served yet.", g.id, id)
		default:
			return g, nil
		}
	}
	return group{}, bad("InvalidGroupId", "The group id '%s' is not valid for resources of type '%s'. Use %s.", groupID, t.typ, strings.Join(known, ", "))
}

// endpointNames are the host names of a workspace's online endpoints: they go before the wildcard, so that two workspaces
// of one region can share a network.
func (p *Provider) endpointNames(ctx context.Context, target string) []string {
	id, err := resource.ParseID(target)
	if err != nil || !id.Is(workspaceType) {
		return nil
	}
	docs, err := p.cfg.Resources.List(ctx, onlineEndpointType, id)
	if err != nil {
		// The type may not be there, or the workspace's key is revoked and its documents closed: the wildcard remains.
		p.cfg.Logger.Debug("listing online endpoints", "workspace", target, "error", err)
		return nil
	}
	var out []string
	for _, d := range docs {
		if region := d.Location(); region != "" && d.State != resource.StateDeleting {
			out = append(out, strings.ToLower(d.ID.Name())+"."+region+".inference."+p.cfg.Domain)
		}
	}
	return out
}
