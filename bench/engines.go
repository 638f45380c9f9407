package main

import (
	"context"
	"errors"
	"fmt"
	"os"
)

func measureEnvelope(ctx context.Context, b *bench) ([]row, error) {
	s, err := b.goBench(ctx, 5, "./envelope", "64MiB", "-test.cpu", "1", "-test.benchtime", "5x")
	if err != nil {
		return nil, err
	}
	// Small operations need more turns than the whole streams above.
	small, err := b.goBench(ctx, 1, "./envelope", "RandomRead|Bytes1KiB", "-test.cpu", "1", "-test.benchtime", "300ms", "-test.count", "3")
	if err != nil {
		return nil, err
	}
	const peer = "bare NewGCMWithRandomNonce"
	return []row{
		s.rounds("seal 64 MiB, one core", "Seal64MiB", "MB/s", peer, "BareGCMSeal64MiB").keeping(0.9),
		s.rounds("open 64 MiB, one core", "Open64MiB", "MB/s", peer, "BareGCMOpen64MiB").keeping(0.9),
		newRow("read 4 KiB anywhere", small.median("RandomRead4KiB", "ns/op")/1e3, "µs").within(25),
		newRow("seal a value of 1 KiB", small.median("SealBytes1KiB", "ns/op")/1e3, "µs"),
		newRow("open a value of 1 KiB", small.median("OpenBytes1KiB", "ns/op")/1e3, "µs"),
	}, nil
}

func measureVault(ctx context.Context, b *bench) ([]row, error) {
	s, err := b.goBench(ctx, 1, "./dataplane/vault", "UnwrapKey", "-test.benchtime", "1s", "-test.count", "3")
	if err != nil {
		return nil, err
	}
	var rows []row
	for _, size := range []int{2048, 3072} {
		name := fmt.Sprintf("UnwrapKey/RSA-%d", size)
		bare := s.median(name, "bare-ns") / 1e3
		peer := fmt.Sprintf("bare RSA-OAEP-256, %d bits", size)
		rows = append(rows,
			newRow(fmt.Sprintf("unwrapKey RSA-%d by a resource", size), bare/s.median(name, "envelope/bare"), "µs").beside(peer, bare).keeping(0.9),
			newRow(fmt.Sprintf("unwrapKey RSA-%d by REST handler", size), bare/s.median(name, "rest/bare"), "µs").beside(peer, bare).keeping(0.85))
	}
	return rows, nil
}

func measureRBAC(ctx context.Context, b *bench) ([]row, error) {
	s, err := b.goBench(ctx, 1, "./control/rbac", "Check", "-test.benchtime", "300ms", "-test.count", "3")
	if err != nil {
		return nil, err
	}
	ns := func(name string) float64 { return s.median("Check/"+name, "ns/op") }
	return []row{
		newRow("allow among 4,000 assignments", ns("allow/4000"), "ns").within(1000),
		newRow("refuse among 4,000 assignments", ns("refuse/4000"), "ns").within(1000),
		newRow("allow among 1,000,000 assignments", ns("allow/1000000"), "ns").within(2000),
		newRow("refuse among 1,000,000 assignments", ns("refuse/1000000"), "ns").within(2000),
		newRow("assign among 1,000,000 assignments", ns("assign/1000000")/1e3, "µs"),
	}, nil
}

func measureNode(ctx context.Context, b *bench) ([]row, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("nodes are made of kernel objects: run this area as root")
	}
	s, err := b.goBench(ctx, 3, "./dataplane/runtime", "NodeStart", "-test.benchtime", "5x")
	if err != nil {
		return nil, err
	}
	r := newRow("start of a node to the first line of user code in storage", s.median("NodeStart/casemate", "ns/op")/1e6, "ms")
	if peer := s.median("NodeStart/podman", "ns/op"); peer > 0 {
		r = r.beside("podman run --network=none of the same root, to its end", peer/1e6)
	}
	whole, err := b.goBench(ctx, 1, "./test/mainjob", "Submit", "-test.benchtime", "20x")
	if err != nil {
		return nil, err
	}
	submit := newRow("submit through the public interface to the first line of user code, p50", whole.median("Submit", "p50-ms"), "ms").within(1000)
	if peer := s.median("NodeStart/podman", "ns/op"); peer > 0 {
		submit = submit.beside("podman run --network=none of the other root, to its end", peer/1e6)
	}
	return []row{submit, r.within(1000)}, nil
}

func measureNetwork(ctx context.Context, b *bench) ([]row, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("networks are made of kernel objects: run this area as root")
	}
	s, err := b.goBench(ctx, 1, "./dataplane/network", "Apply|Attach", "-test.benchtime", "20x", "-test.count", "3")
	if err != nil {
		return nil, err
	}
	var rows []row
	for name, what := range map[string]string{"Apply": "apply the plan of a network anew", "ApplyNothing": "apply a plan that holds already", "Attach": "attach a node"} {
		if ns := s.median(name, "ns/op"); ns > 0 {
			rows = append(rows, newRow(what, ns/1e6, "ms"))
		}
	}
	return rows, nil
}
