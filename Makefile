# Everything a newcomer needs: `make run`, `make test`. `make help` lists the rest.
# Windows has no make: see README.md for the same steps by hand.

SHELL := /bin/sh
VENV ?= .venv
TORCH := 2.13.0
# The first Python that is new enough; override with `make run PYTHON=/path/to/python`.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	if command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	2>/dev/null; then echo $$p; break; fi; done)
BIN := $(VENV)/bin
READY := $(VENV)/.ready
EXTRA := $(VENV)/.ready-llamarec
TOOLS := $(VENV)/.ready-tools

.PHONY: help run test test-release lab app slides clean-copies site bench bench-scale binder clean doctor lock

help:
	@echo "make run    set up, run notebooks 01-05, print the ranked list of movies"
	@echo "make test   set up, run every test, notebooks included"
	@echo "make test-release  only the tests that need MOVIELENS_DIR and were skipped without it"
	@echo "make lab    set up, open JupyterLab with the notebooks in order"
	@echo "make app    set up, open the app of notebook 05 on a page of its own"
	@echo "make slides write slides of notebooks 01-06 into docs-build/slides/"
	@echo "make clean-copies  write notebooks without outputs and solutions into live/"
	@echo "make site   set up, build the site into build/site, which opens from disk"
	@echo "make bench  time the course beside plain ways; ONLY=bench_grid runs a part"
	@echo "make bench-scale  100 thousand to 32 million ratings; Spark beside implicit (half an hour)"
	@echo "make binder run notebooks 01-06 in a JupyterLab within Binder's 2 GB of memory"
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
	@$(BIN)/python tools/course.py run

test: $(EXTRA) $(TOOLS)
	@# Two at a time, then by themselves the ones that time something.
	@$(BIN)/python -m pytest -n 2 --no-loadscope-reorder -m "not alone"; first=$$?; \
	 $(BIN)/python -m pytest -m alone && exit $$first

# Only what needs ml-latest-small, and so was skipped by a `make test` without MOVIELENS_DIR.
test-release: $(EXTRA) $(TOOLS)
	@$(BIN)/python -m pytest -n 2 --no-loadscope-reorder -m release

lab: $(READY)
	@$(BIN)/python tools/course.py lab

app: $(TOOLS)
	@$(BIN)/python tools/course.py app

slides: $(READY)
	@$(BIN)/python tools/course.py slides

clean-copies: $(READY)
	@$(BIN)/python tools/course.py copies

site: $(READY) $(TOOLS)
	@$(BIN)/python tools/site/build.py

# With ONLY=bench_grid a part; rows that need PyTorch are skipped where it is missing.
bench: $(READY)
	@$(BIN)/python tools/benchmarks/run.py --only "$(ONLY)"

binder: $(READY)
	@$(BIN)/python tools/benchmarks/binder.py

# Half an hour, 4 GB of memory and 5 GB of disk; notebook 11 reads what it writes.
bench-scale: $(READY)
	@$(BIN)/python tools/benchmarks/bench_scale.py
	@$(BIN)/python tools/benchmarks/bench_scale.py --rivals

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
	rm -rf $(VENV) executed build docs-build live tests/artefacts .pytest_cache .ruff_cache .hypothesis
	@# Replies of your own may have cost money: they stay.
	if [ -d data/cache ]; then \
		find data/cache -mindepth 1 ! -name 'replies.sqlite*' -delete; fi
