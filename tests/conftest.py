"""Settings of all tests."""

import importlib
import sys

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import LOOPS, DefaultScope
from mmengine.runner import _flexible_runner
from mmengine.runner import runner as runner_module


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _plain_config_text(monkeypatch):
    """Skip yapf, with which mmengine lays the config out in a second a run."""

    def text(config):
        lines = [
            f'{key} = {value!r}' for key, value in config.to_dict().items()
        ]
        return '\n'.join(lines)

    monkeypatch.setattr(Config, 'pretty_text', property(text))


@pytest.fixture(autouse=True)
def _no_default_scope():
    """Forget the scope of the last run, in which registries would look."""
    DefaultScope._instance_dict.clear()


@pytest.fixture
def override(monkeypatch):
    """Import the registry override, and put the stock loops back after."""
    monkeypatch.setattr(LOOPS, '_module_dict', dict(LOOPS.module_dict))
    for module in runner_module, _flexible_runner:
        for name in 'EpochBasedTrainLoop', 'IterBasedTrainLoop':
            monkeypatch.setattr(module, name, getattr(module, name))
    yield importlib.import_module('infobatch_mm.override')
    del sys.modules['infobatch_mm.override']
