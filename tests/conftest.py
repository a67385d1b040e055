"""Settings of all tests."""

import os
import sys
from pathlib import Path
from weakref import WeakSet

# Before torch is imported. Processes that a test starts inherit it.
os.environ.setdefault('OMP_NUM_THREADS', '1')
# Helpers are imported by their own names, also where a test starts Python.
sys.path.insert(0, str(Path(__file__).parent / 'helpers'))

import pytest
import torch

# What it reads its grammar from is written when it is first imported after an
# installation, in place. This process is there before the workers of xdist.
import yapf.yapflib.yapf_api  # noqa: F401
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch.utils.data import dataloader

LOADING: WeakSet = WeakSet()


class NotedIterator(dataloader._MultiProcessingDataLoaderIter):
    """An iterator with workers, of which the tests know."""

    def __init__(self, loader):
        super().__init__(loader)
        LOADING.add(self)


dataloader._MultiProcessingDataLoaderIter = NotedIterator


def stop_workers():
    """Stop the workers of all runs.

    Of a runner that the garbage collector finds, it closes the queues before
    torch sends the word to stop: for each worker torch would wait 5 s.
    """
    for iterator in list(LOADING):
        iterator._shutdown_workers()


@pytest.fixture(autouse=True)
def _no_workers_left():
    yield
    stop_workers()


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def plain_text(config):
    """Return a config as text, one key a line."""
    lines = [f'{key} = {value!r}' for key, value in config.to_dict().items()]
    return '\n'.join(lines)


@pytest.fixture(autouse=True)
def _plain_config_text(monkeypatch):
    """Skip yapf, with which mmengine lays the config out in a second a run."""
    monkeypatch.setattr(Config, 'pretty_text', property(plain_text))


@pytest.fixture(autouse=True)
def _no_default_scope():
    """Forget the scope of the last run, in which registries would look."""
    DefaultScope._instance_dict.clear()
