# The commands of this repository; `make help` lists them.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# How the programs are compiled that the demo and the tests run: `make demo PROFILE=release` for what is shipped. It
# takes three times as long to build, and it is Envoy that carries the traffic.
PROFILE ?= dev
# Everything is compiled together: cargo chooses the features of dependencies by what is built together, so that one
# package alone would compile them once more.
E2E := cargo build --locked --workspace --bins --profile $(PROFILE) && \
	$${CARGO_TARGET_DIR:-target}/$(if $(filter dev,$(PROFILE)),debug,$(PROFILE))/osm-e2e
# What is measured is built for speed.
LOAD := cargo build --release --locked --workspace --bins && mkdir -p .local && $${CARGO_TARGET_DIR:-target}/release/osm-load

.PHONY: help
help: ## This list.
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 16

.PHONY: demo
demo: ## A real mesh at work, from nothing: cluster, install, applications, policy, and a table of what was measured.
	$(E2E) demo

.PHONY: test
test: unit-test e2e-test ## Every test.

.PHONY: unit-test
unit-test: ## Tests that need no cluster (the real Envoy and Helm they need are fetched).
	command -v iptables >/dev/null || { apt-get update -qq && apt-get install -y -qq iptables iproute2; }
	$(E2E) programs envoy helm
	cargo test --locked --workspace

.PHONY: provider-test
provider-test: ## Tests against a real Vault on loopback (it is built the first time, which takes minutes).
	vault=$$($(E2E) programs vault | tail -n 1) && OSM_VAULT="$$vault" cargo test --locked --workspace --test vault

.PHONY: e2e-test
e2e-test: ## End-to-end tests on a real Kubernetes with real Envoys.
	$(E2E) test
	if [ "$${CLUSTER:-}" = current ]; then config=$${KUBECONFIG%%:*}; else config=$(CURDIR)/.local/kubeconfig; fi; \
	OSM_E2E_KUBECONFIG=$$config cargo test --locked --workspace --test cluster

.PHONY: drills-quick
drills-quick: ## Break what everything else rests on while requests flow, and count what is lost.
	$(E2E) drill --quick

.PHONY: drills
drills: ## The same in every way: each promise of docs/high-availability.md with its number (an hour).
	$(E2E) drill

.PHONY: drills-all
drills-all: ## All drills for as long as they take: a hundred kills, outages of ten minutes (hours).
	$(E2E) drill --all

.PHONY: drills-sabotage
drills-sabotage: ## Drills on control planes with a fault built in, where they must fail.
	$(E2E) drill --sabotage

.PHONY: bench
bench: ## Load on the control plane, judged by ratios within the run; under ten minutes on two cores.
	$(LOAD) --json .local/bench.json bench

.PHONY: bench-full
bench-full: ## The same to the limit: an hour and more.
	$(LOAD) --json .local/bench-full.json full

.PHONY: bench-peer
bench-peer: ## Ours beside the best peer, istiod: the same mesh and the same proxies in one run (builds istiod, some minutes, the first time only).
	$(LOAD) --json .local/bench-peer.json peer

.PHONY: bench-micro
bench-micro: ## Micro-benchmarks of the engine, the encoders and the streams.
	cargo bench --locked -p osm-core

.PHONY: lint
lint: ## Formatting, clippy, documentation, dependency rules.
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --quiet --no-deps -p osm-core -p osm-runtime
	.ci/laws
	deny=$$($(E2E) programs cargo-deny | tail -n 1) && "$$deny" --offline --log-level error check bans licenses sources

.PHONY: cluster-up
cluster-up: ## Start the local Kubernetes (state under .local/).
	$(E2E) cluster up

.PHONY: cluster-down
cluster-down: ## Stop it and leave nothing behind.
	$(E2E) cluster down

.PHONY: cluster-test
cluster-test: ## Kill cluster-up and cluster-down amid their work, and see that the next one does its own.
	$(E2E) cluster interruptions

.PHONY: images
images: ## Build the images and load them into the local Kubernetes.
	$(E2E) images
