# Two commands do everything on a fresh machine: `make demo` and `make test`.
.PHONY: demo test test-slow results fuzz build libtorch python check deny docs bench clean

# A user's own LIBTORCH is taken as it is.
CARGO := cargo
LIBTORCH_FLAVOUR := $(if $(CUDA),cuda,cpu)
# Ranks on GPUs.
FEATURES := $(if $(CUDA),--features minitron-cli/nccl)

demo: build  ## train, halve, distil and compare a small model: under five minutes after the build
	target/release/minitron demo --out out/demo

# Waiting threads of libgomp spin; beside other processes that costs most of the processor. Numbers do not change.
test test-slow: export GOMP_SPINCOUNT ?= 1000
# Tests run side by side, one on each core: further threads of one would wait for those of another.
test: export OMP_NUM_THREADS ?= 1

test: build python  ## every test
	$(CARGO) test --locked --release --workspace

test-slow: build python  ## faults and kills under every command, memory bounds, crates of plugins, libFuzzer, the demo: half an hour
	$(CARGO) test --locked --release --workspace --test index -- --ignored --nocapture --test-threads 2
	@if command -v cargo-fuzz > /dev/null; then tools/fuzz.sh 15; else echo "absent, not tested: cargo-fuzz"; fi
	$(MAKE) demo

results: build  ## figures of RESULTS.md that docs/results/figures.json names, run again; says which moved
	python3 tools/results.py

fuzz: libtorch  ## every parser against libFuzzer, FUZZ_SECONDS each (a nightly compiler and cargo-fuzz)
	tools/fuzz.sh $(or $(FUZZ_SECONDS),60)

build: libtorch
	$(CARGO) build --locked --release --workspace $(FEATURES)

libtorch:  ## libtorch 2.11.0 into .deps/; CUDA=1 for the CUDA build
	@if [ -z "$$LIBTORCH" ]; then tools/libtorch.sh $(LIBTORCH_FLAVOUR); fi

python:  ## transformers, for the interop tests
	@tools/venv.sh

check: libtorch  ## what CI asks besides the tests
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --release --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --release --workspace --no-deps

deny:  ## licences, sources and duplicates of what is built in, where cargo-deny is there; no network is asked
	@if command -v cargo-deny > /dev/null; then cargo deny --offline --workspace check licenses bans sources; \
	else echo "no cargo-deny (cargo install --locked cargo-deny): tests/supply.rs checks licences and sources"; fi

docs: libtorch  ## the API's documentation into target/doc/; the author's guide into docs/book/ where mdBook is there
	$(CARGO) doc --locked --release --workspace --no-deps
	@if command -v mdbook > /dev/null; then mdbook build docs; else echo "no mdbook: docs/src is readable as it is"; fi

bench: build  ## the kernels
	$(CARGO) bench --locked --bench kernels

clean:
	$(CARGO) clean
	rm -rf out
