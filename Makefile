# Everything a newcomer needs: `make run`, `make test`. `make help` lists the rest; Windows: README.md.
#: make run          set up, run notebooks 01-05, print the ranked list of movies
#: make lab          set up, open JupyterLab with the notebooks in order
#: make app          set up, open the app of notebook 05 on a page of its own
#: make doctor       check Python, Java, memory, Spark, data, LLM
#: make test         set up, run every test, notebooks included
#: make test-release only the tests that need MOVIELENS_DIR and were skipped without it
#: make slides       slides of notebooks 01-06 into docs-build/slides/
#: make copies       notebooks without outputs and solutions, for live coding, into live/
#: make site         the site into build/site, which opens from disk
#: make bench        time the course beside plain ways; ONLY=bench_grid runs a part
#: make bench-scale  100 thousand to 32 million ratings; Spark beside implicit (half an hour)
#: make lock         write the locks anew (needs uv)
#: make clean        remove the virtual environment and all caches but your own LLM replies
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
PIP := $(BIN)/python -m pip install --quiet
.PHONY: help run lab app doctor test test-release slides copies site bench bench-scale lock clean
help:
	@sed -n 's/^#: //p' Makefile
$(READY): requirements.lock pyproject.toml
	@if [ -z "$(PYTHON)" ]; then echo \
	"Python 3.11 or newer was not found: install it, or say make PYTHON=/path/to/python."; exit 1; fi
	@echo "Setting up $(VENV) (a few minutes, once)..." && $(PYTHON) -m venv $(VENV)
	@$(PIP) --require-hashes -r requirements.lock && $(PIP) --no-deps --editable . && touch $@
# PyTorch has other builds on other systems, so only it comes without a hash.
$(EXTRA): $(READY) requirements-llamarec.lock
	@echo "Adding PyTorch and transformers..."
	@$(PIP) --require-hashes --no-deps -r requirements-llamarec.lock && $(PIP) torch==$(TORCH) && touch $@
$(TOOLS): $(READY) requirements-tools.lock
	@echo "Adding the browser tools..." && $(PIP) --require-hashes --no-deps -r requirements-tools.lock && touch $@
test: $(EXTRA) $(TOOLS) # two at a time, then by themselves the ones that time something
	@$(BIN)/python -m pytest -n 2 --no-loadscope-reorder -m "not alone"; first=$$?; \
	 $(BIN)/python -m pytest -m alone && exit $$first
test-release: $(EXTRA) $(TOOLS)
	@$(BIN)/python -m pytest -n 2 --no-loadscope-reorder -m release
app site: $(TOOLS)
run lab app slides copies: $(READY)
	@$(BIN)/python tools/course.py $@
site: ; @$(BIN)/python tools/site/build.py
doctor: $(READY) ; @$(BIN)/python -m helpers.doctor
bench: $(EXTRA)
	@$(BIN)/python tools/benchmarks/run.py --only "$(ONLY)"
bench-scale: $(READY)
	@$(BIN)/python tools/experiments/11_scale.py && $(BIN)/python tools/experiments/11_scale.py --rivals
lock: ; @python3 tools/lock.py
clean: # replies of your own may have cost money: they stay
	rm -rf $(VENV) executed build docs-build live tests/artefacts .pytest_cache .ruff_cache .hypothesis
	if [ -d data/cache ]; then find data/cache -mindepth 1 ! -name 'replies.sqlite*' -delete; fi
