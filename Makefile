# Everything a newcomer needs: `make run`, `make test`. `make help` lists the rest.
# Windows has no make: see README.md for the same steps by hand.

SHELL := /bin/sh
VENV ?= .venv
TORCH := 2.13.0
# The first Python that is new enough; override with `make run PYTHON=/path/to/python`.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	if command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	2>/dev/null; then echo $$p; break; fi; done)
BIN := $(VENV)/bin
READY := $(VENV)/.ready
EXTRA := $(VENV)/.ready-llamarec
TOOLS := $(VENV)/.ready-tools

.PHONY: help run test lab bench bench-scale clean doctor lock

help:
	@echo "make run    set up, run notebooks 01-05, print the ranked list of movies"
	@echo "make test   set up, run every test, notebooks included"
	@echo "make lab    set up, open JupyterLab"
	@echo "make bench  time our grid search beside the article's loop, and LRURec if torch is there"
	@echo "make bench-scale  100 thousand to 32 million ratings; Spark beside implicit (half an hour)"
	@echo "make doctor check Python, Java, memory, Spark, data, LLM"
	@echo "make lock   write the three locks anew (needs uv)"
	@echo "make clean  remove the virtual environment and all caches but your own LLM replies"

$(READY): requirements.lock pyproject.toml
	@if [ -z "$(PYTHON)" ]; then \
		echo "Python 3.11 or newer was not found: install it, or say make PYTHON=/path/to/python."; \
		exit 1; fi
	@echo "Setting up $(VENV) (a few minutes, once)..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --no-deps --editable .
	@touch $(READY)

# The llamarec extra. PyTorch has other builds on other systems, so only it comes without a hash.
$(EXTRA): $(READY) requirements-llamarec.lock
	@echo "Adding PyTorch and transformers for the llamarec extra..."
	@$(BIN)/python -m pip install --quiet --require-hashes --no-deps -r requirements-llamarec.lock
	@$(BIN)/python -m pip install --quiet torch==$(TORCH)
	@touch $(EXTRA)

# What the page, the app and the browser tests need.
$(TOOLS): $(READY) requirements-tools.lock
	@echo "Adding the tools for the page, the app and the browser tests..."
	@$(BIN)/python -m pip install --quiet --require-hashes --no-deps -r requirements-tools.lock
	@touch $(TOOLS)

run: $(READY)
	@$(BIN)/python -m helpers.cli run

test: $(EXTRA) $(TOOLS)
	@$(BIN)/python -m pytest

lab: $(READY)
	@$(BIN)/jupyter lab notebooks

bench: $(READY)
	@$(BIN)/python tests/benchmarks/bench_grid.py
	@if $(BIN)/python -c 'import torch, safetensors' 2>/dev/null; then \
		$(BIN)/python tests/benchmarks/bench_lru.py; \
		else echo "The benchmark of LRURec needs PyTorch: pip install -e '.[llamarec]'"; fi

# Half an hour, 4 GB of memory and 5 GB of disk; notebook 11 reads what it writes.
bench-scale: $(READY)
	@$(BIN)/python tests/benchmarks/bench_scale.py
	@$(BIN)/python tests/benchmarks/bench_scale.py --rivals

doctor: $(READY)
	@$(BIN)/python -m helpers.doctor

lock:
	uv pip compile pyproject.toml --extra dev --extra scale --universal --python-version 3.11 \
		--generate-hashes --no-emit-index-url --no-header --no-annotate --quiet \
		--output-file requirements.lock
	@# The extra's lock: what the core lacks, without PyTorch and what its CUDA builds bring.
	uv pip compile pyproject.toml --extra llamarec --constraint requirements.lock --universal \
		--python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate \
		--quiet --no-emit-package torch --output-file requirements-all.tmp
	awk '/^[a-z0-9]/ { split($$1, name, "==") } \
		NR == FNR { core[name[1]]; next } \
		!(name[1] in core) && name[1] !~ /^(nvidia|cuda|triton|setuptools)/' \
		requirements.lock requirements-all.tmp > requirements-llamarec.lock
	uv pip compile pyproject.toml --extra tools --constraint requirements.lock \
		--constraint requirements-llamarec.lock --universal --python-version 3.11 \
		--generate-hashes --no-emit-index-url --no-header --no-annotate --quiet \
		--output-file requirements-all.tmp
	awk '/^[a-z0-9]/ { split($$1, name, "==") } NR == FNR { core[name[1]]; next } \
		!(name[1] in core)' requirements.lock requirements-all.tmp > requirements-tools.lock
	rm requirements-all.tmp

clean:
	rm -rf $(VENV) executed .pytest_cache .ruff_cache .hypothesis
	@# Replies of your own may have cost money: they stay.
	if [ -d data/cache ]; then \
		find data/cache -mindepth 1 ! -name 'replies.sqlite*' -delete; fi
