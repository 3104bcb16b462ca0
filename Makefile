# Every target sets up .venv by itself, so that a fresh clone needs Python 3.10 or newer, git and make only.
#
# PYTHON=python3.12 make test     another Python for .venv (remove .venv first if there is one)
# pip's own variables work too. On Linux without a GPU this saves gigabytes of CUDA libraries:
#     PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make demo

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow lint clean

help:
	@echo "make demo       four nodes learn together, with a table and a picture (about half a minute)"
	@echo "make test       the tests"
	@echo "make test-slow  the tests that take more than a few seconds each"
	@echo "make lint       ruff and mypy"
	@echo "make clean      remove .venv and everything that was built"

demo: $(STAMP)
	@$(BIN)/dpwa demo

test: $(STAMP)
	@$(BIN)/python -m pytest

test-slow: $(STAMP)
	@$(BIN)/python -m pytest -m slow

lint: $(STAMP)
	@echo "ruff check"
	@$(BIN)/ruff check
	@echo "ruff format"
	@$(BIN)/ruff format --check
	@echo "mypy"
	@$(BIN)/mypy

clean:
	rm -rf .venv build dist dpwa.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(STAMP): pyproject.toml setup.py constraints.txt
	@test -x $(BIN)/python || { echo "Making .venv"; $(PYTHON) -m venv .venv; }
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 10) and "dpwa needs Python 3.10 or newer: PYTHON=python3.11 make ...")'
	@echo "Installing dpwa and what it needs (the first time, this downloads PyTorch: minutes)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
