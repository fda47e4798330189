# Everything a newcomer needs: `make run`, `make lab`. `make help` lists the rest; without make:
# python tools/course.py run.
#: For learners
#:   make run          set up, run notebooks 01-05, print the ranked list of movies
#:   make lab          set up, open your copies of the notebooks (in work/) in JupyterLab
#:   make page         a page to play with into build/page/, which opens from disk
#:   make doctor       check Python, Java, memory, disk, Spark, data, LLM
#: For instructors
#:   make slides       a deck for each plan of 60, 120 and 180 minutes into build/slides/
#:   make copies       skeleton notebooks for live coding into build/live/
#:   make site         the site into build/site/, which opens from disk
#: For contributors
#:   make check        lint, format, types, spelling, secrets, imports
#:   make test         set up, run every test, and the notebooks on the sample
#:   make test-release the tests that need MOVIELENS_DIR, and the notebooks output by output
#:   make bench        seconds and memory of each notebook; ONLY="02 03" measures some
#:   make bench-scale  100 thousand to 32 million ratings; Spark beside implicit (half an hour)
#:   make lock         write the locks anew (needs uv)
#:   make clean        remove .venv, build/ and caches; your copies in work/ and LLM replies stay
VENV ?= .venv
PYTHON ?= python3
TORCH := 2.13.0
BIN := $(abspath $(VENV))/bin
READY := $(VENV)/.ready
EXTRA := $(VENV)/.ready-llamarec
TOOLS := $(VENV)/.ready-tools
PIP := $(BIN)/python -m pip install --quiet
# Short jobs: the JVM's first compiler is enough for them and takes a third less processor time.
TEST := JDK_JAVA_OPTIONS=-XX:TieredStopAtLevel=1 $(BIN)/python -m pytest --no-loadscope-reorder
NBVAL := LLM_MODE=recorded MOVIELENS_DOWNLOAD=0 PYTHONPATH=tests/support $(TEST) -n 2 \
	-p notebook_claims --nbval-cell-timeout=1200 \
	--nbval-sanitize-with tests/support/nbval_sanitize.cfg
.PHONY: help run lab page doctor check test test-release slides copies site bench bench-scale lock clean
help: ; @sed -n 's/^#: //p' Makefile
$(READY): requirements.lock requirements-local.lock pyproject.toml
	@$(PYTHON) tools/bootstrap.py $(VENV)
# PyTorch has other builds on other systems, so only it comes without a hash.
$(EXTRA): $(READY) requirements-llamarec.lock
	@echo "Adding PyTorch and transformers..."
	@$(PIP) --require-hashes --no-deps -r requirements-llamarec.lock && $(PIP) torch==$(TORCH) && touch $@
$(TOOLS): $(READY) requirements-tools.lock
	@echo "Adding the browser tools..." && $(PIP) --require-hashes --no-deps -r requirements-tools.lock && touch $@
run lab page copies: $(READY) ; @$(BIN)/python tools/course.py $@
slides: $(TOOLS) ; @$(BIN)/python tools/course.py $@
doctor: $(READY) ; @$(BIN)/python -m helpers.doctor
check: $(EXTRA) $(TOOLS) ; @PATH="$(BIN):$$PATH" pre-commit run --all-files --show-diff-on-failure
test: $(EXTRA) $(TOOLS) # two at a time, then by themselves the ones that time something
	@failed=0; $(TEST) -n 2 -m "not alone" || failed=1; $(TEST) -m alone tests/research || failed=1; \
	MOVIELENS_DIR="$(CURDIR)/data/sample" $(NBVAL) --nbval-lax notebooks || failed=1; exit $$failed
test-release: $(EXTRA) $(TOOLS)
	@failed=0; $(TEST) -n 2 -m release || failed=1; $(NBVAL) --nbval --ignore=notebooks/appendix notebooks || failed=1; exit $$failed
site: $(TOOLS) ; @$(BIN)/sphinx-build -b html -W --keep-going -q -c tools/site -d build/doctrees . build/site
bench: $(EXTRA) ; @$(BIN)/python tools/benchmarks.py $(ONLY)
bench-scale: $(READY)
	@$(BIN)/python tools/experiments/14_scale.py && $(BIN)/python tools/experiments/14_scale.py --rivals
lock: ; @python3 tools/lock.py
clean: # replies of your own may have cost money: they stay
	rm -rf $(VENV) build tests/artefacts .pytest_cache .ruff_cache .hypothesis
	if [ -d data/cache ]; then find data/cache -mindepth 1 ! -name replies.jsonl -delete; fi
