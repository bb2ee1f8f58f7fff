# vl2: `make serve` answers at http://127.0.0.1:8000, `make test` runs the tests. Both make what they need in .venv/.
#
#   PYTHON     the Python to build .venv with (3.10 or newer)     make serve PYTHON=python3.12
#   MODEL      what to serve: nano (default), tiny, a folder, …   make serve MODEL=tiny
#   ARGS       more flags of `vl2 serve`, or of pytest            make serve ARGS="--port 9000"
#   TORCH      which torch to install when .venv has none
#   TORCH_INDEX_URL  where pip finds it; pytorch.org names the index of the smaller, CPU-only builds
PYTHON ?= python3
MODEL ?= nano
ARGS ?=
TORCH ?= torch==2.13.0
TORCH_INDEX_URL ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help serve test test-page screenshots test-gpu test-tools test-deploy bench-gpu fuzz nano-int4 nano-int4-scores edge-check check format lint types docs docs-check clean

help:  ## this list
	@sed -nE 's/^([a-z0-9-]+):[^#]*## (.*)/  make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "%-24s%s\n", $$1, $$2}'

serve: $(VENV)/.runtime  ## serve the embedded model (or MODEL=…) at http://127.0.0.1:8000
	@exec $(BIN)/vl2 serve $(MODEL) $(ARGS)

test: $(VENV)/.dev  ## run the tests, two files at a time
	$(BIN)/python -m pytest -q --numprocesses 2 --dist loadfile $(ARGS)

test-gpu: $(VENV)/.dev  ## run what concerns a GPU: kernels against references, golden answers, on CUDA
	$(BIN)/python -m pytest -q --device cuda tests/ops tests/parity tests/engine/test_runner.py \
		tests/engine/test_busy_engine.py tests/engine/test_device_rows.py tests/engine/test_vision_clock.py $(ARGS)

# program:package of Debian, for each; installed where they are missing
DEBIAN = missing=; for tool in $(1); do command -v $${tool%:*} >/dev/null || missing="$$missing $${tool\#*:}"; done; \
  test -z "$$missing" || (apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y $$missing)

test-tools:  ## nginx, Prometheus and Chromium, on Debian: tests that need them are skipped without
	@$(call DEBIAN,nginx:nginx-light prometheus:prometheus chromium:chromium)

test-deploy: $(VENV)/.dev tests/deploy/npm/node_modules test-tools  ## nginx, images, chart, Ray, GitLab's jobs for real (20 min)
	@$(call DEBIAN,buildah:buildah mmdebstrap:mmdebstrap podman:podman runc:runc rsync:rsync)
	@$(PIP) --editable '.[dev,ray]'
	VL2_TEST_DEPLOY=1 $(BIN)/python -m pytest -q tests/deploy $(ARGS)

tests/deploy/npm/node_modules: tests/deploy/npm/package.json
	npm install --prefix tests/deploy/npm --force --no-audit --no-fund --no-package-lock --ignore-scripts
	@touch $@

bench-gpu: $(VENV)/.dev  ## the speed of one GPU at the real shapes, with random weights; ARGS="tiny --rows latency"
	$(BIN)/python bench/gpu.py $(ARGS)

fuzz: $(VENV)/.dev  ## the long runs: 2,600 requests from the API's description, 20,000 mutated files
	PYTHONPATH=tests:. $(BIN)/python tests/server/schemathesis_run.py 2600
	PYTHONPATH=tests:. $(BIN)/python tests/server/intake_run.py 20000

test-page: $(VENV)/.dev  ## the page in a real browser
	@$(call DEBIAN,chromium:chromium)
	$(BIN)/python -m pytest -q tests/page $(ARGS)

screenshots: $(VENV)/.dev  ## docs/images/page-*.webp anew, by the test that looks at them; Chinese needs fonts-noto-cjk
	@$(call DEBIAN,chromium:chromium)
	VL2_SCREENSHOTS=docs/images $(BIN)/python -m pytest -q tests/page/test_nano.py $(ARGS)

nano-int4: build/nano-int4/config.json  ## vl2-nano in 4 bits by GPTQ, in build/nano-int4; not committed

build/nano-int4/config.json: | $(VENV)/.dev
	$(BIN)/python nano/calibration.py build/nano-calibration --number 1000
	$(BIN)/vl2 quantize nano build/nano-int4 --samples 1000 --calibration build/nano-calibration/calibration.jsonl $(ARGS)

nano-int4-scores: nano-int4  ## it beside nano on the 4,000 questions, and nano rounded to nearest
	$(BIN)/python nano/evalset.py --pictures build/nano-scenes
	for bits in "build/nano-int4" "nano --quantization int4"; do \
	  $(BIN)/vl2 evaluate $$bits --against nano --questions nano/evalset.jsonl --pictures build/nano-scenes || exit 1; done

edge-check: $(VENV)/.dev  ## the edge runtime in an environment without PyTorch: size, first answer, aarch64, clean graphs
	$(BIN)/python tests/edge/install_run.py $(ARGS)

check: lint types test docs-check  ## all that CI checks: format, lint, types, tests, generated docs

format: $(VENV)/.dev  ## format the code, and fix what ruff can
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

lint: $(VENV)/.dev
	$(BIN)/ruff format --check
	$(BIN)/ruff check

types: $(VENV)/.dev
	$(BIN)/mypy

docs: $(VENV)/.dev  ## write docs/reference/ anew, and the documentation site to site/
	$(BIN)/python -m vl2.cli.reference docs/reference
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	$(BIN)/python -m vl2.deploy.monitoring.dashboard

docs-check: $(VENV)/.dev
	$(BIN)/python -m vl2.cli.reference --check docs/reference

clean:  ## remove .venv and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist

# ---- the environment: a stamp for each stage, so that a second run starts at once

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo 'vl2 needs Python 3.10 or newer; name one: make PYTHON=python3.12' >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo 'this Python cannot make environments; on Debian: apt-get install python3-venv' >&2; exit 2; }
	@echo 'making $(VENV) (once; torch is large, this takes a minute or more) …' >&2
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: pyproject.toml hatch_build.py $(wildcard src/vl2/ops/native/source/* src/vl2/processing/native/*.c) | $(BIN)/python
	@$(BIN)/python -c 'import importlib.util as u, sys; sys.exit(u.find_spec("torch") is None)' || \
	  $(PIP) $(if $(TORCH_INDEX_URL),--index-url $(TORCH_INDEX_URL)) '$(TORCH)'
	@$(PIP) --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime
	@$(PIP) --editable '.[dev]'
	@touch $@
