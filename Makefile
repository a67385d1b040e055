# Each target does all the set-up it needs: the environment is made once, in
# .venv, and reused until setup.py changes.
PYTHON ?= python3
# The version that the tests were run with. Any torch >= 2.1 will do; a build
# for your GPU is chosen here, e.g. make quickstart TORCH=torch
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
# Classification is tested in an environment of its own: mmpretrain imports
# torchvision, which does not import beside the CPU build of torch 2.13.0.
TORCH_CLS ?= torch==2.15.0 torchvision==0.29.2
VENV_CLS := .venv-cls
CLS_TESTS := $(wildcard tests/test_cls_*.py) tests/test_compat.py \
	tests/test_data_classification.py tests/test_score_smoothing.py

# The official packages are tested in an environment of their own. mmcv comes
# as a wheel with compiled ops, since PyPI has only its sources: the one in
# WHEELS is for Python 3.11 and the CPU build of torch 2.13.0.
WHEELS ?= ../shared/wheels
VENV_OMM := .venv-openmmlab
# Its compiled ops were seen to import under TORCH_CLS too.
VENV_OMM_CLS := .venv-openmmlab-cls
PYTHON_TAG := $(shell $(PYTHON) -c \
	'import sys; print("cp%d%d" % sys.version_info[:2])')
MMCV_WHEEL := $(wildcard $(WHEELS)/mmcv-2.1.0-$(PYTHON_TAG)-*.whl)

.PHONY: quickstart test test-openmmlab lint clean

quickstart: $(VENV)/.installed
	$(BIN)/python tools/quickstart.py

test: lint $(VENV_CLS)/.installed
	$(BIN)/python -m pytest
	$(VENV_CLS)/bin/python -m pytest $(CLS_TESTS)

ifdef MMCV_WHEEL
test-openmmlab: $(VENV_OMM)/.installed $(VENV_OMM_CLS)/.installed
	$(VENV_OMM)/bin/python -m pytest
	$(VENV_OMM_CLS)/bin/python -m pytest $(CLS_TESTS)
else
test-openmmlab:
	@echo 'test-openmmlab SKIPPED: WHEELS=$(WHEELS) has no wheel of mmcv' \
	    '2.1.0 for Python $(PYTHON_TAG)'
endif

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/.installed: setup.py
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet '$(TORCH)'
	$(BIN)/python -m pip install --quiet --editable '.[onedl,tests]'
	touch $@

$(VENV_CLS)/.installed: setup.py
	$(PYTHON) -m venv --clear $(VENV_CLS)
	$(VENV_CLS)/bin/python -m pip install --quiet $(TORCH_CLS)
	$(VENV_CLS)/bin/python -m pip install --quiet --editable \
	    '.[cls,onedl,tests]'
	touch $@

$(VENV_OMM)/.installed: setup.py
	$(PYTHON) -m venv --clear $(VENV_OMM)
	$(VENV_OMM)/bin/python -m pip install --quiet torch==2.13.0
	$(VENV_OMM)/bin/python -m pip install --quiet '$(MMCV_WHEEL)' \
	    mmdet==3.3.0 --editable '.[openmmlab,tests]'
	touch $@

$(VENV_OMM_CLS)/.installed: setup.py
	$(PYTHON) -m venv --clear $(VENV_OMM_CLS)
	$(VENV_OMM_CLS)/bin/python -m pip install --quiet $(TORCH_CLS)
	$(VENV_OMM_CLS)/bin/python -m pip install --quiet '$(MMCV_WHEEL)' \
	    --editable '.[cls-openmmlab,openmmlab,tests]'
	touch $@

clean:
	rm -rf $(VENV) $(VENV_CLS) $(VENV_OMM) $(VENV_OMM_CLS) build *.egg-info
