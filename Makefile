# Every door of the project. `make verify` checks and never writes; `make fix` writes; .ci/run calls only `make test`.
.PHONY: run test sim faults verify advisories fix load tools

CARGO ?= cargo

# Serves a demo database from three pods on ports 9000 to 9002, until Ctrl-C.
run: tools
	$(CARGO) build --release --locked
	target/release/local-cluster

# Every test: units, properties, frames, and whole clusters of real processes.
test: tools
	$(CARGO) test --locked

# More simulated runs of the protocol than the tests make, or one run exactly: make sim RUNS=1 SEED=42
RUNS ?= 10000
SEED ?= 1
sim: tools
	SIMULATION_RUNS=$(RUNS) SIMULATION_SEED=$(SEED) $(CARGO) test --locked -p sharding --test simulation -- --nocapture

# Processes that die, stand still or lose each other under load, more often than in the tests: make faults FAULTS=20
FAULTS ?= 20
faults: tools
	$(CARGO) build --workspace --locked
	FAULT_RUNS=$(FAULTS) $(CARGO) test --locked -p loadtest --test cluster -- faults:: cuts:: --nocapture --test-threads 1

# Format, lints, documentation, and what comes in as a dependency.
verify: tools
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --document-private-items --locked
	@if $(CARGO) deny --version >/dev/null 2>&1; then $(CARGO) deny --locked check bans licenses sources; \
	else echo "cargo-deny is not installed: dependencies were not checked (cargo install --locked cargo-deny)"; fi

# Known vulnerabilities among the dependencies; fetches the list of them.
advisories:
	$(CARGO) deny --locked check advisories

fix: tools
	$(CARGO) clippy --workspace --all-targets --locked --fix --allow-dirty --allow-staged
	$(CARGO) fmt --all

# Loads a cluster of its own on free ports: every scenario, 32 connections, 30 s each; reports in data/load.
load: tools
	$(CARGO) build --release --locked
	target/release/loadtest

# What a build needs and the machine lacks. Rust is for its user to choose.
tools:
	@command -v $(CARGO) >/dev/null || { echo "Rust is missing: install it from https://rustup.rs" >&2; exit 1; }
	@command -v cc >/dev/null || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends gcc libc6-dev; \
	  else echo "a C compiler is missing: install gcc and libc6-dev" >&2; exit 1; fi; }
