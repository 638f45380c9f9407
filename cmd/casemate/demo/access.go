package demo

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"casemate.dev/client"
)

// try is a request that must be refused, for the right reason.
type try struct {
	what   string
	expect refusal
	do     func(context.Context) error
}

// refusal is how the server must refuse: with one of these statuses, and saying one of these words; none: whatever it says.
type refusal struct {
	status []int
	says   []string
}

var (
	noToken     = refusal{status: []int{http.StatusUnauthorized}}
	noRole      = refusal{[]int{http.StatusForbidden}, []string{"does not have authorization"}}
	wrongTenant = refusal{[]int{http.StatusUnauthorized}, []string{"It must match the tenant"}}
	notFromHere = refusal{[]int{http.StatusForbidden}, []string{"Public network access is disabled"}}
	// The registry takes tokens of its own only, scoring keys of the endpoint only.
	strange = refusal{status: []int{http.StatusUnauthorized, http.StatusForbidden}}
)

func (f refusal) is(err error) bool {
	said := func(word string) bool { return strings.Contains(err.Error(), word) }
	return slices.Contains(f.status, client.StatusOf(err)) && (len(f.says) == 0 || slices.ContainsFunc(f.says, said))
}

// refused makes each try and demands the expected refusal.
func refused(ctx context.Context, r *record, tries []try) {
	for _, t := range tries {
		err := t.do(ctx)
		saw := "it was allowed"
		if err != nil {
			saw = clip(err.Error())
		}
		r.check(err != nil && t.expect.is(err), t.what, "%s", saw)
	}
}

func clip(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	if len(s) > 220 {
		return s[:220] + "…"
	}
	return s
}

// requests are one request to each plane that holds something of value, as somebody.
func (d *demo) requests(c *client.Client, expect refusal) []try {
	return []try{
		{"read the patients' data", expect, func(ctx context.Context) error {
			_, err := c.Blob(ctx, d.names.account, dataContainer, blobName)
			return err
		}},
		{"overwrite the patients' data", expect, func(ctx context.Context) error {
			return c.PutBlob(ctx, d.names.account, dataContainer, blobName, strings.NewReader("x"), 1)
		}},
		{"read the secret", expect, func(ctx context.Context) error {
			_, err := c.Secret(ctx, d.names.vault, secretName)
			return err
		}},
		{"disable the key", expect, func(ctx context.Context) error { return c.EnableKey(ctx, d.kid, false) }},
		{"read the run", expect, func(ctx context.Context) error {
			_, err := client.Tracking{Client: c, URI: d.names.trackingURI}.Run(ctx, d.training.name)
			return err
		}},
	}
}

// plus are the planes that are open to the public address, and scoring with a key that is none.
func (d *demo) plus(c *client.Client, expect refusal) []try {
	return append(d.requests(c, expect),
		try{"read the workspace", expect, func(ctx context.Context) error {
			_, err := c.Get(ctx, d.names.workspaceID, mlVersion)
			return err
		}},
		try{"score a patient", strange, func(ctx context.Context) error {
			return c.Score(ctx, d.scoreURI, "", client.Object{"measurements": [][]float64{d.patients[0].measurements}}, nil)
		}},
		try{"ask for an image's manifest", strange, func(ctx context.Context) error {
			name, tag, _ := strings.Cut(imageName, ":")
			_, err := c.Do(ctx, client.Request{URL: c.URL(d.names.registry+".azurecr") + "/v2/" + name + "/manifests/" + tag, Audience: client.AudienceRegistry}, nil)
			return err
		}})
}

// drillNoToken stands inside the network, so that nothing but the missing token is in the way.
func (d *demo) drillNoToken(ctx context.Context, r *record) error {
	nobody, err := d.principal("nobody", client.Credential{})
	if err != nil {
		return err
	}
	refused(ctx, r, d.plus(d.inside(nobody), noToken))
	return nil
}

func (d *demo) drillNoRole(ctx context.Context, r *record) error {
	me := d.inside(d.outsider)
	if _, err := me.Token(ctx, client.AudienceStorage); err != nil {
		return err
	}
	r.note("get a valid token", "issued to %s", me.As.ObjectID)
	refused(ctx, r, d.plus(me, noRole))
	return nil
}

func (d *demo) drillOtherTenant(ctx context.Context, r *record) error {
	me := d.inside(d.foreigner)
	if _, err := me.Token(ctx, client.AudienceStorage); err != nil {
		return err
	}
	r.note("get a valid token of tenant "+me.As.Tenant, "issued to its administrator %s", me.As.ObjectID)
	refused(ctx, r, d.plus(me, wrongTenant))
	return nil
}

// drillOutside uses the right tokens at the public listener.
func (d *demo) drillOutside(ctx context.Context, r *record) error {
	scientist, engineer := d.requests(d.scientist, notFromHere), d.requests(d.engineer, notFromHere)
	for i := range scientist {
		if strings.Contains(scientist[i].what, "secret") || strings.Contains(scientist[i].what, "key") {
			scientist[i] = engineer[i]
			scientist[i].what += " as the engineer who made it"
			continue
		}
		scientist[i].what += " as the data scientist"
	}
	refused(ctx, r, append(scientist, try{"score with the endpoint's key", notFromHere, func(ctx context.Context) error {
		return d.scientist.Score(ctx, d.scoreURI, d.scoreKey, client.Object{"measurements": [][]float64{d.patients[0].measurements}}, nil)
	}}))
	return nil
}

// drillNeighbour sits in another virtual network of the same owner.
func (d *demo) drillNeighbour(ctx context.Context, r *record) error {
	me := d.at(d.neighbour, d.scientist)
	if _, err := me.Token(ctx, client.AudienceStorage); err != nil {
		return err
	}
	r.note("sit in network 10.99.0.0/16 as the data scientist", "machine %s gets a token", d.neighbour.address)
	_, err := me.Blob(ctx, d.names.account, dataContainer, blobName)
	r.check(err != nil && client.StatusOf(err) == 0, "read the data by its name", "%s", sawNetwork(err))
	address, err := d.privateAddress(ctx, "blob")
	if err != nil {
		return err
	}
	d.reach(ctx, r, []string{address, d.desk.address})
	// The platform's own address is in every network; it must lead to the token service and the resource manager only.
	platform := d.scientist.From(func(ctx context.Context, network, addr string) (net.Conn, error) {
		return d.neighbour.Dial(ctx, network, net.JoinHostPort("168.63.129.16", d.server.site.Port))
	})
	d.opened = append(d.opened, platform)
	refused(ctx, r, []try{{"read the data through the platform's address in that network", refusal{[]int{http.StatusForbidden}, []string{"private endpoint of its own"}}, func(ctx context.Context) error {
		_, err := platform.Blob(ctx, d.names.account, dataContainer, blobName)
		return err
	}}})
	return nil
}

// reach tries addresses from the neighbouring network, all at once: nothing answers, so each takes as long as one is patient.
func (d *demo) reach(ctx context.Context, r *record, addresses []string) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	errs := make([]error, len(addresses))
	var wait sync.WaitGroup
	for i, to := range addresses {
		wait.Go(func() {
			conn, err := d.neighbour.Dial(ctx, "tcp", net.JoinHostPort(to, d.server.site.Port))
			if conn != nil {
				_ = conn.Close()
			}
			errs[i] = err
		})
	}
	wait.Wait()
	for i, to := range addresses {
		r.check(errs[i] != nil && !strings.Contains(errs[i].Error(), "refused"), "connect to the private address "+to, "%s", sawNetwork(errs[i]))
	}
}

func sawNetwork(err error) string {
	if err == nil {
		return "it was reached"
	}
	return clip(err.Error())
}

// privateAddress is where a private endpoint of the workspace's network is.
func (d *demo) privateAddress(ctx context.Context, endpoint string) (string, error) {
	doc, err := d.engineer.Get(ctx, d.names.group+"/providers/Microsoft.Network/privateEndpoints/"+endpoint, networkVersion)
	if err != nil {
		return "", err
	}
	configs, _ := client.Dig(doc, "properties.customDnsConfigs").([]any)
	for _, c := range configs {
		if ips, _ := client.Dig(c, "ipAddresses").([]any); len(ips) > 0 {
			return fmt.Sprint(ips[0]), nil
		}
	}
	return "", fmt.Errorf("the private endpoint %s has no address", endpoint)
}

// drillSecret is about somebody with rights, at the right place, who asks for more.
func (d *demo) drillSecret(ctx context.Context, r *record) error {
	me := d.inside(d.scientist)
	secret, err := d.inside(d.engineer).Secret(ctx, d.names.vault, secretName)
	if err != nil {
		return err
	}
	r.check(strings.Contains(secret, string(d.canary)), "read the secret as the engineer", "%d characters", len(secret))
	refused(ctx, r, []try{
		{"read the secret as the data scientist, inside the network", noRole, func(ctx context.Context) error {
			_, err := me.Secret(ctx, d.names.vault, secretName)
			return err
		}},
		{"list the workspace's keys", noRole, func(ctx context.Context) error {
			return me.Post(ctx, d.names.workspaceID+"/listKeys", mlVersion, nil, nil)
		}},
		{"take a role on the vault", noRole, func(ctx context.Context) error {
			return me.AssignRole(ctx, d.names.vaultID, roleSecretsOfficer, me.As.ObjectID)
		}},
	})
	return nil
}
