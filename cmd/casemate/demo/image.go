package demo

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"casemate.dev/client"
	"casemate.dev/client/image"
	"casemate.dev/images"
)

// dataFile is where scikit-learn keeps the data set in the curated image.
const dataFile = "/usr/lib/python3/dist-packages/sklearn/datasets/data/breast_cancer.csv"

// buildImage builds the curated image, or finds it in the machine's cache.
func (d *demo) buildImage(ctx context.Context, r *record) error {
	dir := filepath.Join(d.dir, "recipe")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return fmt.Errorf("making a directory for the recipe: %w", err)
	}
	script, err := images.Unpack("sklearn", dir)
	if err != nil {
		return err
	}
	began := time.Now()
	b := d.display.bar("building "+imageName+" from the distribution's packages", 0, false)
	defer b.done()
	ticker := time.NewTicker(5 * time.Second)
	defer ticker.Stop()
	d.layout = filepath.Join(d.dir, "image")
	cmd := exec.CommandContext(ctx, "sh", script, d.layout)
	cmd.Env = append(os.Environ(), "CASEMATE="+d.binary)
	// The script has children: the signal goes to all, and the script removes what is half built.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	done := make(chan error, 1)
	go func() { done <- cmd.Run() }()
	for {
		select {
		case err := <-done:
			b.done()
			if err != nil {
				return fmt.Errorf("building the image: %w: %s", err, tail(strings.TrimSpace(out.String()), 1000))
			}
			digest, err := image.Digest(d.layout)
			if err != nil {
				return err
			}
			r.note("build "+imageName+" from the distribution's packages, or find it in the cache", "%s after %.1f s", digest, time.Since(began).Seconds())
			return nil
		case <-ticker.C:
			b.tick("building")
		}
	}
}

// pushImage builds the curated image and pushes it as the engineer, from inside the network.
func (d *demo) pushImage(ctx context.Context, r *record) error {
	if err := d.buildImage(ctx, r); err != nil {
		return err
	}
	me := d.inside(d.engineer)
	token, err := me.Token(ctx, client.AudienceRegistry)
	if err != nil {
		return err
	}
	ref := me.Authority(d.names.registry+".azurecr") + "/" + imageName
	began, pushed := time.Now(), int64(0)
	b := d.display.bar("pushing", 1, true)
	digest, err := image.Push(ctx, d.layout, ref, me.Transport(), token, func(complete, total int64) {
		pushed = max(pushed, complete)
		b.grow(total)
		b.set(complete)
	})
	b.done()
	if err != nil {
		return err
	}
	r.note("push it through the private endpoint as the engineer", "%s, %.1f MiB in %.1f s", ref, mib(pushed), time.Since(began).Seconds())
	want, err := image.Digest(d.layout)
	r.check(err == nil && digest == want, "compare the digest", "%s", digest)
	return err
}

// dataSet reads the measurements out of the curated image.
func (d *demo) dataSet() ([]byte, error) { return image.ExtractFile(d.layout, dataFile) }
