# Each target does all the set-up it needs: the environment is made once, in
# .venv, and reused until setup.py changes.
PYTHON ?= python3
# The version that the tests were run with. Any torch >= 2.1 will do; a build
# for your GPU is chosen here, e.g. make quickstart TORCH=torch
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin

.PHONY: quickstart test lint clean

quickstart: $(VENV)/.installed
	$(BIN)/python tools/quickstart.py

test: lint
	$(BIN)/python -m pytest

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/.installed: setup.py
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet '$(TORCH)'
	$(BIN)/python -m pip install --quiet --editable '.[onedl,tests]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
