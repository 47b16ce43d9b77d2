# The same verbs for people and for CI. What they install goes into a virtual environment outside
# the repository; build products go into rust/target.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/moshi-ctl
# One environment per checkout, so that two of them do not overwrite each other's extension.
VENV := $(CACHE)/venv-$(shell printf %s "$(CURDIR)" | cksum | cut -d' ' -f1)

# The first Python that is new enough and can make virtual environments. A name on the PATH alone
# proves nothing: it may be a version manager's stand-in.
USABLE_PYTHON := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))
PYTHON ?= $(shell for python in python3.11 python3 python3.12 python3.13 python3.10; do \
	if $$python -c '$(USABLE_PYTHON)' >/dev/null 2>&1; then echo $$python; break; fi; done)

# rustup's cargo looks for its toolchains under HOME; where HOME is another, they are still beside
# the cargo that is on the PATH.
ifneq ($(shell cargo --version >/dev/null 2>&1 && echo works),works)
BESIDE_CARGO := $(abspath $(dir $(shell command -v cargo))/../../.rustup)
ifneq ($(wildcard $(BESIDE_CARGO)),)
export RUSTUP_HOME := $(BESIDE_CARGO)
endif
endif

# The environment's tools come first; its cmake builds libopus for cargo.
export PATH := $(VENV)/bin:$(PATH)
export VIRTUAL_ENV := $(VENV)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_QUIET := 1
unexport PYTHONHOME PYTHONPATH

MANIFEST := --manifest-path rust/Cargo.toml
RUST_SOURCES := $(shell find rust -name target -prune -o \( -name '*.rs' -o -name '*.toml' -o -name '*.lock' -o -name '*.cu*' \) -print)

# The kernels for NVIDIA's cards, and what runs them on the processor.
KERNELS := $(wildcard rust/engine/kernels/* rust/emulator/driver/*)

.PHONY: help setup faults emulator demo test test-gpu soak fuzz lint format docs bench bench-gpu \
	wheel wheel-cuda clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(VENV)/extension ## Install everything and build the extension

# As build-system in pyproject.toml has them.
BUILD_TOOLS := 'maturin>=1.9,<2' 'cmake>=3.20' \
	"nvidia-cuda-nvrtc-cu12==12.0.140; platform_machine == 'x86_64' and sys_platform == 'linux'"

$(VENV)/tools: pyproject.toml
	@test -n "$(PYTHON)" || { echo "no Python 3.10 or newer with venv on the PATH" >&2; \
		echo "hint: install one, or name it: make PYTHON=/path/to/python3" >&2; exit 1; }
	@command -v cargo >/dev/null || { echo "no cargo on the PATH" >&2; \
		echo "hint: install a Rust toolchain" >&2; exit 1; }
	@echo "environment: $(VENV)"
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@echo "installing build tools ..."
	@pip install $(BUILD_TOOLS)
	@touch $@

$(VENV)/extension: $(VENV)/tools $(RUST_SOURCES)
	maturin develop --release --locked --extras dev
	@touch $@

# The extension again, with models that can be made to fail: what tests start, and nobody ships. Its
# package is Python's half, linked, and this extension.
FAULTS := $(VENV)/faults
PYTHON_SOURCES := $(shell find python/moshi_ctl -name '*.py')

faults: $(FAULTS)/built ## Build a server whose model can be made to fail

$(FAULTS)/built: $(VENV)/extension $(PYTHON_SOURCES)
	cargo build --release --locked $(MANIFEST) --package moshi-ctl-extension --features faults,cuda
	@python scripts/faulty_package.py rust/target/release/lib_native.so $(FAULTS)
	@touch $@

emulator: $(VENV)/tools ## Build the driver whose card is the processor
	cargo build --release --locked $(MANIFEST) --package moshi-ctl-emulator

demo: setup ## Stream a recording to the embedded model and print the words that come back
	@moshi-ctl demo

test: setup faults emulator ## Run all tests, Rust's and Python's
	@python scripts/run_tests.py

test-gpu: setup ## Run the tests that need an NVIDIA card, where there is one
	@python -m pytest tests/gpu -m gpu -s

soak: setup faults ## Run the tests that take minutes to hours
	@python -m pytest tests/soak tests/chaos -m soak -s

FUZZ_SECONDS ?= 60
fuzz: $(VENV)/tools ## Fuzz what reads what others wrote, FUZZ_SECONDS (60) for each target
	@python scripts/fuzz.py --seconds $(FUZZ_SECONDS)

lint: setup ## Check format, lints and types of everything
	cargo fmt $(MANIFEST) --all --check
	cargo clippy --locked $(MANIFEST) --workspace --all-targets --features moshi-ctl-extension/cuda,moshi-ctl-reference/cuda --release -- -D warnings
	cargo clippy --locked $(MANIFEST) --package moshi-ctl-extension --features faults,cuda --release -- -D warnings
	@# The fuzz targets have a lock file of their own, which follows the dependencies of the others.
	cargo metadata --locked --manifest-path rust/fuzz/Cargo.toml --format-version 1 >/dev/null
	clang-format --dry-run -Werror $(KERNELS)
	ruff check
	ruff format --check
	mypy
	python -m mypy.stubtest moshi_ctl._native --mypy-config-file pyproject.toml

format: setup ## Format everything
	cargo fmt $(MANIFEST) --all
	clang-format -i $(KERNELS)
	ruff check --fix-only
	ruff format

docs: setup ## Write the pages and the dashboards that come from the code
	@python scripts/reference_pages.py
	@python scripts/grafana_dashboards.py

bench: setup ## Measure the engine against the reference, side by side
	@benchmarks/run

bench-gpu: setup ## Measure the engine on an NVIDIA card against its bandwidth
	@benchmarks/cuda_step.py

wheel: $(VENV)/tools ## Build the wheel for this platform into dist/
	maturin build --release --locked --out dist

wheel-cuda: setup ## The same for Linux, and check that it is fit to run on any NVIDIA card
	@rm -rf $(CACHE)/wheel-cuda
	maturin build --release --locked --out $(CACHE)/wheel-cuda
	@echo "installing NVIDIA's assembler ..."
	@pip install nvidia-cuda-nvcc-cu12==12.9.86
	@python scripts/check_wheel.py $(CACHE)/wheel-cuda/*.whl --ptxas \
		"$$(python -c 'import nvidia.cuda_nvcc as p; print(list(p.__path__)[0])')/bin/ptxas"
	@mkdir -p dist
	@mv $(CACHE)/wheel-cuda/*.whl dist/
	@ls dist

clean: ## Remove what the other verbs made, the environment included
	rm -rf rust/target rust/fuzz/target dist $(VENV)
