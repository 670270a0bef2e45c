# Everything a person types. `make help` lists it.

PYTHON ?= python3
CARGO ?= cargo

.PHONY: help demo test test-nightly figures check bench servers acceptance trace

help: ## what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: lib/libonnxruntime ## build, serve the bundled model, print a key and a curl line; Ctrl-C ends it
	$(CARGO) build --release --locked
	./target/release/modelgate demo

test: lib/libonnxruntime servers ## every test, against real MLflow and Redis servers
	@# As a user builds it: what only the tests' dependencies switch on is off.
	$(CARGO) check --locked --bin modelgate
	$(CARGO) test --locked --workspace

test-nightly: lib/libonnxruntime servers ## the tests at full size, optimised: up to 90 minutes on two cores
	@echo "nightly tests:" && scripts/ignored-tests.sh nightly | sed 's/^/  /'
	$(CARGO) test --profile nightly --locked --lib --test it --no-run
	@# One at a time: most of them want the whole machine.
	timeout 80m $(CARGO) test --profile nightly --locked --lib --test it -- \
		--ignored --nocapture --test-threads 1 $$(scripts/ignored-tests.sh nightly)

figures: lib/libonnxruntime servers ## what the tests can measure; BENCHMARKS.md says which figure comes from where
	$(CARGO) test --release --locked --lib --test it -- \
		--ignored --nocapture --test-threads 1 $$(scripts/ignored-tests.sh figure)

check: lib/libonnxruntime ## format, lints, licences and advisories
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	@if $(CARGO) deny --version >/dev/null 2>&1; then $(CARGO) deny check; \
	else echo "cargo-deny is not installed: licences not checked"; fi

bench: lib/libonnxruntime ## the figures of BENCHMARKS.md, measured side by side
	$(CARGO) bench --locked --bench request
	$(CARGO) bench --locked --bench swap

acceptance: lib/libonnxruntime ## the main job on real data: make acceptance DATA=folder
	test -d .venv/acceptance || $(PYTHON) -m venv .venv/acceptance
	.venv/acceptance/bin/pip install --quiet --requirement acceptance/requirements.txt
	$(CARGO) build --release --locked
	.venv/acceptance/bin/python acceptance/run.py $(DATA)

trace: lib/libonnxruntime ## what a gateway asks of the system, model by model, watched with strace
	$(CARGO) build --release --locked
	$(PYTHON) acceptance/trace.py target/release/modelgate

servers: ## the MLflow and Redis servers the tests talk to, in .venv/
	scripts/test-servers.sh

# The ONNX Runtime library, out of its wheel and checked by digest.
.PHONY: lib/libonnxruntime
lib/libonnxruntime:
	scripts/fetch-onnxruntime.sh lib
