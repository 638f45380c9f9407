// Package crash kills a live server at random moments under load, starts it again and demands what was promised: all that
// was acknowledged is there, and what was not is there wholly or not at all. It does the same with a disk that fills up.
//
// The clients remember what they were told, and nothing else: every check goes through the public interface.
package crash

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"casemate.dev/test/harness"
)

// world is what the clients work on.
type world struct {
	*harness.Server
	group, vault, account, sealed   string // ARM ids; sealed is an account under a customer's key
	workspace                       string // ARM id; under the same key
	vaultHost, blobHost, sealedHost string
	student                         *harness.Principal
	clients                         []client
}

// client does one kind of write again and again, and later checks it. Each has at most one request in flight.
type client interface {
	// step does one write. An error means that nobody knows whether it happened.
	step(ctx context.Context, w *world) error
	// check demands every acknowledged write, and settles what the last unacknowledged one has come to.
	check(t *testing.T, w *world)
}

func newWorld(t *testing.T, o harness.Options) *world {
	t.Helper()
	w := &world{Server: harness.Start(t, o)}
	w.group = w.NewGroup(t)
	w.vault, w.vaultHost = w.NewVault(t, w.group, map[string]any{"enablePurgeProtection": true})
	w.account, w.blobHost = w.NewAccount(t, w.group, nil)
	w.Grant(t, w.vault, harness.RoleVaultAdministrator, w.Admin)
	w.Grant(t, w.group, harness.RoleBlobOwner, w.Admin)
	w.sealUnderCustomerKey(t)
	for _, host := range []string{w.blobHost, w.sealedHost} {
		w.NewContainer(t, host, "data")
	}
	w.student = w.NewPrincipal(t, "student")
	if a, err := w.PutBlob(t.Context(), w.Admin, w.blobHost, "/data/lecture", []byte("lecture")); err != nil || a.Status != http.StatusCreated {
		t.Fatal(a, err)
	}
	w.clients = []client{
		&blobs{host: w.blobHost, name: "plain"}, &blobs{host: w.sealedHost, name: "sealed"}, &blocks{host: w.blobHost}, &overwrites{host: w.sealedHost},
		&secrets{}, &rotations{}, &assets{}, &tags{}, &groups{}, &assignments{},
	}
	return w
}

// sealUnderCustomerKey makes an account whose data lies under a vault's key that the client rotations moves on.
func (w *world) sealUnderCustomerKey(t *testing.T) {
	t.Helper()
	w.Must(t, harness.Call{Method: http.MethodPost, URL: w.keyURL("master", "/create"), As: w.Admin, Body: map[string]any{"kty": "RSA", "key_size": 2048}})
	identity := w.group + "/providers/Microsoft.ManagedIdentity/userAssignedIdentities/sealer"
	made := w.MustARM(t, http.MethodPut, identity, "2023-01-31", map[string]any{"location": "local"})
	sealer := &harness.Principal{ObjectID: made.Field("properties.principalId")}
	w.Grant(t, w.vault, harness.RoleCryptoEncryption, sealer)
	w.Grant(t, w.account, harness.RoleBlobContributor, sealer)
	name := "sa" + harness.Suffix()
	w.sealed, w.sealedHost = w.group+"/providers/Microsoft.Storage/storageAccounts/"+name, name+".blob.core"
	w.MustARM(t, http.MethodPut, w.sealed, harness.VersionStorage, map[string]any{"location": "local", "kind": "StorageV2", "sku": map[string]any{"name": "Standard_LRS"},
		"identity": map[string]any{"type": "UserAssigned", "userAssignedIdentities": map[string]any{identity: map[string]any{}}},
		"properties": map[string]any{"encryption": map[string]any{"keySource": "Microsoft.Keyvault", "identity": map[string]any{"userAssignedIdentity": identity},
			"keyvaultproperties": map[string]any{"keyname": "master", "keyvaulturi": w.URL(w.vaultHost, "")}}}})
	w.workspace = w.group + "/providers/Microsoft.MachineLearningServices/workspaces/ws-" + harness.Suffix()
	w.MustARM(t, http.MethodPut, w.workspace, harness.VersionML, map[string]any{"location": "local",
		"identity": map[string]any{"type": "UserAssigned", "userAssignedIdentities": map[string]any{identity: map[string]any{}}},
		"properties": map[string]any{"storageAccount": w.account, "keyVault": w.vault, "primaryUserAssignedIdentity": identity,
			"encryption": map[string]any{"status": "Enabled", "identity": map[string]any{"userAssignedIdentity": identity},
				"keyVaultProperties": map[string]any{"keyVaultArmId": w.vault, "keyIdentifier": w.URL(w.vaultHost, "/keys/master")}}}})
}

func (w *world) keyURL(name, rest string) string {
	return w.URL(w.vaultHost, "/keys/"+name+rest+"?api-version="+harness.VersionSecret)
}

// acknowledged sends and says whether the answer was a success. An error is a doubt; a refusal is an error, too: under
// these loads there is nothing to refuse.
func (w *world) acknowledged(ctx context.Context, c harness.Call) (harness.Answer, error) {
	a, err := w.Send(ctx, c)
	if err == nil && a.Status >= 300 {
		err = fmt.Errorf("%s %s = %v", c.Method, c.URL, a)
	}
	return a, err
}

// work runs all clients until ctx ends. Doubts after that are expected; before, they are faults unless tolerated.
func (w *world) work(ctx context.Context, t *testing.T, tolerate bool) {
	var wg sync.WaitGroup
	for _, c := range w.clients {
		wg.Go(func() {
			for ctx.Err() == nil {
				err := c.step(ctx, w)
				if err == nil {
					continue
				}
				if ctx.Err() == nil && !tolerate && !brokenConnection(err) {
					t.Errorf("%T: %v", c, err)
				}
				return
			}
		})
	}
	wg.Wait()
}

// brokenConnection is what a client sees of a server that dies.
func brokenConnection(err error) bool {
	for _, s := range []string{"EOF", "connection reset", "connection refused", "broken pipe", "closed network connection", "server closed"} {
		if strings.Contains(err.Error(), s) {
			return true
		}
	}
	return false
}

func (w *world) check(t *testing.T) {
	t.Helper()
	for _, c := range w.clients {
		c.check(t, w)
	}
}

// rounds is how often the server is killed: CASEMATE_CRASH_ROUNDS, else 15, and 5 where tests are to be short.
func rounds(t *testing.T) int {
	if n, err := strconv.Atoi(os.Getenv("CASEMATE_CRASH_ROUNDS")); err == nil {
		return n
	}
	if testing.Short() {
		return 5
	}
	return 15
}

// TestKilledAtRandom is the loop.
func TestKilledAtRandom(t *testing.T) {
	w := newWorld(t, harness.Options{})
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	for round := range rounds(t) {
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); w.work(ctx, t, false) }()
		time.Sleep(time.Duration(random.IntN(1200)) * time.Millisecond) // the moment of the crash: any
		w.Kill()
		stop()
		<-done
		if random.IntN(2) == 0 {
			verifyTrail(t, w.Server)
		}
		began := time.Now()
		w.Restart(t)
		if took := time.Since(began); took > 20*time.Second {
			t.Errorf("round %d: %v to ready after the crash", round, took)
		}
		w.check(t)
		if t.Failed() {
			t.Fatalf("round %d", round)
		}
	}
	w.Stop(t)
	verifyTrail(t, w.Server)
	w.Restart(t)
	w.check(t)
	for _, c := range w.clients {
		t.Logf("%T: %v", c, c)
	}
}

// verifyTrail checks the audit trail of a stopped server with the operator's own command.
func verifyTrail(t *testing.T, s *harness.Server) {
	t.Helper()
	if out, err := s.Run("verify", "--data", s.Dir); err != nil || !strings.Contains(out, `"intact":true`) {
		t.Errorf("verify: %v\n%s", err, out)
	}
}
