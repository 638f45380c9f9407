package demo

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"casemate.dev/client"
)

const (
	bigBlob       = "archive.bin"
	revokedWithin = time.Second
	probePause    = 10 * time.Millisecond
)

// everything reads each kind of data that the customer's key protects, and says how much it was.
func (d *demo) everything(ctx context.Context, me *client.Client) (string, error) {
	file, err := me.Blob(ctx, d.names.account, dataContainer, blobName)
	if err != nil {
		return "", err
	}
	if !bytes.Equal(file, writePatients(d.patients, d.canary.mark("row"))) {
		return "", errors.New("the patients' data is not what was uploaded")
	}
	t := client.Tracking{Client: me, URI: d.names.trackingURI}
	model, err := t.Artifact(ctx, d.names.experimentID, d.training.name, "model/model.pkl")
	if err != nil {
		return "", err
	}
	log, err := d.userLog(ctx, me, d.training)
	if err != nil {
		return "", err
	}
	if _, err := me.Get(ctx, d.training.id, mlVersion); err != nil {
		return "", err
	}
	run, err := t.Run(ctx, d.training.name)
	if err != nil {
		return "", err
	}
	if !strings.Contains(fmt.Sprint(run), d.canary.mark("tag")) {
		return "", errors.New("the run has lost its tag")
	}
	return fmt.Sprintf("data %d bytes, model %d, log %d, the job and its run", len(file), len(model), len(log)), nil
}

// drillRotation makes a new version of the key while the data is being read.
func (d *demo) drillRotation(ctx context.Context, r *record) error {
	me, engineer := d.inside(d.scientist), d.inside(d.engineer)
	reading, stop := context.WithCancel(ctx)
	defer stop()
	var reads, failures atomic.Int64
	var g errgroup.Group
	g.Go(func() error {
		for reading.Err() == nil {
			if _, err := me.Blob(ctx, d.names.account, dataContainer, blobName); err != nil {
				failures.Add(1)
			}
			reads.Add(1)
		}
		return nil
	})
	began := time.Now()
	kid, err := engineer.RotateKey(ctx, d.names.vault, keyName)
	if err != nil {
		return err
	}
	r.check(kid != d.kid, "make a new version of the key", "%s", kid)
	for id, at := range map[string]struct{ version, path string }{
		d.names.accountID:   {storageVersion, currentKey},
		d.names.workspaceID: {mlVersion, "properties.encryption.keyVaultProperties.effectiveKeyIdentifier"},
	} {
		if err := d.untilKey(ctx, id, at.version, at.path, kid); err != nil {
			return err
		}
		r.note("ask which version "+id[strings.LastIndexByte(id, '/')+1:]+" uses", "the new one, %d ms after the rotation", time.Since(began).Milliseconds())
	}
	d.kid = kid
	stop()
	_ = g.Wait() // it returns nil
	r.check(failures.Load() == 0, "read the data all the while", "%d reads, %d failed", reads.Load(), failures.Load())
	saw, err := d.everything(ctx, me)
	if err != nil {
		return err
	}
	r.note("read everything again", "%s", saw)
	return nil
}

// untilKey polls a resource until it shows a version of the key.
func (d *demo) untilKey(ctx context.Context, id, version, path, kid string) error {
	for {
		doc, err := d.engineer.Get(ctx, id, version)
		if err != nil {
			return err
		}
		if strings.EqualFold(client.Text(doc, path), kid) {
			return nil
		}
		if err := client.Sleep(ctx, 20*time.Millisecond); err != nil {
			return fmt.Errorf("waiting for %s to use the new version: %w; it uses %s", id, err, client.Text(doc, path))
		}
	}
}

// archive is a large blob of random bytes, and its digest.
func archive() (io.Reader, [32]byte) {
	seed := [32]byte{1}
	h := sha256.New()
	_, _ = io.Copy(h, io.LimitReader(rand.NewChaCha8(seed), bigBlobBytes)) // neither side fails
	return io.LimitReader(rand.NewChaCha8(seed), bigBlobBytes), [32]byte(h.Sum(nil))
}

// slowReader takes a download at a pace at which it is still under way when the key is revoked.
func slowReader(ctx context.Context, body io.Reader, read *atomic.Int64) error {
	buf := make([]byte, 128<<10)
	for {
		n, err := io.ReadFull(body, buf)
		read.Add(int64(n))
		if err != nil {
			return err
		}
		if err := client.Sleep(ctx, 4*time.Millisecond); err != nil {
			return err
		}
	}
}

// drillRevocation disables the key while a large download is under way and small reads go on.
func (d *demo) drillRevocation(ctx context.Context, r *record) error {
	me, engineer := d.inside(d.scientist), d.inside(d.engineer)
	body, _ := archive()
	if err := me.PutBlob(ctx, d.names.account, dataContainer, bigBlob, body, bigBlobBytes); err != nil {
		return err
	}
	stream, size, err := d.at(d.desk, d.scientist).From(d.smallBuffers).OpenBlob(ctx, d.names.account, dataContainer, bigBlob)
	if err != nil {
		return err
	}
	defer func() { _ = stream.Close() }() // it is broken
	var read atomic.Int64
	var broke, refusedAt time.Time
	var streamErr, refusal error
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		streamErr = slowReader(gctx, stream, &read)
		broke = time.Now()
		return nil
	})
	g.Go(func() error {
		for refusal == nil {
			if _, refusal = me.Blob(gctx, d.names.account, dataContainer, blobName); refusal == nil {
				if err := client.Sleep(gctx, probePause); err != nil {
					return err
				}
			}
		}
		refusedAt = time.Now()
		return nil
	})
	if err := client.Sleep(ctx, 400*time.Millisecond); err != nil {
		return err
	}
	began, before := time.Now(), read.Load()
	if err := engineer.EnableKey(ctx, d.kid, false); err != nil {
		return err
	}
	answered := time.Since(began)
	if err := g.Wait(); err != nil {
		return err
	}
	r.check(before > 0 && before < size, "disable the key in the middle of a download of 160 MiB", "answered after %d ms, at %.1f MiB", answered.Milliseconds(), mib(before))
	r.check(client.StatusOf(refusal) == 403 && refusedAt.Sub(began) <= revokedWithin, "read the data", "refused %d ms after the request to disable: %s", refusedAt.Sub(began).Milliseconds(), clip(refusal.Error()))
	r.check(read.Load() < size && !errors.Is(streamErr, io.EOF) && broke.Sub(began) <= revokedWithin, "go on with the open download", "it broke after %d ms at %.1f MiB: %v", broke.Sub(began).Milliseconds(), mib(read.Load()), streamErr)
	_, err = me.Get(ctx, d.training.id, mlVersion)
	r.check(client.StatusOf(err) >= 400, "read the job, whose metadata is under the same key", "%s", sawNetwork(err))
	err = me.PutBlob(ctx, d.names.account, dataContainer, "new", strings.NewReader("x"), 1)
	r.check(client.StatusOf(err) == 403, "write new data", "%s", sawNetwork(err))
	return nil
}

func mib(n int64) float64 { return float64(n) / (1 << 20) }

// smallBuffers dials from the desk with little room for what the server sent before the revocation.
func (d *demo) smallBuffers(ctx context.Context, network, addr string) (net.Conn, error) {
	conn, err := d.desk.Dial(ctx, network, addr)
	if tcp, ok := conn.(*net.TCPConn); ok && err == nil {
		err = tcp.SetReadBuffer(256 << 10)
	}
	return conn, err
}

// drillRestore enables the key again.
func (d *demo) drillRestore(ctx context.Context, r *record) error {
	me := d.inside(d.scientist)
	began := time.Now()
	if err := d.inside(d.engineer).EnableKey(ctx, d.kid, true); err != nil {
		return err
	}
	var saw string
	for {
		var err error
		if saw, err = d.everything(ctx, me); err == nil {
			break
		}
		if paused := client.Sleep(ctx, 50*time.Millisecond); paused != nil {
			return fmt.Errorf("waiting for the data to be readable again: %w: %w", paused, err)
		}
	}
	r.note("enable the key and read everything", "%s, %d ms after", saw, time.Since(began).Milliseconds())
	stream, size, err := me.OpenBlob(ctx, d.names.account, dataContainer, bigBlob)
	if err != nil {
		return err
	}
	h := sha256.New()
	n, err := io.Copy(h, stream)
	if err := errors.Join(err, stream.Close()); err != nil {
		return fmt.Errorf("reading the archive: %w", err)
	}
	_, want := archive()
	r.check(n == size && [32]byte(h.Sum(nil)) == want, "read the archive whole", "%d bytes, the digest is right", n)
	return d.scoreAgain(ctx, me, r, began)
}

// scoreAgain waits for the endpoint: its instances ended with the key.
func (d *demo) scoreAgain(ctx context.Context, me *client.Client, r *record, began time.Time) error {
	for {
		var answer struct {
			Malignant []float64 `json:"malignant"`
		}
		err := me.Score(ctx, d.scoreURI, d.scoreKey, client.Object{"measurements": [][]float64{d.patients[0].measurements}}, &answer)
		if err == nil {
			r.check(len(answer.Malignant) == 1, "score a patient", "%v, %.1f s after", answer.Malignant, time.Since(began).Seconds())
			return nil
		}
		if client.StatusOf(err) != http.StatusServiceUnavailable {
			return err
		}
		if paused := client.Sleep(ctx, 100*time.Millisecond); paused != nil {
			return fmt.Errorf("waiting for the endpoint: %w: %w", paused, err)
		}
	}
}
