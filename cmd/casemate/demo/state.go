package demo

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"os"
	"time"

	"casemate.dev/client"
)

// demo is the state that steps hand on.
type demo struct {
	options options
	display *display
	binary  string // this program
	dir     string // of logs and, without --data, of the server's data
	tag     string // distinguishes this run's names from those of an earlier one in the same directory
	server  *server
	people  []*client.Client

	// Principals, at the public listener; at() puts them elsewhere.
	admin, engineer, scientist, outsider, foreigner *client.Client

	// Places in the network.
	desk       *machine // people's subnet of the workspace's network
	neighbour  *machine // another network
	namespaces string   // path prefix of the namespaces of this server's networks
	opened     []*client.Client

	names     names
	jobID     *identity // user-assigned identity of jobs and of the customer's key
	kid       string    // URL of the key with its version
	canary    canary    //
	patients  []patient //
	training  job       //
	holder    job       // lives through the searches
	listener  *wiretap  // on the host, where no node may arrive
	scores    scores    //
	scoreKey  string    // of the online endpoint
	scoreURI  string    //
	nodeDisks []string  // raw disks of the node that was searched
	since     time.Time // start of the run, for the trail
	layout    string    // of the curated image, in the cache
}

// names are the ARM ids and global names of this run.
type names struct {
	group, neighbourGroup                                  string // ARM ids
	vnet                                                   string
	vault, account, registry, workspace, cluster, endpoint string // names
	vaultID, accountID, registryID, workspaceID, clusterID string // ARM ids
	endpointID, workspaceGUID, trackingURI, environmentID  string
	dataID, blobStore, experimentID, modelID, keyURL       string
}

// identity is a managed identity.
type identity struct{ id, principal, client string }

func newDemo(o options, d *display) *demo {
	tag := make([]byte, 4)
	_, _ = rand.Read(tag) // never fails (crypto/rand)
	return &demo{options: o, display: d, tag: hex.EncodeToString(tag), since: time.Now().Add(-time.Second)}
}

// principal makes a client at the public listener.
func (d *demo) principal(name string, c client.Credential) (*client.Client, error) {
	p, err := client.New(d.server.site, c)
	if err != nil {
		return nil, fmt.Errorf("making the client of the %s: %w", name, err)
	}
	d.people = append(d.people, p)
	return p, nil
}

// at is a principal at a machine inside a network; nil is the public listener.
func (d *demo) at(m *machine, who *client.Client) *client.Client {
	if m == nil {
		return who
	}
	c := who.From(m.Dial)
	d.opened = append(d.opened, c)
	return c
}

// inside is a principal at the desk in the workspace's network.
func (d *demo) inside(who *client.Client) *client.Client { return d.at(d.desk, who) }

// subnet is the ARM id of a subnet of the workspace's network.
func (d *demo) subnet(name string) string { return d.names.vnet + "/subnets/" + name }

// close removes what was made and ends what was started, unless it shall be kept.
func (d *demo) close(ctx context.Context, ok bool) error {
	var errs []error
	if d.listener != nil {
		d.listener.close()
	}
	for _, c := range append(d.opened, d.people...) {
		c.Close()
	}
	if d.server == nil {
		return d.removeDirectory(true)
	}
	if d.options.keep {
		errs = append(errs, d.closeMachines())
		d.tellHowToUse()
		return errors.Join(errs...)
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	began := time.Now()
	if d.admin != nil {
		errs = append(errs, d.removeResources(ctx))
	}
	errs = append(errs, d.closeMachines(), d.server.stop())
	err := errors.Join(errs...)
	if err == nil {
		d.display.say("removed the resources and drained the server in %.1f s", time.Since(began).Seconds())
	}
	return errors.Join(err, d.removeDirectory(ok && err == nil))
}

func (d *demo) closeMachines() error {
	var errs []error
	for _, m := range []*machine{d.desk, d.neighbour} {
		if m != nil {
			errs = append(errs, m.close())
		}
	}
	return errors.Join(errs...)
}

// removeDirectory removes the demonstration's own directory; after a failure it stays for who wants to know why.
func (d *demo) removeDirectory(ok bool) error {
	if d.dir == "" {
		return nil
	}
	if !ok {
		d.display.say("logs and data stay in %s", d.dir)
		return nil
	}
	return os.RemoveAll(d.dir)
}

func (d *demo) tellHowToUse() {
	s := d.server
	d.display.say("The server is running (process %d, log %s).", s.cmd.Process.Pid, s.log)
	d.display.say("Use it:    . %s/client/env; curl --cacert $SSL_CERT_FILE --resolve management.%s:%s:127.0.0.1 $CASEMATE_ENDPOINT/healthz", s.data, domain, s.site.Port)
	d.display.say("Stop it:   kill %d", s.cmd.Process.Pid)
	if d.namespaces == "" {
		d.display.say("Remove it: rm -r %s", d.dir)
		return
	}
	// Networks outlive the server, so that a restart finds them.
	d.display.say("Remove it: umount %s-*; rm -r %s-* %s", d.namespaces, d.namespaces, d.dir)
}

// endJob cancels a job that has not ended and waits until it has: an interrupted demonstration may be in the middle of one.
func (d *demo) endJob(ctx context.Context, j job) error {
	for j.id != "" {
		doc, err := d.admin.Get(ctx, j.id, mlVersion)
		if client.StatusOf(err) == http.StatusNotFound {
			return nil
		}
		if err != nil {
			return fmt.Errorf("ending job %s: %w", j.name, err)
		}
		switch client.Text(doc, "properties.status") {
		case "Completed", "Failed", "Canceled":
			return nil
		}
		_ = d.admin.Post(ctx, j.id+"/cancel", mlVersion, nil, nil) // it may have ended in this moment
		if err := client.Sleep(ctx, 50*time.Millisecond); err != nil {
			return fmt.Errorf("ending job %s: %w", j.name, err)
		}
	}
	return nil
}

// removeResources deletes the resource groups, so that networks, namespaces and nodes are gone before the server is.
func (d *demo) removeResources(ctx context.Context) error {
	var errs []error
	for _, j := range []job{d.training, d.holder} {
		errs = append(errs, d.endJob(ctx, j))
	}
	for _, group := range []string{d.names.group, d.names.neighbourGroup} {
		if group == "" {
			continue
		}
		if err := d.admin.Delete(ctx, group, groupVersion); err != nil && client.StatusOf(err) != http.StatusNotFound {
			errs = append(errs, fmt.Errorf("removing what was made: %w", err))
		}
	}
	return errors.Join(errs...)
}
