# `make study` and `make test` set up everything they need in .venv.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
# pip works from outside on .venv, so that Debian's python3 suffices, whose venv has no pip to put there
PIP = $(PYTHON) -m pip --python $(BIN)/python
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# one more than there are cores: many tests wait for processes of theirs
WORKERS = $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1)
PYTEST = OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses=$(WORKERS) --dist=worksteal

.PHONY: study test coverage
.DELETE_ON_ERROR:

study: $(INSTALLED)
	$(BIN)/plainres train experiment=digits
	$(BIN)/plainres report runs/digits

test: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/basedpyright
	$(PYTEST)

coverage: $(INSTALLED)
	$(PYTEST) --cov --cov-fail-under=95

# The lock has no torch, whose builds, with CUDA or without, differ from index to index. It comes last, so that all it
# needs but CUDA is there with a hash.
$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and "plainres needs Python 3.11 or newer; $(PYTHON) is %d.%d: make PYTHON=python3.12" % v[:2])'
	$(PYTHON) -m venv --without-pip .venv
	$(PIP) install --require-hashes --no-deps -r requirements.lock
	$(PIP) install torch==2.13.0
	$(PIP) install --no-build-isolation --no-deps -e .
	@touch $@
