package demo

import (
	"context"
	"fmt"
	"os"
	"strings"

	"casemate.dev/client"
)

// API versions, one for each provider.
const (
	groupVersion    = "2021-04-01"
	networkVersion  = "2024-05-01"
	machineVersion  = "2025-01-01"
	identityVersion = "2023-01-31"
	vaultVersion    = "2023-07-01"
	storageVersion  = "2023-05-01"
	registryVersion = "2023-07-01"
	mlVersion       = "2024-10-01"
	trailVersion    = "2026-01-01"
)

// Built-in roles by id.
const (
	roleOwner                 = "8e3af657-a8ff-443c-a75c-2fe8c4bcb635"
	roleDataScientist         = "f6c7c914-8db3-469d-8ca1-694a8f32e121"
	roleBlobContributor       = "ba92f5b4-2d11-453d-a403-e96b0029c9fe"
	roleCryptoOfficer         = "14b46e9e-c2b7-41b4-b07b-48a6ebf60603"
	roleCryptoServiceUser     = "e147488a-f6f5-4113-8e2d-b22465e65bf6"
	roleSecretsOfficer        = "b86a8fe4-44ce-4948-aee5-eccb2c155cd7"
	roleAcrPull, roleAcrPush  = "7f951dda-4ed3-4680-a7ca-43fe172d538d", "8311e382-0749-4cb8-b61a-304f252e45ec"
	location                  = "westeurope"
	keyName, secretName       = "workspace-key", "billing-system-password"
	dataContainer, blobName   = "patients", "wisconsin/breast_cancer.csv"
	trainingNet, scoringNet   = "training", "scoring"
	endpointsNet, peopleNet   = "endpoints", "people"
	imageName                 = "casemate/sklearn:1"
	modelName                 = "breast-cancer"
	deploymentName            = "blue"
	nodeSize                  = "Standard_DS3_v2"
	maxNodes                  = 2
	scratchCopies             = 3
	bigBlobBytes              = 160 << 20
	holdFor                   = 10 * 60 // seconds; the job is cancelled long before
	peoplePrefix, nodesPrefix = "10.20.3.0/24", "10.20.1.0/24"
)

// makePrincipals is the administrator's part: people, and a resource group that belongs to the engineer.
func (d *demo) makePrincipals(ctx context.Context, r *record) error {
	subscription := "/subscriptions/" + d.server.env["AZURE_SUBSCRIPTION_ID"]
	for name, to := range map[string]**client.Client{"platform engineer": &d.engineer, "data scientist": &d.scientist, "outsider": &d.outsider} {
		c, err := d.admin.CreateServicePrincipal(ctx, name+" "+d.tag)
		if err != nil {
			return err
		}
		if *to, err = d.principal(name, c); err != nil {
			return err
		}
		r.note("make the principal of the "+name, "object %s", c.ObjectID)
	}
	foreign, err := d.admin.CreateTenant(ctx, "Another company "+d.tag)
	if err != nil {
		return err
	}
	if d.foreigner, err = d.principal("foreigner", foreign); err != nil {
		return err
	}
	r.note("make another tenant with an administrator of its own", "tenant %s", foreign.Tenant)
	d.names.group, d.names.neighbourGroup = subscription+"/resourceGroups/oncology-"+d.tag, subscription+"/resourceGroups/neighbour-"+d.tag
	for _, group := range []string{d.names.group, d.names.neighbourGroup} {
		if _, err := d.admin.Put(ctx, group, groupVersion, client.Object{"location": location}); err != nil {
			return err
		}
		if err := d.admin.AssignRole(ctx, group, roleOwner, d.engineer.As.ObjectID); err != nil {
			return err
		}
	}
	r.note("give the engineer, and nobody else, Owner of two resource groups", "%s and its neighbour", d.names.group)
	return nil
}

// allow and deny are rows of a network security group.
func rule(name string, priority int, direction, access, from, to, ports string) client.Object {
	return client.Object{"name": name, "properties": client.Object{"priority": priority, "direction": direction, "access": access, "protocol": "*",
		"sourceAddressPrefix": from, "sourcePortRange": "*", "destinationAddressPrefix": to, "destinationPortRange": ports}}
}

// nodeRules let a subnet of nodes reach private endpoints and the token service, and nobody reach the nodes but, for scoring, the platform.
func nodeRules(port string, in ...client.Object) []any {
	rules := []any{
		rule("endpoints", 100, "Outbound", "Allow", "*", "10.20.0.0/24", port),
		rule("tokens", 110, "Outbound", "Allow", "*", "AzureActiveDirectory", port),
		rule("nothing-else-out", 4000, "Outbound", "Deny", "*", "*", "*"),
		rule("nothing-else-in", 4000, "Inbound", "Deny", "*", "*", "*"),
	}
	for _, r := range in {
		rules = append(rules, r)
	}
	return rules
}

// makeNetwork makes the virtual network with its subnets and rules, and the desk where people of it sit.
func (d *demo) makeNetwork(ctx context.Context, r *record) error {
	provider := d.names.group + "/providers/Microsoft.Network/"
	groups := map[string][]any{
		trainingNet: nodeRules(d.server.site.Port),
		scoringNet:  nodeRules(d.server.site.Port, rule("platform", 100, "Inbound", "Allow", "AzureLoadBalancer", "*", "5001")),
	}
	for name, rules := range groups {
		if _, err := d.engineer.Put(ctx, provider+"networkSecurityGroups/"+name, networkVersion, client.Object{"location": location, "properties": client.Object{"securityRules": rules}}); err != nil {
			return err
		}
	}
	subnet := func(name, prefix string) client.Object {
		p := client.Object{"addressPrefix": prefix}
		if groups[name] != nil {
			p["networkSecurityGroup"] = client.Object{"id": provider + "networkSecurityGroups/" + name}
		}
		return client.Object{"name": name, "properties": p}
	}
	d.names.vnet = provider + "virtualNetworks/hospital"
	_, err := d.engineer.Put(ctx, d.names.vnet, networkVersion, client.Object{"location": location, "properties": client.Object{
		"addressSpace": client.Object{"addressPrefixes": []any{"10.20.0.0/16"}},
		"subnets":      []any{subnet(endpointsNet, "10.20.0.0/24"), subnet(trainingNet, nodesPrefix), subnet(scoringNet, "10.20.2.0/24"), subnet(peopleNet, peoplePrefix)},
	}})
	if err != nil {
		return err
	}
	r.note("make a virtual network with subnets for endpoints, training, scoring and people", "%s, node subnets closed but for endpoints and tokens", "10.20.0.0/16")
	if d.desk, err = d.attach(ctx, d.names.group, d.subnet(peopleNet), "desk"); err != nil {
		return err
	}
	r.note("attach a person's machine to the people's subnet", "%s, process %d in its namespace", d.desk.address, d.desk.cmd.Process.Pid)
	return d.makeNeighbour(ctx, r)
}

// makeNeighbour makes another virtual network of the same owner, with a machine in it.
func (d *demo) makeNeighbour(ctx context.Context, r *record) error {
	vnet := d.names.neighbourGroup + "/providers/Microsoft.Network/virtualNetworks/neighbour"
	_, err := d.engineer.Put(ctx, vnet, networkVersion, client.Object{"location": location, "properties": client.Object{
		"addressSpace": client.Object{"addressPrefixes": []any{"10.99.0.0/16"}},
		"subnets":      []any{client.Object{"name": "desks", "properties": client.Object{"addressPrefix": "10.99.0.0/24"}}}}})
	if err != nil {
		return err
	}
	if d.neighbour, err = d.attach(ctx, d.names.neighbourGroup, vnet+"/subnets/desks", "desk"); err != nil {
		return err
	}
	r.note("make a neighbouring network with a machine", "10.99.0.0/16, %s", d.neighbour.address)
	return nil
}

// attach makes an attached machine and enters its namespace.
func (d *demo) attach(ctx context.Context, group, subnet, name string) (*machine, error) {
	id := group + "/providers/Casemate.Network/attachedMachines/" + name
	doc, err := d.engineer.Put(ctx, id, machineVersion, client.Object{"location": location, "properties": client.Object{"subnet": client.Object{"id": subnet}}})
	if err != nil {
		return nil, err
	}
	path := client.Text(doc, "properties.namespacePath")
	if _, err := os.Stat(path); err != nil {
		return nil, fmt.Errorf("looking for the machine's namespace: %w", err)
	}
	m, err := enter(d.binary, path, name)
	if err != nil {
		return nil, err
	}
	d.namespaces = path[:strings.LastIndexByte(path, '-')]
	m.id, m.address = id, client.Text(doc, "properties.privateIPAddress")
	return m, nil
}

// makeIdentity makes the identity that jobs act as and that the customer's key is used by.
func (d *demo) makeIdentity(ctx context.Context, r *record) error {
	id := d.names.group + "/providers/Microsoft.ManagedIdentity/userAssignedIdentities/jobs"
	doc, err := d.engineer.Put(ctx, id, identityVersion, client.Object{"location": location})
	if err != nil {
		return err
	}
	d.jobID = &identity{id, client.Text(doc, "properties.principalId"), client.Text(doc, "properties.clientId")}
	r.check(d.jobID.principal != "" && d.jobID.client != "", "make a user-assigned identity", "principal %s; it has no secret", d.jobID.principal)
	return nil
}

// endpoint makes a private endpoint and says at which addresses.
func (d *demo) privateEndpoint(ctx context.Context, name, target, group string) (string, error) {
	id := d.names.group + "/providers/Microsoft.Network/privateEndpoints/" + name
	doc, err := d.engineer.Put(ctx, id, networkVersion, client.Object{"location": location, "properties": client.Object{
		"subnet": client.Object{"id": d.subnet(endpointsNet)},
		"privateLinkServiceConnections": []any{client.Object{"name": name, "properties": client.Object{
			"privateLinkServiceId": target, "groupIds": []any{group}}}},
	}})
	if err != nil {
		return "", err
	}
	configs, _ := client.Dig(doc, "properties.customDnsConfigs").([]any)
	var found []string
	for _, c := range configs {
		if ips, _ := client.Dig(c, "ipAddresses").([]any); len(ips) > 0 {
			found = append(found, fmt.Sprintf("%v → %v", client.Text(c, "fqdn"), ips[0]))
		}
	}
	if len(found) == 0 {
		return "", fmt.Errorf("the private endpoint %s has no address", id)
	}
	return strings.Join(found, ", "), nil
}

// makeVault makes the vault, locked down from its first moment, and the customer's key in it, from inside the network.
func (d *demo) makeVault(ctx context.Context, r *record) error {
	d.names.vault = "vault-" + d.tag
	d.names.vaultID = d.names.group + "/providers/Microsoft.KeyVault/vaults/" + d.names.vault
	_, err := d.engineer.Put(ctx, d.names.vaultID, vaultVersion, client.Object{"location": location, "properties": client.Object{
		"tenantId": d.engineer.As.Tenant, "sku": client.Object{"family": "A", "name": "premium"}, "enableRbacAuthorization": true,
		"enablePurgeProtection": true, "softDeleteRetentionInDays": 7, "publicNetworkAccess": "Disabled"}})
	if err != nil {
		return err
	}
	at, err := d.privateEndpoint(ctx, "vault", d.names.vaultID, "vault")
	if err != nil {
		return err
	}
	r.note("make a vault with purge protection, reached by private endpoint only", "%s", at)
	for role, principal := range map[string]string{roleCryptoOfficer: d.engineer.As.ObjectID, roleSecretsOfficer: d.engineer.As.ObjectID, roleCryptoServiceUser: d.jobID.principal} {
		if err := d.engineer.AssignRole(ctx, d.names.vaultID, role, principal); err != nil {
			return err
		}
	}
	inside := d.inside(d.engineer)
	if d.kid, err = inside.CreateKey(ctx, d.names.vault, keyName, client.Object{"kty": "RSA", "key_size": 3072}); err != nil {
		return err
	}
	d.names.keyURL = d.kid[:strings.LastIndexByte(d.kid, '/')]
	r.note("make an RSA-3072 key, from inside the network", "%s", d.kid)
	d.canary = newCanary()
	if err := inside.SetSecret(ctx, d.names.vault, secretName, d.canary.mark("secret")); err != nil {
		return err
	}
	r.note("keep a secret that is no business of the data scientist", "%s", secretName)
	return nil
}

func (d *demo) userAssigned() client.Object {
	return client.Object{"type": "UserAssigned", "userAssignedIdentities": client.Object{d.jobID.id: client.Object{}}}
}

func (d *demo) makeStorage(ctx context.Context, r *record) error {
	d.names.account = "patients" + d.tag
	d.names.accountID = d.names.group + "/providers/Microsoft.Storage/storageAccounts/" + d.names.account
	doc, err := d.engineer.Put(ctx, d.names.accountID, storageVersion, client.Object{
		"location": location, "kind": "StorageV2", "sku": client.Object{"name": "Standard_LRS"}, "identity": d.userAssigned(),
		"properties": client.Object{"publicNetworkAccess": "Disabled", "allowSharedKeyAccess": false, "allowBlobPublicAccess": false, "minimumTlsVersion": "TLS1_2",
			"encryption": client.Object{"keySource": "Microsoft.Keyvault", "identity": client.Object{"userAssignedIdentity": d.jobID.id},
				"keyvaultproperties": client.Object{"keyvaulturi": d.engineer.URL(d.names.vault + ".vault"), "keyname": keyName}}}})
	if err != nil {
		return err
	}
	effective := client.Text(doc, currentKey)
	r.check(strings.EqualFold(effective, d.kid), "make a storage account under the customer's key, without shared keys", "effective key version %s", effective)
	at, err := d.privateEndpoint(ctx, "blob", d.names.accountID, "blob")
	if err != nil {
		return err
	}
	r.note("make its private endpoint", "%s", at)
	_, err = d.engineer.Put(ctx, d.names.accountID+"/blobServices/default/containers/"+dataContainer, storageVersion, client.Object{"properties": client.Object{"publicAccess": "None"}})
	if err != nil {
		return err
	}
	for _, principal := range []string{d.scientist.As.ObjectID, d.jobID.principal} {
		if err := d.engineer.AssignRole(ctx, d.names.accountID, roleBlobContributor, principal); err != nil {
			return err
		}
	}
	r.note("let the data scientist and the jobs' identity read and write its blobs", "Storage Blob Data Contributor")
	return nil
}

// currentKey is where an account shows the version of the key in use.
const currentKey = "properties.encryption.keyvaultproperties.currentVersionedKeyIdentifier"

func (d *demo) makeRegistry(ctx context.Context, r *record) error {
	d.names.registry = "images" + d.tag
	d.names.registryID = d.names.group + "/providers/Microsoft.ContainerRegistry/registries/" + d.names.registry
	_, err := d.engineer.Put(ctx, d.names.registryID, registryVersion, client.Object{"location": location, "sku": client.Object{"name": "Premium"},
		"properties": client.Object{"publicNetworkAccess": "Disabled", "adminUserEnabled": false}})
	if err != nil {
		return err
	}
	at, err := d.privateEndpoint(ctx, "registry", d.names.registryID, "registry")
	if err != nil {
		return err
	}
	for principal, role := range map[string]string{d.engineer.As.ObjectID: roleAcrPush, d.jobID.principal: roleAcrPull} {
		if err := d.engineer.AssignRole(ctx, d.names.registryID, role, principal); err != nil {
			return err
		}
	}
	r.note("make a registry, reached by private endpoint only", "%s", at)
	return nil
}

func (d *demo) makeWorkspace(ctx context.Context, r *record) error {
	n := &d.names
	n.workspace = "oncology-" + d.tag
	n.workspaceID = n.group + "/providers/Microsoft.MachineLearningServices/workspaces/" + n.workspace
	doc, err := d.engineer.Put(ctx, n.workspaceID, mlVersion, client.Object{"location": location, "identity": d.userAssigned(), "properties": client.Object{
		"storageAccount": n.accountID, "keyVault": n.vaultID, "containerRegistry": n.registryID, "publicNetworkAccess": "Disabled", "hbiWorkspace": true,
		"primaryUserAssignedIdentity": d.jobID.id,
		"encryption": client.Object{"status": "Enabled", "identity": client.Object{"userAssignedIdentity": d.jobID.id},
			"keyVaultProperties": client.Object{"keyVaultArmId": n.vaultID, "keyIdentifier": n.keyURL}},
		"serverlessComputeSettings": client.Object{"serverlessComputeCustomSubnet": d.subnet(scoringNet)}}})
	if err != nil {
		return err
	}
	n.workspaceGUID, n.trackingURI = client.Text(doc, "properties.workspaceId"), client.Text(doc, "properties.mlFlowTrackingUri")
	n.blobStore = "azureml-blobstore-" + n.workspaceGUID
	effective := client.Text(doc, "properties.encryption.keyVaultProperties.effectiveKeyIdentifier")
	r.check(strings.EqualFold(effective, d.kid), "make a workspace whose metadata is under the customer's key", "effective key version %s", effective)
	at, err := d.privateEndpoint(ctx, "workspace", n.workspaceID, "amlworkspace")
	if err != nil {
		return err
	}
	r.note("make its private endpoint", "%s", at)
	for _, principal := range []string{d.scientist.As.ObjectID, d.jobID.principal} {
		if err := d.engineer.AssignRole(ctx, n.workspaceID, roleDataScientist, principal); err != nil {
			return err
		}
	}
	r.note("let the data scientist and the jobs' identity work in it", "AzureML Data Scientist")
	return nil
}

func (d *demo) makeCluster(ctx context.Context, r *record) error {
	d.names.cluster = "nodes"
	d.names.clusterID = d.names.workspaceID + "/computes/nodes"
	doc, err := d.engineer.Put(ctx, d.names.clusterID, mlVersion, client.Object{"location": location, "identity": d.userAssigned(), "properties": client.Object{
		"computeType": "AmlCompute", "properties": client.Object{"vmSize": nodeSize, "enableNodePublicIp": false, "subnet": client.Object{"id": d.subnet(trainingNet)},
			"scaleSettings": client.Object{"minNodeCount": 0, "maxNodeCount": maxNodes}}}})
	if err != nil {
		return err
	}
	nodes := client.Dig(doc, "properties.properties.currentNodeCount")
	r.check(fmt.Sprint(nodes) == "0", "make a cluster of 0 to 2 nodes in the training subnet, without public addresses", "%v nodes now", nodes)
	return nil
}

// checkLockedDown reads back that public access is off everywhere.
func (d *demo) checkLockedDown(ctx context.Context, r *record) error {
	for id, version := range map[string]string{d.names.vaultID: vaultVersion, d.names.accountID: storageVersion, d.names.registryID: registryVersion, d.names.workspaceID: mlVersion} {
		doc, err := d.engineer.Get(ctx, id, version)
		if err != nil {
			return err
		}
		access := client.Text(doc, "properties.publicNetworkAccess")
		r.check(access == "Disabled", "read publicNetworkAccess of "+id[strings.LastIndexByte(id, '/')+1:], "%s", access)
	}
	return nil
}
