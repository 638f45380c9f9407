# The commands of the repository. `make` alone lists them.

GO        ?= go
DEMO_FLAGS ?=
AREA      ?=
RUN       ?=

# The version is stamped where git answers, and left out in an archive or in another user's clone.
VCS := $(shell git rev-parse HEAD >/dev/null 2>&1 && echo auto || echo false)

# What is read as a whole before a commit: fast packages, under the race detector.
RACE := ./internal/... ./resource/... ./envelope/... ./store/... ./control/... ./gateway/... ./dataplane/vault/... \
	./dataplane/blob/... ./dataplane/tracking/... ./dataplane/scoring/... ./dataplane/network/plan/... ./providers/...

.PHONY: help build demo test check bench clean

help: ## List the commands
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

build: ## Build bin/casemate
	CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=$(VCS) -o bin/casemate ./cmd/casemate

demo: ## Install what is missing, build, run the main job and the security drill (DEMO_FLAGS="--json FILE")
	@scripts/install.sh run
	@$(MAKE) --no-print-directory build
	bin/casemate demo $(DEMO_FLAGS)

test: ## Run all tests; CI=true adds the large outside clients; RUN=stage,stage runs some stages
	@scripts/install.sh $(if $(filter true,$(CI)),ci,test)
	@$(MAKE) --no-print-directory build
	@$(GO) run -C scripts ./runtests -run '$(RUN)'

check: ## Under two minutes: format, vet, staticcheck, modules, layers, package docs, fast race tests
	@scripts/check.sh $(RACE)

bench: ## Measure (AREA=envelope, blob, vault, gateway, rbac, node, start, network; all without it)
	@$(MAKE) --no-print-directory build
	@$(GO) run -C bench . -area '$(AREA)'

clean: ## Remove what was built and measured
	rm -rf bin bench/results
