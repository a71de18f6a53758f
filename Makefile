# A fresh machine needs Python 3.11, git, make and a C compiler (DeepSpeed compiles one small op on first use).
# `make` alone lists the targets.

VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PYTHON ?= $(shell command -v python3.11 || command -v python3)
PYTEST := $(BIN)/python -m pytest
# Processes that share out the tests by their groups (tests/conftest.py). There are two large groups: more than two
# processes bring little, JOBS=0 runs all tests in one.
JOBS   ?= 2

# Two `make` calls in one checkout wait for each other while installing; where flock is missing, pip alone must do.
LOCK := $(if $(shell command -v flock),flock Makefile)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# Nothing phones home, nothing is downloaded behind your back, no window is opened.
export RAY_USAGE_STATS_ENABLED := 0
export MLFLOW_DISABLE_TELEMETRY := true
export DO_NOT_TRACK := true
export HF_HUB_OFFLINE := 1
export HF_HUB_DISABLE_TELEMETRY := 1
export TOKENIZERS_PARALLELISM := false
export MPLBACKEND := Agg
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# An empty HOME would turn ~/.ray into /.ray; without the variable Python asks the system instead.
ifeq ($(strip $(HOME)),)
unexport HOME
endif

.PHONY: help
help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' Makefile

.PHONY: venv
venv: $(STAMP)  ## Create .venv with the pinned packages

# All versions come from constraints.txt, torch 2.13.0 among them: an open range would let pip choose another build.
$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "no Python found: install Python 3.11 or call make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is too old: Python 3.11 or newer is needed; call make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(LOCK) sh -euc ' \
	  test -x $(BIN)/pip || "$(PYTHON)" -m venv $(VENV); \
	  $(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"; \
	  touch $@'

.PHONY: lint
lint: $(STAMP)  ## Style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.PHONY: format
format: $(STAMP)  ## Mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: test
test: $(STAMP)  ## Unit, integration and golden tests
	$(PYTEST) -n $(JOBS) --dist loadgroup --no-loadscope-reorder -m "not gpu and not long" tests/unit tests/integration tests/golden

.PHONY: unit
unit: $(STAMP)  ## Fast tests, without Ray
	$(PYTEST) -n $(JOBS) tests/unit

.PHONY: integration
integration: $(STAMP)  ## Tests with processes, real models, a local Ray cluster and an S3 server
	$(PYTEST) tests/integration

.PHONY: long
long: $(STAMP)  ## Wider forms of tests and measurements, left out of `make test` for time
	$(PYTEST) -m long tests/integration

.PHONY: faults
faults: $(STAMP)  ## Tests that kill processes and nodes, break storage and damage files, and a table of what they measured
	$(PYTEST) tests/faults

.PHONY: faults-short
faults-short: $(STAMP)  ## The part of them that CI runs
	$(PYTEST) -m "not long" tests/faults

.PHONY: gpu
gpu: $(STAMP)  ## Tests that need a GPU
	$(PYTEST) tests/gpu

# BENCH="floor start" runs some of them, ROUNDS=5 more rounds. Nothing else should run on the machine meanwhile.
BENCH  ?=
ROUNDS ?= 3

.PHONY: bench
bench: $(STAMP)  ## Measure speed, memory and growth; figures go to benchmarks/results
	$(BIN)/python -m benchmarks --rounds $(ROUNDS) $(BENCH)

# The tool brings thirty packages that nothing else needs: it gets an environment of its own. --strict: a package that
# nobody could ask about is a failure, not a line to be overlooked.
PIP_AUDIT := pip-audit==2.10.1

.PHONY: audit
audit:  ## Known vulnerabilities of the pinned packages; asks the network, so it is part of nothing else
	@test -x $(VENV)-audit/bin/pip-audit || { \
	  "$(PYTHON)" -m venv $(VENV)-audit && $(VENV)-audit/bin/python -m pip install --quiet $(PIP_AUDIT); }
	$(VENV)-audit/bin/pip-audit --strict --requirement constraints.txt --no-deps --disable-pip --progress-spinner off

# ARCHIVE=/some/folder or ARCHIVE=s3://bucket/prefix tags that archive instead of the generated one. CLIPS is the number
# of labelled clips, FINETUNE holds more settings for the training, such as FINETUNE="--set train.epochs=2".
CLIPS    ?= 220
FINETUNE ?=

.PHONY: demo
demo: $(STAMP)  ## Tag a generated archive, fine-tune on it, tag again; or tag ARCHIVE=/some/folder
ifdef ARCHIVE
	$(BIN)/vca tag --config configs/demo.yaml --set predict.model=zeroshot --set "archive.uri='$(ARCHIVE)'" \
	  --set output.uri=demo/output-$(shell printf %s "$(ARCHIVE)" | cksum | cut -d" " -f1)
else
	$(BIN)/vca demo --archive demo/archive --clips $(CLIPS) --annotations demo/annotations.jsonl
	$(BIN)/vca tag --config configs/demo.yaml
	$(BIN)/vca finetune --config configs/demo_finetune.yaml $(FINETUNE)
	$(BIN)/vca tag --config configs/demo.yaml
endif

.PHONY: clean
clean:  ## Remove the demo and the caches; .venv stays
	rm -rf demo out .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
