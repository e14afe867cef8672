# The front door. `make run` and `make test` set a fresh Debian machine up by themselves.

CACHE := $(if $(XDG_CACHE_HOME),$(XDG_CACHE_HOME),$(HOME)/.cache)/dunlin
# Outside the checkout, so that every clone on a machine shares it.
export CARGO_TARGET_DIR ?= $(CACHE)/target
export PATH := $(HOME)/.cargo/bin:$(PATH)

PROFILE ?= dev
BUILT := $(CARGO_TARGET_DIR)/$(if $(filter dev,$(PROFILE)),debug,$(PROFILE))
DATA ?= dunlin-data
DEVICES ?= 50

.PHONY: help run build test lint unit e2e fuzz bench clean

help: ## This list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

run: ## Install what is missing, build, start the platform with a small simulated fleet
	@dev/setup.sh build
	@$(MAKE) --no-print-directory build
	@dev/run.sh $(BUILT)/dunlin $(DATA) $(DEVICES)

build: ## The binary only (PROFILE=release for full speed: about 20 minutes on 2 cores)
	cargo build --workspace --bins --profile $(PROFILE)

test: ## Install what the tests need, run all of them
	@dev/setup.sh test
	@$(MAKE) --no-print-directory lint unit e2e

lint: ## Format and lints
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings

unit: ## The Rust tests
	cargo test --workspace --bins --lib --tests --examples

e2e: ## The binary with real clients, real faults
	cargo build --workspace --bins
	@dev/e2e.sh

fuzz: ## Every decoder of outside bytes under the fuzzer (FUZZ_SECONDS=600 for each)
	@dev/fuzz.sh

bench: ## The figures of docs/performance.md
	@dev/setup.sh test
	cargo build --workspace --bins --examples --profile release
	@PROFILE=release dev/bench/run.py

clean: ## Remove what was built and the data of `make run`
	rm -rf $(DATA)
	cargo clean
