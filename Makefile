# What one can do here. `make` alone prints this menu.
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/postern
export CARGO_TARGET_DIR ?= $(CACHE)/target
BIN := $(CARGO_TARGET_DIR)/debug

.DEFAULT_GOAL := menu
.PHONY: menu demo test check fmt gen bench bench-road bench-attacks bench-storm bench-redis bench-policies bench-agent image build setup setup-build

menu: ## this menu
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: setup-build build ## start edge, broker and agent here and reach a cluster through them (ARGS="--once")
	@$(BIN)/postern demo $(ARGS)

test: setup ## install what the tests need, then run all of them
	@# One selection of targets, so that everything is built once; it includes the programs themselves.
	cargo test --workspace --lib --bins --tests

check: setup-build ## format, lint and licences, as CI checks them
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	@tests/setup/deny.sh

fmt: ## format the code
	cargo fmt --all

gen: ## regenerate wire/src/gen from wire/proto
	POSTERN_GEN=write cargo test -p postern-wire --test gen

bench: setup-build ## measure the edge beside HAProxy, nginx and Envoy: CPU, memory and latency, as ratios
	@tests/setup/peers.sh
	cargo build --release -p postern-edge
	cargo bench -p postern-tests --bench edge

bench-road: setup-build ## measure the road through edge, broker and agent against a direct connection
	cargo build --release --workspace --bins
	cargo bench -p postern-tests --bench road

bench-attacks: setup-build ## how long callers wait while strangers attack the edge, and what memory it takes
	cargo build --release -p postern-edge
	POSTERN_EDGE=$(CARGO_TARGET_DIR)/release/postern-edge cargo bench --profile dev -p postern-edge --bench attacks

bench-storm: setup-build ## 20,000 idle tunnels: new certificate, new policy, new edge; nobody may be lost
	cargo build --release -p postern-edge
	POSTERN_EDGE=$(CARGO_TARGET_DIR)/release/postern-edge cargo bench --profile dev -p postern-edge --bench storm

bench-redis: setup-build build ## count what brokers and agents at rest cost Redis; whether refreshing delays requests
	@command -v redis-server >/dev/null || tests/setup/tests.sh
	@# Counts do not depend on how fast programs are, and so the ones that are built anyway will do.
	cargo bench --profile dev -p postern-tests --bench redis

bench-policies: setup-build ## what a decision by 5,000 policies costs, and how soon an edit is in force everywhere
	@command -v redis-server >/dev/null || tests/setup/tests.sh
	cargo build --release --workspace --bins
	@mkdir -p target/bench
	cargo bench -p postern-policies --bench decide > target/bench/decisions.txt && cat target/bench/decisions.txt
	POSTERN_DECISIONS=$(CURDIR)/target/bench/decisions.txt cargo bench -p postern-tests --bench policies

bench-agent: setup-build ## what the agent takes of memory and time, and how fast it applies manifests
	@tests/setup/tests.sh
	cargo build --release --workspace --bins
	cargo bench -p postern-tests --bench agent

image: setup-build build ## build the agent's image into target/image and run it; ARCH=arm64 or amd64 for another machine's
	@tests/setup/image.sh $(ARCH)
	@deploy/images/build.sh $(ARCH)
	@tests/image/run.sh $(ARCH)

build:
	cargo build --workspace --bins

setup-build:
	@tests/setup/build.sh

setup: setup-build
	@tests/setup/tests.sh
