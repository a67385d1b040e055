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
CLS_TESTS := $(wildcard tests/test_cls_*.py) tests/test_benchmarks.py \
	tests/test_commands.py tests/test_host.py \
	tests/test_prepare.py tests/test_scores.py

# Tests run in parallel, a file in one process, since the tests of a file share
# runs. Nothing they use is of the machine as a whole: ports are free ones.
JOBS ?= auto
PYTEST := -m pytest --numprocesses $(JOBS) --maxprocesses 8 --dist loadfile
# What make check leaves out: tests that start processes or train for long.
SLOW := benchmarks cls compare configs distributed datasets gpu off_is_stock \
	pacing packaging prepare report resume ways_in zoo
SLOW_TESTS := $(foreach name,$(SLOW),$(wildcard tests/test_$(name)*.py))
# Run in .venv only: nothing in them depends on the family of packages. They
# test the layout of the project and what is packed. A file that calls mmengine,
# mmseg or mmpretrain is no such file.
HOST_FREE := layers packaging
HOST_FREE_TESTS := $(HOST_FREE:%=tests/test_%.py)
ignore = $(addprefix --ignore=,$(1))

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

# The GPU tests need a build of PyTorch for the GPU; PyPI's is one for CUDA.
TORCH_GPU ?= torch
VENV_GPU := .venv-gpu
# Where nvidia-smi is not to be found: make test-gpu GPUS=1
GPUS := $(shell nvidia-smi --list-gpus 2>/dev/null)
STEP := benchmarks/step.py upernet_r50 segformer_b0 --device cuda
HAS_CUDA := import torch; torch.zeros(1, device="cuda"); \
	print("test-gpu on", torch.cuda.get_device_name())

.PHONY: quickstart check test test-openmmlab test-gpu lint clean

quickstart: $(VENV)/.installed
	$(BIN)/python tools/quickstart.py

check: lint
	$(BIN)/python $(PYTEST) $(call ignore,$(SLOW_TESTS))

test: lint $(VENV_CLS)/.installed
	$(BIN)/python $(PYTEST)
	$(VENV_CLS)/bin/python $(PYTEST) $(CLS_TESTS)

ifdef MMCV_WHEEL
test-openmmlab: $(VENV_OMM)/.installed $(VENV_OMM_CLS)/.installed
	$(VENV_OMM)/bin/python $(PYTEST) $(call ignore,$(HOST_FREE_TESTS))
	$(VENV_OMM_CLS)/bin/python $(PYTEST) $(CLS_TESTS)
else
test-openmmlab:
	@echo 'test-openmmlab SKIPPED: WHEELS=$(WHEELS) has no wheel of mmcv' \
	    '2.1.0 for Python $(PYTHON_TAG)'
endif

ifneq ($(GPUS),)
test-gpu: $(VENV_GPU)/.installed
	$(VENV_GPU)/bin/python -c '$(HAS_CUDA)'
	$(VENV_GPU)/bin/python -m pytest tests/test_gpu.py -k cuda
	$(VENV_GPU)/bin/python $(STEP) --batch-size 8 --pairs 30
else
test-gpu:
	@echo 'test-gpu NOT RUN: nvidia-smi finds no GPU on this machine'
endif

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/.installed: setup.py
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet '$(TORCH)'
	$(BIN)/python -m pip install --quiet --editable '.[onedl,quickstart,tests]'
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

$(VENV_GPU)/.installed: setup.py
	$(PYTHON) -m venv --clear $(VENV_GPU)
	$(VENV_GPU)/bin/python -m pip install --quiet '$(TORCH_GPU)'
	$(VENV_GPU)/bin/python -m pip install --quiet --editable '.[onedl,tests]'
	touch $@

clean:
	rm -rf $(VENV) $(VENV_CLS) $(VENV_OMM) $(VENV_OMM_CLS) $(VENV_GPU) build \
	    *.egg-info
