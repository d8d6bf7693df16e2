# Two commands matter: `make demo` and `make test`. Both install what they need first (scripts/setup).

CARGO ?= cargo
FUZZ_SECONDS ?= 60

.PHONY: help setup build static images demo test test-machines lint doc bench bench-codecs bench-e2e bench-sandbox bench-growth bench-memory fuzz clean

help: ## This list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

setup: ## Install what tests and demo use (Debian, as root); says what is missing elsewhere
	@scripts/setup

build: ## The release binary: target/release/slipway
	$(CARGO) build --release -p builder-cli

static: ## One file without shared libraries, for scratch images: target/release/slipway-static
	@CARGO=$(CARGO) scripts/static release

images: ## The images executor, warmer and debug, built by slipway itself: target/images/*.tar
	@CARGO=$(CARGO) scripts/images target/images

demo: setup ## Build, export and push an image, then build it again from the cache
	@scripts/demo

test: setup ## Everything: format, lints, docs, unit, property, conformance, end-to-end and fuzz tests
	@CARGO=$(CARGO) FUZZ_SECONDS=$(FUZZ_SECONDS) scripts/test

test-machines: ## Other kernels and aarch64, in virtual machines (Debian, as root; FILTER=6.1-x86_64::yama for one)
	@CARGO=$(CARGO) scripts/machines $(FILTER)

lint: ## Format and clippy
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings

doc: ## API documentation, warnings are errors
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps

bench: ## Micro-benchmarks of the parts (criterion)
	$(CARGO) bench -p benches --bench parts

bench-codecs: ## Compressors beside gzip(1), pigz(1) and Go: size and rate on text, programs and noise
	$(CARGO) run --release -p benches --bin codecs

bench-e2e: build ## Whole builds against every builder installed; prints a table, writes JSON
	$(CARGO) run --release -p benches --bin e2e

bench-sandbox: setup ## What each tier of the sandbox costs, beside a plain chroot and proot; as root
	$(CARGO) run --release -p benches --bin sandbox

bench-growth: build ## How time and memory grow with files, layers, bytes and stages: docs/growth.svg
	$(CARGO) run --release -p benches --bin e2e growth

bench-memory: build ## A layer of 8 GiB in a control group of 256 MiB, page cache included (as root; 17 GiB of disk)
	SLIPWAY_BIN=$(CURDIR)/target/release/slipway SLIPWAY_TEST_LAYER_MIB=8192 SLIPWAY_TEST_LIMIT_MIB=256 \
	    $(CARGO) test --workspace --test e2e resources::memory-of-the-control-group

fuzz: ## Fuzz parser and expansion, FUZZ_SECONDS each
	@scripts/fuzz $(FUZZ_SECONDS)

clean: ## Remove everything that was built
	$(CARGO) clean
