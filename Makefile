# Every target but help sets up what it needs in .venv.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
# Debian's python3 cannot put pip into a venv, so its own pip works on .venv from outside and installs one there.
PIP = $(PYTHON) -m pip --python $(BIN)/python
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# One more than there are cores, because many tests wait for child processes.
WORKERS = $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1)
PYTEST = OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses=$(WORKERS) --dist=worksteal

.PHONY: help study test coverage
.DELETE_ON_ERROR:
.DEFAULT_GOAL := study

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*##  */\1\t/p' $(MAKEFILE_LIST) | expand -t 12
	@echo "PYTHON=python3.12 chooses the interpreter of .venv (default: python3; 3.11 or newer)."

study: $(INSTALLED)  ## train the digits study, print its table and verdicts
	$(BIN)/plainres train experiment=digits
	$(BIN)/plainres report runs/digits

test: $(INSTALLED)  ## run the linters, the type checker and the tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/basedpyright
	$(PYTEST)

coverage: $(INSTALLED)  ## run the tests; fail below 95 % of the lines
	$(PYTEST) --cov --cov-fail-under=95

# The lock omits torch, whose builds (with or without CUDA) differ between indexes. Torch is installed after it, so that
# its dependencies other than CUDA come from the lock, with their hashes.
$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and "plainres needs Python 3.11 or newer; $(PYTHON) is %d.%d: make PYTHON=python3.12" % v[:2])'
	$(PYTHON) -m venv --without-pip .venv
	$(PIP) install --require-hashes --no-deps -r requirements.lock
	$(PIP) install torch==2.13.0
	$(PIP) install --no-build-isolation --no-deps -e .
	@touch $@
